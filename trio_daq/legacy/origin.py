"""What an error came of: whether a program ended because it was told to, or by an error of its own.

It looks at what was raised ``from`` what, as the program wrote it. What merely came while something else was handled is
an error of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


def came_of(error: BaseException | None, is_origin: Callable[[BaseException], bool]) -> bool:
    """Return whether *error* is what *is_origin* knows, or was raised from it; of a group, all that is in it.

    A time-out of asyncio is raised from a cancellation of its own, so that it comes of no other.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # ``raise error from error`` makes a circle
        seen.add(id(error))
        if is_origin(error):
            return True
        if isinstance(error, BaseExceptionGroup) and all(came_of(one, is_origin) for one in error.exceptions):
            return True
        if isinstance(error, TimeoutError) and isinstance(error.__cause__, asyncio.CancelledError):
            return False
        error = error.__cause__
    return False
