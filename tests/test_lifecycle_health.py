"""What a health check says, what is kept of the past, and how one waits for news."""

import contextlib
import sqlite3
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_daq.actors import Actor
from trio_daq.config import DualConfig, MemberConfig, RecordingConfig, SubsystemConfig
from trio_daq.drivers import DriverContext
from trio_daq.errors import DaqError, RecordingError, StuckError, UnhealthyError
from trio_daq.lifecycle import (
    DualRuntimeManager,
    HealthEvent,
    HealthProblem,
    HealthReport,
    Status,
    Supervision,
)
from trio_daq.lifecycle.health import HealthHistory
from trio_daq.lifecycle.line_health import port_problems, session_problems, watch_port, watch_session
from trio_daq.serialport import LineState, SerialPortConfig, SharedSerialPort
from trio_daq.sim import MemoryInstrument, MemoryLine, SimulatedMeter, open_simulated_lab
from trio_daq.visa import VisaSessionConfig, VisaSessionManager


def lab(**tables: object) -> DualRuntimeManager:
    """A lab of both sides."""
    config: dict[str, object] = {
        "v2": SubsystemConfig(stop_timeout=1.0),
        "v4": SubsystemConfig(stop_timeout=1.0),
        "recording": RecordingConfig(enabled=False),
    }
    return DualRuntimeManager(DualConfig(**(config | tables)))


def told(events: tuple[HealthEvent, ...] | list[HealthEvent], subject: str) -> list[tuple[str, str]]:
    """What happened to one subject."""
    return [(event.severity, event.text) for event in events if event.subject == subject]


def received(events: trio.MemoryReceiveChannel[HealthEvent]) -> list[HealthEvent]:
    """What has come by now."""
    got = []
    while True:
        try:
            got.append(events.receive_nowait())
        except trio.WouldBlock:
            return got


async def next_about(events: trio.MemoryReceiveChannel[HealthEvent], subject: str) -> HealthEvent:
    """Wait for the next event of one subject."""
    async for event in events:
        if event.subject == subject:
            return event
    raise AssertionError("the events have ended")


async def until(is_so: Callable[[], bool]) -> None:
    """Look again and again until something is so."""
    while not is_so():  # noqa: ASYNC110 - by the virtual clock
        await trio.sleep(0.01)


# --- reports ----------------------------------------------------------------------------------------------------------

ERROR = HealthProblem("v2.meter", "error", "failed: OSError: unplugged")
WARNING = HealthProblem("serial.stage", "warning", "is being made trustworthy")


@pytest.mark.parametrize(
    ("problems", "status", "healthy"),
    [((), "ok", True), ((WARNING,), "degraded", True), ((WARNING, ERROR), "error", False), ((ERROR,), "error", False)],
)
def test_a_report_is_as_bad_as_its_worst_problem(problems, status, healthy):
    """Warnings leave a lab healthy, one error does not."""
    report = HealthReport(problems)
    assert (report.status, report.healthy) == (status, healthy)


def test_a_report_tells_how_each_part_is():
    """A side is as bad as its worst member, and a name that begins like another is another."""
    report = HealthReport((WARNING, ERROR))
    parts = ["v2", "v2.meter", "v2.met", "v4", "serial", "serial.stage", "visa"]
    assert [report.status_of(part) for part in parts] == ["error", "error", "ok", "ok", "degraded", "degraded", "ok"]
    assert str(report) == "serial.stage is being made trustworthy; v2.meter failed: OSError: unplugged"


async def test_a_member_between_two_lives_is_degraded_then_gone(autojump_clock):
    """While it waits for its next life the lab measures on, worse; when it is given up, that is an error."""

    async def flaky() -> None:
        await trio.sleep(10)
        raise OSError("unplugged")

    async with lab() as manager:
        await manager.start()
        await manager.v2.spawn(flaky, supervision=Supervision(restart="on_failure"))
        assert (await manager.check_health()).status == "ok"
        await trio.sleep(10.01)
        report = await manager.check_health()
        assert (report.status, report.status_of("v2"), report.status_of("v4")) == ("degraded", "degraded", "ok")
        assert [str(one) for one in report.problems] == [
            "v2.flaky is about to be started again: OSError: unplugged",
        ]
        assert (manager.v2_status(), manager.is_v2_healthy()) == (Status.ACTIVE, True)
        await manager.v2.wait_status(Status.ERROR)
        with pytest.raises(UnhealthyError, match=r"v2\.flaky was restarted 5 times") as caught:
            await manager.check_health()
        assert caught.value.report.status_of("v2.flaky") == "error"
    kinds = [severity for severity, _ in told(manager.health_history(), "v2.flaky")]
    assert kinds == ["info"] + ["warning", "info"] * 5 + ["error"]


