"""Labs made at random, on the real clock, with threads and instruments that hang: the stop is in time, in order, true.

The oracles are the members' own notes, the kernel's lists of threads and descriptors, and the clock. Each run prints
its seed. `TRIO_DAQ_REAL_RUNS` is how many labs are tried; 4 where nothing is said. `TRIO_DAQ_REAL_SEED` is the first.
"""

import gc
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from trio_daq.actors import Actor, Message, handles
from trio_daq.config import DualConfig, RecordingConfig, SubsystemConfig
from trio_daq.drivers import DriverContext
from trio_daq.legacy import SerialDoor, ThreadContext
from trio_daq.lifecycle import DualRuntimeManager, ShutdownReport
from trio_daq.serialport import SerialPortConfig, SharedSerialPort
from trio_daq.sim import SimulatedLab, open_simulated_lab
from trio_daq.visa import VisaSessionConfig, VisaSessionManager

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it looks at /proc")

RUNS = int(os.environ.get("TRIO_DAQ_REAL_RUNS", "4"))
FIRST_SEED = int(os.environ.get("TRIO_DAQ_REAL_SEED", "0"))

PROMISED = 0.25
"""Seconds that a shutdown may take beyond its time; how late the event loop was in that run comes on top."""

GRACE = {"v2": 0.6, "v4": 0.5}


@attrs.define(eq=False)
class Notes:
    """What one member noted of itself."""

    side: str
    name: str
    begun: float | None = None
    thread: int | None = None
    told: float | None = None
    ended: float | None = None

    @property
    def thread_lives(self) -> bool:
        """Whether the kernel knows the thread."""
        return self.thread is not None and Path(f"/proc/self/task/{self.thread}").exists()


@attrs.define(eq=False)
class World:
    """What the members of one lab share: their notes, and what lets those that hang go at the end."""

    chance: random.Random
    notes: list[Notes] = attrs.field(factory=list)
    released: threading.Event = attrs.field(factory=threading.Event)
    trio_released: trio.Event = attrs.field(factory=trio.Event)
    lateness: float = 0.0

    @contextmanager
    def life(self, notes: Notes, *, in_thread: bool) -> Iterator[None]:
        notes.begun = time.monotonic()
        notes.thread = threading.get_native_id() if in_thread else None
        try:
            yield
        finally:
            notes.ended = time.monotonic()

    async def hang(self) -> None:
        with trio.CancelScope(shield=True):
            await self.trio_released.wait()

    async def measure_lateness(self) -> None:
        """Note how late this event loop comes to a task whose time has come."""
        while True:
            due = time.monotonic() + 0.01
            await trio.sleep(0.01)
            self.lateness = max(self.lateness, time.monotonic() - due)


# --- members of V2: threads, and tasks ---------------------------------------------------------------------------


def asks_a_dead_instrument(world: World, notes: Notes, stage: SerialDoor, context: ThreadContext) -> None:
    """It is in a call when it is to stop; it hears of it by that call."""
    with world.life(notes, in_thread=True), suppress(OSError):
        while True:
            stage.query(b"POS?", timeout=30)


def asks_again_and_again(world: World, notes: Notes, stage: SerialDoor, context: ThreadContext) -> None:
    """It makes nothing of being interrupted, and goes on until its door is closed, and some time longer."""
    with world.life(notes, in_thread=True):
        for _ in range(4):
            with suppress(OSError, RuntimeError):
                stage.query(b"POS?", timeout=30)
        time.sleep(world.chance.choice([0.0, 0.2]))


def sleeps(world: World, notes: Notes, stage: SerialDoor, context: ThreadContext) -> None:
    """Nothing can wake it."""
    with world.life(notes, in_thread=True):
        time.sleep(world.chance.choice([0.3, 1.0, 3.5]))


def waits_for_a_lock(world: World, notes: Notes, stage: SerialDoor, context: ThreadContext) -> None:
    """The lock never comes."""
    with world.life(notes, in_thread=True):
        world.released.wait()


async def hangs(world: World, notes: Notes, stage: SharedSerialPort, context: DriverContext) -> None:
    """A task that hears nothing, with the port in its hands if it gets it."""
    with world.life(notes, in_thread=False), suppress(TimeoutError):
        async with stage.acquire(timeout=0.05):
            await world.hang()
        await world.hang()


