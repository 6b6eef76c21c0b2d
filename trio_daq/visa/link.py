"""The connection to one VISA resource: it opens it, carries out one order at a time, and keeps it trustworthy.

All of it that waits is called by the worker of the lane, one thing at a time, and by whoever closes it when no worker
can come any more. It knows neither queues of others nor priorities.

Invariants: `transport` is set exactly in the states ``open`` and ``dirty``; in ``open`` nothing is owed on it, so the
next reply belongs to the next command; a command is given to it in ``open`` only.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Literal

import outcome
import trio

from trio_daq.errors import (
    CommandTimeoutError,
    DaqError,
    InstrumentError,
    LineLostError,
    LineOpenError,
    LineUnusableError,
    ReplyError,
    SessionClosedError,
    TransactionBrokenError,
)
from trio_daq.sharing import Backoff, Lease, LineKind
from trio_daq.visa.opening import MakeTransport
from trio_daq.visa.order import Order, Replies
from trio_daq.visa.own_talk import OURSELVES, OwnTalk
from trio_daq.visa.queue import CommandQueue
from trio_daq.visa.resync import Resync, is_cleared_at_opening, resyncs_by
from trio_daq.visa.settings import VisaSessionConfig
from trio_daq.visa.statistics import Tally
from trio_daq.visa.transport import (
    BlockError,
    ConnectionLostError,
    Transport,
    TransportError,
    TransportTimeoutError,
    UnaskedInputError,
)
from trio_daq.wire import Trace

_log = logging.getLogger("trio_daq.visa")

CLOSE_TIMEOUT = 1.0
"""Seconds that closing one connection may take before it is left to its thread."""
_FIRST_PAUSE, _LAST_PAUSE = 0.1, 2.0
"""Seconds from one try to open a lost connection to the next, at first and at last: a command whose deadline is the
default should find an instrument that has come back."""
_TRIES = 3
"""How often a command may find the connection unusable before it is sent."""

State = Literal["parked", "open", "dirty", "lost", "unusable"]


class VisaLink:
    """One resource.

    Args:
        resource: Its name, as errors and logs show it.
        canonical: Its one full name.
        config: Settings, those of the session that was first.
        make_transport: Makes a connection that is not open yet.

    Attributes:
        transport: The connection, if there is one.
        listeners: Called when the state has changed, and when an order was taken out of the queue.
        trouble: What is wrong, empty if nothing is.
        last_trouble: What was wrong last.
        epoch: How often it was opened.
        queue: Orders that wait.
        lease: Who has it for a transaction.
        in_flight: The order that the instrument is at.
        used_at: Trio time of the last order.
        is_busy: Whether the worker is at it.
        attempt: The scope in which the worker is at it.
        rest: Where one waits until it is not.
        is_closing: Whether it is made safe for the last time, so that it is not worth while to mend it after that.
    """

    def __init__(self, resource: str, canonical: str, config: VisaSessionConfig, make_transport: MakeTransport) -> None:
        self.resource = resource
        self.canonical = canonical
        self.config = config
        self.transport: Transport | None = None
        self.listeners: list[Callable[[], object]] = []
        self._state: State = "parked"
        self.trouble = self.last_trouble = ""
        self.epoch = 0
        self.lease = Lease(resource, kind=LineKind.VISA)
        self.queue = CommandQueue(config.queue_size, lambda: self.lease.claim)
        self.exclusive: CommandQueue | None = None
        self.in_flight: Order | None = None
        self.begun_at = self.used_at = 0.0
        self.trace = Trace(resource, config.trace)
        self.tally = Tally()
        self.is_busy = False
        self.rest = trio.lowlevel.ParkingLot()
        self._make_transport = make_transport
        self._has_proved_itself = False
        self._backoff = Backoff(_FIRST_PAUSE, _LAST_PAUSE)
        self._own_talk = OwnTalk(resource, config, self.trace)
        self._resync = Resync(canonical, config, self.trace)
        self.attempt = trio.CancelScope()
        self.is_closing = False

    @property
    def state(self) -> State:
        """How the connection is.

        ``open``; ``dirty``: a late reply may come; ``lost``: to be opened again; ``unusable``: it could not be made
        trustworthy; ``parked``: not opened yet, or closed to make room for another session of the bus.
        """
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        has_changed, self._state = state != self._state, state
        if has_changed:
            self.tell()

    # --- what the worker has to know ---------------------------------------------------------------------------------

    def next_try(self) -> float | None:
        """Return the seconds until it wants to be prepared: 0 for now, None while it does not."""
        if self.state == "dirty":
            return 0.0
        if self.state == "lost":
            return self._backoff.left() if self.config.reconnect else None
        return None

    def refusal(self, owner: str) -> DaqError | None:
        """Return the error in which orders of *owner* end at once, if waiting for the connection is of no use now."""
        if self.state == "unusable" and (left := self._backoff.left()):
            return LineUnusableError(resource=self.resource, reason=self.trouble, retry_in=left)
        if self.state == "lost" and not self.config.reconnect:
            return LineLostError(
                resource=self.resource, owner=owner, reason=f"{self.trouble}; call reconnect()", sent="no"
            )
        return None

    def timeout_of(self, order: Order) -> CommandTimeoutError:
        """Return the error of an order whose deadline has come."""
        waits = order.queue is not None
        hindered = waits and self.state != "open" and self.trouble
        return CommandTimeoutError(
            resource=self.resource,
            command=order.text,
            owner=order.owner,
            phase="resync" if hindered else order.phase,
            sent=order.sent,
            waited=trio.current_time() - order.asked_at,
            position=order.queue.ahead_of(order) + (self.in_flight is not None) if order.queue is not None else 0,
            in_flight=self.in_flight.owner if waits and self.in_flight is not None else None,
            trouble=self.trouble if hindered or order.phase == "resync" else "",
            trace=self.trace.entries(),
        )

    def closed_under(self, order: Order) -> SessionClosedError:
        """Return the error of an order whose session is closed."""
        return SessionClosedError(resource=self.resource, owner=order.owner, sent=order.sent)

    def hurry(self) -> None:
        """Give up the exchange in flight after `resync_timeout`: nobody waits for its reply any more."""
        if self.is_busy:
            self.attempt.deadline = min(self.attempt.deadline, trio.current_time() + self.config.resync_timeout)

    def give_up(self) -> None:
        """Give up what the worker is doing with this link, now."""
        if self.is_busy:
            self.attempt.deadline = -math.inf
            self.attempt.cancel()

    # --- what the worker does ----------------------------------------------------------------------------------------

    def new_transport(self) -> Transport:
        """Return a connection that is not open yet."""
        return self._make_transport(self.config)

    def soil(self, trouble: str) -> None:
        """Note that what comes next may belong to nobody."""
        if not self.is_closing:
            self._soil(trouble)

    def lose(self, trouble: str) -> None:
        """Note that there is no connection any more; it is opened again at once, if it may be by itself."""
        self.state = "parked"
        if not self.is_closing and (self.config.reconnect or self.trouble):
            self._fail("lost", trouble, pause=False)

    async def serve(self, order: Order) -> None:
        """Do what *order* asks for, and end it, or put it back if the connection failed before any of it was sent."""
        order.withdraw()
        self.in_flight, self.begun_at, self.is_busy = order, trio.current_time(), True
        self.tell()
        try:
            replies = await order.work(order)
            if order.queue is None:
                order.end(outcome.Value(replies))
        except DaqError as error:
            order.fail(error)
        except Exception as error:  # noqa: BLE001 - whatever a bug or a callback of the caller raised
            if order.result is not None:
                _log.exception("%s: after %s had left: %r failed", self.resource, order.owner, order.text)
            order.end(outcome.Error(error))  # a bug, or the caller's own: theirs to know, and nobody else's end
        finally:
            if order.result is None and order.queue is None:  # its own session would have ended it before
                reason = "the session that worked for both was closed"
                order.fail(LineLostError(resource=self.resource, owner=order.owner, reason=reason, sent=order.sent))
            self.in_flight, self.used_at = None, trio.current_time()
            self._rest()

    async def care(self) -> None:
        """See to the connection while no order is in flight, as `prepare`."""
        self.is_busy = True
        try:
            await self.prepare()
        finally:
            self._rest()

    async def carry_out(self, order: Order) -> Replies:
        """Send the commands of *order* and read their replies.

        Raises:
            DaqError: If that fails; what it leaves of the connection is for `prepare`.
        """
        transport = self.transport
        if transport is None or self.state != "open":
            raise LineLostError(resource=self.resource, owner=order.owner, reason=self.trouble, sent="no")
        if order.bond is not None and order.bond.epoch not in (None, self.epoch):
            raise TransactionBrokenError(
                resource=self.resource, owner=order.owner, command=order.text, reason=self.last_trouble
            )
        return await self._exchange(transport, order)

    async def prepare(self) -> None:
        """Open the connection, or make it trustworthy, on a budget of its own.

        A failure is no error: it is in `state` and `trouble`, and another try is due after a pause.
        """
        try:
            if self.state == "dirty":
                await self._recover()
            if self.transport is None:
                await self.connect()
        except LineOpenError as error:
            self._fail("lost", error.reason)
        except LineUnusableError as error:
            self._fail("unusable", error.reason)

    async def connect(self) -> None:
        """Open the connection, and greet the instrument.

        Raises:
            LineOpenError: If that fails; then it is closed.
            LineUnusableError: If what the instrument still has to say cannot be got rid of.
        """
        transport = self.new_transport()
        came_back = self.state == "lost" and self.epoch > 0
        self._own_talk.asked = ""
        try:
            await transport.open(self.config.timeout)
            self.transport, self.state = transport, "dirty"
            await self._settle(transport)
            await self._own_talk.greet(transport, again=self.epoch > 0, came_back=came_back)
        except TransportError as error:
            await self.disconnect(abort=True)
            asked = self._own_talk.asked
            reason = f"it does not answer {asked!r}: {error}" if asked else f"it was connected, and then {error}"
            raise LineOpenError(resource=self.resource, reason=reason, hint="Is it the right instrument?") from error
        except BaseException:
            self.transport = transport
            await self.disconnect(abort=True)
            raise
        self.state = "open"
        self.trouble = ""
        self.epoch += 1
        self.tally.reconnects += self.epoch > 1
        self._has_proved_itself = False

    async def reconnect(self) -> None:
        """Close the connection and open it again. Raises as `connect`; another try is due after a pause then."""
        await self.disconnect(abort=self.state != "open")
        self._backoff.succeeded()
        try:
            await self.connect()
        except LineOpenError as error:
            self._fail("lost", error.reason)
            raise
        except LineUnusableError as error:
            self._fail("unusable", error.reason)
            raise

    async def disconnect(self, *, abort: bool) -> bool:
        """Close the connection, if there is one, within a second; return whether it is closed. Shielded."""
        transport, self.transport = self.transport, None
        self.state = "parked"
        return transport is None or await transport.aclose(CLOSE_TIMEOUT, abort=abort)

    def _rest(self) -> None:
        self.is_busy = False
        self.rest.unpark_all()

    def tell(self) -> None:
        """Tell who listens that the state, or the length of the queue, may have changed."""
        for listener in self.listeners:
            listener()

    # --- one exchange ------------------------------------------------------------------------------------------------

    async def _exchange(self, transport: Transport, order: Order) -> Replies:
        order.begin(transport)
        requests, owner, note = order.requests, order.owner, self.trace.note
        note(owner, "write", requests[0].data)
        begun = trio.current_time()
        is_done = False
        try:
            replies = await transport.exchange(requests, order.deadline, order.progress)
            for request, reply in zip(requests, replies, strict=True):
                if request is not requests[0]:
                    note(owner, "write", request.data)
                if request.reply != "nothing":
                    note(owner, "read", reply)
            if self._has_to_check(order):
                await self._check_errors(transport, order)
            is_done = True
        except UnaskedInputError as error:
            self._soil(str(error))
            self.trace.note(OURSELVES, "drop", error.data)
            _log.warning("%s: before %r of %s: %s", self.resource, order.texts[0], owner, error)
            if order.sent == "no":
                self._put_back(order)
                return []
            # It came between the command and the check of it.
            raise LineLostError(resource=self.resource, owner=owner, reason=str(error), sent=order.sent) from error
        except TransportTimeoutError:
            self._soil("an exchange was left unfinished")
            raise self.timeout_of(order) from None
        except ConnectionLostError as error:
            if order.sent != "no":
                order.fail(LineLostError(resource=self.resource, owner=owner, reason=str(error), sent=order.sent))
            await self.disconnect(abort=True)
            self._fail("lost", str(error), pause=not self._has_proved_itself)
            self._put_back(order)
            return []
        except BlockError as error:
            self._soil(str(error))
            raise ReplyError(
                resource=self.resource, owner=owner, command=order.text, reply=error.data, expected=f"a block: {error}"
            ) from error
        except TransportError as error:
            self._soil(str(error))
            raise LineLostError(resource=self.resource, owner=owner, reason=str(error), sent=order.sent) from error
        except BaseException:  # cancelled, or what a callback of the user raised
            self._soil("an exchange was given up")
            raise
        finally:
            if order.bond is not None and order.sent != "no":
                order.bond.epoch = self.epoch
            if not is_done:
                self.tally.note_broken_off(order, transport)
        self.tally.note_done(order, begun)
        if not self._has_proved_itself:  # not by being opened: some accept everybody and hang up
            self._has_proved_itself = True
            self._backoff.succeeded()
        return replies

    def _put_back(self, order: Order) -> None:
        """Let *order*, of which nothing was sent, wait in front of all others until the connection is usable again."""
        if order.result is not None:
            return
        order.take_back()
        home = order.home
        if order.setbacks >= _TRIES or home is None or home not in (self.queue, self.exclusive):
            raise LineLostError(resource=self.resource, owner=order.owner, reason=self.trouble, sent="no")
        home.put_back(order)

    def _has_to_check(self, order: Order) -> bool:
        match self.config.check_errors:
            case "after_write":
                return any(request.reply == "nothing" for request in order.requests)
            case "after_batch":
                return len(order.requests) > 1
        return False

    async def _check_errors(self, transport: Transport, order: Order) -> None:
        order.note_sent()
        try:
            errors = await self._own_talk.read_errors(transport, order.deadline, order.owner, order.texts[-1])
        except ReplyError as error:
            self._soil(str(error))
            raise
        if errors:
            texts = "; ".join(order.texts)
            raise InstrumentError(resource=self.resource, owner=order.owner, command=texts, errors=errors)

    # --- keeping it trustworthy --------------------------------------------------------------------------------------

    def _soil(self, trouble: str) -> None:
        self.trouble = self.last_trouble = trouble
        if self.transport is not None:
            self.state = "dirty"

    def _fail(self, state: State, trouble: str, *, pause: bool = True) -> None:
        self.trouble = self.last_trouble = trouble
        self.state = state
        if pause:
            self._backoff.failed()
        _log.warning("%s: %s: %s", self.resource, state, trouble)

    async def _recover(self) -> None:
        """Get rid of what may still come, by the means that this kind of connection has; else close it."""
        self.tally.resyncs += 1
        transport, trouble = self.transport, self.trouble
        assert transport is not None
        _log.info("%s: to be made trustworthy, since %s", self.resource, trouble)
        try:
            if await self._resync.without_reopening(transport):
                self.state, self.trouble = "open", ""
                if self.config.check_errors == "on_timeout":
                    await self._own_talk.look_at_errors(transport, trouble)
                return
        except TransportError as error:
            self.trouble = f"{trouble}, and then {error}"
        except BaseException:
            await self.disconnect(abort=True)
            raise
        trouble = self.trouble
        await self.disconnect(abort=True)
        if not self.config.reopen:
            raise LineUnusableError(resource=self.resource, reason=trouble)

    async def _settle(self, transport: Transport) -> None:
        """Get rid of what the instrument may still have to say to whoever used it before."""
        kind = resyncs_by(self.canonical)
        if is_cleared_at_opening(self.canonical):
            try:
                await transport.clear(self.config.resync_timeout)
            except TransportError as error:
                _log.warning("%s: no device clear at opening: %s", self.resource, error)
        if kind == "asking" or self.config.sync_query is not None:
            try:
                await self._resync.by_asking(transport)
            except TransportTimeoutError as error:
                raise LineUnusableError(resource=self.resource, reason=str(error)) from error
