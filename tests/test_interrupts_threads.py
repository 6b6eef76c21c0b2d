"""Ctrl-C at every executed line of what has threads and descriptors: a thread member and its doors, a port on a pty.

Real time and real threads, so a line may be executed more or less often than in the run that counted.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading

import pytest
import trio
from interrupt_everywhere import World, interrupt_everywhere
from test_interrupts_visa import Mind

from trio_daq.config import DualConfig, RecordingConfig, SubsystemConfig
from trio_daq.errors import DaqError, DoorInterruptedError
from trio_daq.lifecycle import DualRuntimeManager, ManagerState
from trio_daq.serialport import SerialPortConfig, SharedSerialPort
from trio_daq.sharing import WorkerThread
from trio_daq.sim import MemoryInstrument
from trio_daq.visa import VisaSessionConfig, VisaSessionManager
from trio_daq.wire import Exchange


class ThreadLab(World):
    """A lab whose V2 has a blocking program, which asks the meter by itself and in transactions."""

    modules = (
        *("lifecycle/thread_life.py", "lifecycle/driver_member.py", "lifecycle/member.py", "lifecycle/manager.py"),
        *("legacy/host.py", "legacy/hold.py", "legacy/visa_door.py", "legacy/context.py"),
        *("sharing/worker_thread.py", "sharing/interrupts.py", "sharing/owner.py"),
    )
    resting_alarms = 10

    def __init__(self) -> None:
        super().__init__()
        self.instrument = MemoryInstrument(Mind())
        visa = VisaSessionConfig(
            resource="TCPIP::memory::5025::SOCKET", timeout=1.0, safe_state=(Exchange(write=b"W 0"),)
        )
        config = DualConfig(
            visa={"meter": visa}, v2=SubsystemConfig(stop_timeout=1.0), recording=RecordingConfig(enabled=False)
        )
        self.manager = DualRuntimeManager(config)
        self.session = VisaSessionManager(visa, make_transport=self.instrument.connect)
        self.manager._lines.visa["meter"] = self.session
        self.numbers = itertools.count(1)
        self.ends: list[str] = []

    def script(self, meter, context):
        def ask(place):
            number = next(self.numbers)
            if place.query(f"Q? {number} 0") != f"re {number}":
                self.wrong.append("a reply was another's")

        try:
            while not context.stopping.is_set():
                ask(meter)
                with meter.transaction() as alone:
                    ask(alone)
                context.publish("voltage", 1.0)
                context.stopping.wait(0.002)
            self.ends.append("told")
        except DoorInterruptedError:
            self.ends.append("interrupted")
            raise
        except DaqError as error:
            self.ends.append(type(error).__name__)
            raise

    async def main(self):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.instrument.serve)
            async with self.manager as manager:
                await manager.start()
                await manager.v2.spawn_thread(self.script, self.session, name="old")
                await trio.sleep(0.005)
                await manager.restart_actor("old")
                await trio.sleep(0.005)
                await manager.stop_v2(1)
                await manager.shutdown()
            nursery.cancel_scope.cancel()

    def judge(self):
        if self.manager.state not in (ManagerState.STOPPED, ManagerState.UNINITIALIZED):
            self.wrong.append(f"the lab is {self.manager.state}")
        said = [text for _, text in self.instrument.received]
        if said and said[-1] != "W 0":
            self.wrong.append(f"the last words to the instrument were {said[-3:]}")
        if self.session.state != "closed" or self.instrument._connections:
            self.wrong.append("the session is not closed")
        report = self.manager.report
        if report is not None and (report.stuck or report.unsafe):
            self.wrong.append(str(report))


class PtyPort(World):
    """A port on a real descriptor, which is opened, used, lost to cancellation and closed."""

    modules = (
        *(f"serialport/{name}.py" for name in ("posix_stream", "thread_stream", "opening", "exclusive", "holders")),
        *("serialport/line.py", "serialport/port.py", "sharing/worker_thread.py", "sharing/interrupts.py"),
    )
    resting_alarms = 2

    def __init__(self) -> None:
        super().__init__()
        self.ends = os.openpty()
        config = SerialPortConfig(path=os.ttyname(self.ends[1]), timeout=0.01, quiet_time=0.001, acquire_timeout=1)
        self.port = SharedSerialPort(config)

    async def main(self):
        async with self.port, trio.open_nursery() as nursery:
            nursery.start_soon(self.use)
            nursery.start_soon(self.use)
            await self.use()
            await self.port.recover()

    async def use(self):
        with contextlib.suppress(DaqError), trio.move_on_after(0.05):
            async with self.port.acquire() as guard:
                await guard.write_only(b"hello\n")
                await guard.query(b"nobody answers")

    def judge(self):
        for end in self.ends:
            os.close(end)
        if self.port.current_owner() is not None:
            self.wrong.append(f"{self.port.current_owner()} still has the port")


class Worker(World):
    """A worker thread by itself: calls that end, fail, hang and are given up."""

    modules = ("sharing/worker_thread.py", "sharing/interrupts.py")

    def __init__(self) -> None:
        super().__init__()
        self.worker = WorkerThread("worker")
        self.release = threading.Event()
        self.closed: list[str] = []

    async def main(self):
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.run)
                with contextlib.suppress(ZeroDivisionError):
                    await self.worker.run(lambda: 1 / 0)
                await self.run()
            with contextlib.suppress(DaqError):
                await self.worker.run(self.release.wait, timeout=0.001, grace=0)
            self.release.set()
            await self.run()
        finally:
            self.release.set()
            await self.worker.aclose(1)

    async def run(self):
        await self.worker.run(str, 1, closing=self.closed.append)
        with trio.move_on_after(0.001):
            await self.worker.run(self.release.wait, 0.005)


@pytest.mark.parametrize("world", [ThreadLab, PtyPort, Worker])
def test_threads(world):
    """No thread and no descriptor is left, and what was opened is closed."""
    interrupt_everywhere(world, world.modules, budget=20)
