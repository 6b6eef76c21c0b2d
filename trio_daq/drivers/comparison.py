"""Compare what an old and a new driver measured of the same thing.

The two never measure at the same moment, and each reading has its noise. So readings are paired in the order of their
times, each with the nearest one of the other side that has come by then, and not the pairs are judged but windows of
them: the median of the differences in a window is what the drivers disagree by. Noise shrinks in it with the root of
the window, a drift that both see cancels in each pair, and one wild reading does not move it. It knows neither tasks
nor instruments.

Invariants: every reading ends in one pair, or unpaired, or waits for a partner; what cannot be compared is counted and
said in one sentence for each kind of trouble, and never raises.
"""

from __future__ import annotations

import math
import operator
import statistics
from collections import deque
from collections.abc import Iterator, Sequence

import attrs

from trio_daq.data import Reading, Value
from trio_daq.drivers.comparison_report import ComparisonReport, Difference, Tolerance, Unpaired, clock_time

_KEPT = 100
"""Differences and kinds of trouble that a report shows; what comes after these is only counted."""
_SILENT = 10.0
"""Seconds after which a side counts as silent, if it has never paused for so long: one side of a lab stops before the
other, and that is no silence."""


class Comparison:
    """Compares two channels while their readings come.

    Args:
        old: What the old side is called in the report.
        new: What the new side is called.
        tolerance: How far they may be apart.

    Example:
        >>> comparison = Comparison("old", "new", Tolerance(window=1))
        >>> for second in range(2):
        ...     for add, value in ((comparison.add_old, 1.0), (comparison.add_new, 1.02)):
        ...         at = second * 10**9
        ...         reading = Reading(
        ...             instrument="x", channel="x", value=value, seq=second, time_ns=at, monotonic_ns=at, asked_ns=at
        ...         )
        ...         difference = add(reading)
        >>> report = comparison.report()
        >>> report.agrees, report.pairs, len(report.differences)
        (False, 2, 2)
    """

    def __init__(self, old: str, new: str, tolerance: Tolerance) -> None:
        self._tolerance = tolerance
        self._old, self._new = _Side(old), _Side(new)
        self._window: list[tuple[Reading, Reading]] = []
        self._judged = _Judged()
        self._judged_windows = _Judged()
        self._differences: list[Difference] = []
        self._troubles: dict[str, int] = {}

    def add_old(self, reading: Reading) -> tuple[Difference, ...]:
        """Take a reading of the old side; return the windows that it completes, whether they agree or not."""
        return self._add(self._old, reading)

    def add_new(self, reading: Reading) -> tuple[Difference, ...]:
        """Take a reading of the new side; return the windows that it completes, whether they agree or not."""
        return self._add(self._new, reading)

    def report(self) -> ComparisonReport:
        """Return what was found so far."""
        return ComparisonReport(
            old=self._old.name,
            new=self._new.name,
            pairs=self._judged.count,
            pairs_agreeing=self._judged.agreeing,
            worst_pair=self._judged.worst,
            windows=self._judged_windows.count,
            windows_agreeing=self._judged_windows.agreeing,
            worst_window=self._judged_windows.worst,
            differences=tuple(self._differences),
            unpaired_old=self._old.unpaired,
            unpaired_new=self._new.unpaired,
            problems=tuple(self._problems()),
        )

    def _add(self, side: _Side, reading: Reading) -> tuple[Difference, ...]:
        side.add(reading)
        return tuple(window for old, new in self._pairs() if (window := self._compare(old, new)) is not None)

    def _pairs(self) -> Iterator[tuple[Reading, Reading]]:
        within = self._tolerance.within
        while self._old.waiting and self._new.waiting:
            early, late = sorted((self._old, self._new), key=lambda side: side.waiting[0].monotonic_ns)
            apart = _apart(early.waiting[0], late.waiting[0])
            has_nearer = len(early.waiting) > 1 and _apart(early.waiting[1], late.waiting[0]) < apart
            if apart > within or has_nearer:
                early.leave_unpaired()
            else:
                yield self._old.waiting.popleft(), self._new.waiting.popleft()
        for side in (self._old, self._new):
            while side.waiting and _apart(side.waiting[0], side.waiting[-1]) > within:
                side.leave_unpaired()

    def _compare(self, old: Reading, new: Reading) -> Difference | None:
        trouble = _trouble(old, new)
        if trouble is not None:
            if trouble in self._troubles or len(self._troubles) < _KEPT:
                self._troubles[trouble] = self._troubles.get(trouble, 0) + 1
            return None
        if self._window and _shape(self._window[0][1]) != _shape(new):
            self._window.clear()  # such a window would mix what has nothing to do with each other
        self._judged.add(_median_difference([(old, new)], self._tolerance))
        self._window.append((old, new))
        if len(self._window) < self._tolerance.window:
            return None
        window = _median_difference(self._window, self._tolerance)
        self._window.clear()
        self._judged_windows.add(window)
        if not window.is_allowed and len(self._differences) < _KEPT:
            self._differences.append(window)
        return window

    def _problems(self) -> Iterator[str]:
        for trouble, count in self._troubles.items():
            yield f"{trouble} ({count} {'pair' if count == 1 else 'pairs'})"
        silent = False
        for side, other in ((self._old, self._new), (self._new, self._old)):
            sentence = side.silence(other)
            if sentence is not None:
                silent = True
                yield sentence
        if self._judged_windows.count == 0 and not silent and not self._troubles:
            pairs, window = self._judged.count, self._tolerance.window
            yield f"{pairs} pairs are too few to judge; a window has {window}"


