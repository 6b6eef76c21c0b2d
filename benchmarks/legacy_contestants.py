"""Queries of old programs, unmodified, on PyVISA alone and on a session of a lab.

Each has a connection of its own, and the instrument serves each in a process of its own. All ask from a thread, as old
programs do; of the shared ones, the lab is in the thread of the Trio run.
"""

import functools
import itertools
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import attrs
import pyvisa
import trio

from benchmarks.interleaved import Block, Contestant, Stopwatch
from benchmarks.tcp_instrument import COMMAND, QUERY
from benchmarks.visa_contestants import TEXT_LENGTH, resource_name
from trio_daq import DualRuntimeManager
from trio_daq.config import DualConfig, RecordingConfig, SubsystemConfig
from trio_daq.visa import VisaSessionConfig

LINES = {"read_termination": "\n", "write_termination": "\n"}
_numbers = itertools.count()


@attrs.frozen
class Way:
    """How a program reaches its instrument.

    Attributes:
        library: What PyVISA is told.
        is_prompt: Whether Nagle's algorithm is turned off by hand, which PyVISA cannot.
    """

    library: str
    is_prompt: bool = False


PLAIN, PROMPT, SHARED = Way("@py"), Way("@py", is_prompt=True), Way("@trio_daq")


class Program(NamedTuple):
    """What an old program does."""

    resource: pyvisa.resources.MessageBasedResource
    query: Callable[[], str]
    write: Callable[[], object]
    close: Callable[[], object]


def open_raw(name: str, library: str) -> Program:
    resource: Any = pyvisa.ResourceManager(library).open_resource(name, **LINES, timeout=2000)
    return Program(resource, lambda: resource.query(QUERY), lambda: resource.write(COMMAND), resource.close)


def open_pymeasure(name: str, library: str) -> Program:
    from pymeasure.instruments import Instrument

    meter = Instrument(name, "meter", includeSCPI=False, visa_library=library, **LINES, timeout=2000)
    resource = meter.adapter.connection
    return Program(resource, lambda: meter.ask(QUERY), lambda: meter.write(COMMAND), resource.close)


def open_qcodes(name: str, library: str) -> Program:
    from qcodes.instrument import VisaInstrument

    meter = VisaInstrument(f"meter{next(_numbers)}", name, visalib=library, terminator="\n", timeout=2)
    return Program(meter.visa_handle, lambda: meter.ask(QUERY), lambda: meter.write(COMMAND), meter.close)


def contestant(open_program: Callable[[str, str], Program], *, writes: bool) -> Callable[[Way], Contestant]:
    """Return what makes a contestant of a way; an operation is a query, with a write before it if it *writes*."""

    @functools.cache
    def made(way: Way) -> Contestant:
        @asynccontextmanager
        async def contest() -> AsyncIterator[Block]:
            with resource_name() as name:
                async with _lab(name, way):
                    program = await trio.to_thread.run_sync(open_program, name, way.library)
                    if way.is_prompt:
                        session = program.resource.visalib.sessions[program.resource.session]  # type: ignore[attr-defined]
                        session.interface.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

                    def once() -> None:
                        if writes:
                            program.write()
                        assert len(program.query()) == TEXT_LENGTH

                    async def block(count: int, watch: Stopwatch) -> None:
                        await trio.to_thread.run_sync(_repeat, once, count, watch)

                    try:
                        yield block
                    finally:
                        await trio.to_thread.run_sync(program.close)

        return contest

    return made


@asynccontextmanager
async def _lab(name: str, way: Way) -> AsyncIterator[None]:
    if way != SHARED:
        yield
        return
    config = DualConfig(
        visa={"meter": VisaSessionConfig(resource=name)},
        v2=SubsystemConfig(),
        recording=RecordingConfig(enabled=False),
    )
    async with DualRuntimeManager(config) as manager:
        await manager.start()
        yield


def _repeat(once: Callable[[], object], count: int, watch: Stopwatch) -> None:
    with watch:
        for _ in range(count):
            once()


raw_query, raw_write_query = contestant(open_raw, writes=False), contestant(open_raw, writes=True)
pymeasure_ask, pymeasure_write_ask = contestant(open_pymeasure, writes=False), contestant(open_pymeasure, writes=True)
qcodes_ask, qcodes_write_ask = contestant(open_qcodes, writes=False), contestant(open_qcodes, writes=True)
