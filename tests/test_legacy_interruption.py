"""The stop of blocking functions in real threads, judged by the log of simulated instruments."""

import asyncio
import functools
import random
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from trio_daq.config import DualConfig, RecordingConfig, SubsystemConfig
from trio_daq.errors import DoorClosedError, DoorInterruptedError
from trio_daq.legacy import DoorHost, SerialDoor, ThreadContext, VisaDoor
from trio_daq.lifecycle import DualRuntimeManager
from trio_daq.lifecycle.report import MemberReport
from trio_daq.serialport import SerialPortConfig
from trio_daq.sim import open_simulated_lab, read_log
from trio_daq.visa import VisaSessionConfig

_PROMPT = 0.25
"""Seconds within which a call in flight is interrupted."""


@attrs.define
class Lab:
    """A running lab with a stage and a meter, and what its threads noted."""

    manager: DualRuntimeManager
    log: Path
    notes: list[Any] = attrs.field(factory=list)
    asked_at: float = 0.0

    async def spawn(self, script: Callable[..., object], **kwargs: Any) -> None:
        await self.manager.v2.spawn_thread(script, name="old", **kwargs)

    async def stop(self) -> MemberReport:
        self.asked_at = time.monotonic()
        report = await self.manager.stop_v2()
        return next(member for member in report.members if member.name == "old")

    def commands(self) -> list[str]:
        return [entry.text for entry in read_log(self.log) if entry.event == "command"]

    async def wait_for_command(self, text: str) -> None:
        with trio.fail_after(5):
            while text not in self.commands():  # noqa: ASYNC110 - the log is another process's
                await trio.sleep(0.005)


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    """Two simulated instruments, and V2 members with a second to stop."""
    log = tmp_path / "log.jsonl"
    async with open_simulated_lab(log) as simulated:
        config = DualConfig(
            serial={"stage": SerialPortConfig(path=simulated.stage_path, read_terminator=b"\r\n", quiet_time=0.05)},
            visa={"meter": VisaSessionConfig(resource=simulated.meter_resource)},
            v2=SubsystemConfig(stop_timeout=1.0),
            recording=RecordingConfig(enabled=False),
        )
        async with DualRuntimeManager(config) as manager:
            await manager.start()
            yield Lab(manager, log)


# --- the call in flight, or the next one ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["serial query", "read in a sequence", "visa query", "command in a transaction"])
async def test_call_in_flight_is_interrupted_and_the_way_out_reaches_the_instrument(lab: Lab, kind: str) -> None:
    """Within 250 ms the thread has its error, and what its ``finally`` sends is carried out after that."""
    stage, meter = lab.manager.serial["stage"], lab.manager.visa["meter"]

    def noting(call: Callable[[], object]) -> None:
        try:
            call()
        except DoorInterruptedError as error:
            lab.notes += [time.monotonic(), error.sent]
            raise

    def serial_query(door: SerialDoor) -> None:
        try:
            noting(lambda: door.query(b"SLOW? a 0.4", 30))
        finally:
            with door.exclusive() as line:
                line.write_only(b"SHUT 0\n")

    def sequence(door: SerialDoor) -> None:
        with door.exclusive() as line:
            try:
                line.write_all(b"SLOW? a 0.4\n")
                noting(lambda: line.read_until(timeout=30))
            finally:
                line.write_only(b"SHUT 0\n")

    def visa_query(door: VisaDoor) -> None:
        try:
            noting(lambda: door.query("SLOW? a,0.4", 30))
        finally:
            door.write("*RST")

    def transaction(door: VisaDoor) -> None:
        with door.transaction() as visa:
            try:
                noting(lambda: visa.query("SLOW? a,0.4", 30))
            finally:
                visa.write("*RST")

    script, line, slow, last = {
        "serial query": (serial_query, stage, "SLOW? a 0.4", "SHUT 0"),
        "read in a sequence": (sequence, stage, "SLOW? a 0.4", "SHUT 0"),
        "visa query": (visa_query, meter, "SLOW? a,0.4", "*RST"),
        "command in a transaction": (transaction, meter, "SLOW? a,0.4", "*RST"),
    }[kind]
    await lab.spawn(script, door=line)
    await lab.wait_for_command(slow)
    report = await lab.stop()
    told_at, sent = lab.notes
    assert told_at - lab.asked_at < _PROMPT
    # Between the write and the read of a sequence there is no call in flight, and the read itself sends nothing.
    assert sent == "unknown" or (sent == "no" and kind == "read in a sequence")
    assert (report.outcome, report.error, report.abandoned_threads) == ("drained", None, ())
    with trio.fail_after(2):
        await lab.wait_for_command(last)
    assert lab.commands()[-1] == last


