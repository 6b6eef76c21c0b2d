"""Take several lines at once: all of them or none, on one deadline, without a chance of a circle.

Everybody who takes lines this way takes them in the same order, whatever order they are named in.
"""

from __future__ import annotations

import types
from collections.abc import Coroutine, Generator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

import trio

from trio_daq.sharing.deadlines import checked_timeout
from trio_daq.sharing.interrupts import Done
from trio_daq.sharing.wait_graph import LineKind

_G = TypeVar("_G")
_R = TypeVar("_R")
_G_co = TypeVar("_G_co", covariant=True)

_LEAST = 0.001
"""Seconds for a line that is asked for when the others have used up the time: 0 would mean not to wait at all."""


class Acquirable(Protocol[_G_co]):
    """A line that can be taken."""

    @property
    def order(self) -> tuple[LineKind, str]:
        """Its place in the order in which lines are taken: kind, then name."""

    def acquire(self, owner: str | None, timeout: float | None) -> AbstractAsyncContextManager[_G_co]:
        """Return the block in which *owner* has it."""


def acquire_all(
    *lines: Acquirable[_G], owner: str | None = None, timeout: float = 2.0
) -> AbstractAsyncContextManager[tuple[_G, ...]]:
    """Have all of *lines* for the length of an ``async with`` block, which gets their guards in the order given.

    Args:
        lines: Serial ports, each once.
        owner: Who wants them; the member's id or the task's name if omitted.
        timeout: Seconds for all of them together.

    Raises:
        ValueError: If a line is named twice, or *timeout* is no finite number of seconds.
        DaqError: On entering, whatever taking one of them raised; then none is held.
    """
    checked_timeout(timeout)
    if len({line.order for line in lines}) < len(lines):
        raise ValueError("acquire_all was given a line twice")
    return _AcquisitionOfAll(lines, owner, timeout)


class _AcquisitionOfAll(Generic[_G]):
    """A class, since Ctrl-C could come between two lines of what `contextlib` makes of a generator."""

    def __init__(self, lines: tuple[Acquirable[_G], ...], owner: str | None, timeout: float) -> None:
        self._lines = lines
        self._owner = owner
        self._timeout = timeout

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> tuple[_G, ...]:
        deadline = trio.current_time() + self._timeout
        guards: dict[tuple[LineKind, str], _G] = {}
        async with AsyncExitStack() as stack:
            for line in sorted(self._lines, key=lambda one: one.order):
                left = max(_LEAST, deadline - trio.current_time()) if self._timeout else 0.0
                guards[line.order] = await stack.enter_async_context(line.acquire(self._owner, left))
            self._held = stack.pop_all()
        return tuple(guards[line.order] for line in self._lines)

    @trio.lowlevel.enable_ki_protection
    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Coroutine[Any, Any, bool | None]:
        leaving = self._held.__aexit__(kind, error, traceback)
        try:
            trap = leaving.send(None)  # in this call already, as `Done` explains; ports need no more
        except StopIteration as end:
            return Done(end.value)
        return _go_on(leaving, trap)


@trio.lowlevel.enable_ki_protection
@types.coroutine
def _go_on(begun: Coroutine[Any, Any, _R], trap: Any) -> Generator[Any, Any, _R]:
    """Wait for a coroutine that has been begun and has made *trap*, which is what it waits for."""
    try:
        while True:
            trap = begun.send((yield trap))
    except StopIteration as end:
        result: _R = end.value
        return result
