"""Start an ordered list of stages, and stop them in the reverse order, in time, whatever happens.

The manager owns the root nursery, in the task of its ``async with``, and the shutdown, in a task of its own: callers,
signals, bugs and the end of the block only ask for it. It knows no hardware and no configuration.

Invariants: the state moves only along the table; a stage begins to stop only when the one before it has ended or has
been given up; there is one report for each shutdown, and every caller gets that one.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Literal, Self, TypeVar, TypeVarTuple

import outcome
import trio

from trio_daq.errors import StartError, StateError, StoppingError, StuckError, is_bug
from trio_daq.lifecycle.member import Member, inside_member
from trio_daq.lifecycle.report import SafeStateReport, ShutdownReport, StageReport
from trio_daq.lifecycle.stage import Stage
from trio_daq.lifecycle.state import LEGAL_MOVES, ManagerState
from trio_daq.sharing import ServiceNursery, checked_timeout, close_and_leave, to_the_end

_log = logging.getLogger("trio_daq.lifecycle")

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

_START_TIMEOUT = 30.0
"""Seconds that one stage may take to start."""

_LEAVING_TIMEOUT = 1.0
"""Seconds that a cancelled body or start has to leave before the stages are stopped under it, a quarter of the shutdown
at most."""

_NAG_PERIOD = 5.0
"""Seconds between messages about a block that cannot end because a member does not."""

EXIT_STUCK = 3
"""Exit code of a process that had to be ended around a stuck member."""


EXIT_UNSAFE = 4
"""Exit code of a process that may have left a line in another state than its safe one."""


class Manager:
    """Stages in order.

    Args:
        stages: In the order in which they start.
        shutdown_timeout: Seconds that a shutdown may take where nobody names another time.
        on_stuck: What leaving the block does when a member does not end: ``"wait"`` for it, saying so every 5 s, or
            ``"exit"`` the process with code 3 after flushing.
        on_stopping: Called once before the first stage is stopped.
        on_report: Called with the report of each shutdown, before anything may exit.
        safe_states: Tells, after the last stage, what became of the safe states of lines.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        shutdown_timeout: float = 15.0,
        on_stuck: Literal["wait", "exit"] = "wait",
        on_stopping: Callable[[], object] | None = None,
        on_report: Callable[[ShutdownReport], object] | None = None,
        safe_states: Callable[[], tuple[SafeStateReport, ...]] = tuple,
    ) -> None:
        self._safe_states = safe_states
        self._stages = tuple(stages)
        self._shutdown_timeout = checked_timeout(shutdown_timeout, "shutdown_timeout")
        self._on_stuck = on_stuck
        self._on_stopping = on_stopping
        self._on_report = on_report
        self._state = ManagerState.UNINITIALIZED
        self._service: ServiceNursery | None = None
        self._root: trio.Nursery | None = None
        self._starting = trio.CancelScope()
        self._requested = trio.Event()
        self._ended = trio.Event()
        self._start_left = trio.Event()
        self._body_left = trio.Event()
        self._reason = ""
        self._timeout = self._shutdown_timeout
        self._report: ShutdownReport | None = None
        self._failure: BaseException | None = None

    @property
    def state(self) -> ManagerState:
        """Where the manager is in its life."""
        return self._state

    @property
    def report(self) -> ShutdownReport | None:
        """The report of the last shutdown, if there was one."""
        return self._report

    @trio.lowlevel.enable_ki_protection
    async def start(self) -> None:
        """Start all stages, in order.

        Cancelled, or if a stage fails, those that had started are stopped again, in reverse order.

        Raises:
            StateError: If the manager is not open, or runs already.
            StuckError: If a member of its last life still runs.
            StartError: If a stage failed or took longer than 30 s.
        """
        root = self._opened("start()")
        if self._state is ManagerState.STOPPED:
            self._expect_ended(self._stages, "start()")
        self._move(ManagerState.STARTING, "start()")
        self._requested, self._ended, self._start_left = trio.Event(), trio.Event(), trio.Event()
        self._starting, self._report, self._failure = trio.CancelScope(), None, None
        root.start_soon(self._shut_down_when_asked)
        stage: Stage | None = None
        try:
            with self._starting:
                for stage in self._stages:
                    await self._start_stage(root, stage)
                if not self._requested.is_set():
                    self._move(ManagerState.RUNNING, "start()")
                    return
            cause: BaseException = StoppingError(subsystem="the lab", action="starting")
        except Exception as error:  # noqa: BLE001 - it becomes the cause of the StartError below
            cause = error
        except BaseException:
            await self._roll_back("the start was cancelled")
            raise
        finally:
            self._start_left.set()
        where = f"{stage.name}.{stage.starting}" if stage is not None and stage.starting else "the lab"
        report = await self._roll_back(f"{where} did not start")
        raise StartError(member=where, cause=cause, report=report) from cause

    @trio.lowlevel.enable_ki_protection
    async def shutdown(self, timeout: float | None = None) -> ShutdownReport:
        """Stop all stages, last one first, and return what became of each part.

        A cancelled caller stops waiting; the shutdown goes on. Concurrent callers get the same report, also after it.

        Args:
            timeout: Seconds for all of it, None for the configured time. The first caller's counts.

        Raises:
            StateError: If nothing was started, or if called from a member, which would wait for itself.
        """
        if self._state is ManagerState.UNINITIALIZED:
            raise StateError(action="shutdown()", expected="running", actual=self._state.value)
        self._expect_outside(self._stages, "shutdown()", "A member asks with request_shutdown(), and does not wait.")
        self._request("shutdown() was called", timeout)
        await self._ended.wait()
        assert self._report is not None
        return self._report

    @trio.lowlevel.enable_ki_protection
    def request_shutdown(self, reason: str = "requested", error: BaseException | None = None) -> None:
        """Ask for a shutdown, cancel the body of the block, and return at once. Safe from anywhere in the Trio thread.

        Args:
            reason: For the report.
            error: Raised from the block when the shutdown has ended.
        """
        if error is not None and self._failure is None:
            self._failure = error
        if self._state in (ManagerState.STARTING, ManagerState.RUNNING):
            self._request(reason, None)
        if self._root is not None:
            # Stages and the shutdown are shielded: this reaches the body, and a start that is under way.
            self._root.cancel_scope.cancel(reason=f"trio_daq: {reason}")

    @trio.lowlevel.enable_ki_protection
    def hurry(self) -> None:
        """Cut short the grace of a shutdown: members are cancelled now."""
        for stage in self._stages:
            stage.hurry.set()

    async def wait_all_ended(self) -> None:
        """Wait until every member of the last two ranks has ended by itself."""
        for stage in self._stages[-2:]:
            await stage.wait_all_ended()

    @trio.lowlevel.enable_ki_protection
    async def serve(self, *, task_status: trio.TaskStatus[Self] = trio.TASK_STATUS_IGNORED) -> None:
        """Open, start, and run until the nursery that this was started in is cancelled or a shutdown was asked for."""
        async with self:
            await self.start()
            task_status.started(self)
            await self._ended.wait()

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Self:
        if self._root is not None:
            raise StateError(action="entering it", expected="closed", actual="open already")
        self._body_left = trio.Event()
        self._service = ServiceNursery()
        self._root = await self._service.__aenter__()
        return self

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        assert self._service is not None
        self._body_left.set()
        reason = "the block ended" if error is None else f"the block raised {type(error).__name__}"
        closing = functools.partial(self._end, reason)
        swallowed = await close_and_leave(self._service, closing, kind, error, traceback, self.hurry)
        if self._failure is None:
            return swallowed
        if error is None or swallowed or isinstance(error, trio.Cancelled):
            raise self._failure from self._failure.__cause__
        error.add_note(f"trio_daq was stopping because of {type(self._failure).__name__}: {self._failure}")
        return False

    async def _end(self, reason: str) -> None:
        if self._state in (ManagerState.STARTING, ManagerState.RUNNING, ManagerState.SHUTTING_DOWN):
            self._request(reason, None)
            await self._ended.wait()
        if not all(stage.has_ended for stage in self._stages):
            await self._deal_with_stuck()
        self._root = None

    @trio.lowlevel.enable_ki_protection
    async def _start_one(self, stage: Stage) -> None:
        """Start one stage of a running manager."""
        root = self._opened(f"starting {stage.name}")
        self._expect(ManagerState.RUNNING, f"starting {stage.name}")
        if stage.is_running:
            return
        self._expect_ended((stage,), f"starting {stage.name}")
        try:
            await self._start_stage(root, stage)
        except Exception as error:
            where = f"{stage.name}.{stage.starting}" if stage.starting else stage.name
            raise StartError(member=where, cause=error) from error

    async def _stop_one(self, stage: Stage, timeout: float | None) -> StageReport:
        """Stop one stage of a running manager, in a task of the manager's own."""
        self._opened(f"stopping {stage.name}")
        self._expect(ManagerState.RUNNING, f"stopping {stage.name}")
        self._expect_outside((stage,), f"stopping {stage.name}", "Let another part of the program do it.")
        left = math.inf if timeout is None else checked_timeout(timeout)
        return await self._in_own_task(stage.stop, *_split(left, (stage,)))

    @trio.lowlevel.enable_ki_protection
    async def _in_own_task(self, work: Callable[[*_Ts], Awaitable[_T]], *args: *_Ts) -> _T:
        """Do *work* in a task of the manager's own, so that a cancelled caller only stops waiting for it."""
        results: list[outcome.Outcome[_T]] = []
        ended = trio.Event()

        @trio.lowlevel.enable_ki_protection
        async def do() -> None:
            with trio.CancelScope(shield=True):
                results.append(await outcome.acapture(work, *args))
                ended.set()

        self._opened(getattr(work, "__name__", "it")).start_soon(do)
        await ended.wait()
        return results[0].unwrap()

    def _member_failed(self, stage: Stage, member: Member) -> None:
        """Stop everything if the member's rules say so, and carry on otherwise."""
        error, failure = member.error, member.failure
        assert failure is not None
        bug = error if error is not None and is_bug(error) else None
        _log.error("%s.%s %s", stage.name, member.name, failure.reason, exc_info=bug)
        if failure.stops_lab:
            self.request_shutdown(f"{member.name} {failure.reason}", error)

    async def _start_stage(self, root: trio.Nursery, stage: Stage) -> None:
        stage.open()
        with trio.move_on_after(_START_TIMEOUT):
            await root.start(stage.serve)
            return
        raise trio.TooSlowError(f"it was not ready within {_START_TIMEOUT:g} s")

    async def _roll_back(self, reason: str) -> ShutdownReport | None:
        self._start_left.set()
        self._request(reason, None)
        await to_the_end(self._ended.wait, self.hurry)
        return self._report

    def _request(self, reason: str, timeout: float | None) -> None:
        if not self._requested.is_set():
            self._reason = reason
            self._timeout = self._shutdown_timeout if timeout is None else checked_timeout(timeout)
            self._requested.set()
            self._starting.cancel()

    @trio.lowlevel.enable_ki_protection
    async def _shut_down_when_asked(self) -> None:
        with trio.CancelScope(shield=True):
            await self._requested.wait()
            was_running = self._state is ManagerState.RUNNING
            self._move(ManagerState.SHUTTING_DOWN, "shutdown")
            started = trio.current_time()
            deadline = started + self._timeout
            with trio.move_on_after(min(_LEAVING_TIMEOUT, self._timeout / 4)):
                await self._start_left.wait()
                if was_running and self._root is not None and self._root.cancel_scope.cancel_called:
                    await self._body_left.wait()
            if self._on_stopping is not None:
                self._call(self._on_stopping)
            reports = []
            # Not only those that run: one that was stopped alone may still be at it.
            left = [stage for stage in reversed(self._stages) if not stage.has_ended]
            for at, stage in enumerate(left):
                reports.append(await stage.stop(*_split(deadline - trio.current_time(), left[at:])))
            self._report = ShutdownReport(
                reason=self._reason,
                seconds=trio.current_time() - started,
                timeout=self._timeout,
                stages=tuple(reports),
                safe_states=self._safe_states(),
            )
            _log.info("stopped in %.2f s of %g s: %s", self._report.seconds, self._timeout, self._reason)
            self._move(ManagerState.STOPPED, "shutdown")
            if self._on_report is not None:
                self._call(self._on_report, self._report)
            self._ended.set()

    def _call(self, listener: Callable[..., object], *args: object) -> None:
        try:
            listener(*args)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - SystemExit is how Rich leaves a closed pipe
            # Raised here it would end the shutdown half way; the block raises it.
            _log.error("%r failed during the shutdown: %s: %s", listener, type(error).__name__, error)
            self._failure = self._failure or error

    async def _deal_with_stuck(self) -> None:
        if self._on_stuck == "exit":
            logging.shutdown()
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):  # its reader is gone
                    stream.flush()
            os._exit(EXIT_UNSAFE if self._report is not None and self._report.unsafe else EXIT_STUCK)
        members = [member for stage in self._stages for member in stage.members.values()]
        with trio.CancelScope(shield=True):
            while waiting := [member for member in members if not member.done.is_set()]:
                for one in map(Member.report, waiting):
                    _log.error("cannot leave: %s does not end; it is at %s", one.name, one.frames)
                with trio.move_on_after(_NAG_PERIOD):
                    for member in members:
                        await member.done.wait()

    def _opened(self, action: str) -> trio.Nursery:
        if self._root is None:
            raise StateError(
                action=action,
                expected="open",
                actual="closed",
                hint="Use `async with manager:` or `await nursery.start(manager.serve)`.",
            )
        return self._root

    def _expect(self, state: ManagerState, action: str) -> None:
        if self._state is not state:
            raise StateError(action=action, expected=state.value, actual=self._state.value)

    def _expect_outside(self, stages: Iterable[Stage], action: str, hint: str) -> None:
        self._expect_caller_outside((member for stage in stages for member in stage.members.values()), action, hint)

    def _expect_caller_outside(self, members: Iterable[Member], action: str, hint: str) -> None:
        caller = inside_member.get()
        if any(caller is member for member in members):
            assert caller is not None
            expected, actual = "called from outside of what it stops", f"called from {caller.name!r}"
            raise StateError(action=action, expected=expected, actual=actual, hint=hint)

    def _expect_ended(self, stages: Iterable[Stage], action: str) -> None:
        for stage in stages:
            reports = [member.report() for member in stage.members.values()]
            if stuck := [report for report in reports if report.outcome == "stuck"]:
                names = ", ".join(f"{stage.name}.{report.name}" for report in stuck)
                raise StuckError(member=names, where=tuple(frame for report in stuck for frame in report.frames))
            if not stage.has_ended:
                left = [member.name for member in stage.members.values() if not member.done.is_set()]
                actual = f"left with {', '.join(left) or stage.name} still running"
                raise StateError(action=action, expected="wholly stopped", actual=actual)

    def _move(self, to: ManagerState, action: str) -> None:
        if to not in LEGAL_MOVES[self._state]:
            allowed = " or ".join(state.value for state in LEGAL_MOVES if to in LEGAL_MOVES[state])
            raise StateError(action=action, expected=allowed, actual=self._state.value)
        self._state = to


def _split(left: float, stages: Sequence[Stage]) -> tuple[float, float]:
    """Return how much of the time that is *left* for *stages* the first has for its grace, and then to be cancelled.

    The hard times of all of them come first; where not even these fit, each gets its share.
    """
    hard = sum(stage.hard_timeout for stage in stages)
    share = min(1.0, max(0.0, left) / hard) if hard > 0 else 1.0
    return max(0.0, left - hard), share * stages[0].hard_timeout
