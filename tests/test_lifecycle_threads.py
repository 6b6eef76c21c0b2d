"""Blocking functions as members, in real threads and real time: how they are asked, and what they leave behind."""

import threading
import time
from collections.abc import Iterator

import pytest
import trio

from trio_daq.config import DualConfig, RecordingConfig, SubsystemConfig
from trio_daq.errors import DoorClosedError
from trio_daq.legacy import SerialDoor, ThreadContext, VisaDoor
from trio_daq.lifecycle import DualRuntimeManager
from trio_daq.serialport import SerialPortConfig, SharedSerialPort
from trio_daq.visa import VisaSessionManager


def lab() -> DualRuntimeManager:
    """A lab of old programs only."""
    return DualRuntimeManager(
        DualConfig(v2=SubsystemConfig(stop_timeout=2.0), recording=RecordingConfig(enabled=False))
    )


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Lets hung threads go at the end of the test."""
    event = threading.Event()
    yield event
    event.set()


async def test_a_thread_with_a_context_is_asked_and_drained():
    """It sees that it is to stop at once, ends in its own way, and its last readings are published."""
    seen = []

    def scan(context: ThreadContext) -> None:
        while not context.wait_stopping(10):
            pass
        seen.append(threading.current_thread().name)
        context.publish("position", 12.5, "mm")

    async with lab() as manager:
        await manager.start()
        with manager.distributor.subscribe("test") as subscription:
            await manager.v2.spawn_thread(scan)
            report = await manager.shutdown(5)
            [reading] = subscription.receive_nowait()
    assert (reading.instrument, reading.value) == ("scan", 12.5)
    assert [(one.outcome, one.abandoned_threads) for one in report.stages[0].members] == []
    assert [(one.outcome, one.abandoned_threads) for one in report.stages[1].members] == [("drained", ())]
    assert "scan" in seen[0]
    assert report.seconds < 1


async def test_a_thread_without_a_context_finds_its_door_closed(release):
    """Its next call through a door raises DoorClosedError in the thread, and nothing is sent."""
    raised = []
    begun = trio.Event()

    def scan(port: SerialDoor) -> None:
        trio.from_thread.run_sync(begun.set, trio_token=token)
        release.wait()
        try:
            port.query(b"POS?")
        except DoorClosedError as error:
            raised.append(error)

    token = trio.lowlevel.current_trio_token()
    async with lab() as manager:
        await manager.start()
        await manager.v2.spawn_thread(scan, SharedSerialPort(SerialPortConfig(path="/dev/none")))
        await begun.wait()
        report = await manager.shutdown(5)
    [member] = report.stages[1].members
    assert member.outcome == "cancelled"
    [thread] = [one for one in threading.enumerate() if one.name in member.abandoned_threads]
    release.set()
    await trio.to_thread.run_sync(thread.join, 5)
    assert [(error.owner, error.resource, error.sent) for error in raised] == [("scan", "/dev/none", "no")]


async def test_a_hung_thread_is_left_behind_by_name(release):
    """The stop returns in time all the same; report and printed table name the thread."""

    def hang(context: ThreadContext) -> None:
        release.wait()

    async with lab() as manager:
        await manager.start()
        await manager.v2.spawn_thread(hang)
        begin = time.monotonic()
        report = await manager.shutdown(3.2)
        assert time.monotonic() - begin < 3.2
    [member] = report.stages[1].members
    assert member.outcome == "cancelled"
    [name] = member.abandoned_threads
    assert name in [thread.name for thread in threading.enumerate()]
    assert f"left threads: {name}" in str(report)


async def test_what_a_thread_gets_is_a_door():
    """Ports and sessions among the arguments become doors, also inside of a tuple; all else passes as it is."""
    got = []

    def look(ports: object, session: object, *, number: int) -> None:
        got.extend([ports, session, number])

    port = SharedSerialPort(SerialPortConfig(path="/dev/none"))
    async with lab() as manager:
        await manager.start()
        session = VisaSessionManager("TCPIP::127.0.0.1::1::SOCKET")
        await manager.v2.spawn_thread(look, (port, port), session=session, number=3)
        await manager.wait_all_ended()
    (first, second), door, number = got
    assert isinstance(first, SerialDoor)
    assert isinstance(second, SerialDoor)
    assert isinstance(door, VisaDoor)
    assert number == 3


async def test_a_program_that_ends_by_sys_exit_has_just_ended():
    """Old programs end by sys.exit(): with 0 it is an end, with another code a failure of that member alone."""

    def good() -> None:
        raise SystemExit

    def bad() -> None:
        raise SystemExit("no such sample")

    async with lab() as manager:
        await manager.start()
        await manager.v2.spawn_thread(good)
        await manager.v2.spawn_thread(bad)
        await manager.wait_all_ended()
        members = {one.name: one for one in manager.snapshot().members["v2"]}
        assert members["good"].outcome == "ended"
        assert members["bad"].outcome == "failed"
        assert "no such sample" in str(members["bad"].error)


async def run_with_bug() -> None:
    def buggy() -> None:
        raise TypeError("3 + 'volt'")

    async with lab() as manager:
        await manager.start()
        await manager.v2.spawn_thread(buggy)
        await trio.sleep_forever()


async def test_an_error_that_was_raised_from_itself_is_a_failure_like_another():
    """``raise error from error`` makes a circle of causes, in which the event loop of the lab must not go round."""

    def measure() -> None:
        try:
            float("no number")
        except ValueError as error:
            raise error from error

    async with lab() as manager:
        await manager.start()
        member = await manager.v2.spawn_thread(measure)
        with trio.fail_after(5):
            await member.done.wait()
        assert (member.outcome, type(member.error)) == ("failed", ValueError)


async def test_a_bug_in_a_thread_comes_out_of_the_block():
    """As with a task: everything is stopped, and the TypeError is raised bare."""
    with pytest.raises(TypeError, match="volt"):
        await run_with_bug()
