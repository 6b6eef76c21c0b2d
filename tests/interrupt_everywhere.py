"""Raise SIGINT at each line of given modules that a scenario executes, one line a run, and judge what is left behind.

The signal is the real one and goes to Trio's own handler, as Ctrl-C does under a plain `trio.run`, so that Trio's rules
decide whether KeyboardInterrupt is raised at that very line or later in the main task. `TRIO_DAQ_INTERRUPTS=all` takes
every executed line, a number so many of each scenario; where nothing is said it is a few seconds' worth of them.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import random
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import attrs
import trio
import trio._core._run as trio_run
from trio.testing import MockClock

from trio_daq.sharing import alarms, wait_graph

ROOT = Path(wait_graph.__file__).parents[1]
WANTED = os.environ.get("TRIO_DAQ_INTERRUPTS", "")
_MOST_FAILURES = 200

Point = tuple[str, int, int]
"""A line: module, number, and the how-manieth time that it is executed."""


class World:
    """One run of a scenario: what happens, and what must be true in the end, whatever happened."""

    clock: trio.abc.Clock | None = None
    resting_alarms = 0
    """Alarms that may be set in the end: that of a line is left until it rings."""

    signals_of_its_own = 0
    """Signals that the scenario itself raises, before it calls `watch_from_now_on`."""
    limit = 20.0
    """Seconds after which a run hangs."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.caught = 0
        self.ended_by_it = 0
        self.watch_from_now_on: Callable[[], None] = lambda: None

    async def main(self) -> None:
        """What runs under `trio.run`."""
        raise NotImplementedError

    def judge(self) -> None:
        """Add to `wrong` what is not as it must be; called after the run."""


class Virtual(World):
    """One on a virtual clock. It takes milliseconds."""

    limit = 10.0

    def __init__(self) -> None:
        super().__init__()
        self.clock = MockClock(autojump_threshold=0)


@attrs.frozen
class Failure:
    """What went wrong when the signal came at one line."""

    point: Point
    what: str

    def __str__(self) -> str:
        return "{}:{} (time {}): ".format(*self.point) + self.what


class _Tracer:
    """Counts the executed lines of *modules*, and raises the signal at one of them."""

    def __init__(self, modules: Sequence[str], at: Point | None) -> None:
        self._names = {str(ROOT / module): module for module in modules}
        self._at = at
        self.times: Counter[tuple[str, int]] = Counter()
        self.points: list[Point] = []
        self.reached = False
        self.is_watching = True

    def watch(self) -> None:
        self.is_watching = True

    def __call__(self, frame: FrameType, event: str, _: object) -> Any:
        name = self._names.get(frame.f_code.co_filename)
        if name is None or self.reached:
            return None

        def trace(frame: FrameType, event: str, _: object) -> Any:
            if event == "line" and self.is_watching and not self.reached:
                line = name, frame.f_lineno
                self.times[line] += 1
                point = (*line, self.times[line])
                if self._at is None:
                    self.points.append(point)
                elif point == self._at:
                    self.reached = True
                    signal.raise_signal(signal.SIGINT)
            return trace

        return trace


def executed_lines(make: Callable[[], World], modules: Sequence[str]) -> list[Point]:
    """Return every line that the scenario executes when no signal comes, in order."""
    tracer = _Tracer(modules, None)
    world, error, trouble = _run(make, tracer)
    assert error is None or world.signals_of_its_own, [(leaf, leaf.__notes__[-1]) for leaf in _leaves(error)]
    assert not trouble + world.wrong, trouble + world.wrong
    return tracer.points


def chosen(points: Sequence[Point], budget: int) -> list[Point]:
    """Return all of *points*, or about *budget* of them: each line before any line again."""
    if WANTED == "all" or len(points) <= budget:
        return list(points)
    rng = random.Random(len(points))  # always the same
    order = sorted(points, key=lambda point: (point[2] > 1, rng.random()))
    return order[:budget]


def interrupt(make: Callable[[], World], modules: Sequence[str], at: Point) -> tuple[bool, list[Failure]]:
    """Run the scenario with the signal at one line. Return whether that was reached, and what was wrong."""
    tracer = _Tracer(modules, at)
    world, error, trouble = _run(make, tracer)
    said = [*trouble, *world.wrong]
    leaves = list(_leaves(error)) if error is not None else []
    others = [leaf for leaf in leaves if not isinstance(leaf, KeyboardInterrupt)]
    said += [f"trio.run raised {leaf!r} at {leaf.__notes__[-1]}" for leaf in others]
    came = world.caught + len(leaves) - len(others)
    if not min(1, sent := tracer.reached + world.signals_of_its_own) <= came <= sent:
        said.append(f"KeyboardInterrupt came {came} times for {sent} signals")
    return tracer.reached, [Failure(at, what) for what in said]


def interrupt_everywhere(
    make: Callable[[], World], modules: Sequence[str], budget: int, seconds: float = float("inf")
) -> None:
    """Run the scenario once for each chosen line; fail with the list of those where something was wrong."""
    with _collected():
        points = chosen(executed_lines(make, modules), int(WANTED) if WANTED.isdecimal() else budget)
        failures: list[Failure] = []
        reached: Counter[str] = Counter()
        began = time.monotonic()
        for point in points:
            was_reached, failed = interrupt(make, modules, point)
            reached[point[0]] += was_reached
            failures += failed
            if len(failures) > _MOST_FAILURES or (not WANTED and time.monotonic() - began > seconds):
                break
    bad = Counter(failure.point[0] for failure in failures)
    table = "\n".join(f"  {name:<32} {reached[name]:>6} lines, {bad[name]} failures" for name in sorted(reached))
    print(f"\n{make.__name__}: {sum(reached.values())} lines in {time.monotonic() - began:.1f} s\n{table}")
    assert sum(reached.values()) > 0
    shown = "\n".join(str(failure) for failure in failures[:40])
    assert not failures, f"{len(failures)} failures, for example\n{shown}"


