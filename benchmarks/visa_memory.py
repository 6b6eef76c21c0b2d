"""What an open session takes of memory, each kind in a process of its own that opens many and asks each one question.

Twice: by the resident size of the process, which counts threads and what the allocator holds, and by what Python's own
allocator was asked for. The first needs ``/proc``. Buffers of the system are in neither.
"""

import gc
import os
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio

from benchmarks.tcp_instrument import QUERY, tcp_instrument
from benchmarks.visa_contestants import open_pyvisa, plain_exchange, socket_resource
from benchmarks.visa_sessions import Transport, open_session

SESSIONS, FIRST = 100, 10
"""How many are counted, and how many are opened before: the first ones also pay for imports and caches."""

_STATM = Path("/proc/self/statm")


def _ours(transport: Transport) -> Callable[[int], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def open_one(port: int) -> AsyncIterator[None]:
        async with open_session(transport, socket_resource(port)) as session:
            await session.query(QUERY)
            yield

    return open_one


@asynccontextmanager
async def _blocking(port: int) -> AsyncIterator[None]:
    with open_pyvisa(socket_resource(port)) as resource:
        resource.query(QUERY)
        yield


@asynccontextmanager
async def _plain(port: int) -> AsyncIterator[None]:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await plain_exchange(stream)
        yield


KINDS = {
    "native session": _ours("native"),
    "pyvisa session": _ours("pyvisa"),
    "pyvisa-py resource": _blocking,
    "trio.SocketStream": _plain,
}
TARGETS = {"native session": 32}


def print_memory(script: str) -> None:
    """Run *script* once for each figure, and print them all."""
    print(f"\nmemory for each of {SESSIONS}, KiB\n{'':45} {'resident':>9} {'Python':>9}  target")
    for kind in KINDS:
        figures = [_run(script, kind), _run(script, kind, "--traced")]
        print(f"{kind:45} {figures[0]:>9} {figures[1]:>9}  {_verdict(kind, figures)}".rstrip())


def _run(script: str, *arguments: str) -> str:
    command = [sys.executable, "-P", script, "--memory-of", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def _verdict(kind: str, figures: list[str]) -> str:
    numbers = [float(figure) for figure in figures if figure.replace(".", "").isdigit()]
    if kind not in TARGETS or not numbers:
        return ""
    return f"≤ {TARGETS[kind]} {'met' if max(numbers) <= TARGETS[kind] else 'MISSED'}"


def print_one(kind: str, traced: bool) -> None:
    """Print one figure, for this process."""
    if not traced and not _STATM.exists():
        print("no /proc")
        return
    try:
        print(f"{trio.run(_measure, KINDS[kind], traced):.1f}")
    except NotImplementedError as error:
        print(error)


async def _measure(open_one: Callable[[int], AbstractAsyncContextManager[None]], traced: bool) -> float:
    with tcp_instrument(FIRST + SESSIONS) as ports:  # a port each: sessions of one resource would share the connection
        async with AsyncExitStack() as stack:
            for port in ports[:FIRST]:
                await stack.enter_async_context(open_one(port))
            if traced:
                tracemalloc.start()
            before = _taken(traced)
            for port in ports[FIRST:]:
                await stack.enter_async_context(open_one(port))
            return (_taken(traced) - before) / SESSIONS / 1024


def _taken(traced: bool) -> int:
    gc.collect()
    return (
        tracemalloc.get_traced_memory()[0] if traced else int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    )
