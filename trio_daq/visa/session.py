"""The one way to a VISA instrument that many tasks use: a queue, and a worker that carries out what is in it.

Sessions of one resource share its link and its lane; each has its own life, its own owners and its own default
deadline. What goes over the connection is decided elsewhere: here is only who may put an order, and until when.

Invariants: a session takes orders exactly between having been opened and being stopped; each of its orders has ended
when it is closed; the link is closed with its last session.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Literal, Self

import attrs
import trio

from trio_daq.errors import SessionClosedError
from trio_daq.sharing import (
    LineKind,
    SafeStateResult,
    ServiceNursery,
    checked_timeout,
    close_and_leave,
    owner_name,
    to_the_end,
)
from trio_daq.visa.emergency import SAFE_TIMEOUT, make_link_safe, talk_over
from trio_daq.visa.lane import Lane
from trio_daq.visa.link import CLOSE_TIMEOUT, VisaLink
from trio_daq.visa.opening import MakeTransport, make_transport
from trio_daq.visa.order import Order, Priority, Replies
from trio_daq.visa.registry import is_shared, join, leave
from trio_daq.visa.resource_name import canonical_resource
from trio_daq.visa.settings import VisaSessionConfig
from trio_daq.visa.statistics import SessionStatistics, Tally
from trio_daq.visa.transaction import Transaction
from trio_daq.visa.transport import Progress, Request
from trio_daq.visa.verbs import CommandVerbs
from trio_daq.wire import TraceEntry

_log = logging.getLogger("trio_daq.visa")

_OPENING = 2.0
"""Times the session's timeout that opening may take: to connect, and to get the first answers."""

_CLOSE_TIMEOUT = 2.0
"""Seconds that the command in flight has to end when the session is closed."""


