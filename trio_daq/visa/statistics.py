"""What a session has done so far, counted while it is done. It counts, and decides nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import attrs
import trio

from trio_daq.errors import CommandCancelledError, CommandTimeoutError, DaqError
from trio_daq.sharing import Histogram
from trio_daq.visa.order import Order
from trio_daq.visa.transport import Transport


@attrs.frozen
class SessionStatistics:
    """What a `VisaSessionManager` looked like at one moment. Sessions of one resource share all of it.

    Attributes:
        in_flight: Owner of the command that the instrument is at, or None.
        in_flight_for: Seconds since it was begun, 0 if there is none.
        transaction: Owner of the transaction that is open, or None.
        waiting: Owners of the commands in the queue, next one first.
        executed: Commands that were carried out, by owner; of a batch each one counts.
        unfinished: Commands that were sent, or begun to be, and whose exchange did not end well, by owner. With
            `executed` they are all that the instrument can have seen.
        timed_out: Orders that ended by their deadline, wherever they were.
        never_sent: Orders that ended before anything of them was sent.
        cancelled: Orders whose caller left.
        failed: Orders that ended in another error.
        abandoned: Replies that came after their caller had left, and went to nobody.
        resyncs: How often the connection had to be made trustworthy again.
        reconnects: How often it was opened again.
        hand_overs: Commands of another owner than the one before.
        longest_wait: Seconds that a carried-out order had waited in the queue, at most.
        wait_times: How many orders had waited less than each bound, in seconds, and not less than the one before it.
        execution_times: The same of the times from the command to the end of its reply.
    """

    in_flight: str | None
    in_flight_for: float
    transaction: str | None
    waiting: tuple[str, ...]
    executed: Mapping[str, int]
    unfinished: Mapping[str, int]
    timed_out: int
    never_sent: int
    cancelled: int
    failed: int
    abandoned: int
    resyncs: int
    reconnects: int
    hand_overs: int
    longest_wait: float
    wait_times: Mapping[float, int]
    execution_times: Mapping[float, int]


class Tally:
    """The counts behind `SessionStatistics`, by the same names."""

    def __init__(self) -> None:
        self.executed: Counter[str] = Counter()
        self.unfinished: Counter[str] = Counter()
        self.timed_out = self.never_sent = self.cancelled = self.failed = 0
        self.abandoned = self.resyncs = self.reconnects = self.hand_overs = 0
        self.longest_wait = 0.0
        self.wait_times = Histogram()
        self.execution_times = Histogram()
        self._last_owner: str | None = None

    def note_done(self, order: Order, begun: float) -> None:
        """Count an order that was carried out; *begun* is the Trio time at which it was given to the instrument."""
        owner, waited = order.owner, begun - order.asked_at
        self.executed[owner] += len(order.requests)
        self.abandoned += order.result is not None
        if owner != self._last_owner:
            self.hand_overs += self._last_owner is not None
            self._last_owner = owner
        if waited > self.longest_wait:
            self.longest_wait = waited
        self.wait_times.add(waited)
        self.execution_times.add(trio.current_time() - begun)

    def note_broken_off(self, order: Order, transport: Transport) -> None:
        """Count what *transport* had sent of an order when its exchange ended badly."""
        done = len(order.requests) if order.is_sent else transport.completed
        if done:
            self.executed[order.owner] += done
        if not order.is_sent and transport.sent != "no":
            self.unfinished[order.owner] += 1

    def note_failed(self, error: DaqError) -> None:
        """Count an order that ends in *error*."""
        if isinstance(error, CommandTimeoutError):
            self.timed_out += 1
        elif isinstance(error, CommandCancelledError):
            self.cancelled += 1
        else:
            self.failed += 1
        self.never_sent += getattr(error, "sent", None) == "no"

    def snapshot(
        self,
        in_flight: str | None = None,
        in_flight_for: float = 0.0,
        transaction: str | None = None,
        waiting: tuple[str, ...] = (),
    ) -> SessionStatistics:
        """Return the counts as they are, with what else is to be seen at this moment."""
        return SessionStatistics(
            in_flight=in_flight,
            in_flight_for=in_flight_for,
            transaction=transaction,
            waiting=waiting,
            executed=dict(self.executed),
            unfinished=dict(self.unfinished),
            timed_out=self.timed_out,
            never_sent=self.never_sent,
            cancelled=self.cancelled,
            failed=self.failed,
            abandoned=self.abandoned,
            resyncs=self.resyncs,
            reconnects=self.reconnects,
            hand_overs=self.hand_overs,
            longest_wait=self.longest_wait,
            wait_times=self.wait_times.counts(),
            execution_times=self.execution_times.counts(),
        )