async def test_wait_for_a_port_is_interrupted(lab: Lab) -> None:
    """A thread that stands in line leaves it, has sent nothing, and the port is nobody's after its holder."""
    port = lab.manager.serial["stage"]

    def script(door: SerialDoor) -> None:
        try:
            door.query(b"ECHO never")
        except DoorInterruptedError as error:
            lab.notes += [time.monotonic(), error.sent]

    async with port.acquire("new", timeout=5):
        await lab.spawn(script, door=port)
        with trio.fail_after(5):
            while port.statistics().lease.waiting != ("old",):  # noqa: ASYNC110
                await trio.sleep(0.005)
        report = await lab.stop()
    assert lab.notes[0] - lab.asked_at < _PROMPT
    assert (lab.notes[1], report.outcome) == ("no", "drained")
    assert port.current_owner() is None
    assert "ECHO never" not in lab.commands()


async def test_next_call_is_interrupted_once(lab: Lab) -> None:
    """A thread that was at no call is told by its next one, which is not sent; the calls after that are served."""
    release = threading.Event()

    def script(door: SerialDoor) -> None:
        release.wait(5)
        for number in range(3):
            try:
                lab.notes.append(door.query(b"ECHO %d" % number))
            except DoorInterruptedError as error:
                lab.notes.append(error.sent)

    await lab.spawn(script, door=lab.manager.serial["stage"])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lab.stop)
        await trio.sleep(0.05)
        release.set()
    assert lab.notes == ["no", b"1", b"2"]
    assert "ECHO 0" not in lab.commands()


@pytest.mark.parametrize("kind", ["serial", "serial all", "visa", "transaction"])
async def test_what_a_thread_writes_reaches_the_instrument_before_it_is_interrupted(lab: Lab, kind: str) -> None:
    """A program that ends by itself just when its member is to stop, and begins its clean-up by writing: it is told
    by that very call, after the write."""
    release = threading.Event()

    def script(stage: SerialDoor, meter: VisaDoor) -> None:
        release.wait(5)
        try:
            match kind:
                case "serial":
                    with stage.exclusive() as line:
                        line.write_only(b"SHUT 0\n")
                case "serial all":
                    with stage.exclusive() as line:
                        line.write_all(b"SHUT 0\n")
                case "visa":
                    meter.write("*RST")
                case "transaction":
                    with meter.transaction() as transaction:
                        transaction.write("*RST")
        except DoorInterruptedError as error:
            lab.notes.append(error.sent)

    await lab.spawn(script, stage=lab.manager.serial["stage"], meter=lab.manager.visa["meter"])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lab.stop)
        await trio.sleep(0.05)
        release.set()
    assert lab.notes == ["yes"]
    await lab.wait_for_command("SHUT 0" if kind.startswith("serial") else "*RST")


async def test_leaving_a_block_is_no_call(lab: Lab) -> None:
    """A thread that gives its port back during the stop gives it back, and is told by its next call."""
    entered, release = threading.Event(), threading.Event()

    def script(door: SerialDoor) -> None:
        with door.exclusive():
            entered.set()
            release.wait(5)
        try:
            door.query(b"ECHO never")
        except DoorInterruptedError:
            lab.notes.append("interrupted")

    port = lab.manager.serial["stage"]
    await lab.spawn(script, door=port)
    assert await trio.to_thread.run_sync(entered.wait, 5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lab.stop)
        await trio.sleep(0.05)
        release.set()
    assert lab.notes == ["interrupted"]
    assert port.current_owner() is None


