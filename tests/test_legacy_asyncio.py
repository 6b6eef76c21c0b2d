"""Programs that are written for asyncio as members, on real ptys and TCP, judged by the log of simulated instruments.

`TRIO_DAQ_ASYNCIO_EXCHANGES` is how many exchanges five users have on two lines, `TRIO_DAQ_ASYNCIO_LIVES` how many lives
a program has; 500 and 40 where nothing is said.
"""

import asyncio
import gc
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import pyvisa
import trio

from trio_daq.config import DualConfig, RecordingConfig, SubsystemConfig
from trio_daq.errors import (
    CommandTimeoutError,
    DaqError,
    DeadlockError,
    DoorClosedError,
    ExchangeTimeoutError,
    GuardReleasedError,
    LineFeatureError,
    LockOrderError,
    StateError,
)
from trio_daq.legacy import (
    AsyncioContext,
    AsyncioDeviceDoor,
    AsyncioSerialDoor,
    AsyncioVisaDoor,
)
from trio_daq.lifecycle import DualRuntimeManager, Status
from trio_daq.lifecycle.member import Member
from trio_daq.lifecycle.report import MemberReport
from trio_daq.lifecycle.supervision import Supervision
from trio_daq.serialport import SerialPortConfig, SharedSerialPort
from trio_daq.sim import FaultPlan, SimulatedLab, open_simulated_lab, read_log, replies_by_tag
from trio_daq.visa import VisaSessionConfig, VisaSessionManager
from trio_daq.wire import SyncQuery

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ptys, and it looks at /proc")

EXCHANGES = int(os.environ.get("TRIO_DAQ_ASYNCIO_EXCHANGES", "500"))
LIVES = int(os.environ.get("TRIO_DAQ_ASYNCIO_LIVES", "40"))

PROMPT = 0.25
"""Seconds within which a program is told to stop."""


def config_for(simulated: SimulatedLab) -> DualConfig:
    return DualConfig(
        serial={
            "stage": SerialPortConfig(
                path=simulated.stage_path or "",
                write_terminator=b"\r\n",
                read_terminator=b"\r\n",
                quiet_time=0.2,
                acquire_timeout=10,
                sync_query=SyncQuery("ECHO {nonce}", "{nonce}"),
            )
        },
        visa={"meter": VisaSessionConfig(resource=simulated.meter_resource or "", timeout=10)},
        v2=SubsystemConfig(stop_timeout=1.0),
        recording=RecordingConfig(enabled=False),
    )


@attrs.define
class Lab:
    """A running lab with a stage and a meter, and what its programs noted."""

    manager: DualRuntimeManager
    log: Path
    notes: list[Any] = attrs.field(factory=list)
    asked_at: float = 0.0

    @property
    def port(self) -> SharedSerialPort:
        return self.manager.serial["stage"]

    @property
    def meter(self) -> VisaSessionManager:
        return self.manager.visa["meter"]

    async def spawn(self, program: Callable[..., Awaitable[Any]], **kwargs: Any) -> Member:
        return await self.manager.v2.spawn_asyncio(program, name="new", **kwargs)

    async def run(self, program: Callable[..., Awaitable[Any]], **kwargs: Any) -> None:
        """Run a program to its end, and raise what it raised."""
        member = await self.spawn(program, **kwargs)
        with trio.fail_after(15):
            await member.done.wait()
        if member.error is not None:
            raise member.error

    async def stop(self) -> MemberReport:
        self.asked_at = time.monotonic()
        report = await self.manager.stop_v2()
        return next(member for member in report.members if member.name == "new")

    def commands(self) -> list[str]:
        return [entry.text for entry in read_log(self.log) if entry.event == "command"]

    async def until(self, condition: Callable[[], object], seconds: float = 5.0) -> None:
        with trio.fail_after(seconds):
            while not condition():  # noqa: ASYNC110 - it is the doing of a thread or of another process
                await trio.sleep(0.005)

    async def wait_for_command(self, text: str) -> None:
        await self.until(lambda: text in self.commands())

    async def wait_until_off(self) -> None:
        """Wait for what is not answered, and so is in the log a moment later than here."""
        await self.wait_for_command("OUTP OFF")
        assert self.commands()[-1] == "OUTP OFF"


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    """Two simulated instruments, and V2 members with a second to stop."""
    log = tmp_path / "log.jsonl"
    async with open_simulated_lab(log) as simulated, DualRuntimeManager(config_for(simulated)) as manager:
        await manager.start()
        yield Lab(manager, log)


# --- who gets which reply ---------------------------------------------------------------------------------------------


