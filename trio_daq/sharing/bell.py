"""A place where one task waits until it is rung: what a descriptor is to Trio, for things that have none.

A bell knows no condition. Who waits looks at their condition before and after; who changes it rings.

Invariant: at most one task waits, and a ring that nobody waits for is forgotten.
"""

from __future__ import annotations

import outcome
import trio


class Bell:
    """One waiter at a time, to be woken again and again. All of it belongs to the Trio thread."""

    __slots__ = ("_waiter",)

    def __init__(self) -> None:
        self._waiter: trio.lowlevel.Task | None = None

    @trio.lowlevel.enable_ki_protection
    async def wait(self) -> None:
        """Wait for the next `ring`.

        Raises:
            trio.BusyResourceError: If another task waits already.
            Exception: What `refuse` was given.
        """
        if self._waiter is not None:
            raise trio.BusyResourceError(f"task {self._waiter.name!r} waits here already")
        self._waiter = trio.lowlevel.current_task()

        def leave(_: object) -> trio.lowlevel.Abort:
            self._waiter = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(leave)

    @trio.lowlevel.enable_ki_protection
    def ring(self) -> None:
        """Wake who waits."""
        self._wake(outcome.Value(None))

    @trio.lowlevel.enable_ki_protection
    def refuse(self, error: Exception) -> None:
        """Wake who waits, with *error*."""
        self._wake(outcome.Error(error))

    def _wake(self, result: outcome.Outcome[None]) -> None:
        if self._waiter is not None:
            task, self._waiter = self._waiter, None
            trio.lowlevel.reschedule(task, result)
