"""An instrument that old code has while its question is open: a transaction, and what is still owed in it.

It is the Trio side; who has it for how long is decided elsewhere.

Invariant: when it is given back no reply is owed on the connection, or the connection is made trustworthy before
anybody's next command.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator

import attrs
import trio

from trio_daq.errors import CommandTimeoutError, DaqError
from trio_daq.legacy.host import Verbs
from trio_daq.legacy.implicit_lease import Reply
from trio_daq.visa import AROUND_BLOCK, PendingRead, Transaction, VisaSessionManager, is_stream
from trio_daq.wire import definite_block_end

_LAST_LOOK = 0.05
"""Seconds in which a reply that nobody has read is looked for, when the instrument is given back."""

_LONG = 4096
"""Bytes without an end, from which on more is taken to come, whatever they are."""

_TEXT = frozenset(b"\t\n\r" + bytes(range(0x20, 0x7F)))


@attrs.frozen
class Piece:
    """What one read has brought.

    Attributes:
        data: The bytes.
        reply: Whether the reply ends with them; ``"enough"`` where nobody can tell, as with bytes that are no text.
    """

    data: bytes
    reply: Reply


class LeasedInstrument:
    """What old code has.

    Args:
        transaction: The instrument.
    """

    def __init__(self, transaction: Transaction) -> None:
        config = transaction.config
        self._transaction = transaction
        self._termination = config.read_termination.encode("latin-1")
        self._is_stream = is_stream(config.resource)
        self._reading: PendingRead | None = None
        self._is_unread = False
        self._owed = 0
        self._may_go_on = False
        self._head, self._count, self._is_text, self._ends, self._cut_off = b"", 0, True, 0, b""

    async def write(self, data: bytes, timeout: float, asks: int) -> None:
        """Write *data*, with so many questions. Replies to what was written before may still be read after it."""
        behind, self._is_unread = self._is_unread, True
        self._owed = self._owed + asks if behind else asks
        self._head, self._count, self._is_text, self._ends, self._cut_off = b"", 0, True, 0, b""
        await self._transaction.write_raw(data, timeout, behind=behind)

    async def read(self, timeout: float, longest: float, count: int, until: bytes) -> Piece:
        """Return what comes: a whole reply, or *count* bytes of it or more, or up to *until* or more.

        Called again after a timeout it goes on waiting for the same, which must come within *longest* seconds of the
        first call.

        Raises:
            CommandTimeoutError: If it did not come within *timeout* seconds.
            DaqError: If it cannot be read any more.
        """
        began = trio.current_time()
        if self._reading is None:
            self._reading = self._transaction.submit_read(max(timeout, longest), count, until)
        reading = self._reading
        try:
            with trio.move_on_after(timeout):
                data = await reading.wait()
                return Piece(data, self._settle(data))
        finally:
            if reading.has_ended():
                self._reading = None
        raise CommandTimeoutError(
            resource=self._transaction.resource,
            command="(a read)",
            owner=self._transaction.owner,
            phase="in_flight",
            sent="yes" if self._is_unread else "no",
            waited=trio.current_time() - began,
        )

    def _settle(self, data: bytes) -> Reply:
        """Return how much of a reply has come with *data*."""
        if not self._is_stream:
            self._is_unread = False
            return "whole"
        self._head = (self._head + data)[:AROUND_BLOCK]
        self._count += len(data)
        self._is_text = self._is_text and _TEXT.issuperset(data)
        of_block = definite_block_end(self._head)
        seen = self._cut_off + data  # a termination of two characters may come in two pieces
        self._cut_off = seen[1 - len(self._termination) :] if len(self._termination) > 1 else b""
        is_ended = self._count > of_block and seen.endswith(self._termination)
        if self._count < of_block or (not (of_block or is_ended) and (self._is_text or self._count >= _LONG)):
            return "part"
        self._ends += seen.count(self._termination) if self._is_text else is_ended
        is_whole = is_ended and (of_block > 0 or self._is_text)
        if is_whole and self._ends < self._owed:  # several were asked for in one go
            return "part"
        self._is_unread, self._may_go_on = False, not is_whole
        if is_whole:
            self._head, self._count, self._is_text, self._ends, self._owed = b"", 0, True, 0, 0
            self._cut_off = b""
        return "whole" if is_whole else "enough"

    async def read_stb(self, timeout: float) -> int:
        """Read the status byte."""
        return await self._transaction.read_stb(timeout)

    async def forget(self) -> None:
        """See to it that a reply which was asked for and not read reaches nobody."""
        reading, self._reading = self._reading, None
        is_unread, looks = self._is_unread or self._may_go_on, max(1, self._owed)
        self._is_unread, self._owed, self._may_go_on = False, 0, False
        if reading is not None and self._transaction.give_up(reading):
            return
        if is_unread:
            with trio.CancelScope(shield=True), contextlib.suppress(DaqError):
                for _ in range(looks):  # failing, it leaves the connection to be seen to
                    await self._transaction.submit_read(_LAST_LOOK, sys.maxsize, self._termination).wait()

    async def leave(self) -> None:
        """Leave nothing behind: no read that waits for what was not asked for, no rest of what had no end."""
        if self._reading is not None or self._may_go_on:
            await self.forget()

    def verbs(self) -> Verbs:
        """Return what can be asked for."""
        return {"write": self.write, "read": self.read, "read_stb": self.read_stb, "forget": self.forget}


@contextlib.asynccontextmanager
async def lease_instrument(session: VisaSessionManager, owner: str, timeout: float) -> AsyncIterator[LeasedInstrument]:
    """Have the instrument of *session* for the length of an ``async with`` block. If that fails, a reply is owed.

    Raises:
        DaqError: As `VisaSessionManager.transaction` does.
    """
    async with session.transaction(owner, timeout) as transaction:
        instrument = LeasedInstrument(transaction)
        try:
            yield instrument
        except BaseException:
            await instrument.forget()
            raise
        await instrument.leave()
