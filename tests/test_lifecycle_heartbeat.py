"""Members that hang without being dead, and members that only look as if they did.

`TRIO_DAQ_HEALTH_RUNS` is how many plans of traffic are tried; 30 where nothing is said.
"""

import functools
import inspect
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from trio_daq.actors import Actor, Message, handles
from trio_daq.config import DualConfig, MemberConfig, RecordingConfig, SubsystemConfig
from trio_daq.data import DataDistributor
from trio_daq.drivers import DriverContext
from trio_daq.errors import ExchangeTimeoutError, UnhealthyError
from trio_daq.legacy import SerialDoor, ThreadContext
from trio_daq.lifecycle import DualRuntimeManager, HealthEvent, Status, Supervision
from trio_daq.serialport import SerialPortConfig, SharedSerialPort
from trio_daq.sharing import acting_as
from trio_daq.sim import MemoryInstrument, MemoryLine, SimulatedMeter
from trio_daq.visa import VisaSessionConfig, VisaSessionManager

BEAT = 2.0
WATCHED = Supervision(heartbeat=BEAT)
THIS_FILE = Path(__file__).name


def lab(**tables: object) -> DualRuntimeManager:
    """A lab of both sides."""
    config: dict[str, object] = {"v2": SubsystemConfig(stop_timeout=1.0), "v4": SubsystemConfig(stop_timeout=1.0)}
    return DualRuntimeManager(DualConfig(recording=RecordingConfig(enabled=False), **(config | tables)))


async def seconds_until(manager: DualRuntimeManager, side: str, status: Status, limit: float = 60.0) -> float:
    """Wait until a side is *status*; return how long that took by Trio's clock."""
    begin = trio.current_time()
    with trio.fail_after(limit):
        await getattr(manager, side).wait_status(status)
    return trio.current_time() - begin


def received(events: trio.MemoryReceiveChannel[HealthEvent]) -> list[HealthEvent]:
    got = []
    while True:
        try:
            got.append(events.receive_nowait())
        except trio.WouldBlock:
            return got


def line_of(marker: str) -> int:
    """The number of the line of this file that ends with a comment."""
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.endswith(f"# {marker}"))


@attrs.frozen
class Work(Message[None]):
    """Takes as long as it says."""

    seconds: float


class Worker(Actor):
    """Does one thing at a time."""

    @handles(Work)
    async def work(self, message: Work) -> None:
        await trio.sleep(message.seconds)  # the worker works


# --- hung -------------------------------------------------------------------------------------------------------------


async def test_a_task_that_hangs_turns_its_side_to_error_and_back(autojump_clock):
    """Its side is in error within two heartbeats, and active again at its next sign of life, without anybody's help."""
    wake = trio.Event()

    async def hang(context: DriverContext) -> None:
        await wake.wait()  # it hangs here
        while not await context.wait_stopping(1.0):
            pass

    async with lab() as manager:
        await manager.start()
        member = await manager.v2.spawn(hang, name="meter", supervision=WATCHED)
        assert await seconds_until(manager, "v2", Status.ERROR) <= 2 * BEAT
        assert (manager.is_v2_healthy(), manager.is_v4_healthy(), member.done.is_set()) == (False, True, False)
        await trio.sleep(1.2)
        with pytest.raises(UnhealthyError) as caught:
            await manager.check_health()
        [problem] = caught.value.report.problems
        assert (problem.subject, problem.severity) == ("v2.meter", "error")
        assert problem.text.startswith("has shown no sign of life for 3.2 s; it is at hang (")
        assert f"{THIS_FILE}:{line_of('it hangs here')})" in problem.text
        assert "restart_actor('meter')" in problem.text
        wake.set()
        assert await seconds_until(manager, "v2", Status.ACTIVE) == 0
        assert (await manager.check_health()).status == "ok"
        await trio.sleep(10 * BEAT)
        assert manager.v2_status() is Status.ACTIVE
    mine = [event for event in manager.health_history() if event.subject == "v2.meter"]
    assert [event.severity for event in mine] == ["info", "error", "info"]
    assert [event.text.partition(" for")[0] for event in mine[1:]] == [
        "has shown no sign of life",
        "shows signs of life again",
    ]


