"""One message on its way to an actor, seen from both ends.

Who asked waits for it and may leave at any moment; the actor handles it, or passes it over. It is a record with rules,
and talks to nobody.

Invariants: it ends at most once, in an answer or in an error; once nobody wants it, it is never begun.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

import trio

from trio_daq.errors import AskTimeoutError
from trio_daq.sharing import Agent, Holder, current_agent, forget_waiting, member_of, note_waiting

if TYPE_CHECKING:
    from trio_daq.actors.messages import Message


class Addressee(Protocol):
    """What an envelope has to know of the actor's place."""

    name: str
    resource: str

    @property
    def life(self) -> Holder | None:
        """Whoever would have to come to it, if anybody is there."""

    def withdraw(self, envelope: Envelope) -> None:
        """Take it out of the mailbox."""


class Envelope:
    """A message, who sent it, until when they wait, and how far it has come.

    Args:
        addressee: To whom it goes.
        message: What is said.
        timeout: Seconds for which the sender waits; 0 for one who does not.
        asked: Whether the sender waits for an answer.

    Attributes:
        phase: Where it is, for errors.
        wanted: Whether it is still to be handled; False once who asked has left.
        ended: Whether it has its answer or error.
        answer: What the handler returned.
        error: What it ended in, if in an error.
    """

    __slots__ = (
        "_addressee",
        "_waiter",
        "agent",
        "answer",
        "asked",
        "deadline",
        "ended",
        "error",
        "message",
        "phase",
        "sent_at",
        "task",
        "wanted",
    )

    task: trio.lowlevel.Task
    agent: Agent

    def __init__(self, addressee: Addressee, message: Message[Any], timeout: float = 0.0, *, asked: bool) -> None:
        self._addressee = addressee
        self.message = message
        self.asked = asked
        self.sent_at = trio.current_time()
        self.deadline = self.sent_at + timeout
        self.phase: Literal["mailbox", "queued", "handling"] = "mailbox"
        self.wanted = True
        self.ended = False
        self.answer: Any = None
        self.error: Exception | None = None
        self._waiter: trio.lowlevel.Task | None = None

    @property
    def owner(self) -> str:
        """Who sent it, for errors."""
        return member_of(self.task) or self.task.name

    @property
    def resource(self) -> str:
        """What the sender waits for, for errors."""
        return self._addressee.resource

    def held_by(self) -> Holder | None:
        """Return who has to come to it first."""
        return self._addressee.life

    def note_waiting(self) -> None:
        """Note that the current task waits for it, until it has its answer or error, or `forget_waiting` is called.

        Raises:
            DeadlockError: If the actor, directly or not, waits for this task.
        """
        self.task = task = trio.lowlevel.current_task()
        self.agent = current_agent() or task
        note_waiting(self)

    async def wait(self) -> None:
        """Wait until it has ended. Cancelled, it is withdrawn."""
        self._waiter = self.task
        await trio.lowlevel.wait_task_rescheduled(self._leave)

    def end(self, answer: Any = None, error: Exception | None = None) -> None:
        """Give the sender what they wait for. Only the first result counts."""
        if self.ended:
            return
        self.ended, self.answer, self.error = True, answer, error
        if self.asked and self.wanted:
            forget_waiting(self)
        if self._waiter is not None:
            task, self._waiter = self._waiter, None
            trio.lowlevel.reschedule(task)

    def expire(self) -> None:
        """End it, since its deadline has come."""
        if not self.ended:
            self.end(error=self.timeout_error())
            self._withdraw()

    def timeout_error(self) -> AskTimeoutError:
        """Return the error of a sender whose time is over."""
        return AskTimeoutError(
            actor=self._addressee.name,
            message=repr(self.message),
            phase=self.phase,
            waited=trio.current_time() - self.sent_at,
        )

    def _withdraw(self) -> None:
        self.wanted = False
        if self.phase == "queued":
            self._addressee.withdraw(self)

    def _leave(self, _: object) -> trio.lowlevel.Abort:
        # Here, not when the task runs again: the actor must not begin it in between.
        self._waiter = None
        forget_waiting(self)
        self._withdraw()
        return trio.lowlevel.Abort.SUCCEEDED
