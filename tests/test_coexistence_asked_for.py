"""V2 and V4 in one process: what was asked for in words, and is shown here by instruments, kernel and files.

Real managers, threads, tasks and actors on real ptys and sockets, in real time; see `shared_lab` for who judges.
"""

import contextlib
import itertools
import os
import random
import sqlite3
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import attrs
import pytest
import shared_lab
import trio
from shared_lab import Ask, Instruments, Lab, Notes, owner_of, read_in_task, read_in_thread, until

from trio_daq.actors import Actor, ActorRef, Message, handles
from trio_daq.config import SubsystemConfig
from trio_daq.data import Reading, Subscription
from trio_daq.drivers import DriverContext
from trio_daq.errors import (
    ActorStoppedError,
    DoorInterruptedError,
    LineLostError,
    PortBusyError,
    StartError,
    UnhealthyError,
)
from trio_daq.legacy import SerialDoor, ThreadContext, VisaDoor
from trio_daq.lifecycle import DualRuntimeManager, ManagerState, Status
from trio_daq.recording import open_run
from trio_daq.serialport import SharedSerialPort
from trio_daq.sim import open_simulated_lab
from trio_daq.visa import VisaSessionManager

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the instruments need a pty, and the judges /proc")

LIVES = int(os.environ.get("TRIO_DAQ_LIVES", "20"))


# --- exclusive access ------------------------------------------------------------------------------------------------


@attrs.frozen
class Try(Message[str]):
    """Take the port without waiting."""


@attrs.frozen
class Hold(Message[None]):
    """Take the port and keep it until *let_go*."""

    has: trio.Event
    let_go: trio.Event


class Holding(Instruments):
    """Takes the port, or says who is in its way."""

    @handles(Try)
    async def try_port(self, _: Try) -> str:
        try:
            async with self.serial.acquire(timeout=0):
                return "free"
        except PortBusyError as error:
            return str(error.held_by)

    @handles(Hold)
    async def hold(self, message: Hold) -> None:
        async with self.serial.acquire() as guard:
            self.notes.note("actor-0", (await guard.query(b"POS? actor-0")).decode())
            message.has.set()
            await message.let_go.wait()
            self.notes.note("actor-1", (await guard.query(b"POS? actor-1")).decode())


async def test_exclusive_access_names_its_owner(tmp_path: Path) -> None:
    """While a V2 thread has the port, its owner is that thread for everybody, and an actor that does not wait is told
    so; while the actor has it, it is the other way round. By the stage's log nobody came between; and of the meter it
    holds as well."""
    has, let_go, try_now = threading.Event(), threading.Event(), threading.Event()
    told: list[str] = []

    def old(port: SerialDoor, visa: VisaDoor, notes: Notes) -> None:
        with port.exclusive() as line, visa.transaction() as meter:
            notes.note("old-0", line.query(b"POS? old-0").decode())
            has.set()
            let_go.wait(20)
            notes.note("old-1", line.query(b"POS? old-1").decode())
            notes.note("old-2", meter.query("MEAS:VOLT? old-2"))
        try_now.wait(20)
        try:
            with port.exclusive(timeout=0):
                told.append("free")
        except PortBusyError as error:
            told.append(str(error.held_by))

    async with shared_lab.running_lab(tmp_path) as lab, trio.open_nursery() as nursery:
        manager, notes = lab.manager, lab.notes
        actor = await manager.v4.spawn(Holding, lab.port, lab.meter, notes=notes, name="actor")
        asker = await manager.v4.spawn(Instruments, lab.port, lab.meter, notes=notes, name="other")
        await until(lab.port.is_available)  # its keeper has it for a moment after the start
        assert lab.port.current_owner() is None
        thread = await manager.v2.spawn_thread(old, lab.port, lab.meter, notes=notes)
        await until(has.is_set)
        assert (lab.port.current_owner(), lab.port.is_available()) == ("old", False)
        assert lab.meter.current_owner() == "old"
        assert await actor.ask(Try()) == "old"
        hold = Hold(trio.Event(), trio.Event())
        nursery.start_soon(actor.ask, hold, 20)
        nursery.start_soon(asker.ask, Ask("MEAS:VOLT? {tag}", "other-0"), 20)
        await until(lambda: lab.port.statistics().lease.waiting == ("actor",) and lab.meter.queue_depth() == 1)
        assert lab.port.current_owner() == "old"  # in line is not in hand
        let_go.set()
        await hold.has.wait()
        assert (lab.port.current_owner(), lab.port.is_available()) == ("actor", False)
        try_now.set()
        await thread.done.wait()
        assert told == ["actor"]
        hold.let_go.set()
    assert lab.port.current_owner() is None
    assert lab.asked("stage") == ["old-0", "old-1", "actor-0", "actor-1"]
    assert lab.asked("meter") == ["old-2", "other-0"]
    lab.check_replies()


