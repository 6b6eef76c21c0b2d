"""Every error that trio_daq raises on purpose.

Each is a `DaqError` and also the builtin exception that old code already catches, so ``except TimeoutError`` goes
on working. An error is built from keyword values, its message is made from them, and they stay readable as
attributes: nobody needs to match on the text.

Tree::

    DaqError
    ├── waiting    AcquireTimeoutError, PortBusyError, DeadlockError, LockOrderError, LeaseRevokedError
    ├── exchanges  ExchangeTimeoutError, CommandTimeoutError, CommandCancelledError, QueueFullError, ReplyError,
    │              InstrumentError, TransactionBrokenError
    ├── lines      LineOpenError, LineLostError, LineUnusableError, LineFeatureError, SafeStateError,
    │              SessionClosedError, HungCallError
    ├── actors     AskTimeoutError, MailboxFullError, ActorStoppedError
    ├── data       PublishTimeoutError, AcknowledgeTimeoutError, RecordingError, RunFileError
    ├── lifecycle  StateError, StartError, StoppingError, StuckError, UnhealthyError,
    │              DoorClosedError, DoorInterruptedError
    └── you        ConfigError, GuardReleasedError, UnknownNameError
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar, cast, dataclass_transform

import attrs

Sent = Literal["no", "yes", "unknown"]
"""Whether a command reached the instrument: the first thing to know before trying again."""

_E = TypeVar("_E", bound=BaseException)


@dataclass_transform(kw_only_default=True)
def _error(cls: type[_E]) -> type[_E]:
    return attrs.define(cls, kw_only=True, slots=False, eq=False, str=False)


def is_bug(error: BaseException) -> bool:
    """Return whether *error* is a mistake in a program, which no retry cures, rather than a fault of the lab.

    A group is one if any of its leaves is.
    """
    if isinstance(error, BaseExceptionGroup):
        return any(is_bug(leaf) for leaf in error.exceptions)
    if isinstance(error, DaqError):
        return isinstance(error, (GuardReleasedError, LockOrderError, StateError, UnknownNameError))
    return isinstance(error, (TypeError, AttributeError, NameError, AssertionError, NotImplementedError, ImportError))


def _rebuild(cls: type[DaqError], values: dict[str, Any]) -> DaqError:
    return cls(**values)


def _seconds(value: float) -> str:
    return f"{value:.3g} s"


def _holder(held_by: str | None, held_for: float) -> str:
    return f"{held_by!r} has held it for {_seconds(held_for)}" if held_by is not None else "nobody holds it now"


def _looks_like_noise(received: bytes) -> bool:
    """Return whether a quarter of it or more are NULs and high bits that make no text.

    So text comes out at a wrong baud rate. Other control characters do not count: protocols frame their text with them.
    """
    text = received.decode("utf-8", "replace")  # a µ or an Ω that came whole is no noise
    return 0 < len(text) <= 4 * (text.count("\N{REPLACEMENT CHARACTER}") + text.count("\0"))


@_error
class DaqError(Exception):
    """The root of every error here. Catch it to catch them all."""

    def __str__(self) -> str:
        """Say what happened, where, and what to do."""
        return type(self).__name__

    def __reduce__(self) -> tuple[Any, ...]:
        """Let keyword-only errors be copied and sent between processes."""
        return _rebuild, (type(self), {a.name: getattr(self, a.name) for a in attrs.fields(cast("Any", type(self)))})


# --- waiting for a turn ------------------------------------------------------------------------------------------


@_error
class AcquireTimeoutError(DaqError, TimeoutError):
    """The line was not granted in time. Nothing was sent.

    Attributes:
        resource: The port or session that was wanted.
        wanted_by: Who asked.
        held_by: Who had it at the end of the wait, or None.
        held_for: Seconds for which that holder had had it.
        waited: Seconds waited.
        position: Place in the queue at the end, 1 is next; 0 when the line was granted but not ready.
        phase: ``"queue"`` while another owner had it, ``"open"`` or ``"resync"`` while the line was made ready.
        reason: Why it could not be opened so far, if it was tried.
        sent: Always ``"no"``.
    """

    resource: str
    wanted_by: str
    held_by: str | None
    held_for: float
    waited: float
    position: int
    phase: Literal["queue", "open", "resync"]
    reason: str = ""
    sent: Sent = "no"

    def __str__(self) -> str:
        if self.phase == "queue":
            why = f"{_holder(self.held_by, self.held_for)}; place {self.position} in the queue"
            cure = "wait longer, or let the holder release sooner"
        elif self.phase == "resync":
            why = "it was still being made clean, as after an unfinished exchange or when it has just been opened"
            cure = "wait longer, or lower quiet_time if the instrument is never that late"
        else:
            why = f"it could not be opened: {self.reason}" if self.reason else "it was still being opened"
            cure = "wait longer, and look at the device"
        return (
            f"{self.resource}: {self.wanted_by!r} was not granted it within {_seconds(self.waited)}: {why}. "
            f"Nothing was sent; {cure}."
        )


@_error
class PortBusyError(DaqError, OSError):
    """The line was asked for with ``timeout=0`` and somebody has it. Nothing was sent."""

    resource: str
    wanted_by: str
    held_by: str | None
    held_for: float
    waiting: int
    sent: Sent = "no"

    def __str__(self) -> str:
        return (
            f"{self.resource}: busy, so {self.wanted_by!r} did not get it: {_holder(self.held_by, self.held_for)}, "
            f"{self.waiting} waiting. Nothing was sent; pass a timeout to wait in line."
        )


@_error
class DeadlockError(DaqError, RuntimeError):
    """Waiting for this would close a circle in which everybody waits for somebody else. Nothing was sent.

    Attributes:
        resource: What was wanted.
        wanted_by: Who asked.
        circle: Each resource on the way round and who holds it; the last holder waits for *wanted_by*, or is them.
    """

    resource: str
    wanted_by: str
    circle: Sequence[tuple[str, str]]
    sent: Sent = "no"

    def __str__(self) -> str:
        way = "; ".join(f"{resource} is held by {owner!r}" for resource, owner in self.circle)
        return (
            f"{self.resource}: {self.wanted_by!r} would wait for ever: {way}, and so back to {self.wanted_by!r}. "
            "Nothing was sent; release what you have first, or take all lines at once with acquire_all()."
        )


@_error
class LockOrderError(DaqError, RuntimeError):
    """A line was asked for by somebody who has one of a higher kind: serial lines come before devices before VISA."""

    resource: str
    wanted_by: str
    kind: str
    held: str
    held_kind: str
    sent: Sent = "no"

    def __str__(self) -> str:
        return (
            f"{self.resource} ({self.kind}): {self.wanted_by!r} asked for it while holding {self.held} "
            f"({self.held_kind}). Take serial lines first, then other devices, then VISA; nothing was sent."
        )


@_error
class LeaseRevokedError(DaqError, ConnectionError):
    """The line was taken back from its holder, who may not touch it any more."""

    resource: str
    owner: str
    action: str
    reason: str
    sent: Sent = "unknown"

    def __str__(self) -> str:
        return (
            f"{self.resource}: was taken back from {self.owner!r} during {self.action}: {self.reason} "
            f"(command sent: {self.sent}). Acquire it again."
        )


# --- exchanges with an instrument --------------------------------------------------------------------------------


@_error
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
            f"{self.resource}: {self.operation} of {self.owner!r} did not finish within {_seconds(self.waited)}: "
            f"{got} (command sent: {self.sent}). {cure}"
        )


@_error
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
            f"{self.resource}: {self.command!r} of {self.owner!r} did not finish within {_seconds(self.waited)}: "
            f"{where}. {cure}"
        )


@_error
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


@_error
class CommandCancelledError(DaqError, ConnectionAbortedError):
    """A command that was put into the queue was taken back by its caller, who asked for its reply all the same."""

    resource: str
    command: str
    owner: str
    sent: Sent

    def __str__(self) -> str:
        return f"{self.resource}: {self.owner!r} has cancelled {self.command!r} (command sent: {self.sent})."


@_error
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


@_error
class TransactionBrokenError(DaqError, ConnectionError):
    """The connection was opened anew inside a transaction: what was set up before may be gone."""

    resource: str
    owner: str
    command: str
    reason: str
    sent: Sent = "no"

    def __str__(self) -> str:
        return (
            f"{self.resource}: {self.command!r} of {self.owner!r} was not sent: the connection was opened anew since "
            f"their transaction began ({self.reason}), and the instrument may have lost what was set up in it. "
            "Leave the transaction and begin it again."
        )


@_error
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


# --- lines: ports and sessions -----------------------------------------------------------------------------------


@_error
class LineOpenError(DaqError, OSError):
    """A serial port or a VISA resource could not be opened.

    Attributes:
        resource: The path or the resource name.
        reason: What the operating system or the VISA library said.
        hint: What to do about it.
        holder_pids: The processes that have it, where that is the reason and they are known.
    """

    resource: str
    reason: str
    hint: str = ""
    holder_pids: Sequence[int] = ()
    sent: Sent = "no"

    def __str__(self) -> str:
        return f"{self.resource}: cannot be opened: {self.reason}." + (f" {self.hint}" if self.hint else "")


@_error
class LineLostError(DaqError, ConnectionError):
    """The other end of the line went away: unplugged, powered off, or the connection broke."""

    resource: str
    owner: str
    reason: str
    sent: Sent = "unknown"

    def __str__(self) -> str:
        return (
            f"{self.resource}: lost while {self.owner!r} used it: {self.reason} (command sent: {self.sent}). "
            "It is opened again at the next use; check the cable and the power."
        )


@_error
class LineUnusableError(DaqError, ConnectionError):
    """The line could not be made clean after an unfinished exchange, so it refuses to hand out doubtful replies."""

    resource: str
    reason: str
    retry_in: float | None = None
    sent: Sent = "no"

    def __str__(self) -> str:
        retry = (
            f"The next try is in {_seconds(self.retry_in)}."
            if self.retry_in is not None
            else "Close it, check the instrument, and open it again."
        )
        return f"{self.resource}: refuses to go on, because {self.reason}. Nothing was sent. {retry}"


@_error
class SafeStateError(DaqError, ConnectionError):
    """The safe state of a line was not reached, so the lab does not start."""

    resource: str
    reason: str

    def __str__(self) -> str:
        return f"{self.resource}: it cannot be made safe: {self.reason}. Look at the instrument itself."


@_error
class LineFeatureError(DaqError, OSError):
    """The device or its driver has no such thing: modem lines, a break, that baud rate."""

    resource: str
    owner: str
    action: str
    reason: str

    def __str__(self) -> str:
        return f"{self.resource}: {self.action} of {self.owner!r} is not possible on this device: {self.reason}."


@_error
class SessionClosedError(DaqError, ConnectionError):
    """The port or session was closed while somebody waited for it or before they asked."""

    resource: str
    owner: str
    sent: Sent = "no"

    def __str__(self) -> str:
        return f"{self.resource}: was closed under {self.owner!r} (command sent: {self.sent}). Open a new one."


@_error
class HungCallError(DaqError, TimeoutError):
    """A call into a blocking library did not come back; its thread was given up.

    Attributes:
        thread: Name of the thread that is still inside the call.
        call: The function that hangs.
        waited: Seconds waited, grace included.
    """

    thread: str
    call: str
    waited: float
    sent: Sent = "unknown"

    def __str__(self) -> str:
        return (
            f"{self.call} in thread {self.thread!r} has not returned for {_seconds(self.waited)}; the thread was "
            "given up and its resource is not used again. The driver or the instrument hangs: power-cycle it."
        )


# --- actors ------------------------------------------------------------------------------------------------------


@_error
class AskTimeoutError(DaqError, TimeoutError):
    """An actor did not answer by the deadline of the ask.

    Attributes:
        actor: Name of the actor.
        message: The message, as text.
        phase: ``"mailbox"`` (no room), ``"queued"`` (never handled, and never will be) or ``"handling"``.
    """

    actor: str
    message: str
    phase: Literal["mailbox", "queued", "handling"]
    waited: float

    def __str__(self) -> str:
        where = {
            "mailbox": "its mailbox was full",
            "queued": "it had not come to it, and will not",
            "handling": "it was still at it; its answer will be dropped",
        }[self.phase]
        return f"actor {self.actor!r} did not answer {self.message} within {_seconds(self.waited)}: {where}."


@_error
class MailboxFullError(DaqError, OSError):
    """An actor's mailbox had no room for a message that could not wait."""

    actor: str
    capacity: int

    def __str__(self) -> str:
        return f"the mailbox of actor {self.actor!r} is full ({self.capacity} messages): tell it less, or await tell()."


