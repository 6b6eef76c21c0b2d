"""Run a blocking library in one thread of its own, from Trio, without ever being held up by it.

Trio's shared thread limiter would let one hung instrument starve all others, and a library may want all its calls in
one thread. So each resource has a thread; a call that hangs is given up together with its thread, and what that thread
had opened is closed by nobody but that thread, should it ever wake up. The module knows no library.

Invariants: at most one thread life is current, and calls of one life run in order, one at a time. A caller is woken
only by the result of the call that it waits for.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar, TypeVarTuple

import outcome
import trio

from trio_daq.errors import HungCallError

_log = logging.getLogger("trio_daq.sharing")

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


class _Call:
    """One call on its way to the thread and back.

    Exactly one side ends it, under the lock: the thread by having a result, or the caller by leaving. So a wake-up
    never meets another wait of the caller, and a call that was left before it began is never made.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        self.result: outcome.Outcome[Any] | None = None
        self._work = work
        self._left = False
        self._lock = threading.Lock()
        self._token = trio.lowlevel.current_trio_token()
        self._caller = trio.lowlevel.current_task()

    def run(self) -> None:
        if self._left:
            return
        result = outcome.capture(self._work)
        with self._lock:
            self.result = None if self._left else result
        if self.result is None:
            return
        with contextlib.suppress(trio.RunFinishedError):  # the program ended meanwhile: nobody is left to tell
            self._token.run_sync_soon(trio.lowlevel.reschedule, self._caller)

    def leave(self, _: object = None) -> trio.lowlevel.Abort:
        with self._lock:
            if self.result is not None:
                return trio.lowlevel.Abort.FAILED  # the wake-up is on its way, and it is for this very wait
            self._left = True
        return trio.lowlevel.Abort.SUCCEEDED


class _Life:
    """One daemon thread and its queue; None in the queue ends it, after its last acts."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self.last_acts = contextlib.ExitStack()
        self.ended = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        while (call := self.calls.get()) is not None:
            call.run()
        try:
            self.last_acts.close()
        except Exception as error:  # noqa: BLE001 - the thread has nobody to raise to; it closes and ends
            _log.warning("%s: could not be closed: %s", self.name, error)
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self.ended.set)


class WorkerThread:
    """One thread for one blocking resource.

    Args:
        name: What the thread is for; it shows in errors, logs and debuggers.

    Example:
        >>> async def main():
        ...     worker = WorkerThread("adder")
        ...     print(await worker.run(sum, [1, 2]))
        ...     await worker.aclose(timeout=1)
        >>> trio.run(main)
        3
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._lives = itertools.count(1)
        self._life: _Life | None = None
        self._abandoned: list[str] = []

    @property
    def thread(self) -> threading.Thread | None:
        """The thread that calls are made in now, if there is one."""
        return self._life.thread if self._life is not None else None

    @trio.lowlevel.enable_ki_protection
    async def run(
        self,
        work: Callable[[*_Ts], _T],
        *args: *_Ts,
        timeout: float = math.inf,
        grace: float = 0.5,
        closing: Callable[[_T], object] | None = None,
    ) -> _T:
        """Call ``work(*args)`` in the thread and return what it returns.

        Cancelled before the call began, it is never made; cancelled later, it goes on, its result is dropped, and
        the next call waits for it to end.

        Args:
            work: What to call.
            args: Its arguments.
            timeout: Seconds after which the call ought to have ended by itself.
            grace: Seconds that it may take longer before its thread is given up.
            closing: Makes the result something that the thread closes as its last act, by ``closing(result)``,
                whether or not anybody waited for it. Several are closed in the reverse order.

        Raises:
            HungCallError: If it had not returned after *timeout* and *grace*. Its thread is then left to itself, and
                the next call gets a new one.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        life = self._life
        if life is None:
            life = self._life = _Life(f"{self.name} #{next(self._lives)}")

        def make_call() -> _T:
            result = work(*args)
            if closing is not None:
                life.last_acts.callback(closing, result)
            return result

        call = _Call(make_call)
        life.calls.put(call)
        with trio.move_on_after(timeout + grace):
            await trio.lowlevel.wait_task_rescheduled(call.leave)
        if call.result is None:
            if self._life is life:
                self.stop()
                self._abandoned.append(life.name)
            name = getattr(work, "__qualname__", repr(work))
            raise HungCallError(thread=life.name, call=name, waited=timeout + grace)
        return call.result.unwrap()  # type: ignore[no-any-return]

    @trio.lowlevel.enable_ki_protection
    def stop(self) -> None:
        """Let the thread end, after the calls it has and its last act; the next `run` would start a new one."""
        if self._life is not None:
            self._life.calls.put(None)
            self._life = None

    @trio.lowlevel.enable_ki_protection
    async def aclose(self, timeout: float) -> bool:
        """Stop, and return whether the thread ended within *timeout* seconds. Shielded from cancellation."""
        life = self._life
        if life is None:
            return True
        self.stop()
        with trio.CancelScope(shield=True), trio.move_on_after(timeout):
            await life.ended.wait()
        if not life.ended.is_set():
            self._abandoned.append(life.name)
        return life.ended.is_set()

    def abandoned(self) -> tuple[str, ...]:
        """Return the names of the threads that were given up."""
        return tuple(self._abandoned)