async def test_five_tasks_of_ten_commands_are_fifty(tmp_path: Path) -> None:
    """Of 5 V2 tasks that send 10 commands each at once, the session accounts for 50, 10 of each; so does the meter."""

    async def ten(visa: VisaSessionManager, context: DriverContext, notes: Notes) -> None:
        for number in range(10):
            tag = f"{context.id}-{number}"
            notes.note(tag, await visa.query(f"MEAS:VOLT? {tag}"))

    async with shared_lab.running_lab(tmp_path) as lab:
        members = [
            await lab.manager.v2.spawn(ten, lab.meter, notes=lab.notes, name=f"task{number}") for number in range(5)
        ]
        for member in members:
            await member.done.wait()
        seen = lab.meter.statistics()
    expected = {f"task{number}": 10 for number in range(5)}
    assert dict(seen.executed) == expected == Counter(map(owner_of, lab.asked("meter"))) == lab.notes.counts()
    assert (sum(seen.executed.values()), seen.unfinished, seen.failed, seen.timed_out) == (50, {}, 0, 0)
    assert sum(seen.wait_times.values()) == sum(seen.execution_times.values()) == 50
    lab.check_replies()


# --- start and stop --------------------------------------------------------------------------------------------------


def _both_sides(notes: Notes, v2: bool = True, v4: bool = True) -> dict[str, SubsystemConfig]:
    old = [shared_lab.member("thread", read_in_thread, notes), shared_lab.member("task", read_in_task, notes)]
    new = [shared_lab.member(name, Instruments, notes, period=0.003) for name in ("actor1", "actor2")]
    return {"v2": SubsystemConfig(enabled=v2, instruments=old), "v4": SubsystemConfig(enabled=v4, instruments=new)}


@pytest.mark.parametrize(("v2", "v4"), [(True, True), (True, False), (False, True)])
async def test_the_sides_that_are_enabled_start(tmp_path: Path, v2: bool, v4: bool) -> None:
    """`start` starts both sides, or the one that is enabled: by the instruments' log all of its members speak, and
    nobody of the other side does; a side that is off is inactive and healthy."""
    notes = Notes()
    expected = ({"thread", "task"} if v2 else set()) | ({"actor1", "actor2"} if v4 else set())
    async with shared_lab.running_lab(tmp_path, **_both_sides(notes, v2, v4)) as lab:
        manager = lab.manager
        assert manager.v2_status() is (Status.ACTIVE if v2 else Status.INACTIVE)
        assert manager.v4_status() is (Status.ACTIVE if v4 else Status.INACTIVE)
        await lab.wait_asked(*expected, times=5)
        assert (await manager.check_health()).healthy
        assert (manager.is_v2_healthy(), manager.is_v4_healthy()) == (True, True)
    assert set(map(owner_of, lab.asked())) == expected


