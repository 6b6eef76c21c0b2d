"""One measured value, with where it came from and when.

A reading is a value object: it is never changed, and it may cross tasks and threads.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import attrs

Value: TypeAlias = float | tuple[float, ...]
"""A scalar, or a one-dimensional array."""

_EXACT = 2**53
"""Whole numbers up to here are exact in an IEEE 754 double."""


def _scalar(value: Any) -> float:
    if isinstance(value, (bool, str, bytes)):
        raise TypeError(f"a reading is a number or a row of numbers, not {value!r}")
    if isinstance(value, int) and abs(value) > _EXACT:
        raise ValueError(f"{value} is above 2**53 and would be rounded; publish it in another unit")
    return float(value)


def _value(value: Any) -> Value:
    if type(value) is float:  # a subclass, such as numpy's float64, is converted
        return value
    if hasattr(value, "tolist"):  # numpy scalars and arrays, without importing numpy
        value = value.tolist()
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        return tuple(_scalar(item) for item in value)
    return _scalar(value)


@attrs.frozen(kw_only=True)
class Reading:
    """One value of one channel of one instrument.

    Attributes:
        instrument: Who measured: the id of the member that published it.
        channel: What was measured, for example ``"voltage"``.
        value: A float, or a tuple of floats; numbers, sequences and one-dimensional numpy arrays are converted.
            NaN, the infinities and -0.0 are kept as they are.
        unit: A label, for example ``"V"``. Nothing is converted.
        seq: Number of the reading within its instrument, from 0, without gaps: this is the order.
        time_ns: Wall clock in nanoseconds since 1970 (`time.time_ns`): a label, which may jump.
        monotonic_ns: `time.monotonic_ns` when the last byte of the reply had come.
        asked_ns: `time.monotonic_ns` when the question was asked.
    """

    instrument: str
    channel: str
    value: Value = attrs.field(converter=_value)
    unit: str = ""
    seq: int
    time_ns: int
    monotonic_ns: int
    asked_ns: int
