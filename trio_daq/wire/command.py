"""A program message with values in it, none of which can become another command.

Built with an f-string, ``f"VOLT {x}"`` turns the text ``1;OUTP ON`` into two commands, and ``inf`` into whatever the
instrument makes of it. A `Command` writes each value in the one way that IEEE 488.2-1992 has for its type, and refuses
what has none. This module knows no instrument and no dialect.

Invariant: a command has the units, headers and strings that its template has with a 0 in each place.
"""

from __future__ import annotations

import enum
import functools
import re
import string
from decimal import Decimal
from numbers import Integral, Real

import attrs

_TOKEN = re.compile(r"[A-Za-z0-9_.:/+-]+")
"""Character data, suffixes and non-quoted names (IEEE 488.2 §7.7.1, §7.7.3), and the ``:`` of ranges and headers."""

_STRING = re.compile(r"\"[^\"]*\"|'[^']*'")


def _printable_ascii(_: object, __: attrs.Attribute[str], value: str) -> None:
    if not isinstance(value, str):
        raise TypeError(f"a quoted string is text, not {value!r}")
    if not (value.isascii() and value.isprintable()):
        raise ValueError(f"a quoted string is of printable ASCII characters, and {value!r} is not")


@attrs.frozen
class Quoted:
    """Text to be sent as a string in double quotes, those in it doubled (IEEE 488.2 §7.7.5).

    Attributes:
        text: Printable ASCII; ``;``, ``?`` and ``#`` mean nothing there.

    Raises:
        TypeError: If it is no text.
        ValueError: If it has other characters.

    Example:
        >>> print(Command("DISP:TEXT {}, 1", Quoted('is "A" ready?')))
        DISP:TEXT "is ""A"" ready?", 1
    """

    text: str = attrs.field(validator=_printable_ascii)


@attrs.frozen(init=False)
class Command:
    """One program message, made of a template and the values for its places.

    Args:
        template: The message, with ``{}`` where a value goes; ``{{`` and ``}}`` stand for braces. It may hold strings,
            also with places in them, but no terminator and no block.
        *values: As many as there are places. A bool is sent as 1 or 0 (SCPI-99 §7.3; for ON and OFF give text), an
            integer as NR1, a float as the shortest decimal that is read back as the same float, a `Decimal` as it is,
            text as a word of letters, digits and ``_ . : / + -``, `Quoted` text in quotes, a member of an
            `~enum.Enum` as its value. NumPy scalars are what they are like.

    Attributes:
        text: The message, also ``str(command)``.

    Raises:
        TypeError: If a value is of another type.
        ValueError: If a value cannot be sent, is one too many or missing, or the template is no such.

    Example:
        >>> str(Command("VOLT {}, (@{})", 1.5, 101))
        'VOLT 1.5, (@101)'
        >>> Command("OUTP {}", "1;*RST")
        Traceback (most recent call last):
        ...
        ValueError: value 1 of 'OUTP {}': '1;*RST' is no single word; for free text give Quoted('1;*RST')
    """

    template: str
    values: tuple[object, ...]
    text: str

    def __init__(self, template: str, *values: object) -> None:
        literals = _literals(template)
        if len(values) != len(literals) - 1:
            raise ValueError(f"{template!r} has {len(literals) - 1} places, and {len(values)} values were given")
        text = literals[0]
        for number, (value, literal) in enumerate(zip(values, literals[1:], strict=True), 1):
            try:
                sent = _written(value)
                if sent.startswith('"') and not _takes_string(text):
                    raise ValueError("a quoted string goes after a header and white space, outside other quotes")
            except (TypeError, ValueError) as error:
                raise type(error)(f"value {number} of {template!r}: {error}") from None
            text += sent + literal
        self.__attrs_init__(template, values, text)

    def __str__(self) -> str:
        return self.text


@functools.lru_cache(maxsize=256)
def _literals(template: str) -> tuple[str, ...]:
    """Return the text before, between and after the places of *template*."""
    if not isinstance(template, str):
        raise TypeError(f"a command is text, not {template!r}")
    if "\n" in template or "\r" in template:
        raise ValueError(f"a command has no terminator in it, and {template!r} has")
    literals = [""]
    try:
        for literal, field, layout, conversion in string.Formatter().parse(template):
            literals[-1] += literal
            if field or layout or conversion:
                raise ValueError("places have no names and no formats: write {}")
            if field is not None:
                literals.append("")
    except ValueError as error:
        raise ValueError(f"the template {template!r} cannot be read: {error}") from None
    outside = _STRING.sub("", "0".join(literals))
    if "'" in outside or '"' in outside:
        raise ValueError(f"a string in {template!r} is not ended")
    if re.search(r"#[0-9(]", outside):
        raise ValueError(f"{template!r} has a block in it, and its bytes cannot be counted here: send it as it is")
    return tuple(literals)


def _takes_string(before: str) -> bool:
    """Return whether a string may follow *before*: not in a string, and not as part of a header."""
    outside = _STRING.sub("0", before)
    unit = outside.rpartition(";")[2]
    return "'" not in outside and '"' not in outside and re.search(r"[^\x00- ][\x00- ]", unit) is not None


def _written(value: object) -> str:
    if isinstance(value, enum.Enum):
        return _written(value.value)
    if type(value).__module__ == "numpy" and hasattr(value, "item"):
        value = value.item()  # numpy.bool_ is no number to Python
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, (Decimal, Real)):
        return _decimal(value)
    if isinstance(value, Quoted):
        return '"' + value.text.replace('"', '""') + '"'
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is neither a number, a bool, text, Quoted text nor a member of an Enum")
    if not _TOKEN.fullmatch(value):
        raise ValueError(f"{value!r} is no single word; for free text give Quoted({value!r})")
    return value


def _decimal(value: Decimal | Real) -> str:
    try:
        number = value if isinstance(value, Decimal) else Decimal(repr(float(value)))
    except OverflowError:
        number = Decimal("inf")
    if not number.is_finite():
        raise ValueError(
            f"{value!r} has no decimal form; SCPI-99 §7.2.1.4 and 5 write infinity as 9.9E37 and not-a-number as "
            "9.91E37: give that, or a word such as MAX, if it is meant"
        )
    return str(number)
