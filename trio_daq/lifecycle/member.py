"""One part of a lab that runs in a task of its own: a driver, an actor, a port, a session, a recorder.

A member is a place in which lives follow each other. It knows how to start one, how to ask it to stop, what follows
when it has ended, and what became of it. It does not know its siblings.

Invariants: one life at a time, and the next begins only when the one before has ended wholly; once ``done`` is set,
its task has nothing left to do; once it was asked to stop, no life begins.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from typing import Any, Protocol

import trio

from trio_daq.errors import StateError, StoppingError
from trio_daq.lifecycle.health import Severity
from trio_daq.lifecycle.report import MemberReport, Outcome
from trio_daq.lifecycle.supervision import Fail, Restart, Supervision, Supervisor
from trio_daq.lifecycle.whereabouts import Frame, frames_of_task, tell_place
from trio_daq.sharing import Pulse, acting_as, living_by

_log = logging.getLogger("trio_daq.lifecycle")

START_TIMEOUT = 30.0
"""Seconds for a life to begin, and for all the first members of a stage together."""

_AFTERMATH_TIMEOUT = 5.0
"""Seconds for what is to be done after a life and before the next, such as making its instrument safe."""

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
        serve: What it does; called once for each life.
        request_stop: Asks the life that runs to end by itself, without waiting; None if it cannot be asked, and is
            cancelled at once, as it is if this fails.
        request_restart: Asks the same if another life will follow; *request_stop* if omitted.
        on_end: Called when no life will follow.
        supervision: When a life follows another.
        stop_timeout: Seconds that it has to end by itself; None for those of its stage.
        abandoned_threads: Tells which threads it left behind.
        dropped_messages: Tells how many messages to it nobody handled.
        frames: Tells where it is, innermost first, if its task does not show that.

    Attributes:
        done: Set when it has ended, and no life will follow unless somebody asks for it.
        error: What a life of it failed with last, if one did.
        restarts: How many lives followed the first.
        failure: Why it gets no further life, if that is a failure.
        on_life_ended: Awaited after each life and before the next, shielded, for at most 5 s. Set by its stage.
        restarting: Had by whoever restarts it.
        note: Takes down what happens to it. Set by its stage.
    """

    def __init__(
        self,
        name: str,
        serve: Serve,
        request_stop: Callable[[], object] | None = None,
        *,
        request_restart: Callable[[], object] | None = None,
        on_end: Callable[[], object] = lambda: None,
        supervision: Supervision = Supervision(),  # noqa: B008 - it is frozen
        stop_timeout: float | None = None,
        abandoned_threads: Callable[[], tuple[str, ...]] = tuple,
        dropped_messages: Callable[[], int] = int,
        frames: Callable[[], tuple[Frame, ...]] | None = None,
    ) -> None:
        self.name = name
        self.request_stop = request_stop
        self.stop_timeout = stop_timeout
        self.error: BaseException | None = None
        self.restarts = 0
        self.on_life_ended: Callable[[Member], Awaitable[None]] | None = None
        self.note: Callable[[Severity, str], object] = lambda _severity, _text: None
        self._serve = serve
        self._request_restart = request_restart
        self._on_end = on_end
        self._supervisor = Supervisor(supervision)
        self._abandoned_threads = abandoned_threads
        self._dropped_messages = dropped_messages
        self._frames = self._frames_of_task if frames is None else frames
        self._on_change: Callable[[Member], object] = lambda _: None
        beat = supervision.heartbeat
        self._pulse = None if beat is None else Pulse(beat, self._fell_silent, self._came_back)
        self._task: trio.lowlevel.Task | None = None
        self._scope = trio.CancelScope()
        self.restarting = trio.Lock()
        self.prepare(patient=not supervision.required)

    @property
    def is_hung(self) -> bool:
        """Whether it lives and has shown no sign of life for longer than its heartbeat."""
        return self._pulse is not None and self._pulse.is_silent

    @property
    def is_stuck(self) -> bool:
        """Whether it was cancelled and has not ended."""
        return self._cancelled and not self.done.is_set()

    @property
    def is_ready(self) -> bool:
        """Whether a life of it runs and has started."""
        return self._ready and self._alive

    @property
    def outcome(self) -> Outcome:
        """How it ended, or is. Safe from any thread."""
        return self._outcome()

    @property
    def task(self) -> trio.lowlevel.Task | None:
        """The task that it runs in, or ran in last; None if it never ran."""
        return self._task

    def prepare(self, *, patient: bool) -> None:
        """Get ready for `run`, in the same step in which that is handed to a nursery: a stop from here on counts.

        Args:
            patient: Whether the policy also covers its start, whose error is then not raised.
        """
        self.done = trio.Event()
        self.failure: Fail | None = None
        self._patient = patient
        self._stopping = trio.Event()
        self._ready = self._has_started = self._alive = self._cancelled = self._will_restart = False
        self._last_error: BaseException | None = None
        self._stop_asked_at: float | None = None
        self._ended_at: float | None = None

    @trio.lowlevel.enable_ki_protection
    async def run(self, on_change: Callable[[Member], object], *, task_status: trio.TaskStatus[None]) -> None:
        """Live to the end, as often as the rules have it. Runs as a task of its stage.

        An error before it was ready is raised to whoever starts it, a `StoppingError` if it was stopped; later it is
        kept. *on_change* is told of each life that is ready, of each that falls silent or comes back, and of each end
        that another life or a failure follows.
        """
        self._on_change = on_change
        self._task = trio.lowlevel.current_task()
        inside_member.set(self)
        status = _Started(self, task_status, on_change)
        try:
            while not self._stopping.is_set():
                await self._live(status)
                if self._last_error is not None and not (status.told or self._patient):
                    raise self._last_error
                was_asked = self._stopping.is_set()
                decision = self._supervisor.decide(self._last_error, trio.current_time(), was_asked=was_asked)
                if isinstance(decision, Fail) and not (self._will_restart and not decision.stops_lab):
                    self.failure = decision
                    self.note("error", decision.reason)
                if not isinstance(decision, Restart) or self._stopping.is_set():
                    if self.failure is None and not self._stopping.is_set():
                        self.note("info", "has ended")
                    break
                _log.warning("%s %s; it is started again in %.2f s", self.name, decision.reason, decision.after)
                self.note("warning", f"{decision.reason}; it is started again in {decision.after:.2f} s")
                on_change(self)
                status.tell()
                with trio.move_on_after(decision.after):
                    await self._stopping.wait()
                if not self._stopping.is_set():
                    self.restarts += 1
        finally:
            self._ended_at = trio.current_time()
            if not self._will_restart:
                self._on_end()
            self.done.set()
        if self._stopping.is_set() and not status.told:
            raise StoppingError(subsystem=self.name, action="its start")
        if self.failure is not None:
            on_change(self)
            status.tell()

    async def stop(self, grace: float, hard: float, hurry: trio.Event, *, will_restart: bool = False) -> MemberReport:
        """Ask it to stop, cancel it after *grace* seconds or at *hurry*, and give it up after *hard* more.

        Args:
            grace: Seconds that it has to end by itself.
            hard: Seconds more that it has to end when it is cancelled.
            hurry: Set to cut the grace short.
            will_restart: Whether its owner will `run` it again. A stop for good goes before.
        """
        if self.done.is_set():
            if not will_restart:
                self._on_end()
        else:
            self._will_restart = will_restart and not (self._stopping.is_set() and not self._will_restart)
            self._stopping.set()
            if self._pulse is not None and not self.is_hung:
                self._pulse.ignore()  # from here on its stop is what bounds it
            if self._stop_asked_at is None:
                self._stop_asked_at = trio.current_time()
            if not self._alive or self._ask_to_stop():
                with trio.move_on_after(grace):
                    await _first(self.done, hurry)
            if not self.done.is_set():
                self._cancelled = True
                self._scope.cancel(reason=f"{self.name} is being stopped")
                with trio.move_on_after(hard):
                    await self.done.wait()
            if not self.done.is_set():
                self._will_restart = False  # it was given up; should it end one day, that is for good
                self.note("error", f"does not end; it is at {tell_place(self._frames())}")
        return self.report()

    def trouble(self) -> str | None:
        """Say what is wrong with it, to follow its name; a life that was followed by another is no trouble."""
        if self.failure is not None:
            return self.failure.reason
        outcome = self._outcome()
        if outcome == "stuck":
            return "does not end"
        if self.is_hung and self._pulse is not None:
            silence = trio.current_time() - self._pulse.last
            return (
                f"has shown no sign of life for {silence:.1f} s; it is at {tell_place(self._frames())}; "
                f"restart_actor({self.name!r}) ends it and starts it again"
            )
        if outcome in ("restarting", "running") and not self._has_started and self._last_error is not None:
            return f"has not started: {type(self._last_error).__name__}: {self._last_error}"
        return None

    def worry(self) -> str | None:
        """Say what is not as it should be, though it is no trouble yet, to follow its name."""
        if self._outcome() == "restarting" and not self._stopping.is_set() and self._last_error is not None:
            return f"is about to be started again: {type(self._last_error).__name__}: {self._last_error}"
        return None

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
            restarts=self.restarts,
            frames=self._stuck_at() if outcome == "stuck" else (),
            abandoned_threads=self._abandoned_threads(),
            dropped_messages=self._dropped_messages(),
        )

    async def _live(self, status: _Started) -> None:
        """Have one life and what comes after it."""
        self._ready, self._alive = False, True
        self._scope = trio.CancelScope(deadline=trio.current_time() + START_TIMEOUT)
        try:
            with self._scope, acting_as(self.name), living_by(self._pulse):
                await self._serve(task_status=status)
            if self._scope.cancelled_caught and not (self._ready or self._stopping.is_set()):
                raise trio.TooSlowError(f"it was not ready within {START_TIMEOUT:g} s")
            self._last_error = None
        except trio.Cancelled:
            raise
        except BaseException as error:  # whatever it is, raised here it would cancel the siblings
            if isinstance(error, BaseExceptionGroup) and error.subgroup(trio.Cancelled) is not None:
                raise
            self.error = self._last_error = error
        finally:
            self._alive = False
            if self._pulse is not None:
                was_hung = self.is_hung
                self._pulse.ignore()
                if was_hung:
                    self._on_change(self)
            if self.on_life_ended is not None:
                try:
                    with trio.move_on_after(_AFTERMATH_TIMEOUT, shield=True):
                        await self.on_life_ended(self)
                except Exception:  # noqa: BLE001 - raised here it would take the siblings along
                    _log.exception("%s: what follows a life of it failed", self.name)

    def _ask_to_stop(self) -> bool:
        ask = self._request_restart if self._will_restart and self._request_restart is not None else self.request_stop
        if ask is None:
            return False
        try:
            ask()
        except Exception:  # noqa: BLE001 - it must be stopped all the same
            _log.exception("%s cannot be asked to stop, so it is cancelled", self.name)
            return False
        return True

    def _outcome(self) -> Outcome:
        if not self.done.is_set():
            return "stuck" if self._cancelled else "running" if self._alive else "restarting"
        if self._last_error is not None or self.failure is not None:
            return "failed"
        if self._cancelled:
            return "cancelled"
        return "ended" if self._stop_asked_at is None else "drained"

    def _fell_silent(self) -> None:
        trouble = self.trouble()
        if trouble is not None:
            _log.error("%s %s", self.name, trouble)
            self.note("error", trouble)
        self._on_change(self)

    def _came_back(self) -> None:
        _log.warning("%s shows signs of life again", self.name)
        self.note("info", "shows signs of life again")
        self._on_change(self)

    def _frames_of_task(self) -> tuple[Frame, ...]:
        return () if self._task is None else frames_of_task(self._task)

    def _stuck_at(self) -> tuple[str, ...]:
        # Those of Trio would hide whose they are.
        return tuple(str(frame) for frame in self._frames() if frame.module.partition(".")[0] != "trio")[:5]


