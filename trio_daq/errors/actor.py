"""Errors of asking actors."""

from __future__ import annotations

from typing import Literal

from trio_daq.errors.daq_error import DaqError, error, seconds


@error
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
        return f"actor {self.actor!r} did not answer {self.message} within {seconds(self.waited)}: {where}."


@error
class MailboxFullError(DaqError, OSError):
    """An actor's mailbox had no room for a message that could not wait."""

    actor: str
    capacity: int

    def __str__(self) -> str:
        return f"the mailbox of actor {self.actor!r} is full ({self.capacity} messages): tell it less, or await tell()."


@error
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
