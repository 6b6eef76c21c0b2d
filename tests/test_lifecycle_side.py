"""V2 and V4 as their users see them: spawning, statuses, health, and stopping one side alone. No hardware."""

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_daq.actors import Actor, Message, handles
from trio_daq.config import ApplicationConfig, DualConfig, MemberConfig, RecordingConfig, SubsystemConfig
from trio_daq.drivers import DriverContext
from trio_daq.errors import (
    ActorStoppedError,
    StartError,
    StateError,
    StoppingError,
    StuckError,
    UnhealthyError,
    UnknownNameError,
)
from trio_daq.lifecycle import DualRuntimeManager, ManagerState, Status

ON = SubsystemConfig(stop_timeout=5.0)


def lab(v2: SubsystemConfig = ON, v4: SubsystemConfig = ON, **application: float) -> DualRuntimeManager:
    """A lab of members only."""
    config = DualConfig(
        application=ApplicationConfig(**application), v2=v2, v4=v4, recording=RecordingConfig(enabled=False)
    )
    return DualRuntimeManager(config)


@attrs.frozen
class Add(Message[int]):
    """Add a number."""

    number: int


class Sum(Actor):
    """Adds up what it is told."""

    def __init__(self, begin: int = 0) -> None:
        self.sum = begin

    @handles(Add)
    async def add(self, message: Add) -> int:
        self.sum += message.number
        return self.sum


class Polite(Actor):
    """Takes its time to stop."""

    def __init__(self, diary: list[str], context: DriverContext) -> None:
        self._diary = diary
        self._context = context

    async def on_stop(self) -> None:
        self._diary.append(f"{self._context.id} stopping: {self._context.stopping.is_set()}")
        await trio.sleep(1)
        self._diary.append(f"{self._context.id} stopped")


async def polite(diary: list[str], context: DriverContext) -> None:
    """A task that ends when it is asked."""
    await context.stopping.wait()
    diary.append(f"{context.id} is asked")


async def unplugged() -> None:
    """A task that meets a fault of the lab."""
    raise OSError("unplugged")


class Unstartable(Actor):
    """An actor whose device is not there."""

    async def on_start(self) -> None:
        raise OSError("no camera")


async def test_v4_ends_before_v2_is_asked(autojump_clock):
    """However many members each side has, all of V4 is over before any of V2 hears of the stop."""
    diary: list[str] = []
    async with lab() as manager:
        await manager.start()
        for number in range(2):
            await manager.v2.spawn(polite, diary, name=f"task {number}")
            await manager.v4.spawn(Polite, diary, name=f"actor {number}")
    assert sorted(diary[:4]) == sorted(f"actor {n} {what}" for n in range(2) for what in ("stopping: True", "stopped"))
    assert sorted(diary[4:]) == ["task 0 is asked", "task 1 is asked"]
    assert [stage.name for stage in manager.report.stages] == ["v4", "v2", "hardware", "recording"]


async def test_the_order_holds_under_a_deadline_outside(autojump_clock):
    """Cancelling the block from outside ends V4 before V2 begins."""
    diary: list[str] = []
    with trio.move_on_after(3) as limit:
        async with lab() as manager:
            await manager.start()
            await manager.v2.spawn(polite, diary, name="task")
            await manager.v4.spawn(Polite, diary, name="actor")
            await trio.sleep_forever()
    assert limit.cancelled_caught
    assert diary == ["actor stopping: True", "actor stopped", "task is asked"]


async def test_an_actor_is_reached_by_its_address(autojump_clock):
    """spawn returns the address of an actor that is ready, made with the given arguments."""
    async with lab() as manager:
        await manager.start()
        ref = await manager.v4.spawn(Sum, begin=10)
        assert await ref.ask(Add(5), timeout=1) == 15
        await manager.shutdown(5)
        with pytest.raises(ActorStoppedError):
            await ref.ask(Add(5), timeout=1)


async def test_an_actor_is_found_by_its_name(autojump_clock):
    """actor() returns the address that spawn returned; for an unknown name it raises, and lists the known."""
    async with lab() as manager:
        await manager.start()
        ref = await manager.v4.spawn(Sum, name="sum")
        await manager.v4.spawn(Sum, name="other")
        assert manager.v4.actor("sum") is ref
        with pytest.raises(
            UnknownNameError, match=r"no actor called 'summ' \(did you mean 'sum'\?\); known: other, sum"
        ):
            manager.v4.actor("summ")


