"""The simulated meter in this process, and a blocking pyvisa client for it: for the tests of what carries messages."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pyvisa
import trio
from pyvisa.resources import MessageBasedResource

from trio_daq.sim import FaultPlan, SimulatedMeter
from trio_daq.sim.dialogue import Bench
from trio_daq.sim.log import InstrumentLog

T = TypeVar("T")


@asynccontextmanager
async def serve_meter(serve: Callable[..., Any], folder: Path, plan: FaultPlan | None = None) -> AsyncIterator[int]:
    """Serve the meter by *serve*, and give its port."""
    with InstrumentLog(folder / "log") as log:
        async with trio.open_nursery() as nursery:
            yield await nursery.start(serve, Bench(SimulatedMeter(), plan or FaultPlan(), log))
            nursery.cancel_scope.cancel()


@contextmanager
def open_meter(resource: str, port: int, timeout: int = 2000) -> Iterator[MessageBasedResource]:
    """Open the meter at *port* with pyvisa-py; *timeout* in milliseconds."""
    manager = pyvisa.ResourceManager("@py")
    with manager.open_resource(resource.format(port=port)) as meter:
        assert isinstance(meter, MessageBasedResource)
        meter.timeout = timeout
        yield meter


async def in_thread(script: Callable[..., T], *arguments: Any) -> T:
    """Run *script* in a thread, and give it up after 20 s."""
    with trio.fail_after(20):
        return await trio.to_thread.run_sync(script, *arguments)
