"""What the owner of a serial port can do with it while it is theirs.

Every call has a deadline and may be cancelled anywhere: bytes that came stay in the port's buffer, and what was left
unfinished is known, so that the next owner gets a clean line.

Invariants: ``_interrupted`` is true from the first byte of a command, and from the wait for its reply, until that step
has ended well; ``_owes`` is true from a written command to the next completed read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from trio_daq.errors import ExchangeTimeoutError, GuardReleasedError, LineLostError, Sent, SessionClosedError
from trio_daq.serialport.line import SerialLine
from trio_daq.serialport.state import LineEvent, LineState
from trio_daq.sharing import Claim, checked_timeout

_T = TypeVar("_T")


class SerialGuard:
    """The right to use a port, for the length of the ``async with port.acquire(…)`` block that gave it.

    Attributes:
        owner: Whose it is.
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

    def __init__(self, line: SerialLine, claim: Claim, exchanges: Counter[str]) -> None:
        self.owner = claim.owner
        self.sent: Sent = "no"
        self._line = line
        self._claim = claim
        self._exchanges = exchanges
        self._unsent = b""
        self._wrote = False
        self._owes = False
        self._interrupted = False
        self._busy = False
        self._waited = False
        self._skipped_yield = False
        self._expired = False
        self._deadline = self._due = 0.0
        line.alarm.ring = self._expire

    async def write_all(self, data: bytes, *, timeout: float | None = None) -> None:
        """Write all of *data*, for which a reply may come."""
        await self._bounded("write_all", len(data), timeout, lambda: self._write(data))

    async def write_only(self, data: bytes, *, timeout: float | None = None) -> None:
        """Write all of *data*, and declare that no reply comes."""

        async def write() -> None:
            await self._write(data)
            self._owes = False

        await self._bounded("write_only", len(data), timeout, write)

    async def read(self, max_bytes: int, *, timeout: float | None = None) -> bytes:
        """Read some bytes: at least one, at most *max_bytes*."""
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, not {max_bytes}")
        buffer = self._line.buffer
        return await self._bounded("read", max_bytes, timeout, lambda: self._take(lambda: buffer.take_some(max_bytes)))

    async def read_exactly(self, count: int, *, timeout: float | None = None) -> bytes:
        """Read *count* bytes. Out of time, those that came stay for the next read."""
        if count < 1:
            raise ValueError(f"count must be at least 1, not {count}")
        buffer = self._line.buffer
        return await self._bounded(
            "read_exactly", count, timeout, lambda: self._take(lambda: buffer.take_exactly(count))
        )

    async def read_until(self, terminator: bytes | None = None, *, timeout: float | None = None) -> bytes:
        """Read up to and including *terminator*, by default the port's ``read_terminator``."""
        end = self._terminator(terminator)
        buffer = self._line.buffer
        return await self._bounded("read_until", end, timeout, lambda: self._take(lambda: buffer.take_until(end)))

    async def query(self, data: bytes, *, timeout: float | None = None) -> bytes:
        """Write *data* and the port's ``write_terminator``, and return the reply without its ``read_terminator``.

        Both belong to one exchange under one deadline.
        """
        config, buffer = self._line.config, self._line.buffer

        async def exchange() -> bytes:
            await self._write(data + config.write_terminator)
            reply = await self._take(lambda: buffer.take_until(config.read_terminator))
            return reply[: -len(config.read_terminator)]

        return await self._bounded("query", data, timeout, exchange)

    def discard_input(self) -> bytes:
        """Throw away what has come and was not read; return it. What is still on its way is not caught by this."""
        self._check_alive("discard_input")
        return self._line.discard_input()

    def release(self) -> None:
        """End early: give the port to the next in line. Calling it again does nothing."""
        self._release(failed=False)

    def _release(self, *, failed: bool) -> None:
        if self._claim.alive:
            self._settle(failed=failed)
            self._claim.release()

    def _settle(self, *, failed: bool) -> None:
        """Tell the line in which state this guard leaves it. *failed*: the owner's block ended by an exception."""
        line = self._line
        if self._interrupted or (self._owes and failed):
            line.note(LineEvent.INTERRUPTED, self._unsent, self._due)
        elif self._owes or len(line.buffer):
            line.note(LineEvent.UNANSWERED)
        elif self.sent == "yes":
            line.note(LineEvent.FINISHED)
        self._interrupted = self._owes = False
        self._unsent = b""

    async def _write(self, data: bytes) -> None:
        line = self._line
        if self._interrupted:
            # An exchange of this same owner was left unfinished: its late reply must not answer this command.
            self._settle(failed=True)
        if line.state in (LineState.DIRTY, LineState.UNUSABLE):
            self.sent = "no"
            self._waited = True
            with trio.move_on_at(self._deadline) as overtime:
                await line.make_ready()
            self._check_alive("write")
            self._expired = self._expired or overtime.cancelled_caught
            self._refuse_if_expired()
        elif line.state is LineState.SUSPECT and not self._wrote:
            line.discard_input()
        self._wrote = True
        self.sent, self._unsent = "no", b""
        rest = memoryview(data)
        while rest:
            if count := line.stream.write_nowait(rest):
                self._interrupted = True
                rest = rest[count:]
                self.sent, self._unsent = ("unknown", bytes(rest)) if rest else ("yes", b"")
            if rest:
                self._waited = True
                self._refuse_if_expired()
                await line.stream.wait_writable()
                self._check_alive("write")
        self._interrupted, self._owes = False, True

    async def _take(self, take: Callable[[], bytes | None]) -> bytes:
        line = self._line
        while (message := take()) is None:
            self._waited = True
            self._interrupted = self._wrote  # who only listens leaves nothing unfinished
            self._refuse_if_expired()
            await line.stream.wait_readable()
            self._check_alive("read")  # the bytes belong to whoever owns the line now
            line.buffer.feed(line.stream.read_nowait())
        if self._owes:
            self._exchanges[self.owner] += 1
        self._interrupted = self._owes = False
        return message

    async def _bounded(
        self, operation: str, argument: object, timeout: float | None, step: Callable[[], Awaitable[_T]]
    ) -> _T:
        """Run one step of an exchange under a deadline, and give its failures their names."""
        line = self._line
        seconds = line.config.timeout if timeout is None else checked_timeout(timeout)
        self._check_alive(operation)
        if self._busy:
            raise trio.BusyResourceError(f"{line.config.path}: another task uses this guard of {self.owner!r}")
        await trio.lowlevel.checkpoint_if_cancelled()
        self._busy, self._waited, self._expired = True, False, False
        started = trio.current_time()
        self._deadline = started + seconds
        # An impatient owner does not make the instrument faster: it has the port's own time to answer in any case.
        self._due = started + max(seconds, line.config.timeout)
        # An alarm, not a cancel scope: that would cost as much as the rest of the exchange.
        line.alarm.set(self._deadline)
        try:
            result = await step()
        except trio.BrokenResourceError as error:
            await line.hang_up()
            raise self._lost(str(error)) from error
        except trio.ClosedResourceError as error:
            self._check_alive(operation)
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
            operation=f"{operation}({argument!r})",
            waited=trio.current_time() - started,
            sent=self.sent,
            received=line.buffer.peek(),
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

    def _revoked(self) -> None:
        """Leave the line as it is, since it is being given to another, and wake whoever waits in this guard."""
        self._settle(failed=True)
        self._line.alarm.clear()
        self._line.wake()

    def _check_alive(self, action: str) -> None:
        if not self._claim.alive:
            if self._claim.revoked is not None:
                raise self._claim.revocation(action, self.sent)
            raise GuardReleasedError(resource=self._line.config.path, owner=self.owner, action=action, sent=self.sent)

    def _lost(self, reason: str) -> LineLostError:
        return LineLostError(resource=self._line.config.path, owner=self.owner, reason=reason, sent=self.sent)

    def _terminator(self, given: bytes | None) -> bytes:
        if given is None:
            return self._line.config.read_terminator
        if not given:
            raise ValueError("a terminator needs at least one byte")
        return given
