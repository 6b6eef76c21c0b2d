"""Read the error queue of an instrument (SCPI-99 volume 2, chapter 21.8): one error a query, until it says 0.

It asks through a function it was given, and knows no connection.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

_MOST = 32
"""Errors read in a row: an instrument that never says 0 must not hold up the queue. Common queues keep 10 to 30."""

_ERROR = re.compile(r"\s*([-+]?\d+)\s*(?:[,\s]\s*(.*))?", re.DOTALL)

InstrumentErrors = list[tuple[int, str]]


class NoErrorReplyError(ValueError):
    """What came back is no error of an error queue."""

    def __init__(self, reply: bytes) -> None:
        super().__init__(f"{reply!r} is no error code and text")
        self.reply = reply


async def read_error_queue(ask: Callable[[], Awaitable[bytes]]) -> InstrumentErrors:
    """Return code and text of each error in the queue, oldest first, at most 32; *ask* gets one reply.

    Raises:
        NoErrorReplyError: If a reply does not begin with a number.
    """
    errors: InstrumentErrors = []
    while len(errors) < _MOST:
        reply = await ask()
        found = _ERROR.fullmatch(reply.decode("latin-1"))
        if found is None:
            raise NoErrorReplyError(reply)
        if int(found[1]) == 0:
            break
        errors.append((int(found[1]), (found[2] or "").strip().strip('"')))
    return errors
