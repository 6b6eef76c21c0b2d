"""Stop stages one after the other within one time, however long each of them would like.

Invariant: what the later stages need to be cancelled is not given to the grace of an earlier one.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from trio_daq.lifecycle.report import StageReport
from trio_daq.lifecycle.stage import Stage


async def stop_in_turn(stages: Sequence[Stage], deadline: float) -> tuple[StageReport, ...]:
    """Stop *stages*, the first one first, by *deadline*, and say what became of each."""
    reports = []
    for at, stage in enumerate(stages):
        reports.append(await stage.stop(*split_time(deadline - trio.current_time(), stages[at:])))
    return tuple(reports)


def split_time(left: float, stages: Sequence[Stage]) -> tuple[float, float]:
    """Return how much of the time that is *left* for *stages* the first has for its grace, and then to be cancelled.

    The hard times of all of them come first; where not even these fit, each gets its share.
    """
    hard = sum(stage.hard_timeout for stage in stages)
    share = min(1.0, max(0.0, left) / hard) if hard > 0 else 1.0
    return max(0.0, left - hard), share * stages[0].hard_timeout
