"""Pack readings into blocks of bytes with a checksum, and blocks back into readings, bit for bit.

It knows no file and no database: a channel is a number here, and somebody else keeps what the numbers mean.

A block is a row for each reading, one after the other, all little-endian and without padding::

    uint32   channel number
    int32    -1 for a scalar, else the length of the array
    int64    seq
    int64    time_ns
    int64    monotonic_ns
    int64    asked_ns
    float64  the value, or as many as the array is long

Its checksum is the CRC-32 of all these bytes. A float64 is copied, never computed with, so the payload of a NaN and
the sign of a zero come back.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

import attrs

from trio_daq.data import Reading, Value

BLOCK_BYTES = 1 << 20
"""A block is closed once it is this long: long arrays must not make a block that SQLite refuses (1e9 bytes)."""

_HEADER = struct.Struct("<Iiqqqq")
_SCALAR = struct.Struct("<Iiqqqqd")
_FLOAT_BYTES = 8

Channel: TypeAlias = tuple[str, str, str]
"""Instrument, channel and unit: what a channel number stands for."""


@attrs.frozen
class Block:
    """Some readings as bytes.

    Attributes:
        rows: How many readings.
        crc: CRC-32 of *data*.
        data: The rows.
    """

    rows: int
    crc: int
    data: bytes


def channel_of(reading: Reading) -> Channel:
    """Return what a channel number has to stand for, if *reading* is to be packed."""
    return reading.instrument, reading.channel, reading.unit


def pack(readings: Iterable[Reading], numbers: Mapping[Channel, int]) -> Iterator[Block]:
    """Pack *readings*, in their order, into one block, or more if they are long.

    Args:
        readings: What to pack.
        numbers: The number of every channel that occurs.

    Raises:
        ValueError: If a number of a reading does not fit into 64 bits.
    """
    rows = size = 0
    parts: list[bytes] = []
    for reading in readings:
        row = _row(reading, numbers[channel_of(reading)])
        parts.append(row)
        rows += 1
        size += len(row)
        if size >= BLOCK_BYTES:
            yield _block(rows, parts)
            rows = size = 0
            parts = []
    if rows:
        yield _block(rows, parts)


def unpack(block: Block, channels: Mapping[int, Channel]) -> list[Reading]:
    """Return the readings of *block*.

    Args:
        block: What `pack` made.
        channels: What each channel number stands for.

    Raises:
        ValueError: If the block is not as it was packed, or a channel is missing.
    """
    data = block.data
    if zlib.crc32(data) != block.crc:
        raise ValueError("its checksum is wrong")
    readings: list[Reading] = []
    at = 0
    try:
        while at < len(data):
            number, length, seq, time_ns, monotonic_ns, asked_ns = _HEADER.unpack_from(data, at)
            at += _HEADER.size
            floats = struct.unpack_from(f"<{abs(length)}d", data, at)
            at += _FLOAT_BYTES * len(floats)
            value: Value = floats[0] if length == -1 else floats
            instrument, channel, unit = channels[number]
            readings.append(
                Reading(
                    instrument=instrument,
                    channel=channel,
                    value=value,
                    unit=unit,
                    seq=seq,
                    time_ns=time_ns,
                    monotonic_ns=monotonic_ns,
                    asked_ns=asked_ns,
                )
            )
    except struct.error as error:
        raise ValueError(f"its row {len(readings) + 1} is cut off") from error
    except KeyError as error:
        raise ValueError(f"it names channel {error}, which the file does not have") from error
    if len(readings) != block.rows:
        raise ValueError(f"it has {len(readings)} rows and should have {block.rows}")
    return readings


def _row(reading: Reading, number: int) -> bytes:
    value = reading.value
    try:
        if not isinstance(value, tuple):
            return _SCALAR.pack(number, -1, reading.seq, reading.time_ns, reading.monotonic_ns, reading.asked_ns, value)
        header = _HEADER.pack(number, len(value), reading.seq, reading.time_ns, reading.monotonic_ns, reading.asked_ns)
        return header + struct.pack(f"<{len(value)}d", *value)
    except struct.error as error:
        raise ValueError(f"reading {reading.seq} of {reading.instrument!r} cannot be stored: {error}") from error


def _block(rows: int, parts: list[bytes]) -> Block:
    data = b"".join(parts)
    return Block(rows, zlib.crc32(data), data)
