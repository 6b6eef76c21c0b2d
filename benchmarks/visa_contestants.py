"""The same exchanges with one SCPI instrument on TCP by others: PyVISA, bare sockets, plain Trio, scpipy.

Each has a connection of its own, and the instrument serves each in a process of its own. All run in one thread, the one
of the Trio run, unless their way is to use another; see serial_contestants.py.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import pyvisa
import trio
from pyvisa.resources import MessageBasedResource

from benchmarks.interleaved import Block, Contestant, Stopwatch, repeated, repeated_in_asyncio
from benchmarks.tcp_instrument import (
    BLOCK_HEADER,
    BLOCK_LENGTH,
    COMMAND,
    FLAT_QUERY,
    QUERY,
    REPLY_LENGTH,
    WAVEFORM_QUERY,
    tcp_instrument,
)

TEXT_LENGTH = REPLY_LENGTH - 1
_QUERY, _COMMAND, _WAVEFORM_QUERY = (f"{text}\n".encode() for text in (QUERY, COMMAND, WAVEFORM_QUERY))
_ANSWER_LENGTH = len(BLOCK_HEADER) + BLOCK_LENGTH + 1
_CHUNK = 1 << 20


@contextmanager
def resource_name() -> Iterator[str]:
    with tcp_instrument() as (port,):
        yield socket_resource(port)


def socket_resource(port: int) -> str:
    return f"TCPIP0::127.0.0.1::{port}::SOCKET"


def blocking(once: Callable[[], object]) -> Block:
    """Return a block of the blocking *once*, without the price of an ``await``."""

    async def block(count: int, watch: Stopwatch) -> None:
        with watch:
            for _ in range(count):
                once()

    return block


@contextmanager
def open_pyvisa(name: str, backend: str = "@py") -> Iterator[MessageBasedResource]:
    """Open a resource as a program without a library around PyVISA does."""
    resource = pyvisa.ResourceManager(backend).open_resource(
        name, resource_pyclass=MessageBasedResource, read_termination="\n", write_termination="\n", timeout=2000
    )
    with resource:
        yield resource


@asynccontextmanager
async def pyvisa_query() -> AsyncIterator[Block]:
    """The base of queries: what everybody writes today."""
    with resource_name() as name, open_pyvisa(name) as resource:
        assert len(resource.query(QUERY)) == TEXT_LENGTH
        yield blocking(lambda: resource.query(QUERY))


@asynccontextmanager
async def pyvisa_write_query() -> AsyncIterator[Block]:
    with resource_name() as name, open_pyvisa(name) as resource:

        def once() -> None:
            resource.write(COMMAND)
            resource.query(QUERY)

        yield blocking(once)


def pyvisa_block(query: str) -> Contestant:
    """Return the base of blocks: raw bytes, the fastest that `query_binary_values` gives."""

    @asynccontextmanager
    async def contestant() -> AsyncIterator[Block]:
        with resource_name() as name, open_pyvisa(name) as resource:

            def once() -> None:
                block = resource.query_binary_values(query, datatype="s", container=bytes, chunk_size=_CHUNK)
                assert len(block) == BLOCK_LENGTH

            yield blocking(once)

    return contestant


pyvisa_waveform, pyvisa_flat = pyvisa_block(WAVEFORM_QUERY), pyvisa_block(FLAT_QUERY)


@asynccontextmanager
async def pyvisa_exact_count() -> AsyncIterator[Block]:
    """What one can get out of PyVISA by hand, knowing the length: no termination character while the block comes."""
    with resource_name() as name, open_pyvisa(name) as resource:

        def once() -> None:
            resource.write(WAVEFORM_QUERY)
            resource.read_termination = None
            try:
                answer = resource.read_bytes(_ANSWER_LENGTH, chunk_size=_CHUNK)
            finally:
                resource.read_termination = "\n"
            assert answer.startswith(BLOCK_HEADER)

        yield blocking(once)


@asynccontextmanager
async def pyvisa_in_thread() -> AsyncIterator[Block]:
    """The usual way from Trio. A limiter of one, since two threads in one resource take each other's reply."""
    limiter = trio.CapacityLimiter(1)
    with resource_name() as name, open_pyvisa(name) as resource:
        yield repeated(lambda: trio.to_thread.run_sync(resource.query, QUERY, limiter=limiter))