async def test_each_of_five_users_gets_its_own_replies(tmp_path: Path) -> None:
    """Three asyncio tasks of one program and two Trio tasks ask at once, some replies are late, and some questions are
    given up on either side: each reply that came is the one that the instrument gave to that very question."""
    log = tmp_path / "log.jsonl"
    faults = FaultPlan(late_every=11, late_by=0.06)
    replies: list[tuple[str, str]] = []
    given_up: list[str] = []
    numbers = itertools.count()
    chance = random.Random(7)

    async def asyncio_user(who: str, stage: AsyncioSerialDoor, meter: AsyncioVisaDoor) -> None:
        while (number := next(numbers)) < EXCHANGES:
            tag = f"{who}n{number}"
            try:
                async with asyncio.timeout(0.03 if number % 7 == 0 else 10):
                    match number % 4:
                        case 0:
                            reply = await meter.query(f"MEAS:VOLT? {tag}")
                        case 1:
                            async with meter.transaction() as transaction:
                                reply = await transaction.query(f"MEAS:VOLT? {tag}")
                        case 2:
                            reply = (await stage.query(f"POS? {tag}".encode())).decode()
                        case _:
                            async with stage.acquire() as guard:
                                await guard.write_all(f"POS? {tag}\r\n".encode())
                                reply = (await guard.read_until()).decode().strip()
                replies.append((tag, reply))
            except (TimeoutError, DaqError):
                given_up.append(tag)

    async def program(stage: AsyncioSerialDoor, meter: AsyncioVisaDoor) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(asyncio_user(f"a{number}", stage, meter))

    async def trio_user(who: str, stage: SharedSerialPort, meter: VisaSessionManager) -> None:
        while (number := next(numbers)) < EXCHANGES:
            tag = f"{who}n{number}"
            try:
                with trio.fail_after(0.03 if number % 5 == 0 else 10):
                    if number % 2:
                        reply = await meter.query(f"MEAS:VOLT? {tag}")
                    else:
                        async with stage.acquire() as guard:
                            reply = (await guard.query(f"POS? {tag}".encode())).decode()
                replies.append((tag, reply))
            except (trio.TooSlowError, DaqError):
                given_up.append(tag)
            await trio.sleep(chance.uniform(0, 0.004))

    async with (
        open_simulated_lab(log, stage=faults, meter=faults) as simulated,
        DualRuntimeManager(config_for(simulated)) as manager,
    ):
        await manager.start()
        stage, meter = manager.serial["stage"], manager.visa["meter"]
        member = await manager.v2.spawn_asyncio(program, stage, meter)
        async with trio.open_nursery() as nursery:
            for number in range(2):
                nursery.start_soon(trio_user, f"t{number}", stage, meter)
        await member.done.wait()
        assert member.error is None
        owners = set(meter.statistics().executed), set(stage.statistics().lease.grants)
    answered = replies_by_tag(read_log(log))
    wrong = [(tag, reply, answered.get(tag)) for tag, reply in replies if answered.get(tag) != reply]
    print(f"{len(replies)} replies, {len(given_up)} questions given up, {len(wrong)} wrong replies")
    assert wrong == []
    assert len(replies) + len(given_up) == EXCHANGES
    assert len(replies) > EXCHANGES / 2
    assert {tag[0] for tag in given_up} == {"a", "t"}
    assert all("program" in names for names in owners)


async def test_many_tasks_of_a_program_need_no_thread_each(lab: Lab) -> None:
    """Fifty tasks that wait for a reply at once are one thread, and all are served."""

    async def program(meter: AsyncioVisaDoor) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(meter.query(f"MEAS:VOLT? n{number}")) for number in range(50)]
            await asyncio.sleep(0)
            lab.notes.append(threading.active_count())
        assert [task.result().partition(",")[0] for task in tasks] == [f"n{number}" for number in range(50)]

    before = threading.active_count()
    await lab.run(program, meter=lab.meter)
    assert lab.notes == [before + 1]


async def test_verbs_are_those_of_the_session_and_the_guard(lab: Lab) -> None:
    """Each verb of the doors does what it does in Trio, and raises what it raises there."""

    async def program(stage: AsyncioSerialDoor, meter: AsyncioVisaDoor) -> None:
        assert await meter.enqueue_command("CONF:VOLT") == ""
        assert await meter.query("*OPC?") == "1"
        await meter.write("*CLS")
        assert len(await meter.query_block("CURV? ,300")) == 300
        (volts,) = await meter.query_values("MEAS:VOLT?")
        assert 1 < volts < 2
        assert await meter.batch(["*CLS", "*OPC?"]) == ["", "1"]
        with pytest.raises(CommandTimeoutError) as late:
            await meter.query("SLOW? a,0.1", 0.03)
        assert (late.value.owner, late.value.sent) == ("new", "yes")
        with pytest.raises(ValueError, match="timeout"):
            await meter.query("*OPC?", timeout=-1)
        async with meter.transaction(owner="boss", timeout=3, max_hold=5) as transaction:
            assert await transaction.query("*OPC?") == "1"
            with pytest.raises(DeadlockError):
                await meter.query("*OPC?")  # by another road than its own transaction
            with pytest.raises(LockOrderError):
                await stage.query(b"POS?")
        with pytest.raises(GuardReleasedError):
            await transaction.query("*OPC?")
        async with stage.acquire("guest", timeout=3) as guard:
            assert (stage.current_owner(), stage.is_available()) == ("guest", False)
            assert await guard.query(b"ECHO a", match=b"a") == b"a"
            await guard.write_all(b"ECHO bcd\r\n")
            assert await guard.read_exactly(2) + await guard.read(1) == b"bcd"
            assert await guard.read_until(b"\r\n") == b"\r\n"
            await guard.write_only(b"SHUT 0\r\n")
            assert await guard.discard_input() == b""
            with pytest.raises(LineFeatureError):
                await guard.modem_lines()  # which a pty does not have
        with pytest.raises(GuardReleasedError):
            await guard.query(b"ECHO never")
        with pytest.raises(ExchangeTimeoutError):
            await stage.query(b"SLOW? a 0.1", 0.03)
        with pytest.raises(ValueError, match="station"):
            await stage.query(b"POS?", station="7")
        lab.notes.append("all")

    await lab.run(program, stage=lab.port, meter=lab.meter)
    assert lab.notes == ["all"]
    assert "ECHO never" not in lab.commands()
    assert set(lab.meter.statistics().executed) == {"new", "boss"}