async def test_doors_close_after_the_stop_timeout(lab: Lab) -> None:
    """A thread that goes on and on is served for its stop_timeout, and then finds its doors closed for good."""

    def script(door: SerialDoor) -> None:
        while True:
            try:
                door.query(b"ECHO x")
            except DoorInterruptedError:
                lab.notes.append("interrupted")
            except DoorClosedError:
                lab.notes += ["closed", time.monotonic()]
                return

    await lab.spawn(script, door=lab.manager.serial["stage"])
    await lab.wait_for_command("ECHO x")
    report = await lab.stop()
    assert lab.notes[:2] == ["interrupted", "closed"], report
    assert 0.95 < lab.notes[2] - lab.asked_at < 1.4
    assert (report.outcome, report.abandoned_threads) == ("cancelled", ())


async def test_thread_that_has_seen_stopping_is_not_interrupted(lab: Lab) -> None:
    """It knows, so each call that it makes on its way out is carried out."""

    def script(door: SerialDoor, context: ThreadContext) -> None:
        while not context.stopping.is_set():
            time.sleep(0.005)
        lab.notes.append(door.query(b"ECHO parked"))

    await lab.spawn(script, door=lab.manager.serial["stage"])
    report = await lab.stop()
    assert (lab.notes, report.outcome) == ([b"parked"], "drained")


async def test_thread_that_looks_at_no_event_is_interrupted_though_it_has_a_context(lab: Lab) -> None:
    """A context alone changes nothing: the call in flight raises."""

    def script(door: VisaDoor, context: ThreadContext) -> None:
        try:
            door.query("SLOW? a,0.3", 30)
        except DoorInterruptedError:
            lab.notes.append(context.stopping.is_set())

    await lab.spawn(script, door=lab.manager.visa["meter"])
    await lab.wait_for_command("SLOW? a,0.3")
    await lab.stop()
    assert lab.notes == [True]


async def test_failure_on_the_way_out_is_a_failure(lab: Lab) -> None:
    """An error that the script raises instead of the interruption is reported; one raised from it is not."""

    def fail(door: VisaDoor) -> None:
        try:
            door.query("SLOW? a,0.1", 30)
        except DoorInterruptedError:
            raise OSError("no room on the disk") from None

    def translate(door: VisaDoor) -> None:
        try:
            door.query("SLOW? b,0.1", 30)
        except DoorInterruptedError as error:
            raise OSError("aborted") from error

    await lab.spawn(fail, door=lab.manager.visa["meter"])
    await lab.wait_for_command("SLOW? a,0.1")
    report = await lab.stop()
    assert (report.outcome, str(report.error)) == ("failed", "no room on the disk")
    await lab.manager.start_v2()
    await lab.spawn(translate, door=lab.manager.visa["meter"])
    await lab.wait_for_command("SLOW? b,0.1")
    report = await lab.stop()
    assert (report.outcome, report.error) == ("drained", None)


async def test_group_of_nothing_but_interruptions_is_no_failure(lab: Lab) -> None:
    """As it comes out of a `TaskGroup`, when a script runs asyncio by itself and makes a blocking call in it."""

    async def ask(door: VisaDoor) -> None:
        door.query("SLOW? a,0.1", 30)

    async def ask_in_group(door: VisaDoor) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(ask(door))

    def script(door: VisaDoor) -> None:
        asyncio.run(ask_in_group(door))

    await lab.spawn(script, door=lab.manager.visa["meter"])
    await lab.wait_for_command("SLOW? a,0.1")
    report = await lab.stop()
    assert (report.outcome, report.error) == ("drained", None)


# --- again and again, at any moment -----------------------------------------------------------------------------------


def ask_until_told(door: VisaDoor, notes: list[Any]) -> None:
    try:
        while True:
            door.query("MEAS:VOLT?")
    except DoorInterruptedError:
        notes.append("interrupted")
    finally:
        door.write("OUTP OFF")


