"""Chaos among V2 and V4: lines taken in any order, and sides, members and cables that come and go under load.

Drawn by a seeded generator, on real instruments, in real time. The order of tasks is the computer's, so a seed repeats
what was tried, not how it went. ``TRIO_DAQ_CHAOS_RUNS`` and ``TRIO_DAQ_CHAOS_SECONDS`` make it longer, and
``TRIO_DAQ_CHAOS_SEED`` another one.
"""

import contextlib
import itertools
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import shared_lab
import trio
from shared_lab import Instruments, Lab, Notes, until

from trio_daq.actors import Actor, Message, handles
from trio_daq.config import DualConfig, RecordingConfig, SubsystemConfig
from trio_daq.drivers import DriverContext
from trio_daq.errors import (
    DaqError,
    DeadlockError,
    ExchangeTimeoutError,
    LeaseRevokedError,
    LineLostError,
    LockOrderError,
)
from trio_daq.legacy import SerialDoor, ThreadContext, VisaDoor
from trio_daq.lifecycle import DualRuntimeManager, Status
from trio_daq.serialport import SharedSerialPort
from trio_daq.sharing import acquire_all
from trio_daq.sim import FaultPlan, open_simulated_lab
from trio_daq.visa import VisaSessionConfig, VisaSessionManager

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the instruments need a pty, and the judges /proc")

CHAOS_RUNS = int(os.environ.get("TRIO_DAQ_CHAOS_RUNS", "1"))
CHAOS_SEED = int(os.environ.get("TRIO_DAQ_CHAOS_SEED", "0"))
CHAOS_SECONDS = float(os.environ.get("TRIO_DAQ_CHAOS_SECONDS", "1.5"))


# --- any order of acquisition -----------------------------------------------------------------------------------------


class Scramble(Message[None]):
    """Take lines in any order, several times."""


class Scrambling(Actor):
    """Does it as an actor."""

    def __init__(self, work: Callable[[str], Awaitable[None]]) -> None:
        self.work = work

    @handles(Scramble)
    async def scramble(self, _: Scramble) -> None:
        await self.work(self.name)