async def test_shared_device_is_had_by_one_task_at_a_time(lab: Lab) -> None:
    """Trio and asyncio take turns with the object itself."""
    camera = lab.manager.share("camera", [])

    async def program(camera: AsyncioDeviceDoor[list[str]]) -> None:
        async with camera.acquire(timeout=5) as frames:
            assert camera.current_owner() == "new"
            frames.append("asyncio")

    async with camera.acquire("trio") as frames:
        await lab.spawn(program, camera=camera)
        await lab.until(lambda: camera.statistics().waiting == ("new",))
        frames.append("trio")
    await lab.until(camera.is_available)
    await lab.until(lambda: len(frames) == 2)
    assert frames == ["trio", "asyncio"]


# --- what a task gives up ---------------------------------------------------------------------------------------------


async def test_question_that_was_given_up_in_line_is_never_asked(lab: Lab) -> None:
    """Cancelled while somebody else has the instrument or the port, a command never reaches it."""

    async def program(stage: AsyncioSerialDoor, meter: AsyncioVisaDoor) -> None:
        for ask in (meter.query("MEAS:VOLT? never"), meter.write("*RST"), stage.query(b"ECHO never")):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await ask
        task = asyncio.create_task(meter.query("MEAS:VOLT? never"))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        lab.notes.append("gave up")

    async with lab.port.acquire("trio"), lab.meter.transaction("trio"):
        await lab.spawn(program, stage=lab.port, meter=lab.meter)
        await lab.until(lambda: lab.notes)
        assert lab.port.statistics().lease.waiting == ()
        assert lab.meter.queue_depth() == 0
    assert await lab.meter.query("*OPC?") == "1"
    assert {command for command in lab.commands() if not command.startswith("ECHO s")} == {"*OPC?"}


async def test_question_that_was_given_up_before_trio_came_to_it_is_never_asked(lab: Lab) -> None:
    """An event loop of Trio that was busy does not do afterwards what nobody wants any more."""
    begun = threading.Event()

    async def program(meter: AsyncioVisaDoor) -> None:
        await meter.query("*OPC?")
        begun.set()
        await asyncio.sleep(0.05)
        try:
            async with asyncio.timeout(0.1):
                await meter.query("MEAS:VOLT? ghost")
        except TimeoutError:
            lab.notes.append(time.monotonic())
        assert await meter.query("*OPC?") == "1"

    member = await lab.spawn(program, meter=lab.meter)
    await lab.until(begun.is_set)
    time.sleep(0.5)  # noqa: ASYNC251 - that is what is tried
    awake = time.monotonic()
    await member.done.wait()
    assert lab.notes[0] < awake
    assert await lab.meter.query("*OPC?") == "1"
    assert "MEAS:VOLT? ghost" not in lab.commands()


@pytest.mark.parametrize("kind", ["transaction", "port"])
async def test_time_out_inside_a_block_leaves_the_instrument_free_and_clean(lab: Lab, kind: str) -> None:
    """The late reply to what was given up reaches neither the next question of the same task nor anybody else's."""

    async def program(stage: AsyncioSerialDoor, meter: AsyncioVisaDoor) -> None:
        async def ask_late(tag: str) -> None:
            async with asyncio.timeout(0.03):
                if kind == "transaction":
                    async with meter.transaction() as transaction:
                        await transaction.query(f"SLOW? {tag},0.1")
                else:
                    async with stage.acquire() as guard:
                        await guard.query(f"SLOW? {tag} 0.1".encode())

        for number in range(5):
            with pytest.raises(TimeoutError):
                await ask_late(f"late{number}")
            if kind == "transaction":
                async with meter.transaction() as transaction:
                    reply = await transaction.query(f"MEAS:VOLT? n{number}")
            else:
                reply = (await stage.query(f"POS? n{number}".encode())).decode()
            lab.notes.append(reply[:2])

    await lab.run(program, stage=lab.port, meter=lab.meter)
    assert lab.notes == [f"n{number}" for number in range(5)]
    assert lab.port.is_available()
    assert lab.meter.current_owner() is None
    assert (await lab.meter.query("MEAS:VOLT? mine")).startswith("mine,")


