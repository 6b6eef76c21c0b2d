"""The place where an actor lives: its mailbox, its task, and its end.

Invariants: at most one message is handled at a time; each ask ends exactly once, in an answer or in an error; nobody
is answered after they left.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, Generic, Literal, TypeVar

import attrs
import outcome
import trio

from trio_daq.actors.actor import Actor
from trio_daq.actors.mailbox import Mailbox
from trio_daq.actors.messages import Message
from trio_daq.actors.ref import ActorRef
from trio_daq.errors import ActorStoppedError, AskTimeoutError, MailboxFullError, is_bug
from trio_daq.sharing import ServiceNursery, acting_as, checked_timeout

_log = logging.getLogger("trio_daq.actors")

_A = TypeVar("_A", bound=Actor)
_R = TypeVar("_R")

_ASK_TIMEOUT = 5.0
_ON_STOP_TIMEOUT = 2.0
"""Seconds, where nobody says otherwise."""


class _Envelope:
    """A message, and the one who waits for its answer, if anybody does."""

    __slots__ = ("_done", "asked", "message", "phase", "result", "wanted")

    def __init__(self, message: Message[Any], *, asked: bool) -> None:
        self.message = message
        self.asked = asked
        self.wanted = True
        self.phase: Literal["mailbox", "queued", "handling"] = "mailbox"
        self.result: outcome.Outcome[Any] | None = None
        self._done = trio.Event()

    def end(self, result: outcome.Outcome[Any]) -> None:
        if self.result is None:
            self.result = result
            self._done.set()

    async def wait(self) -> None:
        await self._done.wait()


@attrs.frozen
class ActorStatistics:
    """What an actor looked like at one moment.

    Attributes:
        waiting: Messages in its mailbox.
        handled: Messages handled.
        failed: Messages whose handler raised.
        dropped: Messages dropped because the mailbox was full.
        late_answers: Answers to askers who had left.
        missed_ticks: Ticks of its timers that were left out because the one before was still unhandled, or because
            there was no room.
    """

    waiting: int
    handled: int
    failed: int
    dropped: int
    late_answers: int
    missed_ticks: int


class ActorCell(Generic[_A]):
    """One named place for an actor.

    Args:
        name: Its name.
        make: Makes the actor, at each start.
        actor_class: Its class, for the mailbox.

    Attributes:
        ref: Its address, good for all its lives.
        undelivered: Messages that were in its mailbox when it ended.
    """

    def __init__(self, name: str, make: Callable[[], _A], actor_class: type[_A]) -> None:
        self.name = name
        self.ref: ActorRef[_A] = ActorRef(self)
        self.undelivered = 0
        self._make = make
        self._mailbox: Mailbox[_Envelope] = Mailbox(actor_class.mailbox_capacity, actor_class.overflow)
        self._nursery: trio.Nursery | None = None
        self._stopping = False
        self._handled = self._failed = self._late_answers = self._missed_ticks = 0

    async def serve(self, *, task_status: trio.TaskStatus[ActorRef[_A]] = trio.TASK_STATUS_IGNORED) -> None:
        """Start the actor and let it handle messages until `stop` or cancellation.

        After `stop` it first handles what is in its mailbox. Its ``on_stop`` always runs, shielded, for at most 2 s.

        Raises:
            Exception: Whatever ``on_start`` raised, or a bug in a handler; operational errors of handlers go to the
                asker and end nothing.
        """
        with acting_as(self.name):
            actor = self._make()
            actor._cell = self
            try:
                async with ServiceNursery() as nursery:
                    self._nursery = nursery
                    await actor.on_start()
                    task_status.started(self.ref)
                    await self._handle_all(actor)
                    nursery.cancel_scope.cancel()
            finally:
                self._nursery = None
                self.stop()
                left = self._mailbox.clear()
                self.undelivered += sum(envelope.wanted for envelope in left)
                for envelope in left:
                    envelope.end(outcome.Error(ActorStoppedError(actor=self.name)))
                with trio.move_on_after(_ON_STOP_TIMEOUT, shield=True) as bounded:
                    await actor.on_stop()
                if bounded.cancelled_caught:
                    _log.warning("actor %s: on_stop took longer than %g s and was cut", self.name, _ON_STOP_TIMEOUT)

    def stop(self) -> None:
        """Take no more messages and timers; handle those that are in."""
        self._stopping = True
        self._mailbox.close()

    def statistics(self) -> ActorStatistics:
        """Return a snapshot for displays, health checks and tests."""
        return ActorStatistics(
            waiting=len(self._mailbox),
            handled=self._handled,
            failed=self._failed,
            dropped=self._mailbox.dropped,
            late_answers=self._late_answers,
            missed_ticks=self._missed_ticks,
        )

    async def ask(self, message: Message[_R], timeout: float | None) -> _R:
        """See `ActorRef.ask`."""
        envelope = _Envelope(message, asked=True)
        started = trio.current_time()
        try:
            with trio.move_on_after(_ASK_TIMEOUT if timeout is None else checked_timeout(timeout)):
                await self._put(envelope)
                await envelope.wait()
        finally:
            envelope.wanted = False
        if envelope.result is None:
            raise self._timeout(envelope, started)
        answer: _R = envelope.result.unwrap()
        return answer

    async def tell(self, message: Message[Any], timeout: float | None) -> None:
        """See `ActorRef.tell`."""
        envelope = _Envelope(message, asked=False)
        started = trio.current_time()
        with trio.move_on_after(_ASK_TIMEOUT if timeout is None else checked_timeout(timeout)):
            await self._put(envelope)
        if envelope.phase == "mailbox":
            raise self._timeout(envelope, started)

    def tell_nowait(self, message: Message[Any]) -> None:
        """See `ActorRef.tell_nowait`."""
        try:
            self._put_nowait(_Envelope(message, asked=False))
        except trio.WouldBlock:
            raise MailboxFullError(actor=self.name, capacity=self._mailbox.capacity) from None
        except trio.ClosedResourceError:
            raise ActorStoppedError(actor=self.name) from None

    def tell_later(self, delay: float, period: float | None, message: Message[Any]) -> None:
        """Start a timer of the actor's own. See `Actor.after` and `Actor.every`."""
        checked_timeout(delay, "delay")
        if period is not None:
            checked_timeout(period, "period", zero=False)
        if self._nursery is None:
            raise ActorStoppedError(actor=self.name)
        first = trio.current_time() + delay
        if period is None:
            self._nursery.start_soon(self._tell_at, first, message)
        else:
            self._nursery.start_soon(self._tell_every, first, period, message)

    async def _put(self, envelope: _Envelope) -> None:
        try:
            loser = await self._mailbox.put(envelope)
        except trio.WouldBlock:
            raise MailboxFullError(actor=self.name, capacity=self._mailbox.capacity) from None
        except trio.ClosedResourceError:
            raise ActorStoppedError(actor=self.name) from None
        if envelope.phase == "mailbox":
            envelope.phase = "queued"
        self._end_dropped(loser)

    def _put_nowait(self, envelope: _Envelope) -> None:
        self._end_dropped(self._mailbox.put_nowait(envelope))

    def _end_dropped(self, loser: _Envelope | None) -> None:
        if loser is not None:
            loser.end(outcome.Error(MailboxFullError(actor=self.name, capacity=self._mailbox.capacity)))

    async def _tell_at(self, moment: float, message: Message[Any]) -> None:
        await trio.sleep_until(moment)
        try:
            await self._put(_Envelope(message, asked=False))
        except MailboxFullError:
            self._missed_ticks += 1
        except ActorStoppedError:
            return

    async def _tell_every(self, first: float, period: float, message: Message[Any]) -> None:
        await trio.sleep_until(first)
        ticks = 0
        pending: _Envelope | None = None
        while not self._stopping:
            if pending is None or pending.result is not None:
                pending = _Envelope(message, asked=False)
                try:
                    self._put_nowait(pending)
                except trio.WouldBlock:
                    pending, self._missed_ticks = None, self._missed_ticks + 1
                except trio.ClosedResourceError:
                    return
            else:
                self._missed_ticks += 1
            # On the grid of the first tick, so that the phase does not drift.
            ticks = max(ticks + 1, math.ceil((trio.current_time() - first) / period))
            await trio.sleep_until(first + ticks * period)

    async def _handle_all(self, actor: _A) -> None:
        handled_in_a_row = 0
        while True:
            try:
                envelope = await self._mailbox.get()
            except trio.EndOfChannel:
                return
            if envelope.wanted:
                await self._handle(actor, envelope)
            handled_in_a_row = (handled_in_a_row + 1) % 64
            if handled_in_a_row == 0:
                await trio.lowlevel.checkpoint()  # a full mailbox and quick handlers must not starve other tasks

    async def _handle(self, actor: _A, envelope: _Envelope) -> None:
        envelope.phase = "handling"
        method = actor._handlers.get(type(envelope.message))
        try:
            if method is None:
                raise TypeError(f"actor {self.name!r} handles no {type(envelope.message).__name__}")
            answer = await getattr(actor, method)(envelope.message)
        except Exception as error:
            self._failed += 1
            envelope.end(outcome.Error(error))
            # A message that nobody handles is the sender's mistake, so it ends the sender's ask and not the actor.
            if method is not None and is_bug(error):
                raise
            if not (envelope.asked and envelope.wanted):
                _log.warning("actor %s: %r failed: %s", self.name, envelope.message, error)
        except BaseException:
            envelope.end(outcome.Error(ActorStoppedError(actor=self.name)))
            raise
        else:
            self._handled += 1
            self._late_answers += envelope.asked and not envelope.wanted
            envelope.end(outcome.Value(answer))

    def _timeout(self, envelope: _Envelope, started: float) -> AskTimeoutError:
        return AskTimeoutError(
            actor=self.name,
            message=repr(envelope.message),
            phase=envelope.phase,
            waited=trio.current_time() - started,
        )
