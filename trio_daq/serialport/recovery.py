"""Make a line clean again after an exchange that was left unfinished.

The steps and their progress belong to the line, not to a caller: whoever is next in line runs them on their own
deadline, and who comes after goes on where they stopped. First the rest of a half-written command is sent, since half
a command would swallow the next one. Then each station that owes a reply is asked its sync query, and all is read away
up to its answer; a question that was asked is awaited further, not asked again by the next caller. A line whose
instrument has no sync query is read away until it has been quiet for long enough.

What it promises: an instrument answers in order, so after a sync query with a number of its own no late reply reaches
anybody, however late it is. Without a sync query that holds for replies late by less than the quiet time.

Invariant: ``_owing`` holds the stations whose reply may still come; a line with one instrument has the station None.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Awaitable, Callable

import trio

from trio_daq.serialport.byte_stream import ByteStream
from trio_daq.serialport.settings import SerialPortConfig
from trio_daq.serialport.unsolicited import UnsolicitedLines
from trio_daq.wire import ReceiveBuffer, SyncQuestion, SyncSequence, Trace, printable

_log = logging.getLogger("trio_daq.serialport")

_PATIENCE = 10
"""Quiet times after which a line that still talks, or does not answer, is given up."""


RECOVERY = "recovery"
"""Its name as an owner in the trace."""


class NeverCleanError(Exception):
    """The line goes on talking, takes no bytes, or does not answer its sync query."""


class Recovery:
    """What one line still needs to become clean.

    Args:
        config: Settings of the line.
        unsolicited: Takes the lines that the instrument sends by itself.
        trace: Notes what was asked and dropped.

    Attributes:
        dropped: Bytes of late replies thrown away so far, over the life of the line.
    """

    def __init__(self, config: SerialPortConfig, unsolicited: UnsolicitedLines, trace: Trace) -> None:
        self.dropped = 0
        self._config = config
        self._quiet = config.quiet
        self._unsolicited = unsolicited
        self._trace = trace
        queries = {None: config.sync_query} if not config.stations else config.stations
        self._questions: dict[str | None, SyncSequence | None] = {
            station: None if query is None else SyncSequence(query) for station, query in queries.items()
        }
        self._owing: dict[str | None, None] = {}
        self._assumed_off: set[str | None] = set()
        self._question: SyncQuestion | None = None
        self._asked = b""
        self._asked_at = 0.0
        self._answered = self._repeats = 0
        self._read = ReceiveBuffer()
        self._unsent = b""
        self._due = self._last_byte_at = -math.inf
        self._replies = 0
        self._budget = 0.0
        self._turn = object()
        self._last_dropped = b""

    @property
    def has_unsent(self) -> bool:
        """Whether a part of a command, or of a question, has still to be sent."""
        return bool(self._unsent)

    @property
    def can_ask(self) -> bool:
        """Whether the line has a sync query, by which a doubt can be removed."""
        return None not in self._questions.values()

    def owe(self, station: str | None) -> None:
        """Note that a reply of *station* may still come. On a bus None stands for all that are not assumed off."""
        if station in self._questions:
            self._assumed_off.discard(station)
            self._owing[station] = None
        else:
            self._owing.update(dict.fromkeys(other for other in self._questions if other not in self._assumed_off))

    def assume_off(self, station: str) -> None:
        """Take it that *station* is switched off and owes nothing; it is asked again before it is used again."""
        self._owing.pop(station, None)
        self._assumed_off.add(station)
        self._question = None

    def is_assumed_off(self, station: str | None) -> bool:
        """Return whether *station* has to be asked before it is used."""
        return station in self._assumed_off

    def begin(self, unsent: bytes = b"", due: float = -math.inf, replies: int = 0) -> None:
        """Start anew: an exchange has just been left, with *unsent* the part of its command that was not written.

        What an earlier exchange left unsent is still to be sent, before that. A reply is late only after *due*, a
        Trio time: who leaves early does not make it late, so silence counts from then, or from when all *replies*
        have come.
        """
        now = trio.current_time()
        self._turn = object()
        self._due = due = max(self._due, due)
        # An instrument that echoes sends two lines for each command.
        self._replies = max(self._replies, 2 * replies if self._config.echo else replies)
        self._unsent += unsent
        self._question = None
        self._answered = self._repeats = 0
        self._read.clear()
        self._last_byte_at = max(now, due)
        self._budget = _PATIENCE * self._quiet * max(1, len(self._owing)) + self._last_byte_at - now

    def forget_unsent(self) -> None:
        """Send no rest of a command any more: the connection that had its first half is gone."""
        self._unsent = b""
        self._read.clear()

    async def run(self, stream: ByteStream) -> None:
        """Do the steps that are left. Cancellation keeps what was done.

        Raises:
            NeverCleanError: If there is no getting it clean.
            trio.BrokenResourceError: If the device hung up.
        """
        started = trio.current_time()
        turn = self._turn = object()
        self._last_dropped = b""
        try:
            # A cancellation can come late, so that more than the budget is spent.
            with trio.move_on_after(max(0.0, self._budget)):
                await self._finish_write(stream, turn)
                while self._owing:
                    station = next(iter(self._owing))
                    questions = self._questions[station]
                    if questions is None:
                        await self._drain(stream, turn)
                    else:
                        await self._synchronise(stream, turn, station, questions)
                    self._owing.pop(station, None)
                self._due, self._replies = -math.inf, 0
                return
        finally:
            self._budget -= trio.current_time() - started
        raise NeverCleanError(self._trouble())

    def _trouble(self) -> str:
        if self._unsent:
            return "it takes no bytes"
        said = f", and says {printable(self._last_dropped, 60)!r} instead" if self._last_dropped else ""
        patience = _PATIENCE * self._quiet
        if self.can_ask:
            station = next(iter(self._owing), None)
            who = "it" if station is None else f"its station {station!r}"
            asked = printable(self._asked, 60)
            return f"{who} has not answered its sync query {asked!r} for {patience:g} s{said} (is the query right?)"
        return f"it has not been quiet for {self._quiet:g} s at a time within {patience:g} s{said}"

    async def _wait(self, wait: Callable[[], Awaitable[None]], turn: object) -> None:
        await wait()
        if self._turn is not turn:  # the line was taken from us meanwhile, and its bytes are not ours any more
            raise trio.ClosedResourceError("another owner makes the line clean now")

    async def _finish_write(self, stream: ByteStream, turn: object) -> None:
        pause = self._config.char_delay
        while self._unsent:
            count = stream.write_nowait(memoryview(self._unsent)[: 1 if pause else None])
            self._unsent = self._unsent[count:]
            self._last_byte_at = max(self._last_byte_at, trio.current_time())
            if count and pause:
                await self._wait(functools.partial(trio.sleep, pause), turn)
            elif self._unsent:
                await self._wait(stream.wait_writable, turn)

    async def _drain(self, stream: ByteStream, turn: object) -> None:
        while True:
            # Lines that the instrument sends by itself do not count: it may send them for ever.
            self._drop(self._unsolicited.sift(stream.read_nowait()))
            left = self._last_byte_at + self._quiet - trio.current_time()
            if left <= 0:
                return
            with trio.move_on_after(left):
                await self._wait(stream.wait_readable, turn)

    async def _synchronise(
        self, stream: ByteStream, turn: object, station: str | None, questions: SyncSequence
    ) -> None:
        while self._answered < questions.needed and station in self._owing:
            if self._question is None:
                if self._config.min_gap:
                    await self._wait(functools.partial(trio.sleep, self._config.min_gap), turn)
                self._question = questions.ask()
                self._asked_at = trio.current_time()
                self._asked = self._question.query
                self._unsent = self._asked + self._config.write_terminator
                self._trace.note(RECOVERY, "write", self._unsent)
            await self._finish_write(stream, turn)
            # Longer each time: an instrument that is a little slower than this would otherwise never be waited for.
            patience = self._quiet * 2**self._repeats if questions.may_repeat else math.inf
            if await self._is_answered(stream, turn, self._question, self._asked_at + patience):
                self._answered += 1
                self._repeats = 0
            else:
                self._repeats += 1
            self._question = None  # if it, or its answer, was lost, it is asked again, with another number
        self._answered = 0

    async def _is_answered(self, stream: ByteStream, turn: object, question: SyncQuestion, deadline: float) -> bool:
        """Read lines up to the answer to *question*, and return whether it came before *deadline*."""
        terminator = self._config.read_terminator
        while True:
            self._read.feed(stream.read_nowait())
            while (line := self._read.take_until(terminator)) is not None:
                if question.is_answered_by(line[: -len(terminator)]):
                    self._trace.note(RECOVERY, "read", line)
                    return True
                if not self._unsolicited.claims(line):
                    self._drop(line)
            if trio.current_time() >= deadline:
                return False
            with trio.move_on_at(deadline):
                await self._wait(stream.wait_readable, turn)

    def _drop(self, late: bytes) -> None:
        if late:
            self.dropped += len(late)
            self._last_dropped = late
            self._trace.note(RECOVERY, "drop", late)
            self._replies -= late.count(self._config.read_terminator)
            now = trio.current_time()
            self._last_byte_at = max(now, self._due) if self._replies > 0 else now
            _log.info("%s: dropped %d late bytes: %r", self._config.path, len(late), late[:80])