def ask_with_pauses(door: VisaDoor, context: ThreadContext, notes: list[Any]) -> None:
    try:
        while not context.wait_stopping(0.02):
            door.query("MEAS:VOLT?")
    except DoorInterruptedError:
        notes.append("interrupted")
    finally:
        door.write("OUTP OFF")


def shut_after_a_sequence(door: SerialDoor, notes: list[Any]) -> None:
    try:
        while True:
            with door.exclusive() as line:
                line.write_only(b"SHUT 1\n")
                line.query(b"POS?")
    except DoorInterruptedError:
        notes.append("interrupted")
    finally:
        with door.exclusive() as line:
            line.write_only(b"SHUT 0\n")


@pytest.mark.parametrize("kind", ["visa", "visa with pauses", "serial sequence"])
async def test_instrument_is_off_after_each_of_ten_stops(lab: Lab, kind: str) -> None:
    """Whatever the moment, the last command in the instrument's log is that of ``finally``; nobody is told twice."""
    visa, serial = lab.manager.visa["meter"], lab.manager.serial["stage"]
    script, line, first, last = {
        "visa": (ask_until_told, visa, "MEAS:VOLT?", "OUTP OFF"),
        "visa with pauses": (ask_with_pauses, visa, "MEAS:VOLT?", "OUTP OFF"),
        "serial sequence": (shut_after_a_sequence, serial, "POS?", "SHUT 0"),
    }[kind]
    moments = random.Random(5)
    for number in range(1, 11):
        lab.notes.clear()
        seen = len(lab.commands())
        await lab.spawn(functools.partial(script, notes=lab.notes), door=line)
        with trio.fail_after(5):
            while first not in lab.commands()[seen:]:  # noqa: ASYNC110 - the log is another process's
                await trio.sleep(0.005)
        await trio.sleep(moments.uniform(0, 0.03))
        report = await lab.stop()
        assert time.monotonic() - lab.asked_at < 1.0
        assert (report.outcome, report.error) == ("drained", None)
        assert lab.notes == ["interrupted"] or (lab.notes == [] and kind == "visa with pauses")
        with trio.fail_after(5):
            while lab.commands().count(last) < number:  # noqa: ASYNC110
                await trio.sleep(0.005)
        assert lab.commands()[-1] == last
        await lab.manager.start_v2()
    assert lab.commands().count(last) == 10


# --- in the words of a library ----------------------------------------------------------------------------------------


async def test_door_class_says_by_which_error_its_threads_are_told(lab: Lab) -> None:
    """A door for a library interrupts by that library's error, once, in a call and in a block alike."""

    class Aborted(Exception):
        pass

    def abort(**facts: Any) -> Aborted:
        return Aborted(facts)

    class LibraryDoor(VisaDoor):
        interruption = abort

    def in_a_call(door: VisaDoor) -> None:
        door.query("SLOW? a,0.3", 30)

    def in_a_block(door: VisaDoor) -> None:
        with door.transaction() as meter:
            meter.query("SLOW? b,0.3", 30)

    def script(ask: Callable[[VisaDoor], None], door: VisaDoor) -> None:
        try:
            ask(door)
        except Aborted as error:
            lab.notes += [error, door.query("*OPC?")]

    session = lab.manager.visa["meter"]

    async def stop_in(ask: Callable[[VisaDoor], None], slow: str) -> None:
        host = DoorHost("old")
        thread = threading.Thread(target=script, args=(ask, LibraryDoor(host, session)))
        async with trio.open_nursery() as nursery:
            await nursery.start(host.serve)
            thread.start()
            await lab.wait_for_command(slow)
            host.interrupt()
            await trio.to_thread.run_sync(thread.join, 5)
            nursery.cancel_scope.cancel()
        error, served = lab.notes[-2:]
        assert error.args == ({"resource": session.resource, "owner": "old", "sent": "unknown"},)
        assert served == "1"
        assert host.has_caused(error)
        assert not host.has_caused(Aborted())

    await stop_in(in_a_call, "SLOW? a,0.3")
    await stop_in(in_a_block, "SLOW? b,0.3")
    assert len(lab.notes) == 4