@attrs.define
class _Judged:
    count: int = 0
    agreeing: int = 0
    worst: Difference | None = None

    def add(self, one: Difference) -> None:
        self.count += 1
        self.agreeing += one.is_allowed
        if self.worst is None or _excess(one.difference, one.allowed) > _excess(
            self.worst.difference, self.worst.allowed
        ):
            self.worst = one


@attrs.define
class _Side:
    """What came from one side: who waits for a partner, who had none, and when it last said anything."""

    name: str
    waiting: deque[Reading] = attrs.field(factory=deque)
    unpaired: Unpaired = attrs.field(factory=Unpaired)
    last: Reading | None = None
    longest_pause: float = 0.0

    def add(self, reading: Reading) -> None:
        if self.last is not None:
            self.longest_pause = max(self.longest_pause, _apart(self.last, reading))
        self.last = reading
        self.waiting.append(reading)

    def leave_unpaired(self) -> None:
        reading = self.waiting.popleft()
        self.unpaired = Unpaired(count=self.unpaired.count + 1, first=self.unpaired.first or reading, last=reading)

    def silence(self, other: _Side) -> str | None:
        if self.last is None:
            return f"nothing came from {self.name}"
        if other.last is None:
            return None
        silent_for = (other.last.monotonic_ns - self.last.monotonic_ns) / 1e9
        if silent_for <= max(_SILENT, 2 * self.longest_pause):
            return None
        return f"nothing has come from {self.name} since {clock_time(self.last.time_ns)}, for {silent_for:.3g} s"


def _trouble(old: Reading, new: Reading) -> str | None:
    """Say why two readings cannot be compared, without their values, so that there is one sentence for each kind."""
    if old.unit != new.unit:
        return f"the units differ: old in {old.unit!r}, new in {new.unit!r}"
    old_shape, new_shape = _shape_text(old.value), _shape_text(new.value)
    if old_shape != new_shape:
        return f"the shapes differ: old is {old_shape}, new is {new_shape}"
    if old.value == ():
        return "rows without a number cannot be compared"
    for one, other in zip(_numbers(old.value), _numbers(new.value), strict=True):
        if not (math.isfinite(one) and math.isfinite(other)):
            return f"what is no finite number cannot be compared: old {_kind(one)}, new {_kind(other)}"
    return None


def _median_difference(pairs: list[tuple[Reading, Reading]], tolerance: Tolerance) -> Difference:
    """Return the median difference over *pairs*; of rows of numbers, that of the place which is the farthest out."""
    first, last = pairs[0], pairs[-1]
    olds, news = ([_numbers(pair[side].value) for pair in pairs] for side in (0, 1))
    old, new = _medians(olds), _medians(news)
    apart = _medians([tuple(map(operator.sub, b, a)) for a, b in zip(olds, news, strict=True)])
    allowed = [max(tolerance.absolute, tolerance.relative * max(abs(a), abs(b))) for a, b in zip(old, new, strict=True)]
    index = max(range(len(apart)), key=lambda place: _excess(apart[place], allowed[place]))
    return Difference(
        old=old[index],
        new=new[index],
        difference=apart[index],
        allowed=allowed[index],
        unit=first[0].unit,
        began_ns=min(reading.time_ns for reading in first),
        ended_ns=max(reading.time_ns for reading in last),
        index=index if isinstance(first[0].value, tuple) else None,
    )


def _medians(rows: Sequence[tuple[float, ...]]) -> Sequence[float]:
    """Return the median of each place."""
    return rows[0] if len(rows) == 1 else [statistics.median(column) for column in zip(*rows, strict=True)]


def _excess(difference: float, allowed: float) -> float:
    """How far it is out, in parts of what is allowed. What overflowed on the way is out by as much as can be."""
    if difference == 0:
        return 0.0
    excess = abs(difference) / allowed if allowed else math.inf
    return math.inf if math.isnan(excess) else excess


def _numbers(value: Value) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)


def _shape(reading: Reading) -> tuple[str, str]:
    return reading.unit, _shape_text(reading.value)


def _shape_text(value: Value) -> str:
    return f"a row of {len(value)}" if isinstance(value, tuple) else "one number"


def _kind(value: float) -> str:
    return "finite" if math.isfinite(value) else repr(value)


def _apart(one: Reading, other: Reading) -> float:
    return abs(one.monotonic_ns - other.monotonic_ns) / 1e9