async def test_task_that_gave_up_right_when_it_was_granted_holds_nothing(lab: Lab) -> None:
    """Time-outs at every moment of getting and having a port: the same task can ask for it again at once."""
    chance = random.Random(3)

    async def program(stage: AsyncioSerialDoor) -> None:
        for number in range(150):
            try:
                async with asyncio.timeout(chance.uniform(0, 0.002)), stage.acquire():
                    await asyncio.sleep(chance.choice([0, 0.001]))
            except TimeoutError:
                lab.notes.append(number)
            async with stage.acquire(timeout=5):
                assert stage.current_owner() == "new"

    await lab.run(program, stage=lab.port)
    assert len(lab.notes) > 10
    assert lab.port.is_available()


async def test_closing_circles_are_refused_to_the_asyncio_task(lab: Lab) -> None:
    """Two tasks of one program that take two devices in opposite order: one is refused at once, the other served. A
    task that asks for what it has is refused too; another task of the program just waits for its turn."""
    lab.manager.share("left", "left")
    lab.manager.share("right", "right")

    async def take(
        first: AsyncioDeviceDoor[str], second: AsyncioDeviceDoor[str], both_have_one: asyncio.Barrier
    ) -> str:
        async with first.acquire(timeout=5):
            await both_have_one.wait()
            async with second.acquire(timeout=5):
                return "served"

    async def program(left: AsyncioDeviceDoor[str], right: AsyncioDeviceDoor[str]) -> None:
        barrier = asyncio.Barrier(2)
        began = time.monotonic()
        ways = take(left, right, barrier), take(right, left, barrier)
        lab.notes.extend(await asyncio.gather(*ways, return_exceptions=True))
        assert time.monotonic() - began < 2
        async with left.acquire(timeout=5):
            with pytest.raises(DeadlockError):
                await left.acquire(timeout=5).__aenter__()
            other = asyncio.create_task(left.acquire(timeout=5).__aenter__())
            await asyncio.sleep(0.05)
            assert not other.done()
        assert await other == "left"

    await lab.run(program, left=lab.manager.get_shared("left"), right=lab.manager.get_shared("right"))
    assert sorted(map(str, map(type, lab.notes))) == sorted(map(str, [str, DeadlockError]))


async def test_doors_are_for_asyncio_alone(lab: Lab) -> None:
    """Awaited in Trio, a door says which of the two it is for."""

    async def program(meter: AsyncioVisaDoor) -> None:
        lab.notes.append(meter)

    await lab.run(program, meter=lab.meter)
    with pytest.raises(StateError, match="In Trio use the port or the session itself"):
        await lab.notes[0].query("*OPC?")


# --- the stop ---------------------------------------------------------------------------------------------------------


async def ask_meter(stage: AsyncioSerialDoor, meter: AsyncioVisaDoor) -> None:
    await meter.query("SLOW? a,0.3", 30)


async def ask_in_transaction(stage: AsyncioSerialDoor, meter: AsyncioVisaDoor) -> None:
    async with meter.transaction() as transaction:
        await transaction.query("SLOW? a,0.3", 30)


async def ask_stage(stage: AsyncioSerialDoor, meter: AsyncioVisaDoor) -> None:
    await stage.query(b"SLOW? a 0.3", 30)


async def read_stage(stage: AsyncioSerialDoor, meter: AsyncioVisaDoor) -> None:
    async with stage.acquire() as guard:
        await guard.write_all(b"SLOW? a 0.3\r\n")
        await guard.read_until(timeout=30)


async def ask_in_tasks(stage: AsyncioSerialDoor, meter: AsyncioVisaDoor) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(meter.query("SLOW? a,0.3", 30))
        group.create_task(meter.query("SLOW? b,0.3", 30))


async def sleep_after_a_question(stage: AsyncioSerialDoor, meter: AsyncioVisaDoor) -> None:
    await meter.query("SLOW? a,0")
    await asyncio.sleep(60)


@pytest.mark.parametrize(
    "work", [ask_meter, ask_in_transaction, ask_stage, read_stage, ask_in_tasks, sleep_after_a_question]
)
async def test_stop_cancels_the_main_task_and_its_way_out_reaches_the_instrument(lab: Lab, work: Any) -> None:
    """Within 250 ms there is an `asyncio.CancelledError`, and what ``finally`` sends is the last command in the log."""

    async def program(stage: AsyncioSerialDoor, meter: AsyncioVisaDoor) -> None:
        try:
            await work(stage, meter)
        except asyncio.CancelledError:
            lab.notes.append(time.monotonic())
            raise
        finally:
            await meter.write("OUTP OFF")

    await lab.spawn(program, stage=lab.port, meter=lab.meter)
    await lab.until(lambda: any(command.startswith("SLOW? a") for command in lab.commands()))
    if work is sleep_after_a_question:
        await trio.sleep(0.05)
    report = await lab.stop()
    assert lab.notes[0] - lab.asked_at < PROMPT
    assert (report.outcome, report.error, report.abandoned_threads) == ("drained", None, ())
    await lab.wait_until_off()
    async with lab.port.acquire("trio") as guard:
        assert await guard.query(b"ECHO b") == b"b"


