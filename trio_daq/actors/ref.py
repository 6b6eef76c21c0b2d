"""The address of an actor, which stays good when the actor is started anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from trio_daq.actors.messages import Message

if TYPE_CHECKING:
    from trio_daq.actors.actor import Actor
    from trio_daq.actors.cell import ActorCell, ActorStatistics
    from trio_daq.actors.dead_letters import DeadLetter

_A = TypeVar("_A", bound="Actor")
_R = TypeVar("_R")


class ActorRef(Generic[_A]):
    """How everybody but the actor itself speaks to it."""

    __slots__ = ("_cell",)

    def __init__(self, cell: ActorCell[_A]) -> None:
        self._cell = cell

    @property
    def name(self) -> str:
        """Name of the actor."""
        return self._cell.name

    async def ask(self, message: Message[_R], timeout: float | None = None) -> _R:
        """Send *message* and return the answer.

        One deadline covers the wait for room, the wait for the actor, and its work. Cancelled or out of time, a
        message that was not begun never will be; the answer to one that was is dropped.

        Args:
            message: What to ask.
            timeout: Seconds; 5 if omitted.

        Raises:
            AskTimeoutError: If there was no answer in time.
            MailboxFullError: If there was no room and the actor does not let senders wait.
            ActorStoppedError: If the actor stops or has stopped, or was ended while it handled the message.
            DeadlockError: If the actor waits, directly or not, for the task that asks.
            Exception: Whatever operational error its handler raised.
        """
        return await self._cell.ask(message, timeout)

    async def tell(self, message: Message[Any], timeout: float | None = None) -> None:
        """Send *message* and wait only until it is in the mailbox.

        Raises:
            AskTimeoutError: If there was no room for *timeout* seconds; 5 if omitted.
            MailboxFullError: If there was no room and the actor does not let senders wait.
            ActorStoppedError: If the actor stops or has stopped.
            DeadlockError: If there was no room, and the actor waits, directly or not, for the task that tells.
        """
        await self._cell.tell(message, timeout)

    def tell_nowait(self, message: Message[Any]) -> None:
        """Send *message* if there is room.

        Raises:
            MailboxFullError: If there is none.
            ActorStoppedError: If the actor stops or has stopped.
        """
        self._cell.tell_nowait(message)

    def statistics(self) -> ActorStatistics:
        """Return a snapshot for displays, health checks and tests."""
        return self._cell.statistics()

    def dead_letters(self) -> tuple[DeadLetter, ...]:
        """Return the last 100 messages to it that nobody handled, oldest first."""
        return self._cell.dead_letters()

    def __repr__(self) -> str:
        return f"<ActorRef {self.name!r}>"
