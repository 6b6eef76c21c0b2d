"""Errors of starting and stopping a lab and its members."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trio_daq.errors.daq_error import DaqError, Sent, error


@error
class StateError(DaqError, RuntimeError):
    """Something was asked for that the state of a manager, a recorder or a door does not allow."""

    action: str
    expected: str
    actual: str
    hint: str = ""

    def __str__(self) -> str:
        text = f"{self.action} needs it to be {self.expected}, and it is {self.actual}."
        return f"{text} {self.hint}" if self.hint else text


@error
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


@error
class StoppingError(DaqError, ConnectionError):
    """A part of the lab is stopping and takes nothing new."""

    subsystem: str
    action: str

    def __str__(self) -> str:
        return f"{self.subsystem} is stopping or not started: {self.action} was refused."


@error
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


@error
class UnhealthyError(DaqError, RuntimeError):
    """A health check found something wrong. The report says what."""

    report: Any

    def __str__(self) -> str:
        return str(self.report)


@error
class DoorClosedError(DaqError, ConnectionError):
    """Old code used its door to an instrument when its part of the lab had stopped or was stopping.

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


@error
class DoorInterruptedError(DoorClosedError):
    """A thread is to stop, and is told so by the call that it is at or makes next, once; then its doors serve again.

    A call that writes and expects nothing raises it when it has written. So what it does on the way out (``finally``, a
    shutdown procedure) reaches the instrument, for as long as its member may take to stop.
    """

    def __str__(self) -> str:
        return (
            f"{self.resource}: {self.owner!r} is to stop, so this call was interrupted (command sent: {self.sent}); "
            "its doors serve until its stop_timeout has passed, so it can still leave the instrument as it should be."
        )
