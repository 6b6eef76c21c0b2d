"""How members fail and are started again: the rules, then tasks and actors on the virtual clock, then a real thread."""

import threading
from collections.abc import Callable

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from trio_daq.actors import Actor, Message, handles
from trio_daq.config import DualConfig, MemberConfig, RecordingConfig, SubsystemConfig
from trio_daq.drivers import DriverContext
from trio_daq.errors import ActorStoppedError, StartError, StateError, StoppingError, StuckError, UnknownNameError
from trio_daq.legacy import ThreadContext
from trio_daq.lifecycle import DualRuntimeManager, ManagerState, Member, Stage, Status, Supervision
from trio_daq.lifecycle.supervision import MOST_RESTARTS, WINDOW, Fail, Leave, Restart, Supervisor
from trio_daq.serialport import SerialPortConfig
from trio_daq.sim import open_simulated_lab, read_log
from trio_daq.visa import VisaSessionConfig

ON_FAILURE = Supervision(restart="on_failure")
FAULT = OSError("unplugged")


def lab() -> DualRuntimeManager:
    return DualRuntimeManager(
        DualConfig(v2=SubsystemConfig(), v4=SubsystemConfig(), recording=RecordingConfig(enabled=False))
    )


def failing(lives: list[float], times: float = float("inf"), after: float = 0.0) -> Callable[[], object]:
    """Make a task that notes when each life begins, and fails in its first *times* lives."""

    async def driver() -> None:
        lives.append(trio.current_time())
        await trio.sleep(after)
        if len(lives) <= times:
            raise OSError("unplugged")
        await trio.sleep_forever()

    return driver


async def obedient(context: DriverContext) -> None:
    await context.stopping.wait()


# --- rules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "error", "expected"),
    [
        ({"restart": "never"}, None, Leave()),
        ({"restart": "on_failure"}, None, Leave()),
        ({"restart": "always"}, None, Restart(0.2, "ended")),
        ({"restart": "on_failure"}, FAULT, Restart(0.2, "failed: OSError: unplugged")),
        ({"restart": "never"}, FAULT, Fail("failed: OSError: unplugged", stops_lab=False)),
        ({"restart": "never", "escalate": "stop"}, FAULT, Fail("failed: OSError: unplugged", stops_lab=True)),
        ({"restart": "always"}, TypeError("x"), Fail("failed by a bug: TypeError", stops_lab=True)),
        ({"restart": "always", "on_bug": "isolate"}, TypeError("x"), Fail("failed by a bug: TypeError", False)),
        ({"restart": "always", "on_bug": "isolate"}, SystemExit(1), Fail("ended by SystemExit", stops_lab=True)),
    ],
)
def test_what_follows_an_end(rules, error, expected):
    """Policy, kind of error, on_bug and escalate decide together; a bug is never cured by a new life."""
    assert Supervisor(Supervision(**rules), chance=lambda: 0.5).decide(error, now=0.0) == expected


def test_pauses_double_and_then_it_is_given_up():
    """Five restarts after 0.2 s to 3.2 s, a quarter more or less; then it is failed; a window later it may again."""
    for chance, factor in ((0.0, 0.75), (0.5, 1.0), (1.0, 1.25)):
        supervisor = Supervisor(ON_FAILURE, chance=lambda chance=chance: chance)
        pauses = [supervisor.decide(FAULT, now=0.0).after for _ in range(MOST_RESTARTS)]
        assert pauses == pytest.approx([factor * pause for pause in (0.2, 0.4, 0.8, 1.6, 3.2)])
        given_up = supervisor.decide(FAULT, now=1.0)
        assert given_up == Fail("was restarted 5 times in 60 s, and again it failed: OSError: unplugged", False)
        assert isinstance(supervisor.decide(FAULT, now=WINDOW + 0.3), Restart)


