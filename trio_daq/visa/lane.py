"""One worker for the sessions that must not talk at once: those of one instrument, or of one bus.

It takes the next order, first come first served within a priority, sees to connections that need it, and does nothing
else. Whichever session is on duty lends it its task; when that session leaves, another one's goes on.

Invariants: at most one exchange is under way in the lane; an order that waits is passed over by at most eight of
higher priority, and one more for each priority between; while a link has a transaction, only its orders are taken.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import trio

from trio_daq.visa.link import VisaLink
from trio_daq.visa.order import Order, Priority
from trio_daq.visa.queue import PRIORITIES, CommandQueue

_MOST_BYPASSES = 8
"""Orders of a higher priority that may go before one that waits."""


class Lane:
    """The worker's view of one bus.

    Args:
        name: Of the bus, for errors.
        max_open: How many of its links may be connected at once.

    Attributes:
        links: The resources of the lane.
        demands: Orders that do not stand in line: to open a link, or to open it again.
        duty: Held by the session whose task works for the lane.
    """

    def __init__(self, name: str, max_open: int | None) -> None:
        self.name = name
        self.max_open = max_open
        self.links: list[VisaLink] = []
        self.demands: deque[Order] = deque()
        self.duty = trio.Lock()
        self._ring, self._bell = trio.open_memory_channel[None](1)
        self._is_idle = False
        self._attempt = trio.CancelScope()

    def ring(self) -> None:
        """Tell the worker that there may be something to do."""
        if self._is_idle:
            self._is_idle = False
            self._ring.send_nowait(None)

    def busy_until(self) -> float:
        """Return the deadline of what is in flight, minus infinity if nothing is."""
        return max((link.in_flight.deadline for link in self.links if link.in_flight is not None), default=-math.inf)

    async def work(self, is_over: Callable[[], bool]) -> None:
        """Serve the lane until *is_over*, which `ring` makes it ask. For whoever is on duty."""
        while not is_over():
            # One scope for many turns, as one for each would cost as much as the rest of a turn.
            with trio.CancelScope() as attempt:
                self._attempt = attempt
                # What was given up may have been done already: then it must not be the next turn that is cancelled.
                while not (is_over() or attempt.cancel_called):
                    if not await self._take_a_turn():
                        await self._wait()
                    if attempt.deadline < math.inf:  # somebody left during that turn, which is over now
                        break

    async def _take_a_turn(self) -> bool:
        """Do one thing; return whether there was any."""
        for demand in tuple(self.demands):
            urgent = demand.priority == "urgent"  # to make it safe, which is worth the place of another
            if demand.result is None and not urgent and not self._has_room_for(demand.link):
                continue
            await self._make_room_for(demand.link)
            await trio.lowlevel.checkpoint_if_cancelled()  # a worker that ends leaves it to the next one
            self.demands.remove(demand)
            if demand.result is None:  # who has left must not find it opened later
                await self._serve(demand)
            return True
        for link in self.links:
            if link.state != "open" and self._next_try(link) == 0:
                await self._prepare(link)
                return True
        order = self._choose()
        if order is None:
            return False
        if order.deadline <= trio.current_time():
            order.expire()
        elif order.link.state == "open":
            await self._serve(order)
            if order.requests and order.requests[-1].reply == "nothing":
                await trio.lowlevel.cancel_shielded_checkpoint()  # to write need not have waited
        elif (refusal := order.link.refusal(order.owner)) is not None:
            order.fail(refusal)
        else:
            await self._prepare(order.link)
        return True

    async def _wait(self) -> None:
        troubled = [link for link in self.links if link.state != "open"]
        tries = [left for link in troubled if (left := self._next_try(link)) is not None]
        self._is_idle = True
        if tries:
            with trio.move_on_after(min(tries)):
                await self._bell.receive()
            self._is_idle = False
        else:
            await self._bell.receive()

    def _next_try(self, link: VisaLink) -> float | None:
        """Return the seconds until *link* is to be seen to, None if not by itself."""
        return link.next_try() if self._has_room_for(link) else None

    def _choose(self) -> Order | None:
        """Return the order that is next, or None."""
        heads: dict[Priority, Order] = {}
        queues = [self._queue_in_turn(link) for link in self.links if self._may_serve(link)]
        if not any(map(len, queues)):
            return None
        for priority in PRIORITIES:
            for queue in queues:
                order = queue.first(priority)
                if order is not None and (priority not in heads or order.asked_at < heads[priority].asked_at):
                    heads[priority] = order
        if len(heads) < 2:
            return next(iter(heads.values()), None)
        starving = [priority for priority, order in heads.items() if order.bypasses >= _MOST_BYPASSES]
        chosen = starving[-1] if starving else next(iter(heads))
        for priority in PRIORITIES[PRIORITIES.index(chosen) + 1 :]:
            if priority in heads:
                heads[priority].bypasses += 1
        return heads[chosen]

    def _queue_in_turn(self, link: VisaLink) -> CommandQueue:
        return link.queue if link.exclusive is None else link.exclusive

    def _may_serve(self, link: VisaLink) -> bool:
        if link.state == "open":
            return True
        return not link.next_try() and self._has_room_for(link)

    async def _prepare(self, link: VisaLink) -> None:
        await self._make_room_for(link)
        if link in self.links:  # its last session may have left meanwhile
            link.attempt = self._attempt
            await link.care()

    async def _serve(self, order: Order) -> None:
        order.link.attempt = self._attempt
        await order.link.serve(order)

    # --- how many may be open ----------------------------------------------------------------------------------------

    def _others_open(self, link: VisaLink) -> list[VisaLink]:
        return [other for other in self.links if other is not link and other.transport is not None]

    def _has_room_for(self, link: VisaLink) -> bool:
        """Return whether *link* is open, or may be: if it is wanted, in place of another one without a transaction."""
        if self.max_open is None or link.transport is not None:
            return True
        others = self._others_open(link)
        if self._queue_in_turn(link) or any(demand.link is link for demand in self.demands):
            others = [other for other in others if other.exclusive is not None]
        return len(others) < self.max_open

    async def _make_room_for(self, link: VisaLink) -> None:
        if self.max_open is None or link.transport is not None:
            return
        others = self._others_open(link)
        # The one that was not used for longest goes; one with a transaction would lose it, so it goes last.
        others.sort(key=lambda other: math.inf if other.exclusive is not None else other.used_at)
        for other in others[: max(0, len(others) + 1 - self.max_open)]:
            await other.disconnect(abort=False)
