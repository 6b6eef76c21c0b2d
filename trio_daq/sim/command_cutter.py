r"""Cut what one client sends into commands, however the bytes were chunked, and never keep a flood of them.

It knows nothing of what the commands mean.

Invariant: between two calls it keeps less than `LONGEST_COMMAND` bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from trio_daq.wire import ReceiveBuffer

LONGEST_COMMAND = 64 * 1024
"""Bytes, terminator included."""

_HEAD = 80


@attrs.frozen
class TooLong:
    """What stands in place of a command that was too long to be kept.

    Attributes:
        head: Its first bytes.
    """

    head: bytes


class CommandCutter:
    r"""The commands in a stream of bytes.

    Args:
        ends: Each of these bytes ends a command. Empty commands are skipped, so ``\r\n`` ends one, not two.

    Example:
        >>> cutter = CommandCutter(b"\r\n")
        >>> list(cutter.feed(b"POS?\r\nSHUT")), list(cutter.feed(b"?\r"))
        ([b'POS?'], [b'SHUT?'])
    """

    def __init__(self, ends: bytes) -> None:
        self._to_newline = bytes.maketrans(ends, b"\n" * len(ends))
        self._buffer = ReceiveBuffer()
        self._dropping = False

    def feed(self, data: bytes) -> Iterator[bytes | TooLong]:
        """Take bytes that arrived; yield each command that is now whole, stripped of white space.

        In place of a command that is too long it yields a `TooLong`, once, and drops it up to its end.
        """
        self._buffer.feed(data.translate(self._to_newline))
        while (line := self._buffer.take_until(b"\n")) is not None:
            if self._dropping:
                self._dropping = False
            elif len(line) > LONGEST_COMMAND:
                yield TooLong(line[:_HEAD])
            elif command := line.strip():
                yield command
        if self._dropping:
            self._buffer.clear()
        elif len(self._buffer) >= LONGEST_COMMAND:
            head = self._buffer.clear()[:_HEAD]
            self._dropping = True
            yield TooLong(head)
