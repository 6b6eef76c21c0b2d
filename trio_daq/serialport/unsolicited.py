"""Lines that an instrument sends by itself: told apart from replies, and given to whoever wants them.

Without a pattern nothing is told apart. A subscriber that does not read loses the newest lines, never the port's time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import trio


class UnsolicitedLines:
    """The side channel of one port.

    Args:
        pattern: A regular expression for a whole line without its terminator; empty for none.
        terminator: What ends a line.

    Attributes:
        count: Lines that came so far.
        lost: Lines that a subscriber had no room for.
    """

    def __init__(self, pattern: bytes, terminator: bytes) -> None:
        self.count = 0
        self.lost = 0
        self._pattern = re.compile(pattern, re.DOTALL) if pattern else None
        self._terminator = terminator
        self._subscribers: list[trio.MemorySendChannel[bytes]] = []

    @contextmanager
    def subscribe(self, room: int) -> Iterator[trio.MemoryReceiveChannel[bytes]]:
        """Return a ``with`` block that gives the lines which come meanwhile, without their terminator."""
        send, receive = trio.open_memory_channel[bytes](room)
        self._subscribers.append(send)
        try:
            with send, receive:
                yield receive
        finally:
            self._subscribers.remove(send)

    def claims(self, message: bytes) -> bool:
        """Return whether *message*, with its terminator, is such a line; if so it is given to the subscribers."""
        if self._pattern is None or not message.endswith(self._terminator):
            return False
        line = message[: -len(self._terminator)]
        if self._pattern.fullmatch(line) is None:
            return False
        self.count += 1
        for subscriber in self._subscribers:
            try:
                subscriber.send_nowait(line)
            except (trio.WouldBlock, trio.BrokenResourceError):
                self.lost += 1
        return True

    def sift(self, data: bytes) -> bytes:
        """Return *data* without the whole lines that are such."""
        if self._pattern is None or not data:
            return data
        *lines, tail = data.split(self._terminator)
        messages = (line + self._terminator for line in lines)
        return b"".join(message for message in messages if not self.claims(message)) + tail
