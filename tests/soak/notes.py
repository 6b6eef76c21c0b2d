"""What the owners of a soak themselves write down: whom they asked for what, what they got, what they did wrong."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

NONCE_DIGITS = 6


@attrs.define
class Note:
    """One exchange, as its owner saw it.

    Attributes:
        nonce: What the query was marked with.
        owner: Who asked.
        asked: `time.monotonic_ns` when they set out to.
        ended: The same when they had a reply or had none.
        reply: What they took for the reply, as Latin-1, or None.
        error: Type of the exception they got instead, or None.
        fault: What they themselves did, or had done to them, that spoilt it, or None.
    """

    nonce: str
    owner: str
    asked: int = attrs.field(factory=time.monotonic_ns)
    ended: int = 0
    reply: str | None = None
    error: str | None = None
    fault: str | None = None

    def got(self, reply: bytes) -> None:
        """Note a reply."""
        self.reply = reply.decode("latin-1")


@attrs.define
class Notebook:
    """The notes of all owners of one run, and the numbers that mark their queries.

    Attributes:
        wanted: Exchanges to be made in all.
        notes: Those made so far, in order of asking.
        outages: When the cable was out or the instrument stopped: from, to, in `time.monotonic_ns`.
    """

    wanted: int
    notes: list[Note] = attrs.field(factory=list)
    outages: list[tuple[int, int]] = attrs.field(factory=list)
    _numbers: Iterator[int] = attrs.field(factory=lambda: itertools.count(1))

    def exchanges(self, owner: str) -> Iterator[Note]:
        """Yield a fresh note for each exchange that *owner* has to make, until all owners together made enough."""
        while (number := next(self._numbers)) <= self.wanted:
            note = Note(f"n{number:0{NONCE_DIGITS}d}", owner)
            self.notes.append(note)
            yield note
            note.ended = time.monotonic_ns()

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Note that the instrument is away for the length of the block."""
        began = time.monotonic_ns()
        yield
        self.outages.append((began, time.monotonic_ns()))
