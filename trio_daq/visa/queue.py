"""Orders that wait, by priority and in the order of asking; any of them can leave at any moment.

A memory channel cannot give up what was put into it, so orders wait in ordered dictionaries, and the lane's channel
only tells its worker that there is something to do. The queue talks to nobody.

Invariants: of each priority at most `size` orders have a place, and one that was put back; an order waits for a place
only while all are taken, and gets the next one that is free in its turn; an order is here exactly while its `queue` is
this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from trio_daq.errors import QueueFullError
from trio_daq.sharing import Claim
from trio_daq.visa.order import Order, Priority

PRIORITIES: tuple[Priority, ...] = ("urgent", "normal", "background")


def _nobody() -> Claim | None:
    return None


class CommandQueue:
    """The queue of one session, or of one transaction in it.

    Args:
        size: Places of each priority.
        closed_by: Returns the claim that keeps all these orders waiting, None if none does.
    """

    def __init__(self, size: int, closed_by: Callable[[], Claim | None] = _nobody) -> None:
        self._size = size
        self._places: dict[Priority, dict[Order, None]] = {priority: {} for priority in PRIORITIES}
        self._asking: dict[Priority, dict[Order, None]] = {priority: {} for priority in PRIORITIES}
        self._count = 0
        self.closed_by = closed_by

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Order]:
        """Go through the orders that are here now, those of the highest priority first, whichever leave meanwhile."""
        # Listed at once: each that leaves gives its place to another one.
        rows = (orders[priority] for priority in PRIORITIES for orders in (self._places, self._asking))
        return iter([order for row in rows for order in row])

    def put(self, order: Order) -> None:
        """Give *order* a place, or let it wait for one."""
        places = self._places[order.priority]
        order.queue = order.home = self
        order.watch_deadline()
        self._count += 1
        if len(places) < self._size:
            order.phase = "queued"
            places[order] = None
        else:
            order.phase = "place"
            self._asking[order.priority][order] = None

    def put_back(self, order: Order) -> None:
        """Put *order* in front of all others of its priority, whether or not there is a place."""
        order.queue = self
        order.phase = "queued"
        self._count += 1
        self._places[order.priority] = {order: None, **self._places[order.priority]}

    def put_nowait(self, order: Order, in_flight: str | None) -> None:
        """Give *order* a place.

        Raises:
            QueueFullError: If there is none.
        """
        if len(self._places[order.priority]) >= self._size:
            raise QueueFullError(
                resource=order.resource,
                command=order.texts[0],
                owner=order.owner,
                waiting=len(self),
                in_flight=in_flight,
            )
        self.put(order)

    def first(self, priority: Priority) -> Order | None:
        """Return the order of this priority that is next."""
        return next(iter(self._places[priority]), None)

    def remove(self, order: Order) -> None:
        """Take *order* out; who waits for a place gets it at once."""
        order.queue = None
        self._count -= 1
        places, asking = self._places[order.priority], self._asking[order.priority]
        if asking.pop(order, order) is None:
            return
        del places[order]
        if asking and len(places) < self._size:
            successor = next(iter(asking))
            del asking[successor]
            successor.phase = "queued"
            places[successor] = None

    def ahead_of(self, order: Order) -> int:
        """Return how many orders wait in front of it."""
        count = 0
        for priority in PRIORITIES:
            for orders in (self._places[priority], self._asking[priority]):
                if order not in orders:
                    count += len(orders)
                    continue
                for each in orders:  # mostly it is the first: one that waits for long was there first
                    if each is order:
                        return count
                    count += 1
        raise ValueError("it is not here")
