"""One part of a lab that runs in a task of its own: a driver, an actor, a port, a session, a recorder.

A member knows how to start, how to be asked to stop, and what became of it. It does not know its siblings.

Invariant: once ``done`` is set, its task has nothing left to do.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Protocol

import trio

from trio_daq.errors import StoppingError
from trio_daq.lifecycle.report import MemberReport, Outcome
from trio_daq.sharing import acting_as

_log = logging.getLogger("trio_daq.lifecycle")

inside_member: ContextVar[Member | None] = ContextVar("trio_daq_inside_member", default=None)
"""The member whose task, or descendant of it, runs; None outside of members."""


class Serve(Protocol):
    """An async function that calls ``task_status.started()`` when it is ready, and returns when it has ended."""

    def __call__(self, *, task_status: trio.TaskStatus[Any]) -> Awaitable[Any]:
        """Start, call ``task_status.started()``, and serve to the end."""


class Member:
    """One part and what became of it.

    Args:
        name: Its id, unique in the lab.
        serve: What it does.
        request_stop: Asks it to end by itself, without waiting; None if it cannot be asked, and is cancelled at once,
            as it is if this fails.
        stop_timeout: Seconds that it has to end by itself; None for those of its stage.
        abandoned_threads: Tells which threads it left behind.
        dropped_messages: Tells how many messages to it nobody handled.

    Attributes:
        done: Set when it has ended.
        error: What it failed with, if it did.
    """

    def __init__(
        self,
        name: str,
        serve: Serve,
        request_stop: Callable[[], object] | None = None,
        *,
        stop_timeout: float | None = None,
        abandoned_threads: Callable[[], tuple[str, ...]] = tuple,
        dropped_messages: Callable[[], int] = int,
    ) -> None:
        self.name = name
        self.request_stop = request_stop
        self.stop_timeout = stop_timeout
        self.done = trio.Event()
        self.error: BaseException | None = None
        self.serve = serve
        self._scope = trio.CancelScope()
        self._task: trio.lowlevel.Task | None = None
        self._started = False
        self._cancelled = False
        self._stop_asked_at: float | None = None
        self._ended_at: float | None = None
        self._abandoned_threads = abandoned_threads
        self._dropped_messages = dropped_messages

    async def run(self, on_failure: Callable[[Member], object], *, task_status: trio.TaskStatus[None]) -> None:
        """Serve to the end. Runs as a task of its stage.

        An error before it was ready is raised to whoever starts it, a `StoppingError` if it was stopped; later it is
        kept, and *on_failure* is told.
        """
        self._task = trio.lowlevel.current_task()
        inside_member.set(self)
        try:
            with self._scope, acting_as(self.name):
                await self.serve(task_status=_Started(self, task_status))
        except (Exception, SystemExit) as error:
            self.error = error
            if not self._started:
                raise
        finally:
            self._ended_at = trio.current_time()
            self.done.set()
        if self._cancelled and not self._started:
            raise StoppingError(subsystem=self.name, action="its start")
        if self.error is not None:
            on_failure(self)

    async def stop(self, grace: float, hard: float, hurry: trio.Event) -> MemberReport:
        """Ask it to stop, cancel it after *grace* seconds or at *hurry*, and give it up after *hard* more."""
        if not self.done.is_set():
            self._stop_asked_at = trio.current_time()
            if self._ask_to_stop():
                with trio.move_on_after(grace):
                    await _first(self.done, hurry)
            if not self.done.is_set():
                self._cancelled = True
                self._scope.cancel(reason=f"{self.name} is being stopped")
                with trio.move_on_after(hard):
                    await self.done.wait()
        return self.report()

    def report(self) -> MemberReport:
        """Say what became of it so far."""
        outcome = self._outcome()
        asked_at = self._stop_asked_at
        ended_at = self._ended_at if self._ended_at is not None else trio.current_time()
        return MemberReport(
            name=self.name,
            outcome=outcome,
            seconds=ended_at - asked_at if asked_at is not None else 0.0,
            error=self.error,
            frames=self._frames() if outcome == "stuck" else (),
            abandoned_threads=self._abandoned_threads(),
            dropped_messages=self._dropped_messages(),
        )

    def _ask_to_stop(self) -> bool:
        if self.request_stop is None:
            return False
        try:
            self.request_stop()
        except Exception:  # noqa: BLE001 - it must be stopped all the same
            _log.exception("%s cannot be asked to stop, so it is cancelled", self.name)
            return False
        return True

    def _outcome(self) -> Outcome:
        if not self.done.is_set():
            return "stuck" if self._cancelled else "running"
        if self.error is not None:
            return "failed"
        if self._cancelled:
            return "cancelled"
        return "ended" if self._stop_asked_at is None else "drained"

    def _frames(self) -> tuple[str, ...]:
        if self._task is None:
            return ()
        frames = [
            f"{frame.f_code.co_name} ({frame.f_code.co_filename}:{line})"
            for frame, line in self._task.iter_await_frames()
            if frame.f_globals.get("__name__", "").partition(".")[0] != "trio"  # they would hide whose they are
        ]
        return tuple(reversed(frames[-5:]))


class _Started:
    """Passes ``started()`` on, and remembers it."""

    def __init__(self, member: Member, task_status: trio.TaskStatus[None]) -> None:
        self._member = member
        self._task_status = task_status

    def started(self, _: object = None) -> None:
        self._member._started = True
        self._task_status.started()


async def _first(*events: trio.Event) -> None:
    async with trio.open_nursery() as nursery:

        async def wait(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        for event in events:
            nursery.start_soon(wait, event)
