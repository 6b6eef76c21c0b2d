"""V2 and V4 in one process on the same instruments: the twelve scenarios of coexistence.

A real manager, real threads, tasks and actors, a real pty and a real socket, in real time. The judges are the
instruments' own log, the kernel, and the clock of the test; what the library counts is only compared with them.
"""

import contextlib
import itertools
import os
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import shared_lab
import trio
import trio.testing
from shared_lab import Ask, Instruments, Lab, Notes, owner_of, read_both, read_in_task, read_in_thread, until

from trio_daq.actors import Actor, ActorRef, Message, handles
from trio_daq.config import SubsystemConfig
from trio_daq.data import DataDistributor, Reading
from trio_daq.drivers import DriverContext
from trio_daq.errors import (
    ActorStoppedError,
    DaqError,
    DeadlockError,
    DoorClosedError,
    DoorInterruptedError,
    SessionClosedError,
    UnhealthyError,
)
from trio_daq.legacy import SerialDoor, ThreadContext, VisaDoor
from trio_daq.lifecycle import DualRuntimeManager, LabSnapshot, ManagerState, Status, Supervision
from trio_daq.serialport import SharedSerialPort
from trio_daq.sim import FaultPlan, open_simulated_lab
from trio_daq.visa import VisaSessionManager

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the instruments need a pty, and the judges /proc")

SEVERAL = 25
"""Questions of each member, where more would prove the same."""
ISOLATED = Supervision(on_bug="isolate")


# --- start and stop --------------------------------------------------------------------------------------------------


async def test_dual_runtime_startup_shutdown(tmp_path: Path) -> None:
    """Between start and shutdown members of both sides reach both instruments; before and after that nothing does, no
    device, connection or thread is left, and both statuses say so. A second start works like the first."""
    async with open_simulated_lab(tmp_path / "log.jsonl") as simulated:
        notes = Notes()
        old = [shared_lab.member("thread", read_in_thread, notes), shared_lab.member("task", read_in_task, notes)]
        new = [shared_lab.member("actor", Instruments, notes, period=0.005)]
        config = shared_lab.config_for(
            simulated, v2=SubsystemConfig(instruments=old), v4=SubsystemConfig(instruments=new)
        )
        threads = shared_lab.thread_names()
        async with DualRuntimeManager(config) as manager:
            lab = Lab(manager, simulated, notes)
            assert manager.state is ManagerState.UNINITIALIZED
            for _ in range(2):
                notes.replies.clear()
                before = len(lab.log())
                await trio.sleep(0.05)
                assert len(lab.log()) == before  # nobody speaks while it is stopped
                assert (manager.v2_status(), manager.v4_status()) == (Status.INACTIVE, Status.INACTIVE)
                await manager.start()
                assert manager.state is ManagerState.RUNNING
                assert (manager.v2_status(), manager.v4_status()) == (Status.ACTIVE, Status.ACTIVE)
                await until(lambda: all(notes.count(one) >= 4 for one in ("thread", "task", "actor")))
                assert shared_lab.has_open(simulated.stage_path)
                assert shared_lab.is_connected_to(simulated.meter_port)
                report = await manager.shutdown(timeout=10)
                assert {one.outcome for stage in report.stages for one in stage.members} == {"drained"}
                assert manager.state is ManagerState.STOPPED
                assert not shared_lab.has_open(simulated.stage_path)
                assert not shared_lab.is_connected_to(simulated.meter_port)
                await until(lambda: shared_lab.thread_names() == threads)
                lab.check_replies()
                with pytest.raises(SessionClosedError):
                    async with lab.port.acquire("late"):
                        pass