async def test_an_actor_that_hangs_in_a_handler_turns_its_side_to_error_and_back(autojump_clock):
    """It is named with the line of the handler, however full its mailbox is, and is well when it goes on."""
    async with lab() as manager:
        await manager.start()
        ref = await manager.v4.spawn(Worker, supervision=WATCHED)
        await trio.sleep(10 * BEAT)  # it has nothing to do, which is no trouble
        assert manager.v4_status() is Status.ACTIVE
        await ref.tell(Work(7.0))
        await ref.tell(Work(0.5))
        assert BEAT <= await seconds_until(manager, "v4", Status.ERROR) <= 2 * BEAT
        [problem] = manager.v4.problems()
        assert problem.startswith("v4.Worker has shown no sign of life for 2.0 s; it is at work (")
        assert f"{THIS_FILE}:{line_of('the worker works')})" in problem
        assert await seconds_until(manager, "v4", Status.ACTIVE) == 7.0 - BEAT
        await trio.sleep(10 * BEAT)
        assert manager.v4_status() is Status.ACTIVE


async def test_a_hung_actor_is_restarted_and_its_side_is_active_again(autojump_clock):
    """What the problem says to do helps: the new life has no trouble, and is watched like the first."""
    async with lab() as manager:
        await manager.start()
        ref = await manager.v4.spawn(Worker, supervision=WATCHED)
        await ref.tell(Work(1000.0))
        await manager.v4.wait_status(Status.ERROR)
        await manager.restart_actor("Worker")
        assert manager.v4_status() is Status.ACTIVE
        await trio.sleep(10 * BEAT)
        assert (await manager.check_health()).status == "ok"
        await ref.tell(Work(1000.0))
        assert await seconds_until(manager, "v4", Status.ERROR) <= 2 * BEAT


async def test_a_hung_member_that_ends_leaves_its_side_well(autojump_clock):
    """It has ended by itself, without an error, so nothing is wrong any more."""

    async def slow() -> None:
        await trio.sleep(3 * BEAT)

    async with lab() as manager:
        await manager.start()
        member = await manager.v2.spawn(slow, supervision=WATCHED)
        await manager.v2.wait_status(Status.ERROR)
        await member.done.wait()
        assert manager.v2_status() is Status.ACTIVE
        assert (await manager.check_health()).status == "ok"


async def test_who_is_being_stopped_is_not_hung(autojump_clock):
    """From then on its stop_timeout bounds it, and the report says what became of it."""

    async def stubborn(context: DriverContext) -> None:
        await trio.sleep_forever()

    async with lab(v2=SubsystemConfig(stop_timeout=10 * BEAT)) as manager:
        await manager.start()
        await manager.v2.spawn(stubborn, supervision=WATCHED)
        await trio.sleep(BEAT / 2)
        await manager.stop_v2()
    assert [event.severity for event in manager.health_history() if "stubborn" in event.subject] == ["info"]


