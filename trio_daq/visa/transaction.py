"""Several commands of one owner, between which nobody else's come.

A transaction stands in the queue like a command; when its turn has come, the worker takes orders from its own queue
until it ends. Of connections it knows only that its orders want one in common.

Invariants: from being begun until being ended it is the link's `exclusive`; it holds the link's lease inside that time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import trio

from trio_daq.errors import DaqError, GuardReleasedError, PortBusyError
from trio_daq.sharing import Claim, Done, owner_name
from trio_daq.visa.lane import Lane
from trio_daq.visa.link import VisaLink
from trio_daq.visa.order import Bond, Order, Priority, Replies
from trio_daq.visa.pending import PendingRead
from trio_daq.visa.queue import CommandQueue
from trio_daq.visa.settings import VisaSessionConfig
from trio_daq.visa.transport import Progress, Request
from trio_daq.visa.verbs import CommandVerbs


class Transaction(CommandVerbs):
    """An ``async with`` block that has an instrument to itself; made by `VisaSessionManager.transaction`.

    Its commands refuse to go on over another connection than the one over which the first of them was sent
    (`TransactionBrokenError`), and once it was taken back (`LeaseRevokedError`).

    Args:
        patron: The session.
        opened: Returns the lane and the link of the session for this owner; raises SessionClosedError if it is closed.
        config: Settings of the session.
        owner: Who has it.
        timeout: Seconds to wait for it.
        max_hold: Seconds for which it may be held, None for ever.
    """

    def __init__(
        self,
        patron: object,
        opened: Callable[[str], tuple[Lane, VisaLink]],
        config: VisaSessionConfig,
        owner: str,
        timeout: float,
        max_hold: float | None,
    ) -> None:
        self.config = config
        self.owner = owner
        self._patron = patron
        self._opened = opened
        self._lane, self._link = opened(owner)
        self._timeout = timeout
        self._max_hold = max_hold
        self._queue = CommandQueue(config.queue_size)
        self._claim: Claim | None = None
        self._bond = Bond()

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Self:
        await trio.lowlevel.checkpoint_if_cancelled()
        _, link = self._opened(self.owner)
        if self._timeout == 0:
            self._expect_free(link)
        patience = self._timeout or self.config.timeout  # free, it is still the worker who begins it
        turn = Order(link, (), ("a transaction",), self.owner, patience, work=self._begin, patron=self._patron)
        link.queue.put(turn)
        self._lane.ring()
        await turn.wait(abandon=True)
        try:
            claim = link.lease.hold(self.owner, self._timeout)
            await claim.__aenter__()
            self._claim = claim
            claim.on_revoked = self._end
            if self._max_hold is not None:
                claim.limit_hold(self._max_hold)
        except BaseException:
            self._end()
            raise
        return self

    def submit_read(self, timeout: float, enough: int = 1, until: bytes = b"") -> PendingRead:
        """Have what was written before be answered, and the answer be read as it comes.

        Where the instrument marks the end of a reply, all of it is read; on a stream (raw sockets, serial ports) as
        much as is wanted, and what has come besides. Wait for what is returned, as often as it takes; if its reading
        fails, the connection is made trustworthy before anybody's next command.

        Args:
            timeout: Seconds in which it must come.
            enough: So many bytes are enough.
            until: These bytes are enough, too.

        Raises:
            DaqError: As `submit` does.
        """
        request = Request(b"", "raw", enough=enough, until=until)
        order = self._new_order([request], ["(a read)"], self.owner, timeout, "normal", None)
        self._put(order, wait=False)
        return PendingRead(order)

    def give_up(self) -> None:
        """Give up the command in flight, if it is of this transaction, and do not wait for what may still come."""
        in_flight = self._link.in_flight
        if in_flight is not None and in_flight.bond is self._bond:
            in_flight.abandon()
            self._link.give_up()

    @trio.lowlevel.enable_ki_protection
    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Done[bool]:
        assert self._claim is not None
        try:
            return self._claim.__aexit__(kind, error, traceback)
        finally:
            self._end()

    def _expect_free(self, link: VisaLink) -> None:
        """Refuse what would have to wait, for an owner who does not want to."""
        holder, held_for = link.lease.holder, link.lease.held_for
        if holder is None and link.in_flight is not None:
            holder, held_for = link.in_flight.owner, trio.current_time() - link.begun_at
        if holder is not None or link.queue:
            raise PortBusyError(
                resource=link.resource,
                wanted_by=self.owner,
                held_by=holder,
                held_for=held_for,
                waiting=len(link.queue),
            )

    async def _begin(self, _: Order) -> Replies:
        self._link.exclusive = self._queue
        return []

    def _end(self) -> None:
        link = self._link
        for order in self._queue:
            order.fail(self._refusal(order))
        if link.exclusive is self._queue:
            link.exclusive = None
            in_flight = link.in_flight
            # To reconnect, which anybody may meanwhile, is not its own.
            is_mine = in_flight is not None and in_flight.bond is self._bond
            if in_flight is not None and is_mine and self._claim is not None and self._claim.revoked is not None:
                in_flight.fail(self._refusal(in_flight))
                link.hurry()
        self._lane.ring()

    def _refusal(self, order: Order) -> DaqError:
        """Return the error of an order that comes, or is left, when the transaction is over."""
        if self._claim is not None and self._claim.revoked is not None:
            return self._claim.revocation(repr(order.text), order.sent)
        return GuardReleasedError(resource=self.resource, owner=self.owner, action=repr(order.text), sent=order.sent)

    def _put(self, order: Order, *, wait: bool) -> None:
        if self._claim is None or not self._claim.alive:
            raise self._refusal(order)
        self._opened(order.owner)
        if wait:
            self._queue.put(order)
        else:
            self._queue.put_nowait(order, order.owner)
        self._lane.ring()

    def _owner(self, given: str | None) -> str:
        return self.owner if given is None else owner_name(given)

    def _new_order(
        self,
        requests: Sequence[Request],
        texts: Sequence[str],
        owner: str,
        timeout: float,
        priority: Priority,
        progress: Progress | None,
    ) -> Order:
        return Order(
            self._link,
            requests,
            texts,
            owner,
            timeout,
            priority,
            work=self._link.carry_out,
            patron=self._patron,
            bond=self._bond,
            progress=progress,
        )
