"""How one owner's exchanges on a line go: each bounded, each knowing what it leaves behind.

It knows commands and replies as bytes, and neither queries nor modem lines: those are the guard's. Cancellation may
land anywhere: bytes that came stay in the port's buffer, and what was left unfinished is known.

Invariants: ``_interrupted`` is true from the first byte of a command, and from the wait for its reply, until that step
has ended well; ``_owed`` counts the commands written since whose reply was not read; ``_doubt`` is the event that the
exchanges so far will leave behind for the next owner, if they ended well and yet something was odd.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple

import trio

from trio_daq.errors import (
    ExchangeTimeoutError,
    GuardReleasedError,
    LineLostError,
    ReplyError,
    Sent,
    SessionClosedError,
)
from trio_daq.serialport.line import SerialLine
from trio_daq.serialport.state import LineEvent, LineState
from trio_daq.sharing import Claim, beat, checked_timeout

_T = TypeVar("_T")
_A = TypeVar("_A")
_Ts = TypeVarTuple("_Ts")

_JUST_NOW = 0.0005
"""Seconds. A line that was found empty this short ago is not looked at again: a byte that came in between cannot be
told from one that comes right after the command."""


_SENDING = ("query", "write_all", "write_only")


class OwnedLine:
    """A line in the hands of one owner: writing on it, reading from it, and leaving it in a state that is known.

    Attributes:
        owner: Whose it is.
        station: The station on a bus that it talks to, or None.
        sent: Whether the last command reached the driver: ``"unknown"`` if only part of it did.
    """

    __slots__ = (
        "_busy",
        "_claim",
        "_deadline",
        "_doubt",
        "_dropped",
        "_due",
        "_exchanges",
        "_expired",
        "_in_driver",
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

    def __init__(self, line: SerialLine, claim: Claim, exchanges: Counter[str], station: str | None) -> None:
        self.owner = claim.owner
        self.station = station
        self.sent: Sent = "no"
        self._line = line
        self._claim = claim
        self._exchanges = exchanges
        self._unsent = self._dropped = b""
        self._wrote = self._interrupted = self._busy = self._waited = self._skipped_yield = self._expired = False
        self._in_driver = False
        self._owed = 0
        self._doubt: LineEvent | None = None
        self._started = self._deadline = self._due = self._patience = 0.0
        line.alarm.ring = self._expire
        claim.on_revoked = self._abandon

    # --- one exchange ------------------------------------------------------------------------------------------------

    async def _send(self, data: bytes) -> None:
        """Write *data* on a clean line."""
        line, config = self._line, self._line.config
        if self._interrupted or self._doubt is not None:
            # An exchange of this same owner was left unfinished: its late reply must not answer this command.
            self._settle(failed=True)
        self.sent = "no"
        self._due = self._started + self._patience
        stale = line.buffer or self._started - line.looked_at > _JUST_NOW
        if stale and not self._owed and config.on_acquire == "discard":
            line.doubt_input()
        if line.state is not LineState.CLEAN:
            await self._within_deadline(line.make_clean, self.station)
        self._wrote = True
        if config.min_gap:
            await self._within_deadline(trio.sleep_until, line.last_byte_at + config.min_gap)
        await self._push(data, config.char_delay)
        if config.min_gap:
            line.last_byte_at = trio.current_time()
        self._owed += 1
        if config.echo:
            await self._read_echo(data)

    def _is_free_beside(self) -> bool:
        """Return whether what is not answered can be written though the last exchange of this owner was given up."""
        return (
            self._interrupted
            and not self._unsent
            and self._line.state is LineState.CLEAN
            and not self._line.config.echo
        )

    async def _send_beside(self, data: bytes) -> None:
        """Write *data*, and leave the line as unfinished as it is."""
        line, config = self._line, self._line.config
        self.sent = "no"
        if config.min_gap:
            await self._within_deadline(trio.sleep_until, line.last_byte_at + config.min_gap)
        await self._push(data, config.char_delay)
        if config.min_gap:
            line.last_byte_at = trio.current_time()
        self._interrupted = True

    async def _push(self, data: bytes, char_delay: float) -> None:
        rest = memoryview(data)
        while rest:
            if count := self._line.stream.write_nowait(rest[:1] if char_delay else rest):
                if len(rest) == len(data):
                    self._line.trace.note(self.owner, "write", data)
                rest = rest[count:]
                if not rest:
                    break
                self._interrupted, self.sent, self._unsent = True, "unknown", bytes(rest)
                if char_delay:
                    await self._within_deadline(trio.sleep, char_delay)
                    continue
            self._waited = True
            self._refuse_if_expired()
            await self._line.stream.wait_writable()
            self._check_alive("write")
        self._interrupted, self.sent, self._unsent = False, "yes", b""

    async def _within_deadline(self, wait: Callable[[_A], Awaitable[None]], argument: _A) -> None:
        self._waited = True
        with trio.move_on_at(self._deadline) as overtime:
            await wait(argument)
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
        """Return what *take* takes from the buffer, as soon as it is there."""
        line, stream = self._line, self._line.stream
        while (message := take(what)) is None:
            self._waited = True
            self._interrupted = self._wrote  # who only listens leaves nothing unfinished
            self._due = max(self._due, self._started + self._patience)
            self._refuse_if_expired()
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

    # --- around each call --------------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def _bounded(
        self, operation: str, timeout: float | None, step: Callable[[*_Ts], Awaitable[_T]], *arguments: *_Ts
    ) -> _T:
        """Run one step of an exchange under a deadline, and give its failures their names."""
        line, claim = self._line, self._claim
        seconds = line.config.timeout if timeout is None else checked_timeout(timeout)
        if not claim.alive:
            if operation in _SENDING:
                self.sent = "no"  # the command of this call, whatever became of the one before
            self._check_alive(operation)
        if self._busy:
            raise trio.BusyResourceError(f"{line.config.path}: another task uses this guard of {self.owner!r}")
        await trio.lowlevel.checkpoint_if_cancelled()
        self._busy, self._waited, self._expired = True, False, False
        self._dropped = b""
        self._started = started = trio.current_time()
        self._deadline = started + seconds
        # An impatient owner does not make the instrument faster: it has the port's own time to answer in any case.
        self._patience = max(seconds, line.config.timeout)
        # An alarm, not a cancel scope: that would cost as much as the rest of the exchange.
        line.alarm.set(self._deadline)
        beat()
        try:
            result = await step(*arguments)
        except trio.BrokenResourceError as error:
            await line.hang_up()
            raise self._lost(str(error)) from error
        except trio.ClosedResourceError as error:
            self._check_alive(operation)
            if line.closed or not self._expired:
                raise self._gone() from error
        else:
            if not self._waited:
                await self._yield_sometimes()
            return result
        finally:
            if claim.alive:  # else the alarm is the next owner's
                line.alarm.clear()
            self._busy = False
            beat()
        raise ExchangeTimeoutError(
            resource=line.config.path,
            owner=self.owner,
            operation=f"{operation}({next(map(repr, arguments), '')})",
            waited=trio.current_time() - started,
            sent=self.sent,
            received=line.buffer.peek(),
            dropped=self._dropped,
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

    # --- the end -----------------------------------------------------------------------------------------------------

    def _release(self, *, failed: bool) -> None:
        """Give the line to the next in line. *failed*: the owner's block ended by an exception."""
        if self._claim.alive:
            if self._busy:
                self._abandon()
            else:
                self._settle(failed=failed)
            self._claim.release()

    def _abandon(self) -> None:
        """Leave the line as it is, since it is being given to another, and wake whoever waits in this guard."""
        self._claim.sent = self.sent
        self._settle(failed=True)
        self._line.alarm.clear()
        self._line.wake()
        if self._in_driver:  # which goes on changing the line: the next owner opens it anew
            self._line.lose()

    def _settle(self, *, failed: bool) -> None:
        """Tell the line in which state it is left."""
        line = self._line
        if not (self._interrupted or self._owed or self._doubt or line.buffer):
            return
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

    def _gone(self) -> LineLostError | SessionClosedError:
        if self._line.closed:
            return SessionClosedError(resource=self._line.config.path, owner=self.owner, sent=self.sent)
        return self._lost("it was lost earlier in this block")

    def _lost(self, reason: str) -> LineLostError:
        return LineLostError(resource=self._line.config.path, owner=self.owner, reason=reason, sent=self.sent)