@given(
    lives=st.lists(st.floats(0, 40), max_size=60),
    chances=st.lists(st.floats(0, 1), min_size=60, max_size=60),
    policy=st.sampled_from(["always", "on_failure"]),
)
def test_no_window_holds_more_than_its_restarts(lives, chances, policy):
    """However long its lives are, in no 60 s a member is started again more than five times."""
    supervisor = Supervisor(Supervision(restart=policy), chance=iter(chances).__next__)
    now, starts = 0.0, []
    for life in lives:
        now += life
        decision = supervisor.decide(FAULT, now)
        if isinstance(decision, Restart):
            now += decision.after
            starts.append(now)
    for at, start in enumerate(starts):
        assert sum(start <= other < start + WINDOW for other in starts[at:]) <= MOST_RESTARTS


# --- tasks ---------------------------------------------------------------------------------------------------------


async def test_a_fault_is_followed_by_a_new_life(autojump_clock, caplog):
    """The side stays ACTIVE, the snapshot counts the restart and keeps the error, the log says why and when."""
    lives: list[float] = []
    async with lab() as manager:
        await manager.start()
        sibling = await manager.v2.spawn(obedient)
        await manager.v2.spawn(failing(lives, times=2), name="stage", supervision=ON_FAILURE)
        await trio.sleep(0.05)
        assert [one.outcome for one in manager.snapshot().members["v2"]] == ["running", "restarting"]
        assert manager.v2_status() is Status.ACTIVE
        await trio.sleep(5)
        [_, stage] = manager.snapshot().members["v2"]
        assert (stage.outcome, stage.restarts, str(stage.error)) == ("running", 2, "unplugged")
        assert (await manager.check_health()).healthy
        assert not sibling.done.is_set()
    assert 0.15 <= lives[1] - lives[0] <= 0.25
    assert 0.3 <= lives[2] - lives[1] <= 0.5
    assert "stage failed: OSError: unplugged; it is started again in 0." in caplog.text
    assert "started again 2 times" in str(manager.report)
    assert manager.report.failed == ()


async def test_above_the_limit_it_is_failed_and_its_siblings_go_on(autojump_clock):
    """Six lives, although each began well; then its side is in ERROR, which names the limit."""
    lives: list[float] = []
    async with lab() as manager:
        await manager.start()
        sibling = await manager.v2.spawn(obedient)
        await manager.v2.spawn(failing(lives, after=1.0), name="stage", supervision=ON_FAILURE)
        await manager.v2.wait_status(Status.ERROR)
        await trio.sleep(100)
        assert len(lives) == 6
        assert manager.v2.problems() == [
            "v2.stage was restarted 5 times in 60 s, and again it failed: OSError: unplugged"
        ]
        assert (manager.state, sibling.done.is_set()) == (ManagerState.RUNNING, False)
    assert [one.name for one in manager.report.failed] == ["stage"]


async def test_giving_up_can_stop_the_lab(autojump_clock):
    """With escalate = "stop" the error comes out of the block."""
    manager = lab()

    async def measure() -> None:
        async with manager:
            await manager.start()
            await manager.v2.spawn(failing([]), name="stage", supervision=attrs.evolve(ON_FAILURE, escalate="stop"))
            await trio.sleep_forever()

    with pytest.raises(OSError, match="unplugged"):
        await measure()
    assert manager.report.reason.startswith("stage was restarted 5 times")


async def test_a_bug_can_be_isolated(autojump_clock):
    """With on_bug = "isolate" the member is failed at once, whatever its policy, and the others go on."""

    async def buggy() -> None:
        raise TypeError("no text")

    async with lab() as manager:
        await manager.start()
        sibling = await manager.v2.spawn(obedient)
        await manager.v2.spawn(buggy, supervision=Supervision(restart="always", on_bug="isolate"))
        await trio.sleep(10)
        assert (manager.v2_status(), manager.state) == (Status.ERROR, ManagerState.RUNNING)
        assert manager.v2.problems() == ["v2.buggy failed by a bug: TypeError"]
        assert not sibling.done.is_set()