async def test_shutdown_order_is_v4_then_v2_then_what_they_share(tmp_path: Path) -> None:
    """At the end an actor says a last word to both instruments, then a V2 thread and a V2 task do; by the instruments'
    log all of V4's comes before V2's. By the kernel the device, the connection and the run file are still open at each
    of these last words, and closed when the shutdown has ended."""
    open_at: dict[str, tuple[bool, ...]] = {}

    def look(tag: str) -> None:
        run_file = str(manager.recorder.path)  # type: ignore[union-attr]
        open_at[tag] = (
            shared_lab.has_open(lab.simulated.stage_path),
            shared_lab.is_connected_to(lab.simulated.meter_port),
            shared_lab.has_open(run_file),
        )

    def old(port: SerialDoor, visa: VisaDoor, notes: Notes) -> None:
        try:
            while True:
                visa.query("MEAS:VOLT?")
        finally:
            notes.note("thread-last", port.query(b"POS? thread-last").decode())
            notes.note("thread-lastm", visa.query("MEAS:VOLT? thread-lastm"))
            look("thread-last")

    async def task(port: SharedSerialPort, visa: VisaSessionManager, context: DriverContext, notes: Notes) -> None:
        await context.stopping.wait()
        await shared_lab.read_both(port, visa, notes, "task-last")
        look("task-last")

    class Last(Instruments):
        async def on_stop(self) -> None:
            await shared_lab.read_both(self.serial, self.visa, self.notes, "actor-last")
            look("actor-last")

    async with shared_lab.running_lab(tmp_path, record=True) as lab:
        manager = lab.manager
        await manager.v2.spawn_thread(old, lab.port, lab.meter, notes=lab.notes, name="thread")
        await manager.v2.spawn(task, lab.port, lab.meter, notes=lab.notes, name="task")
        await manager.v4.spawn(Last, lab.port, lab.meter, notes=lab.notes, name="actor")
        await trio.sleep(0.1)
        report = await manager.shutdown(timeout=10)
        look("after")
    assert open_at == {**dict.fromkeys(("actor-last", "thread-last", "task-last"), (True,) * 3), "after": (False,) * 3}
    assert [stage.name for stage in report.stages] == ["v4", "v2", "hardware", "recording"]
    order = [entry.tag for entry in lab.log() if entry.event == "reply" and entry.tag]
    assert set(order) == {f"{who}-last{what}" for who in ("thread", "task", "actor") for what in ("", "m")}
    assert order[:2] == ["actor-last", "actor-lastm"]
    lab.check_replies()


class Slow(Instruments):
    """Asks an instrument, and takes its time, before it is ready."""

    seconds = 20.0

    async def on_start(self) -> None:
        async with self.serial.acquire() as guard:
            await guard.query(f"SLOW? {self.name}-0 0.1".encode())
            await trio.sleep(self.seconds)