async def test_cancellation_is_not_lost_in_wait_for(lab: Lab) -> None:
    """Up to Python 3.11 `asyncio.wait_for` drops one that comes just as what it waits for is done."""

    async def program(meter: AsyncioVisaDoor) -> None:
        try:
            await asyncio.wait_for(finish(), 5)
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            lab.notes.append("told")
            await asyncio.sleep(0.01)  # nobody is told twice
            raise
        finally:
            await meter.write("OUTP OFF")

    async def finish() -> None:
        lab.notes.append("begun")
        await asyncio.sleep(0)
        release.wait(5)  # the stop and the end of this come in one iteration of the loop

    release = threading.Event()
    await lab.spawn(program, meter=lab.meter)
    await lab.until(lambda: lab.notes)
    await trio.sleep(0.1)
    threading.Timer(0.1, release.set).start()
    report = await lab.stop()
    await lab.wait_until_off()
    assert (report.outcome, lab.notes) == ("drained", ["begun", "told"])


async def test_instrument_is_off_after_each_of_twenty_stops(lab: Lab) -> None:
    """Whatever the moment, and also if the program just ends by itself, what ``finally`` writes is in the log."""
    chance = random.Random(5)
    for number in range(1, 21):
        rounds = chance.choice([3, 1000])

        async def program(meter: AsyncioVisaDoor, rounds: int = rounds) -> None:
            try:
                for _ in range(rounds):
                    await meter.query("MEAS:VOLT?")
            finally:
                await meter.write("OUTP OFF")

        seen = len(lab.commands())
        await lab.spawn(program, meter=lab.meter)
        await lab.until(lambda seen=seen: "MEAS:VOLT?" in lab.commands()[seen:])
        await trio.sleep(chance.uniform(0, 0.01))
        report = await lab.stop()
        assert (report.outcome, report.error) in [("drained", None), ("ended", None)]
        await lab.until(lambda number=number: lab.commands().count("OUTP OFF") == number)
        assert lab.commands()[-1] == "OUTP OFF"
        await lab.manager.start_v2()


async def write_to_meter(stage: AsyncioSerialDoor, meter: AsyncioVisaDoor, go: threading.Event) -> None:
    await meter.write("OUTP OFF")  # when the transaction of the test has ended


async def write_to_stage(stage: AsyncioSerialDoor, meter: AsyncioVisaDoor, go: threading.Event) -> None:
    async with stage.acquire() as guard:
        read = asyncio.create_task(guard.read_until(timeout=30))

        async def end_read() -> None:
            while not go.is_set():  # noqa: ASYNC110 - a thread sets it
                await asyncio.sleep(0.01)
            read.cancel()

        task = asyncio.create_task(end_read())
        await asyncio.sleep(0.1)
        await guard.write_only(b"SHUT 0\r\n")  # when the read has ended
        await task


@pytest.mark.parametrize(("write", "command"), [(write_to_meter, "OUTP OFF"), (write_to_stage, "SHUT 0")])
async def test_what_a_program_is_writing_when_it_is_to_stop_is_written(lab: Lab, write: Any, command: str) -> None:
    """A program that ends by itself just then, and waits for its turn to write, is cancelled after the write."""
    go = threading.Event()

    async def program(stage: AsyncioSerialDoor, meter: AsyncioVisaDoor) -> None:
        try:
            await write(stage, meter, go)
        except asyncio.CancelledError:
            lab.notes.append(go.is_set())
            raise

    async with trio.open_nursery() as nursery, lab.meter.transaction("trio"):
        await lab.spawn(program, stage=lab.port, meter=lab.meter)
        await lab.until(lambda: lab.meter.queue_depth() or lab.port.current_owner() == "new")
        await trio.sleep(0.2)
        nursery.start_soon(lab.stop)
        await trio.sleep(0.1)
        go.set()
    await lab.wait_for_command(command)
    assert lab.notes == [True]


async def test_program_that_waits_for_its_stop_is_not_cancelled(lab: Lab) -> None:
    """Its main task knows by its context, so each call on its way out is carried out; so is what it publishes."""

    async def program(meter: AsyncioVisaDoor, context: AsyncioContext) -> None:
        while not await context.wait_stopping(20):
            await meter.query("*OPC?")
        lab.notes.extend([context.id, await meter.query("*IDN?"), asyncio.current_task().cancelling()])
        await context.publish("voltage", 1.5, "V")

    with lab.manager.distributor.subscribe("test") as subscription:
        await lab.spawn(program, meter=lab.meter)
        await trio.sleep(0.1)
        report = await lab.stop()
        [reading] = subscription.receive_nowait()
    assert (lab.notes[0], lab.notes[2], report.outcome) == ("new", 0, "drained")
    assert (reading.instrument, reading.channel, reading.value, reading.unit) == ("new", "voltage", 1.5, "V")
    assert time.monotonic() - lab.asked_at < 0.9  # it has a second


