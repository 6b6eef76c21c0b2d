"""A shared serial port, for a thread."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import trio

from trio_daq.errors import DoorClosedError, GuardReleasedError
from trio_daq.legacy.host import DoorHost, Job, Verbs, fulfil
from trio_daq.serialport import SerialGuard, SharedSerialPort

_Posted = tuple[Job, "Future[Any]"]


class _SequenceFailedError(Exception):
    """The thread's block ended by an exception: what it left unfinished counts as interrupted."""


class SerialDoor:
    """What a blocking function gets for a serial port.

    `query` is an exchange of its own; a sequence that nobody may cut into is a `with door.exclusive():` block.

    Args:
        host: Serves it.
        port: The port behind it.
    """

    def __init__(self, host: DoorHost, port: SharedSerialPort) -> None:
        self._host = host
        self._port = port

    @property
    def path(self) -> str:
        """Path of the port."""
        return self._port.path

    def query(self, data: bytes, timeout: float | None = None) -> bytes:
        """Take the port, write *data* with its terminator, and return the reply without its terminator.

        Args:
            data: The command.
            timeout: Seconds for the exchange; the port's own if omitted. The wait for the port comes on top.

        Raises:
            DaqError: As `SharedSerialPort.acquire` and `SerialGuard.query` raise it.
            DoorClosedError: If the member is stopping.
        """
        with self.exclusive() as sequence:
            return sequence.query(data, timeout)

    @contextmanager
    def exclusive(self, owner: str | None = None, timeout: float | None = None) -> Iterator[SerialSequence]:
        """Have the port for the length of a ``with`` block.

        Args:
            owner: Who wants it; the member's id if omitted.
            timeout: Seconds to wait for it; the port's ``acquire_timeout`` if omitted.

        Raises:
            DaqError: As `SharedSerialPort.acquire` raises it.
            DoorClosedError: If the member is stopping.
        """
        sequence = SerialSequence(self._host, self._port)
        sequence._acquire(owner or self._host.owner, timeout)
        failed = True
        try:
            yield sequence
            failed = False
        finally:
            sequence._release(failed)


class SerialSequence:
    """A port that a thread has for a while. Its calls are those of `SerialGuard`, and block."""

    def __init__(self, host: DoorHost, port: SharedSerialPort) -> None:
        self._host = host
        self._port = port
        self._released = False
        self._jobs, self._next_job = trio.open_memory_channel[_Posted](math.inf)

    def write_all(self, data: bytes, timeout: float | None = None) -> None:
        """Write all of *data*, for which a reply may come."""
        self._call("write_all", data, timeout=timeout)

    def write_only(self, data: bytes, timeout: float | None = None) -> None:
        """Write all of *data*, and declare that no reply comes."""
        self._call("write_only", data, timeout=timeout)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read some bytes: at least one, at most *max_bytes*."""
        return bytes(self._call("read", max_bytes, timeout=timeout))

    def read_exactly(self, count: int, timeout: float | None = None) -> bytes:
        """Read *count* bytes."""
        return bytes(self._call("read_exactly", count, timeout=timeout))

    def read_until(self, terminator: bytes | None = None, timeout: float | None = None) -> bytes:
        """Read up to and including *terminator*, by default the port's own."""
        return bytes(self._call("read_until", terminator, timeout=timeout))

    def query(self, data: bytes, timeout: float | None = None) -> bytes:
        """Write *data* with the port's terminator, and return the reply without its terminator."""
        return bytes(self._call("query", data, timeout=timeout))

    def _acquire(self, owner: str, timeout: float | None) -> None:
        patience = self._port.config.acquire_timeout if timeout is None else timeout

        def start(nursery: trio.Nursery, granted: Future[Any]) -> None:
            nursery.start_soon(self._hold, owner, timeout, granted)

        self._host.post(self._port.path, start, patience)

    def _release(self, failed: bool) -> None:
        # A closed door has released the port already, and must not replace the exception of the thread's block.
        with contextlib.suppress(DoorClosedError):
            self._post(Job("release", (failed,)))
        self._released = True

    def _call(self, verb: str, argument: Any, timeout: float | None) -> Any:
        patience = self._port.config.timeout if timeout is None else timeout
        return self._post(Job(verb, (argument,), {"timeout": timeout}, patience))

    def _post(self, job: Job) -> Any:
        if self._released:
            raise GuardReleasedError(resource=self._port.path, owner=self._host.owner, action=job.verb)

        def hand_over(_: trio.Nursery, future: Future[Any]) -> None:
            try:
                self._jobs.send_nowait((job, future))
            except trio.BrokenResourceError:
                future.set_exception(self._host.closed(self._port.path))

        return self._host.post(self._port.path, hand_over, job.patience)

    async def _hold(self, owner: str, timeout: float | None, granted: Future[Any]) -> None:
        """Hold the port for the thread, and do what it asks meanwhile. Runs in the host's nursery."""
        closed = self._host.closed(self._port.path)
        released: Future[Any] | None = None
        try:
            async with self._port.acquire(owner, timeout) as guard:
                granted.set_result(None)
                verbs = _verbs(guard)
                async for job, future in self._next_job:
                    if job.verb == "release":
                        released = future
                        if job.arguments[0]:
                            raise _SequenceFailedError
                        return
                    await fulfil(verbs, job, future, closed)
        except _SequenceFailedError:
            pass
        except Exception as error:
            if granted.done():
                raise
            granted.set_exception(error)  # it is raised in the thread
        except BaseException:
            if not granted.done():
                granted.set_exception(closed)
            raise
        finally:
            if released is not None:
                released.set_result(None)
            self._refuse_the_rest(closed)

    def _refuse_the_rest(self, closed: DoorClosedError) -> None:
        with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel):
            while True:
                _, future = self._next_job.receive_nowait()
                future.set_exception(closed)
        self._next_job.close()


def _verbs(guard: SerialGuard) -> Verbs:
    return {
        "write_all": guard.write_all,
        "write_only": guard.write_only,
        "read": guard.read,
        "read_exactly": guard.read_exactly,
        "read_until": guard.read_until,
        "query": guard.query,
    }
