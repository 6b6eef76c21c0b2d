"""Callers who come at the same moment, or one step too late, on the virtual clock."""

import contextlib
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_daq.actors import Actor, Message, handles
from trio_daq.config import DualConfig, RecordingConfig, SubsystemConfig
from trio_daq.drivers import DriverContext
from trio_daq.errors import StateError, StoppingError
from trio_daq.lifecycle import DualRuntimeManager, Manager, ManagerState, Member, Stage, Status, Supervision
from trio_daq.lifecycle.alone import stop_alone

ON_FAILURE = Supervision(restart="on_failure")


def lab() -> DualRuntimeManager:
    return DualRuntimeManager(
        DualConfig(v2=SubsystemConfig(), v4=SubsystemConfig(), recording=RecordingConfig(enabled=False))
    )


async def obedient(context: DriverContext) -> None:
    await context.stopping.wait()


async def slow(context: DriverContext) -> None:
    await context.stopping.wait()
    await trio.sleep(2)


def part(name: str, work: Callable[[], Awaitable[object]]) -> Member:
    """A member that does not listen when it is asked to stop."""

    async def serve(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await work()

    return Member(name, serve, lambda: None)


async def nobody(stage: Stage) -> None:
    """Add no members."""


class Name(Message[str]):
    """Ask an actor for its name."""


class Named(Actor):
    def __init__(self, name: str, faults: int = 0) -> None:
        self._name, self._faults = name, faults

    async def on_start(self) -> None:
        if self._faults:
            raise OSError("no camera")

    @handles(Name)
    async def tell_name(self, _: Name) -> str:
        return self._name


class Slow(Actor):
    async def on_start(self) -> None:
        await trio.sleep_forever()


async def test_who_waits_for_the_end_gets_its_report_though_the_lab_starts_again_first(autojump_clock):
    """Of several callers of shutdown() one starts the lab at once: the others too get the report."""
    reports = []
    async with lab() as manager, trio.open_nursery() as nursery:
        await manager.start()

        async def stop() -> None:
            reports.append(await manager.shutdown(5))

        async def stop_and_start() -> None:
            await stop()
            await manager.start()

        nursery.start_soon(stop_and_start)
        for _ in range(5):
            nursery.start_soon(stop)
        await wait_all_tasks_blocked()
        assert manager.state is ManagerState.RUNNING
    assert len(reports) == 6
    assert all(report is reports[0] for report in reports)


async def test_nobody_starts_a_lab_whose_block_is_ending(autojump_clock):
    """A task outside of the block that waited for the shutdown finds the lab closed, and the block ends."""
    manager = lab()
    errors: list[Exception] = []

    async def start_again() -> None:
        await manager.shutdown()
        try:
            await manager.start()
        except StateError as error:
            errors.append(error)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery, manager:
            await manager.start()
            await manager.v2.spawn(slow)
            for _ in range(5):
                nursery.start_soon(start_again)
            await wait_all_tasks_blocked()
    assert len(errors) == 5
    assert manager.state is ManagerState.STOPPED


async def test_a_start_that_failed_takes_no_other_member_of_that_name_along(autojump_clock):
    """In the step in which a member fails to start, another of its name begins: it ends with its side."""
    stage = Stage("v2", nobody, print)
    seconds: list[Member] = []
    met = 0

    async def fail(*, task_status: trio.TaskStatus[None]) -> None:
        await trio.sleep(1)
        raise OSError("unplugged")

    async def add_another(first: Member) -> None:
        nonlocal met
        await first.done.wait()
        met += stage.members.get(first.name) is first
        seconds.append(part(first.name, trio.sleep_forever))
        await stage.add(seconds[-1])

    async with Manager([stage]) as manager:
        await manager.start()
        for number in range(30):  # which of the two tasks comes first in that step is chance
            async with trio.open_nursery() as nursery:
                first = Member(f"m{number}", fail)
                nursery.start_soon(add_another, first)
                with pytest.raises(OSError, match="unplugged"):
                    await stage.add(first)
        assert met > 0
        assert list(stage.members.values()) == seconds
        with trio.fail_after(10):
            await manager.shutdown(5)
    assert all(member.done.is_set() for member in seconds)


async def test_a_stop_that_comes_to_its_end_late_leaves_the_next_life_alone(autojump_clock):
    """A stage that another stop has ended meanwhile may run again when the first stop wakes up."""
    stage = Stage("v2", lambda stage: stage.add(part("m", hang)), print, stop_timeout=20)
    release = trio.Event()

    async def hang() -> None:
        if not release.is_set():
            with trio.CancelScope(shield=True):
                await release.wait()
        else:
            await trio.sleep_forever()

    async def restart_at_once() -> None:
        while not stage.has_ended:
            await trio.lowlevel.checkpoint()
        await manager.start()

    async with Manager([stage]) as manager, trio.open_nursery() as nursery:
        await manager.start()
        nursery.start_soon(stop_alone, stage, manager._running("stopping it"), 100.0)
        await trio.sleep(0.5)
        report = await manager.shutdown(1)
        assert [one.name for one in report.stuck] == ["m"]
        nursery.start_soon(restart_at_once)
        release.set()
        await trio.sleep(0.1)
        assert (manager.state, stage.is_running, stage.has_ended) == (ManagerState.RUNNING, True, False)


async def test_restarts_in_line_do_not_reach_the_next_life_of_their_side(autojump_clock):
    """Of a hundred who want a member restarted while its side is stopped and started, none starts the old one."""
    begun = []

    async def driver(context: DriverContext) -> None:
        begun.append(trio.current_time())
        await context.stopping.wait()
        await trio.sleep(0.5)

    async with lab() as manager, trio.open_nursery() as nursery:
        await manager.start()
        await manager.v2.spawn(driver, name="m")
        errors: list[Exception] = []

        async def restart() -> None:
            try:
                await manager.restart_actor("m")
            except (StoppingError, StateError) as error:
                errors.append(error)

        for _ in range(100):
            nursery.start_soon(restart)
        await trio.sleep(0.1)
        await manager.stop_v2(5)
        await manager.start_v2()
        await manager.v2.spawn(driver, name="m")
        await trio.sleep(10)
        assert len(errors) == 100
        with trio.fail_after(10):
            await manager.shutdown(5)
    assert len(begun) == 2


async def test_a_spawn_of_a_name_that_is_taken_harms_nobody(autojump_clock):
    """Be the actor of that name between two lives or in its first step: it stays what it is."""
    async with lab() as manager, trio.open_nursery() as nursery:
        await manager.start()
        ref = await manager.v4.spawn(
            Named, "one", faults=1, name="camera", supervision=Supervision(restart="always", required=False)
        )
        with pytest.raises(ValueError, match="camera"):
            await manager.v4.spawn(Named, "two", name="camera")
        [member] = manager.v4.stage.members.values()
        assert not member.done.is_set()
        await trio.sleep(1)
        assert ref.statistics().lives > 1
        assert ref.statistics().refused == 0
        nursery.start_soon(lambda: manager.v4.spawn(Named, "three", name="stage"))
        nursery.start_soon(refused, manager, "stage")
        await wait_all_tasks_blocked()
        assert await manager.v4.actor("stage").ask(Name(), timeout=1) == "three"


async def refused(manager: DualRuntimeManager, name: str) -> None:
    while name not in manager.v4.stage.members:
        await trio.lowlevel.checkpoint()
    with pytest.raises(ValueError, match=name):
        await manager.v4.spawn(Named, "four", name=name)


@pytest.mark.parametrize("required", [True, False])
async def test_a_start_that_hangs_is_a_fault_after_30_s(required, autojump_clock):
    """Spawned, it is told to who spawns; if it is not required, its policy goes on, as after any fault."""
    async with lab() as manager:
        await manager.start()
        rules = Supervision(restart="on_failure", required=required)
        if required:
            with pytest.raises(trio.TooSlowError, match="30 s"):
                await manager.v4.spawn(Slow, supervision=rules)
            assert trio.current_time() == pytest.approx(30)
            assert manager.v4.stage.members == {}
        else:
            ref = await manager.v4.spawn(Slow, supervision=rules)
            assert manager.v4_status() is Status.ERROR
            await trio.sleep(1)
            assert ref.statistics().lives == 2
            assert manager.v4.problems() == ["v4.Slow has not started: TooSlowError: it was not ready within 30 s"]


async def test_a_restart_that_hangs_keeps_no_other_waiting(autojump_clock):
    """While a member does not come up again, its siblings are restarted at once, and it is told after 30 s."""
    hangs = False

    class Camera(Actor):
        async def on_start(self) -> None:
            if hangs:
                await trio.sleep_forever()

    async with lab() as manager, trio.open_nursery() as nursery:
        await manager.start()
        await manager.v4.spawn(Camera)
        await manager.v4.spawn(Named, "it", name="sibling")
        hangs = True

        async def restart() -> None:
            with pytest.raises(trio.TooSlowError, match="30 s"):
                await manager.restart_actor("Camera")

        nursery.start_soon(restart)
        await trio.sleep(1)
        with trio.fail_after(1):
            await manager.restart_actor("sibling")
        await trio.sleep(30)
        assert manager.v4_status() is Status.ERROR


async def test_a_hurry_is_for_the_shutdown_that_is_under_way(autojump_clock):
    """Said when none is, it shortens nothing that comes later."""
    async with lab() as manager:
        await manager.start()
        manager.hurry()
        await manager.v2.spawn(slow)
        report = await manager.stop_v2()
        assert [one.outcome for one in report.members] == ["drained"]


async def test_a_restart_by_hand_is_none_of_the_policy(autojump_clock):
    """However often somebody restarts a member that is restarted always, be it by an end or a fault of the old life:
    neither is it given up, nor does the lab stop, nor are its pauses longer."""
    begun: list[float] = []

    async def driver() -> None:
        begun.append(trio.current_time())
        try:
            await trio.sleep(100 if len(begun) < 12 else 1)
        finally:
            if len(begun) % 2:
                raise OSError("the port was taken back")

    async with lab() as manager:
        await manager.start()
        rules = Supervision(restart="always", escalate="stop")
        await manager.v2.spawn(driver, supervision=rules)
        for _ in range(11):
            await manager.restart_actor("driver")
            await trio.sleep(0.1)
        await trio.sleep(2)
        assert (manager.state, manager.v2_status()) == (ManagerState.RUNNING, Status.ACTIVE)
    assert begun[12] - begun[11] == pytest.approx(1.2, abs=0.06)


async def test_a_restart_of_what_is_gone_by_then_says_so(autojump_clock):
    """A member that fails to start is forgotten in the step in which somebody asks for its restart: no KeyError."""
    stage = Stage("v2", nobody, print)
    async with Manager([stage]) as manager:
        await manager.start()
        with pytest.raises(StoppingError, match="'camera'"):
            await stage.restart("camera", lambda: None)


async def test_a_restart_of_what_is_still_being_spawned_leaves_no_orphan(autojump_clock):
    """Whichever of the two callers is told first: its actor is known as long as it lives, and ends with its side."""
    living: set[Actor] = set()
    lives = 0

    class Camera(Actor):
        async def on_start(self) -> None:
            nonlocal lives
            lives += 1
            living.add(self)
            await trio.sleep(100 if lives % 2 else 0)

        async def on_stop(self) -> None:
            living.discard(self)

    async def spawn(name: str) -> None:
        with pytest.raises(StoppingError):
            await manager.v4.spawn(Camera, name=name)

    async with lab() as manager, trio.open_nursery() as nursery:
        await manager.start()
        for number in range(20):  # who comes first is chance
            nursery.start_soon(spawn, f"m{number}")
            await trio.sleep(1)
            with contextlib.suppress(StoppingError):
                await manager.restart_actor(f"m{number}")
            lives = 2
        await trio.sleep(1)
        known = [member for member in manager.v4.stage.members.values() if not member.done.is_set()]
        assert len(known) == len(living) > 0
        with trio.fail_after(10):
            await manager.shutdown(8)
        assert living == set()
