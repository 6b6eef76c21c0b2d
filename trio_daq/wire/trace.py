"""The last messages that went over a line, always at hand when something went wrong.

Noting one costs well under a microsecond, so it is never turned off. The trace knows no I/O and interprets nothing.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Literal

import attrs

_log = logging.getLogger("trio_daq.trace")

_LAST_EXCHANGES = 200
_MESSAGES = 2 * _LAST_EXCHANGES
"""A command and its reply are two messages."""

_KEPT = 4096
"""Bytes of one message that are kept, or 400 blocks would fill the memory."""

Direction = Literal["write", "read", "drop"]
"""``drop``: bytes that came and were given to nobody."""


@attrs.frozen
class TraceEntry:
    r"""One message on a line.

    Attributes:
        monotonic_ns: `time.monotonic_ns` when it was noted.
        owner: Whose it was.
        direction: ``"write"``, ``"read"`` or ``"drop"``.
        data: Its bytes, the first 4096 of them.

    Example:
        >>> str(TraceEntry(1_500_000_000, "logger", "write", b"POS?\r\n"))
        "1.500000 logger write b'POS?\\r\\n'"
    """

    monotonic_ns: int
    owner: str
    direction: Direction
    data: bytes

    def __str__(self) -> str:
        return f"{self.monotonic_ns / 1e9:.6f} {self.owner} {self.direction} {self.data!r}"


class Trace:
    """The ring of the last 200 exchanges of one line.

    Args:
        resource: The line, for log records.
        logged: Whether each message also goes to the logger ``trio_daq.trace``, at level INFO.
    """

    __slots__ = ("_logged", "_messages", "_resource")

    def __init__(self, resource: str, logged: bool = False) -> None:
        self._resource = resource
        self._logged = logged
        self._messages: deque[tuple[int, str, Direction, bytes]] = deque(maxlen=_MESSAGES)

    def note(self, owner: str, direction: Direction, data: bytes) -> None:
        """Note one message."""
        data = data[:_KEPT]
        self._messages.append((time.monotonic_ns(), owner, direction, data))
        if self._logged:
            _log.info("%s: %s %s %r", self._resource, owner, direction, data)

    def entries(self) -> tuple[TraceEntry, ...]:
        """Return what is in the ring, oldest first."""
        return tuple(TraceEntry(*message) for message in self._messages)
