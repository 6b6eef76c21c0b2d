"""What a guarded query and a lease cost, beside other serial libraries and beside plain Trio.

Run it as ``nox -s bench`` or ``python benchmarks/serial.py``; ``--profile`` says where a guarded query's time goes.
"""

import argparse
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

# As a script this file would be found under the name of pyserial: its folder leaves the path, the one above comes last.
_HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != _HERE] + [str(_HERE.parent)]

import trio  # noqa: E402

from benchmarks import serial_contestants as others  # noqa: E402
from benchmarks.instrument import QUERY, instrument  # noqa: E402
from benchmarks.interleaved import Block, Row, Stopwatch, compare, repeated  # noqa: E402
from benchmarks.programs import language  # noqa: E402
from benchmarks.where_it_goes import print_profile  # noqa: E402
from trio_daq import SerialPortConfig, SharedSerialPort  # noqa: E402
from trio_daq.sharing import Lease  # noqa: E402

COMMAND, UNANSWERED = QUERY[:-1], b"w" * 32
COMPETITORS = 5


@asynccontextmanager
async def open_port() -> AsyncIterator[SharedSerialPort]:
    with instrument() as path:
        port = SharedSerialPort(SerialPortConfig(path=path, quiet_time=0.05))
        try:
            await port.recover()
            yield port
        finally:
            await port.aclose()


@asynccontextmanager
async def guarded_query() -> AsyncIterator[Block]:
    """An owner, a deadline for getting the port and one for the exchange, and a clean line for the next owner."""
    async with open_port() as port:

        async def once() -> None:
            async with port.acquire("bench", timeout=1) as guard:
                await guard.query(COMMAND, timeout=1)

        yield repeated(once)


@asynccontextmanager
async def query_in_one_guard() -> AsyncIterator[Block]:
    async with open_port() as port:

        async def block(count: int, watch: Stopwatch) -> None:
            async with port.acquire("bench", timeout=1) as guard:
                with watch:
                    for _ in range(count):
                        await guard.query(COMMAND, timeout=1)

        yield block


@asynccontextmanager
async def writes_in_one_guard() -> AsyncIterator[Block]:
    async with open_port() as port:

        async def block(count: int, watch: Stopwatch) -> None:
            with watch:
                async with port.acquire("bench", timeout=1) as guard:
                    for _ in range(count):
                        await guard.write_only(UNANSWERED, timeout=1)

        yield block


@asynccontextmanager
async def writes_in_a_guard_each() -> AsyncIterator[Block]:
    async with open_port() as port:

        async def once() -> None:
            async with port.acquire("bench", timeout=1) as guard:
                await guard.write_only(UNANSWERED, timeout=1)

        yield repeated(once)


@asynccontextmanager
async def port_uncontended() -> AsyncIterator[Block]:
    async with open_port() as port:

        async def once() -> None:
            async with port.acquire("bench", timeout=1):
                pass

        yield repeated(once)


@asynccontextmanager
async def lease_uncontended() -> AsyncIterator[Block]:
    lease = Lease("bench")

    async def once() -> None:
        async with lease.hold("bench", timeout=1):
            pass

    yield repeated(once)


@asynccontextmanager
async def lock_uncontended() -> AsyncIterator[Block]:
    lock = trio.Lock()

    async def once() -> None:
        with trio.fail_after(1):
            await lock.acquire()
        lock.release()

    yield repeated(once)


@asynccontextmanager
async def lease_contended() -> AsyncIterator[Block]:
    lease = Lease("bench")

    async def competitor(count: int, name: str) -> None:
        for _ in range(count):
            async with lease.hold(name, timeout=1):
                await trio.lowlevel.checkpoint()

    yield lambda count, watch: _compete(competitor, count, watch)


@asynccontextmanager
async def lock_contended() -> AsyncIterator[Block]:
    lock = trio.Lock()

    async def competitor(count: int, _: str) -> None:
        for _ in range(count):
            with trio.fail_after(1):
                await lock.acquire()
            await trio.lowlevel.checkpoint()
            lock.release()

    yield lambda count, watch: _compete(competitor, count, watch)


async def _compete(competitor, count: int, watch: Stopwatch) -> None:
    """Hand over *count* times between tasks that all want it all the time."""
    with watch:
        async with trio.open_nursery() as nursery:
            for number in range(COMPETITORS):
                nursery.start_soon(competitor, -(-count // COMPETITORS), f"competitor {number}")


def rows() -> list[Row]:
    base = ("pyserial write + read(n)", others.pyserial_read)
    peers = {
        "plain Trio on the descriptor, no guard": others.plain_trio,
        "plain Trio with Lock and fail_after": others.plain_trio_locked,
        "trio-serial, no guard, no deadline": others.trio_serial,
        "anyserial on Trio, no guard, no deadline": others.anyserial_on_trio,
        "pyserial-asyncio-fast, no guard, no deadline": others.pyserial_asyncio_fast,
        "pyserial in trio.to_thread, no guard": others.pyserial_in_thread,
        "aioserial, no guard": others.aioserial,
        "pyserial write + read_until": others.pyserial_read_until,
        "anyio-serial on Trio, no guard, no deadline": others.anyio_serial_on_trio,
    }
    return [
        Row("guarded query with deadline", guarded_query, *base, wall_target=2.0, cpu_target=2.6),
        Row("guarded query with deadline", guarded_query, "anyserial on Trio", others.anyserial_on_trio, 1.0),
        Row(
            "guarded query with deadline", guarded_query, "pyserial read_until", others.pyserial_read_until, 0.35, 0.25
        ),
        Row("guarded query with deadline", guarded_query, "plain Trio, Lock, fail_after", others.plain_trio_locked),
        Row("query with deadline, one guard for all", query_in_one_guard, *base),
        *(Row(name, contestant, *base) for name, contestant in peers.items()),
        Row("lease: acquire + release", lease_uncontended, "fail_after + trio.Lock", lock_uncontended, 0.25),
        Row("port: acquire + release", port_uncontended, "fail_after + trio.Lock", lock_uncontended),
        Row("lease: contended hand-over with deadline", lease_contended, "the same in plain Trio", lock_contended, 0.6),
        Row(
            "10 000 writes in one guard",
            writes_in_one_guard,
            "a guard for each",
            writes_in_a_guard_each,
            size=10_000,
            rounds_for_one=10,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--size", type=int, default=60, help="operations in a block")
    parser.add_argument("--quick", action="store_true", help="few rounds of short blocks")
    parser.add_argument("--only", default="", help="part of a row's name")
    parser.add_argument("--profile", action="store_true", help="say where the time of a guarded query goes")
    arguments = parser.parse_args()
    rounds, size = (9, 30) if arguments.quick else (arguments.rounds, arguments.size)
    if arguments.profile:
        trio.run(print_profile, guarded_query, rounds * size)
        return
    print(f"guarded queries and leases; the instruments are written in {language()}")
    trio.run(compare, [row for row in rows() if arguments.only in row.name], rounds, size)


if __name__ == "__main__":
    main()