async def obeys(world: World, notes: Notes, stage: SharedSerialPort, context: DriverContext) -> None:
    """A task that ends some time after it was asked to."""
    with world.life(notes, in_thread=False):
        await context.stopping.wait()
        notes.told = time.monotonic()
        await trio.sleep(world.chance.choice([0.0, 0.2, 2.0]))


# --- members of V4 ------------------------------------------------------------------------------------------------


class Go(Message[None]):
    """Begin."""


class Worker(Actor):
    def __init__(self, world: World, notes: Notes, meter: VisaSessionManager) -> None:
        self.world, self.notes, self.meter = world, notes, meter
        notes.begun = time.monotonic()

    async def on_stop(self) -> None:
        self.notes.ended = time.monotonic()


class Asking(Worker):
    """It waits for the meter when it is to stop."""

    @handles(Go)
    async def go(self, _: Go) -> None:
        await self.meter.query("MEAS:VOLT?", timeout=30)


class Hanging(Worker):
    """Its handler hears nothing."""

    @handles(Go)
    async def go(self, _: Go) -> None:
        await self.world.hang()


class SlowToLeave(Worker):
    """Its farewell takes some time."""

    async def on_stop(self) -> None:
        try:
            await trio.sleep(self.world.chance.choice([0.1, 0.6, 3.0]))
        finally:
            await super().on_stop()

    @handles(Go)
    async def go(self, _: Go) -> None:
        pass


THREADS: list[Callable[..., Any]] = [asks_a_dead_instrument, asks_again_and_again, sleeps, waits_for_a_lock]
TASKS: list[Callable[..., Any]] = [hangs, obeys]
ACTORS: list[type[Worker]] = [Asking, Hanging, SlowToLeave]


# --- one lab ------------------------------------------------------------------------------------------------------


@attrs.frozen
class Outcome:
    """What the test saw of one shutdown."""

    took: float
    timeout: float
    lateness: float
    stuck: int
    abandoned: int


def lab(simulated: SimulatedLab) -> DualRuntimeManager:
    assert simulated.stage_path is not None
    assert simulated.meter_resource is not None
    stage = SerialPortConfig(
        path=simulated.stage_path, write_terminator="\r\n", read_terminator="\r\n", timeout=0.3, quiet_time=0.02
    )
    return DualRuntimeManager(
        DualConfig(
            serial={"stage": stage},
            visa={"meter": VisaSessionConfig(resource=simulated.meter_resource, timeout=0.5)},
            v2=SubsystemConfig(stop_timeout=GRACE["v2"]),
            v4=SubsystemConfig(stop_timeout=GRACE["v4"]),
            recording=RecordingConfig(enabled=False),
        )
    )


async def populate(manager: DualRuntimeManager, world: World, stage: SharedSerialPort) -> None:
    chance = world.chance
    for number, kind in enumerate(chance.choices([*THREADS, *TASKS, *ACTORS], k=chance.randint(2, 6))):
        notes = Notes("v4" if kind in ACTORS else "v2", f"{kind.__name__}-{number}")
        world.notes.append(notes)
        if kind in ACTORS:
            ref = await manager.v4.spawn(kind, world, notes, manager.visa["meter"], name=notes.name)
            ref.tell_nowait(Go())
        elif kind in THREADS:
            await manager.v2.spawn_thread(kind, world, notes, stage, name=notes.name)
        else:
            await manager.v2.spawn(kind, world, notes, stage, name=notes.name)


async def run_one(seed: int, simulated: SimulatedLab) -> Outcome:
    world = World(random.Random(seed))
    timeout = world.chance.choice([0.6, 1.2, 2.0, 3.0])
    reports: list[ShutdownReport] = []
    manager = lab(simulated)
    port = str(simulated.stage_path)

    async def call(cancelled_after: float) -> None:
        with trio.move_on_after(cancelled_after):
            reports.append(await manager.shutdown(timeout))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.measure_lateness)
        async with manager:
            await manager.start()
            if frozen := world.chance.random() < 0.6:
                simulated.freeze()
            try:
                await populate(manager, world, manager.serial["stage"])
                await trio.sleep(world.chance.choice([0.05, 0.2]))
                began = time.monotonic()
                async with trio.open_nursery() as callers:
                    for after in world.chance.choices([0.0, 0.1, 0.5, 100.0], k=world.chance.randint(0, 3)):
                        callers.start_soon(call, after)
                    report = await manager.shutdown(timeout)
                    ended = time.monotonic()
                    check_order(world, report, began, timeout)
                    check_survivors(world, report)
                    assert port not in open_files(), "the port was left open"
                assert all(one is report for one in reports)
                assert str(report)
            finally:
                if frozen:
                    simulated.thaw()
                world.released.set()
                world.trio_released.set()
        nursery.cancel_scope.cancel()
    outcome = Outcome(
        took=ended - began,
        timeout=timeout,
        lateness=world.lateness,
        stuck=len(report.stuck),
        abandoned=sum(len(one.abandoned_threads) for stage in report.stages for one in stage.members),
    )
    assert outcome.took <= timeout + PROMISED + world.lateness, outcome
    return outcome


