"""Start an ordered list of stages, and stop them in the reverse order, in time, whatever happens.

The manager owns the root nursery, in the task of its ``async with``, and the shutdown, in a task of its own: callers,
signals, bugs and the end of the block only ask for it. It knows no hardware and no configuration.

Invariants: the state moves only along the table; a stage begins to stop only when the one before it has ended or has
been given up; there is one report for each shutdown, and every caller gets that one.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Literal, Self

import trio

from trio_daq.errors import StartError, StateError, StoppingError, is_bug
from trio_daq.lifecycle.block_failure import BlockFailure
from trio_daq.lifecycle.leaving import exit_now, wait_for_stuck
from trio_daq.lifecycle.member import Member, expect_outside, expect_trio_thread
from trio_daq.lifecycle.report import SafeStateReport, ShutdownReport
from trio_daq.lifecycle.shutdown import Shutdown
from trio_daq.lifecycle.stage import Stage
from trio_daq.lifecycle.state import LEGAL_MOVES, ManagerState
from trio_daq.lifecycle.time_budget import stop_in_turn
from trio_daq.sharing import ServiceNursery, checked_timeout, close_and_leave, to_the_end

_log = logging.getLogger("trio_daq.lifecycle")

_LEAVING_TIMEOUT = 1.0
"""Seconds that a cancelled body or start has to leave before the stages are stopped under it, a quarter of the shutdown
at most."""


class Manager:
    """Stages in order.

    Args:
        stages: In the order in which they start.
        shutdown_timeout: Seconds that a shutdown may take where nobody names another time.
        on_stuck: What leaving the block does when a member does not end: ``"wait"`` for it, saying so every 5 s, or
            ``"exit"`` the process with code 3 after flushing.
        on_requested: Called when a shutdown begins, with the seconds that it may take.
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
        on_requested: Callable[[float], object] = lambda _: None,
        on_stopping: Callable[[], object] | None = None,
        on_report: Callable[[ShutdownReport], object] | None = None,
        safe_states: Callable[[], tuple[SafeStateReport, ...]] = tuple,
    ) -> None:
        self._safe_states = safe_states
        self._stages = tuple(stages)
        self._shutdown_timeout = checked_timeout(shutdown_timeout, "shutdown_timeout")
        self._on_stuck = on_stuck
        self._on_requested = on_requested
        self._on_stopping = on_stopping
        self._on_report = on_report
        self._state = ManagerState.UNINITIALIZED
        self._service: ServiceNursery | None = None
        self._root: trio.Nursery | None = None
        self._starting = trio.CancelScope()
        self._shutdown = Shutdown(self._shutdown_timeout)
        self._start_left = trio.Event()
        self._body_left = trio.Event()
        self._failure = BlockFailure()

    @property
    def state(self) -> ManagerState:
        """Where the manager is in its life."""
        return self._state

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Its stages, in the order in which they start."""
        return self._stages

    @property
    def report(self) -> ShutdownReport | None:
        """The report of the shutdown that ended its last start, None before that has ended."""
        return self._shutdown.report

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
            for stage in self._stages:
                stage.expect_ended("start()")
        self._move(ManagerState.STARTING, "start()")
        self._shutdown, self._start_left = Shutdown(self._shutdown_timeout), trio.Event()
        self._starting, self._failure = trio.CancelScope(), BlockFailure()
        root.start_soon(self._shut_down_when_asked)
        begun: Stage | None = None
        try:
            with self._starting:
                for begun in self._stages:
                    await begun.start_in(root)
                if not self._shutdown.is_requested:
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
        where = begun.whereabouts if begun is not None and begun.starting else "the lab"
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
        expect_outside(self._members(), "shutdown()", "A member asks with request_shutdown(), and does not wait.")
        self._request("shutdown() was called", timeout)
        return await self._shutdown.wait_report()

    @trio.lowlevel.enable_ki_protection
    def request_shutdown(self, reason: str = "requested", error: BaseException | None = None) -> None:
        """Ask for a shutdown, cancel the body of the block, and return at once. Safe from anywhere in the Trio thread.

        Args:
            reason: For the report.
            error: Raised from the block when the shutdown has ended.

        Raises:
            StateError: If called from another thread; nothing was asked for then.
        """
        expect_trio_thread("request_shutdown()")
        self._failure.note(error)
        if self._state in (ManagerState.STARTING, ManagerState.RUNNING):
            self._request(reason, None)
        if self._root is not None:
            # Stages and the shutdown are shielded: this reaches the body, and a start that is under way.
            self._root.cancel_scope.cancel(reason=f"trio_daq: {reason}")

    @trio.lowlevel.enable_ki_protection
    def hurry(self) -> None:
        """Cut short the grace of a shutdown that was asked for: members are cancelled now."""
        expect_trio_thread("hurry()")
        if self._shutdown.is_requested:
            for stage in self._stages:
                stage.hurry.set()

    @trio.lowlevel.enable_ki_protection
    async def serve(self, *, task_status: trio.TaskStatus[Self] = trio.TASK_STATUS_IGNORED) -> None:
        """Open, start, and run until the nursery that this was started in is cancelled or a shutdown was asked for."""
        async with self:
            await self.start()
            task_status.started(self)
            await self._shutdown.wait_report()

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
        try:
            swallowed = await close_and_leave(self._service, closing, kind, error, traceback, self.hurry)
        finally:
            self._failure.raise_interrupt()
        return self._failure.end_block(error, swallowed=swallowed)

    async def _end(self, reason: str) -> None:
        if self._state in (ManagerState.STARTING, ManagerState.RUNNING, ManagerState.SHUTTING_DOWN):
            self._request(reason, None)
            await self._shutdown.wait_report()
        if not all(stage.has_ended for stage in self._stages):
            if self._on_stuck == "exit":
                assert self.report is not None
                exit_now(self.report.exit_code)
            await wait_for_stuck(self._members())
        self._root = None

    def _member_failed(self, stage: Stage, member: Member) -> None:
        """Stop everything if the member's rules say so, and carry on otherwise."""
        error, failure = member.error, member.failure
        assert failure is not None
        bug = error if error is not None and is_bug(error) else None
        _log.error("%s.%s %s", stage.name, member.name, failure.reason, exc_info=bug)
        if failure.stops_lab:
            self.request_shutdown(f"{member.name} {failure.reason}", error)

    async def _roll_back(self, reason: str) -> ShutdownReport | None:
        self._start_left.set()
        self._request(reason, None)
        shutdown = self._shutdown
        await to_the_end(shutdown.wait_report, self.hurry)
        return shutdown.report  # not that of a start which somebody else made meanwhile

    def _request(self, reason: str, timeout: float | None) -> None:
        self._shutdown.request(reason, timeout)
        self._starting.cancel()

    @trio.lowlevel.enable_ki_protection
    async def _shut_down_when_asked(self) -> None:
        with trio.CancelScope(shield=True):
            shutdown = self._shutdown
            await shutdown.wait_requested()
            was_running = self._state is ManagerState.RUNNING
            self._move(ManagerState.SHUTTING_DOWN, "shutdown")
            started = trio.current_time()
            self._failure.of_calling(self._on_requested, shutdown.timeout)
            with trio.move_on_after(min(_LEAVING_TIMEOUT, shutdown.timeout / 4)):
                await self._start_left.wait()
                if was_running and self._root is not None and self._root.cancel_scope.cancel_called:
                    await self._body_left.wait()
            if self._on_stopping is not None:
                self._failure.of_calling(self._on_stopping)
            # Not only those that run: one that was stopped alone may still be at it.
            left = [stage for stage in reversed(self._stages) if not stage.has_ended]
            stages = await stop_in_turn(left, started + shutdown.timeout)
            report = ShutdownReport(
                reason=shutdown.reason,
                seconds=trio.current_time() - started,
                timeout=shutdown.timeout,
                stages=stages,
                safe_states=self._safe_states(),
            )
            _log.info("stopped in %.2f s of %g s: %s", report.seconds, report.timeout, report.reason)
            self._move(ManagerState.STOPPED, "shutdown")
            shutdown.report = report
            if self._on_report is not None:
                self._failure.of_calling(self._on_report, report)
            shutdown.end()

    def _members(self) -> list[Member]:
        return [member for stage in self._stages for member in stage.members.values()]

    def _opened(self, action: str) -> trio.Nursery:
        if self._root is None or self._body_left.is_set():
            raise StateError(
                action=action,
                expected="open",
                actual="closed",
                hint="Use `async with manager:` or `await nursery.start(manager.serve)`.",
            )
        return self._root

    def _running(self, action: str) -> trio.Nursery:
        root, needed = self._opened(action), ManagerState.RUNNING
        if self._state is not needed:
            raise StateError(action=action, expected=needed.value, actual=self._state.value)
        return root

    def _move(self, to: ManagerState, action: str) -> None:
        if to not in LEGAL_MOVES[self._state]:
            allowed = " or ".join(state.value for state in LEGAL_MOVES if to in LEGAL_MOVES[state])
            raise StateError(action=action, expected=allowed, actual=self._state.value)
        self._state = to
