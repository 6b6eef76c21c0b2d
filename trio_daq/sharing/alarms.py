"""Deadlines for many short waits, without a cancel scope for each.

A cancel scope costs as much as the rest of a serial exchange. Here one system task of the run sleeps until the
earliest deadline and calls back. Setting an alarm stores a number; only an alarm that is earlier than the clock would
look at it anyway costs more. The module knows nothing of what the alarms are for.

Invariant: for each alarm that is set, the heap has an entry at or before its time.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
from collections.abc import Callable

import trio

_log = logging.getLogger("trio_daq.sharing")

_SWEEP_ABOVE = 64
"""Entries above which outdated ones are swept out when they outnumber the others."""


class Alarm:
    """One deadline, to be set and cleared again and again.

    Args:
        ring: Called in the Trio thread when the time has come. It must neither wait nor raise.
    """

    __slots__ = ("_clock", "_looked_at", "_time", "ring")

    def __init__(self, ring: Callable[[], object]) -> None:
        self.ring = ring
        self._time = math.inf
        self._looked_at = math.inf
        self._clock: _AlarmClock | None = None

    def set(self, time: float) -> None:
        """Ring at *time* of Trio's clock, instead of at the time that was set before."""
        clock = _current_clock()
        if clock is not self._clock:  # an object may live through several runs, each with a clock of its own
            self._clock, self._looked_at, self._time = clock, math.inf, math.inf
        if self._time == math.inf and self._looked_at < math.inf:
            clock.outdated -= 1
        self._time = time
        if time < self._looked_at:
            clock.look_at(self, time)

    def clear(self) -> None:
        """Do not ring."""
        if self._time < math.inf:
            self._time = math.inf
            if self._clock is not None and self._looked_at < math.inf:
                self._clock.note_outdated()


class _AlarmClock:
    """The heap of one run, and the task that waits for its first entry.

    Attributes:
        outdated: Entries that will not ring: of cleared alarms, or replaced by an earlier one.
    """

    def __init__(self) -> None:
        self.outdated = 0
        self._heap: list[tuple[float, int, Alarm]] = []
        self._numbers = itertools.count()
        self._sleep = trio.CancelScope()

    def look_at(self, alarm: Alarm, time: float) -> None:
        """Look at *alarm* no later than *time*."""
        replaces = alarm._looked_at < math.inf
        alarm._looked_at = time
        heapq.heappush(self._heap, (time, next(self._numbers), alarm))
        if time < self._sleep.deadline:
            self._sleep.deadline = time
        if replaces:
            self.note_outdated()

    def note_outdated(self) -> None:
        """Count one more entry that will not ring, and sweep when there are many."""
        self.outdated += 1
        if self.outdated > _SWEEP_ABOVE and 2 * self.outdated > len(self._heap):
            kept = []
            for entry in self._heap:
                alarm = entry[2]
                if entry[0] == alarm._looked_at:
                    if alarm._time < math.inf:
                        kept.append(entry)
                    else:
                        alarm._looked_at = math.inf
            heapq.heapify(kept)
            self._heap, self.outdated = kept, 0

    async def run(self) -> None:
        """Ring every alarm when its time has come, until the run ends."""
        while True:
            first = self._heap[0][0] if self._heap else math.inf
            with trio.CancelScope(deadline=first) as self._sleep:
                await trio.sleep_forever()
            self._ring_due(trio.current_time())

    def _ring_due(self, now: float) -> None:
        while self._heap and self._heap[0][0] <= now:
            time, _, alarm = heapq.heappop(self._heap)
            if time != alarm._looked_at:
                self.outdated -= 1
                continue
            alarm._looked_at = math.inf
            if alarm._time == math.inf:
                self.outdated -= 1
            elif alarm._time > now:  # it was put off meanwhile
                self.look_at(alarm, alarm._time)
            else:
                alarm._time = math.inf
                try:
                    alarm.ring()
                except Exception:  # noqa: BLE001 - logged with its traceback; a system task must not raise
                    _log.exception("an alarm failed")  # it must not take the run down with it


_clock_of_this_run: trio.lowlevel.RunVar[_AlarmClock] = trio.lowlevel.RunVar("trio_daq_alarm_clock")


def _current_clock() -> _AlarmClock:
    try:
        return _clock_of_this_run.get()
    except LookupError:
        clock = _AlarmClock()
        _clock_of_this_run.set(clock)
        trio.lowlevel.spawn_system_task(clock.run, name="trio_daq alarm clock")
        return clock
