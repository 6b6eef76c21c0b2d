"""Make a line clean again after an exchange that was left unfinished.

The steps and their progress belong to the line, not to a caller: whoever is next in line runs them on their own
deadline, and who comes after goes on where they stopped. First the rest of a half-written command is sent, since half
a command would swallow the next one; then the line is read away until it has been quiet for long enough.

What it promises: a reply that is late by less than the quiet time reaches nobody. A later one would.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from trio_daq.serialport.posix_stream import PosixByteStream

_log = logging.getLogger("trio_daq.serialport")

_PATIENCE = 10
"""Quiet times of listening after which a line that still talks is given up: it is no late reply any more."""


class NeverQuietError(Exception):
    """The line goes on talking, or takes no bytes."""


class Recovery:
    """What one line still needs to become clean.

    Attributes:
        dropped: Bytes of late replies thrown away so far, over the life of the line.
    """

    def __init__(self, path: str, quiet: float) -> None:
        self.dropped = 0
        self._path = path
        self._quiet = quiet
        self._unsent = b""
        self._last_byte_at = -float("inf")
        self._listened = 0.0

    def begin(self, unsent: bytes = b"") -> None:
        """Start anew: an exchange has just been left, with *unsent* the part of its command that was not written.

        What an earlier exchange left unsent is still to be sent, before that.
        """
        self._unsent += unsent
        self._last_byte_at = trio.current_time()
        self._listened = 0.0

    def forget_unsent(self) -> None:
        """Send no rest of a command any more: the connection that had its first half is gone."""
        self._unsent = b""

    async def run(self, stream: PosixByteStream) -> None:
        """Do the steps that are left. Cancellation keeps what was done.

        Raises:
            NeverQuietError: If there is no getting it clean.
            trio.BrokenResourceError: If the device hung up.
        """
        started = trio.current_time()
        # A cancellation can come late, so that more than the budget is spent.
        budget = max(0.0, _PATIENCE * self._quiet - self._listened)
        try:
            with trio.move_on_after(budget):
                await self._finish_write(stream)
                await self._drain(stream)
                return
        finally:
            self._listened += trio.current_time() - started
        raise NeverQuietError(
            "it takes no bytes" if self._unsent else f"it has not been quiet for {self._quiet:g} s at a time"
        )

    async def _finish_write(self, stream: PosixByteStream) -> None:
        while self._unsent:
            count = stream.write_nowait(memoryview(self._unsent))
            self._unsent = self._unsent[count:]
            self._last_byte_at = trio.current_time()
            if self._unsent:
                await stream.wait_writable()

    async def _drain(self, stream: PosixByteStream) -> None:
        while True:
            if late := stream.read_nowait():
                self.dropped += len(late)
                self._last_byte_at = trio.current_time()
                _log.info("%s: dropped %d late bytes: %r", self._path, len(late), late[:80])
            left = self._last_byte_at + self._quiet - trio.current_time()
            if left <= 0:
                return
            with trio.move_on_after(left):
                await stream.wait_readable()