@asynccontextmanager
async def pyvisa_in_thread_write_query() -> AsyncIterator[Block]:
    limiter = trio.CapacityLimiter(1)
    with resource_name() as name, open_pyvisa(name) as resource:

        async def once() -> None:
            await trio.to_thread.run_sync(resource.write, COMMAND, limiter=limiter)
            await trio.to_thread.run_sync(resource.query, QUERY, limiter=limiter)

        yield repeated(once)


@asynccontextmanager
async def raw_socket() -> AsyncIterator[Block]:
    """What the instrument and the system take: nothing on top."""
    with tcp_instrument() as (port,), socket.create_connection(("127.0.0.1", port), timeout=2) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def once() -> None:
            link.sendall(_QUERY)
            missing = REPLY_LENGTH
            while missing:
                missing -= len(link.recv(4096))

        yield blocking(once)


@asynccontextmanager
async def open_plain_trio() -> AsyncIterator[trio.SocketStream]:
    with tcp_instrument() as (port,):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            yield stream


async def plain_exchange(stream: trio.SocketStream) -> None:
    """Query without owner, queue, deadline, or a look at what the reply is."""
    await stream.send_all(_QUERY)
    missing = REPLY_LENGTH
    while missing:
        missing -= len(await stream.receive_some(4096))


@asynccontextmanager
async def plain_trio() -> AsyncIterator[Block]:
    async with open_plain_trio() as stream:
        yield repeated(lambda: plain_exchange(stream))


def plain_trio_one_by_one(number: int) -> Contestant:
    """Return a contestant whose operation is *number* queries, one after the other."""

    @asynccontextmanager
    async def contestant() -> AsyncIterator[Block]:
        async with open_plain_trio() as stream:

            async def once() -> None:
                for _ in range(number):
                    await plain_exchange(stream)

            yield repeated(once)

    return contestant


@asynccontextmanager
async def plain_trio_locked() -> AsyncIterator[Block]:
    """The same with a lock and a deadline, as one would write it without a library."""
    async with open_plain_trio() as stream:
        lock = trio.Lock()

        async def once() -> None:
            with trio.fail_after(2):
                async with lock:
                    await plain_exchange(stream)

        yield repeated(once)


@asynccontextmanager
async def plain_trio_write_query() -> AsyncIterator[Block]:
    async with open_plain_trio() as stream:

        async def once() -> None:
            await stream.send_all(_COMMAND)
            await plain_exchange(stream)

        yield repeated(once)


@asynccontextmanager
async def plain_trio_waveform() -> AsyncIterator[Block]:
    async with open_plain_trio() as stream:

        async def once() -> None:
            await stream.send_all(_WAVEFORM_QUERY)
            answer = bytearray()
            while len(answer) < _ANSWER_LENGTH:
                answer += await stream.receive_some(_CHUNK)

        yield repeated(once)


@asynccontextmanager
async def _open_scpipy():
    """Open scpipy's client and the asyncio loop that it lives in; it has no verb for blocks."""
    from scpipy.client import Client

    # Its close() closes the manager of its PyVISA library, and so everybody's sessions: each gets its own library.
    with resource_name() as name, asyncio.Runner() as loop:
        client = Client(name, backend=f"{name}@py")
        loop.run(client.connect())
        try:
            yield loop, client
        finally:
            loop.run(client.close())


@asynccontextmanager
async def scpipy() -> AsyncIterator[Block]:
    async with _open_scpipy() as (loop, client):
        yield repeated_in_asyncio(loop, lambda: client.query(QUERY))


@asynccontextmanager
async def scpipy_write_query() -> AsyncIterator[Block]:
    async with _open_scpipy() as (loop, client):

        async def once() -> None:
            await client.write(COMMAND)
            await client.query(QUERY)

        yield repeated_in_asyncio(loop, once)