# --- threads that a script starts itself ------------------------------------------------------------------------------


async def test_each_thread_of_a_script_is_told_and_may_clean_up(lab: Lab) -> None:
    """Helpers own lines as the member, each is told once, and the doors serve until they ended, be it after main."""

    def helper(door: VisaDoor) -> None:
        try:
            while True:
                door.query("*OPC?")
        except DoorInterruptedError:
            time.sleep(0.2)
            door.write("*RST")
            lab.notes.append(threading.current_thread().name)

    def script(door: VisaDoor) -> None:
        for number in range(2):
            threading.Thread(target=helper, args=(door,), name=f"helper {number}").start()
        while True:
            door.query("*IDN?")

    meter = lab.manager.visa["meter"]
    await lab.spawn(script, door=meter)
    await lab.wait_for_command("*IDN?")
    await lab.wait_for_command("*OPC?")
    report = await lab.stop()
    assert sorted(lab.notes) == ["helper 0", "helper 1"]
    assert set(meter.statistics().executed) == {"old"}
    assert (report.outcome, report.abandoned_threads) == ("drained", ())
    with trio.move_on_after(2):  # they are not answered, so they are in the log a moment later
        while lab.commands()[-2:] != ["*RST", "*RST"]:  # noqa: ASYNC110
            await trio.sleep(0.01)
    assert lab.commands()[-2:] == ["*RST", "*RST"]


async def test_thread_of_a_script_that_stays_is_listed(lab: Lab) -> None:
    """A helper that hangs outlasts stop_timeout, is named in the report, and holds nothing up."""
    served, release, done = threading.Event(), threading.Event(), threading.Event()

    def helper(door: VisaDoor) -> None:
        door.query("*OPC?")
        served.set()
        release.wait(10)
        try:
            door.write("*RST")
        except DoorClosedError as error:
            lab.notes.append(type(error))
        done.set()

    def script(door: VisaDoor) -> None:
        threading.Thread(target=helper, args=(door,), name="straggler").start()
        served.wait(5)
        door.query("SLOW? a,2", 30)

    await lab.spawn(script, door=lab.manager.visa["meter"])
    await lab.wait_for_command("SLOW? a,2")
    report = await lab.stop()
    assert report.abandoned_threads == ("straggler",)
    assert time.monotonic() - lab.asked_at < 2.5
    release.set()
    assert await trio.to_thread.run_sync(done.wait, 5)
    assert lab.notes == [DoorClosedError]
    assert "*RST" not in lab.commands()


async def test_thread_that_is_started_to_clean_up_is_served(lab: Lab) -> None:
    """Threads born after the stop was asked for are not interrupted."""

    def script(door: VisaDoor) -> None:
        try:
            door.query("SLOW? a,0.1", 30)
        finally:
            thread = threading.Thread(target=lambda: lab.notes.append(door.query("*OPC?")))
            thread.start()
            thread.join(5)

    await lab.spawn(script, door=lab.manager.visa["meter"])
    await lab.wait_for_command("SLOW? a,0.1")
    await lab.stop()
    assert lab.notes == ["1"]


# --- the wrong kind of function ---------------------------------------------------------------------------------------


async def test_wrong_kind_of_function_is_refused(lab: Lab) -> None:
    """An async function has no place in a thread, a blocking one none in the event loop; each error names the cure."""

    class Driver:
        async def __call__(self) -> None: ...

    side: Any = lab.manager.v2
    for target in (trio.sleep_forever, Driver()):
        with pytest.raises(TypeError, match="use spawn for it"):
            await side.spawn_thread(target, name="old")
    with pytest.raises(TypeError, match="use spawn_thread for it"):
        await side.spawn(time.sleep, 1)
    assert lab.manager.v2.stage.members == {}