async def test_a_member_that_does_not_end_is_an_error_also_when_its_side_is_off(autojump_clock):
    """The side is inactive, and yet something of it runs."""
    wake = trio.Event()

    async def stubborn() -> None:
        with trio.CancelScope(shield=True):
            await wake.wait()

    async with lab() as manager:
        await manager.start()
        await manager.v2.spawn(stubborn)
        with pytest.raises(StuckError):
            await manager.restart_actor("stubborn")
        assert manager.v2_status() is Status.ERROR
        await manager.stop_v2()
        assert manager.v2_status() is Status.INACTIVE
        try:
            with pytest.raises(UnhealthyError, match=r"v2\.stubborn does not end") as caught:
                await manager.check_health()
        finally:
            wake.set()
        assert (caught.value.report.status_of("v2"), caught.value.report.status_of("v4")) == ("error", "ok")
        await wait_all_tasks_blocked()
        assert (await manager.check_health()).status == "ok"
    events = manager.health_history()
    assert told(events, "v2.stubborn")[1][1].startswith("does not end; it is at stubborn (")
    assert ("error", "was left, with members that do not end") in told(events, "v2")


# --- lines ------------------------------------------------------------------------------------------------------------


async def test_a_port_that_is_lost_and_comes_back(autojump_clock):
    """Lost is an error, its recovery a warning, and the history has when it went and when it came."""
    line, history = MemoryLine(), HealthHistory()
    port = SharedSerialPort(SerialPortConfig(path="memory", quiet_time=1.0), line.open_stream)
    watch_port("serial.stage", port, history.note)

    def problems() -> list[tuple[str, str]]:
        return [(one.severity, one.text) for one in port_problems("serial.stage", port)]

    async with port, trio.open_nursery() as nursery:
        nursery.start_soon(port.keep)
        await port.recover()
        assert not problems()
        assert not history.events(), "that it opened is no trouble, and no end of one"
        line.unplug()
        with pytest.raises(DaqError):
            async with port.acquire(timeout=5.0) as guard:
                await guard.query(b"POS?")
        assert [severity for severity, _ in problems()] == ["error"]
        assert problems()[0][1].startswith("is lost: ")
        line.plug()
        with trio.fail_after(10):
            await until(lambda: port.state is LineState.DIRTY)
        assert [severity for severity, _ in problems()] == ["warning"]
        await trio.sleep(5.0)
        assert not problems()
        nursery.cancel_scope.cancel()
    assert [(event.severity, event.text.partition(":")[0]) for event in history.events()] == [
        ("error", "is lost"),
        ("info", "is back"),
    ]


async def test_a_line_of_a_lab_that_is_unplugged(tmp_path):
    """A real device: check_health says which line it is, though no member of a side has failed."""
    async with open_simulated_lab(tmp_path / "log.jsonl", meter=None, stage_link=tmp_path / "stage") as simulated:
        stage = SerialPortConfig(
            path=simulated.stage_path, write_terminator="\r\n", read_terminator="\r\n", quiet_time=0.1
        )
        async with lab(serial={"stage": stage}) as manager:
            await manager.start()
            with manager.watch_health() as events, trio.fail_after(10):
                await simulated.unplug_stage()
                event = await next_about(events, "serial.stage")
                assert (event.severity, event.text.partition(":")[0]) == ("error", "is lost")
                with pytest.raises(UnhealthyError, match=r"serial\.stage is lost") as caught:
                    await manager.check_health()
                assert (caught.value.report.status_of("serial.stage"), manager.is_v2_healthy()) == ("error", True)
                await simulated.replug_stage()
                event = await next_about(events, "serial.stage")
                assert (event.severity, event.text) == ("info", "is back")
            assert told(manager.health_history(), "serial.stage")[0] == ("info", "has started")
            assert (await manager.check_health()).status == "ok"


