"""Where old code finds the lines of a lab by their VISA names, and who serves the thread that it runs in.

Old code opens what it needs by itself, in whatever thread, and was given no door. So each lab that is open has one
entry here, for the whole process. Nothing here does I/O.

Invariant: an entry is listed exactly while its host serves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import attrs
import trio

from trio_daq.errors import StateError, UnknownNameError
from trio_daq.legacy.host import DoorHost
from trio_daq.serialport import SharedSerialPort
from trio_daq.visa import VisaSessionManager, canonical_resource

Line: TypeAlias = VisaSessionManager | SharedSerialPort

_HOST = "old programs"

_labs: list[LineDirectory] = []
_lock = threading.Lock()
_here = threading.local()


@attrs.define(eq=False)
class LineDirectory:
    """The lines of one lab.

    Attributes:
        find: Returns a session, or a port, by any spelling of its VISA resource name, or raises UnknownNameError.
        resources: Returns the resource names of all.
        host: Serves the threads that belong to no member.
    """

    find: Callable[[str], Line]
    resources: Callable[[], Iterable[str]]
    host: DoorHost = attrs.field(factory=lambda: DoorHost(_HOST))

    @trio.lowlevel.enable_ki_protection
    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Let old code find these lines until cancelled; calls that are under way raise `DoorClosedError` then."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.host.serve)
            with _lock:
                _labs.append(self)
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                with _lock:
                    _labs.remove(self)


def resource_of(line: Line) -> str:
    """Return the VISA resource name of a line."""
    return line.resource if isinstance(line, VisaSessionManager) else f"ASRL{line.path}::INSTR"


def offer(*lines: Line) -> LineDirectory:
    """Return what lets old code find *lines* without a lab, as ``await nursery.start(offer(session).serve)``."""
    by_name = {canonical_resource(resource_of(line)): line for line in lines}

    def find(name: str) -> Line:
        try:
            return by_name[canonical_resource(name)]
        except (KeyError, ValueError):
            raise UnknownNameError(kind="VISA resource", name=name, known=sorted(by_name)) from None

    return LineDirectory(find, lambda: by_name)


@contextmanager
def served_by(host: DoorHost) -> Iterator[None]:
    """Let what this thread opens in a ``with`` block belong to the member whose doors *host* serves."""
    _here.host = host
    try:
        yield
    finally:
        del _here.host


def find_line(resource: str) -> tuple[Line, DoorHost]:
    """Return the line of a resource, and who serves what this thread opens of it.

    Raises:
        StateError: If no lab is open.
        UnknownNameError: If none has such a line.
    """
    labs = _open_labs()
    if not labs:
        raise StateError(
            action=f"opening {resource}",
            expected="in a lab that runs",
            actual="without one",
            hint="Start a DualRuntimeManager, or serve trio_daq.legacy.offer(session).",
        )
    refusal: UnknownNameError | None = None
    for lab in labs:
        try:
            return lab.find(resource), getattr(_here, "host", lab.host)
        except UnknownNameError as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def all_resources() -> tuple[str, ...]:
    """Return the names of all that can be opened."""
    return tuple(dict.fromkeys(resource for lab in _open_labs() for resource in lab.resources()))


def _open_labs() -> Sequence[LineDirectory]:
    with _lock:
        return _labs[::-1]