async def test_an_address_is_good_again_when_the_side_is(autojump_clock):
    """An actor spawned again under its name, after its side was stopped, has the address that it had."""
    async with lab() as manager:
        await manager.start()
        ref = await manager.v4.spawn(Sum, begin=10)
        await manager.stop_v4()
        with pytest.raises(ActorStoppedError):
            await ref.ask(Add(1))
        await manager.start_v4()
        assert await manager.v4.spawn(Sum, begin=20) is ref
        assert await ref.ask(Add(1)) == 21


async def test_a_name_in_use_stays_with_whom_it_belongs_to(autojump_clock):
    """A second actor under the name of one that runs is refused, and the first answers as before."""
    async with lab() as manager:
        await manager.start()
        ref = await manager.v4.spawn(Sum, begin=10)
        with pytest.raises(ValueError, match="running member called 'Sum'"):
            await manager.v4.spawn(Sum, begin=20)
        assert manager.v4.actor("Sum") is ref
        assert await ref.ask(Add(1)) == 11


async def test_an_actor_that_failed_refuses_at_once(autojump_clock):
    """After a bug that ended an actor for good, asks that wait and new ones end in ActorStoppedError, not in time."""
    refused = []

    async def ask(ref, seconds: float) -> None:
        await trio.sleep(seconds)
        with pytest.raises(ActorStoppedError):
            await ref.ask(Add(1), timeout=4)
        refused.append(trio.current_time() - start)

    async def fail(nursery: trio.Nursery) -> None:
        async with lab() as manager:
            await manager.start()
            ref = await manager.v4.spawn(Sum)
            ref.tell_nowait(Add("one"))
            nursery.start_soon(ask, ref, 0)
            nursery.start_soon(ask, ref, 1)
            await trio.sleep_forever()

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        with pytest.raises(TypeError, match="unsupported operand"):
            await fail(nursery)
    assert refused == [0, 1]


