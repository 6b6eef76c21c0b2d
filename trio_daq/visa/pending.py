"""The reply to a command that was put into the queue without waiting."""

from __future__ import annotations

from collections.abc import Callable

import trio

from trio_daq.errors import Sent
from trio_daq.visa.order import Order


class PendingReply:
    """A command in the queue of a session, made by `submit`.

    Args:
        order: What is in the queue.
        text_of: Turns replies into text.
    """

    def __init__(self, order: Order, text_of: Callable[[Order, list[bytes]], list[str]]) -> None:
        self._order = order
        self._text_of = text_of

    @property
    def command(self) -> str:
        """What was queued."""
        return self._order.texts[0]

    @property
    def owner(self) -> str:
        """Who queued it."""
        return self._order.owner

    @property
    def sent(self) -> Sent:
        """Whether it has reached the instrument."""
        return self._order.sent

    def is_done(self) -> bool:
        """Return whether it has ended, in a reply or in an error."""
        return self._order.result is not None

    @trio.lowlevel.enable_ki_protection
    async def wait(self) -> str:
        """Wait for the reply and return it, ``""`` if it is not answered. Cancelled, only this wait ends.

        Raises:
            CommandCancelledError: If it was cancelled.
            trio.BusyResourceError: If another task waits for it.
            DaqError: As `CommandVerbs.query` raises it.
        """
        return self._text_of(self._order, await self._order.wait(abandon=False))[0]

    @trio.lowlevel.enable_ki_protection
    def cancel(self) -> None:
        """Take it back: what was not sent never will be, and what was is finished, and its reply dropped."""
        self._order.abandon()


class PendingRead:
    """A reply that is being read as it comes, made by `Transaction.submit_read`.

    Args:
        order: What is in the queue.
    """

    def __init__(self, order: Order) -> None:
        self._order = order

    def has_ended(self) -> bool:
        """Return whether waiting would return or raise at once."""
        return self._order.result is not None

    async def wait(self) -> bytes:
        """Wait for the bytes. Cancelled, the reading goes on, and one may wait again.

        Raises:
            DaqError: As all verbs do.
        """
        return (await self._order.wait(abandon=False))[0]

    def abandon(self) -> None:
        """Take it back, as `PendingReply.cancel` does."""
        self._order.abandon()
