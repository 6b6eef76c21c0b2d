"""What a reading takes for a value, and that it comes back bit for bit."""

import math
import struct
from decimal import Decimal
from fractions import Fraction

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_daq.data import Reading


def a_reading(value):
    return Reading(instrument="dmm", channel="v", value=value, seq=0, time_ns=0, monotonic_ns=0, asked_ns=0)


def bits(value):
    return struct.pack("<d", value)


class Scalar(float):
    """A float of a library's own, such as numpy.float64."""

    def tolist(self):
        return float(self)


class Array:
    """Something with ``tolist``, such as a numpy scalar or array."""

    def __init__(self, content):
        self.content = content

    def tolist(self):
        return self.content


# Any 64 bits, so that every NaN there is occurs.
floats = st.binary(min_size=8, max_size=8).map(lambda raw: struct.unpack("<d", raw)[0])


@given(floats | st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 5e-324]))
def test_a_float_is_kept_bit_for_bit(value):
    """NaN with its payload, the infinities, -0.0 and denormals are kept as they are, alone and in a row."""
    assert bits(a_reading(value).value) == bits(value)
    assert bits(a_reading([1.0, value]).value[1]) == bits(value)


@given(st.integers(-(2**53), 2**53))
def test_a_whole_number_up_to_2_to_the_53_is_exact(value):
    """Whole numbers that a double can hold become that double."""
    stored = a_reading(value).value
    assert type(stored) is float
    assert int(stored) == value


@pytest.mark.parametrize("value", [2**53 + 1, -(2**53) - 1, 10**30, 10**400], ids=["above", "below", "large", "huge"])
def test_a_whole_number_that_would_be_rounded_is_refused(value):
    """Above 2**53 a whole number raises, alone, in a row, and out of an array, instead of being rounded."""
    for given_value in (value, [1, value], Array(value), Array([value])):
        with pytest.raises(ValueError, match=r"2\*\*53"):
            a_reading(given_value)


@pytest.mark.parametrize("value", [True, False, "1.5", b"1.5", None, 1j, object(), {"a": 1}, [1, "2"], [True], [None]])
def test_what_is_no_number_is_refused(value):
    """Booleans, text, bytes, None and complex numbers raise a TypeError, alone, in a row, and out of an array."""
    for given_value in (value, [value], Array(value)):
        with pytest.raises(TypeError):
            a_reading(given_value)


def test_a_table_is_refused():
    """More than one dimension raises a TypeError."""
    with pytest.raises(TypeError):
        a_reading([[1.0, 2.0], [3.0, 4.0]])
    with pytest.raises(TypeError):
        a_reading(Array([[1.0], [2.0]]))


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ([1, 2.5], (1.0, 2.5)),
        ((1, 2), (1.0, 2.0)),
        (range(3), (0.0, 1.0, 2.0)),
        ((number for number in (1, 2)), (1.0, 2.0)),
        ([], ()),
        (Array(2.5), 2.5),
        (Array(3), 3.0),
        (Array([1, 2.5]), (1.0, 2.5)),
        (Scalar(1.5), 1.5),
        ([Scalar(1.5)], (1.5,)),
        (Decimal("0.5"), 0.5),
        (Fraction(1, 4), 0.25),
    ],
    ids=lambda value: type(value).__name__,
)
def test_numbers_of_all_kinds_become_floats(value, stored):
    """Sequences, iterators, numpy-like scalars and arrays, decimals and fractions become plain floats or tuples."""
    found = a_reading(value).value
    assert found == stored
    assert type(found) is type(stored)
    assert all(type(one) is float for one in (found if isinstance(found, tuple) else [found]))


def test_a_reading_is_never_changed():
    """A reading is a value: it cannot be set, equal ones are equal, and it can be a key."""
    reading = a_reading(1.0)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        reading.value = 2.0
    assert {reading: 1}[a_reading(1)] == 1


def test_a_list_given_can_change_without_changing_the_reading():
    """A row is copied, so a buffer that is used again does not change what was published."""
    row = [1.0, 2.0]
    reading = a_reading(row)
    row[0] = 9.0
    assert reading.value == (1.0, 2.0)