async def test_shutdown_at_startup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shutdown that comes at any moment of a start that would take long ends it at once: `start` says so, everything
    is released, nobody speaks after it, and the same lab can then be started as if nothing had been."""
    notes = Notes()
    old = [shared_lab.member("thread", read_in_thread, notes), shared_lab.member("task", read_in_task, notes)]
    new = [shared_lab.member(name, Slow, notes) for name in ("slow1", "slow2")]
    async with open_simulated_lab(tmp_path / "log.jsonl") as simulated:
        v2, v4 = SubsystemConfig(instruments=old), SubsystemConfig(instruments=new)
        config = shared_lab.config_for(simulated, tmp_path, v2=v2, v4=v4)
        threads = shared_lab.thread_names()
        async with DualRuntimeManager(config) as manager:
            lab = Lab(manager, simulated, notes)
            for delay in (0.0, 0.02, 0.2):
                async with trio.open_nursery() as nursery:
                    began = time.monotonic()

                    async def start() -> None:
                        with pytest.raises(StartError):
                            await manager.start()

                    nursery.start_soon(start)
                    await until(lambda: manager.state is ManagerState.STARTING)
                    await trio.sleep(delay)
                    await manager.shutdown(timeout=3)
                assert time.monotonic() - began < delay + 5
                assert manager.state is ManagerState.STOPPED
                assert not shared_lab.has_open(simulated.stage_path)
                assert not shared_lab.is_connected_to(simulated.meter_port)
                await until(lambda: shared_lab.thread_names() == threads)
                asked = lab.asked()
                await trio.sleep(0.02)
                assert lab.asked() == asked
            notes.replies.clear()
            monkeypatch.setattr(Slow, "seconds", 0.0)
            await manager.start()
            await until(lambda: notes.count("thread") > 3 and notes.count("task") > 3)
            await manager.shutdown(10)


async def test_shutdown_mid_operation(tmp_path: Path) -> None:
    """A shutdown that comes at any moment of an exchange cuts none of V4 and none of a V2 task: by the instruments' log
    what was asked was answered, and they have that answer; a thread lost at most the reply that it was at."""
    notes = Notes()
    chance = random.Random(1)
    async with open_simulated_lab(tmp_path / "log.jsonl") as simulated:
        config = shared_lab.config_for(simulated, **_both_sides(notes))
        for life in range(8):
            notes.replies.clear()
            before = len(shared_lab.read_log(simulated.log)) if life else 0
            async with DualRuntimeManager(config) as manager:
                lab = Lab(manager, simulated, notes)
                await manager.start()
                await lab.wait_asked("thread", "actor1")
                await trio.sleep(chance.uniform(0, 0.01))
                report = await manager.shutdown(timeout=10)
            assert {one.outcome for stage in report.stages for one in stage.members} == {"drained"}
            entries = lab.log()[before:]
            asked = {entry.tag for entry in entries if entry.event == "command" and entry.tag}
            answered = {entry.tag: entry.text for entry in entries if entry.event == "reply" and entry.tag}
            assert asked == set(answered)
            lost = asked - {tag for tag, _ in notes.replies}
            assert {owner_of(tag) for tag in lost} <= {"thread"}
            assert len(lost) <= 1
            assert all(answered[tag] == reply for tag, reply in notes.replies)


async def test_shutdown_under_load(tmp_path: Path) -> None:
    """Under a load that would last for much longer, with full mailboxes and full queues, a shutdown ends in its time.
    Each ask ends, by its answer or by the news that the actor stops; the messages that nobody handled are in the
    report; nobody speaks after it."""
    ends: Counter[str] = Counter()

    def old(port: SerialDoor, visa: VisaDoor, context: ThreadContext) -> None:
        for number in itertools.count():
            port.query(f"SLOW? {context.id}-{number} 0.02".encode())
            visa.query(f"SLOW? {context.id}-{number}m,0.02")

    async def ask(actor: ActorRef[Instruments], number: int) -> None:
        question = ("SLOW? {tag} 0.02", "SLOW? {tag},0.02")[number % 2]
        try:
            await actor.ask(Ask(question, f"{actor.name}-{number}"), timeout=60)
            ends["answered"] += 1
        except ActorStoppedError:
            ends["stopped"] += 1

    async with (
        shared_lab.running_lab(tmp_path, v4=SubsystemConfig(stop_timeout=0.5)) as lab,
        trio.open_nursery() as nursery,
    ):
        manager = lab.manager
        for number in range(5):
            await manager.v2.spawn_thread(old, lab.port, lab.meter, name=f"thread{number}")
        actors = [
            await manager.v4.spawn(Instruments, lab.port, lab.meter, notes=lab.notes, name=f"actor{number}")
            for number in range(5)
        ]
        for actor in actors:
            for number in range(80):  # more than a mailbox takes, so some wait for room
                nursery.start_soon(ask, actor, number)
        await trio.sleep(0.3)
        began = time.monotonic()
        report = await manager.shutdown(timeout=5)
        assert time.monotonic() - began < 6
        asked = lab.asked()
        await trio.sleep(0.05)
        assert lab.asked() == asked
    assert ends.total() == 400
    assert ends["answered"] == lab.notes.counts().total() > 5
    assert ends["stopped"] > 200
    [of_v4] = [stage for stage in report.stages if stage.name == "v4"]
    assert sum(member.dropped_messages for member in of_v4.members) > 200
    assert report.stuck == ()
    lab.check_replies()


async def test_twenty_lives_leak_nothing(tmp_path: Path) -> None:
    """After 20 lives of a lab with recording, each with members of every kind, there are as many descriptors, threads
    and tasks as after two."""
    notes = Notes()

    async with open_simulated_lab(tmp_path / "log.jsonl") as simulated:
        config = shared_lab.config_for(simulated, tmp_path, **_both_sides(notes))
        threads = shared_lab.thread_names()
        seen = []
        manager = DualRuntimeManager(config)
        for life in range(LIVES):
            if life % 2 == 0:  # the odd ones are the second lives of the same manager
                manager = DualRuntimeManager(config)
            notes.replies.clear()
            async with manager:
                await manager.start()
                await until(lambda: set(notes.counts()) == {"thread", "task", "actor1", "actor2"})
                await manager.shutdown(timeout=10)
            await until(lambda: shared_lab.thread_names() == threads)  # they end a moment after they were told
            seen.append((len(os.listdir("/proc/self/fd")), _count_tasks()))
    assert seen[-1] == seen[1]


def _count_tasks() -> int:
    def count(task: trio.lowlevel.Task) -> int:
        return 1 + sum(count(child) for nursery in task.child_nurseries for child in nursery.child_tasks)

    root = trio.lowlevel.current_root_task()
    assert root is not None
    return count(root)


# --- data of both sides ----------------------------------------------------------------------------------------------


def publish_in_thread(serial: SerialDoor, visa: VisaDoor, context: ThreadContext) -> None:
    """Publish what both instruments say, in blocking code."""
    for number in itertools.count():
        tag = f"{context.id}-{number}"
        context.publish("position", float(serial.query(f"POS? {tag}".encode()).split()[1]), "mm")
        context.publish("voltage", float(visa.query(f"MEAS:VOLT? {tag}m").split(",")[1]), "V")
        if context.wait_stopping(0.001):
            return


async def publish_in_task(serial: SharedSerialPort, visa: VisaSessionManager, context: DriverContext) -> None:
    """The same, as a task."""
    for number in itertools.count():
        await _publish_both(serial, visa, context, number)
        if await context.wait_stopping(0.001):
            return


async def _publish_both(
    serial: SharedSerialPort, visa: VisaSessionManager, context: DriverContext, number: int
) -> None:
    tag = f"{context.id}-{number}"
    async with serial.acquire() as guard:
        reply = await guard.query(f"POS? {tag}".encode())
    await context.publish("position", float(reply.split()[1]), "mm")
    voltage = await visa.query(f"MEAS:VOLT? {tag}m")
    await context.publish("voltage", float(voltage.split(",")[1]), "V")


class Publishing(Instruments):
    """The same, as an actor."""

    @handles(shared_lab.Tick)
    async def tick(self, _: shared_lab.Tick) -> None:
        await _publish_both(self.serial, self.visa, self.context, next(self.numbers))


async def _start_publishing(lab: Lab) -> None:
    await lab.manager.v2.spawn_thread(publish_in_thread, lab.port, lab.meter, name="thread")
    await lab.manager.v2.spawn(publish_in_task, lab.port, lab.meter, name="task")
    await lab.manager.v4.spawn(Publishing, lab.port, lab.meter, notes=lab.notes, period=0.002, name="actor")


def check_readings(lab: Lab, readings: list[Reading]) -> None:
    """Check that *readings* are gapless for each instrument, and are what the instruments answered, in that order."""
    answered = {entry.tag: entry.text for entry in lab.log() if entry.event == "reply" and entry.tag}
    for name in ("thread", "task", "actor"):
        mine = [reading for reading in readings if reading.instrument == name]
        assert [reading.seq for reading in mine] == list(range(len(mine)))
        assert len(mine) >= 20
        for reading in mine:
            number, is_voltage = divmod(reading.seq, 2)
            reply = answered[f"{name}-{number}{'m' * is_voltage}"]
            assert reading.value == float(reply.replace(",", " ").split()[1])
            assert (reading.channel, reading.unit) == (("position", "mm"), ("voltage", "V"))[is_voltage]


async def _take_all(subscription: Subscription, into: list[Reading]) -> None:
    while True:
        into += await subscription.receive()


@attrs.frozen
class Answer(Message[None]):
    """Publish that number."""

    number: int


class Answering(Actor):
    """Publishes what it is asked for."""

    def __init__(self, context: DriverContext) -> None:
        self.context = context

    @handles(Answer)
    async def answer(self, message: Answer) -> None:
        await self.context.publish("answer", message.number)


async def test_one_subscriber_gets_both_sides_in_order(tmp_path: Path) -> None:
    """A subscriber gets what a V2 thread, a V2 task and an actor publish: of each all, without gaps, as the instruments
    said it. Of two readings of which one followed from the other, over the border of the sides, it sees the cause
    first; and another subscriber sees the same order of all."""

    async def asking(actor: ActorRef[Answering], context: DriverContext) -> None:
        for number in range(30):
            await context.publish("question", number)
            await actor.ask(Answer(number))

    one: list[Reading] = []
    other: list[Reading] = []
    async with shared_lab.running_lab(tmp_path) as lab:
        distributor = lab.manager.distributor
        with distributor.subscribe("one") as first, distributor.subscribe("other", policy="block") as second:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_take_all, first, one)
                nursery.start_soon(_take_all, second, other)
                await _start_publishing(lab)
                actor = await lab.manager.v4.spawn(Answering, name="answering")
                talk = await lab.manager.v2.spawn(asking, actor)
                await until(lambda: len(one) > 300)
                await talk.done.wait()
                await lab.manager.shutdown(10)
                one += first.receive_nowait()
                other += second.receive_nowait()
                nursery.cancel_scope.cancel()
            assert (first.lost, second.lost) == (0, 0)
    assert one == other
    assert len(one) == distributor.statistics().published
    check_readings(lab, one)
    talked = [(reading.channel, reading.value) for reading in one if reading.channel in ("question", "answer")]
    assert talked == [(channel, float(number)) for number in range(30) for channel in ("question", "answer")]
    for name in ("thread", "task", "actor"):
        times = [reading.monotonic_ns for reading in one if reading.instrument == name]
        assert times == sorted(times)


async def test_one_run_file_has_both_sides_whole(tmp_path: Path) -> None:
    """The run file holds what both sides published, all of it, bit for bit and in order, which is what the instruments
    said; by SQLite itself it is sound, and by plain SQL it has as many rows."""
    published: list[Reading] = []
    async with shared_lab.running_lab(tmp_path, record=True) as lab:
        with lab.manager.distributor.subscribe("judge", policy="block") as subscription:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_take_all, subscription, published)
                await _start_publishing(lab)
                await until(lambda: len(published) > 300)
                await lab.manager.shutdown(10)
                published += subscription.receive_nowait()
                nursery.cancel_scope.cancel()
        assert lab.manager.recorder is not None
        path = lab.manager.recorder.path
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("SELECT sum(rows) FROM block").fetchall() == [(len(published),)]
        channels = set(database.execute("SELECT instrument, name, unit FROM channel"))
        assert database.execute("SELECT value FROM run WHERE key = 'ended_well'").fetchall() == [(1,)]
    expected = (("position", "mm"), ("voltage", "V"))
    assert channels == {(name, *channel) for name in ("thread", "task", "actor") for channel in expected}
    with open_run(path) as run:
        readings = list(run.readings())
    assert readings == published
    check_readings(lab, readings)


async def test_the_same_measurement_is_the_same_reading_on_both_sides(tmp_path: Path) -> None:
    """A thread, a task and an actor measure the same thing: a stage that stands, and a block of numbers. What they
    publish differs in who measured, and when, and in nothing else, neither in the stream nor in the run file."""
    published: list[Reading] = []

    def old(port: SerialDoor, visa: VisaDoor, context: ThreadContext) -> None:
        context.publish("position", float(port.query(b"POS?")), "mm")
        context.publish("curve", list(visa.query_block("CURV? 100")), "V")

    async def task(port: SharedSerialPort, visa: VisaSessionManager, context: DriverContext) -> None:
        async with port.acquire() as guard:
            await context.publish("position", float(await guard.query(b"POS?")), "mm")
        await context.publish("curve", list(await visa.query_block("CURV? 100")), "V")

    class New(Instruments):
        @handles(shared_lab.Tick)
        async def tick(self, _: shared_lab.Tick) -> None:
            await task(self.serial, self.visa, self.context)

    async with shared_lab.running_lab(tmp_path, record=True) as lab:
        manager = lab.manager
        with manager.distributor.subscribe("judge") as subscription:
            await manager.v2.spawn_thread(old, lab.port, lab.meter, name="thread")
            await manager.v2.spawn(task, lab.port, lab.meter, name="task")
            actor = await manager.v4.spawn(New, lab.port, lab.meter, notes=lab.notes, name="actor")
            await actor.ask(shared_lab.Tick())
            while len(published) < 6:
                published += await subscription.receive()
        await manager.shutdown(10)
        assert manager.recorder is not None
        with open_run(manager.recorder.path) as run:
            recorded = list(run.readings())
    assert recorded == published
    for seq, value in ((0, 12.5), (1, tuple(float(number) for number in range(100)))):
        same = [reading for reading in published if reading.seq == seq]
        assert {reading.instrument for reading in same} == {"thread", "task", "actor"}
        bare = [attrs.evolve(one, instrument="", time_ns=0, monotonic_ns=0, asked_ns=0) for one in same]
        assert bare[0] == bare[1] == bare[2]
        assert bare[0].value == value
        numbers = [one.value if isinstance(one.value, tuple) else (one.value,) for one in bare]
        assert {type(number) for row in numbers for number in row} == {float}


# --- trouble ---------------------------------------------------------------------------------------------------------


async def test_an_instrument_that_disconnects_is_lost_to_its_users_only(tmp_path: Path) -> None:
    """The stage's cable is pulled out under a V2 thread, a V2 task and an actor. The health names the line; those on
    the meter go on, by its log; when the cable is in again, all three get right replies, by the stage's log, without
    anybody starting anything anew."""
    link = tmp_path / "stage"

    def old(port: SerialDoor, context: ThreadContext, notes: Notes) -> None:
        for number in itertools.count():
            tag = f"{context.id}-{number}"
            try:
                notes.note(tag, port.query(f"POS? {tag}".encode(), 0.3).decode())
            except DoorInterruptedError:
                return
            except (LineLostError, TimeoutError) as error:
                errors[context.id] += 1
                context.log.info("%s", error)
            if context.wait_stopping(0.005):
                return

    async def task(port: SharedSerialPort, context: DriverContext, notes: Notes) -> None:
        for number in itertools.count():
            tag = f"{context.id}-{number}"
            try:
                async with port.acquire(timeout=0.3) as guard:
                    notes.note(tag, (await guard.query(f"POS? {tag}".encode(), timeout=0.3)).decode())
            except (LineLostError, TimeoutError):
                errors[context.id] += 1
            if await context.wait_stopping(0.005):
                return

    async def meter_only(visa: VisaSessionManager, context: DriverContext, notes: Notes) -> None:
        for number in itertools.count():
            tag = f"{context.id}-{number}"
            notes.note(tag, await visa.query(f"MEAS:VOLT? {tag}"))
            if await context.wait_stopping(0.005):
                return

    class StageOnly(Instruments):
        @handles(shared_lab.Tick)
        async def tick(self, _: shared_lab.Tick) -> None:
            tag = f"{self.name}-{next(self.numbers)}"
            try:
                await self.ask(Ask("POS? {tag}", tag))
            except (LineLostError, TimeoutError):
                errors[self.name] += 1

    errors: Counter[str] = Counter()
    users = ("thread", "task", "actor")
    async with open_simulated_lab(tmp_path / "log.jsonl", stage_link=link) as simulated:
        config = shared_lab.config_for(simulated, path=str(link), timeout=0.3, acquire_timeout=0.3)
        async with DualRuntimeManager(config) as manager:
            await manager.start()
            lab = Lab(manager, simulated)
            await manager.v2.spawn_thread(old, lab.port, notes=lab.notes, name="thread")
            await manager.v2.spawn(task, lab.port, notes=lab.notes, name="task")
            await manager.v2.spawn(meter_only, lab.meter, notes=lab.notes, name="meter_only")
            await manager.v4.spawn(StageOnly, lab.port, lab.meter, notes=lab.notes, period=0.005, name="actor")
            await lab.wait_asked(*users, "meter_only", times=5)
            await simulated.unplug_stage()
            await until(lambda: all(errors[user] for user in users))
            with pytest.raises(UnhealthyError, match="stage is lost"):
                await manager.check_health()
            before = len(lab.asked("stage"))
            await lab.wait_asked("meter_only", times=20)
            assert len(lab.asked("stage")) == before
            await simulated.replug_stage()
            await lab.wait_asked(*users, times=5)
            assert (await manager.check_health()).healthy
            assert all(report.restarts == 0 for side in manager.snapshot().members.values() for report in side)
            report = await manager.shutdown(10)
    assert {one.outcome for stage in report.stages for one in stage.members} == {"drained"}
    lab.check_replies()