def check_order(world: World, report: ShutdownReport, began: float, timeout: float) -> None:
    """V4, then V2, then hardware; V2 hears of it when all of V4 has ended, or V4's time was over."""
    assert [stage.name for stage in report.stages] == ["v4", "v2", "hardware", "recording"]
    stuck = {one.name for one in report.stuck}
    told = min((one.told for one in world.notes if one.told is not None), default=None)
    hards = 4.0
    share = min(1.0, timeout / hards)
    deadline = began + min(GRACE["v4"], max(0.0, timeout - hards)) + share
    for one in world.notes:
        if told is not None and one.side == "v4" and (one.ended is None or one.ended > told):
            assert one.name in stuck, (one, told)
            assert told >= deadline - 0.02, (one, told, deadline)


def check_survivors(world: World, report: ShutdownReport) -> None:
    """Every thread and task that still runs is named, and who is named ran when it was given up."""
    members = {one.name: one for stage in report.stages for one in stage.members}
    enumerated = {thread.native_id for thread in threading.enumerate()}
    for one in world.notes:
        if one.begun is None:  # its thread was told before it had begun
            continue
        reported = members[one.name]
        if one.thread is None:
            assert one.ended is not None or reported.outcome == "stuck", (one, reported)
        elif one.ended is None:
            assert one.thread_lives, one
            assert one.thread in enumerated, one
            assert reported.outcome == "stuck" or reported.abandoned_threads, (one, reported)
        if one.ended is None or not (reported.outcome == "stuck" or reported.abandoned_threads):
            continue
        left = sum(stage.seconds for stage in report.stages if stage.name in ("hardware", "recording"))
        assert one.ended >= time.monotonic() - left - report.stages[1].seconds - report.stages[0].seconds, one


def open_files() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return sorted(found)


async def test_a_lab_stops_in_time_and_in_order_whatever_hangs(tmp_path: Path) -> None:
    """Random labs with blocked threads, hung tasks and actors, frozen instruments and cancelled callers."""
    outcomes: list[Outcome] = []
    others = {thread.ident for thread in threading.enumerate()}  # which earlier tests have left behind
    async with open_simulated_lab(tmp_path / "log.jsonl") as simulated:
        before: list[str] | None = None
        for seed in range(FIRST_SEED, FIRST_SEED + RUNS):
            print(f"seed {seed}", flush=True)
            with trio.fail_after(60):
                outcomes.append(await run_one(seed, simulated))
                await wait_threads_gone(others)
            gc.collect()
            left = [name for name in open_files() if name.startswith(("/dev/pts", "socket:", "pipe:", "anon_inode"))]
            before = before if before is not None else left
            assert len(left) <= len(before), (before, left)
    tell(outcomes)


async def wait_threads_gone(others: set[int | None]) -> None:
    with trio.fail_after(20):
        while any(" #" in one.name and one.ident not in others for one in threading.enumerate()):  # noqa: ASYNC110
            await trio.sleep(0.01)


def tell(outcomes: list[Outcome]) -> None:
    late = sorted(1000 * max(0.0, one.took - one.timeout) for one in outcomes)
    loop = sorted(1000 * one.lateness for one in outcomes)
    full = sum(one.took > 0.9 * one.timeout for one in outcomes)

    def quantiles(values: list[float]) -> str:
        picked = [values[min(len(values) - 1, int(part * len(values)))] for part in (0.5, 0.9, 0.99)]
        return ", ".join(f"{value:.1f}" for value in [*picked, values[-1]])

    print(f"{len(outcomes)} labs, {full} took all their time, {sum(one.stuck for one in outcomes)} members were stuck")
    print(f"{sum(one.abandoned for one in outcomes)} threads were left behind")
    print(f"ms beyond the time, 50, 90, 99, 100 %: {quantiles(late)}; the loop was late by: {quantiles(loop)}")
