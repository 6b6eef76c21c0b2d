"""What an async driver is told about its place in the lab."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager

import trio

from trio_daq.data import DataPublisher, Policy, Reading, Subscription
from trio_daq.sharing import beat


class DriverContext:
    """Handed to a task or an actor that has a parameter called ``context``.

    Attributes:
        id: The member's id.
        stopping: Set when the member is to end; a loop asks ``while not await context.wait_stopping(period)``.
        log: Its logger, ``trio_daq.member.<id>``.
    """

    def __init__(self, publisher: DataPublisher) -> None:
        self.id = publisher.instrument
        self.stopping = trio.Event()
        self.log = logging.getLogger(f"trio_daq.member.{publisher.instrument}")
        self._publisher = publisher

    async def publish(
        self,
        channel: str,
        value: float | Sequence[float],
        unit: str = "",
        *,
        asked_ns: int | None = None,
        timeout: float = 5.0,
    ) -> Reading:
        """Publish one value. See `DataPublisher.publish`."""
        beat()
        reading = await self._publisher.publish(channel, value, unit, asked_ns=asked_ns, timeout=timeout)
        beat()
        return reading

    def subscribe(
        self, *, policy: Policy = "drop_oldest", capacity: int | None = None
    ) -> AbstractContextManager[Subscription]:
        """Listen to the readings of the whole lab, under the member's id. See `DataDistributor.subscribe`."""
        return self._publisher.distributor.subscribe(self.id, policy=policy, capacity=capacity)

    def beat(self) -> None:
        """Show a sign of life, where there is nothing else that counts as one. See ``MemberConfig.heartbeat``."""
        beat()

    async def wait_stopping(self, timeout: float) -> bool:
        """Sleep for *timeout* seconds, or until the member is to stop; return whether it is."""
        beat()
        with trio.move_on_after(timeout):
            await self.stopping.wait()
        beat()
        return self.stopping.is_set()
