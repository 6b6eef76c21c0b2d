"""Cancel one task at its n-th step, to show that cancellation anywhere leaves everything right."""

from __future__ import annotations

from types import TracebackType
from typing import Literal, Self

import trio


class CancelAtStep(trio.abc.Instrument):
    """Cancel *scope* right before or after the n-th step of the task that enters this ``with`` block.

    A step is what a task does between two waits. Used with n = 1, 2, 3 … until `reached` is false, it cancels at every
    step there is.

    Args:
        scope: What to cancel.
        at: The number of the step, from 1.
        when: ``"before"`` or ``"after"`` that step.

    Attributes:
        steps: Steps so far.

    Example:
        >>> async def main():
        ...     for at in range(1, 10):
        ...         with trio.CancelScope() as scope, CancelAtStep(scope, at) as cancelling:
        ...             await trio.sleep(0)
        ...             await trio.sleep(0)
        ...         if not cancelling.reached:
        ...             return at - 1
        >>> trio.run(main)
        2
    """

    def __init__(self, scope: trio.CancelScope, at: int, when: Literal["before", "after"] = "before") -> None:
        self.steps = 0
        self._scope = scope
        self._at = at
        self._when = when
        self._task: trio.lowlevel.Task | None = None

    @property
    def reached(self) -> bool:
        """Whether there were so many steps."""
        return self.steps >= self._at

    def __enter__(self) -> Self:
        self._task = trio.lowlevel.current_task()
        trio.lowlevel.add_instrument(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        trio.lowlevel.remove_instrument(self)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Called by Trio."""
        self._look(task, "before")

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Called by Trio."""
        self._look(task, "after")

    def _look(self, task: trio.lowlevel.Task, when: str) -> None:
        if task is self._task and when == self._when:
            self.steps += 1
            if self.steps == self._at:
                self._scope.cancel()