# --- in real threads, by the clock of the test ------------------------------------------------------------------------


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Lets hung threads go at the end of the test."""
    event = threading.Event()
    yield event
    event.set()


async def test_a_thread_that_hangs_in_code_of_its_own(release):
    """It is named with the line that the thread is at, not the one where the lab waits for it; then it recovers."""
    end = threading.Event()

    def scan(context: ThreadContext) -> None:
        for _ in range(5):
            time.sleep(0.1)
            context.beat()
        silent_since.append(time.monotonic())
        release.wait()  # the thread hangs here
        while not end.wait(0.05):
            context.beat()

    silent_since: list[float] = []
    async with lab() as manager:
        await manager.start()
        await manager.v2.spawn_thread(scan, supervision=Supervision(heartbeat=0.4))
        with trio.fail_after(5):
            await manager.v2.wait_status(Status.ERROR)
        silence = time.monotonic() - silent_since[0]
        assert 0.3 < silence < 0.8, "within two heartbeats, and not while it beat"
        [problem] = manager.v2.problems()
        assert f"it is at scan ({__file__}:{line_of('the thread hangs here')});" in problem
        release.set()
        with trio.fail_after(5):
            await manager.v2.wait_status(Status.ACTIVE)
        await trio.sleep(0.6)
        assert manager.v2_status() is Status.ACTIVE
        end.set()


async def test_a_thread_that_waits_for_an_instrument_that_never_replies():
    """It shows where it called and what it called; once the call has ended, and it goes on, it is well."""

    def scan(port: SerialDoor, context: ThreadContext) -> None:
        for _ in range(7):
            time.sleep(0.1)
            with port.exclusive() as held:
                held.write_only(b"MOVE 1\r\n")
        asked_at.append(time.monotonic())
        with pytest.raises(TimeoutError):
            port.query(b"POS?", timeout=1.2)  # no reply
        while not context.wait_stopping(0.1):
            with port.exclusive() as held:
                held.write_only(b"MOVE 1\r\n")

    asked_at: list[float] = []
    instrument, line = os.openpty()
    stage = SerialPortConfig(path=os.ttyname(line), read_terminator="\r\n", quiet_time=0.1)
    async with lab(serial={"stage": stage}) as manager:
        await manager.start()
        await manager.v2.spawn_thread(scan, manager.serial["stage"], supervision=Supervision(heartbeat=0.5))
        with trio.fail_after(10):
            await manager.v2.wait_status(Status.ERROR)
        assert time.monotonic() - asked_at[0] < 1.0
        [problem] = manager.v2.problems()
        assert f"scan ({__file__}:{line_of('no reply')}), in query (" in problem
        assert "serial_door.py:" in problem
        with trio.fail_after(10):
            await manager.v2.wait_status(Status.ACTIVE)
        await trio.sleep(0.7)
        assert manager.v2_status() is Status.ACTIVE
    os.close(instrument)
    os.close(line)


# --- busy -------------------------------------------------------------------------------------------------------------


def test_a_member_with_traffic_never_hangs():
    """Whatever counts as a sign of life, at intervals shorter than the heartbeat, keeps its side active all the time.

    An interval that is longer turns it to error. The oracle adds up the pauses itself.
    """

    @settings(max_examples=int(os.environ.get("TRIO_DAQ_HEALTH_RUNS", "30")), deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["acquire", "query", "visa", "publish", "beat", "stopping"]),
                st.one_of(st.floats(0.01, 0.95 * BEAT), st.floats(1.05 * BEAT, 1.5 * BEAT)),
            ),
            min_size=1,
            max_size=12,
        )
    )
    def check(plan: list[tuple[str, float]]) -> None:
        trio.run(functools.partial(main, plan), clock=MockClock(autojump_threshold=0))

    async def main(plan: list[tuple[str, float]]) -> None:
        port = SharedSerialPort(SerialPortConfig(path="memory", quiet_time=0.01), MemoryLine().open_stream)

        async def drive(session: VisaSessionManager, context: DriverContext) -> None:
            for verb, pause in plan:
                if verb == "acquire":
                    async with port.acquire("somebody else's name"):
                        pass
                elif verb == "query":
                    async with port.acquire() as guard:
                        await guard.write_only(b"hello\n")
                elif verb == "visa":
                    await session.write("CONF", owner="another name")
                elif verb == "publish":
                    await context.publish("voltage", 1.0)
                elif verb == "beat":
                    context.beat()
                else:
                    await context.wait_stopping(0)
                await trio.sleep(pause)

        meter = MemoryInstrument(SimulatedMeter())
        async with trio.open_nursery() as nursery, lab() as manager:
            nursery.start_soon(meter.serve)
            await manager.start()
            config = VisaSessionConfig(resource="TCPIP::memory::5025::SOCKET")
            async with port, VisaSessionManager(config, make_transport=meter.connect) as session:
                with manager.watch_health() as events:
                    member = await manager.v2.spawn(drive, session, supervision=WATCHED)
                    await member.done.wait()
                    assert member.error is None
                    silences = [event for event in received(events) if event.severity == "error"]
            nursery.cancel_scope.cancel()
        assert len(silences) == sum(pause > BEAT for _, pause in plan)

    check()


LONG = 0.9 * BEAT
"""Seconds from one sign of life to the next, of each of the operations below."""


async def hold_and_listen(port: SharedSerialPort) -> None:
    """A guard that is kept for long, and an exchange that takes long."""
    async with port.acquire() as guard:
        await trio.sleep(LONG)
        with pytest.raises(ExchangeTimeoutError):
            await guard.read(1, timeout=LONG)
        await trio.sleep(LONG)


async def wait_in_line(port: SharedSerialPort) -> None:
    """A port that another has for long."""

    async def have() -> None:
        async with port.acquire("other"):
            await trio.sleep(LONG)

    async with trio.open_nursery() as nursery:
        await trio.sleep(LONG)
        nursery.start_soon(have)
        await trio.testing.wait_all_tasks_blocked()
        async with port.acquire(timeout=2 * LONG):
            pass
        await trio.sleep(LONG)


async def ask(session: VisaSessionManager) -> None:
    """A command that takes long."""
    await trio.sleep(LONG)
    await session.query("*IDN?", timeout=2 * LONG)
    await trio.sleep(LONG)


async def publish(distributor: DataDistributor, context: DriverContext) -> None:
    """A reading that waits for long, since a subscriber lags behind."""
    with distributor.subscribe("slow", policy="block", capacity=1) as slow:
        await context.publish("voltage", 1.0)
        await trio.sleep(LONG)
        async with trio.open_nursery() as nursery:

            async def take() -> None:
                await trio.sleep(LONG)
                slow.receive_nowait()

            nursery.start_soon(take)
            await context.publish("voltage", 2.0, timeout=2 * LONG)
        await trio.sleep(LONG)


async def wait_stopping(context: DriverContext) -> None:
    """A pause."""
    await trio.sleep(LONG)
    await context.wait_stopping(LONG)
    await trio.sleep(LONG)


@pytest.mark.parametrize("operation", [hold_and_listen, wait_in_line, ask, publish, wait_stopping])
async def test_the_beginning_and_the_end_are_signs_of_life(operation, autojump_clock):
    """What takes nearly a heartbeat, nearly a heartbeat after what was before, is in order; and so is what follows."""
    port = SharedSerialPort(SerialPortConfig(path="memory", quiet_time=0.01), MemoryLine().open_stream)
    meter = MemoryInstrument(SimulatedMeter())
    meter.slow_by = LONG
    config = VisaSessionConfig(resource="TCPIP::memory::5025::SOCKET", timeout=5 * BEAT)
    async with trio.open_nursery() as nursery, lab() as manager:
        nursery.start_soon(meter.serve)
        await manager.start()
        async with port, VisaSessionManager(config, make_transport=meter.connect) as session:
            await port.recover()
            known = {"port": port, "session": session, "distributor": manager.distributor}
            wanted = {name: known[name] for name in inspect.signature(operation).parameters if name in known}
            begin = trio.current_time()
            member = await manager.v2.spawn(operation, **wanted, supervision=WATCHED)
            await member.done.wait()
            assert member.error is None
            assert trio.current_time() - begin >= 3 * LONG
        nursery.cancel_scope.cancel()
    assert not [event for event in manager.health_history() if event.severity == "error"]


async def test_a_call_through_a_door_begins_and_ends_with_a_sign_of_life():
    """In a thread as in a task: pauses, and between them a call that takes long, and a reading."""

    def scan(port: SerialDoor, context: ThreadContext) -> None:
        with port.exclusive() as line:
            time.sleep(0.5)
            with pytest.raises(TimeoutError):
                line.read(1, timeout=0.5)
            time.sleep(0.5)
            context.publish("voltage", 1.0)
            time.sleep(0.5)

    port = SharedSerialPort(SerialPortConfig(path="memory", quiet_time=0.01), MemoryLine().open_stream)
    async with port, lab() as manager:
        await port.recover()
        await manager.start()
        member = await manager.v2.spawn_thread(scan, port, supervision=Supervision(heartbeat=0.8))
        await member.done.wait()
        assert member.error is None
    assert not [event for event in manager.health_history() if event.severity == "error"]


async def test_traffic_of_somebody_else_is_no_sign_of_life(autojump_clock):
    """What others do with the same line, even under its name, does not hide that a member hangs."""
    port = SharedSerialPort(SerialPortConfig(path="memory", quiet_time=0.01), MemoryLine().open_stream)

    async def other() -> None:
        with acting_as("meter"):
            while True:
                async with port.acquire("meter"):
                    await trio.sleep(0.1)

    async with port, lab() as manager, trio.open_nursery() as nursery:
        await manager.start()
        nursery.start_soon(other)
        await manager.v2.spawn(trio.sleep_forever, name="meter", supervision=WATCHED)
        assert await seconds_until(manager, "v2", Status.ERROR) <= 2 * BEAT
        nursery.cancel_scope.cancel()


async def test_a_member_that_could_not_run_is_not_to_blame():
    """Where the whole loop stood still, those who waited for it get time to show that they live."""

    async def patient(context: DriverContext) -> None:
        while not await context.wait_stopping(0.1):
            pass

    async with lab() as manager:
        await manager.start()
        for number in range(30):  # one of them alone may happen to run first
            await manager.v2.spawn(patient, name=f"patient {number}", supervision=Supervision(heartbeat=0.4))
        await trio.sleep(0.2)
        time.sleep(0.8)  # noqa: ASYNC251 - that is the test
        await trio.sleep(0.6)
        assert manager.v2_status() is Status.ACTIVE
    assert not [event for event in manager.health_history() if event.severity == "error"]


# --- what it costs ----------------------------------------------------------------------------------------------------


class Rounds(trio.abc.Instrument):
    """Counts how often the event loop wakes."""

    def __init__(self) -> None:
        self.count = 0

    def after_io_wait(self, timeout: float) -> None:
        self.count += 1


async def idle(context: DriverContext) -> None:
    """Does nothing until it is asked to end."""
    await context.stopping.wait()


async def test_nothing_wakes_where_nothing_is_due():
    """A lab in which nothing happens sleeps: members without a heartbeat, and actors with one that have no message."""
    async with lab() as manager:
        await manager.start()
        ref = await manager.v4.spawn(Worker, supervision=Supervision(heartbeat=0.1))
        await ref.ask(Work(0.0))
        await manager.v2.spawn(idle)
        await trio.sleep(0.3)
        rounds = Rounds()
        trio.lowlevel.add_instrument(rounds)
        await trio.sleep(0.7)
        trio.lowlevel.remove_instrument(rounds)
        assert manager.v4_status() is Status.ACTIVE
    assert rounds.count == 1, "that of this test"


async def test_nothing_is_left_of_it():
    """Neither tasks nor threads, be it that members hung when the lab was left."""
    before: list[tuple[int, int]] = []
    for _ in range(2):
        async with lab() as manager:
            await manager.start()
            await manager.v2.spawn(trio.sleep_forever, supervision=Supervision(heartbeat=0.05))
            ref = await manager.v4.spawn(Worker, supervision=Supervision(heartbeat=0.05))
            await ref.tell(Work(1000.0))
            await manager.v2.wait_status(Status.ERROR)
            await manager.v4.wait_status(Status.ERROR)
            await manager.shutdown(0.1)
        before.append((trio.lowlevel.current_statistics().tasks_living, threading.active_count()))
    assert before[0] == before[1]  # the first lab also started the alarm clock of the run


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["task", "thread", "actor"])
async def test_a_heartbeat_is_a_key_of_the_configuration(kind, tmp_path):
    """Each kind of member is watched when its table says so."""
    (tmp_path / "hanging.py").write_text(DRIVERS, encoding="utf-8")
    member = MemberConfig(id="meter", driver=f"hanging:{kind}", heartbeat=0.3)
    side = "v4" if kind == "actor" else "v2"
    sides = {side: SubsystemConfig(instruments=[member], stop_timeout=0.5)}
    config = DualConfig(recording=RecordingConfig(enabled=False), folder=tmp_path, **sides)
    async with DualRuntimeManager(config) as manager:
        await manager.start()
        with trio.fail_after(5):
            await getattr(manager, side).wait_status(Status.ERROR)
        [problem] = getattr(manager, side).problems()
        assert problem.startswith(f"{side}.meter has shown no sign of life for")
        assert "hanging.py:" in problem


DRIVERS = """
import attrs, time, trio
from trio_daq import Actor, Message, handles

async def task():
    await trio.sleep_forever()

def thread():
    time.sleep(0.6)

@attrs.frozen
class Tick(Message[None]):
    pass

class actor(Actor):
    async def on_start(self):
        self.after(0.0, Tick())

    @handles(Tick)
    async def tick(self, message):
        await trio.sleep_forever()
"""


@pytest.mark.parametrize("wrong", [0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("make", [Supervision, functools.partial(MemberConfig, id="meter", driver="m:f")])
def test_a_heartbeat_is_some_seconds(make: Callable[..., object], wrong: float):
    """Anything else is refused where it is written."""
    with pytest.raises(ValueError, match="heartbeat"):
        make(heartbeat=wrong)
