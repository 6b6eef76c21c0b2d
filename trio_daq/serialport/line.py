"""The line under a shared port: its bytes, its state, and the way back to clean.

It belongs to one claim at a time and knows no owners: who may use it is the port's business.

Invariant: the state is LOST exactly while there is no open stream.
"""

from __future__ import annotations

import logging
import math
import os
from typing import TYPE_CHECKING, Literal

import trio

from trio_daq.errors import LineOpenError, LineUnusableError
from trio_daq.serialport.open_errors import explain_open_failure
from trio_daq.serialport.recovery import NeverCleanError, Recovery
from trio_daq.serialport.settings import SerialPortConfig
from trio_daq.serialport.state import LineEvent, LineState, after
from trio_daq.sharing import Alarm
from trio_daq.wire import ReceiveBuffer

if TYPE_CHECKING:
    from trio_daq.serialport.posix_stream import PosixByteStream

_log = logging.getLogger("trio_daq.serialport")

_FIRST_RETRY, _LAST_RETRY = 1.0, 30.0
"""Seconds between tries to make an unusable line clean: doubled each time, up to the last."""


class SerialLine:
    """One physical line, opened when it is first needed.

    Attributes:
        config: Its settings.
        state: How far it can be trusted.
        buffer: Bytes that came and were not read; they survive a cancelled read.
        alarm: Rings at the deadline of the exchange that its owner is at; one for all owners, since only one has it.
        phase: What `make_ready` is at: ``"open"`` or ``"resync"``.
        closed: Whether it was closed for good.
        opens: How often it was opened.
        recoveries: How often it was made clean after something unfinished.
    """

    def __init__(self, config: SerialPortConfig) -> None:
        self.config = config
        self.state = LineState.LOST
        self.buffer = ReceiveBuffer()
        self.alarm = Alarm(self.wake)
        self.phase: Literal["open", "resync"] = "open"
        self.closed = False
        self.opens = 0
        self.recoveries = 0
        self._stream: PosixByteStream | None = None
        self._recovery = Recovery(config)
        self._retry_at = 0.0
        self._retry_after = _FIRST_RETRY

    @property
    def stream(self) -> PosixByteStream:
        """The open stream.

        Raises:
            trio.ClosedResourceError: If there is none.
        """
        if self._stream is None:
            raise trio.ClosedResourceError(f"{self.config.path} is not open")
        return self._stream

    @property
    def dropped(self) -> int:
        """Bytes of late replies that reached nobody."""
        return self._recovery.dropped

    def note(self, event: LineEvent, unsent: bytes = b"", due: float = -math.inf) -> None:
        """Move to the state that follows *event*.

        Args:
            event: What happened.
            unsent: The rest of a command that was half written.
            due: Trio time by which its reply was to come.
        """
        before, self.state = self.state, after(self.state, event)
        if self.state is LineState.DIRTY:
            self._recovery.begin(unsent, due)
        if before is not self.state:
            _log.debug("%s: %s, so it is %s", self.config.path, event.value, self.state.value)

    def catch_up(self) -> None:
        """Take in what came while nobody looked, and throw it away if the settings say so.

        Raises:
            trio.BrokenResourceError: If the device hung up meanwhile.
        """
        self.buffer.feed(self.stream.read_all_nowait())
        if self.config.on_acquire == "discard":
            self.buffer.clear()

    def discard_input(self) -> bytes:
        """Throw away all that has come so far and return what was still unread here."""
        self.buffer.feed(self.stream.read_all_nowait())
        return self.buffer.clear()

    async def open(self) -> None:
        """Open the line if it is not. Cancelled, it is not.

        Raises:
            LineOpenError: If it cannot be opened.
            trio.ClosedResourceError: If it was closed for good.
        """
        self._refuse_if_closed()
        if self.state is not LineState.LOST:
            return
        self.phase = "open"
        if os.name != "posix":
            raise LineOpenError(resource=self.config.path, reason="this platform is not supported yet")
        from trio_daq.serialport.posix_stream import open_posix_stream

        try:
            self._stream = await open_posix_stream(self.config)
        except LookupError as error:
            raise LineOpenError(resource=self.config.path, reason=str(error)) from error
        except ValueError as error:  # pyserial's word for a setting that the driver refuses
            raise LineOpenError(resource=self.config.path, reason=f"a setting is refused: {error}") from error
        except OSError as error:
            raise explain_open_failure(self.config.path, error) from error
        try:
            self._refuse_if_closed()  # it may have been closed while it was being opened
        except trio.ClosedResourceError:
            await self._close_stream(timeout=2.0)
            raise
        self.opens += 1
        self.note(LineEvent.OPENED)

    async def make_ready(self) -> None:
        """Open the line if it is not, and make it clean if it is not. Cancellation keeps the progress.

        Raises:
            LineOpenError: If it cannot be opened.
            LineUnusableError: If it cannot be made clean; for a while it is not even tried again.
            trio.BrokenResourceError: If it was lost on the way.
            trio.ClosedResourceError: If it was closed for good.
        """
        await self.open()
        self.phase = "resync"
        if self.state is LineState.UNUSABLE:
            self._refuse_before_retry()
            self.note(LineEvent.RETRIED)
        if self.state is LineState.DIRTY:
            await self._recover()

    def wake(self) -> None:
        """Wake whoever waits for the line, with `trio.ClosedResourceError`; it stays open."""
        if self._stream is not None:
            self._stream.wake()

    async def hang_up(self) -> None:
        """Note that the device is gone and let go of its descriptor; the line can be opened again."""
        self.note(LineEvent.HUNG_UP)
        await self._close_stream(timeout=2.0)

    async def aclose(self, timeout: float) -> None:
        """Close the line for good. Bounded and shielded: a close that the driver holds is left to its thread."""
        self.closed = True
        self.state = LineState.LOST
        await self._close_stream(timeout)

    async def _close_stream(self, timeout: float) -> None:
        stream, self._stream = self._stream, None
        self.buffer.clear()
        self._recovery.forget_unsent()
        if stream is not None and not await stream.aclose(timeout):
            _log.warning("%s: the driver has not let it close for %g s", self.config.path, timeout)

    async def _recover(self) -> None:
        try:
            await self._recovery.run(self.stream)
        except NeverCleanError as error:
            self.note(LineEvent.GAVE_UP)
            self._retry_at = trio.current_time() + self._retry_after
            retry_in, self._retry_after = self._retry_after, min(2 * self._retry_after, _LAST_RETRY)
            raise LineUnusableError(resource=self.config.path, reason=str(error), retry_in=retry_in) from error
        self.buffer.clear()
        self._retry_after = _FIRST_RETRY
        self.recoveries += 1
        self.note(LineEvent.RECOVERED)

    def _refuse_before_retry(self) -> None:
        retry_in = self._retry_at - trio.current_time()
        if retry_in > 0:
            raise LineUnusableError(
                resource=self.config.path, reason="it could not be made clean before", retry_in=retry_in
            )

    def _refuse_if_closed(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError(f"{self.config.path} was closed")