@pytest.mark.parametrize("timeout", [0.001, 4.1])
async def test_shutdown_timeout_enforcement(tmp_path: Path, timeout: float) -> None:
    """Members of both sides that would take half a minute, one of them in a thread that nobody can reach, end a
    shutdown in its time, STOPPED; the report says of each that it did not end by itself; and whatever they try after
    it, none reaches an instrument."""
    freed = threading.Event()
    refused: list[DoorClosedError] = []
    patient = SubsystemConfig(stop_timeout=30.0)

    def unreachable(port: SerialDoor) -> None:
        freed.wait(30)
        try:
            port.query(b"POS? unreachable-0")
        except DoorClosedError as error:
            refused.append(error)

    def asking(visa: VisaDoor) -> None:
        while True:
            with contextlib.suppress(DoorInterruptedError):  # it is told, and goes on all the same
                visa.query("SLOW? asking-0,30", timeout=30)

    async def waiting(port: SharedSerialPort, context: DriverContext) -> None:
        async with port.acquire() as guard:
            await guard.query(b"SLOW? waiting-0 30", timeout=30)

    async def ask(actor: ActorRef[Instruments]) -> None:
        with pytest.raises(DaqError):
            await actor.ask(Ask("SLOW? {tag},30", "actor-0"), timeout=30)

    try:
        async with shared_lab.running_lab(tmp_path, v2=patient, v4=patient) as lab, trio.open_nursery() as nursery:
            await lab.manager.v2.spawn_thread(unreachable, lab.port)
            await lab.manager.v2.spawn_thread(asking, lab.meter)
            await lab.manager.v2.spawn(waiting, lab.port)
            actor = await lab.manager.v4.spawn(Instruments, lab.port, lab.meter, notes=lab.notes, name="actor")
            nursery.start_soon(ask, actor)
            # Of the two at the meter, one is asked and the other one waits.
            await until(lambda: "waiting-0" in lab.asked() and lab.asked("meter") and lab.meter.queue_depth() == 1)
            began = time.monotonic()
            report = await lab.manager.shutdown(timeout=timeout)
            assert time.monotonic() - began < timeout + 1.5
            assert lab.manager.state is ManagerState.STOPPED
            asked = lab.asked()
        members = {one.name: one for stage in report.stages for one in stage.members}
        outcomes = {members[name].outcome for name in ("actor", "unreachable", "asking", "waiting")}
        assert outcomes <= {"cancelled", "stuck"}
        if timeout > 1:
            assert outcomes == {"cancelled"}
            assert members["unreachable"].abandoned_threads == ("unreachable #1",)
    finally:
        freed.set()
    await until(lambda: refused)
    assert refused[0].sent == "no"
    assert lab.asked() == asked


async def test_graceful_shutdown_with_active_ops(tmp_path: Path) -> None:
    """Three exchanges of V2 and three of V4 are under way when the stop comes. Those of V4, and that of a V2 task, end
    with their replies; a thread is interrupted once, and its `finally` reaches the instrument, after V4's last word."""
    interrupted: list[str] = []

    def old(port: SerialDoor, context: ThreadContext, notes: Notes) -> None:
        try:
            port.query(f"SLOW? {context.id}-0 1.6".encode())
        except DoorInterruptedError:
            interrupted.append(context.id)
            raise
        finally:
            notes.note(f"{context.id}-9", port.query(f"POS? {context.id}-9".encode()).decode())

    async def new(visa: VisaSessionManager, context: DriverContext, notes: Notes) -> None:
        notes.note("task-0", await visa.query("SLOW? task-0,0.3"))

    async with shared_lab.running_lab(tmp_path) as lab, trio.open_nursery() as nursery:
        manager, notes = lab.manager, lab.notes
        for number, question in enumerate(("SLOW? {tag} 0.3", "SLOW? {tag},0.3", "SLOW? {tag},0.3")):
            actor = await manager.v4.spawn(Instruments, lab.port, lab.meter, notes=notes, name=f"actor{number}")
            nursery.start_soon(actor.ask, Ask(question, f"actor{number}-0"), 10)
        for name in ("old1", "old2"):
            await manager.v2.spawn_thread(old, lab.port, notes=notes, name=name)
        await manager.v2.spawn(new, lab.meter, notes=notes, name="task")
        await until(lambda: {"actor0-0", "actor1-0"} <= set(lab.asked()))
        assert notes.replies == []  # all six are under way
        began = time.monotonic()
        report = await manager.shutdown(timeout=10)
        assert time.monotonic() - began < 8
    assert {one.outcome for stage in report.stages for one in stage.members} == {"drained"}
    assert {tag for tag, _ in notes.replies} == {"actor0-0", "actor1-0", "actor2-0", "task-0", "old1-9", "old2-9"}
    assert sorted(interrupted) == ["old1", "old2"]
    lab.check_replies()
    order = [entry.tag for entry in lab.log() if entry.event == "reply" and entry.tag]
    last_of_v4 = max(order.index(f"actor{number}-0") for number in range(3))
    assert last_of_v4 < min(order.index("old1-9"), order.index("old2-9"))


# --- side by side ----------------------------------------------------------------------------------------------------