async def test_statuses_follow_the_lab_and_can_be_waited_for(autojump_clock):
    """A side is INACTIVE before the start and after the stop, and ACTIVE between; waiters see each change."""
    seen = []
    manager = lab()

    async def watch() -> None:
        await manager.v4.wait_status(Status.ACTIVE)
        seen.append("active")
        await manager.v4.wait_status(Status.INACTIVE)
        seen.append("inactive")

    assert (manager.v2_status(), manager.v4_status()) == (Status.INACTIVE, Status.INACTIVE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        async with manager:
            await manager.start()
            assert (manager.v2_status(), manager.v4_status()) == (Status.ACTIVE, Status.ACTIVE)
            await wait_all_tasks_blocked()
            assert seen == ["active"]
    assert seen == ["active", "inactive"]
    assert (manager.v2_status(), manager.v4_status()) == (Status.INACTIVE, Status.INACTIVE)


async def test_a_fault_in_one_side_leaves_the_other_well(autojump_clock):
    """The side is in ERROR and its siblings go on; the health check says who failed, and by what."""
    async with lab() as manager:
        await manager.start()
        ref = await manager.v4.spawn(Sum)
        assert (await manager.check_health()).healthy
        sibling = await manager.v2.spawn(polite, [], name="sibling")
        await manager.v2.spawn(unplugged)
        await manager.v2.wait_status(Status.ERROR)
        assert (manager.is_v2_healthy(), manager.is_v4_healthy()) == (False, True)
        with pytest.raises(UnhealthyError) as caught:
            await manager.check_health()
        assert [str(one) for one in caught.value.report.problems] == ["v2.unplugged failed: OSError: unplugged"]
        assert manager.state is ManagerState.RUNNING
        assert not sibling.done.is_set()
        assert await ref.ask(Add(1), timeout=1) == 1
    assert [member.name for member in manager.report.failed] == ["unplugged"]


async def test_stopping_a_side_that_failed_makes_it_well(autojump_clock):
    """What failed is gone with its side, which is as good as new when it starts again."""
    async with lab() as manager:
        await manager.start()
        await manager.v2.spawn(unplugged)
        await manager.v2.wait_status(Status.ERROR)
        report = await manager.stop_v2()
        assert [member.outcome for member in report.members] == ["failed"]
        assert (manager.v2_status(), manager.is_v2_healthy()) == (Status.INACTIVE, True)
        assert (await manager.check_health()).healthy
        await manager.start_v2()
        assert manager.v2_status() is Status.ACTIVE
        assert (await manager.check_health()).healthy


async def test_health_of_a_lab_that_does_not_run(autojump_clock):
    """Before the start and after the stop a lab is not well, and says why."""
    async with lab() as manager:
        for state in ("uninitialized", "stopped"):
            with pytest.raises(UnhealthyError, match=f"the lab is {state}"):
                await manager.check_health()
            if state == "uninitialized":
                await manager.start()
                await manager.shutdown(5)


@pytest.mark.parametrize(("side", "other"), [("v2", "v4"), ("v4", "v2")])
async def test_one_side_stops_and_starts_alone(side, other, autojump_clock):
    """Its members end, and it begins anew without them; the other side does not notice, and the lab runs on."""
    diary: list[str] = []
    async with lab() as manager:
        await manager.start()
        await manager.v2.spawn(polite, diary, name="task")
        await manager.v4.spawn(Polite, diary, name="actor")
        report = await getattr(manager, f"stop_{side}")(5)
        assert report.name == side
        assert [member.outcome for member in report.members] == ["drained"]
        statuses = {"v2": manager.v2_status(), "v4": manager.v4_status()}
        assert statuses == {side: Status.INACTIVE, other: Status.ACTIVE}
        assert manager.state is ManagerState.RUNNING
        assert diary == {"v2": ["task is asked"], "v4": ["actor stopping: True", "actor stopped"]}[side]
        await getattr(manager, f"start_{side}")()
        assert getattr(manager, f"{side}_status")() is Status.ACTIVE
        await getattr(manager, f"start_{side}")()  # nothing to do
        assert manager.snapshot().members[side] == ()
        assert len(manager.snapshot().members[other]) == 1


async def test_a_shutdown_waits_for_a_side_that_is_being_stopped(autojump_clock):
    """V2 is not asked before V4 has ended, also when V4 was being stopped by somebody else already."""
    diary: list[str] = []
    async with lab() as manager:
        await manager.start()
        await manager.v2.spawn(polite, diary, name="task")
        await manager.v4.spawn(Polite, diary, name="actor")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(manager.stop_v4)
            await trio.sleep(0.5)
            await manager.shutdown(5)
    assert diary == ["actor stopping: True", "actor stopped", "task is asked"]


async def test_a_cancelled_stop_of_a_side_goes_on(autojump_clock):
    """As for the whole lab, the caller only waits."""
    diary: list[str] = []
    async with lab() as manager:
        await manager.start()
        await manager.v4.spawn(Polite, diary, name="actor")
        with trio.move_on_after(0.1):
            await manager.stop_v4()
        await trio.sleep(2)
        assert manager.v4_status() is Status.INACTIVE
        assert diary[-1] == "actor stopped"


async def test_a_stop_of_a_side_is_answered_also_when_the_lab_ends(autojump_clock):
    """Who waits for a side, from outside of the block, gets their report though all is shut down meanwhile."""
    reports = []
    manager = lab()

    async def stop() -> None:
        reports.append(await manager.stop_v4())

    async with trio.open_nursery() as nursery:
        await nursery.start(manager.serve)
        await manager.v4.spawn(Polite, [], name="actor")
        nursery.start_soon(stop)
        await trio.sleep(0.5)
        manager.request_shutdown()
    [report] = reports
    assert [member.outcome for member in report.members] == ["drained"]


async def test_a_subscriber_that_stopped_reading_holds_up_no_stop(autojump_clock):
    """From the shutdown on, members publish past a subscriber that may lose nothing and reads nothing."""

    async def last_words(context: DriverContext) -> None:
        await context.stopping.wait()
        for number in range(5):
            await context.publish("word", float(number))

    async with lab() as manager:
        await manager.start()
        await manager.v2.spawn(last_words)
        with manager.distributor.subscribe("asleep", policy="block", capacity=1):
            report = await manager.shutdown(10)
    assert [member.outcome for member in report.stages[1].members] == ["drained"]
    assert report.seconds == 0


async def test_stopping_a_side_keeps_to_its_time(autojump_clock):
    """stop_v2(timeout) returns in time around a task that hangs, and that side does not start over it."""

    async def hang() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(60)

    async with lab() as manager:
        await manager.start()
        await manager.v2.spawn(hang)
        report = await manager.stop_v2(0.5)
        assert report.seconds == 0.5
        assert [member.name for member in report.stuck] == ["hang"]
        with pytest.raises(StuckError, match="hang"):
            await manager.start_v2()
        assert [member.name for member in (await manager.shutdown(5)).stuck] == ["hang"]


async def test_a_member_cannot_wait_for_the_stop_of_its_own_side(autojump_clock):
    """stop_v2() from inside a V2 member is refused; stop_v4() from there is fine."""
    errors = []
    manager = lab()

    async def meddle() -> None:
        await manager.stop_v4()
        with pytest.raises(StateError) as caught:
            await manager.stop_v2()
        errors.append(caught.value)

    async with manager:
        await manager.start()
        await manager.v2.spawn(meddle)
        await manager.wait_all_ended()
        assert (manager.v2_status(), manager.v4_status()) == (Status.ACTIVE, Status.INACTIVE)
    assert "'meddle'" in errors[0].actual


async def test_a_side_that_is_off_names_the_key(autojump_clock):
    """It is INACTIVE and healthy, takes nothing, and starting it says what to put into the file."""
    async with lab(v4=SubsystemConfig(enabled=False)) as manager:
        await manager.start()
        assert (manager.v4_status(), manager.is_v4_healthy()) == (Status.INACTIVE, True)
        assert (await manager.check_health()).healthy
        with pytest.raises(StateError) as caught:
            await manager.start_v4()
        assert "v4.enabled = true" in str(caught.value)
        assert "[v4]" in caught.value.hint


async def test_spawning_needs_a_side_that_runs(autojump_clock):
    """Before the start, on a side that was stopped, and after the stop: refused, naming side and member."""
    manager = lab()

    async def refused() -> None:
        with pytest.raises(StoppingError, match="'polite'"):
            await manager.v2.spawn(polite, [])
        with pytest.raises(StoppingError, match="'thread'"):
            await manager.v2.spawn_thread(print, name="thread")
        with pytest.raises(StoppingError, match="'Sum'"):
            await manager.v4.spawn(Sum)

    await refused()
    async with manager:
        await refused()
        await manager.start()
        await manager.stop_v4()
        await manager.stop_v2()
        await refused()
        await manager.shutdown(5)
        await refused()


async def test_sides_start_and_stop_only_in_a_running_lab(autojump_clock):
    """start_v2 and its like raise StateError before the start, outside of the block, and after the stop."""
    manager = lab()
    calls = (manager.start_v2, manager.start_v4, manager.stop_v2, manager.stop_v4)

    async def refused(actual: str) -> None:
        for call in calls:
            with pytest.raises(StateError) as caught:
                await call()
            assert caught.value.actual == actual

    await refused("closed")
    async with manager:
        await refused("uninitialized")
        await manager.start()
        await manager.shutdown(5)
        await refused("stopped")


async def test_names_are_unique_while_their_members_run(autojump_clock):
    """A second member of a name is refused; so is none at all."""
    async with lab() as manager:
        await manager.start()
        await manager.v4.spawn(Sum)
        with pytest.raises(ValueError, match="'Sum'"):
            await manager.v4.spawn(Sum)
        await manager.v4.spawn(Sum, name="another")


async def test_an_actor_that_cannot_start_tells_its_spawner(autojump_clock):
    """The error of its on_start comes out of spawn, and the side stays well."""
    async with lab() as manager:
        await manager.start()
        with pytest.raises(OSError, match="no camera"):
            await manager.v4.spawn(Unstartable)
        assert manager.v4_status() is Status.ACTIVE
        assert (await manager.check_health()).healthy
    assert manager.report.failed == ()


DRIVERS = """
import pathlib
from trio_daq.actors import Actor

class Camera(Actor):
    def __init__(self, folder):
        self.folder = pathlib.Path(folder)

    async def on_start(self):
        if not (self.folder / "camera").exists():
            raise OSError("no camera")

async def logger(context):
    await context.stopping.wait()
"""


async def test_configured_members_start_with_their_side(autojump_clock, tmp_path):
    """They start at start() and again at start_v4(); one that cannot start is named and rolls the start back."""
    (tmp_path / "side_drivers.py").write_text(DRIVERS)
    camera = MemberConfig(id="camera", driver="side_drivers:Camera", options={"folder": str(tmp_path)})
    logger = MemberConfig(id="logger", driver="side_drivers:logger")
    config = DualConfig(
        v2=SubsystemConfig(instruments=[logger]),
        v4=SubsystemConfig(instruments=[camera]),
        recording=RecordingConfig(enabled=False),
        folder=tmp_path,
    )
    async with DualRuntimeManager(config) as manager:
        with pytest.raises(StartError, match=r"v4\.camera did not start: no camera") as caught:
            await manager.start()
        assert (manager.v2_status(), manager.v4_status()) == (Status.INACTIVE, Status.INACTIVE)
        [v2, *_] = caught.value.report.stages
        assert [(member.name, member.outcome) for member in v2.members] == [("logger", "drained")]
        (tmp_path / "camera").touch()
        await manager.start()
        members = {side: [one.name for one in seen] for side, seen in manager.snapshot().members.items()}
        assert members == {"v2": ["logger"], "v4": ["camera"]}
        await manager.stop_v4()
        await manager.start_v4()
        [running] = manager.snapshot().members["v4"]
        assert (running.name, running.outcome) == ("camera", "running")
        await manager.stop_v4()
        (tmp_path / "camera").unlink()
        with pytest.raises(StartError, match=r"v4\.camera did not start: no camera"):
            await manager.start_v4()
        assert (manager.v2_status(), manager.v4_status()) == (Status.ACTIVE, Status.INACTIVE)
        assert manager.state is ManagerState.RUNNING


async def test_messages_that_nobody_handled_are_in_the_report(autojump_clock):
    """An actor that is cut off in the middle of its work leaves its mailbox behind, and the report counts it."""

    @attrs.frozen
    class Work(Message[None]):
        pass

    class Slow(Actor):
        @handles(Work)
        async def work(self, _: Work) -> None:
            await trio.sleep(60)

    async with lab() as manager:
        await manager.start()
        ref = await manager.v4.spawn(Slow)
        for _ in range(4):
            await ref.tell(Work())
        await wait_all_tasks_blocked()
    [member] = manager.report.stages[0].members
    assert (member.outcome, member.dropped_messages) == ("cancelled", 3)
    assert "3 messages dropped" in str(manager.report)


async def test_a_lab_ends_when_all_its_members_have(autojump_clock):
    """wait_all_ended waits for tasks and actors of both sides."""

    async def nap(seconds: float) -> None:
        await trio.sleep(seconds)

    async with lab() as manager:
        await manager.start()
        await manager.v2.spawn(nap, 3, name="short")
        await manager.v2.spawn(nap, 8, name="long")
        await manager.wait_all_ended()
        assert trio.current_time() == 8
    assert [member.outcome for member in manager.report.stages[1].members] == ["ended", "ended"]


async def test_a_restart_is_no_end(autojump_clock):
    """wait_all_ended goes on waiting when a member is restarted, and ends when that life has ended by itself."""
    diary: list[str] = []

    async def work(context: DriverContext) -> None:
        diary.append("begins")
        await context.wait_stopping(100)

    async def wait(manager: DualRuntimeManager) -> None:
        await manager.wait_all_ended()
        diary.append("all ended")

    async with lab() as manager, trio.open_nursery() as nursery:
        await manager.start()
        await manager.v2.spawn(work)
        nursery.start_soon(wait, manager)
        await wait_all_tasks_blocked()
        await manager.restart_actor("work")
        await wait_all_tasks_blocked()
        assert diary == ["begins", "begins"]
        await trio.sleep(101)
        assert diary == ["begins", "begins", "all ended"]


async def test_what_would_wait_for_itself_or_comes_from_another_thread_is_refused(autojump_clock):
    """A member cannot wait for the end of all members; a thread cannot ask for a shutdown but through the token."""
    refused: list[StateError] = []

    async def wait() -> None:
        try:
            await manager.wait_all_ended()
        except StateError as error:
            refused.append(error)

    def ask() -> None:
        for call in (manager.request_shutdown, manager.hurry):
            try:
                call()
            except StateError as error:
                refused.append(error)

    async with lab() as manager:
        await manager.start()
        await manager.v2.spawn(wait)
        await wait_all_tasks_blocked()
        await trio.to_thread.run_sync(ask)
        assert manager.state is ManagerState.RUNNING
    assert ["'wait'" in str(error) for error in refused] == [True, False, False]
    assert all("run_sync_soon" in str(error) for error in refused[1:])


class OddError(BaseException):
    """What no library expects."""


async def test_whatever_a_member_raises_its_siblings_go_on_to_an_ordered_stop(autojump_clock):
    """An exception that is no Exception stops the lab in order: the others are asked, not cancelled."""
    diary: list[str] = []

    async def neighbour(context: DriverContext) -> None:
        await context.wait_stopping(60)
        diary.append("was asked")

    async def odd() -> None:
        raise OddError

    manager = lab()

    async def live() -> None:
        async with manager:
            await manager.start()
            await manager.v2.spawn(neighbour)
            await manager.v2.spawn(odd)
            await trio.sleep_forever()

    with pytest.raises(OddError):
        await live()
    assert diary == ["was asked"]
    assert manager.state is ManagerState.STOPPED
