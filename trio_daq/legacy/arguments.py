"""What old code is called with: doors in place of lines, wherever they stand among its arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def with_doors(value: Any, as_door: Callable[[Any], Any]) -> Any:
    """Return *value* with each line in it, also inside tuples, lists and dicts, as the door to it.

    What holds no line is the very object that it was: a program may have been given a list to put its results in.

    Args:
        value: One argument.
        as_door: Returns the door to a line, and anything else as it is.
    """
    if type(value) in (tuple, list):
        made = [with_doors(item, as_door) for item in value]
        is_same = all(one is other for one, other in zip(made, value, strict=True))
        return value if is_same else type(value)(made)
    if type(value) is dict:
        made_of = {key: with_doors(item, as_door) for key, item in value.items()}
        return value if all(made_of[key] is value[key] for key in value) else made_of
    return as_door(value)
