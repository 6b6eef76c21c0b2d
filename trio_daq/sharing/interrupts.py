"""Where Ctrl-C may come between, and where it must wait.

Under a plain `trio.run` Trio raises KeyboardInterrupt between any two lines of whatever runs in the main thread, except
in code that is marked by `trio.lowlevel.enable_ki_protection`, and in what that calls. There it waits for the main task
to wait, shielded or not. So this library marks the functions through which one enters it and that change something, and
the tasks that it starts; here is what a mark cannot do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Never, TypeVar

import outcome
import trio

from trio_daq.sharing.service_nursery import ServiceNursery

_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)


class Done(Coroutine[Any, Any, _T_co]):
    """What an ``__aexit__`` returns that has given back what it had when it was called, and not when it is awaited.

    CPython looks for signals after that call and before the coroutine that it made begins: a KeyboardInterrupt there
    would leave an ``async def`` without having run (https://github.com/python/cpython/issues/74174).
    """

    __slots__ = ("_result",)

    def __init__(self, result: _T_co) -> None:
        self._result = result

    def __await__(self) -> Generator[Any, Any, _T_co]:
        yield from ()
        return self._result

    def send(self, _: object) -> Never:
        """End; what drives coroutines by hand, as `contextlib` does not, calls it."""
        raise StopIteration(self._result)

    def throw(self, error: Any, *_: Any) -> Never:
        """Raise what would be raised in a coroutine that has not begun."""
        raise error

    def close(self) -> None:
        """Do nothing."""


NOT_SWALLOWED = Done(False)
"""The answer of an ``__aexit__`` that lets the exception of its block go on."""


@trio.lowlevel.disable_ki_protection
async def interruptible(work: Callable[..., Awaitable[_T]], *args: Any, **kwargs: Any) -> _T:
    """Call what belongs to the user, which Ctrl-C must reach even if it never waits."""
    return await work(*args, **kwargs)


@trio.lowlevel.disable_ki_protection
def interruptible_nowait(work: Callable[..., _T], *args: Any) -> _T:
    """Do the same for what is no async function."""
    return work(*args)


@trio.lowlevel.enable_ki_protection
async def to_the_end(work: Callable[[], Awaitable[_T]], on_interrupt: Callable[[], object] = lambda: None) -> _T:
    """Do *work* to its end, shielded, and return its result; a KeyboardInterrupt that comes meanwhile is raised then.

    A shield alone does not keep it off the main task, so the work is done in another one.

    Args:
        work: What to do. It has to end by itself.
        on_interrupt: Called at each KeyboardInterrupt.
    """
    ended = trio.Event()
    results: list[outcome.Outcome[_T]] = []
    interrupt: KeyboardInterrupt | None = None

    @trio.lowlevel.enable_ki_protection
    async def do() -> None:
        with trio.CancelScope(shield=True):
            results.append(await outcome.acapture(work))
        ended.set()

    async with ServiceNursery() as nursery:
        nursery.start_soon(do, name=trio.lowlevel.current_task().name)
        with trio.CancelScope(shield=True):
            while not ended.is_set():
                try:
                    await ended.wait()
                except KeyboardInterrupt as error:
                    interrupt = error
                    on_interrupt()
    if interrupt is not None:
        raise interrupt
    return results[0].unwrap()


@trio.lowlevel.enable_ki_protection
async def close_and_leave(
    service: ServiceNursery,
    closing: Callable[[], Awaitable[object]],
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
    on_interrupt: Callable[[], object] = lambda: None,
) -> bool:
    """Leave *service* after doing *closing* to its end, as `to_the_end` does, whatever comes. For an ``__aexit__``."""
    try:
        await to_the_end(closing, on_interrupt)
    except BaseException as failure:
        await service.__aexit__(type(failure), failure, failure.__traceback__)
        raise
    return await service.__aexit__(kind, error, traceback)
