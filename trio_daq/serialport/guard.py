"""What the owner of a serial port can do with it while it is theirs.

Every call has a deadline and may be cancelled anywhere: bytes that came stay in the port's buffer, and what was left
unfinished is known, so that the next owner gets a clean line.

Invariants: ``_interrupted`` is true from the first byte of a command, and from the wait for its reply, until that step
has ended well; ``_owed`` counts the commands written since whose reply was not read; ``_doubt`` is the event that the
exchanges so far will leave behind for the next owner, if they ended well and yet something was odd.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple

import trio

from trio_daq.errors import (
    ExchangeTimeoutError,
    GuardReleasedError,
    HungCallError,
    LineFeatureError,
    LineLostError,
    ReplyError,
    Sent,
    SessionClosedError,
)
from trio_daq.serialport.byte_stream import ControlLines
from trio_daq.serialport.line import SerialLine
from trio_daq.serialport.modem import ModemLines, read_modem_lines, write_modem_lines
from trio_daq.serialport.state import LineEvent, LineState
from trio_daq.sharing import Claim, checked_timeout

_T = TypeVar("_T")
_A = TypeVar("_A")
_Ts = TypeVarTuple("_Ts")

_JUST_NOW = 0.0005
"""Seconds. A line that was found empty this short ago is not looked at again: a byte that came in between cannot be
told from one that comes right after the command."""


class SerialGuard:
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

    __slots__ = (
        "_busy",
        "_claim",
        "_deadline",
        "_doubt",
        "_due",
        "_exchanges",
        "_expired",
        "_interrupted",
        "_line",
        "_owed",
        "_patience",
        "_skipped_yield",
        "_started",
        "_unsent",
        "_waited",
        "_wrote",
        "owner",
        "sent",
        "station",
    )

    def __init__(self, line: SerialLine, claim: Claim, exchanges: Counter[str], station: str | None = None) -> None:
        self.owner = claim.owner
        self.station = station
        self.sent: Sent = "no"
        self._line = line
        self._claim = claim
        self._exchanges = exchanges
        self._unsent = b""
        self._wrote = False
        self._owed = 0
        self._doubt: LineEvent | None = None
        self._interrupted = False
        self._busy = False
        self._waited = False
        self._skipped_yield = False
        self._expired = False
        self._started = self._deadline = self._due = self._patience = 0.0
        line.alarm.ring = self._expire

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
        await self._bounded(self._write_all, timeout, _bytes(data))

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

    # --- how an exchange goes ------------------------------------------------------------------------------------

    async def _query(self, data: bytes, match: bytes | None) -> bytes:
        config = self._line.config
        if self._owed:  # what was left unread before must not answer this
            self._settle(failed=False)
        if config.on_acquire == "keep":  # else every command starts on an empty line
            self._line.doubt_input()
        await self._send(data + config.write_terminator)
        while True:
            message = await self._take(self._line.buffer.take_until, config.read_terminator)
            if self._line.unsolicited.claims(message):
                continue
            reply = message[: -len(config.read_terminator)]
            if match is None or re.search(match, reply, re.DOTALL):
                break
            self._line.drop_reply(message)
            self._doubt = LineEvent.INTERRUPTED
        if reply == data:  # an echo that nobody had announced: the reply proper may follow
            self._doubt = self._doubt or LineEvent.DOUBTED
        self._answered()
        return reply

    async def _write_all(self, data: bytes) -> None:
        await self._send(data)

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

    async def _send(self, data: bytes) -> None:
        """Write *data* on a clean line."""
        line, config = self._line, self._line.config
        if self._interrupted or self._doubt is not None:
            # An exchange of this same owner was left unfinished: its late reply must not answer this command.
            self._settle(failed=True)
        self.sent = "no"
        self._due = self._started + self._patience
        if (
            config.on_acquire == "discard"
            and not self._owed
            and (len(line.buffer) or self._started - line.looked_at > _JUST_NOW)
        ):
            line.doubt_input()
        if line.state is not LineState.CLEAN:
            await self._make_ready()
        line.trace.note(self.owner, "write", data)
        self._wrote = True
        if config.min_gap:
            await self._pause_until(line.last_byte_at + config.min_gap)
        rest = memoryview(data)
        while rest:
            if count := line.stream.write_nowait(rest[:1] if config.char_delay else rest):
                self._interrupted = True
                rest = rest[count:]
                self.sent, self._unsent = ("unknown", bytes(rest)) if rest else ("yes", b"")
                if rest and config.char_delay:
                    await self._pause_until(trio.current_time() + config.char_delay)
                    continue
            if rest:
                self._waited = True
                self._refuse_if_expired()
                await line.stream.wait_writable()
                self._check_alive("write")
        if config.min_gap:
            line.last_byte_at = trio.current_time()
        self._interrupted = False
        self._owed += 1
        if config.echo:
            await self._read_echo(data)

    async def _make_ready(self) -> None:
        self._waited = True
        with trio.move_on_at(self._deadline) as overtime:
            await self._line.make_ready(self.station)
        self._check_alive("write")
        self._expired = self._expired or overtime.cancelled_caught
        self._refuse_if_expired()

    async def _pause_until(self, time: float) -> None:
        self._waited = True
        with trio.move_on_at(self._deadline) as overtime:
            await trio.sleep_until(time)
        self._check_alive("write")
        self._expired = self._expired or overtime.cancelled_caught
        self._refuse_if_expired()

    async def _read_echo(self, data: bytes) -> None:
        echo = await self._take(self._line.buffer.take_exactly, len(data))
        if echo != data:
            self._interrupted = True
            raise ReplyError(
                resource=self._line.config.path,
                owner=self.owner,
                command=data.decode("ascii", "backslashreplace"),
                reply=echo,
                expected="the command sent back, since echo is set",
            )

    async def _take(self, take: Callable[[_A], bytes | None], what: _A) -> bytes:
        line = self._line
        while (message := take(what)) is None:
            self._waited = True
            self._interrupted = self._wrote  # who only listens leaves nothing unfinished
            self._due = self._started + self._patience
            self._refuse_if_expired()
            stream = line.stream
            await stream.wait_readable()
            self._check_alive("read")  # the bytes belong to whoever owns the line now
            line.buffer.feed(stream.read_nowait())
        if line.config.min_gap:
            line.last_byte_at = trio.current_time()
        line.trace.note(self.owner, "read", message)
        self._interrupted = False
        return message

    def _answered(self) -> None:
        if self._owed:
            self._owed -= 1
            self._exchanges[self.owner] += 1

    def _answered_if_whole(self, data: bytes) -> None:
        # Only the terminator says where a reply ends. Without it more may come: a doubt, which costs little.
        if data.endswith(self._line.config.read_terminator):
            self._answered()

    # --- around each call ----------------------------------------------------------------------------------------

    async def _bounded(self, step: Callable[[*_Ts], Awaitable[_T]], timeout: float | None, *arguments: *_Ts) -> _T:
        """Run one step of an exchange under a deadline, and give its failures their names."""
        line = self._line
        seconds = line.config.timeout if timeout is None else checked_timeout(timeout)
        self._check_alive(step.__name__.strip("_"))
        if self._busy:
            raise trio.BusyResourceError(f"{line.config.path}: another task uses this guard of {self.owner!r}")
        await trio.lowlevel.checkpoint_if_cancelled()
        self._busy, self._waited, self._expired = True, False, False
        self._started = started = trio.current_time()
        self._deadline = started + seconds
        # An impatient owner does not make the instrument faster: it has the port's own time to answer in any case.
        self._patience = max(seconds, line.config.timeout)
        # An alarm, not a cancel scope: that would cost as much as the rest of the exchange.
        line.alarm.set(self._deadline)
        try:
            result = await step(*arguments)
        except trio.BrokenResourceError as error:
            await line.hang_up()
            raise self._lost(str(error)) from error
        except trio.ClosedResourceError as error:
            self._check_alive(step.__name__.strip("_"))
            if line.closed:
                raise SessionClosedError(resource=line.config.path, owner=self.owner, sent=self.sent) from error
            if not self._expired:
                raise self._lost("it was lost earlier in this block") from error
        else:
            if not self._waited:
                await self._yield_sometimes()
            return result
        finally:
            if self._claim.alive:  # else the alarm is the next owner's
                line.alarm.clear()
            self._busy = False
        raise ExchangeTimeoutError(
            resource=line.config.path,
            owner=self.owner,
            operation=f"{step.__name__.strip('_')}({next(map(repr, arguments), '')})",
            waited=trio.current_time() - started,
            sent=self.sent,
            received=line.buffer.peek(),
            trace=line.trace.entries(),
        )

    def _expire(self) -> None:
        self._expired = True
        self._line.wake()

    def _refuse_if_expired(self) -> None:
        # The alarm may have rung while this task was not waiting, and then it woke nobody.
        if self._expired:
            raise trio.ClosedResourceError

    async def _yield_sometimes(self) -> None:
        # A call that did not wait may skip the schedule point once; a row of them would starve all other tasks.
        self._skipped_yield = not self._skipped_yield
        if not self._skipped_yield:
            await trio.lowlevel.cancel_shielded_checkpoint()

    def _release(self, *, failed: bool) -> None:
        if self._claim.alive:
            if self._busy:
                self._revoked()
            else:
                self._settle(failed=failed)
            self._claim.release()

    def _revoked(self) -> None:
        """Leave the line as it is, since it is being given to another, and wake whoever waits in this guard."""
        self._settle(failed=True)
        self._line.alarm.clear()
        self._line.wake()

    def _settle(self, *, failed: bool) -> None:
        """Tell the line in which state this guard leaves it. *failed*: the owner's block ended by an exception."""
        line = self._line
        event = self._doubt
        if self._interrupted or (self._owed and failed):
            event = LineEvent.INTERRUPTED
        elif event is None and (self._owed or line.has_leftover()):
            event = LineEvent.DOUBTED
        if event is not None:
            line.note(event, self.station, unsent=self._unsent, due=self._due, replies=max(1, self._owed))
        self._interrupted, self._doubt, self._owed, self._unsent = False, None, 0, b""

    def _check_alive(self, action: str) -> None:
        if not self._claim.alive:
            if self._claim.revoked is not None:
                raise self._claim.revocation(action, self.sent)
            raise GuardReleasedError(resource=self._line.config.path, owner=self.owner, action=action, sent=self.sent)

    def _lost(self, reason: str) -> LineLostError:
        return LineLostError(resource=self._line.config.path, owner=self.owner, reason=reason, sent=self.sent)


def _bytes(data: bytes) -> bytes:
    if not isinstance(data, (bytes, bytearray)):
        raise TypeError(f"data is bytes, not {data!r}")
    return data
