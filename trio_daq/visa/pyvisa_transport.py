"""Talk to one VISA resource through PyVISA, in a thread of its own.

Any PyVISA backend will do. Every failure, of whatever type the backend chose, comes out as one of two errors; after
either the connection must not be used again, since a late reply may sit in it.

Invariant: only functions that run in the worker thread touch the PyVISA resource.
"""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING

import trio

from trio_daq.errors import HungCallError, LineOpenError, Sent
from trio_daq.sharing import WorkerThread
from trio_daq.visa.settings import VisaSessionConfig
from trio_daq.visa.tcp_link import discard_stale_input, tune_tcp

if TYPE_CHECKING:
    from pyvisa.resources import MessageBasedResource

_CHUNK = 1 << 16
"""Bytes asked for in one viRead."""

_MAKING_MANAGER = threading.Lock()
"""PyVISA keeps one manager for each library; two threads at once would make two, and the lost one closes sessions."""

_GRACE = 1.0
"""Seconds beyond its VISA timeout that a call may take before its thread is given up."""


class TransportError(Exception):
    """The connection failed; the message says how."""


class TransportTimeoutError(TransportError):
    """The instrument did not take or give bytes in time."""


class PyvisaTransport:
    """One open connection.

    Attributes:
        sent: Whether the command of the last exchange was written: ``"unknown"`` while that is under way.
    """

    def __init__(self, config: VisaSessionConfig) -> None:
        self.sent: Sent = "no"
        self._config = config
        self._worker = WorkerThread(f"visa {config.resource}")
        self._resource: MessageBasedResource | None = None

    async def open(self, timeout: float) -> None:
        """Connect. Cancelled, nothing stays open.

        Raises:
            LineOpenError: If that fails.
        """
        try:
            self._resource = await self._worker.run(
                _open, self._config, timeout, timeout=timeout, grace=_GRACE, closing=_close
            )
        except HungCallError as error:
            raise LineOpenError(resource=self._config.resource, reason=str(error)) from error
        except Exception as error:
            # Backends raise VisaIOError, OSError, ValueError, TypeError and more; all mean the same here.
            raise _explain_open_failure(self._config, error) from error

    async def exchange(self, command: bytes, expects_reply: bool, deadline: float) -> bytes:
        """Write *command*, its termination included, and return the reply, or nothing if none is expected.

        Cancellation leaves the exchange going on in the thread: the connection must be closed then.

        Args:
            command: The bytes to write.
            expects_reply: Whether to read.
            deadline: Trio time by which all must be done; the VISA timeout is set to what is left of it.

        Raises:
            TransportTimeoutError: If time ran out.
            TransportError: If anything else went wrong.
        """
        left = deadline - trio.current_time()
        self.sent = "unknown"
        try:
            return await self._worker.run(
                self._exchange, command, expects_reply, time.monotonic() + left, timeout=left, grace=_GRACE
            )
        except HungCallError as error:
            raise TransportTimeoutError(str(error)) from error
        except Exception as error:
            raise _explain_exchange_failure(error) from error

    async def aclose(self, timeout: float) -> None:
        """Close the connection. Bounded and shielded; what hangs is left to its thread."""
        self._resource = None
        await self._worker.aclose(timeout)

    def _exchange(self, command: bytes, expects_reply: bool, end: float) -> bytes:
        resource = self._resource
        assert resource is not None
        library, session = resource.visalib, resource.session
        try:
            discard_stale_input(resource)
            resource.timeout = _milliseconds(end)
            if time.monotonic() >= end:
                raise TimeoutError
        except BaseException:
            self.sent = "no"
            raise
        library.write(session, command)
        self.sent = "yes"
        return self._read_reply(resource, end) if expects_reply else b""

    def _read_reply(self, resource: MessageBasedResource, end: float) -> bytes:
        from pyvisa.constants import StatusCode

        reply = bytearray()
        status = StatusCode.success_max_count_read
        with resource.ignore_warning(StatusCode.success_max_count_read):  # PyVISA warns of replies above one chunk
            while status == StatusCode.success_max_count_read:
                # Each viRead has the whole VISA timeout to itself, so it must be set to what is left. It must not be
                # made of shorter slices: pyvisa-py drops the bytes of a read that times out.
                resource.timeout = _milliseconds(end)
                chunk, status = resource.visalib.read(resource.session, _CHUNK)
                reply += chunk
        return bytes(reply)


def _milliseconds(end: float) -> int:
    # 0 would mean VI_TMO_IMMEDIATE (VPP-4.3 table 3.6.1)
    return max(1, math.ceil(1000 * (end - time.monotonic())))


def _open(config: VisaSessionConfig, timeout: float) -> MessageBasedResource:
    import pyvisa
    from pyvisa.resources import MessageBasedResource

    # The manager of a library is one object for the whole process, and closing it closes every session of everybody:
    # it is left to PyVISA, which closes it at exit.
    with _MAKING_MANAGER:
        manager = pyvisa.ResourceManager(config.backend)
    milliseconds = max(1, math.ceil(1000 * timeout))
    resource = manager.open_resource(config.resource, open_timeout=milliseconds)
    try:
        if not isinstance(resource, MessageBasedResource):
            raise ValueError("it does not exchange messages")
        resource.timeout = milliseconds
        resource.read_termination = config.read_termination
        tune_tcp(resource)
    except BaseException:
        resource.close()
        raise
    return resource


def _close(resource: MessageBasedResource) -> None:
    resource.close()


def _explain_open_failure(config: VisaSessionConfig, error: Exception) -> LineOpenError:
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ConnectionError) or "refused" in reason.lower():
        hint = "Is the instrument on, is its address right, and is another program connected to it?"
        return LineOpenError(resource=config.resource, reason=f"the connection was refused ({reason})", hint=hint)
    if _is_timeout(error) or _says_timeout(reason):
        hint = "Is it on and on this network?"
        return LineOpenError(resource=config.resource, reason="it did not answer in time", hint=hint)
    return LineOpenError(resource=config.resource, reason=reason.rstrip("."))


def _explain_exchange_failure(error: Exception) -> TransportError:
    if _is_timeout(error):
        return TransportTimeoutError("the instrument did not answer in time")
    return TransportError(str(error).strip() or type(error).__name__)


def _says_timeout(reason: str) -> bool:
    from pyvisa.constants import StatusCode

    # pyvisa-py 0.8.1 puts the status of a TCP connection that is not answered into a bare Exception.
    return str(StatusCode.error_timeout.value) in reason


def _is_timeout(error: Exception) -> bool:
    from pyvisa.constants import StatusCode
    from pyvisa.errors import VisaIOError

    if isinstance(error, VisaIOError):
        return bool(error.error_code == StatusCode.error_timeout)
    return isinstance(error, TimeoutError)
