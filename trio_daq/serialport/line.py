"""The line under a shared port: its bytes, its state, and the way back to clean.

It belongs to one claim at a time and knows no owners: who may use it is the port's business.

Invariants: while the state is LOST the stream, if there is one, is of no use; on a CLEAN line no byte may still come
that somebody has asked for.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Literal, TypeAlias

import trio

from trio_daq.errors import LineOpenError, LineUnusableError
from trio_daq.serialport.byte_stream import ByteStream
from trio_daq.serialport.recovery import NeverCleanError, Recovery
from trio_daq.serialport.settings import SerialPortConfig
from trio_daq.serialport.state import LineEvent, LineState, after
from trio_daq.serialport.unsolicited import UnsolicitedLines
from trio_daq.sharing import Alarm, Backoff
from trio_daq.wire import ReceiveBuffer, Trace, printable

OpenStream: TypeAlias = Callable[[SerialPortConfig], Awaitable[ByteStream]]
"""Opens the bytes under a line, as `trio_daq.sim.MemoryLine.open_stream` does for one without a device."""

_log = logging.getLogger("trio_daq.serialport")

_CLOSE_TIMEOUT = 2.0
"""Seconds for closing a line before it is opened anew."""

_LOST_CLOSE_TIMEOUT = 0.05
"""Seconds for closing a line whose device went away: its owner waits for that, and is to be told within 0.1 s."""


_IN_ORDER = (LineState.CLEAN, LineState.SUSPECT)
"""States in which nobody has to wait for the line; what a doubt costs is paid by the next command."""


_OWING = (LineEvent.OPENED, LineEvent.DOUBTED, LineEvent.INTERRUPTED)
"""What may leave a reply on its way; who used the line before we opened it may be owed one too."""


class SerialLine:
    """One physical line, opened when it is first needed.

    Attributes:
        config: Its settings.
        state: How far it can be trusted.
        buffer: Bytes that came and were not read; they survive a cancelled read.
        unsolicited: Where lines go that the instrument sends by itself.
        trace: The last messages.
        alarm: Rings at the deadline of the exchange that its owner is at; one for all owners, since only one has it.
        phase: What `make_ready` is at: ``"open"`` or ``"resync"``.
        trouble: Why it could not be opened, when it was last tried; empty if it could.
        greeted: Whether the device at the other end has been recognised since it was opened.
        in_trouble: Set while it needs attention: dirty, lost or unusable.
        looked_at: Trio time at which all that had come was last read.
        last_byte_at: Trio time of the last byte either way, kept where the settings ask for a gap.
        baud_rate: Bits per second, now.
        opens: How often it was opened.
        recoveries: How often it was made clean after something unfinished.
        unmatched: Replies that did not fit the question, and were thrown away.
        stray: Bytes that nobody had asked for and that were thrown away.
        on_change: Called when the state has changed, but for the end of it.
    """

    def __init__(self, config: SerialPortConfig, open_stream: OpenStream) -> None:
        self.config = config
        self._open_bytes = open_stream
        self.state = LineState.LOST
        self.buffer = ReceiveBuffer()
        self.unsolicited = UnsolicitedLines(config.unsolicited, config.read_terminator)
        self.trace = Trace(config.path, config.trace)
        self.alarm = Alarm(self.wake)
        self.phase: Literal["open", "resync"] = "open"
        self.trouble = ""
        self.greeted = False
        self.in_trouble = trio.Event()
        self.looked_at = self.last_byte_at = -math.inf
        self.baud_rate = config.baud_rate
        self.opens = 0
        self.recoveries = 0
        self.unmatched = 0
        self.stray = 0
        self.on_change: Callable[[], object] = lambda: None
        self._stream: ByteStream | None = None
        self._recovery = Recovery(config, self.unsolicited, self.trace)
        self._reopened = False
        self._routine = False
        self._asked_at = math.inf
        self._never_clean = ""
        # A doubt is cleared before, not by the first command: its deadline is for its own reply, not for a late one of
        # somebody else. Only who wants what came unasked gets the line as it is.
        self._handed_out = _IN_ORDER if config.on_acquire == "keep" else (LineState.CLEAN,)
        self._until_open = Backoff(first=0.05, last=2.0)
        self._until_retry = Backoff(first=1.0, last=30.0)
        self._closing = trio.Event()

    @property
    def stream(self) -> ByteStream:
        """The open stream.

        Raises:
            trio.ClosedResourceError: If there is none.
        """
        if self._stream is None:
            raise trio.ClosedResourceError(f"{self.config.path} is not open")
        return self._stream

    @property
    def closed(self) -> bool:
        """Whether it was closed for good."""
        return self._closing.is_set()

    @property
    def dropped(self) -> int:
        """Bytes of late replies that reached nobody."""
        return self._recovery.dropped

    def note(
        self,
        event: LineEvent,
        station: str | None = None,
        *,
        unsent: bytes = b"",
        due: float = -math.inf,
        replies: int = 0,
    ) -> None:
        """Move to the state that follows *event*.

        Args:
            event: What happened.
            station: Whose reply may still come; on a bus None for anybody's.
            unsent: The rest of a command that was half written.
            due: Trio time by which the reply was to come.
            replies: How many may come.
        """
        before, self.state = self.state, after(self.state, event)
        if event in _OWING:
            self._recovery.owe(station)
        if self.state is LineState.DIRTY:
            self._recovery.begin(unsent, due, replies)
        if self.state in _IN_ORDER:
            if self.in_trouble.is_set():
                self.in_trouble = trio.Event()
        else:
            self.in_trouble.set()
        if self.state is not before:
            _log.debug("%s: %s, %s -> %s", self.config.path, event.value, before.value, self.state.value)
            self.on_change()

    def catch_up(self, now: float) -> None:
        """Read what came while nobody had the line, and throw it away unless the settings say to keep it.

        Raises:
            trio.BrokenResourceError: If the device hung up meanwhile.
        """
        if came := self.stream.read_all_nowait():
            self.buffer.feed(came)
        self.looked_at = now
        if self.has_leftover() and self.config.on_acquire == "discard":
            self.doubt_input()

    def doubt_if_due(self, now: float, station: str | None) -> None:
        """Put a line in doubt that has been in use for long enough without its sync query.

        An unasked line that was taken for a reply has shifted all replies since, and nothing else shows it.
        """
        if now - self._asked_at > self.config.sync_every and self._recovery.can_ask:
            self._routine = True
            self.note(LineEvent.DOUBTED, station)

    def has_leftover(self) -> bool:
        """Return whether bytes have come that nobody read, other than lines that the instrument sends by itself."""
        if not len(self.buffer):
            return False
        self.buffer.feed(self.unsolicited.sift(self.buffer.clear()))
        return len(self.buffer) > 0

    def doubt_input(self) -> None:
        """Throw away what came unasked. Whatever sent it may send more, so the line is suspect."""
        stray = self.unsolicited.sift(self.discard_input())
        if stray:
            self.stray += len(stray)
            self.trace.note("nobody", "drop", stray)
            _log.info("%s: dropped %d bytes that nobody had asked for: %r", self.config.path, len(stray), stray[:80])
            if self.config.on_acquire == "discard":
                self.note(LineEvent.DOUBTED)

    def drop_reply(self, message: bytes) -> None:
        """Count a reply that did not fit the question of whoever has the line."""
        self.unmatched += 1
        self.trace.note("nobody", "drop", message)
        _log.info("%s: dropped a reply that does not match: %r", self.config.path, message[:80])

    def peek(self) -> bytes:
        """Return all that has come so far and is still unread. It stays."""
        self.buffer.feed(self.stream.read_all_nowait())
        return self.buffer.peek()

    def discard_input(self) -> bytes:
        """Throw away all that has come so far and return what was still unread here."""
        self.buffer.feed(self.stream.read_all_nowait())
        return self.buffer.clear()

    async def open(self) -> None:
        """Open the line if it is not: one try. Cancelled, it is not.

        Raises:
            LineOpenError: If it cannot be opened.
            trio.ClosedResourceError: If it was closed for good.
        """
        self.refuse_if_closed()
        if self.state is not LineState.LOST:
            return
        self.phase = "open"
        await self._close_stream(_LOST_CLOSE_TIMEOUT)
        try:
            self._stream = await self._open_stream()
        except LineOpenError as error:
            self.trouble = error.reason
            self._until_open.failed()
            raise
        try:
            self.refuse_if_closed()  # it may have been closed while it was being opened
        except trio.ClosedResourceError:
            await self._close_stream(_CLOSE_TIMEOUT)
            raise
        self.trouble = ""
        self._until_open.succeeded()
        self.opens += 1
        self.greeted = False
        self.baud_rate = self.config.baud_rate
        self.note(LineEvent.OPENED)

    async def wait_next_try(self) -> None:
        """Wait until it is worth while to try again to open it.

        Raises:
            trio.ClosedResourceError: If it was closed for good.
        """
        await self.pause(self._until_open.left())
        self.refuse_if_closed()

    async def pause(self, seconds: float) -> None:
        """Sleep, unless it is closed for good meanwhile."""
        with trio.move_on_after(seconds):
            await self._closing.wait()

    def is_ready_for(self, station: str | None) -> bool:
        """Return whether it can be handed out as it is, to somebody who talks to *station*."""
        return self.greeted and self.state in self._handed_out and not self._recovery.is_assumed_off(station)

    async def make_ready(self, station: str | None = None) -> None:
        """Open the line if it is not, and make it clean if it is not, anew if need be. Cancellation keeps the progress.

        For whoever has just been granted it; inside an owner's block a line is never opened.

        Args:
            station: Who is to be talked to.

        Raises:
            LineOpenError: If it cannot be opened.
            LineUnusableError: If it cannot be made clean; for a while it is not even tried again.
            trio.BrokenResourceError: If it was lost on the way.
            trio.ClosedResourceError: If it was closed for good.
        """
        await self.open()
        if self.state is LineState.UNUSABLE:
            self._refuse_before_retry()
            self.note(LineEvent.RETRIED)
        try:
            await self.make_clean(station)
        except LineUnusableError:
            if self._reopened or self._recovery.has_unsent:
                raise
            await self._reopen()
            await self.make_clean(station)

    async def make_clean(self, station: str | None = None) -> None:
        """Make the open line clean if it is not. Cancellation keeps the progress.

        Raises:
            LineUnusableError: If it cannot be made clean.
            trio.BrokenResourceError: If it was lost on the way.
            trio.ClosedResourceError: If it is not open, or another owner has it now.
        """
        self.phase = "resync"
        stream = self.stream
        if self._recovery.is_assumed_off(station):
            self.note(LineEvent.INTERRUPTED, station)
        if self.state is LineState.SUSPECT:
            if self._recovery.can_ask:
                self.note(LineEvent.QUESTIONED)
            else:
                self.discard_input()
                self.note(LineEvent.RECOVERED)
        if self.state is LineState.UNUSABLE:
            self._refuse_before_retry()
            self.note(LineEvent.RETRIED)
        if self.state is LineState.DIRTY:
            await self._recover(stream)

    def assume_off(self, station: str) -> None:
        """Take it that *station* owes nothing, since it is switched off, and do not wait before the next try."""
        self._recovery.assume_off(station)
        self._until_retry.succeeded()

    def wake(self) -> None:
        """Wake whoever waits for the line, with `trio.ClosedResourceError`; it stays open."""
        if self._stream is not None:
            self._stream.wake()

    def cut_short(self) -> bytes:
        """Forget the rest of a command that was half written, and return what ends it; nothing if there was none."""
        ending = self.config.write_terminator if self._recovery.has_unsent else b""
        self._recovery.forget_unsent()
        return ending

    def lose(self) -> None:
        """Note that the device is gone; the line can be opened again."""
        self.trouble = "it went away"
        self.note(LineEvent.HUNG_UP)
        self._until_open.failed()
        self._recovery.forget_unsent()

    async def hang_up(self) -> None:
        """Note that the device is gone and let go of its descriptor."""
        self.lose()
        await self._close_stream(_LOST_CLOSE_TIMEOUT)

    async def aclose(self, timeout: float) -> None:
        """Close the line for good. Bounded and shielded: a close that the driver holds is left to its thread."""
        self._closing.set()
        self.state = LineState.LOST
        self.in_trouble.set()
        await self._close_stream(timeout)
        self._recovery.forget_unsent()

    def refuse_if_closed(self) -> None:
        """Raise `trio.ClosedResourceError` if it was closed for good."""
        if self.closed:
            raise trio.ClosedResourceError(f"{self.config.path} was closed")

    async def _open_stream(self) -> ByteStream:
        try:
            return await self._open_bytes(self.config)
        except LineOpenError:
            raise
        except (OSError, ValueError, LookupError) as error:
            raise LineOpenError(resource=self.config.path, reason=printable(str(error))) from error

    async def _close_stream(self, timeout: float) -> None:
        stream, self._stream = self._stream, None
        self.buffer.clear()
        if stream is not None and not await stream.aclose(timeout):
            _log.warning("%s: the driver has not let it close for %g s", self.config.path, timeout)

    async def _recover(self, stream: ByteStream) -> None:
        dropped = self._recovery.dropped
        try:
            await self._recovery.run(stream)
        except NeverCleanError as error:
            self.note(LineEvent.GAVE_UP)
            self._never_clean = str(error)
            self._until_retry.failed()
            raise LineUnusableError(
                resource=self.config.path, reason=self._never_clean, retry_in=self._until_retry.left()
            ) from error
        self.buffer.clear()
        if self._routine and self._recovery.dropped > dropped:
            _log.warning(
                "%s: replies had slipped: the sync query, asked after %g s of use, found one that nobody waited for. "
                "Replies since may have reached the wrong caller; does the instrument speak unasked?",
                self.config.path,
                trio.current_time() - self._asked_at,
            )
        self._reopened = self._routine = False
        self._asked_at = self.last_byte_at = trio.current_time()
        self._until_retry.succeeded()
        self.recoveries += 1
        self.note(LineEvent.RECOVERED)

    async def _reopen(self) -> None:
        """Give the driver a new start. What is owed is still owed: a serial line remembers nothing of its opens."""
        _log.info("%s: is opened anew, since it does not become clean", self.config.path)
        self._reopened = True
        self._until_retry.succeeded()
        self.note(LineEvent.HUNG_UP)
        await self._close_stream(_CLOSE_TIMEOUT)
        await self.open()

    def _refuse_before_retry(self) -> None:
        if (retry_in := self._until_retry.left()) > 0:
            raise LineUnusableError(
                resource=self.config.path,
                reason=f"it could not be made clean before: {self._never_clean}",
                retry_in=retry_in,
            )