async def test_a_session_of_a_lab_whose_queue_is_long(tmp_path):
    """A real instrument that is asked too often: the lab is degraded, healthy all the same, and then well again."""
    async with open_simulated_lab(tmp_path / "log.jsonl", stage=None) as simulated:
        meter = VisaSessionConfig(resource=simulated.meter_resource, queue_warning=3)
        async with lab(visa={"meter": meter}) as manager:
            await manager.start()
            with manager.watch_health() as events, trio.fail_after(10):
                async with trio.open_nursery() as nursery:
                    for number in range(5):
                        nursery.start_soon(manager.visa["meter"].query, f"SLOW? t{number},0.1")
                    event = await next_about(events, "visa.meter")
                    assert (event.severity, event.text) == ("warning", "has 3 commands waiting")
                    report = await manager.check_health()
                    assert (report.healthy, report.status, report.status_of("visa.meter")) == (
                        True,
                        "degraded",
                        "degraded",
                    )
                event = await next_about(events, "visa.meter")
                assert (event.severity, event.text) == ("info", "has a short queue again: 1 waiting")
            assert (await manager.check_health()).status == "ok"


async def test_a_session_whose_queue_is_long_then_short(autojump_clock):
    """Degraded from queue_warning on, until half of that is left; two events, however many commands come."""
    history = HealthHistory()
    meter = MemoryInstrument(SimulatedMeter())
    meter.slow_by = 1.0
    config = VisaSessionConfig(resource="TCPIP::memory::5025::SOCKET", queue_warning=4, timeout=60.0)
    session = VisaSessionManager(config, make_transport=meter.connect)
    watch_session("visa.meter", session, history.note)
    seen: list[tuple[int, int]] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(meter.serve)
        async with session:
            assert not list(session_problems("visa.meter", session))
            async with trio.open_nursery() as askers:
                for _ in range(8):
                    askers.start_soon(session.query, "MEAS:VOLT?")
                await trio.sleep(0.5)
                for _ in range(8):
                    problems = list(session_problems("visa.meter", session))
                    assert all(one.severity == "warning" for one in problems)
                    seen.append((session.queue_depth(), len(problems)))
                    await trio.sleep(1.0)
        nursery.cancel_scope.cancel()
    assert seen == [(7, 1), (6, 1), (5, 1), (4, 1), (3, 1), (2, 0), (1, 0), (0, 0)]
    assert [(event.severity, event.text) for event in history.events()] == [
        ("warning", "has 4 commands waiting"),
        ("info", "has a short queue again: 2 waiting"),
    ]


async def test_a_session_that_is_lost_and_comes_back(autojump_clock):
    """One event when it goes and one when it comes, however often it was tried between; an error all the time."""
    history = HealthHistory()
    meter = MemoryInstrument(SimulatedMeter())
    session = VisaSessionManager(
        VisaSessionConfig(resource="TCPIP::memory::5025::SOCKET"), make_transport=meter.connect
    )
    watch_session("visa.meter", session, history.note)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(meter.serve)
        async with session:
            await session.query("*IDN?")
            meter.is_refusing = True
            meter.hang_up()
            with pytest.raises(DaqError):
                await session.query("*IDN?")
            for _ in range(20):
                await trio.sleep(1.0)
                [problem] = session_problems("visa.meter", session)
                assert (problem.severity, problem.text.partition(":")[0]) == ("error", "is lost")
            meter.is_refusing = False
            await trio.sleep(5.0)
            assert not list(session_problems("visa.meter", session))
        nursery.cancel_scope.cancel()
    assert [(event.severity, event.text.partition(":")[0]) for event in history.events()] == [
        ("error", "is lost"),
        ("info", "is back"),
    ]


# --- history ----------------------------------------------------------------------------------------------------------


def test_the_history_is_bounded():
    """The last 1000 events are kept, in their order."""
    history = HealthHistory()
    for number in range(2500):
        history.note("the lab", "info", str(number))
    assert [int(event.text) for event in history.events()] == list(range(1500, 2500))
    stamps = [event.monotonic_ns for event in history.events()]
    assert stamps == sorted(stamps)


