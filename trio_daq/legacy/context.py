"""What a thread member is told about its place in the lab."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from trio_daq.data import DataPublisher, Reading
from trio_daq.legacy.host import DoorHost, Job

_PUBLISH_TIMEOUT = 5.0


class ThreadContext:
    """Handed to a blocking driver that has a parameter called ``context``.

    Attributes:
        id: The member's id.
        stopping: Set when the member is to end; a loop asks ``while not context.wait_stopping(period)``. A thread that
            has seen it set knows, so none of its later calls is interrupted.
        log: Its logger, ``trio_daq.member.<id>``.
    """

    def __init__(self, host: DoorHost, publisher: DataPublisher) -> None:
        self.id = host.owner
        self.stopping = _StopEvent(host.note_told)
        self.log = logging.getLogger(f"trio_daq.member.{host.owner}")
        self._host = host
        self._verbs = {"publish": publisher.publish}

    def publish(
        self, channel: str, value: float | Sequence[float], unit: str = "", *, asked_ns: int | None = None
    ) -> Reading:
        """Publish one value, as `DataPublisher.publish` does.

        Raises:
            PublishTimeoutError: If a subscriber that may lose nothing had no room for 5 s.
            DoorInterruptedError: If the member is to stop, and the thread has not seen it.
            DoorClosedError: If the member has stopped.
        """
        options: dict[str, Any] = {"asked_ns": asked_ns, "timeout": _PUBLISH_TIMEOUT}
        job = Job("publish", (channel, value, unit), options, _PUBLISH_TIMEOUT)
        reading: Reading = self._host.call(f"readings of {self.id}", self._verbs, job)
        return reading

    def wait_stopping(self, timeout: float) -> bool:
        """Sleep for *timeout* seconds, or until the member is to stop; return whether it is."""
        self.beat()
        is_stopping = self.stopping.wait(timeout)
        self.beat()
        return is_stopping

    def beat(self) -> None:
        """Show a sign of life, where there is nothing else that counts as one. See ``MemberConfig.heartbeat``."""
        self._host.beat()


class _StopEvent(threading.Event):
    """Notes which threads have seen it set."""

    def __init__(self, note_seen: Callable[[], object]) -> None:
        super().__init__()
        self._note_seen = note_seen

    def is_set(self) -> bool:
        return self._seen(super().is_set())

    def wait(self, timeout: float | None = None) -> bool:
        return self._seen(super().wait(timeout))

    def _seen(self, is_set: bool) -> bool:
        if is_set:
            self._note_seen()
        return is_set
