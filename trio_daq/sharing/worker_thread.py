"""Run a blocking library in one thread of its own, from Trio, without ever being held up by it.

Trio's shared thread limiter would let one hung instrument starve all others, and a library may want all its calls in
one thread. So each resource has a thread; what hangs is given up with it. The module knows no library.

Invariants: at most one thread life is current, and calls of one life run in order, one at a time. A result is looked
at in the Trio thread before its caller is woken, so a caller that left is never woken by it.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar, TypeVarTuple

import attrs
import outcome
import trio

from trio_daq.errors import HungCallError

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


@attrs.define(eq=False)
class _Call:
    work: Callable[[], Any]
    token: trio.lowlevel.TrioToken
    caller: trio.lowlevel.Task | None
    result: outcome.Outcome[Any] | None = None

    def run(self) -> None:
        self.result = outcome.capture(self.work)
        with contextlib.suppress(trio.RunFinishedError):  # the program ended meanwhile: nobody is left to tell
            self.token.run_sync_soon(self._deliver)

    def _deliver(self) -> None:
        if self.caller is not None:
            caller, self.caller = self.caller, None
            trio.lowlevel.reschedule(caller)


class _Life:
    """One daemon thread and its queue; it ends when it takes None from the queue."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def _work(self) -> None:
        while (call := self.calls.get()) is not None:
            call.run()


class WorkerThread:
    """One thread for one blocking resource.

    Args:
        name: What the thread is for; it shows in errors, logs and debuggers.

    Example:
        >>> async def main():
        ...     worker = WorkerThread("adder")
        ...     print(await worker.run(sum, [1, 2]))
        ...     worker.stop()
        >>> trio.run(main)
        3
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._lives = itertools.count(1)
        self._life: _Life | None = None
        self._abandoned: list[str] = []

    async def run(self, work: Callable[[*_Ts], _T], *args: *_Ts, timeout: float = math.inf, grace: float = 0.5) -> _T:
        """Call ``work(*args)`` in the thread and return what it returns.

        Cancellation leaves the call running and drops its result; the next call waits for it to end.

        Args:
            work: What to call.
            args: Its arguments.
            timeout: Seconds after which the call ought to have ended by itself.
            grace: Seconds that it may take longer before its thread is given up.

        Raises:
            HungCallError: If it had not returned after *timeout* and *grace*. Its thread is then left to itself, and
                the next call gets a new one.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        life = self._life
        if life is None:
            life = self._life = _Life(f"{self.name} #{next(self._lives)}")
        call = _Call(lambda: work(*args), trio.lowlevel.current_trio_token(), trio.lowlevel.current_task())
        life.calls.put(call)

        def forget(_: Any) -> trio.lowlevel.Abort:
            call.caller = None
            return trio.lowlevel.Abort.SUCCEEDED

        with trio.move_on_after(timeout + grace):
            await trio.lowlevel.wait_task_rescheduled(forget)
        if call.result is None:
            self._give_up(life)
            name = getattr(work, "__qualname__", repr(work))
            raise HungCallError(thread=life.name, call=name, waited=timeout + grace)
        return call.result.unwrap()  # type: ignore[no-any-return]

    def stop(self) -> None:
        """Let the thread end after the calls it has; the next `run` would start a new one."""
        if self._life is not None:
            self._life.calls.put(None)
            self._life = None

    def abandoned(self) -> tuple[str, ...]:
        """Return the names of the threads that were given up."""
        return tuple(self._abandoned)

    def _give_up(self, life: _Life) -> None:
        if self._life is life:
            self._abandoned.append(life.name)
            self.stop()