async def test_a_slow_watcher_loses_the_oldest_and_holds_nobody_up():
    """It gets the newest; others get all; one that has closed its end, or left, is no trouble."""
    history = HealthHistory()
    with history.watch(3) as slow, history.watch(100) as quick, history.watch(1) as closed:
        closed.close()
        for number in range(10):
            history.note("the lab", "info", str(number))
        assert [event.text for event in received(slow)] == ["7", "8", "9"]
        assert [event.text for event in received(quick)] == [str(number) for number in range(10)]
    history.note("the lab", "info", "nobody watches")
    with pytest.raises(ValueError, match="room must be at least 1"), history.watch(0):
        pass


async def test_the_life_of_a_lab_in_events(autojump_clock):
    """Starts and ends of sides and members are told as they happen, and outlive the lab; nothing else is."""

    async def short() -> None:
        await trio.sleep(1)

    async def unplugged() -> None:
        await trio.sleep(2)
        raise OSError("unplugged")

    manager = lab()
    with manager.watch_health() as events:
        async with manager:
            await manager.start()
            await manager.v2.spawn(short)
            await manager.v2.spawn(unplugged)
            await manager.v4.spawn(Actor, name="camera")
            await trio.sleep(5)
            await manager.stop_v4()
            await manager.start_v4()
        seen = received(events)
    assert tuple(seen) == manager.health_history()
    assert [(event.severity, str(event)) for event in seen] == [
        ("info", "v2 has started"),
        ("info", "v4 has started"),
        ("info", "v2.short has started"),
        ("info", "v2.unplugged has started"),
        ("info", "v4.camera has started"),
        ("info", "v2.short has ended"),
        ("error", "v2.unplugged failed: OSError: unplugged"),
        ("info", "v4 has stopped"),
        ("info", "v4 has started"),
        ("info", "v4 has stopped"),
        ("info", "v2 has stopped"),
    ]


async def test_a_recorder_that_fails_is_an_event(tmp_path):
    """It stops the lab, and the history says why, and when."""

    async def measure(context: DriverContext) -> None:
        while not await context.wait_stopping(0.01):
            await context.publish("voltage", 1.0)

    manager = lab(recording=RecordingConfig(directory=tmp_path))
    with pytest.raises(RecordingError, match="disk is full"):
        await spoil_recording(manager, measure)
    [(severity, text)] = told(manager.health_history(), "recording.recorder")[1:]
    assert severity == "error"
    assert "disk is full" in text


async def spoil_recording(manager: DualRuntimeManager, measure: Callable[..., Awaitable[None]]) -> None:
    """Run a lab until its recorder fails, as it would by a full disk: the database refuses the next block."""
    async with manager:
        await manager.start()
        with contextlib.closing(sqlite3.connect(manager.recorder.path, isolation_level=None)) as database:
            database.execute("CREATE TRIGGER no BEFORE INSERT ON block BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
        await manager.v2.spawn(measure)
        with trio.fail_after(5):
            await trio.sleep_forever()


async def test_one_waits_for_news_and_mends_what_failed(autojump_clock, tmp_path):
    """Nobody looks at the lab in between: the error comes by itself, and its side is started anew."""
    source = "import trio\nasync def meter():\n    await trio.sleep(100)\n    raise OSError('unplugged')\n"
    (tmp_path / "unplugged.py").write_text(source, encoding="utf-8")
    member = MemberConfig(id="meter", driver="unplugged:meter", restart="never")
    manager = DualRuntimeManager(
        DualConfig(v2=SubsystemConfig(instruments=[member]), recording=RecordingConfig(enabled=False), folder=tmp_path)
    )
    mended, begin = 0, trio.current_time()
    async with manager:
        await manager.start()
        with manager.watch_health() as events:
            async for event in events:
                if event.severity == "error" and not manager.is_v2_healthy():
                    await manager.stop_v2(5)
                    await manager.start_v2()
                    assert manager.v2_status() is Status.ACTIVE
                    mended += 1
                    if mended == 3:
                        break
    assert 300 <= trio.current_time() - begin < 301


async def test_a_side_that_is_off_has_no_history(autojump_clock):
    """Only what was started is said to have started and stopped."""
    manager = DualRuntimeManager(DualConfig(v4=SubsystemConfig(), recording=RecordingConfig(enabled=False)))
    async with manager:
        await manager.start()
        assert (await manager.check_health()).status == "ok"
    assert [str(event) for event in manager.health_history()] == ["v4 has started", "v4 has stopped"]
