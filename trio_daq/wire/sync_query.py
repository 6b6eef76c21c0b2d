"""Harmless questions whose answers are known, to find out which reply belongs to which command.

An instrument answers in order. So whoever asks a question with an answer that nothing else looks like, and reads until
that answer, has read away every reply that was still owed, however late. One fixed question is not enough: if the late
reply is an answer to that very question, it is taken for the new one. So each question bears a number that was not
used before, or two questions take turns. This module does no I/O.
"""

from __future__ import annotations

import itertools
import secrets
from typing import Any

import attrs

NONCE = b"{nonce}"
"""Stands for a number that is different each time."""


def _bytes(value: Any) -> Any:
    if isinstance(value, str):
        if not value.isascii():
            raise ValueError(f"{value!r} is no ASCII text; give bytes")
        return value.encode("ascii")
    return value


def _pair(value: Any) -> Any:
    return tuple(_bytes(part) for part in value) if isinstance(value, (list, tuple)) else value


@attrs.frozen
class SyncQuery:
    """A question that changes nothing in the instrument, and what it answers. Text is taken as ASCII.

    Attributes:
        query: The question, without its terminator. ``{nonce}`` in it stands for a number that is new each time.
        answer: What the instrument answers, without its terminator; ``{nonce}`` stands for the same number.
        other: A second question and its answer, to take turns with the first where there is no ``{nonce}``.

    Example:
        >>> echo = SyncQuery("ECHO {nonce}", "{nonce}")
        >>> two = SyncQuery("*ESE?", "0", other=("*IDN?", "ACME,1"))
    """

    query: bytes = attrs.field(converter=_bytes)
    answer: bytes = attrs.field(converter=_bytes)
    other: tuple[bytes, bytes] | None = attrs.field(default=None, converter=_pair)

    def __attrs_post_init__(self) -> None:
        for name, value in (("query", self.query), ("answer", self.answer)):
            if not isinstance(value, bytes) or not value:
                raise ValueError(f"the {name} of a sync query must be at least one byte, not {value!r}")
        with_nonce = NONCE in self.query
        if with_nonce != (NONCE in self.answer):
            raise ValueError("{nonce} must stand in both the query and the answer of a sync query, or in neither")
        if with_nonce and self.other is not None:
            raise ValueError("a sync query with {nonce} needs no other")
        if not with_nonce:
            self._check_other()

    def _check_other(self) -> None:
        if self.other is None:
            raise ValueError(
                "a sync query without {nonce} needs a second question and answer as other: a late reply to the first "
                "would be taken for its answer"
            )
        pair = self.other if isinstance(self.other, tuple) else ()
        if len(pair) != 2 or not all(isinstance(part, bytes) and part for part in pair):
            raise ValueError(f"other must be a second question and its answer, not {self.other!r}")
        if any(NONCE in part for part in pair):
            raise ValueError("{nonce} must stand in the query and the answer of a sync query, not in its other")
        if self.other[1].endswith(self.answer) or self.answer.endswith(self.other[1]):
            raise ValueError("the two answers of a sync query must differ, and none may end in the other")


@attrs.frozen
class SyncQuestion:
    """One question as it is asked once.

    Attributes:
        query: What to write.
        answer: What comes back.
    """

    query: bytes
    answer: bytes

    def is_answered_by(self, line: bytes) -> bool:
        """Return whether *line*, without its terminator, is the answer, perhaps with noise in front of it.

        The question itself, sent back by an instrument that echoes, is no answer, though it may end like one.
        """
        return line.endswith(self.answer) and (not line.endswith(self.query) or self.answer.endswith(self.query))


class SyncSequence:
    """The questions that are asked of one instrument, one after the other, over all its connections."""

    def __init__(self, query: SyncQuery) -> None:
        self._query = query
        # A start at random keeps apart what two programs asked one after the other.
        self._numbers = itertools.count(secrets.randbelow(10**6))
        self._turns = itertools.cycle((True, False))

    @property
    def may_repeat(self) -> bool:
        """Whether a question may be asked again while its answer may still come: only if each has its own number."""
        return self._query.other is None

    @property
    def needed(self) -> int:
        """How many answers in a row show that nothing else is owed."""
        return 1 if self._query.other is None else 2

    def ask(self) -> SyncQuestion:
        """Return the next question."""
        if self._query.other is None:
            nonce = b"s%d" % next(self._numbers)
            return SyncQuestion(self._query.query.replace(NONCE, nonce), self._query.answer.replace(NONCE, nonce))
        if next(self._turns):
            return SyncQuestion(self._query.query, self._query.answer)
        return SyncQuestion(*self._query.other)
