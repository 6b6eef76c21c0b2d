"""What an ask costs, beside a channel, an event and a cancel scope in plain Trio.

Run it as ``nox -s bench`` or ``python benchmarks/actors.py``; ``--quick`` takes 10 s, ``--profile`` says where the time
of an ask goes.
"""

import argparse
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != _HERE] + [str(_HERE.parent)]

import attrs  # noqa: E402
import trio  # noqa: E402

from benchmarks.interleaved import Block, Row, compare, repeated  # noqa: E402
from benchmarks.where_it_goes import print_profile  # noqa: E402
from trio_daq.actors import Actor, ActorCell, ActorRef, Message, handles  # noqa: E402


@attrs.frozen
class Measure(Message[float]):
    """Answered at once."""

    channel: int


class Meter(Actor):
    """Answers at once."""

    @handles(Measure)
    async def measure(self, message: Measure) -> float:
        return float(message.channel)


MESSAGE = Measure(1)


@asynccontextmanager
async def _running() -> AsyncIterator[ActorRef[Meter]]:
    cell = ActorCell("meter", Meter, Meter)
    async with trio.open_nursery() as nursery:
        yield await nursery.start(cell.serve)
        cell.stop()


@asynccontextmanager
async def ask() -> AsyncIterator[Block]:
    async with _running() as ref:
        yield repeated(lambda: ref.ask(MESSAGE, timeout=1))


@asynccontextmanager
async def tell() -> AsyncIterator[Block]:
    """The last of each 32 is an ask, so that the mailbox is never full."""
    async with _running() as ref:

        async def once() -> None:
            for _ in range(31):
                await ref.tell(MESSAGE, timeout=1)
            await ref.ask(MESSAGE, timeout=1)

        yield repeated(once)


class _Order:
    """What plain Trio sends: the message, and where the answer is put."""

    def __init__(self, message: Measure) -> None:
        self.message = message
        self.answer: float | None = None
        self.done = trio.Event()


@asynccontextmanager
async def _plain_server() -> AsyncIterator[trio.MemorySendChannel[_Order]]:
    sender, receiver = trio.open_memory_channel[_Order](64)

    async def answer(message: Measure) -> float:
        return float(message.channel)

    async def serve() -> None:
        async for order in receiver:
            order.answer = await answer(order.message)
            order.done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        async with sender:
            yield sender


@asynccontextmanager
async def plain_ask() -> AsyncIterator[Block]:
    async with _plain_server() as sender:

        async def once() -> float | None:
            with trio.fail_after(1):
                order = _Order(MESSAGE)
                await sender.send(order)
                await order.done.wait()
            return order.answer

        yield repeated(once)


@asynccontextmanager
async def plain_tell() -> AsyncIterator[Block]:
    async with _plain_server() as sender:

        async def once() -> None:
            for _ in range(32):
                with trio.fail_after(1):
                    order = _Order(MESSAGE)
                    await sender.send(order)
            await order.done.wait()

        yield repeated(once)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--size", type=int, default=200)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    if options.profile:
        trio.run(print_profile, ask, 20_000)
        return
    base: tuple[str, Any] = ("channel, Event, fail_after", plain_ask)
    rows = [
        Row("ask with a timeout", ask, *base, wall_target=0.5, cpu_target=0.5),
        Row("31 tells with a timeout and an ask", tell, "32 sends with fail_after", plain_tell, size=10),
    ]
    trio.run(compare, rows, 30 if options.quick else options.rounds, options.size)


if __name__ == "__main__":
    main()
