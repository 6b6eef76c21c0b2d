"""When a simulated instrument misbehaves, and how.

Faults come by counting, never by chance, so a run can be repeated. What counts is an answer that bears a tag:
others, such as those to queries for resynchronising a line, are always given well.
"""

from __future__ import annotations

from typing import Any, Literal

import attrs

from trio_daq.sharing import checked_timeout

Fault = Literal["late", "silent", "half", "garbage"]
"""``late``: answered after a while. ``silent``: not answered. ``half``: half a reply, no terminator. ``garbage``: bytes
in front of the reply."""

GARBAGE = b"\xfe\x00~?"
"""Bytes that are no text in UTF-8, no command and no terminator."""


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
    """

    late_every: int = attrs.field(default=0, validator=_count)
    late_by: float = attrs.field(default=0.1, validator=_seconds)
    silent_every: int = attrs.field(default=0, validator=_count)
    half_every: int = attrs.field(default=0, validator=_count)
    garbage_every: int = attrs.field(default=0, validator=_count)


NO_FAULTS = FaultPlan()


class FaultSchedule:
    """A plan being carried out: counts answers and says which go wrong."""

    def __init__(self, plan: FaultPlan) -> None:
        self.plan = plan
        self._every: dict[Fault, int] = {
            "late": plan.late_every,
            "silent": plan.silent_every,
            "half": plan.half_every,
            "garbage": plan.garbage_every,
        }
        self._answers = 0
        self._due: dict[Fault, None] = {}  # a set that keeps its order, so that the one due longest comes first

    def next(self) -> Fault | None:
        """Count one answer that bears a tag, and return the fault that fires with it."""
        self._answers += 1
        for fault, every in self._every.items():
            if every and self._answers % every == 0:
                self._due.setdefault(fault)
        fired = next(iter(self._due), None)
        if fired is not None:
            del self._due[fired]
        return fired
