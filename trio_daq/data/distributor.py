"""Fan readings out to everybody who listens, each at their own pace.

There is one ring of recent readings and a cursor for each subscriber, so publishing costs one store and the wake-up
of those who sleep, however many listen. All subscribers see the same order. It knows nothing of instruments or files.

Invariants: the ring holds the last ``capacity`` readings; no slot is overwritten before every ``block`` subscriber
has passed it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import attrs
import trio

from trio_daq.data.reading import Reading
from trio_daq.errors import PublishTimeoutError

Policy = Literal["drop_oldest", "drop_newest", "latest", "block"]
"""What happens when a subscriber falls behind by more than its capacity.

``drop_oldest`` loses the oldest readings, ``drop_newest`` the newest; ``latest`` gets only the newest of each channel
at each `Subscription.receive`; ``block`` loses none, and makes the publisher wait.
"""

_READINGS_PER_YIELD = 64
"""Readings after which a publisher lets others run even if it need not wait, so that it cannot outrun its listeners."""


@attrs.frozen
class DistributorStatistics:
    """A snapshot of a `DataDistributor`.

    Attributes:
        published: Readings published so far.
        lost: Readings lost by each subscriber, by its name.
        backlog: Readings that each subscriber has still to take, by its name.
    """

    published: int
    lost: dict[str, int]
    backlog: dict[str, int]


class DataDistributor:
    """One stream of readings for any number of subscribers, each with its own policy.

    Args:
        capacity: Readings that the ring holds.

    Example:
        >>> async def main():
        ...     distributor = DataDistributor()
        ...     with distributor.subscribe("table", policy="latest") as table:
        ...         await DataPublisher(distributor, "dmm").publish("voltage", 1.5, "V")
        ...         print([reading.value for reading in await table.receive()])
        >>> trio.run(main)
        [1.5]
    """

    def __init__(self, capacity: int = 4096) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, not {capacity}")
        self._capacity = capacity
        self._ring: list[Reading | None] = [None] * capacity
        self._published = 0
        self._subscriptions: list[Subscription] = []
        self._blocking: list[Subscription] = []
        self._listeners = trio.lowlevel.ParkingLot()
        self._publishers = trio.lowlevel.ParkingLot()
        self._sequence: dict[str, int] = {}

    @contextmanager
    def subscribe(
        self, name: str, *, policy: Policy = "drop_oldest", capacity: int | None = None
    ) -> Iterator[Subscription]:
        """Listen, from the next reading on, for the length of a ``with`` block.

        Args:
            name: Shown in statistics and in the error of a publisher that waits for it.
            policy: What happens when it falls behind.
            capacity: How far it may fall behind; at most, and by default, the capacity of the ring.

        Raises:
            ValueError: If *policy* is none, or *capacity* is below 1.
        """
        if policy not in get_args(Policy):
            raise ValueError(f"policy must be one of {', '.join(get_args(Policy))}, not {policy!r}")
        if capacity is not None and capacity < 1:
            raise ValueError(f"capacity must be at least 1, not {capacity}")
        subscription = Subscription(self, name, policy, min(capacity or self._capacity, self._capacity))
        self._subscriptions.append(subscription)
        if policy == "block":
            self._blocking.append(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.remove(subscription)
            self.detach(subscription)

    async def wait_for_room(self, instrument: str, timeout: float = 5.0) -> None:
        """Wait until a reading can be published without loss to a ``block`` subscriber.

        When it returns there is room, and there will be until the next checkpoint. Cancellation publishes nothing.

        Raises:
            PublishTimeoutError: If there was none for *timeout* seconds.
            ValueError: If *timeout* is negative, infinite or NaN.
        """
        if not 0 <= timeout < math.inf:
            raise ValueError(f"timeout must be a finite number of seconds, 0 or more, not {timeout!r}")
        if self._published % _READINGS_PER_YIELD:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await trio.lowlevel.checkpoint()
        if self._slowest() is None:
            return
        with trio.move_on_after(timeout):
            while self._slowest() is not None:
                await self._publishers.park()
        if (slowest := self._slowest()) is not None:
            raise PublishTimeoutError(instrument=instrument, subscriber=slowest.name, waited=timeout)

    def next_seq(self, instrument: str) -> int:
        """Return the number that the next reading of *instrument* must bear."""
        return self._sequence.get(instrument, 0)

    def publish_nowait(self, reading: Reading) -> None:
        """Give *reading* to every subscriber.

        Raises:
            trio.WouldBlock: If a ``block`` subscriber is full; then nobody got it.
            ValueError: If its ``seq`` is not the next one of its instrument.
        """
        if reading.seq != self.next_seq(reading.instrument):
            raise ValueError(
                f"reading {reading.seq} of {reading.instrument!r} out of order, "
                f"expected {self.next_seq(reading.instrument)}; publish through a DataPublisher"
            )
        if self._slowest() is not None:
            raise trio.WouldBlock
        self._sequence[reading.instrument] = reading.seq + 1
        self._ring[self._published % self._capacity] = reading
        self._published += 1
        for subscription in self._subscriptions:
            if subscription.policy == "drop_newest":
                subscription._offer(reading)
        self._listeners.unpark_all()

    def detach(self, subscription: Subscription) -> None:
        """Let a ``block`` subscriber hold nobody back any more; from now on it loses its oldest readings."""
        if subscription in self._blocking:
            self._blocking.remove(subscription)
            subscription.policy = "drop_oldest"
            self._publishers.unpark_all()

    def detach_blocking(self, *, keep: str) -> None:
        """Detach every ``block`` subscriber but the one called *keep*, so that none can hold up a shutdown."""
        for subscription in [one for one in self._blocking if one.name != keep]:
            self.detach(subscription)

    def statistics(self) -> DistributorStatistics:
        """Return a snapshot for health checks and displays."""
        return DistributorStatistics(
            published=self._published,
            lost={one.name: one.lost for one in self._subscriptions},
            backlog={one.name: one.backlog() for one in self._subscriptions},
        )

    def _slowest(self) -> Subscription | None:
        for subscription in self._blocking:
            if self._published - subscription._cursor >= subscription._capacity:
                return subscription
        return None

    def _slice(self, start: int, stop: int) -> list[Reading]:
        first, last = start % self._capacity, stop % self._capacity
        readings = self._ring[first:last] if first < last else self._ring[first:] + self._ring[:last]
        return [reading for reading in readings if reading is not None]


class Subscription:
    """One listener's place in the stream. Made by `DataDistributor.subscribe`.

    Attributes:
        name: Its name.
        policy: Its policy.
    """

    def __init__(self, distributor: DataDistributor, name: str, policy: Policy, capacity: int) -> None:
        self.name = name
        self.policy: Policy = policy
        self._lost = 0
        self._distributor = distributor
        self._capacity = capacity
        self._cursor = distributor._published
        self._offered: deque[Reading] = deque()

    @property
    def lost(self) -> int:
        """Readings that it did not get, or will not get any more, because it was slow."""
        if self.policy == "drop_newest":
            return self._lost
        return self._lost + max(0, self._distributor._published - self._cursor - self._capacity)

    def backlog(self) -> int:
        """Return how many readings wait to be taken."""
        if self.policy == "drop_newest":
            return len(self._offered)
        return min(self._distributor._published - self._cursor, self._capacity)

    async def receive(self) -> list[Reading]:
        """Wait for readings and take all that have come, oldest first; at least one.

        Cancellation takes none.
        """
        await trio.lowlevel.checkpoint()
        while not (batch := self.receive_nowait()):
            await self._distributor._listeners.park()
        return batch

    def receive_nowait(self) -> list[Reading]:
        """Take all readings that have come, oldest first; an empty list if there are none."""
        if self.policy == "drop_newest":
            batch = list(self._offered)
            self._offered.clear()
            return batch
        distributor = self._distributor
        behind = distributor._published - self._cursor
        if behind == 0:
            return []
        if behind > self._capacity:
            self._lost += behind - self._capacity
            self._cursor += behind - self._capacity
        batch = distributor._slice(self._cursor, distributor._published)
        self._cursor = distributor._published
        if self.policy == "block":
            distributor._publishers.unpark_all()
        elif self.policy == "latest":
            # Backwards, so that what stays keeps its place in the stream.
            newest: dict[tuple[str, str], Reading] = {}
            for reading in reversed(batch):
                newest.setdefault((reading.instrument, reading.channel), reading)
            self._lost += len(batch) - len(newest)
            batch = list(reversed(newest.values()))
        return batch

    def _offer(self, reading: Reading) -> None:
        if len(self._offered) < self._capacity:
            self._offered.append(reading)
        else:
            self._lost += 1
