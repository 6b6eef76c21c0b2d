"""Look at a lab and say how it is. Nothing is asked of an instrument, and nothing waits."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from trio_daq.lifecycle.health import HealthProblem, HealthReport, subject_of
from trio_daq.lifecycle.line_health import port_problems, session_problems
from trio_daq.lifecycle.lines import Lines
from trio_daq.lifecycle.stage import Stage
from trio_daq.lifecycle.stall import Stall
from trio_daq.lifecycle.state import ManagerState

_STALL_MATTERS = 60.0
"""Seconds for which a stall counts. When it can be asked about it is over, but what did it will do it again."""


def check_up(state: ManagerState, stages: Iterable[Stage], lines: Lines, stall: Stall | None) -> HealthReport:
    """Return how a lab is.

    Args:
        state: Where its manager is.
        stages: Whose members to look at.
        lines: Its ports and sessions.
        stall: The last stall of the event loop.
    """
    problems = list(_lab_problems(state, stall))
    for stage in stages:
        problems += stage_problems(stage)
    if state is ManagerState.RUNNING:
        for name, port in lines.serial.items():
            problems += port_problems(f"serial.{name}", port)
        for name, session in lines.visa.items():
            problems += session_problems(f"visa.{name}", session)
    problems.sort(key=lambda problem: problem.severity != "error")
    return HealthReport(tuple(problems))


def stage_problems(stage: Stage) -> Iterator[HealthProblem]:
    """Say what is wrong with the members of one stage, or of one that was stopped, with those that do not end."""
    for member in stage.members.values():
        if not stage.is_running and not member.is_stuck:
            continue
        subject = subject_of(stage.name, member.name)
        if (trouble := member.trouble()) is not None:
            yield HealthProblem(subject, "error", trouble)
        elif (worry := member.worry()) is not None:
            yield HealthProblem(subject, "warning", worry)


def _lab_problems(state: ManagerState, stall: Stall | None) -> Iterator[HealthProblem]:
    if state is not ManagerState.RUNNING:
        yield HealthProblem("the lab", "error", f"is {state.value}")
    if stall is not None and (ago := time.monotonic() - stall.ended_at) < _STALL_MATTERS:
        text = f"stood still for {stall.seconds:.2f} s, {ago:.0f} s ago, while {stall.who} was at {stall.where}"
        yield HealthProblem("the event loop", "warning", text)
