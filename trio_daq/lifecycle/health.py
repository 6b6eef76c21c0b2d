"""How a lab is, what is wrong with it, and what has happened to it: plain records, and where they are kept.

It looks at nothing itself: `checkup` makes the reports, and whoever sees something happen notes it.

Invariants: the history holds the last `HISTORY` events, in the order in which they were noted; noting never waits.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

import attrs
import trio

Severity = Literal["info", "warning", "error"]
"""``warning`` for what works, but worse than it should; ``error`` for what does not."""

HealthStatus = Literal["ok", "degraded", "error"]
"""``degraded`` if there are only warnings."""

HISTORY = 1000
"""Events that are kept: days of a lab that is well, and not much memory for one that is not."""


@attrs.frozen
class HealthProblem:
    """One thing that is wrong now.

    Attributes:
        subject: What has it: ``"v2.meter"``, ``"serial.stage"``, ``"the lab"``, ``"the event loop"``...
        severity: ``"warning"`` or ``"error"``.
        text: What it is and what helps, to follow the subject.
    """

    subject: str
    severity: Severity
    text: str

    def __str__(self) -> str:
        return f"{self.subject} {self.text}"


@attrs.frozen
class HealthReport:
    """What a health check found.

    Attributes:
        problems: What is wrong, errors first; nothing if all is well.
        time_ns: When, as `time.time_ns`.
    """

    problems: tuple[HealthProblem, ...]
    time_ns: int = attrs.field(factory=time.time_ns)

    @property
    def status(self) -> HealthStatus:
        """How the lab is as a whole: as bad as its worst part."""
        return _worst(self.problems)

    @property
    def healthy(self) -> bool:
        """Whether there is no error. A degraded lab is healthy: it measures."""
        return self.status != "error"

    def status_of(self, part: str) -> HealthStatus:
        """Return how one part is: a side (``"v2"``), a member (``"v2.meter"``), or a line (``"serial.stage"``)."""
        return _worst(one for one in self.problems if one.subject == part or one.subject.startswith(f"{part}."))

    def __str__(self) -> str:
        return "; ".join(map(str, self.problems)) or "all is well"


@attrs.frozen
class HealthEvent:
    """One thing that has happened.

    Attributes:
        time_ns: When, as `time.time_ns`.
        monotonic_ns: When, as `time.monotonic_ns`.
        severity: ``"info"`` if it is no trouble, or the end of one.
        subject: To what, as in `HealthProblem`.
        text: What, to follow the subject.
    """

    time_ns: int
    monotonic_ns: int
    severity: Severity
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.subject} {self.text}"


def subject_of(stage: str, member: str) -> str:
    """Return what a member is called in reports and events. A line bears its kind in its name already."""
    return member if stage == "hardware" else f"{stage}.{member}"


class Note(Protocol):
    """Takes down what has happened. For the Trio thread."""

    def __call__(self, subject: str, severity: Severity, text: str) -> object:
        """Take it down."""


class HealthHistory:
    """The last events, and those who wait for the next."""

    def __init__(self) -> None:
        self._events: deque[HealthEvent] = deque(maxlen=HISTORY)
        self._watchers: list[_Watcher] = []

    def note(self, subject: str, severity: Severity, text: str) -> None:
        """Keep an event, and give it to everybody who watches."""
        event = HealthEvent(time.time_ns(), time.monotonic_ns(), severity, subject, text)
        self._events.append(event)
        for watcher in self._watchers:
            watcher.give(event)

    def events(self) -> tuple[HealthEvent, ...]:
        """Return the events that are kept, oldest first."""
        return tuple(self._events)

    @contextmanager
    def watch(self, room: int) -> Iterator[trio.MemoryReceiveChannel[HealthEvent]]:
        """Return a ``with`` block that gives the events which come meanwhile. Beyond *room* the oldest are lost."""
        watcher = _Watcher(room)
        self._watchers.append(watcher)
        try:
            with watcher.send, watcher.receive:
                yield watcher.receive
        finally:
            self._watchers.remove(watcher)


class _Watcher:
    def __init__(self, room: int) -> None:
        if room < 1:
            raise ValueError(f"room must be at least 1, not {room}")
        self.send, self.receive = trio.open_memory_channel[HealthEvent](room)

    def give(self, event: HealthEvent) -> None:
        try:
            try:
                self.send.send_nowait(event)
            except trio.WouldBlock:
                self.receive.receive_nowait()
                self.send.send_nowait(event)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it was closed inside its block


def _worst(problems: Iterable[HealthProblem]) -> HealthStatus:
    severities = {problem.severity for problem in problems}
    return "error" if "error" in severities else "degraded" if "warning" in severities else "ok"
