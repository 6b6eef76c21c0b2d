"""What a VISA session of ours does in the benchmarks, by either transport."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Literal

import trio

from benchmarks.interleaved import Block, Contestant, Stopwatch, repeated
from benchmarks.tcp_instrument import BLOCK_LENGTH, COMMAND, FLAT_QUERY, QUERY, WAVEFORM_QUERY
from benchmarks.visa_contestants import TEXT_LENGTH, open_pyvisa, resource_name
from trio_daq import VisaSessionConfig, VisaSessionManager
from trio_daq.sharing import WorkerThread

Transport = Literal["native", "pyvisa"]
BATCH = 10


def open_session(transport: Transport, name: str) -> AbstractAsyncContextManager[VisaSessionManager]:
    _require("batch" if transport == "native" else "query")
    return VisaSessionManager(VisaSessionConfig(resource=name, transport=transport, queue_warning=1000))


def _require(verb: str) -> None:
    if not hasattr(VisaSessionManager, verb):
        raise NotImplementedError("not there yet")


def _contestant(transport: Transport, use: Callable[[VisaSessionManager], Block]) -> Contestant:
    @asynccontextmanager
    async def contestant() -> AsyncIterator[Block]:
        with resource_name() as name:
            async with open_session(transport, name) as session:
                assert len(await session.query(QUERY)) == TEXT_LENGTH
                yield use(session)

    return contestant


def query(transport: Transport) -> Contestant:
    """An owner, a place in the queue, one deadline for all, and a reply that is nobody else's."""
    return _contestant(transport, lambda session: repeated(lambda: session.query(QUERY, timeout=1)))


def batch(transport: Transport) -> Contestant:
    """Ten queries as one entry of the queue; an operation is one of them."""

    def use(session: VisaSessionManager) -> Block:
        _require("batch")

        async def block(count: int, watch: Stopwatch) -> None:
            with watch:
                for left in range(count, 0, -BATCH):
                    await session.batch([QUERY] * min(left, BATCH), timeout=1)

        return block

    return _contestant(transport, use)


def write_query(transport: Transport) -> Contestant:
    def use(session: VisaSessionManager) -> Block:
        async def once() -> None:
            await session.write(COMMAND, timeout=1)
            await session.query(QUERY, timeout=1)

        return repeated(once)

    return _contestant(transport, use)


def block(transport: Transport, text: str) -> Contestant:
    def use(session: VisaSessionManager) -> Block:
        _require("query_block")

        async def once() -> None:
            assert len(await session.query_block(text, timeout=2)) == BLOCK_LENGTH

        return repeated(once)

    return _contestant(transport, use)


def at_once(transport: Transport, depth: int) -> Contestant:
    """Return a contestant whose operation is *depth* queries, each by its own task, until the last has its reply."""

    def use(session: VisaSessionManager) -> Block:
        async def once() -> None:
            async with trio.open_nursery() as nursery:
                for _ in range(depth):
                    nursery.start_soon(session.query, QUERY, 2.0)

        return repeated(once)

    return _contestant(transport, use)


def worker_thread_one_by_one(number: int) -> Contestant:
    """Return what is under the queue of the pyvisa transport: *number* hops to its thread, each with a query."""

    @asynccontextmanager
    async def contestant() -> AsyncIterator[Block]:
        with resource_name() as name, open_pyvisa(name) as resource:
            worker = WorkerThread("bench")

            async def once() -> None:
                for _ in range(number):
                    await worker.run(resource.query, QUERY)

            yield repeated(once)
            await worker.aclose(1)

    return contestant


native_query, pyvisa_query = query("native"), query("pyvisa")
native_batch, pyvisa_batch = batch("native"), batch("pyvisa")
native_write_query, pyvisa_write_query = write_query("native"), write_query("pyvisa")
native_waveform, pyvisa_waveform = block("native", WAVEFORM_QUERY), block("pyvisa", WAVEFORM_QUERY)
native_flat = block("native", FLAT_QUERY)