class VisaSessionManager(CommandVerbs):
    """The one way to an instrument that many tasks use.

    Used alone it is an ``async with`` block; a manager runs `serve` in a nursery of its own instead. Two of the same
    resource share one worker, whatever they call it.

    Args:
        config: Its settings, or just the VISA resource name.
        timeout: Overrides the settings: seconds for each command that names no deadline.
        make_transport: Makes the connection, which is not open yet; by default the one that the settings ask for.

    Example::

        async with VisaSessionManager("TCPIP::192.168.1.100::5025::SOCKET", timeout=2.0) as dmm:
            print(await dmm.enqueue_command("*IDN?", owner="v2_logger"))
    """

    def __init__(
        self,
        config: VisaSessionConfig | str,
        timeout: float | None = None,
        make_transport: MakeTransport = make_transport,
    ) -> None:
        settings = VisaSessionConfig(resource=config) if isinstance(config, str) else config
        self.config = settings if timeout is None else attrs.evolve(settings, timeout=timeout)
        self._make_transport = make_transport
        self._lane: Lane | None = None
        self._link: VisaLink | None = None
        self._is_open = self._is_stopping = self._is_leaving = self._is_closing = False
        self._stopping = trio.Event()
        self._ended = trio.Event()
        self._worker_ended = trio.Event()
        self._work_scope = trio.CancelScope(shield=True)
        self._is_on_duty = False
        self._service: ServiceNursery | None = None
        self._is_crowded = False
        self._listener: Callable[[], object] = lambda: None
        self.last_safe_state: SafeStateResult | None = None
        """What became of the last `make_safe`, None if there was none."""

    # --- what one sees -----------------------------------------------------------------------------------------------

    @property
    def state(self) -> Literal["closed", "parked", "open", "dirty", "lost", "unusable"]:
        """How the connection is.

        ``"dirty"``: a late reply may come, it is being made trustworthy; ``"lost"``: it failed and is opened again;
        ``"unusable"``: it could not be made trustworthy, and that is tried again from time to time; ``"parked"``: it is
        closed to make room for another session of the bus, and opened when it is needed.
        """
        return self._link.state if self._link is not None and self._is_open else "closed"

    @property
    def trouble(self) -> str:
        """What is wrong with the connection, empty if nothing is."""
        return self._link.trouble if self._link is not None and self._is_open else ""

    @property
    def is_crowded(self) -> bool:
        """Whether ``queue_warning`` commands waited, and more than half of that number have waited ever since."""
        return self._is_crowded

    def on_change(self, listener: Callable[[], object]) -> None:
        """Have *listener* called, in the Trio thread, whenever `state` or `is_crowded` may have changed.

        There is one; the last counts.
        """
        self._listener = listener

    @property
    def order(self) -> tuple[LineKind, str]:
        """Its place in the order in which `acquire_all` takes lines."""
        return LineKind.VISA, canonical_resource(self.resource)

    def queue_depth(self) -> int:
        """Return how many commands wait; the one in flight and those whose caller has left do not count."""
        link = self._link
        return 0 if link is None else len(link.queue) + (0 if link.exclusive is None else len(link.exclusive))

    def current_owner(self) -> str | None:
        """Return whose command the instrument is at, else who has a transaction, or None."""
        if self._link is None:
            return None
        return self._link.in_flight.owner if self._link.in_flight is not None else self._link.lease.holder

    def statistics(self) -> SessionStatistics:
        """Return a snapshot for displays, health checks and tests; all zero if it was never opened."""
        link = self._link
        if link is None:
            return Tally().snapshot()
        in_flight = link.in_flight
        return link.tally.snapshot(
            in_flight=None if in_flight is None else in_flight.owner,
            in_flight_for=0.0 if in_flight is None else trio.current_time() - link.begun_at,
            transaction=link.lease.holder,
            waiting=tuple(order.owner for order in (*(link.exclusive or ()), *link.queue)),
        )

    def trace(self) -> tuple[TraceEntry, ...]:
        """Return the last 200 exchanges, oldest first, whoever made them."""
        return () if self._link is None else self._link.trace.entries()

    # --- what one does -----------------------------------------------------------------------------------------------

    def transaction(
        self, owner: str | None = None, timeout: float | None = None, max_hold: float | None = None
    ) -> Transaction:
        """Return an ``async with`` block that has the instrument to itself, with the same verbs as the session.

        It takes its place in the queue when it is entered. Inside it the session itself must not be used by the same
        task, which would wait for itself.

        Args:
            owner: Who wants it; the member's id or the task's name if omitted. Its commands bear that name.
            timeout: Seconds to wait for it, None for the session's own; 0 does not wait for others.
            max_hold: Seconds after which it is taken back and its block cancelled; None for the session's own.

        Raises:
            SessionClosedError: If the session is not open.
            CommandTimeoutError: On entering, if its turn did not come in time.
            PortBusyError: On entering, if *timeout* is 0 and others have it or wait for it.
            DeadlockError: On entering, if the task would have to wait for itself.
            LeaseRevokedError: On leaving, if it was held for too long.
        """
        name = owner_name(owner)
        seconds = self.config.timeout if timeout is None else checked_timeout(timeout)
        hold = self.config.max_hold if max_hold is None else checked_timeout(max_hold, "max_hold", zero=False)
        return Transaction(self, self._opened, self.config, name, seconds, hold)

    @trio.lowlevel.enable_ki_protection
    def revoke(self, reason: str, member: str | None = None) -> str | None:
        """End the transaction that is open, if one is, and return whose it was.

        What its owner asks for in it from now on, and what they wait for now, raises `LeaseRevokedError`.

        Args:
            reason: For the log and the owner's error.
            member: Only if a task of this member of the lab has it, under whatever name; None for whoever has it.
        """
        link = self._link
        return link.lease.revoke(reason, member) if link is not None and link.lease.is_revocable else None

    def acquire(self, owner: str | None = None, timeout: float | None = None) -> Transaction:
        """Return a `transaction`, under the name that `acquire_all` knows."""
        return self.transaction(owner, timeout)

    async def reconnect(self, timeout: float | None = None) -> None:
        """Close the connection and open it again, once the command in flight has ended. What is queued waits for it.

        Args:
            timeout: Seconds to wait for it, None for twice the session's own.

        Raises:
            LineOpenError: If it cannot be opened; it is tried again as after a loss.
            LineUnusableError: If it cannot be made trustworthy.
            CommandTimeoutError: If it was not open in time.
            SessionClosedError: If the session is not open.
        """
        seconds = _OPENING * self.config.timeout if timeout is None else checked_timeout(timeout)
        _, link = self._opened(owner_name(None))

        async def work(_: Order) -> Replies:
            await link.reconnect()
            return []

        await self._demand("reconnect", seconds, work)

    @trio.lowlevel.enable_ki_protection
    async def make_safe(self, timeout: float = SAFE_TIMEOUT) -> SafeStateResult:
        """Take the steps of ``safe_state`` now, whatever the connection is in the middle of, and say how it went.

        The command in flight, and an open transaction, are given up (`LeaseRevokedError`), on the whole bus; the queue
        waits; nothing is waited for before the first write. A connection that is not in order is replaced by a fresh
        one. Replies that were not expected are dropped. Then the connection is made trustworthy again. A session that
        is not open connects for this alone.

        Shielded: it ends after *timeout* seconds, whatever happens.
        """
        seconds = checked_timeout(timeout, zero=False)
        return await to_the_end(lambda: self._make_safe(seconds))

    async def _make_safe(self, seconds: float) -> SafeStateResult:
        if self._lane is not None and self._link is not None and not self._ended.is_set():
            deadline = trio.current_time() + seconds
            try:
                result = await make_link_safe(self._lane, self._link, self, seconds)
            except SessionClosedError:  # whoever closes it makes it safe as the last thing
                with trio.CancelScope(shield=True, deadline=deadline):
                    await self._ended.wait()
                return self.last_safe_state or SafeStateResult("failed", "the session is being closed")
        else:
            alone = VisaLink(self.resource, canonical_resource(self.resource), self.config, self._make_transport)
            result = await talk_over(alone, trio.current_time() + seconds)
        self.last_safe_state = result
        return result

    # --- its life ----------------------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def serve(self, *, task_status: trio.TaskStatus[Self] = trio.TASK_STATUS_IGNORED) -> None:
        """Open the connection and carry out commands until `stop` or cancellation; then close it.

        Raises:
            LineOpenError: If the connection cannot be opened; nothing is left behind.
            LineUnusableError: If it cannot be made trustworthy; nothing is left behind.
            CommandTimeoutError: If its bus was busy for too long; nothing is left behind.
            SessionClosedError: If it was served before: a session has one life.
            ValueError: If the resource is in use with other settings.
        """
        self._join()
        service = ServiceNursery()
        async with service as nursery:
            nursery.start_soon(self._work)
            patience = 0.0
            try:
                await self._open()
                task_status.started(self)
                await self._stopping.wait()
                patience = self.config.timeout
            finally:
                await to_the_end(lambda: self._close(patience))

    @trio.lowlevel.enable_ki_protection
    def stop(self) -> None:
        """Take no more commands, fail those that wait with `SessionClosedError`, and let `serve` end.

        The command in flight is finished first, within its own deadline and the session's timeout.
        """
        self._is_stopping = True
        self._is_open = False
        self._stopping.set()
        if not self._is_leaving:
            self._fail_mine()

    @trio.lowlevel.enable_ki_protection
    async def close(self, timeout: float = _CLOSE_TIMEOUT) -> None:
        """Stop, and wait until the connection is closed. After *timeout* seconds the command in flight is given up.

        Shielded from cancellation for that time and two seconds more at most; where the worker of this session is at a
        command of another one just then, for as long as that may take. A connection that another session uses too
        stays open.
        """
        checked_timeout(timeout)
        self.stop()
        if self._link is not None:
            await to_the_end(lambda: self._close(timeout))

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Self:
        self._join()
        self._service = ServiceNursery()
        nursery = await self._service.__aenter__()
        nursery.start_soon(self._work)
        try:
            await self._open()
        except BaseException as error:
            if not await self._leave(0.0, type(error), error, error.__traceback__):
                raise
        return self

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        return await self._leave(_CLOSE_TIMEOUT, kind, error, traceback)

    async def _leave(
        self,
        timeout: float,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        assert self._service is not None
        return await close_and_leave(self._service, lambda: self._close(timeout), kind, error, traceback)

    def _join(self) -> None:
        if self._link is not None or self._is_stopping:
            raise SessionClosedError(resource=self.resource, owner=owner_name(None))
        self._lane, self._link = join(self.config, self._make_transport)
        self._link.listeners.append(self._look)

    async def _open(self) -> None:
        """Have the worker, whosever it is, open the connection unless it is open already."""
        link = self._link
        assert link is not None

        async def work(_: Order) -> Replies:
            if link.transport is None:
                await link.reconnect()
            return []

        self._is_open = True
        await self._demand("opening", _OPENING * self.config.timeout, work)

    @trio.lowlevel.enable_ki_protection
    async def _demand(self, what: str, timeout: float, work: Callable[[Order], Awaitable[Replies]]) -> None:
        lane, link = self._opened(owner_name(None))
        order = Order(link, (), (what,), owner_name(None), timeout, work=work, patron=self)
        order.phase = "resync"
        order.watch_deadline()
        lane.demands.append(order)
        lane.ring()
        await order.wait(abandon=True)

    @trio.lowlevel.enable_ki_protection
    async def _work(self) -> None:
        assert self._lane is not None
        try:
            # Shielded, so that a cancelled block still closes in order; `_close` ends it.
            with self._work_scope:
                async with self._lane.duty:
                    self._is_on_duty = True
                    await self._lane.work(lambda: self._is_closing)
        finally:
            self._worker_ended.set()

    async def _close(self, timeout: float) -> None:
        """Close. To be done to the end."""
        self.stop()
        lane, link = self._lane, self._link
        assert lane is not None
        assert link is not None
        deadline = trio.current_time() + timeout
        if not self._is_leaving:  # `close` and the end of `serve` come together, and the least patient decides
            self.stop()
            await self._wait_for_mine(link, deadline)
        if self._is_leaving:
            await self._ended.wait()
            return
        self._fail_mine()  # one that was in flight may have been put back
        self._is_leaving = True  # the orders from here on are those of the closing itself
        for demand in lane.demands:
            if demand.patron is self:  # a link that nobody uses must not be opened later
                demand.fail(link.closed_under(demand))
        if self.config.safe_state and link.epoch and not is_shared(link):
            link.is_closing = True
            await self.make_safe()
        link.listeners.remove(self._look)
        is_last = leave(link)
        if link.is_closing and not is_last:  # somebody has joined it meanwhile
            link.is_closing = False
            link.soil("it was made safe")
        self._is_closing = True
        if is_last:
            link.give_up()
            with trio.move_on_after(2 * CLOSE_TIMEOUT):
                while link.is_busy:
                    await link.rest.park()
            await link.disconnect(abort=False)
        if self._is_on_duty:  # it may be at another session's command just now, which must not suffer
            lane.ring()
            with trio.move_on_at(max(deadline, lane.busy_until())):
                await self._worker_ended.wait()
        self._work_scope.cancel()
        await self._worker_ended.wait()
        self._ended.set()

    def _fail_mine(self) -> None:
        """End all orders of this session that wait."""
        if self._lane is not None and self._link is not None:
            for order in (*self._lane.demands, *self._link.queue, *(self._link.exclusive or ())):
                if order.patron is self:
                    order.fail(self._link.closed_under(order))

    async def _wait_for_mine(self, link: VisaLink, deadline: float) -> None:
        """Let the command in flight end, if it is of this session; after *deadline* give it up."""
        with trio.move_on_at(deadline):
            while link.in_flight is not None and link.in_flight.patron is self:
                await link.rest.park()
        if link.in_flight is not None and link.in_flight.patron is self:
            link.in_flight.fail(link.closed_under(link.in_flight))
            link.give_up()

    # --- what the verbs need -----------------------------------------------------------------------------------------

    def _opened(self, owner: str) -> tuple[Lane, VisaLink]:
        if not self._is_open or self._lane is None or self._link is None:
            raise SessionClosedError(resource=self.resource, owner=owner)
        return self._lane, self._link

    def _put(self, order: Order, *, wait: bool) -> None:
        lane, link = self._lane, self._link
        if lane is None or link is None or not self._is_open:
            raise SessionClosedError(resource=self.resource, owner=order.owner)
        if link.state in ("unusable", "lost") and (refusal := link.refusal(order.owner)) is not None:
            raise refusal
        if wait:
            link.queue.put(order)
        else:
            link.queue.put_nowait(order, self.current_owner())
        self._look()
        lane.ring()

    def _look(self) -> None:
        """See whether the queue has become too long or short again, and tell who listens."""
        depth = len(self._link.queue) if self._link is not None else 0
        if depth <= self.config.queue_warning // 2:
            self._is_crowded = False
        elif depth >= self.config.queue_warning and not self._is_crowded:
            self._is_crowded = True
            _log.warning(
                "%s: %d commands wait, and the instrument is at %s; ask less often, or give the urgent ones priority",
                self.resource,
                depth,
                "none yet" if (owner := self.current_owner()) is None else f"one of {owner}",
            )
        self._listener()

    def _new_order(
        self,
        requests: Sequence[Request],
        texts: Sequence[str],
        owner: str,
        timeout: float,
        priority: Priority,
        progress: Progress | None,
    ) -> Order:
        # A session that was not opened has no link, and `_put` would say so: but an order needs one to be made.
        _, link = self._opened(owner)
        return Order(
            link, requests, texts, owner, timeout, priority, work=link.carry_out, patron=self, progress=progress
        )
