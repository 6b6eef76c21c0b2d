"""Errors of exchanges with an instrument, and of the queue that leads to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import attrs

from trio_daq.errors.daq_error import DaqError, Sent, error, seconds


@error
class ExchangeTimeoutError(DaqError, TimeoutError):
    r"""A read or a write on a serial line that one owner holds did not finish in time.

    Attributes:
        resource: The port.
        owner: Who held it.
        operation: What was asked, for example ``"read_until(b'\\n')"``.
        waited: Seconds waited.
        sent: Whether the last command reached the wire.
        received: The bytes that did come. They stay in the port's buffer until the line is made clean again.
        dropped: What came meanwhile and was not taken for a reply: it did not match, or came unasked.
        trace: The last messages on the line, oldest first.
    """

    resource: str
    owner: str
    operation: str
    waited: float
    sent: Sent
    received: bytes = b""
    dropped: bytes = b""
    trace: Sequence[Any] = attrs.field(default=(), repr=False)

    def __str__(self) -> str:
        got = f"{len(self.received)} bytes came: {self.received[:60]!r}" if self.received else "not a byte came"
        if self.dropped:
            got = f"what came was not taken for the reply: {(self.dropped + self.received)[:60]!r}"
        if _looks_like_noise(self.received):
            cure = "The bytes look like noise: is the baud rate right?"
        else:
            cure = "Is the instrument on, and are baud rate and terminator right?"
        return (
            f"{self.resource}: {self.operation} of {self.owner!r} did not finish within {seconds(self.waited)}: "
            f"{got} (command sent: {self.sent}). {cure}"
        )


@error
class CommandTimeoutError(DaqError, TimeoutError):
    """A VISA command did not finish by its deadline.

    Attributes:
        resource: The VISA resource name.
        command: What was to be sent.
        owner: Who asked.
        phase: Where it was then: ``"place"`` (no room in the queue), ``"queued"``, ``"in_flight"`` or ``"resync"``.
        sent: ``"no"`` means that the instrument will never see it.
        waited: Seconds waited.
        position: Commands ahead of it, 0 when it was in flight.
        in_flight: Whose command the instrument was at, if it was another one's.
        trouble: What was wrong with the connection, if that is why it had to wait; or what the last reply was.
        trace: The last messages on the connection, oldest first.
    """

    resource: str
    command: str
    owner: str
    phase: Literal["place", "queued", "in_flight", "resync"]
    sent: Sent
    waited: float
    position: int = 0
    in_flight: str | None = None
    trouble: str = ""
    trace: Sequence[Any] = attrs.field(default=(), repr=False)

    def __str__(self) -> str:
        where = {
            "place": "the queue was full",
            "queued": f"it was still queued, {self.position} ahead of it",
            "in_flight": self.trouble or f"the instrument had not {'taken it' if self.sent == 'no' else 'answered'}",
            "resync": f"the connection was not usable: {self.trouble or 'it was being made so'}",
        }[self.phase]
        if self.in_flight is not None and self.sent == "no":
            where += f"; the instrument was busy with a command of {self.in_flight!r}"
        cure = {
            "no": "It will never be sent; it is safe to try again.",
            "yes": "It was sent, so the instrument may have carried it out; a late reply is dropped.",
            "unknown": "It may have been sent; look at the instrument before trying again.",
        }[self.sent]
        return (
            f"{self.resource}: {self.command!r} of {self.owner!r} did not finish within {seconds(self.waited)}: "
            f"{where}. {cure}"
        )


@error
class QueueFullError(DaqError, OSError):
    """There is no place in the queue of a session, and the caller did not want to wait for one."""

    resource: str
    command: str
    owner: str
    waiting: int
    in_flight: str | None = None
    sent: Sent = "no"

    def __str__(self) -> str:
        busy = f", and a command of {self.in_flight!r} is in flight" if self.in_flight is not None else ""
        return (
            f"{self.resource}: no place in the queue for {self.command!r} of {self.owner!r}: {self.waiting} commands "
            f"wait{busy}. It was not sent. Ask less often, or wait for a place with enqueue_command."
        )


@error
class CommandCancelledError(DaqError, ConnectionAbortedError):
    """A command that was put into the queue was taken back by its caller, who asked for its reply all the same."""

    resource: str
    command: str
    owner: str
    sent: Sent

    def __str__(self) -> str:
        return f"{self.resource}: {self.owner!r} has cancelled {self.command!r} (command sent: {self.sent})."


@error
class InstrumentError(DaqError, ValueError):
    """The instrument found fault with a command: its error queue says so.

    Attributes:
        resource: The VISA resource name.
        owner: Who asked.
        command: What was sent.
        errors: Code and text of each error, oldest first (SCPI-99 volume 2, chapter 21.8).
    """

    resource: str
    owner: str
    command: str
    errors: Sequence[tuple[int, str]]
    sent: Sent = "yes"

    def __str__(self) -> str:
        listed = "; ".join(f"{code} {text}" for code, text in self.errors)
        return f"{self.resource}: the instrument refused {self.command!r} of {self.owner!r}: {listed}."


@error
class TransactionBrokenError(DaqError, ConnectionError):
    """The connection was opened anew inside a transaction: what it has set up so far may be gone."""

    resource: str
    owner: str
    command: str
    reason: str
    sent: Sent = "no"

    def __str__(self) -> str:
        return (
            f"{self.resource}: {self.command!r} of {self.owner!r} was not sent: the connection was opened anew after "
            f"their transaction had sent something ({self.reason}), and the instrument may have lost that. "
            "Leave the transaction and begin it again."
        )


@error
class ReplyError(DaqError, ValueError):
    """A reply came, and it is not what the protocol allows."""

    resource: str
    owner: str
    command: str
    reply: bytes | str
    expected: str
    sent: Sent = "yes"

    def __str__(self) -> str:
        return (
            f"{self.resource}: the reply to {self.command!r} of {self.owner!r} was {self.reply!r}, "
            f"expected {self.expected}."
        )


def _looks_like_noise(received: bytes) -> bool:
    """Return whether a quarter of it or more are NULs and high bits that make no text.

    So text comes out at a wrong baud rate. Other control characters do not count: protocols frame their text with them.
    """
    text = received.decode("utf-8", "replace")  # a µ or an Ω that came whole is no noise
    return 0 < len(text) <= 4 * (text.count("\N{REPLACEMENT CHARACTER}") + text.count("\0"))
