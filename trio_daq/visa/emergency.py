"""Make an instrument safe over the connection that is there, or over a fresh one where that cannot be trusted to work.

It is carried out by the worker of the lane, before everything that waits, or by whoever uses a link that has no worker.
A connection on which something was given up may hang in its library for as long as that likes: it is let go of.

Invariant: the connection is left dirty, or closed and to be opened again, never trusted.
"""

from __future__ import annotations

import logging

import trio

from trio_daq.errors import DaqError, LeaseRevokedError, LineOpenError, SessionClosedError
from trio_daq.sharing import SafeStateResult, SafeTalk
from trio_daq.visa.lane import Lane
from trio_daq.visa.link import VisaLink
from trio_daq.visa.order import Order, Replies
from trio_daq.visa.own_talk import OURSELVES
from trio_daq.visa.resync import resyncs_by
from trio_daq.visa.transport import (
    ConnectionLostError,
    Request,
    Transport,
    TransportError,
    TransportTimeoutError,
    UnaskedInputError,
)
from trio_daq.wire import Exchange

_log = logging.getLogger("trio_daq.visa")

EMERGENCY = "safe state"
"""Its name as an owner."""

SAFE_TIMEOUT = 1.0
"""Seconds in which a line is made safe where nobody names another time."""

_LETTING_GO = 0.1
"""Seconds for closing a connection that is in the way; a thread that hangs in it closes it when it comes back."""

_REASON = "the line is made safe"


async def make_link_safe(lane: Lane, link: VisaLink, patron: object, timeout: float) -> SafeStateResult:
    """Have the worker of *lane* make *link* safe within *timeout* seconds, before all else. Shielded.

    Raises:
        SessionClosedError: If its session was closed before the worker came to it.
    """
    results: list[SafeStateResult] = []
    deadline = trio.current_time() + timeout
    talked = deadline - min(2 * _LETTING_GO, timeout / 4)  # the rest is for letting go of connections

    async def work(_: Order) -> Replies:
        results.append(await talk_over(link, talked))
        return []

    if link.lease.is_revocable:
        link.lease.revoke(_REASON)
    order = Order(link, (), (EMERGENCY,), EMERGENCY, timeout, "urgent", work=work, patron=patron)
    order.phase = "resync"
    lane.demands.appendleft(order)
    for busy in lane.links:  # they share one cable or one instrument: what is under way there is in the way
        if (other := busy.in_flight) is not None and _is_emergency(other):
            continue  # cut short it would have to begin again
        if other is not None:
            other.fail(
                LeaseRevokedError(
                    resource=busy.resource, owner=other.owner, action=repr(other.text), reason=_REASON, sent=other.sent
                )
            )
        busy.give_up()
    lane.ring()
    reason = "its worker is held up by another connection of its bus"
    with trio.CancelScope(shield=True, deadline=deadline):
        try:
            await order.wait(abandon=True)
        except SessionClosedError:
            raise
        except DaqError as error:
            reason = str(error)
    if results:
        return results[0]
    order.abandon()
    return SafeStateResult("failed", reason)


async def talk_over(link: VisaLink, deadline: float) -> SafeStateResult:
    """Take the steps on *link*, for whoever may use it. Shielded, and over at *deadline*, a Trio time."""
    talk = SafeTalk(link.config.safe_state, deadline)
    was, kept = link.state, None
    with trio.CancelScope(shield=True, deadline=deadline):
        try:
            if link.config.safe_state:
                kept = link.transport if was == "open" or not link.config.reopen else None
                if kept is not None:
                    await _talk(talk, link, kept, ending=was != "open")
        except ConnectionLostError:
            kept = None
        except TransportError as error:
            talk.trouble = str(error)
        if kept is None and link.config.safe_state:
            await _talk_afresh(talk, link, deadline)
    if kept is not None:
        link.soil(_REASON)
    elif was != "parked":
        link.lose(_REASON)
    result = talk.result()
    level = logging.ERROR if result.outcome == "failed" else logging.INFO
    _log.log(level, "%s: made safe: %s", link.resource, result)
    return result


def _is_emergency(order: Order) -> bool:
    """Return whether it is one of ours; an urgent one of a user sends something."""
    return order.priority == "urgent" and not order.requests


async def _talk_afresh(talk: SafeTalk, link: VisaLink, deadline: float) -> None:
    old, link.transport = link.transport, None
    if old is not None:
        await old.aclose(_LETTING_GO, abort=True)
    fresh = link.new_transport()
    try:
        await fresh.open(max(0.001, deadline - trio.current_time() - _LETTING_GO))
        # A serial line remembers half a command over a new opening; other links forget it with the connection.
        await _talk(talk, link, fresh, ending=resyncs_by(link.canonical) == "asking")
    except (LineOpenError, TransportError) as error:
        talk.trouble = str(error)
    finally:
        await fresh.aclose(_LETTING_GO, abort=False)


async def _talk(talk: SafeTalk, link: VisaLink, transport: Transport, *, ending: bool) -> None:
    """Take the steps over *transport*. With *ending* half a command that may be there is ended first."""
    end = link.config.write_termination.encode("ascii")
    deadline = talk.deadline
    prefix = end if ending else b""
    asked = b""

    async def write(step: Exchange) -> None:
        nonlocal prefix, asked
        if step.query:
            asked = prefix + step.query + end  # goes out with the first read, as one exchange
        else:
            await _exchange(link, transport, Request(prefix + step.write + end, "nothing"), deadline)
        prefix = b""

    async def read(until: float) -> bytes | None:
        nonlocal asked
        data, asked = asked, b""
        try:
            return await _exchange(link, transport, Request(data, "message"), until)
        except TransportTimeoutError:
            return None

    await talk.run(write, read)


async def _exchange(link: VisaLink, transport: Transport, request: Request, deadline: float) -> bytes:
    while True:
        try:
            if request.data:
                link.trace.note(EMERGENCY, "write", request.data)
            reply = (await transport.exchange([request], deadline))[0]
        except UnaskedInputError as error:  # it was taken out, and nothing was written yet
            link.trace.note(OURSELVES, "drop", error.data)
        else:
            if request.reply != "nothing":
                link.trace.note(EMERGENCY, "read", reply)
            return reply