@_error
class ActorStoppedError(DaqError, ConnectionError):
    """The actor is stopping or has stopped and takes no more messages.

    Attributes:
        handling: The message that it was at when it was ended, as text; None if it had not come to it.
    """

    actor: str
    handling: str | None = None

    def __str__(self) -> str:
        if self.handling is not None:
            return f"actor {self.actor!r} was ended while it handled {self.handling}, which is not handled again."
        return f"actor {self.actor!r} has stopped and takes no more messages."


# --- data --------------------------------------------------------------------------------------------------------


@_error
class PublishTimeoutError(DaqError, TimeoutError):
    """A subscriber that may not lose readings was too slow; the reading was given to nobody."""

    instrument: str
    subscriber: str
    waited: float

    def __str__(self) -> str:
        return (
            f"a reading of {self.instrument!r} could not be published within {_seconds(self.waited)}: subscriber "
            f"{self.subscriber!r} is full and may lose nothing. It was given to nobody; publish less or read faster."
        )


@_error
class RecordingError(DaqError, OSError):
    """The recorder could not write."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: cannot record: {self.reason}. What was acknowledged before is in the file."


@_error
class AcknowledgeTimeoutError(DaqError, TimeoutError):
    """A reading was not in the run file in time. It may still get there."""

    path: str
    instrument: str
    seq: int
    waited: float

    def __str__(self) -> str:
        return (
            f"{self.path}: reading {self.seq} of {self.instrument!r} was not acknowledged within "
            f"{_seconds(self.waited)}; it may still be, or it was never published."
        )


@_error
class RunFileError(DaqError, OSError):
    """A run file cannot be read."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: cannot be read as a run: {self.reason}."


