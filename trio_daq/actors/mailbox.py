"""A bounded queue with one reader, and a rule for when it is full.

It knows nothing of actors. Invariants: never more than ``capacity`` items wait; items leave in the order in which
`Mailbox.put` was called for them, but for those that the rule drops or that are removed; writers wait only while there
is no room, since whoever makes room moves the first writer's item in at once, so that nobody can overtake.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, Literal, TypeVar

import outcome
import trio

_T = TypeVar("_T")

Overflow = Literal["block", "fail", "drop_oldest", "drop_newest"]
"""What `Mailbox.put` does when there is no room: wait, raise, drop the first in line, or drop the new one."""


class Mailbox(Generic[_T]):
    """Items on their way to one reader.

    Attributes:
        capacity: How many may wait.
        dropped: How many were dropped because there was no room.
        is_closed: Whether it takes nothing in.
    """

    __slots__ = ("_items", "_overflow", "_paused", "_reader", "_writers", "capacity", "dropped", "is_closed")

    def __init__(self, capacity: int, overflow: Overflow) -> None:
        if capacity < 1:
            raise ValueError(f"a mailbox needs room for at least 1 message, not {capacity}")
        self.capacity = capacity
        self.dropped = 0
        self.is_closed = False
        self._overflow = overflow
        self._items: deque[_T] = deque()
        self._paused = False
        self._reader: trio.lowlevel.Task | None = None
        self._writers: dict[trio.lowlevel.Task, _T] = {}

    def __len__(self) -> int:
        return len(self._items)

    @property
    def has_room(self) -> bool:
        """Whether `put_nowait` takes an item and drops none."""
        return len(self._items) < self.capacity and not self.is_closed

    @property
    def must_wait(self) -> bool:
        """Whether `put` would wait for room."""
        return len(self._items) >= self.capacity and self._overflow == "block" and not self.is_closed

    async def put(self, item: _T) -> _T | None:
        """Put *item* in, and return the item that was dropped for it, if any.

        Cancelled, it is not in.

        Raises:
            trio.WouldBlock: If there is no room and the rule is ``fail``.
            trio.ClosedResourceError: If the mailbox is closed, also while waiting for room.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.has_room or self.is_closed:
            return self.put_nowait(item)
        if self._overflow == "block":
            await self._wait_for_room(item)
            return None
        try:
            return self.put_nowait(item)
        finally:
            # A writer that never waits must not keep the reader from making room.
            await trio.lowlevel.cancel_shielded_checkpoint()

    def put_nowait(self, item: _T) -> _T | None:
        """Put *item* in, and return the item that was dropped for it, if any.

        Raises:
            trio.WouldBlock: If there is no room and the rule is ``block`` or ``fail``.
            trio.ClosedResourceError: If the mailbox is closed.
        """
        if self.is_closed:
            raise trio.ClosedResourceError
        loser: _T | None = None
        if len(self._items) >= self.capacity:
            if self._overflow in ("block", "fail"):
                raise trio.WouldBlock
            self.dropped += 1
            if self._overflow == "drop_newest":
                return item
            loser = self._items.popleft()
        self._items.append(item)
        if self._reader is not None:
            self._wake_reader()
        return loser

    async def get(self) -> _T:
        """Wait for the next item.

        Raises:
            trio.EndOfChannel: If the mailbox is closed and empty, or paused.
        """
        if self._items:
            await trio.lowlevel.checkpoint_if_cancelled()
        while self._paused or not self._items:
            if self._paused or self.is_closed:
                raise trio.EndOfChannel
            self._reader = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._stop_reading)
        item = self._items.popleft()
        if self._writers:
            self._let_in()
        return item

    def remove(self, item: _T) -> None:
        """Take *item* out, wherever it stands; do nothing if it is not in."""
        try:
            self._items.remove(item)
        except ValueError:
            return
        if self._writers:
            self._let_in()

    def close(self) -> None:
        """Take nothing more in; what is in can still be read."""
        self.is_closed, self._paused = True, False
        self._wake_reader()
        for writer in self._writers:
            trio.lowlevel.reschedule(writer, outcome.Error(trio.ClosedResourceError()))
        self._writers.clear()

    def pause(self) -> None:
        """Let nothing be read; what is in stays, and more can be put in."""
        self._paused = not self.is_closed
        self._wake_reader()

    def open(self) -> None:
        """Undo `close` and `pause`."""
        self.is_closed = self._paused = False

    def clear(self) -> list[_T]:
        """Take everything out of a closed mailbox at once."""
        left = list(self._items)
        self._items.clear()
        return left

    def _wake_reader(self) -> None:
        if self._reader is not None:
            task, self._reader = self._reader, None
            trio.lowlevel.reschedule(task)

    def _stop_reading(self, _: object) -> trio.lowlevel.Abort:
        self._reader = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _let_in(self) -> None:
        writer = next(iter(self._writers))
        self._items.append(self._writers.pop(writer))
        trio.lowlevel.reschedule(writer)
        self._wake_reader()

    async def _wait_for_room(self, item: _T) -> None:
        task = trio.lowlevel.current_task()
        self._writers[task] = item

        def leave(_: object) -> trio.lowlevel.Abort:
            del self._writers[task]
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(leave)
