"""Cut a stream of bytes into messages, however the bytes were chunked.

The buffer knows nothing of where its bytes come from. Bytes leave it only as part of a whole message, so a reader
that gives up half way loses none.

Invariant: no terminator that was last asked for ends at or before ``_searched``.
"""

from __future__ import annotations


class ReceiveBuffer:
    r"""Bytes that have arrived and that nobody has taken yet.

    Example:
        >>> buffer = ReceiveBuffer()
        >>> buffer.feed(b"12.5\r"); buffer.take_until(b"\r\n")
        >>> buffer.feed(b"\n7"); buffer.take_until(b"\r\n")
        b'12.5\r\n'
        >>> bytes(buffer.peek())
        b'7'
    """

    __slots__ = ("_bytes", "_searched", "_terminator")

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._terminator: bytes | None = None
        self._searched = 0

    def __len__(self) -> int:
        return len(self._bytes)

    def feed(self, data: bytes) -> None:
        """Add bytes that arrived."""
        self._bytes += data

    def peek(self) -> bytes:
        """Return a copy of everything that waits here."""
        return bytes(self._bytes)

    def take_until(self, terminator: bytes, most: int | None = None) -> bytes | None:
        """Take the first message up to and including *terminator*, or return None if it is not complete yet.

        With *most*, that many bytes are complete, too.

        The search goes on where the last one for the same terminator ended, so a long message that arrives in many
        pieces costs linear time.

        Raises:
            ValueError: If *terminator* is empty.
        """
        if terminator != self._terminator:
            if not terminator:
                raise ValueError("a terminator needs at least one byte")
            self._terminator, self._searched = terminator, 0
        found = self._bytes.find(terminator, self._searched)
        if most is not None and len(self._bytes) >= most and not 0 <= found <= most - len(terminator):
            return self._take(most)
        if found < 0:
            self._searched = max(0, len(self._bytes) - len(terminator) + 1)
            return None
        return self._take(found + len(terminator))

    def take_exactly(self, count: int) -> bytes | None:
        """Take *count* bytes, or return None if there are fewer."""
        return self._take(count) if len(self._bytes) >= count else None

    def take_some(self, most: int) -> bytes | None:
        """Take what is there, at most *most* bytes, or return None if there is nothing."""
        return self._take(min(most, len(self._bytes))) if self._bytes else None

    def clear(self) -> bytes:
        """Throw everything away and return what it was."""
        return self._take(len(self._bytes))

    def _take(self, count: int) -> bytes:
        if count == len(self._bytes):  # the usual case: what came is one message
            taken = bytes(self._bytes)
            self._bytes.clear()
        else:
            taken = bytes(self._bytes[:count])
            del self._bytes[:count]
        self._searched = 0
        return taken
