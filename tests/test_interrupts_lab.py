"""Ctrl-C at every executed line of a lab's life: start, members of all kinds, restarts, a side that stops, the end."""

from __future__ import annotations

import contextlib
import itertools
import signal
from functools import partial

import attrs
import pytest
import trio
from interrupt_everywhere import Virtual, interrupt_everywhere, surviving
from test_interrupts_visa import Mind

from trio_daq.actors import Actor, Message, handles
from trio_daq.config import DualConfig, RecordingConfig, SubsystemConfig
from trio_daq.errors import DaqError
from trio_daq.lifecycle import DualRuntimeManager, ManagerState
from trio_daq.lifecycle.supervision import Supervision
from trio_daq.sim import MemoryInstrument
from trio_daq.visa import VisaSessionConfig, VisaSessionManager
from trio_daq.wire import Exchange

MODULES = [
    *(
        f"lifecycle/{name}.py"
        for name in (
            *(
                "manager",
                "block_failure",
                "alone",
                "stage",
                "member",
                "side",
                "dual",
                "supervision",
                "driver_member",
                "safe_state",
                "lines",
            ),
            *(
                "report",
                "shutdown",
                "leaving",
                "own_task",
                "time_budget",
                "devices",
                "health",
                "stall",
                "checkup",
                "whereabouts",
            ),
        )
    ),
    *(f"actors/{name}.py" for name in ("cell", "mailbox", "envelope", "life", "ref", "registry", "actor")),
    "sharing/interrupts.py",
]
THREAD_MODULES = ["lifecycle/thread_life.py", "sharing/worker_thread.py", "legacy/host.py", "legacy/hold.py"]


@attrs.frozen
class Measure(Message[str]):
    """Ask the meter."""


@attrs.frozen
class Pass(Message[str]):
    """Ask the other one."""


class Measurer(Actor):
    mailbox_capacity = 2

    def __init__(self, world):
        self.world = world

    async def on_start(self):
        self.every(0.3, Measure())
        self.after(0.1, Measure())

    @handles(Measure)
    async def measure(self, _):
        return await self.world.ask()

    async def on_stop(self):
        self.world.stopped.append("measurer")


class Passer(Actor):
    def __init__(self, world, other):
        self.world, self.other = world, other

    @handles(Pass)
    async def pass_on(self, _):
        return await self.other.ask(Measure(), timeout=1)