async def test_v2_and_v4_actors_concurrent(tmp_path: Path) -> None:
    """A thread, a task and two actors make progress at the same time: within any quarter of all questions each of them
    has some. And a thread that sleeps for half a second, as old code does, holds nobody up."""

    def sleepy(context: ThreadContext) -> None:
        slept.append(time.monotonic_ns())
        time.sleep(0.5)
        slept.append(time.monotonic_ns())

    slept: list[int] = []
    async with shared_lab.running_lab(tmp_path) as lab:
        manager, notes = lab.manager, lab.notes
        await manager.v2.spawn_thread(read_in_thread, lab.port, lab.meter, notes=notes, name="thread")
        await manager.v2.spawn(read_in_task, lab.port, lab.meter, notes=notes, name="task")
        for name in ("actor1", "actor2"):
            await manager.v4.spawn(Instruments, lab.port, lab.meter, notes=notes, period=0.002, name=name)
        sleeper = await manager.v2.spawn_thread(sleepy)
        await until(lambda: all(count >= 8 * SEVERAL for count in notes.counts().values()))
        with trio.fail_after(5):
            await sleeper.done.wait()
        await manager.shutdown(10)
    lab.check_replies()
    owners = [owner_of(tag) for tag in lab.asked()][: 32 * SEVERAL]
    quarter = len(owners) // 4
    for start in range(0, len(owners) - quarter, quarter // 2):
        assert set(owners[start : start + quarter]) == {"thread", "task", "actor1", "actor2"}
    began, ended = slept
    meanwhile = Counter(
        owner_of(entry.tag) for entry in lab.log() if entry.event == "reply" and entry.tag and began < entry.t < ended
    )
    assert min(meanwhile[one] for one in ("thread", "task", "actor1", "actor2")) >= 5


async def test_concurrent_message_throughput(tmp_path: Path) -> None:
    """Ten of V2, half of them threads, and ten of V4 ask 20 questions each, all at once: by the instruments' log each
    of the 400 was asked and answered once, everybody got their own, in time, and nobody had to wait for the end."""
    each = 20

    def old(port: SerialDoor, visa: VisaDoor, context: ThreadContext, notes: Notes) -> None:
        for number in range(0, each, 2):
            tag = f"{context.id}-{number}"
            notes.note(tag, port.query(f"POS? {tag}".encode()).decode())
            notes.note(f"{tag}m", visa.query(f"MEAS:VOLT? {tag}m"))

    async def task(port: SharedSerialPort, visa: VisaSessionManager, context: DriverContext, notes: Notes) -> None:
        for number in range(0, each, 2):
            await read_both(port, visa, notes, f"{context.id}-{number}")

    async def ask(actor: ActorRef[Instruments]) -> None:
        for number in range(0, each, 2):
            await actor.ask(Ask("POS? {tag}", f"{actor.name}-{number}"), timeout=30)
            await actor.ask(Ask("MEAS:VOLT? {tag}", f"{actor.name}-{number}m"), timeout=30)

    async with shared_lab.running_lab(tmp_path) as lab:
        manager, notes = lab.manager, lab.notes
        actors = [
            await manager.v4.spawn(Instruments, lab.port, lab.meter, notes=notes, name=f"v4_{number}")
            for number in range(10)
        ]
        began = time.monotonic()
        async with trio.open_nursery() as nursery:
            members = [
                await manager.v2.spawn_thread(old, lab.port, lab.meter, notes=notes, name=f"v2_{number}")
                if number < 5
                else await manager.v2.spawn(task, lab.port, lab.meter, notes=notes, name=f"v2_{number}")
                for number in range(10)
            ]
            for actor in actors:
                nursery.start_soon(ask, actor)
        for member in members:
            with trio.fail_after(20):
                await member.done.wait()
        seconds = time.monotonic() - began
    everybody = {f"{side}_{number}" for side in ("v2", "v4") for number in range(10)}
    lab.check_replies()
    assert notes.counts() == Counter(dict.fromkeys(everybody, each))
    asked = lab.asked()
    assert len(asked) == len(set(asked)) == 20 * each
    at_half_time = Counter(map(owner_of, asked[: len(asked) // 2]))
    assert min(at_half_time[one] for one in everybody) >= each // 5  # a fair share is a half
    print(f"400 questions in {seconds:.2f} s, at half time {sorted(at_half_time.values())}")
    assert seconds < 5


CONTENTION = float(os.environ.get("TRIO_DAQ_CONTENTION_SECONDS", "1.5"))


async def test_resource_contention(tmp_path: Path) -> None:
    """Threads, tasks, actors and background commands hammer one port and one session for a while, on instruments that
    are late again and again, with callers that give up. Each reply that anybody gets is the one to their own question,
    by the instrument's log; what belongs together (a block on the port, a batch, a transaction) is not cut into; and
    who fails does so by an error that says why."""
    errors: list[DaqError] = []

    def contend(port: SerialDoor, visa: VisaDoor, context: ThreadContext, notes: Notes) -> None:
        for number in itertools.count():
            tag = f"{context.id}-{number}"
            with _noting(errors), port.exclusive() as line:
                notes.note(f"{tag}a", line.query(f"MOVE {number % 50} {tag}a".encode(), 1.0).decode())
                notes.note(f"{tag}b", line.query(f"POS? {tag}b".encode(), 1.0).decode())
            with _noting(errors), visa.transaction() as line:
                notes.note(f"{tag}c", line.query(f"MEAS:VOLT? {tag}c"))
                notes.note(f"{tag}d", line.query(f"MEAS:VOLT? {tag}d"))
            with _noting(errors):
                notes.note(f"{tag}e", visa.query(f"MEAS:VOLT? {tag}e", 0.03))
            if context.wait_stopping(0):
                return

    async def pair(port: SharedSerialPort, visa: VisaSessionManager, context: DriverContext, notes: Notes) -> None:
        for number in itertools.count():
            tag = f"{context.id}-{number}"
            with _noting(errors):
                async with port.acquire() as guard:
                    notes.note(f"{tag}a", (await guard.query(f"MOVE 1 {tag}a".encode(), timeout=1)).decode())
                    notes.note(f"{tag}b", (await guard.query(f"POS? {tag}b".encode(), timeout=1)).decode())
            with _noting(errors):
                replies = await visa.batch([f"MEAS:VOLT? {tag}c", f"MEAS:VOLT? {tag}d"])
                notes.note(f"{tag}c", replies[0])
                notes.note(f"{tag}d", replies[1])
            if await context.wait_stopping(0):
                return

    async def background(owner: str) -> None:
        """Somebody who is no member: asks for what can wait, and often does not wait for the answer."""
        for number in itertools.count():
            tag = f"{owner}-{number}"
            with _noting(errors), trio.move_on_after(0.02 if number % 3 == 0 else 20):
                command = f"MEAS:VOLT? {tag}"
                lab.notes.note(tag, await lab.meter.query(command, 20, owner, priority="background"))
            with _noting(errors), trio.move_on_after(0.02 if number % 3 == 1 else 20):
                async with lab.port.acquire(owner, 20) as guard:
                    lab.notes.note(f"{tag}s", (await guard.query(f"POS? {tag}s".encode())).decode())

    late = FaultPlan(late_every=17, late_by=0.06)
    async with open_simulated_lab(tmp_path / "log.jsonl", stage=late, meter=late) as simulated:
        config = shared_lab.config_for(simulated, timeout=0.03)
        async with DualRuntimeManager(config) as manager:
            await manager.start()
            lab = Lab(manager, simulated)
            async with trio.open_nursery() as nursery:
                for name in ("thread1", "thread2"):
                    await manager.v2.spawn_thread(contend, lab.port, lab.meter, notes=lab.notes, name=name)
                await manager.v2.spawn(pair, lab.port, lab.meter, notes=lab.notes, name="task")
                for name in ("actor1", "actor2"):
                    actor = await manager.v4.spawn(Contender, lab.port, lab.meter, errors, notes=lab.notes, name=name)
                    actor.tell_nowait(Go())
                for name in ("background1", "background2"):
                    nursery.start_soon(background, name)
                await trio.sleep(CONTENTION)
                nursery.cancel_scope.cancel()
            report = await manager.shutdown(timeout=10)
    assert {one.outcome for stage in report.stages for one in stage.members} == {"drained"}
    lab.check_replies()
    got = lab.notes.counts()
    print(f"{got.total()} replies, {len(errors)} errors: {Counter(type(error).__name__ for error in errors)}")
    for owner in ("thread1", "thread2", "task", "actor1", "actor2", "background1", "background2"):
        assert got[owner] >= 10
    assert errors  # they were late, so somebody was told
    assert all(isinstance(error, TimeoutError) for error in errors)
    for instrument, pairs in (("stage", "ab"), ("meter", "cd")):
        assert len([entry for entry in lab.log(instrument) if entry.fault == "late"]) >= 5
        asked = lab.asked(instrument)
        for tag, following in itertools.pairwise(asked):
            if tag[-1] == pairs[0] and f"{tag[:-1]}{pairs[1]}" in asked:
                assert following == f"{tag[:-1]}{pairs[1]}"


@contextlib.contextmanager
def _noting(errors: list[DaqError]) -> Any:
    """An error of the lab ends nobody: it is kept."""
    try:
        yield
    except DoorInterruptedError:
        pass
    except DaqError as error:
        errors.append(error)


class Go(Message[None]):
    """Ask both instruments, and tell yourself to do so again."""


class Contender(Instruments):
    """Asks as fast as it can."""

    def __init__(
        self,
        port: SharedSerialPort,
        visa: VisaSessionManager,
        errors: list[DaqError],
        context: DriverContext,
        notes: Notes,
    ) -> None:
        super().__init__(port, visa, context, notes)
        self.errors = errors

    @handles(Go)
    async def go(self, message: Go) -> None:
        tag = f"{self.name}-{next(self.numbers)}"
        with _noting(self.errors):
            async with self.serial.acquire() as guard:
                self.notes.note(tag, (await guard.query(f"POS? {tag}".encode())).decode())
        with _noting(self.errors):
            self.notes.note(f"{tag}m", await self.visa.query(f"MEAS:VOLT? {tag}m", 0.03))
        if not self.context.stopping.is_set():
            self.after(0, message)


# --- data from one side to the other ---------------------------------------------------------------------------------


@attrs.frozen
class Position(Message[None]):
    """V2 measured a position."""

    source: str
    number: int
    value: float


class Drain(Message[None]):
    """Take what was published."""


class Follower(Actor):
    """For each position that V2 publishes or tells, asks the meter, under the position's source and number."""

    def __init__(self, visa: VisaSessionManager, distributor: DataDistributor, notes: Notes) -> None:
        self.visa, self.distributor, self.notes = visa, distributor, notes
        self.place = contextlib.ExitStack()

    async def on_start(self) -> None:
        self.readings = self.place.enter_context(self.distributor.subscribe(self.name, policy="block"))
        self.every(0.005, Drain())

    async def on_stop(self) -> None:
        self.place.close()

    @handles(Drain)
    async def drain(self, _: Drain) -> None:
        for reading in self.readings.receive_nowait():
            assert isinstance(reading.value, float)
            await self.follow(Position(reading.instrument, reading.seq, reading.value))

    @handles(Position)
    async def follow(self, message: Position) -> None:
        tag = f"{message.source}+{message.number}={message.value:.3f}"
        self.notes.note(tag, await self.visa.query(f"MEAS:VOLT? {tag}"))


async def test_data_flow_v2_to_v4(tmp_path: Path) -> None:
    """What a V2 thread publishes and a V2 task tells reaches an actor: all of it, in order, unchanged. By the
    instruments' log the actor asks the meter once for each position that the stage gave, and only after that."""

    def scan(port: SerialDoor, context: ThreadContext) -> None:
        for number in range(SEVERAL):
            with port.exclusive() as line:
                line.query(f"MOVE {number} thread-m{number}".encode())
                context.publish("position", _number(line.query(f"POS? thread-{number}".encode())), "mm")

    async def tell(port: SharedSerialPort, actor: ActorRef[Follower]) -> None:
        for number in range(SEVERAL):
            async with port.acquire() as guard:
                value = _number(await guard.query(f"POS? task-{number}".encode()))
            await actor.tell(Position("task", number, value))

    async with shared_lab.running_lab(tmp_path) as lab:
        manager = lab.manager
        actor = await manager.v4.spawn(Follower, lab.meter, manager.distributor, lab.notes, name="follower")
        await manager.v2.spawn_thread(scan, lab.port, name="thread")
        await manager.v2.spawn(tell, lab.port, actor, name="task")
        await until(lambda: len(lab.notes.replies) >= 2 * SEVERAL)
        await manager.shutdown(10)
    lab.check_replies()
    for source in ("thread", "task"):
        said = _positions(lab, source, range(SEVERAL))
        followed = [tag for tag in lab.asked("meter") if tag.startswith(f"{source}+")]
        assert followed == [f"{source}+{number}={value:.3f}" for number, value in enumerate(said)]
        tags = [entry.tag for entry in lab.log()]
        for number, tag in enumerate(followed):
            assert tags.index(tag) > tags.index(f"{source}-{number}")
    assert len(set(_positions(lab, "thread", range(SEVERAL)))) > 5  # it did move, so a mix-up would be seen


async def test_data_flow_v4_to_v2(tmp_path: Path) -> None:
    """What an actor publishes reaches a V2 task, and from there a V2 thread: all of it, in order, unchanged. By the
    instruments' log the stage is moved once for each voltage, in that order, and only after it was measured."""
    inbox: queue.SimpleQueue[Reading | None] = queue.SimpleQueue()
    received: list[Reading] = []

    async def collect(distributor: DataDistributor, context: DriverContext) -> None:
        with distributor.subscribe(context.id, policy="block") as subscription:
            ready.set()
            while len(received) < SEVERAL:
                for reading in await subscription.receive():
                    received.append(reading)
                    inbox.put(reading)
        inbox.put(None)

    def move(port: SerialDoor) -> None:
        for reading in iter(inbox.get, None):
            notes.note(
                f"thread-{reading.seq}", port.query(f"MOVE {reading.seq} thread-{reading.seq}".encode()).decode()
            )

    ready = trio.Event()
    async with shared_lab.running_lab(tmp_path) as lab:
        manager, notes = lab.manager, lab.notes
        collector = await manager.v2.spawn(collect, manager.distributor)
        mover = await manager.v2.spawn_thread(move, lab.port)
        await ready.wait()
        await manager.v4.spawn(Voltmeter, lab.meter, notes=notes, name="actor")
        with trio.fail_after(20):
            await collector.done.wait()
            await mover.done.wait()
        await manager.stop_v4(5)
    lab.check_replies()
    answered = {entry.tag: entry.text for entry in lab.log("meter") if entry.event == "reply"}
    for number, reading in enumerate(received):
        assert (reading.instrument, reading.seq, reading.unit) == ("actor", number, "V")
        assert answered[f"actor-{number}"] == f"actor-{number},{reading.value:+.6E}"
    assert lab.asked("stage") == [f"thread-{number}" for number in range(len(received))]
    tags = [entry.tag for entry in lab.log()]
    assert all(tags.index(f"thread-{number}") > tags.index(f"actor-{number}") for number in range(len(received)))


class Voltmeter(Actor):
    """Measures and publishes voltages."""

    def __init__(self, visa: VisaSessionManager, context: DriverContext, notes: Notes) -> None:
        self.visa, self.context, self.notes, self.numbers = visa, context, notes, itertools.count()

    async def on_start(self) -> None:
        self.every(0.003, Drain())

    @handles(Drain)
    async def measure(self, _: Drain) -> None:
        tag = f"{self.name}-{next(self.numbers)}"
        await self.context.publish(
            "voltage", float(self.notes.note(tag, await self.visa.query(f"MEAS:VOLT? {tag}"))), "V"
        )


async def test_bidirectional_communication_channel(tmp_path: Path) -> None:
    """A V2 task and an actor talk in turns, each answering the other: by the instruments' log stage and meter are asked
    strictly in turn, in the order of the talk. And a V2 task that asks an actor for what the actor can only do with the
    port that the task holds is told so at once, by name; both live on."""

    async def talk(port: SharedSerialPort, actor: ActorRef[Instruments], context: DriverContext) -> None:
        for number in range(SEVERAL):
            volts = await actor.ask(Ask("MEAS:VOLT? {tag}", f"actor-{number}"), timeout=10)
            async with port.acquire() as guard:
                command = f"MOVE {round(float(volts) * 10 + number, 3)} task-{number}"
                notes.note(f"task-{number}", (await guard.query(command.encode())).decode())
            await context.publish("moved", number)

    async def hold_and_ask(port: SharedSerialPort, actor: ActorRef[Instruments]) -> None:
        async with port.acquire("holder") as guard:
            began = trio.current_time()
            with pytest.raises(DeadlockError) as caught:
                await actor.ask(Ask("POS? {tag}", "actor-never"), timeout=20)
            refused_after.append(trio.current_time() - began)
            assert {name for _, name in caught.value.circle} == {"holder", "actor"}
            notes.note("holder-0", (await guard.query(b"POS? holder-0")).decode())

    refused_after: list[float] = []
    async with shared_lab.running_lab(tmp_path) as lab:
        manager, notes = lab.manager, lab.notes
        actor = await manager.v4.spawn(Instruments, lab.port, lab.meter, notes=notes, name="actor")
        talker = await manager.v2.spawn(talk, lab.port, actor, name="task")
        with trio.fail_after(20):
            await talker.done.wait()
        turns = lab.asked()
        holder = await manager.v2.spawn(hold_and_ask, lab.port, actor)
        with trio.fail_after(20):
            await holder.done.wait()
        assert holder.error is None
        await actor.ask(Ask("POS? {tag}", "actor-last"))
        assert manager.is_v2_healthy()
        assert manager.is_v4_healthy()
    assert refused_after[0] < 2
    assert turns == [tag for number in range(SEVERAL) for tag in (f"actor-{number}", f"task-{number}")]
    moves = [entry.text.split()[1] for entry in lab.log("stage") if entry.text.startswith("MOVE")]
    volts = [reply.split(",")[1] for tag, reply in notes.replies if tag.startswith("actor-") and "," in reply]
    assert moves == [str(round(float(text) * 10 + number, 3)) for number, text in enumerate(volts)]
    assert "actor-never" not in lab.asked()
    lab.check_replies()


# --- errors of one side ----------------------------------------------------------------------------------------------


async def test_v2_error_does_not_crash_v4(tmp_path: Path) -> None:
    """V2 fails in every way: by an error of the lab, by a bug, by leaving the program, in the middle of a command on
    the shared port and of a transaction. V2 is in error and says who failed; V4 goes on in the same life, with right
    replies on the same lines."""

    async def times_out() -> None:
        raise TimeoutError("no answer")

    async def has_a_bug() -> None:
        len(3)  # type: ignore[arg-type]

    def leaves() -> None:
        sys.exit(3)

    def cuts_a_command(port: SerialDoor) -> None:
        with port.exclusive() as line:
            line.write_all(b"POS? cut")
            raise OSError("the driver broke")

    def breaks_a_transaction(visa: VisaDoor) -> None:
        with visa.transaction() as line:
            line.write("CONF:VOLT")
            raise RuntimeError("the driver broke")

    failing: list[tuple[Callable[..., Any], tuple[str, ...]]] = [
        (times_out, ()),
        (has_a_bug, ()),
        (leaves, ()),
        (cuts_a_command, ("port",)),
        (breaks_a_transaction, ("meter",)),
    ]
    async with shared_lab.running_lab(tmp_path) as lab:
        manager = lab.manager
        actor = await manager.v4.spawn(Instruments, lab.port, lab.meter, notes=lab.notes, period=0.005, name="actor")
        await lab.wait_asked("actor")
        for driver, lines in failing:
            spawn = manager.v2.spawn if driver in (times_out, has_a_bug) else manager.v2.spawn_thread
            arguments = [getattr(lab, line) for line in lines]
            member = await spawn(driver, *arguments, supervision=ISOLATED)
            with trio.fail_after(10):
                await member.done.wait()
            await lab.wait_asked("actor", times=6)  # three turns on both instruments
            assert (manager.v2_status(), manager.v4_status()) == (Status.ERROR, Status.ACTIVE)
            assert manager.state is ManagerState.RUNNING
        with pytest.raises(UnhealthyError) as caught:
            await manager.check_health()
        assert [problem.split()[0] for problem in caught.value.report.problems] == [
            f"v2.{driver.__name__}" for driver, _ in failing
        ]
        assert (actor.statistics().lives, actor.statistics().failed) == (1, 0)
    lab.check_replies()


async def test_v4_error_does_not_crash_v2(tmp_path: Path) -> None:
    """Actors fail in every way: in a handler, by a bug, in the middle of a command on the shared port, at their end.
    Who asked is told; V4 is in error where an actor is dead; a V2 thread and a V2 task go on, with right replies on the
    same lines."""
    async with shared_lab.running_lab(tmp_path) as lab:
        manager = lab.manager
        await manager.v2.spawn_thread(read_in_thread, lab.port, lab.meter, notes=lab.notes, name="thread")
        await manager.v2.spawn(read_in_task, lab.port, lab.meter, notes=lab.notes, name="task")
        lively = await manager.v4.spawn(Failing, lab.port, name="lively", supervision=ISOLATED)
        for fault in (TimeoutError, ValueError):
            with pytest.raises(fault):
                await lively.ask(Fail(fault))
            await lab.wait_asked("thread", "task", times=4)
            assert (manager.v2_status(), manager.v4_status()) == (Status.ACTIVE, Status.ACTIVE)
        for fault in (TypeError, AssertionError):
            mortal = await manager.v4.spawn(Failing, lab.port, name=f"mortal_{fault.__name__}", supervision=ISOLATED)
            with pytest.raises(fault):
                await mortal.ask(Fail(fault))
            with trio.fail_after(10):
                await manager.v4.wait_status(Status.ERROR)
            await lab.wait_asked("thread", "task", times=4)
            with pytest.raises(ActorStoppedError):
                await mortal.ask(Fail(fault))
            assert manager.v2_status() is Status.ACTIVE
        with pytest.raises(TimeoutError):  # the other actor is as it was
            await lively.ask(Fail(TimeoutError))
        assert manager.state is ManagerState.RUNNING
        assert all(member.error is None and member.restarts == 0 for member in manager.v2.stage.members.values())
        assert len(manager.v4.problems()) == 2
        report = await manager.shutdown(10)
        assert {one.outcome for one in report.stages[1].members} == {"drained"}
    lab.check_replies()


@attrs.frozen
class Fail(Message[None]):
    """Fail by this error."""

    by: type[Exception]


class Failing(Actor):
    """Fails in the middle of a command, and again at its end."""

    def __init__(self, port: SharedSerialPort) -> None:
        self.port = port

    @handles(Fail)
    async def fail(self, message: Fail) -> None:
        async with self.port.acquire() as guard:
            await guard.write_all(b"POS? cut")
            raise message.by("the actor broke")

    async def on_stop(self) -> None:
        raise RuntimeError("it broke again")


# --- what one side knows of the other --------------------------------------------------------------------------------


async def test_state_synchronization(tmp_path: Path) -> None:
    """A V2 task and an actor each wait for what happens on the other side, and see it when it does: neither polls.
    Their snapshots at that moment, and the one from outside, agree with each other and with the instruments' log."""
    seen: dict[str, list[Status]] = {"task": [], "actor": []}
    snapshots: list[LabSnapshot] = []

    async def watch_v4(manager: DualRuntimeManager) -> None:
        for status in (Status.ERROR, Status.INACTIVE, Status.ACTIVE):
            await manager.v4.wait_status(status)
            seen["task"].append(status)
            snapshots.append(manager.snapshot())

    def reads_ten_times(port: SerialDoor, visa: VisaDoor, notes: Notes) -> None:
        for number in range(10):
            notes.note(f"thread-{number}", port.query(f"POS? thread-{number}".encode()).decode())
            notes.note(f"thread-{number}m", visa.query(f"MEAS:VOLT? thread-{number}m"))

    async def fails_when_told() -> None:
        await told.wait()
        raise TimeoutError("no answer")

    async with shared_lab.running_lab(tmp_path) as lab:
        manager, notes = lab.manager, lab.notes
        told = trio.Event()
        # V4 sees what happens to V2.
        watcher = await manager.v4.spawn(Watcher, manager, seen["actor"], snapshots, name="actor")
        await manager.v2.spawn(fails_when_told)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watcher.ask, Watch(Status.ERROR), 20)
            await trio.testing.wait_all_tasks_blocked()
            assert (seen["actor"], manager.snapshot().v2) == ([], Status.ACTIVE)
            told.set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watcher.ask, Watch(Status.INACTIVE), 20)
            await manager.stop_v2(5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watcher.ask, Watch(Status.ACTIVE), 20)
            await manager.start_v2()
        assert seen["actor"] == [Status.ERROR, Status.INACTIVE, Status.ACTIVE] == [one.v2 for one in snapshots]
        assert [one.v4 for one in snapshots] == [Status.ACTIVE] * 3
        assert [[(one.name, one.outcome) for one in shot.members["v2"]] for shot in snapshots] == [
            [("fails_when_told", "failed")],
            [("fails_when_told", "failed")],
            [],
        ]
        # V2 sees what happens to V4.
        snapshots.clear()
        await manager.v2.spawn(watch_v4, manager, name="task")
        dying = await manager.v4.spawn(Failing, lab.port, name="dying", supervision=ISOLATED)
        with pytest.raises(TypeError):
            await dying.ask(Fail(TypeError))
        await until(lambda: len(snapshots) == 1)
        await manager.stop_v4(5)
        await manager.start_v4()
        await until(lambda: len(snapshots) == 3)
        assert seen["task"] == [Status.ERROR, Status.INACTIVE, Status.ACTIVE] == [one.v4 for one in snapshots]
        assert [one.v2 for one in snapshots] == [Status.ACTIVE] * 3
        # Both sides and the outside see one truth about the lines, and it is the instruments'.
        thread = await manager.v2.spawn_thread(reads_ten_times, lab.port, lab.meter, notes, name="thread")
        await manager.v4.spawn(Instruments, lab.port, lab.meter, notes=notes, period=0.003, name="reader")
        await until(lambda: notes.count("reader") >= 10)
        with trio.fail_after(10):
            await thread.done.wait()
        await manager.stop_v4(5)
        await manager.stop_v2(5)
        await until(lab.port.is_available)  # its keeper may have it for a moment
        stage, meter = manager.snapshot().lines
        asked = {name: Counter(map(owner_of, lab.asked(name))) for name in ("stage", "meter")}
        assert {owner: stage.exchanges[owner] for owner in ("thread", "reader")} == asked["stage"]
        assert dict(meter.exchanges) == asked["meter"]
        assert (stage.owner, meter.owner, stage.waiting, meter.waiting) == (None, None, (), ())
        assert (manager.snapshot().v2, manager.snapshot().v4) == (Status.INACTIVE, Status.INACTIVE)
        assert manager.snapshot().state is ManagerState.RUNNING
    lab.check_replies()


@attrs.frozen
class Watch(Message[None]):
    """Wait until V2 is so."""

    until: Status


class Watcher(Actor):
    """Notes what becomes of V2."""

    def __init__(self, manager: DualRuntimeManager, seen: list[Status], snapshots: list[LabSnapshot]) -> None:
        self.manager, self.seen, self.snapshots = manager, seen, snapshots

    @handles(Watch)
    async def watch(self, message: Watch) -> None:
        await self.manager.v2.wait_status(message.until)
        self.seen.append(message.until)
        self.snapshots.append(self.manager.snapshot())


def _number(reply: bytes) -> float:
    return float(reply.split()[-1])


def _positions(lab: Lab, owner: str, numbers: range) -> list[float]:
    answered = {entry.tag: entry.text for entry in lab.log("stage") if entry.event == "reply"}
    return [float(answered[f"{owner}-{number}"].split()[-1]) for number in numbers]
