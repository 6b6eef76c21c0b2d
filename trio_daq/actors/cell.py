"""The place where an actor lives: its mailbox, its address, and its lives, one after the other.

Invariants: one life runs at a time, and the next begins only after the ``on_stop`` of the one before has ended; each
ask ends exactly once, in an answer or in an error; nobody is answered after they left; what waits in the mailbox
outlives a life, unless the cell is stopped.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import attrs
import trio

from trio_daq.actors.actor import Actor
from trio_daq.actors.dead_letters import DeadLetter, DeadLetters
from trio_daq.actors.envelope import Envelope
from trio_daq.actors.life import Life
from trio_daq.actors.mailbox import Mailbox
from trio_daq.actors.messages import Message
from trio_daq.actors.ref import ActorRef
from trio_daq.errors import ActorStoppedError, MailboxFullError, StateError
from trio_daq.sharing import (
    Alarm,
    ServiceNursery,
    acting_as,
    checked_timeout,
    forget_waiting,
    interruptible,
    interruptible_nowait,
)

_log = logging.getLogger("trio_daq.actors")

_A = TypeVar("_A", bound=Actor)
_R = TypeVar("_R")

_ASK_TIMEOUT = 5.0
_ON_STOP_TIMEOUT = 2.0
"""Seconds, where nobody says otherwise."""


@attrs.frozen
class ActorStatistics:
    """What an actor looked like at one moment, and what happened in all its lives.

    Attributes:
        waiting: Messages in its mailbox.
        handled: Messages handled.
        failed: Messages whose handler raised.
        dropped: Messages dropped because the mailbox was full.
        undelivered: Messages that were in its mailbox when it stopped.
        refused: Messages sent to it when it was stopping or had stopped.
        late_answers: Answers to askers who had left.
        missed_ticks: Ticks of its timers that were left out because the one before was still unhandled, or because
            there was no room.
        lives: How often it was started.
    """

    waiting: int
    handled: int
    failed: int
    dropped: int
    undelivered: int
    refused: int
    late_answers: int
    missed_ticks: int
    lives: int


@attrs.define
class Tally:
    """What a life counts for `ActorStatistics`."""

    handled: int = 0
    failed: int = 0
    late_answers: int = 0
    missed_ticks: int = 0


class ActorCell(Generic[_A]):
    """One named place for an actor.

    Args:
        name: Its name.
        make: Makes the actor, at each start.
        actor_class: Its class, for the mailbox.

    Attributes:
        make: Makes the actor of the next life.
        actor_class: Its class.
        ref: Its address, good for all its lives.
        resource: How errors name its mailbox.
        tally: What its lives have counted.
        life: That which runs, if one does.
    """

    def __init__(self, name: str, make: Callable[[], _A], actor_class: type[_A]) -> None:
        self.name = name
        self.resource = f"mailbox of {name}"
        self.ref: ActorRef[_A] = ActorRef(self)
        self.tally = Tally()
        self.make = make
        self.actor_class = actor_class
        self._mailbox: Mailbox[Envelope] = Mailbox(actor_class.mailbox_capacity, actor_class.overflow)
        self._dead_letters = DeadLetters(name)
        self._expected: dict[Envelope, None] = {}
        self._alarm = Alarm(self._expire_due)
        self.life: Life | None = None
        self._lives = 0

    @property
    def is_running(self) -> bool:
        """Whether a life of it has begun and not ended."""
        return self.life is not None

    @property
    def undelivered(self) -> int:
        """How many messages were in its mailbox when it stopped."""
        return self._dead_letters.counts["undelivered"]

    @trio.lowlevel.enable_ki_protection
    async def serve(self, *, task_status: trio.TaskStatus[ActorRef[_A]] = trio.TASK_STATUS_IGNORED) -> None:
        """Make the actor, start it, and let it handle messages until `stop`, `restart` or cancellation: one life.

        After `stop` it first handles what is in its mailbox; after any other end the mailbox stays, for the next life
        or until `stop`. ``on_stop`` always runs, shielded, for at most 2 s. Called again after `stop`, it takes
        messages again.

        Raises:
            StateError: If the life before has not ended.
            Exception: Whatever ``__init__`` or ``on_start`` raised, or a bug in a handler; operational errors of
                handlers go to the asker and end nothing.
        """
        if self.life is not None:
            raise StateError(action=f"starting actor {self.name!r}", expected="stopped", actual="running")
        with acting_as(self.name):
            self.life = life = Life(self, self._mailbox)
            if self._lives > 0:
                self._mailbox.open()
            self._lives += 1
            try:
                actor = interruptible_nowait(self.make)
                actor._trio_daq_life = life
                try:
                    async with ServiceNursery() as nursery:
                        await life.live(actor, nursery, task_status)
                        nursery.cancel_scope.cancel()
                finally:
                    life.end()
                    self._clear_if_stopped()
                    with trio.move_on_after(_ON_STOP_TIMEOUT, shield=True) as bounded:
                        await interruptible(actor.on_stop)
                    if bounded.cancelled_caught:
                        _log.warning("actor %s: on_stop took longer than %g s and was cut", self.name, _ON_STOP_TIMEOUT)
            finally:
                self.life = None

    @trio.lowlevel.enable_ki_protection
    def stop(self) -> None:
        """Take no more messages and timers; handle those that are in. Without a life, end them."""
        self._mailbox.close()
        self._clear_if_stopped()

    @trio.lowlevel.enable_ki_protection
    def restart(self) -> None:
        """End this life after the message at hand; keep the mailbox open for the next, which `serve` begins."""
        if self.life is not None:
            self._mailbox.pause()

    def statistics(self) -> ActorStatistics:
        """Return a snapshot for displays, health checks and tests."""
        return ActorStatistics(
            waiting=len(self._mailbox),
            **self._dead_letters.counts,
            **attrs.asdict(self.tally),
            lives=self._lives,
        )

    def dead_letters(self) -> tuple[DeadLetter, ...]:
        """Return the last 100 messages that nobody handled, oldest first."""
        return self._dead_letters.last()

    @trio.lowlevel.enable_ki_protection
    async def ask(self, message: Message[_R], timeout: float | None) -> _R:
        """See `ActorRef.ask`."""
        envelope = Envelope(self, message, _seconds(timeout), asked=True)
        envelope.note_waiting()
        try:
            if (
                self._mailbox.has_room
            ):  # no look whether it is cancelled: the wait that follows is one, and withdraws it
                self._put_at_once(envelope)
            else:
                await self._put_without_room(envelope)
        except BaseException:
            forget_waiting(envelope)
            raise
        if not envelope.ended:
            self._expected[envelope] = None
            if envelope.deadline < self._alarm.time:
                self._alarm.set(envelope.deadline)
            try:
                await envelope.wait()
            finally:
                del self._expected[envelope]
        if envelope.error is not None:
            try:
                raise envelope.error
            finally:
                del envelope  # the error's traceback has this frame, so the two would keep each other
        answer: _R = envelope.answer
        return answer

    @trio.lowlevel.enable_ki_protection
    async def tell(self, message: Message[Any], timeout: float | None) -> None:
        """See `ActorRef.tell`."""
        envelope = Envelope(self, message, _seconds(timeout), asked=False)
        if not self._mailbox.must_wait:
            await self.put(envelope)
            return
        envelope.note_waiting()
        try:
            await self.put(envelope)
        finally:
            forget_waiting(envelope)

    @trio.lowlevel.enable_ki_protection
    def tell_nowait(self, message: Message[Any]) -> None:
        """See `ActorRef.tell_nowait`."""
        self.put_nowait(Envelope(self, message, asked=False))

    async def put(self, envelope: Envelope) -> None:
        """Put *envelope* into the mailbox, by its deadline.

        Raises:
            AskTimeoutError, MailboxFullError, ActorStoppedError: If it is not in.
        """
        if self._mailbox.has_room:
            await trio.lowlevel.checkpoint_if_cancelled()
            self._put_at_once(envelope)
        else:
            await self._put_without_room(envelope)

    def put_nowait(self, envelope: Envelope) -> None:
        """Put *envelope* into the mailbox without waiting.

        Raises:
            MailboxFullError, ActorStoppedError: If it is not in.
        """
        try:
            loser = self._mailbox.put_nowait(envelope)
        except trio.WouldBlock:
            raise self._full() from None
        except trio.ClosedResourceError:
            raise self._refusal(envelope) from None
        self._note_put(envelope, loser)

    def withdraw(self, envelope: Envelope) -> None:
        """Take *envelope* out of the mailbox."""
        self._mailbox.remove(envelope)

    def _put_at_once(self, envelope: Envelope) -> None:
        self._mailbox.put_nowait(envelope)
        envelope.phase = "queued"

    async def _put_without_room(self, envelope: Envelope) -> None:
        try:
            if self._mailbox.must_wait:
                with trio.move_on_at(envelope.deadline) as bounded:
                    await self._mailbox.put(envelope)
                if bounded.cancelled_caught:
                    raise envelope.timeout_error()
                loser = None
            else:
                loser = await self._mailbox.put(envelope)
        except trio.WouldBlock:
            raise self._full() from None
        except trio.ClosedResourceError:
            raise self._refusal(envelope) from None
        self._note_put(envelope, loser)

    def _note_put(self, envelope: Envelope, loser: Envelope | None) -> None:
        if envelope.phase == "mailbox":  # it may have been begun before its sender ran again
            envelope.phase = "queued"
        if loser is not None:
            self._dead_letters.add(loser.message, "dropped")
            loser.end(error=self._full())

    def _clear_if_stopped(self) -> None:
        if self._mailbox.is_closed and (self.life is None or self.life.nursery is None):
            for envelope in self._mailbox.clear():
                self._dead_letters.add(envelope.message, "undelivered")
                envelope.end(error=ActorStoppedError(actor=self.name))

    def _expire_due(self) -> None:
        now, next_look = trio.current_time(), math.inf
        for envelope in tuple(self._expected):
            if envelope.deadline <= now:
                envelope.expire()
            else:
                next_look = min(next_look, envelope.deadline)
        self._alarm.set(next_look)

    def _full(self) -> MailboxFullError:
        return MailboxFullError(actor=self.name, capacity=self._mailbox.capacity)

    def _refusal(self, envelope: Envelope) -> ActorStoppedError:
        self._dead_letters.add(envelope.message, "refused")
        return ActorStoppedError(actor=self.name)


def _seconds(timeout: float | None) -> float:
    return _ASK_TIMEOUT if timeout is None else checked_timeout(timeout)
