"""The same exchange, a line of 32 bytes for a line of 40, by every library that has a way to do it.

Each has an instrument of its own and keeps its port open through the run. All run in one thread, the one of the Trio
run: a blocking contestant blocks it, and an asyncio contestant keeps a loop of its own that runs in it for the length
of each block. Nothing else is running then, so neither side pays for a thread switch that a real program would not
have. Clocks run inside the loop.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import serial
import trio

from benchmarks.instrument import QUERY, REPLY_LENGTH, instrument
from benchmarks.interleaved import Block, Stopwatch, repeated, repeated_in_asyncio


@asynccontextmanager
async def pyserial_read() -> AsyncIterator[Block]:
    """The base: blocking pyserial, and the length of the reply is known."""
    with instrument() as path, serial.Serial(path, timeout=1) as line:

        async def block(count: int, watch: Stopwatch) -> None:
            with watch:
                for _ in range(count):
                    line.write(QUERY)
                    assert len(line.read(REPLY_LENGTH)) == REPLY_LENGTH

        yield block


@asynccontextmanager
async def pyserial_read_until() -> AsyncIterator[Block]:
    """What most drivers do: a reply ends with its terminator."""
    with instrument() as path, serial.Serial(path, timeout=1) as line:

        async def block(count: int, watch: Stopwatch) -> None:
            with watch:
                for _ in range(count):
                    line.write(QUERY)
                    assert len(line.read_until(b"\n")) == REPLY_LENGTH

        yield block


@asynccontextmanager
async def pyserial_in_thread() -> AsyncIterator[Block]:
    with instrument() as path, serial.Serial(path, timeout=1) as line:

        def exchange() -> bytes:
            line.write(QUERY)
            return line.read(REPLY_LENGTH)

        async def once() -> None:
            assert len(await trio.to_thread.run_sync(exchange)) == REPLY_LENGTH

        yield repeated(once)


@asynccontextmanager
async def plain_trio() -> AsyncIterator[Block]:
    """A descriptor and `trio.lowlevel`: no owner, no deadline, no buffer, no line ends."""
    with instrument() as path, serial.Serial(path, inter_byte_timeout=0) as line:
        yield repeated(_plain_exchange(line.fileno()))


@asynccontextmanager
async def plain_trio_locked() -> AsyncIterator[Block]:
    """The same with a lock and a deadline for each of the two waits, as one would write it without a library."""
    with instrument() as path, serial.Serial(path, inter_byte_timeout=0) as line:
        exchange, lock = _plain_exchange(line.fileno()), trio.Lock()

        async def once() -> None:
            with trio.fail_after(1):
                await lock.acquire()
            try:
                with trio.fail_after(1):
                    await exchange()
            finally:
                lock.release()

        yield repeated(once)


def _plain_exchange(fd: int) -> Callable[[], Awaitable[None]]:
    async def exchange() -> None:
        os.write(fd, QUERY)
        missing = REPLY_LENGTH
        while missing:
            await trio.lowlevel.wait_readable(fd)
            missing -= len(os.read(fd, 4096))

    return exchange


@asynccontextmanager
async def trio_serial() -> AsyncIterator[Block]:
    from trio_serial import SerialStream

    with instrument() as path:
        async with SerialStream(path) as line:

            async def once() -> None:
                await line.send_all(QUERY)
                missing = REPLY_LENGTH
                while missing:
                    missing -= len(await line.receive_some(4096))

            yield repeated(once)


@asynccontextmanager
async def anyserial_on_trio() -> AsyncIterator[Block]:
    from anyserial import SerialConfig, open_serial_port

    with instrument() as path:
        async with await open_serial_port(path, SerialConfig(baudrate=9600)) as line:

            async def once() -> None:
                await line.send(QUERY)
                missing = REPLY_LENGTH
                while missing:
                    missing -= len(await line.receive(4096))

            yield repeated(once)


@asynccontextmanager
async def anyio_serial_on_trio() -> AsyncIterator[Block]:
    from anyio_serial import Serial

    with instrument() as path:
        # Without a timeout its threads sleep while others are timed. Opened once, since each close leaves a thread.
        async with Serial(path) as line:

            async def once() -> None:
                await line.send(QUERY)
                await line.receive_exactly(REPLY_LENGTH)

            yield repeated(once)


@asynccontextmanager
async def pyserial_asyncio_fast() -> AsyncIterator[Block]:
    from serial_asyncio_fast import open_serial_connection

    with instrument() as path, asyncio.Runner() as loop:
        reader, writer = loop.run(open_serial_connection(url=path))

        async def once() -> None:
            writer.write(QUERY)
            await reader.readexactly(REPLY_LENGTH)

        async def close() -> None:
            writer.close()
            await asyncio.sleep(0.02)  # its transport closes the port in a callback, and offers no way to wait for it

        yield repeated_in_asyncio(loop, once)
        loop.run(close())


@asynccontextmanager
async def aioserial() -> AsyncIterator[Block]:
    from aioserial import AioSerial

    with instrument() as path, asyncio.Runner() as loop, AioSerial(path, timeout=1) as line:

        async def once() -> None:
            await line.write_async(QUERY)
            assert len(await line.read_async(REPLY_LENGTH)) == REPLY_LENGTH

        yield repeated_in_asyncio(loop, once)
