"""What the owners of a soak themselves write down: whom they asked for what, what they got, what they did wrong.

An exchange with a VISA session that fails is told whether its command was sent; that is noted too, since it can be
held against the instrument's log.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from trio_daq.errors import DaqError

NONCE_DIGITS = 6


@attrs.define
class Note:
    """One exchange, as its owner saw it.

    Attributes:
        nonce: What the query was marked with.
        owner: Who asked.
        asked: `time.monotonic_ns` when they set out to.
        ended: The same when they had a reply or had none.
        reply: What they took for the reply, as Latin-1, or None; of a write that went well, the empty text.
        error: Type of the exception they got instead, or None.
        fault: What they themselves did, or had done to them, that spoilt it, or None.
        verb: What was called.
        timeout: Seconds that they gave it, None where no deadline covers the whole.
        sent: What they were told of whether it was sent, None if nothing.
        group: Nonce of the first exchange of a batch, which ends for all of them at once; else its own.
    """

    nonce: str
    owner: str
    asked: int = attrs.field(factory=time.monotonic_ns)
    ended: int = 0
    reply: str | None = None
    error: str | None = None
    fault: str | None = None
    verb: str = "query"
    timeout: float | None = None
    sent: str | None = None
    group: str = attrs.field(default=attrs.Factory(lambda self: self.nonce, takes_self=True))

    def got(self, reply: bytes) -> None:
        """Note a reply."""
        self.reply = reply.decode("latin-1")

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Note in which error of the library the block ended, and when."""
        try:
            yield
        except DaqError as error:
            self.error, self.sent = type(error).__name__, getattr(error, "sent", None)
        finally:
            self.ended = time.monotonic_ns()


@attrs.define
class Notebook:
    """The notes of all owners of one run, and the numbers that mark their queries.

    Attributes:
        wanted: Exchanges to be made in all.
        notes: Those made so far, in order of asking.
        seen: Faults that neither the instrument nor an owner can note, by kind.
        outages: When the cable was out or the instrument stopped: from, to, in `time.monotonic_ns`.
    """

    wanted: int
    notes: list[Note] = attrs.field(factory=list)
    seen: Counter[str] = attrs.field(factory=Counter)
    outages: list[tuple[int, int]] = attrs.field(factory=list)
    _numbers: Iterator[int] = attrs.field(factory=lambda: itertools.count(1))

    def new(self, owner: str) -> Note:
        """Return a fresh note for one more exchange of *owner*, whether or not enough were made."""
        return self._note(next(self._numbers), owner)

    def exchanges(self, owner: str) -> Iterator[Note]:
        """Yield a fresh note for each exchange that *owner* has to make, until all owners together made enough."""
        while (number := next(self._numbers)) <= self.wanted:
            note = self._note(number, owner)
            yield note
            note.ended = note.ended or time.monotonic_ns()

    def _note(self, number: int, owner: str) -> Note:
        note = Note(f"n{number:0{NONCE_DIGITS}d}", owner)
        self.notes.append(note)
        return note

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Note that the instrument is away for the length of the block."""
        began = time.monotonic_ns()
        yield
        self.outages.append((began, time.monotonic_ns()))