async def test_program_that_is_busy_when_its_stop_comes_is_cancelled_though_it_has_a_context(lab: Lab) -> None:
    """A context alone changes nothing, and it shows the stop from then on."""

    async def program(meter: AsyncioVisaDoor, context: AsyncioContext) -> None:
        try:
            while not await context.wait_stopping(0):
                await meter.query("SLOW? a,0.3", 30)
        except asyncio.CancelledError as error:
            lab.notes.extend([context.stopping.is_set(), await context.wait_stopping(5), str(error)])

    await lab.spawn(program, meter=lab.meter)
    await lab.wait_for_command("SLOW? a,0.3")
    report = await lab.stop()
    assert lab.notes == [True, True, "new is to stop"]
    assert report.outcome == "drained"


async def test_old_library_in_an_asyncio_program_is_not_told_again(lab: Lab) -> None:
    """A program that knows by its cancellation may use PyVISA to clean up, and no call of that is interrupted."""

    async def program() -> None:
        meter = pyvisa.ResourceManager("@trio_daq").open_resource(
            lab.meter.resource, read_termination="\n", write_termination="\n"
        )
        try:
            meter.query("*OPC?")
            await asyncio.sleep(60)
        finally:
            lab.notes.append(meter.query("*IDN?"))
            meter.write("OUTP OFF")
            meter.close()

    await lab.spawn(program)
    await lab.wait_for_command("*OPC?")
    await trio.sleep(0.05)
    report = await lab.stop()
    assert (report.outcome, report.error) == ("drained", None)
    assert lab.notes[0].startswith("TRIO_DAQ")
    await lab.wait_until_off()


async def test_doors_close_after_the_stop_timeout(lab: Lab) -> None:
    """A program that makes nothing of its cancellation is served for its stop_timeout. Then its doors are closed for
    good, and it is cancelled once more."""

    async def program(meter: AsyncioVisaDoor) -> None:
        while True:
            try:
                await meter.query("*OPC?")
            except asyncio.CancelledError:
                lab.notes.append("cancelled")
            except DoorClosedError as error:
                lab.notes.extend([type(error), time.monotonic() - lab.asked_at])
                break
        await asyncio.sleep(60)

    await lab.spawn(program, meter=lab.meter)
    await lab.wait_for_command("*OPC?")
    report = await lab.stop()
    told = [note for note in lab.notes if not isinstance(note, float)]
    assert told[:2] == ["cancelled", DoorClosedError]
    assert 0.95 < lab.notes[-1] < 2.5
    assert (report.outcome, report.abandoned_threads) == ("cancelled", ())
    await lab.until(lambda: not any(thread.name.startswith("new #") for thread in threading.enumerate()))


async def test_loop_that_blocks_is_left_behind_and_listed(lab: Lab) -> None:
    """Nobody can cancel it; it is named, holds nothing up, finds its door closed, and stops no other life."""
    release = threading.Event()

    async def program(meter: AsyncioVisaDoor) -> None:
        await meter.query("*OPC?")
        release.wait(20)  # a bad program
        try:
            await meter.write("*RST")
        except DoorClosedError as error:
            lab.notes.append(error.sent)

    await lab.spawn(program, meter=lab.meter)
    await lab.wait_for_command("*OPC?")
    await trio.sleep(0.05)
    report = await lab.stop()
    assert time.monotonic() - lab.asked_at < 2.5
    assert report.outcome == "cancelled"
    [name] = report.abandoned_threads
    [thread] = [one for one in threading.enumerate() if one.name == name]
    assert thread.daemon
    release.set()
    await trio.to_thread.run_sync(thread.join, 5)
    assert not thread.is_alive()
    assert "*RST" not in lab.commands()


# --- how it ends ------------------------------------------------------------------------------------------------------


class VendorError(Exception):
    """An error of somebody's library."""


async def fail() -> None:
    await asyncio.sleep(0)
    raise VendorError("no light")


async def cancel_itself() -> None:
    asyncio.current_task().cancel()
    await asyncio.sleep(1)


async def leave() -> None:
    await asyncio.sleep(0)
    sys.exit(0)


async def leave_with_a_code() -> None:
    asyncio.create_task(leave_by(3))  # noqa: RUF006 - it does not live long
    await asyncio.sleep(5)


async def leave_by(code: int) -> None:
    sys.exit(code)


async def test_what_a_program_raises_is_the_failure_of_its_member(lab: Lab) -> None:
    """With its type; nothing of asyncio gets into Trio."""
    for number, (program, expected) in enumerate(
        [
            (leave, None),
            (fail, "VendorError: no light"),
            (cancel_itself, "RuntimeError: its main task was cancelled, and not because it was to stop"),
            (leave_with_a_code, "RuntimeError: it left by sys.exit(3)"),
        ]
    ):
        member = await lab.manager.v2.spawn_asyncio(program, name=f"program {number}")
        with trio.fail_after(5):
            await member.done.wait()
        said = None if member.error is None else f"{type(member.error).__name__}: {member.error}"
        assert (said, member.outcome) == (expected, "ended" if expected is None else "failed")
        assert lab.manager.v2.status is (Status.ACTIVE if expected is None else Status.ERROR)