# --- one run ----------------------------------------------------------------------------------------------------------


def _run(make: Callable[[], World], tracer: _Tracer) -> tuple[World, BaseException | None, list[str]]:
    wait_graph._waiting.clear()
    wait_graph._higher_kinds.clear()
    trouble: list[str] = []
    fds, threads = _descriptors(), set(threading.enumerate())
    error: BaseException | None = None
    world = make()
    tracer.is_watching, world.watch_from_now_on = not world.signals_of_its_own, tracer.watch
    clocks: list[Any] = []
    run_vars: list[dict[str, Any]] = []

    async def main() -> None:
        clocks.append(alarms._current_clock())
        from trio_daq.visa import registry

        run_vars.append(registry._entries())
        await world.main()

    with _judging(trouble):
        trio_run._r.seed(7)
        sys.settrace(tracer)
        try:
            with _limited(trouble, world.limit):
                trio.run(main, clock=world.clock)
        except BaseException as caught:
            error = caught
        finally:
            sys.settrace(None)
        world.judge()
        if error is not None:  # its frames keep what is to be collected
            error = _bare(error)
        gc.collect()
    if wait_graph._waiting or wait_graph._higher_kinds:
        trouble.append(f"the wait-for graph is not empty: {wait_graph._waiting} {wait_graph._higher_kinds}")
    if clocks and clocks[0].alarms_set > world.resting_alarms:
        trouble.append(f"{clocks[0].alarms_set} alarms are still set")
    if run_vars and run_vars[0]:
        trouble.append(f"sessions are still registered: {list(run_vars[0])}")
    deadline = time.monotonic() + 2
    while left := [one for one in set(threading.enumerate()) - threads if "Trio thread" not in one.name]:
        if time.monotonic() > deadline:
            trouble.append(f"threads are left: {left}")
            break
        time.sleep(0.001)
    if _descriptors() != fds:
        trouble.append(f"descriptors are left: {_descriptors() - fds}")
    return world, error, trouble


def _bare(error: BaseException) -> BaseException:
    """Return the same exceptions without their frames, but with a note of where each was raised."""
    leaves = list(_leaves(error))
    for leaf in leaves:
        places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(leaf.__traceback__)]
        leaf.add_note(" < ".join(reversed(places[-6:])))
        leaf.__traceback__ = leaf.__context__ = leaf.__cause__ = None
    return BaseExceptionGroup(error.message, leaves) if isinstance(error, BaseExceptionGroup) else error


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    else:
        yield error


def _descriptors() -> set[str]:
    names = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            names.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except OSError:  # the one that lists them
            continue
    return names


@contextmanager
def _judging(trouble: list[str]) -> Iterator[None]:
    """Note warnings, and exceptions that could be raised to nobody."""
    before = sys.unraisablehook
    sys.unraisablehook = lambda seen: trouble.append(f"unraisable: {seen.exc_value!r} in {seen.object!r}")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            yield
            trouble += [f"{one.category.__name__}: {one.message}" for one in said]
    finally:
        sys.unraisablehook = before


class _HangsError(BaseException):
    """Raised in a run that hangs, again and again until it ends: somebody may catch it."""


@contextmanager
def _limited(trouble: list[str], seconds: float) -> Iterator[None]:
    """End a run that hangs."""

    running = [True]

    def end(*_: object) -> None:
        if running:
            if "the run hangs" not in trouble:
                trouble.append("the run hangs")
            raise _HangsError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.05)
    faulthandler.dump_traceback_later(5 * seconds, exit=True)
    try:
        yield
    finally:
        running.clear()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()


@contextmanager
def _collected() -> Iterator[None]:
    """Make the garbage collection after each run quick, and scheduling the same in all of them."""
    before = trio_run._ALLOW_DETERMINISTIC_SCHEDULING
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = before


# --- for scenarios ----------------------------------------------------------------------------------------------------


async def surviving(world: World, *works: Callable[[], Awaitable[object]]) -> None:
    """Run *works* as tasks, each of which a KeyboardInterrupt ends alone; one that comes to the main task, none."""
    ended = trio.Event()
    running = len(works)

    async def run(work: Callable[[], Awaitable[object]]) -> None:
        nonlocal running
        try:
            await work()
        except KeyboardInterrupt:
            world.caught += 1
            world.ended_by_it += 1
        except BaseExceptionGroup as group:
            mine, others = group.split(KeyboardInterrupt)
            if mine is None or others is not None:
                raise
            world.caught += 1
            world.ended_by_it += 1
        finally:
            running -= 1
            if not running:
                ended.set()

    async with trio.open_nursery() as nursery:
        for number, work in enumerate(works):
            nursery.start_soon(run, work, name=f"task {number}")
        while not ended.is_set():
            try:
                await ended.wait()
            except KeyboardInterrupt:
                world.caught += 1
