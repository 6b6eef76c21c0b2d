"""Start and stop one stage of a manager that runs, while the others go on.

Whoever calls this has seen to it that the manager runs; here is what one stage needs by itself.
"""

from __future__ import annotations

import math

import trio

from trio_daq.errors import StartError
from trio_daq.lifecycle.member import expect_outside
from trio_daq.lifecycle.own_task import in_own_task
from trio_daq.lifecycle.report import StageReport
from trio_daq.lifecycle.stage import Stage
from trio_daq.lifecycle.time_budget import split_time
from trio_daq.sharing import checked_timeout


@trio.lowlevel.enable_ki_protection
async def start_alone(stage: Stage, root: trio.Nursery) -> None:
    """Start *stage* in *root*. Does nothing if it runs.

    Raises:
        StuckError: If a member of its last life still runs.
        StateError: If it is still being stopped.
        StartError: If it failed, or took longer than 30 s.
    """
    if stage.is_running:
        return
    stage.expect_ended(f"starting {stage.name}")
    try:
        await stage.start_in(root)
    except Exception as error:
        raise StartError(member=stage.whereabouts, cause=error) from error


async def stop_alone(stage: Stage, root: trio.Nursery, timeout: float | None) -> StageReport:
    """Stop *stage* within *timeout* seconds, in a task of *root*. A cancelled caller stops waiting; the stop goes on.

    Raises:
        StateError: If called from a member of it, which would wait for itself.
    """
    expect_outside(stage.members.values(), f"stopping {stage.name}", "Let another part of the program do it.")
    left = math.inf if timeout is None else checked_timeout(timeout)
    return await in_own_task(root, stage.stop, *split_time(left, (stage,)))
