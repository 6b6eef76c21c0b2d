"""A shared serial port, for a thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from trio_daq.errors import DoorInterruptedError
from trio_daq.legacy.hold import Hold
from trio_daq.legacy.host import DoorHost, Interruption, Job, Verbs
from trio_daq.serialport import ModemLines, SerialGuard, SharedSerialPort
from trio_daq.sharing import checked_timeout

DRIVER_TIMEOUT = 10.0
"""Seconds that a driver may take for what cannot be interrupted."""


class SerialDoor:
    """What a blocking function gets for a serial port.

    `query` is an exchange of its own; a sequence that nobody may cut into is a `with door.exclusive():` block.

    Args:
        host: Serves it.
        port: The port behind it.

    Attributes:
        interruption: Makes the error by which a thread that is to stop is told so.
    """

    interruption: ClassVar[Interruption] = DoorInterruptedError

    def __init__(self, host: DoorHost, port: SharedSerialPort) -> None:
        self._host = host
        self._port = port

    @property
    def path(self) -> str:
        """Path of the port."""
        return self._port.path

    def query(
        self, data: bytes, timeout: float | None = None, *, station: str | None = None, match: bytes | None = None
    ) -> bytes:
        """Take the port, write *data* with its terminator, and return the reply without its terminator.

        Args:
            data: The command.
            timeout: Seconds for the exchange; the port's own if omitted. The wait for the port comes on top.
            station: Which of the port's stations is to be talked to, if it has any.
            match: A regular expression that the reply must contain, as `SerialGuard.query` has it.

        Raises:
            DaqError: As `SharedSerialPort.acquire` and `SerialGuard.query` raise it.
            DoorInterruptedError: If the member is to stop, once in each thread.
            DoorClosedError: If the member has stopped.
        """
        with self.exclusive(station=station) as sequence:
            return sequence.query(data, timeout, match=match)

    @contextmanager
    def exclusive(
        self, owner: str | None = None, timeout: float | None = None, station: str | None = None
    ) -> Iterator[SerialSequence]:
        """Have the port for the length of a ``with`` block.

        It belongs to the thread that asked: a thread that would wait for itself, or for another thread or task that
        waits for it, is refused.

        Args:
            owner: Who wants it; the member's id if omitted.
            timeout: Seconds to wait for it; the port's ``acquire_timeout`` if omitted.
            station: Which of the port's stations is to be talked to, if it has any.

        Raises:
            DaqError: As `SharedSerialPort.acquire` raises it.
            LeaseRevokedError: On leaving, if it was taken back because of ``max_hold``.
            DoorInterruptedError: If the member is to stop, once in each thread.
            DoorClosedError: If the member has stopped.
        """
        name = self._host.owner if owner is None else owner
        patience = self._port.config.acquire_timeout if timeout is None else checked_timeout(timeout)
        hold = Hold(self._host, self._port.path, type(self).interruption)
        hold.enter(lambda: self._port.acquire(name, timeout, station), guard_verbs, patience)
        failed = True
        try:
            yield SerialSequence(hold, self._port.config.timeout)
            failed = False
        finally:
            hold.leave(failed=failed)


class SerialSequence:
    """A port that a thread has for a while. Its calls are those of `SerialGuard`, and block.

    Args:
        hold: What the thread has.
        timeout: Seconds for each call that names no deadline.
    """

    def __init__(self, hold: Hold, timeout: float) -> None:
        self._hold = hold
        self._timeout = timeout

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

    def query(self, data: bytes, timeout: float | None = None, *, match: bytes | None = None) -> bytes:
        """Write *data* with the port's terminator, and return the reply without its terminator."""
        return bytes(self._call("query", data, timeout=timeout, match=match))

    def discard_input(self) -> bytes:
        """Throw away what has come and was not read; return it."""
        return bytes(self._drive("discard_input"))

    # What the driver is asked for ends when it has done it, after 10 s at the latest.

    def send_break(self, duration: float = 0.25) -> None:
        """Hold the line in the break condition for *duration* seconds, at most 5."""
        self._drive("send_break", duration)

    def modem_lines(self) -> ModemLines:
        """Return the state of the modem lines."""
        lines: ModemLines = self._drive("modem_lines")
        return lines

    def set_modem_lines(self, *, dtr: bool | None = None, rts: bool | None = None) -> None:
        """Set DTR and RTS; None leaves one as it is."""
        self._drive("set_modem_lines", dtr=dtr, rts=rts)

    def set_baud_rate(self, baud_rate: int) -> None:
        """Change the speed of the open port, for all owners."""
        self._drive("set_baud_rate", baud_rate)

    def _call(self, verb: str, *arguments: Any, timeout: float | None, **options: Any) -> Any:
        patience = self._timeout if timeout is None else checked_timeout(timeout)
        return self._hold.call(Job(verb, arguments, {"timeout": timeout, **options}, patience))

    def _drive(self, verb: str, *arguments: Any, **options: Any) -> Any:
        return self._hold.call(Job(verb, arguments, options, DRIVER_TIMEOUT))


def guard_verbs(guard: SerialGuard) -> Verbs:
    """Return what can be asked of *guard*."""

    async def discard_input() -> bytes:
        return guard.discard_input()

    return {
        "write_all": guard.write_all,
        "write_only": guard.write_only,
        "read": guard.read,
        "read_exactly": guard.read_exactly,
        "read_until": guard.read_until,
        "query": guard.query,
        "discard_input": discard_input,
        "send_break": guard.send_break,
        "modem_lines": guard.modem_lines,
        "set_modem_lines": guard.set_modem_lines,
        "set_baud_rate": guard.set_baud_rate,
    }
