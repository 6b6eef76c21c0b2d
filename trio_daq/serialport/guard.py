"""What the owner of a serial port can do with it while it is theirs.

Every call has a deadline and may be cancelled anywhere; the next owner gets a clean line in any case. What happens on
the line in between is told in `owned_line`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import trio

from trio_daq.errors import HungCallError, LineFeatureError
from trio_daq.serialport.byte_stream import ControlLines
from trio_daq.serialport.modem import ModemLines, read_modem_lines, write_modem_lines
from trio_daq.serialport.owned_line import OwnedLine
from trio_daq.serialport.state import LineEvent
from trio_daq.sharing import checked_timeout, to_the_end
from trio_daq.wire import check_pattern

_T = TypeVar("_T")

_LONGEST_BREAK = 5.0
"""Seconds. A break of some character times is meant by all protocols; this is far above."""


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

        Raises:
            TypeError, ValueError: If *data* is no bytes or holds a terminator, or *match* is no pattern.
        """
        if match is not None:
            check_pattern("match", match)
        if self._line.config.write_terminator in _bytes(data):
            raise ValueError(
                f"query adds the terminator itself, and {data!r} holds one; for more use write_all and read"
            )
        return await self._bounded("query", timeout, self._query, bytes(data), match)

    async def write_all(self, data: bytes, *, timeout: float | None = None) -> None:
        """Write all of *data*, for which a reply may come. It gets no terminator."""
        await self._bounded("write_all", timeout, self._send, _bytes(data))

    async def write_only(self, data: bytes, *, timeout: float | None = None) -> None:
        """Write all of *data*, and declare that no reply comes. It gets no terminator.

        After an exchange of this guard that was given up it does not wait until the line is clean: there is no reply
        to be taken for another, and it may be what makes the instrument safe.
        """
        await self._bounded("write_only", timeout, self._write_only, _bytes(data))

    async def read(self, max_bytes: int, *, timeout: float | None = None) -> bytes:
        """Read some bytes: at least one, at most *max_bytes*."""
        return await self._bounded("read", timeout, self._read, _count("max_bytes", max_bytes))

    async def read_exactly(self, count: int, *, timeout: float | None = None) -> bytes:
        """Read *count* bytes. Out of time, those that came stay for the next read."""
        return await self._bounded("read_exactly", timeout, self._read_exactly, _count("count", count))

    async def read_until(
        self, terminator: bytes | None = None, *, most: int | None = None, timeout: float | None = None
    ) -> bytes:
        """Read up to and including *terminator*, by default the port's ``read_terminator``; at most *most* bytes."""
        if terminator is not None and not _bytes(terminator):
            raise ValueError("a terminator needs at least one byte")
        end = self._line.config.read_terminator if terminator is None else terminator
        limit = None if most is None else _count("most", most)
        return await self._bounded("read_until", timeout, self._read_until, end, limit)

    def peek(self) -> bytes:
        """Return what has come and was not read. It stays there."""
        return self._now("peek", self._line.peek)

    def discard_input(self) -> bytes:
        """Throw away what has come and was not read; return it. What is still on its way is not caught by this."""
        return self._now("discard_input", self._line.discard_input)

    # What the driver is asked for cannot be interrupted: these calls end when it has done it, after 10 s at the latest.

    async def send_break(self, duration: float = 0.25) -> None:
        """Hold the line in the break condition for *duration* seconds, at most 5.

        Raises:
            LineFeatureError: If the device cannot.
        """
        if checked_timeout(duration, "duration") > _LONGEST_BREAK:
            raise ValueError(f"duration must be {_LONGEST_BREAK:g} s at most, not {duration!r}")

        def hold(device: ControlLines) -> None:
            device.break_condition = True
            try:
                time.sleep(duration)  # in the thread of the line
            finally:
                device.break_condition = False

        await self._ask_driver("send_break", hold)

    async def modem_lines(self) -> ModemLines:
        """Return the state of the modem lines. Raises `LineFeatureError` if the device has none."""
        return await self._ask_driver("modem_lines", read_modem_lines)

    async def set_modem_lines(self, *, dtr: bool | None = None, rts: bool | None = None) -> None:
        """Set DTR and RTS; None leaves one as it is. Raises `LineFeatureError` if the device has none."""
        await self._ask_driver("set_modem_lines", lambda device: write_modem_lines(device, dtr, rts))

    async def set_baud_rate(self, baud_rate: int) -> None:
        """Change the speed of the open port, for all owners, until it is changed again or the port is reopened.

        Raises:
            ValueError: If *baud_rate* is no whole number above 0.
            LineFeatureError: If the driver refuses it.
        """
        line, rate = self._line, _count("baud_rate", baud_rate)

        def change(device: ControlLines) -> None:
            device.baudrate = line.baud_rate = rate

        await self._ask_driver("set_baud_rate", change)

    @trio.lowlevel.enable_ki_protection
    def release(self) -> None:
        """End early: give the port to the next in line. Calling it again does nothing."""
        self._release(failed=self._busy)

    @trio.lowlevel.enable_ki_protection
    def _now(self, action: str, look: Callable[[], bytes]) -> bytes:
        self._check_alive(action)
        try:
            return look()
        except trio.BrokenResourceError as error:
            self._line.lose()
            raise self._lost(str(error)) from error
        except trio.ClosedResourceError as error:
            raise self._gone() from error

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
                self._dropped += message
                continue
            reply = message[: -len(end)]
            if match is None or re.search(match, reply, re.DOTALL):
                break
            line.drop_reply(message)
            self._dropped += message
            self._doubt = LineEvent.INTERRUPTED
        if reply == data:  # an echo that nobody had announced: the reply proper may follow
            self._doubt = self._doubt or LineEvent.DOUBTED
        self._answered()
        return reply

    async def _write_only(self, data: bytes) -> None:
        if self._is_free_beside():
            await self._send_beside(data)
        else:
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

    async def _read_until(self, terminator: bytes, most: int | None) -> bytes:
        take = self._line.buffer.take_until if most is None else partial(self._line.buffer.take_until, most=most)
        while True:
            message = await self._take(take, terminator)
            if not self._line.unsolicited.claims(message):
                self._answered_if_whole(message)  # with a terminator of the caller's own it may be a part
                return message

    async def _ask_driver(self, action: str, work: Callable[[ControlLines], _T]) -> _T:
        return await self._bounded(action, None, self._control, action, work)

    async def _control(self, action: str, work: Callable[[ControlLines], _T]) -> _T:
        line = self._line
        self._waited = self._in_driver = True
        try:
            # To its end, since the thread goes on in any case, and the next owner must not meet the end of it.
            result = await to_the_end(lambda: line.stream.control(work))
        except HungCallError as error:
            raise trio.BrokenResourceError(str(error)) from error
        except (OSError, ValueError, OverflowError) as error:
            self._check_alive(action)
            raise LineFeatureError(
                resource=line.config.path, owner=self.owner, action=action, reason=str(error)
            ) from error
        finally:
            self._in_driver = False
        self._check_alive(action)
        return result


def _bytes(data: bytes) -> bytes:
    if not isinstance(data, (bytes, bytearray)):
        raise TypeError(f"data is bytes, not {data!r}")
    return bytes(data)


def _count(name: str, value: int) -> int:
    number: object = value
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name} is a whole number, not {number!r}")
    if number < 1:
        raise ValueError(f"{name} must be at least 1, not {number}")
    return number
