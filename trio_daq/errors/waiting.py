"""Errors of those who wait for their turn on a line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from trio_daq.errors.daq_error import DaqError, Sent, error, holder, seconds


@error
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
            why = f"{holder(self.held_by, self.held_for)}; place {self.position} in the queue"
            cure = "wait longer, or let the holder release sooner"
        elif self.phase == "resync":
            why = "it was still being made clean, as after an unfinished exchange or when it has just been opened"
            cure = "wait longer, or lower quiet_time if the instrument is never that late"
        else:
            why = f"it could not be opened: {self.reason}" if self.reason else "it was still being opened"
            cure = "wait longer, and look at the device"
        return (
            f"{self.resource}: {self.wanted_by!r} was not granted it within {seconds(self.waited)}: {why}. "
            f"Nothing was sent; {cure}."
        )


@error
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
            f"{self.resource}: busy, so {self.wanted_by!r} did not get it: {holder(self.held_by, self.held_for)}, "
            f"{self.waiting} waiting. Nothing was sent; pass a timeout to wait in line."
        )


@error
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


@error
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


@error
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