async def test_failure_on_the_way_out_is_a_failure(lab: Lab) -> None:
    """An error instead of the cancellation is reported, one that was raised from it is not."""

    async def replaces(meter: AsyncioVisaDoor) -> None:
        try:
            await meter.query("SLOW? a,0.1", 30)
        except asyncio.CancelledError:
            raise VendorError("no room on the disk") from None

    async def translates(meter: AsyncioVisaDoor) -> None:
        try:
            await meter.query("SLOW? b,0.1", 30)
        except asyncio.CancelledError as error:
            raise VendorError("aborted") from error

    await lab.spawn(replaces, meter=lab.meter)
    await lab.wait_for_command("SLOW? a,0.1")
    report = await lab.stop()
    assert (report.outcome, str(report.error)) == ("failed", "no room on the disk")
    await lab.manager.start_v2()
    await lab.spawn(translates, meter=lab.meter)
    await lab.wait_for_command("SLOW? b,0.1")
    report = await lab.stop()
    assert (report.outcome, report.error) == ("drained", None)


async def test_time_out_on_the_way_out_is_a_failure(lab: Lab) -> None:
    """asyncio raises it from a cancellation too, but not from that by which the program was told: what makes the
    instrument safe was not done, and the report must say so."""

    async def by_timeout(meter: AsyncioVisaDoor) -> None:
        try:
            await meter.query("SLOW? a,0.1", 30)
        finally:
            async with asyncio.timeout(0.05):
                await meter.query("SLOW? b,0.3")

    async def by_wait_for(meter: AsyncioVisaDoor) -> None:
        try:
            await meter.query("SLOW? a,0.1", 30)
        except asyncio.CancelledError:
            try:
                await asyncio.wait_for(meter.query("SLOW? b,0.3"), 0.05)
            except TimeoutError as error:
                raise VendorError("still on") from error

    for program, expected in ((by_timeout, TimeoutError), (by_wait_for, VendorError)):
        known = lab.commands().count("SLOW? a,0.1")
        await lab.spawn(program, meter=lab.meter)
        await lab.until(lambda known=known: lab.commands().count("SLOW? a,0.1") > known)
        report = await lab.stop()
        assert (report.outcome, type(report.error)) == ("failed", expected)
        await lab.manager.start_v2()


async def test_group_of_which_all_was_raised_from_the_cancellation_is_no_failure(lab: Lab) -> None:
    """Tasks of a group that translate their cancellation; one with an error of its own is a failure all the same."""

    async def translate() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError as error:
            raise VendorError("aborted") from error

    async def replace() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            raise VendorError("no room on the disk") from None

    async def program(*work: Any) -> None:
        async with asyncio.TaskGroup() as group:
            for task in work:
                group.create_task(task())
            lab.notes.append("begun")

    for work, expected in (((translate, translate), "drained"), ((translate, replace), "failed")):
        lab.notes.clear()
        await lab.manager.v2.spawn_asyncio(program, *work, name="new")
        await lab.until(lambda: lab.notes)
        await trio.sleep(0.05)
        assert (await lab.stop()).outcome == expected
        await lab.manager.start_v2()


async def test_error_that_was_raised_from_itself_is_a_failure_like_another(lab: Lab) -> None:
    """``raise error from error`` makes a circle of causes, in which the event loop of the lab must not go round."""

    async def program() -> None:
        try:
            raise VendorError("no light")
        except VendorError as error:
            raise error from error

    member = await lab.spawn(program)
    with trio.fail_after(5):
        await member.done.wait()
    assert (member.outcome, str(member.error)) == ("failed", "no light")


async def test_program_that_failed_is_started_again(lab: Lab) -> None:
    """By its policy, with a loop and doors of its own each time."""

    async def program(meter: AsyncioVisaDoor) -> None:
        lab.notes.append((asyncio.get_running_loop(), await meter.query("*OPC?")))
        if len(lab.notes) < 3:
            raise VendorError("not yet")
        await asyncio.sleep(60)

    member = await lab.spawn(program, meter=lab.meter, supervision=Supervision(restart="on_failure"))
    await lab.until(lambda: len(lab.notes) == 3)
    assert (member.restarts, type(member.error)) == (2, VendorError)
    assert len({id(loop) for loop, _ in lab.notes}) == 3
    assert all(loop.is_closed() for loop, _ in lab.notes[:2])


async def test_what_hangs_is_named_by_the_line_of_the_program(lab: Lab) -> None:
    """An event loop that waits hides in the selector; a check of health says where the program waits."""

    async def program() -> None:
        await asyncio.sleep(60)

    member = await lab.spawn(program, supervision=Supervision(heartbeat=0.1))
    await lab.until(lambda: member.is_hung)
    line = program.__code__.co_firstlineno + 1
    assert f"it is at program ({__file__}:{line})" in (member.trouble() or "")


async def test_wrong_kind_of_function_is_refused(lab: Lab) -> None:
    """A blocking function has no place in asyncio, and `spawn_thread` says where an async one may belong."""
    side: Any = lab.manager.v2
    with pytest.raises(TypeError, match="use spawn_thread for it"):
        await side.spawn_asyncio(time.sleep, 1)
    with pytest.raises(TypeError, match="or spawn_asyncio if it is written for asyncio"):
        await side.spawn_thread(asyncio.sleep, 1)
    assert side.stage.members == {}


