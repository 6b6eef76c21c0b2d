"""Time contestants against each other in short alternating blocks of one run.

Each block stands beside a block of what it is compared with, so what else the machine does at that moment touches
both, and the ratio of neighbours cancels it out. Medians and quartiles of those ratios, of wall time and of the CPU
time of this process with all its threads. It knows nothing of what is timed.
"""

import asyncio
import gc
import importlib.metadata
import os
import platform
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

WARM = 15
"""Operations before each timed block, if it has as many: after another contestant the caches hold that one's code."""


class Stopwatch:
    """Wall and CPU nanoseconds of a ``with`` block, so that a contestant can leave its preparations out."""

    def __enter__(self) -> Self:
        self._cpu, self._wall = time.process_time_ns(), time.perf_counter_ns()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        self.wall = time.perf_counter_ns() - self._wall
        self.cpu = time.process_time_ns() - self._cpu


Block = Callable[[int, Stopwatch], Awaitable[None]]
"""Does something so many times, inside the stopwatch."""

Contestant = Callable[[], AbstractAsyncContextManager[Block]]
"""Opens what it needs for the whole run. An ImportError means that it is not installed, a NotImplementedError that it
cannot do it."""


def repeated(once: Callable[[], Awaitable[object]]) -> Block:
    """Return a block of *once*, again and again."""

    async def block(count: int, watch: Stopwatch) -> None:
        with watch:
            for _ in range(count):
                await once()

    return block


def repeated_in_asyncio(loop: asyncio.Runner, once: Callable[[], Awaitable[object]]) -> Block:
    """Return the same of an asyncio contestant, whose *loop* runs for the length of each block; the clock is inside."""

    async def block(count: int, watch: Stopwatch) -> None:
        loop.run(repeated(once)(count, watch))

    return block


@dataclass
class Row:
    """One line of the table: *contestant* as a multiple of *base*.

    Attributes:
        name: What was timed.
        base_name: What it is compared with.
        wall_target: The most that the ratio of wall times should be, None for no target.
        cpu_target: The same of CPU times.
        size: Operations in a block, if not as many as in all others.
        base_size: Operations in a block of the base, if not as many: for one that is far slower.
        rounds_for_one: Rounds of the others for each round of this one, unless there are too few.
        allowance: Microseconds. If given, the ratios are of what an operation takes beyond the base's to this.
    """

    name: str
    contestant: Contestant
    base_name: str
    base: Contestant
    wall_target: float | None = None
    cpu_target: float | None = None
    size: int | None = None
    base_size: int | None = None
    rounds_for_one: int = 1
    allowance: float | None = None
    base_walls: list[float] = field(default_factory=list)
    base_cpus: list[float] = field(default_factory=list)
    walls: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)


async def compare(rows: list[Row], rounds: int, size: int) -> None:
    """Time all *rows*, *rounds* times in random order, in blocks of *size* operations, and print the table."""
    started = time.perf_counter()
    async with AsyncExitStack() as stack:
        blocks: dict[Contestant, Block] = {}
        missing: dict[Contestant, str] = {}
        for contestant in {each: None for row in rows for each in (row.base, row.contestant)}:
            try:
                blocks[contestant] = await stack.enter_async_context(contestant())
            except ImportError as error:
                missing[contestant] = f"{error.name} is not installed"
            except NotImplementedError as error:
                missing[contestant] = str(error)
        present = [row for row in rows if row.contestant in blocks and row.base in blocks]
        gc.collect()
        gc.freeze()
        for number in range(rounds):
            for row in random.sample(present, len(present)):
                if number % max(1, min(row.rounds_for_one, rounds // 3)) == 0:
                    await _time_side_by_side(row, blocks, row.size or size)
    _print_environment(rounds, size, time.perf_counter() - started)
    for row in rows:
        print(_line(row, missing.get(row.contestant) or missing.get(row.base)))


async def _time_side_by_side(row: Row, blocks: dict[Contestant, Block], size: int) -> None:
    watches = {row.base: Stopwatch(), row.contestant: Stopwatch()}
    sizes = {row.base: row.base_size or size, row.contestant: size}
    for contestant in random.sample(list(watches), 2):  # neither always profits from what the other left warm
        await blocks[contestant](min(WARM, sizes[contestant]), watches[contestant])
        await blocks[contestant](sizes[contestant], watches[contestant])
    base, other = watches[row.base], watches[row.contestant]
    row.base_walls.append(base.wall / sizes[row.base] / 1e3)
    row.base_cpus.append(base.cpu / sizes[row.base] / 1e3)
    row.walls.append(_ratio(row, other.wall / size / 1e3, row.base_walls[-1]))
    row.cpus.append(_ratio(row, other.cpu / size / 1e3, row.base_cpus[-1]))


def _ratio(row: Row, other: float, base: float) -> float:
    return other / base if row.allowance is None else (other - base) / row.allowance


def _print_environment(rounds: int, size: int, seconds: float) -> None:
    trio = importlib.metadata.version("trio")
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    print(f"Python {platform.python_version()}, trio {trio}, {rounds} rounds of {size} in {seconds:.0f} s, {load}")
    print("each cell: median [quartiles] of the ratios of neighbouring blocks; base: median µs of one operation\n")
    print(f"{'':45} {'÷':29} {'base µs, CPU':>17}  {'wall ×':25} {'CPU ×':25} target")


def _line(row: Row, missing: str | None) -> str:
    start = f"{row.name:45} {row.base_name:29}"
    if missing is not None or len(row.walls) < 2:
        return f"{start} {'':>17}  {missing or 'too few rounds'}"
    base = f"{statistics.median(row.base_walls):.1f} {statistics.median(row.base_cpus):6.1f}"
    return f"{start} {base:>17}  {_quartiles(row.walls):25} {_quartiles(row.cpus):25} {_verdict(row)}".rstrip()


def _verdict(row: Row) -> str:
    """Say what the targets are and whether the medians meet them."""
    targets = [("wall", row.wall_target, row.walls), ("CPU", row.cpu_target, row.cpus)]
    return ", ".join(
        f"{name} ≤ {target:.2f} {'met' if statistics.median(ratios) <= target else 'MISSED'}"
        for name, target, ratios in targets
        if target is not None
    )


def _quartiles(ratios: list[float]) -> str:
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{_short(middle)} [{_short(low)} .. {_short(high)}]"


def _short(ratio: float) -> str:
    return f"{ratio:.2f}" if abs(ratio) >= 0.1 else f"{ratio:.3f}" if abs(ratio) >= 0.01 else f"{ratio:.4f}"
