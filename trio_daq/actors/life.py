"""One life of an actor: it handles the messages of its place, one at a time, and keeps its timers.

It knows the mailbox and nothing of who sends. To the wait-for graph it is the holder of the mailbox: whoever waits for
an answer waits for what its task does.

Invariants: at most one message is handled at a time; a timer of one life never ticks in another.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import trio

from trio_daq.actors.envelope import Envelope
from trio_daq.errors import ActorStoppedError, MailboxFullError, is_bug
from trio_daq.sharing import checked_timeout, current_agent, current_pulse, interruptible

if TYPE_CHECKING:
    from trio_daq.actors.actor import Actor
    from trio_daq.actors.cell import ActorCell
    from trio_daq.actors.mailbox import Mailbox
    from trio_daq.actors.messages import Message

_log = logging.getLogger("trio_daq.actors")

_HANDLED_PER_YIELD = 64
"""Messages after which other tasks have their turn: a full mailbox and quick handlers must not starve them."""


class Life:
    """An actor from its start to its end. Made in the task that lives it.

    Args:
        cell: Where it lives.
        mailbox: What it reads.

    Attributes:
        owner: The name of the actor.
        resource: How errors name its mailbox.
        task: The task that lives it.
        pulse: Where it shows signs of life, if somebody waits for them. Without a message to handle it owes none.
        agent: On whose behalf.
        depth: How many nurseries are open outside of its handlers.
        nursery: Where its timers run, while it has any.
    """

    __slots__ = ("_cell", "_mailbox", "agent", "depth", "nursery", "owner", "pulse", "resource", "task")

    def __init__(self, cell: ActorCell[Any], mailbox: Mailbox[Envelope]) -> None:
        self.owner = cell.name
        self.resource = cell.resource
        self.task = trio.lowlevel.current_task()
        self.agent = current_agent() or self.task
        self.pulse = current_pulse()
        self.depth = len(self.task.child_nurseries)
        self.nursery: trio.Nursery | None = None
        self._cell = cell
        self._mailbox = mailbox

    async def live(self, actor: Actor, nursery: trio.Nursery, task_status: trio.TaskStatus[Any]) -> None:
        """Start *actor*, and handle messages until the mailbox lets none be read any more."""
        self.nursery = nursery
        self.depth = len(self.task.child_nurseries)
        await interruptible(actor.on_start)
        task_status.started(self._cell.ref)
        pulse = self.pulse
        if pulse is not None:
            pulse.rest()
        handled_in_a_row = 0
        while True:
            try:
                envelope = await self._mailbox.get()
            except trio.EndOfChannel:
                return
            if pulse is not None:
                pulse.beat()
            await self._handle(actor, envelope)
            if pulse is not None:
                pulse.rest()
            handled_in_a_row = (handled_in_a_row + 1) % _HANDLED_PER_YIELD
            if handled_in_a_row == 0:
                await trio.lowlevel.checkpoint()

    def end(self) -> None:
        """Note that its nursery is closed; from now on there is only ``on_stop``."""
        self.nursery = None
        self.depth = len(self.task.child_nurseries)

    @trio.lowlevel.enable_ki_protection
    def tell_later(self, delay: float, period: float | None, message: Message[Any]) -> None:
        """Start a timer. See `Actor.after` and `Actor.every`."""
        checked_timeout(delay, "delay")
        if period is not None:
            checked_timeout(period, "period", zero=False)
        if self.nursery is None:
            raise ActorStoppedError(actor=self.owner)
        first = trio.current_time() + delay
        if period is None:
            self.nursery.start_soon(self._tell_at, first, message)
        else:
            self.nursery.start_soon(self._tell_every, first, period, message)

    async def _handle(self, actor: Actor, envelope: Envelope) -> None:
        envelope.phase = "handling"
        tally = self._cell.tally
        method = actor._handlers.get(type(envelope.message))
        try:
            if method is None:
                raise TypeError(f"actor {self.owner!r} handles no {type(envelope.message).__name__}")
            answer = await interruptible(getattr(actor, method), envelope.message)
        except Exception as error:
            tally.failed += 1
            envelope.end(error=error)
            # A message that nobody handles is the sender's mistake, so it ends the sender's ask and not the actor.
            if method is not None and is_bug(error):
                raise
            if not (envelope.asked and envelope.wanted):
                _log.warning("actor %s: %r failed: %s", self.owner, envelope.message, error)
        except BaseException:
            envelope.end(error=ActorStoppedError(actor=self.owner, handling=repr(envelope.message)))
            raise
        else:
            tally.handled += 1
            if envelope.asked and not envelope.wanted:
                tally.late_answers += 1
            envelope.end(answer)

    @trio.lowlevel.enable_ki_protection
    async def _tell_at(self, moment: float, message: Message[Any]) -> None:
        await trio.sleep_until(moment)
        try:
            await self._cell.put(Envelope(self._cell, message, math.inf, asked=False))
        except MailboxFullError:
            self._cell.tally.missed_ticks += 1
        except ActorStoppedError:
            return

    @trio.lowlevel.enable_ki_protection
    async def _tell_every(self, first: float, period: float, message: Message[Any]) -> None:
        await trio.sleep_until(first)
        ticks = 0
        pending: Envelope | None = None
        try:
            while not self._mailbox.is_closed:
                if pending is None or pending.ended:
                    pending = Envelope(self._cell, message, asked=False)
                    try:
                        self._cell.put_nowait(pending)
                    except MailboxFullError:
                        pending, self._cell.tally.missed_ticks = None, self._cell.tally.missed_ticks + 1
                else:
                    self._cell.tally.missed_ticks += 1
                # On the grid of the first tick, so that the phase does not drift.
                ticks = max(ticks + 1, math.ceil((trio.current_time() - first) / period))
                await trio.sleep_until(first + ticks * period)
        finally:
            if pending is not None and not self._mailbox.is_closed:
                self._mailbox.remove(pending)  # the next life has timers of its own
