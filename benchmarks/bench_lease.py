"""A lease with a deadline, beside the same in plain Trio: `trio.fail_after` around a `trio.Lock`.

Blocks of both alternate within one run, and each block is divided by its neighbour, so that what else the machine does
cancels out. Wall time and CPU time; medians and quartiles.
"""

import argparse
import statistics
import time
from collections.abc import Awaitable, Callable

import trio

from trio_daq.sharing import Lease

RIVALS = 16

Block = Callable[[int], Awaitable[None]]


async def main(rounds: int, size: int) -> None:
    lock, lease = trio.Lock(), Lease("bench")

    async def take_lock(count: int) -> None:
        for _ in range(count):
            with trio.fail_after(50):
                async with lock:
                    pass

    async def take_lease(count: int) -> None:
        for _ in range(count):
            async with lease.hold("bench", 50):
                pass

    async def want_lock(_: str, count: int) -> None:
        for _ in range(count):
            # The deadline is that of the wait alone, as the lease has it.
            with trio.fail_after(50):
                await lock.acquire()
            try:
                await trio.lowlevel.checkpoint()
            finally:
                lock.release()

    async def want_lease(name: str, count: int) -> None:
        for _ in range(count):
            async with lease.hold(name, 50):
                await trio.lowlevel.checkpoint()

    await compare("uncontended acquire + release", take_lock, take_lease, rounds, size)
    await compare(f"hand-over among {RIVALS}", among_rivals(want_lock), among_rivals(want_lease), rounds, size)


def among_rivals(want: Callable[[str, int], Awaitable[None]]) -> Block:
    """Return a block in which every acquire has to wait for the others."""

    async def block(count: int) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(RIVALS):
                nursery.start_soon(want, f"rival {number}", count // RIVALS)

    return block


async def compare(name: str, base: Block, other: Block, rounds: int, size: int) -> None:
    """Print what *other* costs, as a multiple of *base*."""
    base_walls, walls, cpus = [], [], []
    for block in (base, other):
        await block(size)  # warm
    for _ in range(rounds):
        base_wall, base_cpu = await timed(base, size)
        wall, cpu = await timed(other, size)
        base_walls.append(base_wall / size)
        walls.append(wall / base_wall)
        cpus.append(cpu / base_cpu)
    microseconds = 1e6 * statistics.median(base_walls)
    print(f"{name}: wall x {quartiles(walls)}, CPU x {quartiles(cpus)}; base, plain Trio, {microseconds:.1f} us")


async def timed(block: Block, size: int) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    await block(size)
    return time.perf_counter() - wall, time.process_time() - cpu


def quartiles(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} [{low:.3f} .. {high:.3f}]"


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--rounds", type=int, default=100)
parser.add_argument("--size", type=int, default=1600)
arguments = parser.parse_args()
trio.run(main, arguments.rounds, arguments.size)
