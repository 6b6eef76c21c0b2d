"""An instrument that old code has while its question is open: a transaction, and what is still owed in it.

It is the Trio side; who has it for how long is decided elsewhere.

Invariant: when it is given back no reply is owed on the connection, or the connection is made trustworthy before
anybody's next command.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import outcome
import trio

from trio_daq.errors import CommandTimeoutError, DaqError
from trio_daq.legacy.host import Verbs
from trio_daq.sharing import ServiceNursery
from trio_daq.visa import Transaction, VisaSessionManager

_LAST_LOOK = 0.05
"""Seconds in which a reply that nobody has read is looked for, when the instrument is given back."""


class LeasedInstrument:
    """What old code has.

    Args:
        transaction: The instrument.
        nursery: For the read in hand, which outlives calls that do not wait for its end.
    """

    def __init__(self, transaction: Transaction, nursery: trio.Nursery) -> None:
        self._transaction = transaction
        self._nursery = nursery
        self._reading: _Reading | None = None
        self._is_unread = False

    async def write(self, data: bytes, timeout: float) -> None:
        """Write *data*. Replies to what was written before may still be read after it."""
        behind, self._is_unread = self._is_unread, True
        await self._transaction.write_raw(data, timeout, behind=behind)

    async def read(self, timeout: float, longest: float) -> bytes:
        """Return the next reply as it comes.

        Called again after a timeout it goes on waiting for the same one, which must come within *longest* seconds of
        the first call.

        Raises:
            CommandTimeoutError: If it did not come within *timeout* seconds.
            DaqError: If it cannot be read any more.
        """
        began = trio.current_time()
        if self._reading is None:
            self._reading = _Reading(self._transaction, max(timeout, longest))
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
        self._reading, self._is_unread = None, False
        return reading.result.unwrap()

    async def forget(self) -> None:
        """See to it that a reply which was asked for and not read reaches nobody."""
        reading, self._reading = self._reading, None
        is_unread, self._is_unread = self._is_unread, False
        if reading is not None:
            reading.scope.cancel()
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

    def __init__(self, transaction: Transaction, timeout: float) -> None:
        self._transaction = transaction
        self._timeout = timeout
        self.scope = trio.CancelScope()
        self.has_ended = trio.Event()
        self.result: outcome.Outcome[bytes] | None = None

    async def run(self) -> None:
        with self.scope:
            try:
                self.result = outcome.Value(await self._transaction.read_raw(self._timeout))
            except DaqError as error:
                self.result = outcome.Error(error)
        self.has_ended.set()
