"""Errors of lines: ports and sessions that do not open, are lost, or cannot do something."""

from __future__ import annotations

from collections.abc import Sequence

from trio_daq.errors.daq_error import DaqError, Sent, error, seconds


@error
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


@error
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


@error
class LineUnusableError(DaqError, ConnectionError):
    """The line could not be made clean after an unfinished exchange, so it refuses to hand out doubtful replies."""

    resource: str
    reason: str
    retry_in: float | None = None
    sent: Sent = "no"

    def __str__(self) -> str:
        retry = (
            f"The next try is in {seconds(self.retry_in)}."
            if self.retry_in is not None
            else "Close it, check the instrument, and open it again."
        )
        return f"{self.resource}: refuses to go on, because {self.reason}. Nothing was sent. {retry}"


@error
class SafeStateError(DaqError, ConnectionError):
    """The safe state of a line was not reached, so the lab does not start."""

    resource: str
    reason: str

    def __str__(self) -> str:
        return f"{self.resource}: it cannot be made safe: {self.reason}. Look at the instrument itself."


@error
class LineFeatureError(DaqError, OSError):
    """The device or its driver has no such thing: modem lines, a break, that baud rate."""

    resource: str
    owner: str
    action: str
    reason: str

    def __str__(self) -> str:
        return f"{self.resource}: {self.action} of {self.owner!r} is not possible on this device: {self.reason}."


@error
class SessionClosedError(DaqError, ConnectionError):
    """The port or session was closed while somebody waited for it or before they asked."""

    resource: str
    owner: str
    sent: Sent = "no"

    def __str__(self) -> str:
        return f"{self.resource}: was closed under {self.owner!r} (command sent: {self.sent}). Open a new one."


@error
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
            f"{self.call} in thread {self.thread!r} has not returned for {seconds(self.waited)}; the thread was "
            "given up and its resource is not used again. The driver or the instrument hangs: power-cycle it."
        )
