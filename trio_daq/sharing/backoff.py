"""How long to wait before the next try: longer each time, and never in step with others."""

from __future__ import annotations

import random

import trio

_JITTER = 0.25
"""Each wait is longer or shorter by up to this part of it, so that devices which came back together are not all tried
in the same moment."""


class Backoff:
    """The waits between tries: doubled after each failure.

    Args:
        first: Seconds after the first failure.
        last: The longest wait, in seconds.
    """

    def __init__(self, first: float, last: float) -> None:
        self._first = first
        self._last = last
        self._next = first
        self._until = 0.0

    def failed(self) -> None:
        """Note a try that failed, now."""
        spread = 1 + _JITTER * (2 * random.random() - 1)  # noqa: S311 - it keeps no secret
        self._until = trio.current_time() + self._next * spread
        self._next = min(2 * self._next, self._last)

    def succeeded(self) -> None:
        """Note a try that succeeded: the next failure is a first one again."""
        self._next = self._first
        self._until = 0.0

    def left(self) -> float:
        """Return the seconds until the next try, 0 if it may be now."""
        return max(0.0, self._until - trio.current_time())
