"""An instrument that old code has while its question is open: a transaction, and what is still owed in it.

It is the Trio side; who has it for how long is decided elsewhere.

Invariant: when it is given back no reply is owed on the connection, or the connection is made trustworthy before
anybody's next command.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator

import attrs
import outcome
import trio

from trio_daq.errors import CommandTimeoutError, DaqError
from trio_daq.legacy.host import Verbs
from trio_daq.legacy.implicit_lease import Reply
from trio_daq.sharing import ServiceNursery
from trio_daq.visa import Transaction, VisaSessionManager, canonical_resource
from trio_daq.wire import definite_block_end

_LAST_LOOK = 0.05
"""Seconds in which a reply that nobody has read is looked for, when the instrument is given back."""

_LONG = 4096
"""Bytes of text without an end, from which on more is taken to come."""


@attrs.frozen
class Piece:
    """What one read has brought.

    Attributes:
        data: The bytes.
        reply: Whether the reply ends with them; ``"enough"`` where nobody can tell.
    """

    data: bytes
    reply: Reply


class LeasedInstrument:
    """What old code has.

    Args:
        transaction: The instrument.
        nursery: For the read in hand, which outlives calls that do not wait for its end.
    """

    def __init__(self, transaction: Transaction, nursery: trio.Nursery) -> None:
        config = transaction.config
        self._transaction = transaction
        self._nursery = nursery
        self._termination = config.read_termination.encode("latin-1")
        self._is_stream = canonical_resource(config.resource).endswith("::SOCKET") or config.resource.startswith("ASRL")
        self._reading: _Reading | None = None
        self._is_unread = False
        self._inside: int | None = None

    async def write(self, data: bytes, timeout: float) -> None:
        """Write *data*. Replies to what was written before may still be read after it."""
        behind, self._is_unread = self._is_unread, True
        await self._transaction.write_raw(data, timeout, behind=behind)

    async def read(self, timeout: float, longest: float, count: int) -> Piece:
        """Return the next reply as it comes, or a piece of at least *count* bytes of it.

        Called again after a timeout it goes on waiting for the same one, which must come within *longest* seconds of
        the first call.

        Raises:
            CommandTimeoutError: If it did not come within *timeout* seconds.
            DaqError: If it cannot be read any more.
        """
        began = trio.current_time()
        if self._reading is None:
            self._reading = _Reading(self._transaction, max(timeout, longest), count, self._inside)
            self._nursery.start_soon(self._reading.run)
        reading = self._reading
        with trio.move_on_after(timeout):
            await reading.has_ended.wait()
        if reading.result is None:
            raise CommandTimeoutError(
                resource=self._transaction.resource,
                command="(a read)",
                owner=self._transaction.owner,
                phase="in_flight",
                sent="yes",
                waited=trio.current_time() - began,
            )
        self._reading = None
        data = reading.result.unwrap()
        return Piece(data, self._settle(data))

    def _settle(self, data: bytes) -> Reply:
        left = definite_block_end(data) if self._inside is None else self._inside
        left -= len(data)
        if self._is_stream and (left > 0 or (left < 0 and not data.endswith(self._termination) and len(data) >= _LONG)):
            self._inside = max(0, left)
            return "part"
        self._inside, self._is_unread = None, False
        return "enough" if self._is_stream and not (left < 0 and data.endswith(self._termination)) else "whole"

    async def forget(self) -> None:
        """See to it that a reply which was asked for and not read reaches nobody."""
        reading, self._reading = self._reading, None
        is_unread, self._is_unread, self._inside = self._is_unread, False, None
        if reading is not None:
            self._transaction.give_up()
        elif is_unread:
            with trio.CancelScope(shield=True), contextlib.suppress(DaqError):
                await self._transaction.read_raw(_LAST_LOOK)  # failing, it leaves the connection to be seen to

    def verbs(self) -> Verbs:
        """Return what can be asked for."""
        return {"write": self.write, "read": self.read, "forget": self.forget}


@contextlib.asynccontextmanager
async def lease_instrument(session: VisaSessionManager, owner: str, timeout: float) -> AsyncIterator[LeasedInstrument]:
    """Have the instrument of *session* for the length of an ``async with`` block. If that fails, a reply is owed.

    Raises:
        DaqError: As `VisaSessionManager.transaction` does.
    """
    async with session.transaction(owner, timeout) as transaction, ServiceNursery() as nursery:
        instrument = LeasedInstrument(transaction, nursery)
        try:
            yield instrument
        except BaseException:
            await instrument.forget()
            raise


class _Reading:
    """One read, which goes on when the call that began it has given up."""

    def __init__(self, transaction: Transaction, timeout: float, enough: int, inside: int | None) -> None:
        self._read = functools.partial(transaction.read_raw, timeout, enough, inside)
        self.has_ended = trio.Event()
        self.result: outcome.Outcome[bytes] | None = None

    async def run(self) -> None:
        try:
            self.result = outcome.Value(await self._read())
        except DaqError as error:
            self.result = outcome.Error(error)
        self.has_ended.set()