@pytest.mark.parametrize("in_order", [True, False], ids=["acquire_all", "any order"])
@pytest.mark.parametrize("run", range(CHAOS_RUNS))
async def test_chaos_of_acquisition_ends_in_time(tmp_path: Path, run: int, in_order: bool) -> None:
    """Threads, tasks and actors take random sets of two ports and two sessions. If all tasks use `acquire_all`, and
    threads take lines in its order, none is ever refused. In any order some are, at once, by a `DeadlockError` or a
    `LockOrderError`, and by nothing else; nobody waits for their patience to end; and every reply is the right one."""
    patience, rounds = 60.0, 25
    refused: Counter[str] = Counter()
    done: Counter[str] = Counter()
    notes = Notes()

    def draw(chance: random.Random) -> list[Any]:
        return chance.sample(lines, chance.randint(1, 4))

    def note_refusal(owner: str, error: DaqError) -> None:
        assert isinstance(error, (DeadlockError, LockOrderError)), error
        refused[type(error).__name__] += 1

    def old(doors: tuple[SerialDoor | VisaDoor, ...], context: ThreadContext) -> None:
        chance = random.Random(f"{CHAOS_SEED} {run} {context.id}")
        for turn in range(rounds):
            tag = f"{context.id}-{turn}"
            try:
                with contextlib.ExitStack() as stack:
                    chosen = draw(chance)
                    if in_order:
                        chosen.sort(key=lambda line: line.order)
                    for number, line in enumerate(chosen):
                        door = doors[lines.index(line)]
                        if isinstance(door, SerialDoor):
                            sequence = stack.enter_context(door.exclusive(timeout=patience))
                            reply = sequence.query(f"POS? {tag}.{number}".encode()).decode()
                        else:
                            reply = stack.enter_context(door.transaction(timeout=patience)).query(
                                f"MEAS:VOLT? {tag}.{number}"
                            )
                        notes.note(f"{tag}.{number}", reply)
                        time.sleep(chance.uniform(0, 0.003))
                done[context.id] += 1
            except DaqError as error:
                note_refusal(context.id, error)

    async def work(owner: str) -> None:
        chance = random.Random(f"{CHAOS_SEED} {run} {owner}")
        for turn in range(rounds):
            tag, chosen = f"{owner}-{turn}", draw(chance)
            try:
                async with contextlib.AsyncExitStack() as stack:
                    if in_order or chance.random() < 0.4:
                        guards = await stack.enter_async_context(acquire_all(*chosen, timeout=patience))
                        for number, guard in enumerate(guards):
                            await ask(guard, f"{tag}.{number}")
                    else:
                        for number, line in enumerate(chosen):
                            await ask(await stack.enter_async_context(line.acquire(None, patience)), f"{tag}.{number}")
                            await trio.sleep(chance.uniform(0, 0.003))
                done[owner] += 1
            except DaqError as error:
                note_refusal(owner, error)

    async def ask(guard: Any, tag: str) -> None:
        if hasattr(guard, "write_only"):
            notes.note(tag, (await guard.query(f"POS? {tag}".encode())).decode())
        else:
            notes.note(tag, await guard.query(f"MEAS:VOLT? {tag}"))

    async with (
        open_simulated_lab(tmp_path / "log.jsonl") as first,
        open_simulated_lab(tmp_path / "log.jsonl") as second,
    ):
        config = DualConfig(
            serial={f"stage{n}": shared_lab.port_config(lab.stage_path or "") for n, lab in enumerate((first, second))},
            visa={
                f"meter{n}": VisaSessionConfig(resource=lab.meter_resource or "", timeout=patience)
                for n, lab in enumerate((first, second))
            },
            v2=SubsystemConfig(),
            v4=SubsystemConfig(),
            recording=RecordingConfig(enabled=False),
        )
        async with DualRuntimeManager(config) as manager:
            await manager.start()
            lines = [*manager.serial.values(), *manager.visa.values()]
            began = time.monotonic()
            members = [await manager.v2.spawn_thread(old, tuple(lines), name=f"thread{n}") for n in range(2)]
            members += [await manager.v2.spawn(work, f"task{n}", name=f"task{n}") for n in range(2)]
            actors = [await manager.v4.spawn(Scrambling, work, name=f"actor{n}") for n in range(2)]
            async with trio.open_nursery() as nursery:
                for actor in actors:
                    nursery.start_soon(actor.ask, Scramble(), patience)
                for member in members:
                    await member.done.wait()
            seconds = time.monotonic() - began
            assert [member.error for member in members] == [None] * 4
            assert (manager.v2_status(), manager.v4_status()) == (Status.ACTIVE, Status.ACTIVE)
            Lab(manager, first, notes).check_replies()
    print(f"{seconds:.2f} s, refused: {dict(refused)}, done: {dict(done)}")
    assert seconds < patience / 3
    assert done.total() + refused.total() == 6 * rounds
    assert len(done) == 6
    if in_order:
        assert refused == {}
    else:
        assert refused["DeadlockError"] + refused["LockOrderError"] > 5


# --- sides, members and cables ---------------------------------------------------------------------------------------

lives = itertools.count()
told: Counter[str] = Counter()


@contextlib.contextmanager
def noting() -> Any:
    """What chaos does to a line ends nobody: it is counted."""
    try:
        yield
    except (ExchangeTimeoutError, LeaseRevokedError, LineLostError, TimeoutError) as error:
        told[type(error).__name__] += 1


def ask_in_thread(serial: SerialDoor, visa: VisaDoor, context: ThreadContext, notes: Notes) -> None:
    """Ask both instruments, the stage twice in one block."""
    name = f"{context.id}.{next(lives)}"
    for number in itertools.count():
        with noting(), serial.exclusive() as line:
            for what, command in (("a", "MOVE 1"), ("b", "POS?")):
                tag = f"{name}-{number}{what}"
                notes.note(tag, line.query(f"{command} {tag}".encode(), 1.0).decode())
        with noting(), visa.transaction() as line:
            notes.note(f"{name}-{number}m", line.query(f"MEAS:VOLT? {name}-{number}m"))
        if context.wait_stopping(0):
            return


async def ask_in_task(serial: SharedSerialPort, visa: VisaSessionManager, context: DriverContext, notes: Notes) -> None:
    """Ask both instruments."""
    name = f"{context.id}.{next(lives)}"
    for number in itertools.count():
        with noting():
            await shared_lab.read_both(serial, visa, notes, f"{name}-{number}")
        if await context.wait_stopping(0):
            return


