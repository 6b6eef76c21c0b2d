"""Blocks: readings to bytes and back."""

import struct

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_daq.data import Reading
from trio_daq.recording.blocks import BLOCK_BYTES, channel_of, pack, unpack

# Any 64 bits, so that every NaN there is occurs.
floats = st.binary(min_size=8, max_size=8).map(lambda raw: struct.unpack("<d", raw)[0]) | st.sampled_from(
    [0.0, -0.0, float("inf"), float("-inf"), float("nan")]
)
int64 = st.integers(-(2**63), 2**63 - 1)
readings = st.builds(
    Reading,
    instrument=st.sampled_from(["dmm", "scope"]),
    channel=st.text(max_size=5),
    value=floats | st.lists(floats, max_size=5).map(tuple),
    unit=st.sampled_from(["V", "", "µm"]),
    seq=int64,
    time_ns=int64,
    monotonic_ns=int64,
    asked_ns=int64,
)


def bits(reading):
    """*reading* with its floats as bytes, since a NaN equals nothing and -0.0 equals 0.0."""
    value = reading.value
    scalar = not isinstance(value, tuple)
    raw = struct.pack("<d", value) if scalar else struct.pack(f"<{len(value)}d", *value)
    return (scalar, raw, *attrs.astuple(attrs.evolve(reading, value=0.0)))


def numbers_of(readings):
    return {channel: number for number, channel in enumerate({channel_of(one) for one in readings}, start=7)}


def channels_of(readings):
    return {number: channel for channel, number in numbers_of(readings).items()}


@given(st.lists(readings, max_size=20))
def test_readings_come_back_bit_for_bit(batch):
    """What is packed is unpacked as it was, in its order, whatever the floats."""
    back = [one for block in pack(batch, numbers_of(batch)) for one in unpack(block, channels_of(batch))]
    assert [bits(one) for one in back] == [bits(one) for one in batch]


@given(st.lists(readings, min_size=1, max_size=5), st.data())
def test_any_flipped_bit_is_noticed(batch, data):
    """A block with one bit changed, wherever it is, is refused."""
    [block] = pack(batch, numbers_of(batch))
    damaged = bytearray(block.data)
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ValueError, match="checksum"):
        unpack(attrs.evolve(block, data=bytes(damaged)), channels_of(batch))


@given(st.lists(readings, min_size=1, max_size=5), st.data())
def test_any_truncation_is_noticed(batch, data):
    """A block without its last bytes is refused."""
    [block] = pack(batch, numbers_of(batch))
    cut = data.draw(st.integers(0, len(block.data) - 1))
    with pytest.raises(ValueError, match="checksum"):
        unpack(attrs.evolve(block, data=block.data[:cut]), channels_of(batch))


def a_reading(**changes):
    given = {
        "instrument": "dmm",
        "channel": "v",
        "value": 1.0,
        "seq": 0,
        "time_ns": 0,
        "monotonic_ns": 0,
        "asked_ns": 0,
    }
    return Reading(**(given | changes))


def test_a_wrong_number_of_rows_is_noticed():
    """The number of rows is checked, although the checksum does not cover it."""
    [block] = pack([a_reading()], {("dmm", "v", ""): 1})
    with pytest.raises(ValueError, match="has 1 rows and should have 2"):
        unpack(attrs.evolve(block, rows=2), {1: ("dmm", "v", "")})


def test_a_channel_that_nobody_knows_is_named():
    """A block whose channel is not in the table is refused."""
    [block] = pack([a_reading()], {("dmm", "v", ""): 4})
    with pytest.raises(ValueError, match="channel 4"):
        unpack(block, {})


def test_long_readings_are_split_over_blocks():
    """A batch of long arrays becomes several blocks, none much above the limit; a row is never divided."""
    row = a_reading(value=[1.0] * (BLOCK_BYTES // 32))
    blocks = list(pack([row] * 10, {("dmm", "v", ""): 1}))
    assert [block.rows for block in blocks] == [4, 4, 2]
    assert max(len(block.data) for block in blocks) < 2 * BLOCK_BYTES


def test_a_number_that_does_not_fit_names_its_reading():
    """A sequence number above 64 bits is refused with the name of the instrument, not with one of struct."""
    with pytest.raises(ValueError, match="of 'dmm' cannot be stored"):
        list(pack([a_reading(seq=2**63)], {("dmm", "v", ""): 1}))