# --- lifecycle ---------------------------------------------------------------------------------------------------


@_error
class StateError(DaqError, RuntimeError):
    """Something was asked for that the state of a manager, a recorder or a door does not allow."""

    action: str
    expected: str
    actual: str
    hint: str = ""

    def __str__(self) -> str:
        text = f"{self.action} needs it to be {self.expected}, and it is {self.actual}."
        return f"{text} {self.hint}" if self.hint else text


@_error
class StartError(DaqError, RuntimeError):
    """The lab did not start; what had started was stopped again, in order.

    Attributes:
        member: What failed, for example ``"visa.dmm"``.
        cause: Its exception (also ``__cause__``).
        report: How the parts that had started were stopped.
    """

    member: str
    cause: BaseException
    report: Any = None

    def __str__(self) -> str:
        return f"{self.member} did not start: {str(self.cause) or type(self.cause).__name__}"


@_error
class StoppingError(DaqError, ConnectionError):
    """A part of the lab is stopping and takes nothing new."""

    subsystem: str
    action: str

    def __str__(self) -> str:
        return f"{self.subsystem} is stopping or not started: {self.action} was refused."


@_error
class StuckError(DaqError, RuntimeError):
    """A part of the lab does not end although it was cancelled, so it cannot be started again beside itself.

    Attributes:
        member: Who it is, for example ``"v2.camera"``; several are joined by commas.
        where: What it is at: its frames, innermost first, or the names of its threads.
    """

    member: str
    where: Sequence[str] = ()

    def __str__(self) -> str:
        at = f" at {'; '.join(self.where)}" if self.where else ""
        return f"{self.member} does not end; it is still{at}, and nothing is started beside it."


