"""When a simulated instrument misbehaves, and how.

Faults come by counting, never by chance, so a run can be repeated. What counts is an answer that bears a tag:
others, such as those to queries for resynchronising a line, are always given well.
"""

from __future__ import annotations

import random
from typing import Any, Literal, get_args

import attrs

from trio_daq.sharing import checked_timeout

Fault = Literal[
    "late",
    "silent",
    "half",
    "garbage",
    "garbage_after",
    "echo",
    "split",
    "twice",
    "unsolicited",
    "reset",
    "fin",
    "lie",
]
"""``late``: answered after a while. ``silent``: not answered. ``half``: half a reply, no terminator. ``garbage``,
``garbage_after``: bytes in front of the reply, or behind it. ``echo``: the command in front of the reply. ``split``:
the reply byte by byte. ``twice``: the reply two times in one write. ``unsolicited``: with the reply a line ``EVENT n``
that nobody asked for, in turn in front of it, behind it, and a moment after it. ``reset``: the connection is reset in
place of the reply. ``fin``: it is closed, in turn in place of the reply and after half of it. ``lie``: the header of a
block tells of more bytes than come."""

CONNECTION_FAULTS: tuple[Fault, ...] = ("reset", "fin", "lie")
"""Those that take a connection and blocks, so that of our instruments only the meter can have them."""


def _count(_: object, attribute: attrs.Attribute[Any], value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{attribute.name} is a whole number, not {value!r}")
    if value < 0:
        raise ValueError(f"{attribute.name} must be 0 (never) or more, not {value!r}")


def _seconds(_: object, attribute: attrs.Attribute[Any], value: float) -> None:
    checked_timeout(value, attribute.name)


@attrs.frozen(kw_only=True)
class FaultPlan:
    """Which answers go wrong: every n-th, 0 for never.

    One answer has one fault at most; where two are due, the second waits for the next answer.

    Attributes:
        late_every: Every so many answers, one is late.
        late_by: By how many seconds. Later commands of the same client wait, as the instrument works in order.
        silent_every: Every so many answers, one is never given.
        half_every: Every so many answers, one ends half way; the next reply follows directly upon the half.
        garbage_every: Every so many answers, `GARBAGE` comes in front of one.
        garbage_after_every: Every so many answers, it comes behind one, and so in front of the next.
        echo_every: Every so many answers, the command comes back in front of one.
        split_every: Every so many answers, one comes byte by byte.
        twice_every: Every so many answers, one is given two times.
        unsolicited_every: Every so many answers, one has company of a line that nobody asked for.
        reset_every: Every so many answers, the connection is reset in place of one. Only of the meter.
        fin_every: Every so many answers, it is closed in place of one, or after half of one. Only of the meter.
        lie_every: Every so many answers, the next one that is a block is announced as longer than it is. Only of the
            meter.
        seed: Which one of so many it is: 0 for the last, another number draws one for each kind of fault.
    """

    late_every: int = attrs.field(default=0, validator=_count)
    late_by: float = attrs.field(default=0.1, validator=_seconds)
    silent_every: int = attrs.field(default=0, validator=_count)
    half_every: int = attrs.field(default=0, validator=_count)
    garbage_every: int = attrs.field(default=0, validator=_count)
    garbage_after_every: int = attrs.field(default=0, validator=_count)
    echo_every: int = attrs.field(default=0, validator=_count)
    split_every: int = attrs.field(default=0, validator=_count)
    twice_every: int = attrs.field(default=0, validator=_count)
    unsolicited_every: int = attrs.field(default=0, validator=_count)
    reset_every: int = attrs.field(default=0, validator=_count)
    fin_every: int = attrs.field(default=0, validator=_count)
    lie_every: int = attrs.field(default=0, validator=_count)
    seed: int = attrs.field(default=0, validator=_count)

    @property
    def needs_connection(self) -> bool:
        """Whether one of its faults can only happen to a connection."""
        return any(getattr(self, f"{fault}_every") for fault in CONNECTION_FAULTS)


NO_FAULTS = FaultPlan()


class FaultSchedule:
    """A plan being carried out: counts answers and says which go wrong."""

    def __init__(self, plan: FaultPlan) -> None:
        self.plan = plan
        every: dict[Fault, int] = {fault: getattr(plan, f"{fault}_every") for fault in get_args(Fault)}
        self._every = {fault: count for fault, count in every.items() if count}
        draw = random.Random(plan.seed)  # noqa: S311 - repeatable is what it has to be
        self._shift = {fault: draw.randrange(count) if plan.seed else 0 for fault, count in self._every.items()}
        self._answers = 0
        self._due: dict[Fault, None] = {}  # a set that keeps its order, so that the one due longest comes first

    def next(self, *, is_block: bool = False) -> Fault | None:
        """Count one answer that bears a tag, and return the fault that fires with it."""
        self._answers += 1
        for fault, every in self._every.items():
            if (self._answers + self._shift[fault]) % every == 0:
                self._due.setdefault(fault)
        fired = next((fault for fault in self._due if is_block or fault != "lie"), None)
        if fired is not None:
            del self._due[fired]
        return fired
