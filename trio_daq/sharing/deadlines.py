"""What counts as a number of seconds: the one rule for every timeout.

A wait without an end is how a lab hangs, so infinity and NaN are refused everywhere, and so is a boolean.
"""

from __future__ import annotations

import math
from typing import Any


def checked_timeout(value: float, name: str = "timeout", *, zero: bool = True) -> float:
    """Return *value* if it is a finite number of seconds, 0 included unless *zero* is false.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is negative, infinite or NaN, or 0 where 0 means nothing.
    """
    if type(value) in (float, int) and 0 < value < math.inf:  # nearly all of them
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is a number of seconds, not {value!r}")
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        least = "0 or more" if zero else "above 0"
        raise ValueError(f"{name} must be a finite number of seconds, {least}, not {value!r}")
    return value


def positive_seconds(_: object, attribute: Any, value: float) -> None:
    """Check that a field of a settings class is a finite time above 0, as an attrs validator."""
    checked_timeout(value, attribute.name, zero=False)


def positive_int(_: object, attribute: Any, value: int) -> None:
    """Check that a field of a settings class is a whole number above 0, as an attrs validator."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{attribute.name} is a whole number, not {value!r}")
    if value <= 0:
        raise ValueError(f"{attribute.name} must be above 0, not {value!r}")


def whole_number(_: object, attribute: Any, value: int) -> None:
    """Check that a field of a settings class is a whole number, as an attrs validator."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{attribute.name} is a whole number, not {value!r}")
