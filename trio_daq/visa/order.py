"""One command on its way through the queue, seen from both ends.

The caller waits for it and may leave at any moment; the worker carries it out or passes it over. It is a record with
rules, and talks to nobody.

Invariants: it ends exactly once, in replies or in an error; while `queue` is set nothing of it was sent, and if it
ends then, nothing ever will be; its alarm is set from when it was put somewhere until it has ended.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Literal

import attrs
import outcome
import trio

from trio_daq.errors import CommandCancelledError, DaqError, Sent
from trio_daq.sharing import Agent, Alarm, Claim, beat, current_agent, forget_waiting, note_waiting
from trio_daq.visa.transport import Progress, Request, Transport

if TYPE_CHECKING:
    from trio_daq.visa.link import VisaLink
    from trio_daq.visa.queue import CommandQueue

Phase = Literal["place", "queued", "in_flight", "resync"]
Priority = Literal["urgent", "normal", "background"]

Replies = list[bytes]


@attrs.define(eq=False)
class Bond:
    """What keeps the orders of a transaction together: the connection over which the first of them was sent."""

    epoch: int | None = None
    """Which one that was, counted by the link; None as long as nothing was sent."""


class Order:
    """A command or a batch, who wants it, until when, and how far it has come.

    Args:
        link: Where it is to go.
        requests: What is to be sent; none for an order that is no command, such as to reconnect.
        texts: How errors name each of them.
        owner: Who asked.
        timeout: Seconds until they want to know.
        priority: Which orders it may overtake.
        work: Carries it out, called by the worker; its result ends the order.
        progress: Told of the bytes of a block.

    Attributes:
        patron: The session that took it, whose end is its end.
        bond: What it shares with the other orders of its transaction, None outside of one.
        queue: Where it waits, None once it was taken out.
        home: Where it waited first.
        setbacks: How often it was taken out and put back.
        phase: Where it is, for errors.
        bypasses: How many orders of a higher priority were taken while it was the first of its own.
        result: The replies or the error, once there is one.
    """

    __slots__ = (
        "_alarm",
        "_is_sent",
        "_sent",
        "_transport",
        "_waiter",
        "agent",
        "asked_at",
        "bond",
        "bypasses",
        "deadline",
        "home",
        "link",
        "owner",
        "patron",
        "phase",
        "priority",
        "progress",
        "queue",
        "requests",
        "result",
        "setbacks",
        "task",
        "texts",
        "work",
    )

    task: trio.lowlevel.Task
    agent: Agent

    def __init__(
        self,
        link: VisaLink,
        requests: Sequence[Request],
        texts: Sequence[str],
        owner: str,
        timeout: float,
        priority: Priority = "normal",
        *,
        work: Callable[[Order], Awaitable[Replies]],
        patron: object = None,
        bond: Bond | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.link = link
        self.requests = requests
        self.texts = texts
        self.owner = owner
        self.priority: Priority = priority
        self.work = work
        self.patron = patron
        self.bond = bond
        self.progress = progress
        self.asked_at = trio.current_time()
        self.deadline = self.asked_at + timeout
        self.queue: CommandQueue | None = None
        self.home: CommandQueue | None = None
        self.setbacks = 0
        self.phase: Phase = "place"
        self.bypasses = 0
        self.result: outcome.Outcome[Replies] | None = None
        self._transport: Transport | None = None
        self._is_sent = False
        self._sent: Sent = "no"
        self._waiter: trio.lowlevel.Task | None = None
        self._alarm = Alarm(self.expire)
        beat()  # it is made in the task of who wants it

    @property
    def resource(self) -> str:
        """The VISA resource name."""
        return self.link.resource

    @property
    def sent(self) -> Sent:
        """Whether any of it reached the instrument; once it has ended, as far as was known then."""
        if self.result is not None or self._transport is None:
            return self._sent
        return "yes" if self._is_sent or self._transport.completed else self._transport.sent

    @property
    def text(self) -> str:
        """The command in hand; of a batch, the one that it has come to."""
        at = 0 if self._transport is None or self._is_sent else self._transport.completed
        return self.texts[min(at, len(self.texts) - 1)]

    def held_by(self) -> Claim | None:
        """Return the claim of the transaction that it has to wait for, if there is one."""
        return None if self.queue is None else self.queue.closed_by()

    def watch_deadline(self) -> None:
        """Note that it was put where somebody will take it up: from now on it ends by its deadline."""
        self._alarm.set(self.deadline)

    def begin(self, transport: Transport) -> None:
        """Note that it is given to *transport* now."""
        self.phase = "in_flight"
        self._transport = transport

    def take_back(self) -> None:
        """Note that nothing of it was sent after all, and that the connection has to be mended first."""
        self.phase = "resync"
        self.setbacks += 1
        self._transport = None

    @property
    def is_sent(self) -> bool:
        """Whether all of it was carried out, though something may follow."""
        return self._is_sent

    def note_sent(self) -> None:
        """Note that all of it was sent; what the transport does from now on is something else."""
        self._is_sent = True

    def end(self, result: outcome.Outcome[Replies]) -> None:
        """Give the caller what it waits for. Only the first result counts."""
        if self.result is not None:
            return
        self._sent = self.sent  # what the transport says from now on may be about another order
        self.result = result
        self._alarm.clear()
        if self._waiter is not None:
            task, self._waiter = self._waiter, None
            forget_waiting(self)
            trio.lowlevel.reschedule(task)

    def fail(self, error: DaqError) -> None:
        """End it in *error*, unless it has ended."""
        if self.result is None:
            self.link.tally.note_failed(error)
            self.withdraw()
            self.end(outcome.Error(error))
            self.link.tell()

    def expire(self) -> None:
        """End it, since its deadline has come."""
        if self.result is None:
            self.fail(self.link.timeout_of(self))

    def abandon(self) -> None:
        """End it, since its caller has left. What is in flight is finished by the worker, and its reply dropped."""
        if self.result is None:
            in_flight, sent = self._transport is not None, self.sent
            if in_flight and sent == "no":
                sent = "unknown"  # the worker goes on, and may be about to write it
            self.fail(CommandCancelledError(resource=self.resource, command=self.text, owner=self.owner, sent=sent))
            self._sent = sent
            if in_flight:
                self.link.hurry()

    def withdraw(self) -> None:
        """Take it out of the queue, so that it is never sent."""
        if self.queue is not None:
            self.queue.remove(self)

    async def wait(self, *, abandon: bool) -> Replies:
        """Wait until it has ended, and return the replies.

        Args:
            abandon: Whether to withdraw it if this wait is cancelled.

        Raises:
            DeadlockError: If it waits for a transaction that waits for this task; it is withdrawn then.
            DaqError: That in which it ended.
        """
        if self.result is None:
            if self._waiter is not None:
                raise trio.BusyResourceError(f"task {self._waiter.name!r} waits for {self.texts[0]!r} already")
            self.task = task = trio.lowlevel.current_task()
            self.agent = current_agent() or task
            try:
                note_waiting(self)
            except DaqError:
                self.abandon()
                raise
            self._waiter = task

            def leave(_: object) -> trio.lowlevel.Abort:
                self._waiter = None
                forget_waiting(self)
                if abandon:
                    self.abandon()
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(leave)
            beat()
        else:
            await trio.lowlevel.checkpoint()
        result = self.result
        if isinstance(result, outcome.Error):  # to unwrap is for once, and one may wait again
            raise result.error
        assert isinstance(result, outcome.Value)
        replies: Replies = result.value
        return replies
