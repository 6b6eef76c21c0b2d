"""What an asyncio program is told about its place in the lab."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Any, Literal

from trio_daq.data import DataPublisher, Reading
from trio_daq.legacy.asyncio_host import AsyncioHost
from trio_daq.legacy.host import Job

_PUBLISH_TIMEOUT = 5.0


class StopEvent(asyncio.Event):
    """Set when a program is to end; it knows which of its tasks wait for that.

    Attributes:
        waiting: Those tasks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waiting: set[asyncio.Task[Any] | None] = set()

    async def wait(self) -> Literal[True]:
        """Wait until it is set."""
        task = asyncio.current_task()
        self.waiting.add(task)
        try:
            return await super().wait()
        finally:
            self.waiting.discard(task)


class AsyncioContext:
    """Handed to an asyncio program that has a parameter called ``context``.

    Attributes:
        id: The member's id.
        stopping: Set when the member is to end, an `asyncio.Event`. If the main task of the program waits for it just
            then, here or in `wait_stopping`, it knows, and is not cancelled.
        log: Its logger, ``trio_daq.member.<id>``.
    """

    def __init__(self, host: AsyncioHost, publisher: DataPublisher) -> None:
        self.id = host.owner
        self.stopping = StopEvent()
        self.log = logging.getLogger(f"trio_daq.member.{host.owner}")
        self._host = host
        self._verbs = {"publish": publisher.publish}

    async def publish(
        self, channel: str, value: float | Sequence[float], unit: str = "", *, asked_ns: int | None = None
    ) -> Reading:
        """Publish one value, as `DataPublisher.publish` does.

        Cancelled, it was published to all or to none.

        Raises:
            PublishTimeoutError: If a subscriber that may lose nothing had no room for 5 s.
            DoorClosedError: If the member has stopped.
        """
        options: dict[str, Any] = {"asked_ns": asked_ns, "timeout": _PUBLISH_TIMEOUT}
        job = Job("publish", (channel, value, unit), options, _PUBLISH_TIMEOUT)
        reading: Reading = await self._host.call(f"readings of {self.id}", self._verbs, job)
        return reading

    async def wait_stopping(self, timeout: float) -> bool:
        """Sleep for *timeout* seconds, or until the member is to stop; return whether it is."""
        self.beat()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self.stopping.wait()
        self.beat()
        return self.stopping.is_set()

    def beat(self) -> None:
        """Show a sign of life, where there is nothing else that counts as one. See ``MemberConfig.heartbeat``."""
        self._host.beat()