# --- what it leaves behind --------------------------------------------------------------------------------------------


async def test_many_lives_leave_nothing_behind(lab: Lab) -> None:
    """No thread, no descriptor, no task and no claim, by what the kernel and the garbage collector say."""

    async def child(meter: AsyncioVisaDoor) -> None:
        await meter.query("*OPC?")
        await asyncio.sleep(60)

    async def program(stage: AsyncioSerialDoor, meter: AsyncioVisaDoor) -> None:
        task = asyncio.create_task(child(meter))
        await stage.query(b"ECHO a")
        lab.notes.append("asked")
        await asyncio.sleep(60)
        await task

    def left() -> tuple[int, int, int]:
        return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")), len(tasks(done=False))

    def tasks(*, done: bool) -> list[object]:
        gc.collect()
        return [one for one in gc.get_objects() if isinstance(one, asyncio.Task) and one.done() is done]

    await lab.spawn(program, stage=lab.port, meter=lab.meter)
    await lab.until(lambda: len(lab.notes) == 1)
    before = left()
    for number in range(1, LIVES):
        await lab.manager.restart_actor("new")
        await lab.until(lambda number=number: len(lab.notes) == number + 1)
    print(f"threads, descriptors, tasks: before {before}, after {LIVES} lives {left()}")
    assert left() == before
    assert len(tasks(done=True)) < 100  # some live on in alarms that were cleared, until these are swept out
    await lab.stop()
    assert left() == (before[0] - 1, before[1] - 3, 0)  # its loop has two sockets and a selector
    async with lab.port.acquire("trio"):
        pass


def test_thread_that_is_not_the_main_one_leaves_signals_alone(tmp_path: Path) -> None:
    """While a program runs, SIGINT is handled as it was before."""
    seen: list[Any] = []

    async def program() -> None:
        seen.append(signal.getsignal(signal.SIGINT))

    async def main() -> None:
        config = DualConfig(v2=SubsystemConfig(), recording=RecordingConfig(enabled=False))
        async with DualRuntimeManager(config) as manager:
            await manager.start()
            seen.append(signal.getsignal(signal.SIGINT))
            member = await manager.v2.spawn_asyncio(program)
            await member.done.wait()
            seen.append(signal.getsignal(signal.SIGINT))

    trio.run(main)
    assert len(seen) == 3
    assert len(set(seen)) == 1


# --- from a file ------------------------------------------------------------------------------------------------------

PROGRAMS = '''
import asyncio
import time


async def sweep(visa, context, period):
    """Written for asyncio."""
    try:
        while True:
            await context.publish("voltage", float(await visa.query("MEAS:VOLT?")), "V")
            await asyncio.sleep(period)
    finally:
        await visa.write("OUTP OFF")


async def block(visa):
    await visa.query("*IDN?")
    time.sleep(30)
'''

FILE = """
[application]
shutdown_timeout = 4.0

[visa.meter]
resource = "{resource}"

[recording]
enabled = false

[v2]
stop_timeout = 1.0

[[v2.programs]]
id = "old"
driver = "my_programs:{program}"
kind = "asyncio"
visa = "meter"
{options}
"""


def trio_daq(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "trio_daq", *arguments]


@pytest.mark.parametrize(
    ("program", "options", "waits_for", "code"),
    [("sweep", "options = { period = 0.01 }", "MEAS:VOLT?", 130), ("block", "", "*IDN?", 130)],
)
async def test_run_of_a_file_with_an_asyncio_program(
    tmp_path: Path, program: str, options: str, waits_for: str, code: int
) -> None:
    """`check` knows it, `run` runs it, and Ctrl-C ends the process in time: after the program's way out, or with a loop
    that blocks for half a minute left behind by name."""
    (tmp_path / "my_programs.py").write_text(PROGRAMS)
    async with open_simulated_lab(tmp_path / "log.jsonl", stage=None) as simulated:
        file = tmp_path / "lab.toml"
        file.write_text(FILE.format(resource=simulated.meter_resource, program=program, options=options))
        checked = await trio.run_process(trio_daq("check", str(file)), capture_stdout=True)
        assert f"v2.old: asyncio my_programs:{program}" in checked.stdout.decode()

        def commands() -> list[str]:
            return [entry.text for entry in read_log(tmp_path / "log.jsonl") if entry.event == "command"]

        process = subprocess.Popen(  # noqa: ASYNC220 - it takes no time worth while
            trio_daq("run", str(file)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            with trio.fail_after(20):
                while waits_for not in commands():  # noqa: ASYNC110
                    await trio.sleep(0.05)
            await trio.sleep(0.1)
            asked_at = time.monotonic()
            process.send_signal(signal.SIGINT)
            told, _ = await trio.to_thread.run_sync(process.communicate, None, 20)
        finally:
            process.kill()
            process.wait()
        seconds = time.monotonic() - asked_at
        assert process.returncode == code, told
        if program == "sweep":
            assert commands()[-1] == "OUTP OFF"
            assert "drained" in told
        else:
            assert "left threads: old #1" in told
        assert seconds < 7
