"""What old code is called with: doors in place of lines, wherever they stand among its arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def with_doors(value: Any, as_door: Callable[[Any], Any]) -> Any:
    """Return *value* with each line in it, also inside tuples, lists and dicts, as the door to it.

    Args:
        value: One argument.
        as_door: Returns the door to a line, and anything else as it is.
    """
    if type(value) in (tuple, list):
        return type(value)(with_doors(item, as_door) for item in value)
    if type(value) is dict:
        return {key: with_doors(item, as_door) for key, item in value.items()}
    return as_door(value)
