"""Count durations by their order of magnitude, at next to no cost."""

from __future__ import annotations

import math


class Histogram:
    """Counts of durations, in buckets of which each is twice as wide as the one before.

    Bucket *n* counts durations below 2**n microseconds that no lower bucket counts; the last one counts the rest.
    """

    __slots__ = ("_counts",)

    BUCKETS = 28
    """The last one starts at 2**26 microseconds, 67 s: longer than any wait that makes sense here."""

    def __init__(self) -> None:
        self._counts = [0] * self.BUCKETS

    def add(self, seconds: float) -> None:
        """Count one duration."""
        bucket = int(seconds * 1e6).bit_length()
        self._counts[bucket if bucket < self.BUCKETS else -1] += 1

    def counts(self, instant: int = 0) -> dict[float, int]:
        """Return how many durations were below each bound, in seconds, and not below the bound before it.

        Args:
            instant: Durations of 0 that were counted elsewhere.
        """
        bounds = [2**bucket / 1e6 for bucket in range(self.BUCKETS - 1)] + [math.inf]
        counts = [self._counts[0] + instant, *self._counts[1:]]
        return {bound: count for bound, count in zip(bounds, counts, strict=True) if count}
