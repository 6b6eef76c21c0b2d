"""Drive a Trio run from plain synchronous code, on a clock that stands still until it is told to go on.

For state machines of Hypothesis, whose rules are synchronous while the world they act on is not. The run is a guest
(`trio.lowlevel.start_guest_run`) in the calling thread: it moves only inside a call of the driver.

Waits for descriptors and threads are not seen by the clock: use links that are pure tasks, such as
`trio_daq.sim.MemoryLine`.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self, TypeVar, TypeVarTuple

import outcome
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

_HUNG_AFTER = 30.0
"""Seconds of the real clock after which a run that does not come back is taken for hung."""


class TrioDriver:
    """A Trio run in steps, as a ``with`` block. Leaving it cancels what still runs.

    Example:
        >>> with TrioDriver() as driver:
        ...     said = []
        ...     async def speak_later():
        ...         await trio.sleep(5)
        ...         said.append(trio.current_time())
        ...     driver.start(speak_later)
        ...     driver.advance(4)
        ...     print(said)
        ...     driver.advance(4)
        ...     print(said)
        []
        [5.0]
    """

    def __init__(self) -> None:
        self._clock = MockClock()
        self._steps: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._end: outcome.Outcome[None] | None = None
        self._nursery: trio.Nursery | None = None

    def __enter__(self) -> Self:
        trio.lowlevel.start_guest_run(
            self._main,
            run_sync_soon_threadsafe=self._steps.put,
            done_callback=self._note_end,
            host_uses_signal_set_wakeup_fd=True,
            clock=self._clock,
        )
        self._pump(lambda: self._nursery is not None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def start(self, work: Callable[[*_Ts], Awaitable[object]], *arguments: *_Ts) -> None:
        """Start a task, and let it run until every task waits."""
        self.call(self._living_nursery().start_soon, work, *arguments)
        self.settle()

    def call(self, work: Callable[[*_Ts], _T], *arguments: *_Ts) -> _T:
        """Return ``work(*arguments)``, called inside the run."""

        async def calling() -> _T:
            return work(*arguments)

        return self.run(calling)

    def run(self, work: Callable[[*_Ts], Awaitable[_T]], *arguments: *_Ts) -> _T:
        """Return what the async function returns; time stands still meanwhile."""
        results: list[outcome.Outcome[Any]] = []

        async def running() -> None:
            result = await outcome.acapture(work, *arguments)
            if isinstance(result, outcome.Error) and isinstance(result.error, trio.Cancelled):
                raise result.error  # the run is ending: it is told how by `_pump`
            results.append(result)

        def start() -> None:
            with contextlib.suppress(RuntimeError):  # a task has failed and the nursery is closing: `_pump` tells it
                self._living_nursery().start_soon(running)

        self._refuse_if_ended()
        self._token.run_sync_soon(start)
        self._pump(lambda: bool(results))
        return results[0].unwrap()  # type: ignore[no-any-return]

    def settle(self) -> None:
        """Let all tasks run until every one waits."""
        self.run(wait_all_tasks_blocked)

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass, stopping at each deadline on the way, so that nothing is late."""
        left = seconds
        while left > 0:
            step = min(left, max(0.0, self.call(_to_next_deadline)))
            self.call(self._clock.jump, step)
            self.settle()
            left -= step if step > 0 else 1e-9  # a deadline of this very moment that nobody woke at

    def close(self) -> None:
        """Cancel what still runs and end the run. Raises what a task raised."""
        if self._end is None:
            self._token.run_sync_soon(self._living_nursery().cancel_scope.cancel)
            self._pump(lambda: self._end is not None)
        self._raise_its_end()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await trio.sleep_forever()

    def _note_end(self, end: outcome.Outcome[None]) -> None:
        self._end = end

    def _pump(self, until: Callable[[], bool]) -> None:
        while not until():
            self._refuse_if_ended()
            self._steps.get(timeout=_HUNG_AFTER)()

    def _refuse_if_ended(self) -> None:
        if self._end is not None:
            self._raise_its_end()
            raise RuntimeError("the Trio run has ended")

    def _raise_its_end(self) -> None:
        """Raise what ended the run, once."""
        assert self._end is not None
        end, self._end = self._end, outcome.Value(None)
        end.unwrap()

    def _living_nursery(self) -> trio.Nursery:
        if self._nursery is None:
            raise RuntimeError("enter the driver first: with TrioDriver() as driver")
        return self._nursery


def _to_next_deadline() -> float:
    return trio.lowlevel.current_statistics().seconds_to_next_deadline