@pytest.mark.parametrize("stop", ["shutdown", "stop_v2"])
async def test_a_stop_beats_a_pending_restart(stop, autojump_clock):
    """Stopped between two lives it ends at once, and never comes back."""
    lives: list[float] = []
    async with lab() as manager:
        await manager.start()
        member = await manager.v2.spawn(failing(lives), name="stage", supervision=ON_FAILURE)
        await trio.sleep(0.1)
        begun = trio.current_time()
        await getattr(manager, stop)(5)
        assert trio.current_time() == begun
        assert member.done.is_set()
        await trio.sleep(100)
    assert len(lives) == 1


@given(
    lives=st.lists(st.tuples(st.floats(0, 3), st.sampled_from(["fault", "end", "bug"])), min_size=1, max_size=10),
    policy=st.sampled_from(["always", "on_failure", "never"]),
    stop_at=st.floats(0, 30),
)
@settings(deadline=None)
def test_lives_follow_each_other_by_the_rules(lives, policy, stop_at):
    """Each life begins after the end and aftermath of the one before, none after a stop, none against the policy."""
    diary: list[tuple[str, float]] = []
    ends = iter(lives)
    last: list[str] = []

    async def serve(*, task_status: trio.TaskStatus[None]) -> None:
        diary.append(("begin", trio.current_time()))
        task_status.started()
        seconds, how = next(ends, (1e9, "end"))
        try:
            await trio.sleep(seconds)
            last.append(how)
            if how != "end":
                raise {"fault": OSError, "bug": TypeError}[how]
        finally:
            diary.append(("end", trio.current_time()))

    async def aftermath(member: Member) -> None:
        await trio.sleep(0.01)
        diary.append(("safe", trio.current_time()))

    async def main() -> float:
        member = Member("m", serve, supervision=Supervision(restart=policy))

        async def populate(stage: Stage) -> None:
            await stage.add(member)

        stage = Stage("v2", populate, lambda *_: None, on_life_ended=aftermath)
        stage.open()
        async with trio.open_nursery() as nursery:
            await nursery.start(stage.serve)
            await trio.sleep(stop_at)
            stopped_at = trio.current_time()
            await stage.stop(1, 1)
            assert member.done.is_set()
            await trio.sleep(100)
        return stopped_at

    stopped_at = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    words = [word for word, _ in diary]
    assert words == ["begin", "end", "safe"] * (len(words) // 3)
    begins = [time for word, time in diary if word == "begin"]
    assert all(time <= stopped_at for time in begins)
    restarts_allowed = {"always": ("fault", "end"), "on_failure": ("fault",), "never": ()}[policy]
    assert all(how in restarts_allowed for how in last[: len(begins) - 1])
    assert len(begins) <= 1 + MOST_RESTARTS


DRIVERS = """
import pathlib

from trio_daq.actors import Actor

class Camera(Actor):
    def __init__(self, folder):
        self.folder = pathlib.Path(folder)

    async def on_start(self):
        if not (self.folder / "camera").exists():
            raise OSError("no camera")
"""


def camera_lab(folder, **keys) -> DualRuntimeManager:
    (folder / "supervised_drivers.py").write_text(DRIVERS)
    camera = MemberConfig(id="camera", driver="supervised_drivers:Camera", options={"folder": str(folder)}, **keys)
    config = DualConfig(
        v4=SubsystemConfig(instruments=[camera]), recording=RecordingConfig(enabled=False), folder=folder
    )
    return DualRuntimeManager(config)


async def test_a_member_that_is_not_required_may_start_late(autojump_clock, tmp_path):
    """The lab starts without it, with its side in ERROR, and its side is ACTIVE once a later try succeeds."""
    async with camera_lab(tmp_path, required=False) as manager:
        await manager.start()
        assert manager.v4_status() is Status.ERROR
        assert manager.v4.problems() == ["v4.camera has not started: OSError: no camera"]
        (tmp_path / "camera").touch()
        with trio.fail_after(1):
            await manager.v4.wait_status(Status.ACTIVE)


async def test_a_member_that_is_required_must_start(autojump_clock, tmp_path):
    """By default the start fails at once and rolls back, whatever the policy says of later."""
    async with camera_lab(tmp_path, restart="always") as manager:
        with pytest.raises(StartError, match="no camera"):
            await manager.start()
        assert trio.current_time() == 0


async def test_a_restart_that_fails_tells_who_asked_and_is_tried_again(autojump_clock, tmp_path):
    """The error comes out of restart_actor, the side is in ERROR, and the policy brings the member back."""
    (tmp_path / "camera").touch()
    async with camera_lab(tmp_path) as manager:
        await manager.start()
        (tmp_path / "camera").unlink()
        with pytest.raises(OSError, match="no camera"):
            await manager.restart_actor("camera")
        assert manager.v4_status() is Status.ERROR
        (tmp_path / "camera").touch()
        with trio.fail_after(1):
            await manager.v4.wait_status(Status.ACTIVE)
        assert manager.snapshot().members["v4"][0].restarts == 2


async def test_a_fault_during_the_stop_is_reported_and_nothing_more(autojump_clock, caplog):
    """A member that fails while it is being stopped is not said to be started again."""

    async def last_gasp(context: DriverContext) -> None:
        await context.stopping.wait()
        raise OSError("unplugged")

    async with lab() as manager:
        await manager.start()
        await manager.v2.spawn(last_gasp, supervision=Supervision(restart="always"))
    assert [one.name for one in manager.report.failed] == ["last_gasp"]
    assert "started again" not in caplog.text


async def test_what_follows_a_life_is_bounded_and_harms_nobody(autojump_clock, caplog):
    """An aftermath that hangs is cut after 5 s, and one that raises is logged; the next life begins all the same."""
    begun: list[float] = []

    async def serve(*, task_status: trio.TaskStatus[None]) -> None:
        begun.append(trio.current_time())
        task_status.started()
        if len(begun) < 3:
            raise OSError("unplugged")
        await trio.sleep_forever()

    async def aftermath(member: Member) -> None:
        if len(begun) == 1:
            await trio.sleep_forever()
        raise ValueError("cannot be made safe")

    async def populate(stage: Stage) -> None:
        await stage.add(Member("m", serve, supervision=ON_FAILURE))

    stage = Stage("v2", populate, lambda *_: None, on_life_ended=aftermath)
    stage.open()
    async with trio.open_nursery() as nursery:
        await nursery.start(stage.serve)
        await trio.sleep(10)
        await stage.stop(1, 1)
    assert 5.15 <= begun[1] - begun[0] <= 5.25
    assert begun[2] - begun[1] <= 0.5
    assert "cannot be made safe" in caplog.text


# --- restart_actor ---------------------------------------------------------------------------------------------------


@attrs.frozen
class Work(Message[int]):
    seconds: float = 0.0


class Worker(Actor):
    """Says in which life it works."""

    lives = 0

    def __init__(self, diary: list[str]) -> None:
        type(self).lives += 1
        self._diary, self._number = diary, type(self).lives

    async def on_start(self) -> None:
        self._diary.append(f"start {self._number}")

    async def on_stop(self) -> None:
        await trio.sleep(0.5)
        self._diary.append(f"stop {self._number}")

    @handles(Work)
    async def work(self, message: Work) -> int:
        await trio.sleep(message.seconds)
        return self._number


async def test_a_restarted_actor_keeps_its_address_and_its_messages(autojump_clock):
    """A hung handler is cancelled after the grace and its asker told; who waits behind it is answered by the new life,
    which begins after on_stop of the old."""
    Worker.lives = 0
    diary: list[str] = []
    answers: list[object] = []
    async with lab() as manager, trio.open_nursery() as nursery:
        await manager.start()
        ref = await manager.v4.spawn(Worker, diary, name="w")

        async def ask(seconds: float) -> None:
            try:
                answers.append(await ref.ask(Work(seconds), timeout=60))
            except ActorStoppedError:
                answers.append("stopped")

        nursery.start_soon(ask, 1000)
        await wait_all_tasks_blocked()
        nursery.start_soon(ask, 0)
        await wait_all_tasks_blocked()
        await manager.restart_actor("w")
        assert diary == ["start 1", "stop 1", "start 2"]
        await wait_all_tasks_blocked()
        assert sorted(map(str, answers)) == ["2", "stopped"]
        [report] = manager.snapshot().members["v4"]
        assert (report.outcome, report.restarts) == ("running", 1)
        with pytest.raises(UnknownNameError, match="known: w"):
            await manager.restart_actor("camera")


async def test_a_failed_member_can_be_restarted_by_a_monitor_in_a_member(autojump_clock):
    """A sibling restarts what failed, its side is ACTIVE again; it cannot restart itself."""
    lives: list[float] = []
    errors: list[Exception] = []
    manager = lab()

    async def monitor() -> None:
        await manager.v2.wait_status(Status.ERROR)
        await manager.restart_actor("stage")
        with pytest.raises(StateError) as caught:
            await manager.restart_actor("monitor")
        errors.append(caught.value)

    async with manager:
        await manager.start()
        await manager.v2.spawn(monitor)
        await manager.v2.spawn(failing(lives, times=1), name="stage")
        await trio.sleep(1)
        assert (len(lives), len(errors), manager.v2_status()) == (2, 1, Status.ACTIVE)


async def test_what_does_not_end_is_not_started_beside_itself(autojump_clock):
    """restart_actor raises StuckError with the place; the side is in ERROR; once it has ended it can be restarted."""
    lives: list[float] = []

    async def hang() -> None:
        lives.append(trio.current_time())
        with trio.CancelScope(shield=True):
            await trio.sleep(60)

    async with lab() as manager:
        await manager.start()
        await manager.v2.spawn(hang, supervision=Supervision(restart="always"))
        with pytest.raises(StuckError, match=r"v2\.hang .*hang \("):
            await manager.restart_actor("hang")
        assert (manager.v2_status(), len(lives)) == (Status.ERROR, 1)
        await trio.sleep(100)
        assert len(lives) == 1
        await manager.restart_actor("hang")
        await wait_all_tasks_blocked()
        assert (manager.v2_status(), len(lives)) == (Status.ACTIVE, 2)


async def test_a_stop_beats_a_restart_that_somebody_asked_for(autojump_clock):
    """Its side is stopped while the old life ends: no new one begins, and who asked gets a StoppingError."""
    Worker.lives = 0
    diary: list[str] = []
    async with lab() as manager, trio.open_nursery() as nursery:
        await manager.start()
        await manager.v4.spawn(Worker, diary, name="w")

        async def restart() -> None:
            with pytest.raises(StoppingError):
                await manager.restart_actor("w")

        nursery.start_soon(restart)
        await trio.sleep(0.1)
        await manager.stop_v4()
    assert diary == ["start 1", "stop 1"]


# --- a real thread --------------------------------------------------------------------------------------------------


async def test_a_thread_is_restarted_with_doors_and_a_context_of_its_own():
    """After a fault the function runs again, in another thread than before, and its context can be asked to stop."""
    contexts: list[ThreadContext] = []
    threads: list[str] = []

    def old_driver(context: ThreadContext) -> None:
        contexts.append(context)
        threads.append(threading.current_thread().name)
        if len(contexts) == 1:
            raise OSError("unplugged")
        context.publish("x", 1.0)
        context.stopping.wait(5)

    async with lab() as manager:
        await manager.start()
        with trio.fail_after(5), manager.distributor.subscribe("test") as readings:
            await manager.v2.spawn_thread(old_driver, supervision=ON_FAILURE)
            await readings.receive()
        report = await manager.shutdown(5)
    assert [one.outcome for one in report.stages[1].members] == ["drained"]
    assert contexts[0] is not contexts[1]
    assert threads[0] != threads[1]


async def test_no_second_thread_beside_one_that_is_inside_a_call():
    """While the thread of the old life sits in a call that nobody can end, StuckError names it; afterwards it works."""
    begun, released = threading.Event(), threading.Event()
    lives: list[str] = []

    def old_driver() -> None:
        lives.append(threading.current_thread().name)
        begun.set()
        released.wait(10)

    async with lab() as manager:
        await manager.start()
        await manager.v2.spawn_thread(old_driver, name="old")
        await trio.to_thread.run_sync(begun.wait, 5)
        with pytest.raises(StuckError, match="old #1"):
            await manager.restart_actor("old")
        assert lives == ["old #1"]
        released.set()
        with trio.fail_after(5):
            await trio.to_thread.run_sync(join, "old #1")
            await manager.restart_actor("old")
            await manager.wait_all_ended()
    assert lives == ["old #1", "old #2"]


def join(name: str) -> None:
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join(5)


# --- real lines ------------------------------------------------------------------------------------------------------


async def test_what_a_hung_member_holds_goes_to_who_waits(tmp_path):
    """A member that hangs with the port and a transaction is restarted by `port.current_owner()`; those who waited are
    served while it still hangs, and its new life begins only then, by the instruments' own log."""
    log = tmp_path / "log.jsonl"
    lives: list[int] = []
    served: list[float] = []
    async with open_simulated_lab(log) as simulated:
        serial = SerialPortConfig(
            path=simulated.stage_path, write_terminator="\r\n", read_terminator="\r\n", quiet_time=0.02
        )
        config = DualConfig(
            serial={"stage": serial},
            visa={"meter": VisaSessionConfig(resource=simulated.meter_resource)},
            v2=SubsystemConfig(),
            recording=RecordingConfig(enabled=False),
        )
        async with DualRuntimeManager(config) as manager, trio.open_nursery() as nursery:
            await manager.start()
            port, meter = manager.serial["stage"], manager.visa["meter"]

            async def hang() -> None:
                lives.append(len(lives))
                async with port.acquire(timeout=5) as guard, meter.transaction(timeout=5) as transaction:
                    await transaction.query(f"MEAS:VOLT? life{len(lives)}")
                    await guard.query(f"POS? life{len(lives)}".encode())
                    with trio.move_on_after(0.8, shield=True):
                        await trio.sleep_forever()

            async def wait_for_port() -> None:
                async with port.acquire("waiter", timeout=5) as guard:
                    await guard.query(b"POS? waiter")
                    served.append(trio.current_time())

            async def wait_for_meter() -> None:
                await meter.query("MEAS:VOLT? waiter", timeout=5)
                served.append(trio.current_time())

            await manager.v2.spawn(hang)
            with trio.fail_after(5):
                while port.current_owner() != "hang" or meter.statistics().transaction != "hang":  # noqa: ASYNC110
                    await trio.sleep(0.01)
                await trio.sleep(0.1)
                nursery.start_soon(wait_for_port)
                nursery.start_soon(wait_for_meter)
                await wait_all_tasks_blocked()
                asked = trio.current_time()
                await manager.restart_actor(port.current_owner())
                assert len(served) == 2
                assert max(served) < asked + 0.4 < trio.current_time()  # while it was still hanging
                await manager.wait_all_ended()
    tags = [entry.tag for entry in read_log(log) if entry.event == "reply" and entry.tag]
    assert sorted(tags[:2]) == ["life1", "life1"]
    assert sorted(tags[2:4]) == ["waiter", "waiter"]
    assert sorted(tags[4:]) == ["life2", "life2"]