class Lab(Virtual):
    """A lab with a meter, V2 tasks and V4 actors, that is used from several tasks."""

    resting_alarms = 10

    def __init__(self) -> None:
        super().__init__()
        self.instrument = MemoryInstrument(Mind())
        visa = VisaSessionConfig(
            resource="TCPIP::memory::5025::SOCKET", timeout=1.0, safe_state=(Exchange(write=b"W 0"),)
        )
        self.config = DualConfig(
            visa={"meter": visa},
            v2=SubsystemConfig(),
            v4=SubsystemConfig(),
            recording=RecordingConfig(enabled=False),
        )
        self.manager = DualRuntimeManager(self.config)
        # A session whose other end is in memory. The first start takes the lines as they are.
        self.session = VisaSessionManager(visa, make_transport=self.instrument.connect)
        self.manager._lines.visa["meter"] = self.session
        self.numbers = itertools.count(1)
        self.stopped: list[str] = []
        self.left: list[str] = []
        self.lives = 0

    async def ask(self):
        number = next(self.numbers)
        reply = await self.session.query(f"Q? {number} 0.01")
        if reply != f"re {number}":
            self.wrong.append(f"the reply to {number} was {reply!r}")
        return reply

    # --- members ------------------------------------------------------------------------------------------------------

    async def polite(self, context):
        while not await context.wait_stopping(0.15):
            await context.publish("voltage", len(await self.ask()))
        self.left.append("polite")

    async def rude(self):
        try:
            await trio.sleep_forever()
        finally:
            self.left.append("rude")

    async def feeble(self):
        self.lives += 1
        await trio.sleep(0.1)
        raise OSError("it fell over")

    # --- users --------------------------------------------------------------------------------------------------------

    async def populate(self):
        manager = self.manager
        await manager.v2.spawn(self.polite, name="polite")
        await manager.v2.spawn(self.rude, name="rude")
        await manager.v2.spawn(self.feeble, name="feeble", supervision=Supervision(restart="on_failure"))
        self.measurer = await manager.v4.spawn(Measurer, self, name="measurer")
        self.passer = await manager.v4.spawn(Passer, self, self.measurer, name="passer")

    def works(self):
        manager = self.manager

        async def use(at, work):
            await trio.sleep(at)
            with contextlib.suppress(DaqError, ValueError):  # no second one of a name: its stop may be missing
                await work()

        async def impatient():
            with trio.move_on_after(0.005):
                await self.passer.ask(Pass())

        async def talk():
            self.measurer.tell_nowait(Measure())
            await self.measurer.tell(Measure())
            await self.measurer.tell(Measure(), timeout=0.5)

        async def look():
            with contextlib.suppress(DaqError):
                await manager.check_health()
            manager.snapshot()

        return [
            partial(use, 0.0, partial(self.passer_asks, 4)),
            partial(use, 0.05, impatient),
            partial(use, 0.1, talk),
            partial(use, 0.2, look),
            partial(use, 0.3, lambda: manager.restart_actor("measurer")),
            partial(use, 0.35, lambda: manager.restart_actor("rude")),
            partial(use, 0.4, manager.make_safe),
            partial(use, 0.6, lambda: manager.stop_v4(1)),
            partial(use, 0.7, manager.start_v4),
            partial(use, 0.8, lambda: manager.v4.spawn(Measurer, self, name="measurer")),
        ]

    async def passer_asks(self, count):
        for _ in range(count):
            await self.passer.ask(Pass(), timeout=0.5)

    def judge(self):
        if self.manager.state not in (ManagerState.STOPPED, ManagerState.UNINITIALIZED):
            self.wrong.append(f"the lab is {self.manager.state}")
        said = [text for _, text in self.instrument.received]
        if said and said[-1] != "W 0":
            self.wrong.append(f"the last words to the instrument were {said[-3:]}")
        asked = [text for text in said if text.startswith("Q? ")]
        if len(asked) != len(set(asked)):
            self.wrong.append("a command was sent twice")
        if self.session.state != "closed" or self.instrument._connections:
            self.wrong.append("the session is not closed")
        report = self.manager.report
        if report is not None and (report.stuck or report.unsafe):
            self.wrong.append(str(report))
        members = [
            member
            for side in (self.manager.v2, self.manager.v4)
            for member in side.stage.members.values()
            if not member.done.is_set()
        ]
        if members:
            self.wrong.append(f"members still run: {[member.name for member in members]}")


class Dying(Lab):
    """Nobody catches it."""

    async def main(self):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.instrument.serve)
            async with self.manager as manager:
                await manager.start()
                await self.populate()
                async with trio.open_nursery() as clients:
                    for number, work in enumerate(self.works()):
                        clients.start_soon(work, name=f"task {number}")
                    await self.passer_asks(2)
                await manager.stop_v2(1)
                await manager.shutdown()
            nursery.cancel_scope.cancel()


class Surviving(Lab):
    """It ends one task, and the others go on."""

    async def main(self):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.instrument.serve)
            try:
                async with self.manager as manager:
                    await manager.start()
                    await self.populate()
                    await surviving(self, *self.works())
                    if manager.state is ManagerState.RUNNING:
                        await manager.start_v4()  # it may have been the task which does so that was interrupted
                        again = await manager.v4.spawn(Measurer, self, name="afterwards")
                        await again.ask(Measure())
                        await manager.restart_actor("afterwards")
                        await again.ask(Measure())
                        report = await manager.shutdown()
                        if report.stuck or any(one.name != "feeble" for one in report.failed):
                            self.wrong.append(str(report))
            except KeyboardInterrupt:
                self.caught += 1
            nursery.cancel_scope.cancel()


class Twice(Lab):
    """Ctrl-C comes a second time, while the first is being followed. The body does not even wait."""

    signals_of_its_own = 1

    async def main(self):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.instrument.serve)
            async with self.manager as manager:
                await manager.start()
                await self.populate()
                await self.passer_asks(1)
                self.watch_from_now_on()
                signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("world", [Dying, Surviving, Twice])
def test_lab(world):
    """The lab stops in order, and the last that its instrument hears is its safe state."""
    interrupt_everywhere(world, MODULES, budget=50)
