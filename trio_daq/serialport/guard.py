"""What the owner of a serial port can do with it while it is theirs.

Every call has a deadline and may be cancelled anywhere; the next owner gets a clean line in any case. What happens on
the line in between is told in `exchange`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import trio

from trio_daq.errors import HungCallError, LineFeatureError
from trio_daq.serialport.byte_stream import ControlLines
from trio_daq.serialport.exchange import OwnedLine
from trio_daq.serialport.modem import ModemLines, read_modem_lines, write_modem_lines
from trio_daq.serialport.state import LineEvent
from trio_daq.sharing import checked_timeout

_T = TypeVar("_T")


class SerialGuard(OwnedLine):
    """The right to use a port, for the length of the ``async with port.acquire(…)`` block that gave it.

    Attributes:
        owner: Whose it is.
        station: The station on a bus that it talks to, or None.
        sent: Whether the last command reached the driver: ``"unknown"`` if only part of it did.

    All calls take ``timeout=`` in seconds, None for the port's own, and raise:

    Raises:
        ExchangeTimeoutError: If it took too long.
        LineLostError: If the device went away.
        LineUnusableError: If a write finds the line dirty and it cannot be made clean.
        SessionClosedError: If the port was closed meanwhile.
        GuardReleasedError: If the block has ended.
        LeaseRevokedError: If the port was taken back.
        trio.BusyResourceError: If another task is inside a call of this guard.
    """

    __slots__ = ()

    async def query(self, data: bytes, *, timeout: float | None = None, match: bytes | None = None) -> bytes:
        """Write *data* and the port's ``write_terminator``, and return the reply without its ``read_terminator``.

        Both belong to one exchange under one deadline, which starts on an empty line.

        Args:
            data: The command.
            timeout: Seconds.
            match: A regular expression that the reply must contain. Lines that do not are dropped and counted, and
                the line is made clean before its next command.
        """
        return await self._bounded(self._query, timeout, _bytes(data), match)

    async def write_all(self, data: bytes, *, timeout: float | None = None) -> None:
        """Write all of *data*, for which a reply may come. It gets no terminator."""
        await self._bounded(self._send, timeout, _bytes(data))

    async def write_only(self, data: bytes, *, timeout: float | None = None) -> None:
        """Write all of *data*, and declare that no reply comes. It gets no terminator."""
        await self._bounded(self._write_only, timeout, _bytes(data))

    async def read(self, max_bytes: int, *, timeout: float | None = None) -> bytes:
        """Read some bytes: at least one, at most *max_bytes*."""
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, not {max_bytes}")
        return await self._bounded(self._read, timeout, max_bytes)

    async def read_exactly(self, count: int, *, timeout: float | None = None) -> bytes:
        """Read *count* bytes. Out of time, those that came stay for the next read."""
        if count < 1:
            raise ValueError(f"count must be at least 1, not {count}")
        return await self._bounded(self._read_exactly, timeout, count)

    async def read_until(self, terminator: bytes | None = None, *, timeout: float | None = None) -> bytes:
        """Read up to and including *terminator*, by default the port's ``read_terminator``."""
        if terminator is not None and not terminator:
            raise ValueError("a terminator needs at least one byte")
        end = self._line.config.read_terminator if terminator is None else terminator
        return await self._bounded(self._read_until, timeout, end)

    def discard_input(self) -> bytes:
        """Throw away what has come and was not read; return it. What is still on its way is not caught by this."""
        self._check_alive("discard_input")
        return self._line.discard_input()

    async def send_break(self, duration: float = 0.25, *, timeout: float | None = None) -> None:
        """Hold the line in the break condition for *duration* seconds.

        Raises:
            LineFeatureError: If the device cannot.
        """
        checked_timeout(duration, "duration")
        await self._bounded(self._control, timeout, "send_break", lambda device: device.send_break(duration))

    async def modem_lines(self, *, timeout: float | None = None) -> ModemLines:
        """Return the state of the modem lines. Raises `LineFeatureError` if the device has none."""
        return await self._bounded(self._control, timeout, "modem_lines", read_modem_lines)

    async def set_modem_lines(
        self, *, dtr: bool | None = None, rts: bool | None = None, timeout: float | None = None
    ) -> None:
        """Set DTR and RTS; None leaves one as it is. Raises `LineFeatureError` if the device has none."""
        await self._bounded(
            self._control, timeout, "set_modem_lines", lambda device: write_modem_lines(device, dtr, rts)
        )

    async def set_baud_rate(self, baud_rate: int, *, timeout: float | None = None) -> None:
        """Change the speed of the open port, for all owners, until it is changed again or the port is reopened.

        Raises:
            ValueError: If *baud_rate* is no whole number above 0.
            LineFeatureError: If the driver refuses it.
        """
        if isinstance(baud_rate, bool) or not isinstance(baud_rate, int) or baud_rate <= 0:
            raise ValueError(f"baud_rate must be a whole number above 0, not {baud_rate!r}")

        def change(device: ControlLines) -> None:
            device.baudrate = baud_rate

        await self._bounded(self._control, timeout, "set_baud_rate", change)
        self._line.baud_rate = baud_rate

    def release(self) -> None:
        """End early: give the port to the next in line. Calling it again does nothing."""
        self._release(failed=self._busy)

    async def _query(self, data: bytes, match: bytes | None) -> bytes:
        line = self._line
        end = line.config.read_terminator
        if self._owed:  # what was left unread before must not answer this
            self._settle(failed=False)
        if line.config.on_acquire == "keep":  # else every command starts on an empty line
            line.doubt_input()
        await self._send(data + line.config.write_terminator)
        while True:
            message = await self._take(line.buffer.take_until, end)
            if line.unsolicited.claims(message):
                continue
            reply = message[: -len(end)]
            if match is None or re.search(match, reply, re.DOTALL):
                break
            line.drop_reply(message)
            self._doubt = LineEvent.INTERRUPTED
        if reply == data:  # an echo that nobody had announced: the reply proper may follow
            self._doubt = self._doubt or LineEvent.DOUBTED
        self._answered()
        return reply

    async def _write_only(self, data: bytes) -> None:
        await self._send(data)
        self._owed -= 1

    async def _read(self, max_bytes: int) -> bytes:
        data = await self._take(self._line.buffer.take_some, max_bytes)
        self._answered_if_whole(data)
        return data

    async def _read_exactly(self, count: int) -> bytes:
        data = await self._take(self._line.buffer.take_exactly, count)
        self._answered_if_whole(data)
        return data

    async def _read_until(self, terminator: bytes) -> bytes:
        while True:
            message = await self._take(self._line.buffer.take_until, terminator)
            if not self._line.unsolicited.claims(message):
                self._answered()
                return message

    async def _control(self, action: str, work: Callable[[ControlLines], _T]) -> _T:
        self._waited = True
        try:
            # Shielded, since the thread goes on in any case, and the next owner must not meet the end of it.
            with trio.CancelScope(shield=True):
                result = await self._line.stream.control(work)
        except HungCallError:
            raise
        except OSError as error:
            raise LineFeatureError(
                resource=self._line.config.path, owner=self.owner, action=action, reason=str(error)
            ) from error
        self._check_alive(action)
        return result


def _bytes(data: bytes) -> bytes:
    if not isinstance(data, (bytes, bytearray)):
        raise TypeError(f"data is bytes, not {data!r}")
    return data
