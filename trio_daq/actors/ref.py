"""The address of an actor, which stays good when the actor is started anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from trio_daq.actors.messages import Message

if TYPE_CHECKING:
    from trio_daq.actors.actor import Actor
    from trio_daq.actors.cell import ActorCell

_A = TypeVar("_A", bound="Actor")
_R = TypeVar("_R")


class ActorRef(Generic[_A]):
    """How everybody but the actor itself speaks to it."""

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
            ActorStoppedError: If the actor stops or has stopped.
            Exception: Whatever operational error its handler raised.
        """
        return await self._cell.ask(message, timeout)

    async def tell(self, message: Message[Any], timeout: float | None = None) -> None:
        """Send *message* and wait only until it is in the mailbox.

        Raises:
            AskTimeoutError: If there was no room for *timeout* seconds; 5 if omitted.
            MailboxFullError: If there was no room and the actor does not let senders wait.
            ActorStoppedError: If the actor stops or has stopped.
        """
        await self._cell.tell(message, timeout)

    def tell_nowait(self, message: Message[Any]) -> None:
        """Send *message* if there is room.

        Raises:
            MailboxFullError: If there is none.
            ActorStoppedError: If the actor stops or has stopped.
        """
        self._cell.tell_nowait(message)

    def __repr__(self) -> str:
        return f"<ActorRef {self.name!r}>"
