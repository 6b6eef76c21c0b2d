"""The histogram: every duration is counted once, under the bound that belongs to it."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_daq.sharing.histogram import Histogram


def test_an_empty_one_has_no_counts():
    """Where nothing was added there is nothing to show."""
    assert Histogram().counts() == {}


@pytest.mark.parametrize(
    ("seconds", "bound"),
    [
        (0.0, 1e-6),
        (0.9e-6, 1e-6),
        (1e-6, 2e-6),
        (3e-6, 4e-6),
        (4e-6, 8e-6),
        (0.001, 0.001024),
        (1.0, 1.048576),
        (67.0, 67.108864),
        (68.0, math.inf),
        (134.0, math.inf),
        (1e9, math.inf),
    ],
)
def test_a_duration_is_counted_under_the_next_bound(seconds, bound):
    """Each duration falls under the lowest power of two of microseconds above it, a very long one under infinity."""
    histogram = Histogram()
    histogram.add(seconds)
    assert histogram.counts() == {bound: 1}


@given(st.lists(st.floats(0, 1e6), max_size=50))
def test_every_duration_is_counted_once_below_its_bound(durations):
    """The counts add up to what was added, and as many are below each bound as really are, to a nanosecond."""
    histogram = Histogram()
    for seconds in durations:
        histogram.add(seconds)
    counts = histogram.counts()
    assert sum(counts.values()) == len(durations)
    assert list(counts) == sorted(counts)
    for bound, below in zip(counts, itertools.accumulate(counts.values()), strict=True):
        assert sum(seconds < bound - 1e-9 for seconds in durations) <= below
        assert below <= sum(seconds < bound + 1e-9 for seconds in durations)
