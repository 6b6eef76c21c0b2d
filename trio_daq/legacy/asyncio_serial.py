"""A shared serial port, for asyncio: the blocks and verbs of `SharedSerialPort`, which asyncio awaits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from trio_daq.legacy.asyncio_hold import AsyncioHold
from trio_daq.legacy.asyncio_host import AsyncioHost
from trio_daq.legacy.host import Job
from trio_daq.legacy.serial_door import DRIVER_TIMEOUT, guard_verbs
from trio_daq.serialport import ModemLines, SharedSerialPort
from trio_daq.sharing import checked_timeout


class AsyncioSerialDoor:
    """What an asyncio program gets for a serial port. Its tasks may use it at once.

    Args:
        host: Serves it.
        port: The port behind it.
    """

    def __init__(self, host: AsyncioHost, port: SharedSerialPort) -> None:
        self._host = host
        self._port = port

    @property
    def path(self) -> str:
        """Path of the port."""
        return self._port.path

    def is_available(self) -> bool:
        """Return whether nobody has the port."""
        return self.current_owner() is None

    def current_owner(self) -> str | None:
        """Return who has the port, or None."""
        return self._port.current_owner()

    @asynccontextmanager
    async def acquire(
        self, owner: str | None = None, timeout: float | None = None, station: str | None = None
    ) -> AsyncIterator[AsyncioSerialGuard]:
        """Have the port for the length of an ``async with`` block.

        It belongs to the asyncio task that asked: a task that would wait for itself, or for somebody who waits for it,
        is refused. A task that is cancelled inside gives the port back, and the line is made clean for the next owner.

        Args:
            owner: Who wants it; the member's id if omitted.
            timeout: Seconds to wait for it; the port's ``acquire_timeout`` if omitted.
            station: Which of the port's stations is to be talked to, if it has any.

        Raises:
            DaqError: As `SharedSerialPort.acquire` raises it.
            LeaseRevokedError: On leaving, if it was taken back because of ``max_hold``.
            DoorClosedError: If the member has stopped.
        """
        name = self._host.owner if owner is None else owner
        patience = self._port.config.acquire_timeout if timeout is None else checked_timeout(timeout)
        hold = AsyncioHold(self._host, self._port.path)
        await hold.enter(lambda: self._port.acquire(name, timeout, station), guard_verbs, patience)
        failed = True
        try:
            yield AsyncioSerialGuard(hold, self._port.config.timeout)
            failed = False
        finally:
            await hold.leave(failed=failed)

    async def query(
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
            DoorClosedError: If the member has stopped.
        """
        async with self.acquire(station=station) as guard:
            return await guard.query(data, timeout=timeout, match=match)


class AsyncioSerialGuard:
    """A port that an asyncio task has for a while. Its calls are those of `SerialGuard`.

    Args:
        hold: What the task has.
        timeout: Seconds for each call that names no deadline.
    """

    def __init__(self, hold: AsyncioHold, timeout: float) -> None:
        self._hold = hold
        self._timeout = timeout

    async def write_all(self, data: bytes, *, timeout: float | None = None) -> None:
        """Write all of *data*, for which a reply may come."""
        await self._call("write_all", data, timeout=timeout)

    async def write_only(self, data: bytes, *, timeout: float | None = None) -> None:
        """Write all of *data*, and declare that no reply comes."""
        await self._call("write_only", data, timeout=timeout)

    async def read(self, max_bytes: int, *, timeout: float | None = None) -> bytes:
        """Read some bytes: at least one, at most *max_bytes*."""
        return bytes(await self._call("read", max_bytes, timeout=timeout))

    async def read_exactly(self, count: int, *, timeout: float | None = None) -> bytes:
        """Read *count* bytes."""
        return bytes(await self._call("read_exactly", count, timeout=timeout))

    async def read_until(self, terminator: bytes | None = None, *, timeout: float | None = None) -> bytes:
        """Read up to and including *terminator*, by default the port's own."""
        return bytes(await self._call("read_until", terminator, timeout=timeout))

    async def query(self, data: bytes, *, timeout: float | None = None, match: bytes | None = None) -> bytes:
        """Write *data* with the port's terminator, and return the reply without its terminator."""
        return bytes(await self._call("query", data, timeout=timeout, match=match))

    async def discard_input(self) -> bytes:
        """Throw away what has come and was not read; return it."""
        return bytes(await self._drive("discard_input"))

    # What the driver is asked for ends when it has done it, after 10 s at the latest.

    async def send_break(self, duration: float = 0.25) -> None:
        """Hold the line in the break condition for *duration* seconds, at most 5."""
        await self._drive("send_break", duration)

    async def modem_lines(self) -> ModemLines:
        """Return the state of the modem lines."""
        lines: ModemLines = await self._drive("modem_lines")
        return lines

    async def set_modem_lines(self, *, dtr: bool | None = None, rts: bool | None = None) -> None:
        """Set DTR and RTS; None leaves one as it is."""
        await self._drive("set_modem_lines", dtr=dtr, rts=rts)

    async def set_baud_rate(self, baud_rate: int) -> None:
        """Change the speed of the open port, for all owners."""
        await self._drive("set_baud_rate", baud_rate)

    async def _call(self, verb: str, *arguments: Any, timeout: float | None, **options: Any) -> Any:
        patience = self._timeout if timeout is None else checked_timeout(timeout)
        return await self._hold.call(Job(verb, arguments, {"timeout": timeout, **options}, patience))

    async def _drive(self, verb: str, *arguments: Any, **options: Any) -> Any:
        return await self._hold.call(Job(verb, arguments, options, DRIVER_TIMEOUT))
