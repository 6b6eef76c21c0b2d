"""How far two drivers may be apart, and what came of comparing them: values, and their text."""

from __future__ import annotations

import math
from datetime import datetime

import attrs

from trio_daq.data import Reading

_SHOWN = 10
"""Differences in the text of a report; `ComparisonReport.differences` has more."""


def _is_finite(_: object, attribute: attrs.Attribute[float], value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"{attribute.name} must be a finite number, 0 or more, not {value!r}")


def _is_count(_: object, attribute: attrs.Attribute[int], value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{attribute.name} must be a whole number, 1 or more, not {value!r}")


@attrs.frozen(kw_only=True)
class Tolerance:
    """How far two drivers may be apart.

    Attributes:
        relative: Of the larger of the two values; half of the difference that is to be found.
        absolute: In the unit of the readings; what counts near zero. The larger of the two counts.
        window: Pairs whose median is judged. 1 judges each pair by itself, for values without noise.
        within: Seconds that the readings of a pair may be apart.

    Raises:
        ValueError: If one is no number, negative, infinite or NaN, or the window is no whole number.
    """

    relative: float = attrs.field(default=0.005, validator=_is_finite)
    absolute: float = attrs.field(default=0.0, validator=_is_finite)
    window: int = attrs.field(default=20, validator=_is_count)
    within: float = attrs.field(default=1.0, validator=_is_finite)


@attrs.frozen(kw_only=True)
class Difference:
    """What both sides said in one window, or in one pair.

    Attributes:
        old: Value of the old side; of a window, the median.
        new: Value of the new side, likewise.
        difference: New minus old; of a window, the median over its pairs.
        allowed: How large it may be.
        unit: Unit of the three.
        began_ns: Wall clock of the first reading, as `Reading.time_ns`.
        ended_ns: Wall clock of the last.
        index: Which number of a row of numbers it is about: the one that is the farthest out. None for single numbers.
    """

    old: float
    new: float
    difference: float
    allowed: float
    unit: str
    began_ns: int
    ended_ns: int
    index: int | None = None

    @property
    def is_allowed(self) -> bool:
        """Whether the two agree."""
        return abs(self.difference) <= self.allowed

    def __str__(self) -> str:
        where = "" if self.index is None else f" [{self.index}]"
        relative = f" ({self.difference / self.old:+.3%})" if self.old else ""
        unit = f" {self.unit}" if self.unit else ""
        return (
            f"{clock_time(self.began_ns)} to {clock_time(self.ended_ns)}{where}: old {self.old:.7g}{unit}, "
            f"new {self.new:.7g}{unit}, difference {self.difference:+.3g}{unit}{relative}, allowed {self.allowed:.3g}"
        )


@attrs.frozen(kw_only=True)
class Unpaired:
    """Readings of one side to which the other has none that is near enough.

    Attributes:
        count: How many.
        first: The first of them.
        last: The last.
    """

    count: int = 0
    first: Reading | None = None
    last: Reading | None = None

    def __str__(self) -> str:
        if self.first is None or self.last is None:
            return "none"
        return f"{self.count}, from {clock_time(self.first.time_ns)} to {clock_time(self.last.time_ns)}"


@attrs.frozen(kw_only=True)
class ComparisonReport:
    """What came of comparing one channel of each side.

    Attributes:
        old: Name of the old side.
        new: Name of the new side.
        pairs: Pairs that could be compared.
        pairs_agreeing: How many of them agree, each by itself, noise and all.
        worst_pair: The pair that is out by the most of what is allowed.
        windows: Windows that were judged.
        windows_agreeing: How many of them agree.
        worst_window: The window that is out by the most of what is allowed.
        differences: The windows that differ, oldest first; at most the first 100.
        unpaired_old: Readings of the old side without a partner.
        unpaired_new: Readings of the new side without a partner.
        problems: What could not be compared, a sentence for each kind, and what else keeps this from being a proof.
    """

    old: str
    new: str
    pairs: int
    pairs_agreeing: int
    worst_pair: Difference | None
    windows: int
    windows_agreeing: int
    worst_window: Difference | None
    differences: tuple[Difference, ...]
    unpaired_old: Unpaired
    unpaired_new: Unpaired
    problems: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether there was enough to compare, and all of it agrees."""
        return self.windows == self.windows_agreeing and not self.problems

    def __str__(self) -> str:
        verdict = "agree" if self.agrees else "DO NOT AGREE"
        windows = f"{self.windows_agreeing} of {self.windows} windows agree"
        pairs = f"{self.pairs_agreeing} of {self.pairs} pairs do so by themselves"
        lines = [f"{self.old} and {self.new} {verdict}: {windows}, {pairs}"]
        lines += [f"  worst window: {self.worst_window}"] if self.worst_window is not None else []
        lines += [f"  worst pair:   {self.worst_pair}"] if self.worst_pair is not None else []
        lines += [f"  differs: {one}" for one in self.differences[:_SHOWN]]
        if (more := self.windows - self.windows_agreeing - _SHOWN) > 0:
            lines.append(f"  and {more} windows more")
        lines += [f"  problem: {one}" for one in self.problems]
        lines += [f"  unpaired: old {self.unpaired_old}; new {self.unpaired_new}"]
        return "\n".join(lines)


def clock_time(time_ns: int) -> str:
    """Return a wall-clock time of the day as text, in the zone of this computer."""
    return datetime.fromtimestamp(time_ns / 1e9).astimezone().strftime("%H:%M:%S.%f")[:-3]
