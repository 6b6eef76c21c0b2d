"""A PyVISA backend whose instruments are shared: ``pyvisa.ResourceManager("@trio_daq")``.

PyVISA calls what stands here as it calls a VISA library. Each function finds the old session that is meant, lets it do
the work, and says in the terms of VISA how that went.

`trio_daq.legacy.register` lets PyVISA find it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Self, TypeVar

import attrs
from pyvisa import rname
from pyvisa.constants import AccessModes, Lock, ResourceAttribute, StatusCode
from pyvisa.errors import VisaIOError
from pyvisa.highlevel import VisaLibraryBase
from pyvisa.util import LibraryPath
from serial import SerialException
from serial.tools import list_ports

from trio_daq.errors import (
    DaqError,
    DeadlockError,
    DoorInterruptedError,
    LeaseRevokedError,
    LineFeatureError,
    LockOrderError,
    PortBusyError,
    Sent,
    StateError,
    UnknownNameError,
)
from trio_daq.legacy.directory import all_resources, find_line, resource_of
from trio_daq.legacy.old_serial_session import OldSerialSession
from trio_daq.legacy.old_visa_session import OldVisaSession
from trio_daq.legacy.visa_attributes import VisaAttributes
from trio_daq.visa import VisaSessionManager, canonical_resource

_T = TypeVar("_T")

_numbers = itertools.count(1)
"""Handles. Of the whole process, so that one of a library that is gone means nothing to another."""


@attrs.frozen
class _Opened:
    old: OldVisaSession | OldSerialSession
    attributes: VisaAttributes


class TrioDaqVisaLibrary(VisaLibraryBase):
    """What PyVISA takes for a VISA library. Each resource manager has one of its own.

    To PyVISA's functions that are not here, the instrument is one that does not have them.
    """

    def __new__(cls, library_path: str = "") -> Self:
        """Make one for each who asks."""
        # PyVISA gives all who ask for one library one resource manager, and closing that closes what others opened.
        path = LibraryPath(f"trio_daq {next(_numbers)}", library_path or "auto")
        library = super().__new__(cls, path)
        assert isinstance(library, cls)
        return library

    @staticmethod
    def get_library_paths() -> tuple[LibraryPath, ...]:
        """Return that there is one."""
        return (LibraryPath("trio_daq"),)

    @staticmethod
    def get_debug_info() -> dict[str, str]:
        """Return what ``pyvisa-info`` shows."""
        return {"Version": "of trio_daq", "Resources": ", ".join(all_resources()) or "none, since no lab is open"}

    def _init(self) -> None:
        self._opened: dict[int, _Opened] = {}

    # --- resources ---------------------------------------------------------------------------------------------------

    def open_default_resource_manager(self) -> tuple[Any, StatusCode]:
        """Open the resource manager."""
        manager: Any = next(_numbers)
        return manager, self.handle_return_value(manager, StatusCode.success)

    def list_resources(self, session: Any, query: str = "?*::INSTR") -> tuple[str, ...]:  # noqa: ARG002
        """Return what the open labs have, and then what other serial ports there are, as far as it matches *query*."""
        others = sorted(f"ASRL{port.device}::INSTR" for port in list_ports.comports())
        names = dict.fromkeys(canonical_resource(name) for name in (*all_resources(), *others))
        return tuple(rname.filter(list(names), query))

    def open(
        self,
        session: Any,
        resource_name: str,
        access_mode: AccessModes = AccessModes.no_lock,
        open_timeout: int = 0,
    ) -> tuple[Any, StatusCode]:
        """Open a session of a shared instrument."""
        try:
            line, host = find_line(resource_name)
        except (UnknownNameError, StateError) as error:
            raise self._failure(session, error, StatusCode.error_resource_not_found) from error
        old: OldVisaSession | OldSerialSession
        if isinstance(line, VisaSessionManager):
            old = OldVisaSession(line, host, _interruption)
        else:
            old = OldSerialSession(line, host)
        opened = _Opened(old, VisaAttributes(canonical_resource(resource_of(line))))
        handle: Any = next(_numbers)
        self._opened[handle] = opened
        if access_mode & AccessModes.exclusive_lock:
            try:
                self.lock(handle, Lock.exclusive, open_timeout)
            except BaseException:
                self.close(handle)
                raise
        return handle, self.handle_return_value(handle, StatusCode.success)

    def close(self, session: Any) -> StatusCode:
        """Close a session, or all if it is the resource manager."""
        if (opened := self._opened.pop(session, None)) is not None:
            self._do(session, opened.old.close)
        elif session not in self._last_status_in_session:
            return self.handle_return_value(None, StatusCode.error_invalid_object)
        else:
            for handle in list(self._opened):
                self.close(handle)
        return self.handle_return_value(session, StatusCode.success)

    # --- messages ----------------------------------------------------------------------------------------------------

    def write(self, session: Any, data: bytes) -> tuple[int, StatusCode]:
        """Write *data*."""
        opened = self._of(session)
        opened.old.timeout = opened.attributes.timeout
        if data:
            self._do(session, lambda: opened.old.write(bytes(data)))
        return len(data), self.handle_return_value(session, StatusCode.success)

    def read(self, session: Any, count: int) -> tuple[bytes, StatusCode]:
        """Read at most *count* bytes."""
        opened = self._of(session)
        opened.old.timeout = opened.attributes.timeout
        termination = opened.attributes.termination
        data, is_all = self._do(session, lambda: opened.old.read(count, termination))
        if termination is not None and data.endswith(termination):
            status = StatusCode.success_termination_character_read
        else:
            status = StatusCode.success if is_all else StatusCode.success_max_count_read
        return data, self.handle_return_value(session, status)

    def clear(self, session: Any) -> StatusCode:
        """Forget what this session asked; an instrument that others use as well gets no device clear."""
        self._do(session, self._of(session).old.clear)
        return self.handle_return_value(session, StatusCode.success)

    def flush(self, session: Any, mask: Any) -> StatusCode:  # noqa: ARG002 - nothing is held back when writing
        """Forget what was not read."""
        self._do(session, self._of(session).old.clear)
        return self.handle_return_value(session, StatusCode.success)

    def assert_trigger(self, session: Any, protocol: Any) -> StatusCode:  # noqa: ARG002
        """Trigger the instrument by ``*TRG``, which does what a trigger on the bus does (IEEE 488.2-1992, 10.37)."""
        opened = self._of(session)
        self._do(session, opened.old.trigger)
        return self.handle_return_value(session, StatusCode.success)

    def read_stb(self, session: Any) -> tuple[int, StatusCode]:
        """Read the status byte, where the connection has a way of its own for that."""
        status = self._do(session, self._of(session).old.read_stb)
        return status, self.handle_return_value(session, StatusCode.success)

    # --- attributes and locks ----------------------------------------------------------------------------------------

    def get_attribute(self, session: Any, attribute: Any) -> tuple[Any, StatusCode]:
        """Return an attribute of this session."""
        opened = self._of(session)
        if attribute == ResourceAttribute.resource_lock_state and opened.old.is_locked:
            return AccessModes.exclusive_lock, self.handle_return_value(session, StatusCode.success)
        try:
            value = opened.attributes.get(attribute)
        except LookupError:
            return None, self.handle_return_value(session, StatusCode.error_nonsupported_attribute)
        return value, self.handle_return_value(session, StatusCode.success)

    def set_attribute(self, session: Any, attribute: Any, attribute_state: Any) -> StatusCode:
        """Set an attribute of this session, and of no other."""
        try:
            self._of(session).attributes.set(attribute, attribute_state)
        except LookupError:
            return self.handle_return_value(session, StatusCode.error_nonsupported_attribute)
        except AttributeError:
            return self.handle_return_value(session, StatusCode.error_attribute_read_only)
        return self.handle_return_value(session, StatusCode.success)

    def lock(
        self, session: Any, lock_type: Lock, timeout: int, requested_key: str | None = None
    ) -> tuple[str, StatusCode]:
        """Have the instrument for this session alone. A shared lock (VPP-4.3, 3.6.3) there is not."""
        if lock_type != Lock.exclusive or requested_key:
            return "", self.handle_return_value(session, StatusCode.error_invalid_lock_type)
        old = self._of(session).old
        if old.is_locked:
            return "", self.handle_return_value(session, StatusCode.success_nested_exclusive)
        self._do(session, lambda: old.lock(timeout / 1000))
        return "", self.handle_return_value(session, StatusCode.success)

    def unlock(self, session: Any) -> StatusCode:
        """Give the instrument back."""
        old = self._of(session).old
        if not old.is_locked:
            return self.handle_return_value(session, StatusCode.error_session_not_locked)
        self._do(session, old.unlock)
        return self.handle_return_value(session, StatusCode.success)

    # --- events, which there are not ---------------------------------------------------------------------------------

    def disable_event(self, session: Any, event_type: Any, mechanism: Any) -> StatusCode:  # noqa: ARG002
        """Do nothing: PyVISA asks for it whenever it closes a session."""
        return self.handle_return_value(session, StatusCode.success)

    def discard_events(self, session: Any, event_type: Any, mechanism: Any) -> StatusCode:  # noqa: ARG002
        """Do nothing: PyVISA asks for it whenever it closes a session."""
        return self.handle_return_value(session, StatusCode.success)

    def _refuse(self, session: Any, *_: Any, **__: Any) -> Any:
        return self.handle_return_value(session, StatusCode.error_nonsupported_operation)

    enable_event = wait_on_event = install_handler = uninstall_handler = _refuse
    gpib_command = gpib_control_atn = gpib_control_ren = gpib_pass_control = gpib_send_ifc = _refuse
    read_asynchronously = write_asynchronously = terminate = set_buffer = _refuse

    # --- how it is done ----------------------------------------------------------------------------------------------

    def _of(self, session: Any) -> _Opened:
        if session not in self._opened:
            self.handle_return_value(None, StatusCode.error_invalid_object)
        return self._opened[session]

    def _do(self, session: Any, work: Callable[[], _T]) -> _T:
        try:
            return work()
        except (DaqError, SerialException) as error:
            cause = error if isinstance(error, DaqError) else error.__cause__
            raise self._failure(session, cause or error, _status_of(cause)) from error

    def _failure(self, session: Any, error: BaseException, status: StatusCode) -> VisaIOError:
        try:
            self.handle_return_value(session, status)
        except VisaIOError as failure:
            failure.add_note(str(error))
            return failure
        raise AssertionError(f"{status} is no error")


def _interruption(*, resource: str, owner: str, sent: Sent) -> Exception:
    told = DoorInterruptedError(resource=resource, owner=owner, reason="its member is to stop", sent=sent)
    error = VisaIOError(StatusCode.error_abort)
    error.add_note(str(told))
    error.__cause__ = told
    return error


def _status_of(error: BaseException | None) -> StatusCode:
    match error:
        case TimeoutError():
            return StatusCode.error_timeout
        case PortBusyError() | DeadlockError() | LockOrderError():
            return StatusCode.error_resource_locked
        case LineFeatureError():
            return StatusCode.error_nonsupported_operation
        case LeaseRevokedError() | DoorInterruptedError():
            return StatusCode.error_abort
        case ConnectionError():
            return StatusCode.error_connection_lost
    return StatusCode.error_io
