"""Deadlines for many short waits, without a cancel scope for each.

A cancel scope costs as much as the rest of a serial exchange. Here one system task of the run sleeps until the
earliest deadline and calls back. Setting an alarm stores a number; only an alarm that is earlier than the clock would
look at it anyway costs more. The module knows nothing of what the alarms are for.

Invariants: for each alarm that is set, the heap has an entry at or before its time; the heap has at most two entries
for each alarm that is set, and 64 more.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
from collections.abc import Callable

import trio

_log = logging.getLogger("trio_daq.sharing")

_SPARE = 64
"""Entries beyond twice the alarms that are set, above which those that will not ring are swept out."""


class Alarm:
    """One deadline, to be set and cleared again and again.

    Args:
        ring: Called in the Trio thread when the time has come. It must neither wait nor raise.

    Attributes:
        time: When it rings, infinity if it is not set. For the run in which it was set.
    """

    __slots__ = ("_clock", "_entry", "ring", "time")

    def __init__(self, ring: Callable[[], object]) -> None:
        self.ring = ring
        self.time = math.inf
        self._entry: _Entry | None = None
        self._clock: _AlarmClock | None = None

    def set(self, time: float) -> None:
        """Ring at *time* of Trio's clock, instead of at the time that was set before; never, if it is infinite."""
        if time == math.inf:
            self.clear()
            return
        clock = _current_clock()
        if clock is not self._clock:  # an object may live through several runs, each with a clock of its own
            self._clock, self._entry, self.time = clock, None, math.inf
        if self.time == math.inf:
            clock.alarms_set += 1
        self.time = time
        if self._entry is None or time < self._entry[0]:
            clock.look_at(self, time)

    def clear(self) -> None:
        """Do not ring."""
        if self.time < math.inf:
            self.time = math.inf
            if self._clock is not None:
                self._clock.alarms_set -= 1
                self._clock.sweep_if_worth_it()


_Entry = tuple[float, int, Alarm]
"""When to look at an alarm, a number that makes the order total, and the alarm. It is the alarm's own or outdated."""


class _AlarmClock:
    """The heap of one run, and the task that waits for its first entry.

    Attributes:
        alarms_set: How many alarms are set.
    """

    def __init__(self) -> None:
        self.alarms_set = 0
        self._heap: list[_Entry] = []
        self._numbers = itertools.count()
        self._sleep = trio.CancelScope()

    def look_at(self, alarm: Alarm, time: float) -> None:
        """Look at *alarm* no later than *time*."""
        alarm._entry = entry = (time, next(self._numbers), alarm)
        heapq.heappush(self._heap, entry)
        if time < self._sleep.deadline:
            self._sleep.deadline = time
        self.sweep_if_worth_it()

    def sweep_if_worth_it(self) -> None:
        """Drop the entries that will not ring if there are more of them than of the others, and some."""
        if len(self._heap) <= 2 * self.alarms_set + _SPARE:
            return
        kept = []
        for entry in self._heap:
            alarm = entry[2]
            if alarm._entry is entry:
                if alarm.time < math.inf:
                    kept.append(entry)
                else:
                    alarm._entry = None
        heapq.heapify(kept)
        self._heap = kept

    async def run(self) -> None:
        """Ring every alarm when its time has come, until the run ends."""
        while True:
            first = self._heap[0][0] if self._heap else math.inf
            with trio.CancelScope(deadline=first) as self._sleep:
                await trio.sleep_forever()
            self._ring_due(trio.current_time())

    def _ring_due(self, now: float) -> None:
        while self._heap and self._heap[0][0] <= now:
            entry = heapq.heappop(self._heap)
            alarm = entry[2]
            if alarm._entry is not entry:
                continue
            alarm._entry = None
            if now < alarm.time < math.inf:  # it was put off meanwhile
                self.look_at(alarm, alarm.time)
            elif alarm.time <= now:
                alarm.time = math.inf
                self.alarms_set -= 1
                try:
                    alarm.ring()
                except Exception:  # noqa: BLE001 - logged with its traceback; a system task must not raise
                    _log.exception("an alarm failed")  # it must not take the run down with it
        self.sweep_if_worth_it()


_clock_of_this_run: trio.lowlevel.RunVar[_AlarmClock] = trio.lowlevel.RunVar("trio_daq_alarm_clock")


def _current_clock() -> _AlarmClock:
    try:
        return _clock_of_this_run.get()
    except LookupError:
        clock = _AlarmClock()
        _clock_of_this_run.set(clock)
        trio.lowlevel.spawn_system_task(clock.run, name="trio_daq alarm clock")
        return clock
