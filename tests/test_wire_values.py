"""Numbers out of replies, decimal and binary, with NumPy and without."""

import array
import math
import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_daq.wire import parse_values, unpack_values

TYPES = {"b": 8, "B": 8, "h": 16, "H": 16, "i": 32, "I": 32, "q": 64, "Q": 64, "f": 32, "d": 64}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", []),
        (" \r\n", []),
        ("1", [1.0]),
        ("1,2,3", [1.0, 2.0, 3.0]),
        ("+1.5E-3, -.5 ,2.\n", [0.0015, -0.5, 2.0]),
        ("1 2\t3\n4", [1.0, 2.0, 3.0, 4.0]),
        ("1e3,1E+3", [1000.0, 1000.0]),
        ("9.9E37,-9.9E37,+9.900000E+37", [math.inf, -math.inf, math.inf]),
        ("9.89E37", [9.89e37]),
        ("inf,-INF", [math.inf, -math.inf]),
        ("#H1F,#h1f, #Q17,#B101", [31.0, 31.0, 15.0, 5.0]),
    ],
)
def test_a_list_of_numbers_is_read(text, values):
    """Every form that IEEE 488.2 has for a number, separated by commas or white space."""
    assert parse_values(text) == values


@pytest.mark.parametrize("text", ["9.91E37", "-9.91E37", "+9.910000E+37", "nan", "NAN"])
def test_not_a_number_is_read(text):
    """SCPI sends it as 9.91E37."""
    (value,) = parse_values(text)
    assert math.isnan(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2,", "value 3 of 3 is no number: ''"),
        (",", "value 1 of 2 is no number: ''"),
        ("1,,2", "value 2 of 3 is no number: ''"),
        ("1,2 3", "value 2 of 2 is no number: '2 3'"),
        ("1;2", "value 1 of 1 is no number: '1;2'"),
        ("1.5V", "value 1 of 1 is no number: '1.5V'"),
        ('1,"2"', "value 2 of 2 is no number: '\"2\"'"),
        ("1_000", "value 1 of 1 is no number: '1_000'"),
        ("٣", "value 1 of 1 is no number: '٣'"),
        ("#HXY", "value 1 of 1 is no number: '#HXY'"),
        ("#Q8", "value 1 of 1 is no number: '#Q8'"),
        ("#B2", "value 1 of 1 is no number: '#B2'"),
        ("#H", "value 1 of 1 is no number: '#H'"),
        ("#H-1", "value 1 of 1 is no number: '#H-1'"),
        ("#15hello", "value 1 of 1 is no number: '#15hello'"),
        ("1,\x1b[2J", r"value 2 of 2 is no number: '\\x1b[2J'"),
    ],
)
def test_the_piece_that_is_no_number_is_named(text, message):
    """Also where it is missing: a reply that was cut is not taken for a shorter list."""
    with pytest.raises(ValueError, match="value") as caught:
        parse_values(text)
    assert str(caught.value) == message


def test_a_number_beyond_every_float_is_no_number():
    """A thousand hexadecimal digits are refused like any other piece."""
    with pytest.raises(ValueError, match="value 2 of 2 is no number"):
        parse_values("1,#H" + "F" * 1000)


@given(st.text(max_size=30) | st.text(st.sampled_from("0123456789+-.eE#HQBFnaif_, \n"), max_size=30))
def test_no_text_is_too_strange(text):
    """Whatever the text, there are floats or a `ValueError`."""
    try:
        values = parse_values(text)
    except ValueError:
        return
    assert all(type(value) is float for value in values)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False).filter(lambda value: abs(value) < 9.9e37)))
def test_floats_come_back_exactly(values):
    """What was printed with all its digits is read as the very same floats."""
    assert parse_values(",".join(map(repr, values))) == values
    assert parse_values(" ".join(map(repr, values))) == values


rows = st.sampled_from(sorted(TYPES)).flatmap(
    lambda letter: st.tuples(
        st.just(letter),
        st.lists(
            st.floats(width=TYPES[letter], allow_nan=False)
            if letter in "fd"
            else st.integers(0, 2 ** TYPES[letter] - 1)
            if letter.isupper()
            else st.integers(-(2 ** (TYPES[letter] - 1)), 2 ** (TYPES[letter] - 1) - 1)
        ),
    )
)


@given(rows, st.booleans())
def test_a_block_of_numbers_is_read(row, big_endian):
    """Each type in each byte order, from bytes or from memory that may be written to, with NumPy if it is there."""
    letter, values = row
    block = struct.pack(f"{'>' if big_endian else '<'}{len(values)}{letter}", *values)
    for buffer in (block, bytearray(block), memoryview(block)):
        assert list(unpack_values(buffer, letter, big_endian)) == values


@pytest.mark.parametrize("letter", sorted(TYPES))
def test_a_number_has_its_standard_size(letter):
    """One value of 8, 16, 32 or 64 bits, on every machine; a part of one is refused in words."""
    size = TYPES[letter] // 8
    assert len(unpack_values(bytes(size), letter)) == 1
    with pytest.raises(ValueError, match=f"{size + 1} bytes are no whole" if size > 1 else "no datatype"):
        unpack_values(bytes(size + 1), letter if size > 1 else "x")


@pytest.mark.parametrize("letter", ["", "x", "l", "hh", ">h", "ascii", "O"])
def test_an_unknown_datatype_is_refused(letter):
    """The error lists those that there are; no type that holds Python objects gets to NumPy."""
    with pytest.raises(ValueError, match="known: b B h H i I q Q f d"):
        unpack_values(bytes(8), letter)


def test_without_numpy_there_is_an_array(monkeypatch):
    """Where NumPy cannot be imported, the values are an `array.array` that shares nothing with the block."""
    monkeypatch.setitem(sys.modules, "numpy", None)
    block = bytearray(b"\x00\x01\x00\x02")
    values = unpack_values(block, "h", big_endian=True)
    assert values == array.array("h", [1, 2])
    block[0] = 255
    assert list(values) == [1, 2]


def test_a_numpy_array_is_no_copy():
    """It shares the memory of the block, and may be written to if that may."""
    numpy = pytest.importorskip("numpy")
    block = bytearray(b"\x00\x01\x00\x02")
    values = unpack_values(block, "h", big_endian=True)
    assert isinstance(values, numpy.ndarray)
    assert values.dtype == numpy.dtype(">i2")
    block[0] = 1
    assert values.tolist() == [257, 2]
    values[1] = 3
    assert block == b"\x01\x01\x00\x03"
    assert not unpack_values(b"\x00\x01", "h").flags.writeable
    assert len(unpack_values(b"", "d")) == 0