class _Started:
    """Passes the first ``started()`` on to whoever starts the member, and notes each."""

    def __init__(
        self, member: Member, task_status: trio.TaskStatus[None], on_change: Callable[[Member], object]
    ) -> None:
        self.told = False
        self._member = member
        self._task_status = task_status
        self._on_change = on_change

    def started(self, _: object = None) -> None:
        member = self._member
        member.note("info", "has started again" if member._has_started or member.restarts else "has started")
        member._ready = member._has_started = True
        member._scope.deadline = math.inf
        if member._pulse is not None:
            member._pulse.watch()
        self.tell()
        self._on_change(self._member)

    def tell(self) -> None:
        """Let whoever starts the member go on."""
        if not self.told:
            self.told = True
            self._task_status.started()


def expect_outside(members: Iterable[Member], action: str, hint: str) -> None:
    """Refuse what would make the member that asks for it wait for its own end.

    Raises:
        StateError: If one of *members* is the caller.
    """
    caller = inside_member.get()
    if any(caller is member for member in members):
        assert caller is not None
        expected, actual = "called from outside of what it stops", f"called from {caller.name!r}"
        raise StateError(action=action, expected=expected, actual=actual, hint=hint)


def expect_trio_thread(action: str) -> None:
    """Refuse what would change events of Trio from a thread that Trio does not run in, and wake nobody.

    Raises:
        StateError: If this is another thread.
    """
    try:
        trio.lowlevel.current_trio_token()
    except RuntimeError:
        raise StateError(
            action=action,
            expected="called from the thread that Trio runs in",
            actual=f"called from thread {threading.current_thread().name!r}",
            hint="Use token.run_sync_soon(), with trio.lowlevel.current_trio_token() of that thread.",
        ) from None


async def _first(*events: trio.Event) -> None:
    async with trio.open_nursery() as nursery:

        @trio.lowlevel.enable_ki_protection
        async def wait(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        for event in events:
            nursery.start_soon(wait, event)
