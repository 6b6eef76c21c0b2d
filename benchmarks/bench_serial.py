"""A guarded query on a pty, beside raw blocking pyserial.

Blocks of all contestants alternate in random order within one run, and each block is divided by the nearest block of
the base, so that what else the machine does cancels out. Wall time and CPU time; medians and quartiles.
"""

import argparse
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import serial
import trio

from trio_daq import SerialPortConfig, SharedSerialPort

QUERY = b"q" * 31 + b"\n"
REPLY_LENGTH = 40

Block = Callable[[int], Awaitable[None]]


@contextmanager
def echo_peer() -> Iterator[str]:
    """Start an instrument in a process of its own and give the path of its port."""
    script = str(Path(__file__).with_name("echo_peer.py"))
    with subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
        assert peer.stdout is not None
        yield peer.stdout.readline().strip()
        peer.communicate()


async def main(paths: tuple[str, str], rounds: int, size: int) -> None:
    raw = serial.Serial(paths[0], timeout=1)
    port = SharedSerialPort(SerialPortConfig(path=paths[1], quiet_time=0.05))
    await port.recover()

    async def pyserial_read(count: int) -> None:
        for _ in range(count):
            raw.write(QUERY)
            assert len(raw.read(REPLY_LENGTH)) == REPLY_LENGTH

    async def guarded_query(count: int) -> None:
        for _ in range(count):
            async with port.acquire("bench", timeout=1) as guard:
                await guard.query(QUERY[:-1], timeout=1)

    try:
        await compare("pyserial write + read(n)", pyserial_read, {"guarded query": guarded_query}, rounds, size)
    finally:
        raw.close()
        await port.aclose()


async def compare(base_name: str, base: Block, others: dict[str, Block], rounds: int, size: int) -> None:
    """Print what each of *others* costs, as a multiple of *base*."""
    walls: dict[str, list[float]] = {name: [] for name in others}
    cpus: dict[str, list[float]] = {name: [] for name in others}
    base_walls = []
    for block in (base, *others.values()):
        await block(size)  # warm
    for _ in range(rounds):
        for name in random.sample(list(others), len(others)):
            base_wall, base_cpu = await timed(base, size)
            wall, cpu = await timed(others[name], size)
            base_walls.append(base_wall / size)
            walls[name].append(wall / base_wall)
            cpus[name].append(cpu / base_cpu)
    print(f"base: {base_name}, median {1e6 * statistics.median(base_walls):.0f} us")
    for name in others:
        print(f"{name}: wall x {quartiles(walls[name])}, CPU x {quartiles(cpus[name])}")


async def timed(block: Block, size: int) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    await block(size)
    return time.perf_counter() - wall, time.process_time() - cpu


def quartiles(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f} [{low:.2f} .. {high:.2f}]"


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--rounds", type=int, default=60)
parser.add_argument("--size", type=int, default=60)
arguments = parser.parse_args()
with echo_peer() as first, echo_peer() as second:
    trio.run(main, (first, second), arguments.rounds, arguments.size)
