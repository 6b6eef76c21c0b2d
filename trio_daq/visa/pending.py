"""One command on its way through the queue, seen from both ends.

The caller waits for it and may leave at any moment; the worker carries it out or passes it over. It is a record with
rules, and talks to nobody.

Invariant: it ends exactly once, in a reply or in an error; a command whose caller left before `begin` is never sent.
"""

from __future__ import annotations

from typing import Literal

import outcome
import trio

Phase = Literal["place", "queued", "in_flight", "resync"]


class PendingCommand:
    """A command, who wants it, until when, and how far it has come.

    Attributes:
        text: The command, without its termination.
        expects_reply: Whether the instrument answers it.
        owner: Who asked.
        asked_at: Trio time at which they asked.
        deadline: Trio time by which they want to know.
        phase: Where it is.
        wanted: Whether the caller still waits.
        result: The reply or the error, once there is one.
    """

    __slots__ = ("_done", "asked_at", "deadline", "expects_reply", "owner", "phase", "result", "text", "wanted")

    def __init__(self, text: str, expects_reply: bool, owner: str, timeout: float) -> None:
        self.text = text
        self.expects_reply = expects_reply
        self.owner = owner
        self.asked_at = trio.current_time()
        self.deadline = self.asked_at + timeout
        self.phase: Phase = "place"
        self.wanted = True
        self.result: outcome.Outcome[str] | None = None
        self._done = trio.Event()

    def is_due(self) -> bool:
        """Return whether it is still to be sent: its caller waits and its deadline has not passed."""
        return self.wanted and self.result is None and trio.current_time() < self.deadline

    def end(self, result: outcome.Outcome[str]) -> None:
        """Give the caller what it waits for. Only the first result counts."""
        if self.result is None:
            self.result = result
            self._done.set()

    async def wait(self) -> None:
        """Wait until it has ended."""
        await self._done.wait()
