"""Work that goes on when whoever asked for it has been cancelled."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple

import outcome
import trio

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


@trio.lowlevel.enable_ki_protection
async def in_own_task(nursery: trio.Nursery, work: Callable[[*_Ts], Awaitable[_T]], *args: *_Ts) -> _T:
    """Do *work* in a task of *nursery*, shielded, and return its result. A cancelled caller only stops waiting."""
    results: list[outcome.Outcome[_T]] = []
    ended = trio.Event()

    @trio.lowlevel.enable_ki_protection
    async def do() -> None:
        with trio.CancelScope(shield=True):
            results.append(await outcome.acapture(work, *args))
            ended.set()

    nursery.start_soon(do, name=getattr(work, "__qualname__", None))
    await ended.wait()
    return results[0].unwrap()