class Asking(Instruments):
    """Asks both instruments, at its end too."""

    async def on_start(self) -> None:
        self.life = next(lives)
        await super().on_start()

    @handles(shared_lab.Tick)
    async def tick(self, _: shared_lab.Tick) -> None:
        await self.read(str(next(self.numbers)))

    async def on_stop(self) -> None:
        await self.read("last")

    async def read(self, what: str) -> None:
        with noting():
            await shared_lab.read_both(self.serial, self.visa, self.notes, f"{self.name}.{self.life}-{what}")


class Chaos:
    """What is done to a lab."""

    def __init__(self, lab: Lab, chance: random.Random, members: list[str]) -> None:
        self.lab, self.manager, self.chance, self.members = lab, lab.manager, chance, members

    async def act(self) -> None:
        """Do one thing, to its end."""
        one = self.chance.choice([self.v2, self.v4, self.both, self.restart, self.revoke, self.cable])
        with trio.fail_after(30):
            await one()

    async def v2(self) -> None:
        await self.manager.stop_v2(6)
        assert self.manager.v2_status() is Status.INACTIVE
        await trio.sleep(self.chance.uniform(0, 0.03))
        await self.manager.start_v2()
        assert self.manager.v2_status() is Status.ACTIVE

    async def v4(self) -> None:
        await self.manager.stop_v4(6)
        assert self.manager.v4_status() is Status.INACTIVE
        await trio.sleep(self.chance.uniform(0, 0.03))
        await self.manager.start_v4()
        assert self.manager.v4_status() is Status.ACTIVE

    async def both(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.v2)
            nursery.start_soon(self.v4)

    async def restart(self) -> None:
        await self.manager.restart_actor(self.chance.choice(self.members))

    async def revoke(self) -> None:
        self.lab.port.revoke("chaos")
        self.lab.meter.revoke("chaos")

    async def cable(self) -> None:
        await self.lab.simulated.unplug_stage()
        await trio.sleep(self.chance.uniform(0, 0.1))
        await self.lab.simulated.replug_stage()


@pytest.mark.parametrize("run", range(CHAOS_RUNS))
async def test_sides_that_come_and_go_under_load_harm_nobody(tmp_path: Path, run: int) -> None:
    """Sides are stopped and started, members restarted, lines taken back and the stage's cable pulled out, in any
    order, while threads, tasks, actors and an outsider ask late instruments. Every reply is the right one, no block is
    cut into, statuses are what was done, and in the end all members of both sides work, and drain."""
    chance = random.Random(f"{CHAOS_SEED} {run}")
    notes = Notes()
    link, late = tmp_path / "stage", FaultPlan(late_every=23, late_by=0.05)
    old = [shared_lab.member(name, ask_in_thread, notes) for name in ("thread1", "thread2")]
    old.append(shared_lab.member("task", ask_in_task, notes))
    new = [shared_lab.member(name, Asking, notes, period=0.003) for name in ("actor1", "actor2")]
    members = [member.id for member in (*old, *new)]

    async def outsider() -> None:
        for number in itertools.count():
            with noting():
                await shared_lab.read_both(lab.port, lab.meter, notes, f"outsider.0-{number}")
            await trio.sleep(0.002)

    def working() -> set[str]:
        return {owner.partition(".")[0] for owner, count in notes.counts().items() if count > before[owner]}

    async with open_simulated_lab(tmp_path / "log.jsonl", stage=late, meter=late, stage_link=link) as simulated:
        v2, v4 = SubsystemConfig(instruments=old), SubsystemConfig(instruments=new)
        config = shared_lab.config_for(simulated, v2=v2, v4=v4, path=str(link), timeout=0.04, acquire_timeout=2.0)
        async with DualRuntimeManager(config) as manager:
            await manager.start()
            lab = Lab(manager, simulated, notes)
            chaos = Chaos(lab, chance, members)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(outsider)
                end = trio.current_time() + CHAOS_SECONDS
                while trio.current_time() < end:
                    await chaos.act()
                    await trio.sleep(chance.uniform(0, 0.03))
                before = notes.counts()
                await until(lambda: working() == {*members, "outsider"})
                nursery.cancel_scope.cancel()
            assert (manager.v2_status(), manager.v4_status()) == (Status.ACTIVE, Status.ACTIVE)
            report = await manager.shutdown(timeout=15)
    assert {one.outcome for stage in report.stages for one in stage.members} == {"drained"}
    lab.check_replies()
    asked = lab.asked("stage")
    for tag, following in itertools.pairwise(asked):
        if tag.endswith("a") and f"{tag[:-1]}b" in asked:
            assert following == f"{tag[:-1]}b"
