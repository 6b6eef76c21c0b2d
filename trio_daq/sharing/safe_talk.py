"""The steps that make an instrument safe, and how far they came.

It knows no line: it is handed a way to write and a way to read, and decides what is said when and what the outcome is.

Invariant: every command is written, however wrong the answers before it were; only a line that is gone ends the talk.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

import attrs
import trio

from trio_daq.wire import Exchange, printable


@attrs.frozen
class SafeStateResult:
    """What became of an attempt to make an instrument safe.

    Attributes:
        outcome: ``"confirmed"``: the last step was a query, and the reply was as expected; ``"sent"``: all was written,
            and nothing was asked that would confirm it; ``"failed"``: anything else.
        reason: Why it failed; empty if it did not.
    """

    outcome: Literal["confirmed", "sent", "failed"]
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.outcome}: {self.reason}" if self.reason else self.outcome


class SafeTalk:
    """One attempt.

    Args:
        steps: What to say and what to hear.
        deadline: Trio time of its end.

    Attributes:
        deadline: The same.
        trouble: What is wrong so far, or would be if it ended now.
    """

    def __init__(self, steps: Sequence[Exchange], deadline: float) -> None:
        self.trouble = "" if steps else "it has no safe_state"
        self._steps = steps
        self.deadline = deadline
        self._confirmed = False
        self._doing = "" if self.trouble else "it was not reached in time"

    async def run(
        self, write: Callable[[Exchange], Awaitable[None]], read: Callable[[float], Awaitable[bytes | None]]
    ) -> None:
        """Take all steps; those of an earlier try are taken again.

        Args:
            write: Writes the command of a step.
            read: Returns the next reply that comes before a Trio time, None if none does.
        """
        # What a query may wait for; a write that follows the last one has its share too.
        shares = sum(bool(step.query) for step in self._steps) + bool(self._steps[-1].write)
        self.trouble = ""
        for step in self._steps:
            self._doing = f"{printable(step.write or step.query)!r} could not be written in time"
            await write(step)
            self._confirmed = False
            if step.query:
                now = trio.current_time()
                self._doing = f"it did not answer {printable(step.query)!r} in time"
                self._confirmed = await self._hear(step, read, now + (self.deadline - now) / shares)
                shares -= 1
        self._doing = ""

    def result(self) -> SafeStateResult:
        """Return what became of it."""
        if trouble := self.trouble or self._doing:
            return SafeStateResult("failed", trouble)
        return SafeStateResult("confirmed" if self._confirmed else "sent")

    async def _hear(self, step: Exchange, read: Callable[[float], Awaitable[bytes | None]], deadline: float) -> bool:
        """Read until the reply that was expected; what else comes may be a late reply to somebody, and is dropped."""
        trouble = self._doing
        while (reply := await read(deadline)) is not None:
            if step.accepts(reply):
                return bool(step.expect)
            expected = printable(step.expect, 60)
            trouble = self._doing = (
                f"it answers {printable(step.query)!r} by {printable(reply, 60)!r}, and not by {expected!r}"
            )
        self.trouble = self.trouble or trouble
        return False