@_error
class UnhealthyError(DaqError, RuntimeError):
    """A health check found something wrong. The report says what."""

    report: Any

    def __str__(self) -> str:
        return str(self.report)


@_error
class DoorClosedError(DaqError, ConnectionError):
    """A thread used its door to an instrument when its part of the lab had stopped or was stopping.

    Attributes:
        resource: What the door leads to.
        owner: Whose door it is.
        reason: Why it is closed.
        sent: Whether the command reached the instrument: ``"unknown"`` if it was cut off in the middle.
    """

    resource: str
    owner: str
    reason: str = "its part of the lab is stopping"
    sent: Sent = "no"

    def __str__(self) -> str:
        return (
            f"{self.resource}: the door of {self.owner!r} is closed, because {self.reason} (command sent: {self.sent})."
        )


@_error
class DoorInterruptedError(DoorClosedError):
    """A thread is to stop, and is told so by the call that it is at or makes next, once; then its doors serve again.

    So what it does on the way out (``finally``, a shutdown procedure) reaches the instrument, for as long as its
    member may take to stop.
    """

    def __str__(self) -> str:
        return (
            f"{self.resource}: {self.owner!r} is to stop, so this call was interrupted (command sent: {self.sent}); "
            "its doors serve until its stop_timeout has passed, so it can still leave the instrument as it should be."
        )


# --- mistakes that only a changed program or file can cure ------------------------------------------------------


@_error
class ConfigError(DaqError, ValueError):
    """A configuration is wrong; all that is wrong with it is listed.

    Attributes:
        problems: One sentence each, as ``lab.toml:12: visa.dmm.timeout: ...``.
    """

    problems: Sequence[str]

    def __str__(self) -> str:
        return "\n".join(self.problems)


@_error
class GuardReleasedError(DaqError, ValueError):
    """A guard was used after its ``async with`` block had ended."""

    resource: str
    owner: str
    action: str
    sent: Sent = "no"

    def __str__(self) -> str:
        return (
            f"{self.resource}: {self.action} by {self.owner!r} after its guard was released. "
            "Acquire again and use the guard inside its `async with` block."
        )


@_error
class UnknownNameError(DaqError, LookupError):
    """There is no port, session or member of that name."""

    kind: str
    name: str
    known: Sequence[str]
    suggestion: str | None = None

    def __str__(self) -> str:
        text = f"no {self.kind} called {self.name!r}"
        if self.suggestion is not None:
            text += f" (did you mean {self.suggestion!r}?)"
        return f"{text}; known: {', '.join(self.known) or 'none'}."
