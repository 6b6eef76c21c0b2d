"""Numbers out of replies: decimal lists, and the binary arrays in blocks.

NumPy is used where it is installed and is never needed.
"""

from __future__ import annotations

import array
import importlib
import math
import re
import sys
from collections.abc import Sequence
from typing import cast

from trio_daq.wire.block import Buffer
from trio_daq.wire.text import printable

_SPECIAL = {9.9e37: math.inf, -9.9e37: -math.inf, 9.91e37: math.nan, -9.91e37: math.nan}
"""What SCPI-99 §7.2.1.4 and §7.2.1.5 send for infinity and for not a number."""
_INTEGER = re.compile(r"#(?:[Hh](?P<h>[0-9A-Fa-f]+)|[Qq](?P<q>[0-7]+)|[Bb](?P<b>[01]+))")
_BASES = {"h": 16, "q": 8, "b": 2}
_SIZES = {"b": 1, "B": 1, "h": 2, "H": 2, "i": 4, "I": 4, "q": 8, "Q": 8, "f": 4, "d": 8}
"""Bytes of each number, by the letters of `struct` in its standard sizes."""


def parse_values(text: str) -> list[float]:
    """Return the numbers in *text*, separated by commas, or by white space alone.

    Args:
        text: A reply without its terminator. Decimal numbers (IEEE 488.2 §8.7.2 to 8.7.4: NR1, NR2, NR3), in which
            9.9E37 is infinity and 9.91E37 not a number; words that `float` knows, such as ``nan``; ``#H``, ``#Q`` and
            ``#B`` numbers.

    Raises:
        ValueError: If a piece is no number or missing; it is named.

    Example:
        >>> parse_values("+1.5E-3, 2, #H1F, 9.9E37")
        [0.0015, 2.0, 31.0, inf]
    """
    pieces = text.split(",") if "," in text else text.split()
    try:
        return [_number(piece) for piece in pieces]
    except ValueError:
        for at, piece in enumerate(pieces, 1):
            try:
                _number(piece)
            except ValueError:
                raise ValueError(f"value {at} of {len(pieces)} is no number: {printable(piece, 60)!r}") from None
        raise


def unpack_values(block: Buffer, datatype: str, big_endian: bool = False) -> Sequence[float]:
    """Return the numbers in the payload of a block: a NumPy array that shares its memory, or else an `array.array`.

    Args:
        block: The bytes. Where they may be written to, so may the NumPy array.
        datatype: A letter as in `struct`: ``b B h H i I q Q`` for integers of 1, 2, 4 and 8 bytes, upper case without
            sign; ``f`` and ``d`` for floats of 4 and 8 bytes.
        big_endian: Whether the most significant byte comes first (SCPI: ``FORM:BORD NORM``).

    Raises:
        ValueError: If there is no such type, or the bytes are no whole number of values.

    Example:
        >>> [int(value) for value in unpack_values(bytes([0, 1, 255, 255]), "h", big_endian=True)]
        [1, -1]
    """
    size = _SIZES.get(datatype)
    if size is None:
        raise ValueError(f"there is no datatype {datatype!r}; known: {' '.join(_SIZES)}")
    view = memoryview(block)
    if view.nbytes % size:
        raise ValueError(f"{view.nbytes} bytes are no whole number of values of {size} bytes ({datatype!r})")
    try:
        numpy = importlib.import_module("numpy")
    except ImportError:
        values = array.array(datatype, view.tobytes())
        if big_endian != (sys.byteorder == "big"):
            values.byteswap()
        return values
    return cast("Sequence[float]", numpy.frombuffer(view, dtype=(">" if big_endian else "<") + datatype))


def _number(piece: str) -> float:
    try:
        value = float(piece)
    except ValueError:
        return _integer(piece.strip())
    if "_" in piece or not piece.isascii():  # a number to Python, to no instrument
        raise ValueError
    return _SPECIAL.get(value, value)


def _integer(piece: str) -> float:
    match = _INTEGER.fullmatch(piece)
    if match is None or match.lastgroup is None:
        raise ValueError
    try:
        return float(int(match[match.lastgroup], _BASES[match.lastgroup]))
    except OverflowError:
        raise ValueError from None
