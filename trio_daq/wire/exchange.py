"""A command, or a query and what its reply must look like, as plain data.

It is what a settings file can say of an instrument: how to recognise it, what to tell it when it comes back. This
module does no I/O.
"""

from __future__ import annotations

import re
from typing import Any

import attrs


def _bytes(value: Any) -> Any:
    if isinstance(value, str):
        if not value.isascii():
            raise ValueError(f"{value!r} is no ASCII text; give bytes")
        return value.encode("ascii")
    return value


def check_pattern(name: str, pattern: bytes) -> None:
    """Refuse bytes that are no regular expression.

    Raises:
        TypeError: If *pattern* is no bytes.
        ValueError: If it cannot be compiled.
    """
    if not isinstance(pattern, bytes):
        raise TypeError(f"{name} is bytes, not {pattern!r}")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{name} must be a regular expression, and {pattern!r} is none: {error}") from None


@attrs.frozen(kw_only=True)
class Exchange:
    """One step of a talk with an instrument: either ``write`` or ``query``. Text is taken as ASCII.

    Attributes:
        write: A command that is not answered, without its terminator.
        query: A command that is answered, without its terminator.
        expect: A regular expression that the whole reply must match; empty accepts any.

    Example:
        >>> closed = Exchange(query="SHUT?", expect="0")
        >>> closed.accepts(b"0"), closed.accepts(b"01")
        (True, False)
    """

    write: bytes = attrs.field(default=b"", converter=_bytes)
    query: bytes = attrs.field(default=b"", converter=_bytes)
    expect: bytes = attrs.field(default=b"", converter=_bytes)

    def __attrs_post_init__(self) -> None:
        for name in ("write", "query"):
            if not isinstance(getattr(self, name), bytes):
                raise TypeError(f"{name} is text or bytes, not {getattr(self, name)!r}")
        if bool(self.write) == bool(self.query):
            raise ValueError("a step is either a write or a query: give one of them")
        if self.expect and not self.query:
            raise ValueError("a write is not answered, so there is nothing to expect; make it a query")
        check_pattern("expect", self.expect)

    def accepts(self, reply: bytes) -> bool:
        """Return whether *reply*, without its terminator, is what was expected."""
        return not self.expect or re.fullmatch(self.expect, reply, re.DOTALL) is not None
