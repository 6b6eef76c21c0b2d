"""An object that several owners use one at a time: with tasks on the virtual clock, and from a real thread."""

import threading
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from trio_daq.config import DualConfig, RecordingConfig, SubsystemConfig
from trio_daq.errors import (
    AcquireTimeoutError,
    LeaseRevokedError,
    LockOrderError,
    PortBusyError,
    UnknownNameError,
)
from trio_daq.legacy import DeviceDoor
from trio_daq.lifecycle import DualRuntimeManager
from trio_daq.sharing import Lease, LineKind, SharedDevice, acquire_all


class Camera:
    """It notes who is inside, and cannot be used by two at once."""

    def __init__(self) -> None:
        self.inside: str | None = None
        self.frames: list[str] = []

    async def expose(self, who: str, seconds: float) -> None:
        assert self.inside is None, f"{who} came while {self.inside} was exposing"
        self.inside = who
        try:
            await trio.sleep(seconds)
            self.frames.append(who)
        finally:
            self.inside = None


def lab() -> DualRuntimeManager:
    return DualRuntimeManager(
        DualConfig(v2=SubsystemConfig(), v4=SubsystemConfig(), recording=RecordingConfig(enabled=False))
    )


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0, 1), st.sampled_from([0.1, 1.0, 5.0])), max_size=8))
def test_it_is_used_by_one_at_a_time_in_the_order_of_asking(wishes: list[tuple[float, float, float]]) -> None:
    """Whoever asks when, exposes for how long and waits how patiently: never two at once, first come first served."""
    camera = Camera()
    asked: list[tuple[float, int]] = []
    served: list[int] = []
    refused: list[tuple[float, str | None]] = []

    async def use(shared: SharedDevice[Camera], number: int, at: float, seconds: float, patience: float) -> None:
        await trio.sleep(at)
        asked.append((trio.current_time(), number))
        try:
            async with shared.acquire(f"owner {number}", timeout=patience) as device:
                served.append(number)
                await device.expose(f"owner {number}", seconds)
        except AcquireTimeoutError as error:
            refused.append((error.waited - patience, error.held_by))

    async def main() -> None:
        shared = SharedDevice("camera", camera)
        async with trio.open_nursery() as nursery:
            for number, wish in enumerate(wishes):
                nursery.start_soon(use, shared, number, *wish)
        assert shared.is_available()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    in_order = [number for _, number in asked if number in served]
    assert served == in_order
    assert camera.frames == [f"owner {number}" for number in served]
    assert len(served) + len(refused) == len(wishes)
    assert all(abs(late) < 1e-6 and holder is not None for late, holder in refused)


async def test_who_has_it_is_told_to_who_wants_it(autojump_clock):
    """The errors name the thing, the owner and who wants it; timeout=0 does not wait."""
    shared = SharedDevice("camera", Camera(), acquire_timeout=1.0)
    diary: list[str] = []

    async def want() -> None:
        with pytest.raises(PortBusyError, match="camera"):
            async with shared.acquire("viewer", timeout=0):
                pass
        with pytest.raises(AcquireTimeoutError, match=r"camera: 'viewer' .*'logger'"):
            async with shared.acquire("viewer"):
                pass
        diary.append("refused twice")

    async with trio.open_nursery() as nursery, shared.acquire("logger"):
        assert (shared.current_owner(), shared.is_available()) == ("logger", False)
        nursery.start_soon(want)
        await trio.sleep(2)
    assert diary == ["refused twice"]
    assert shared.current_owner() is None


async def test_its_block_is_cancelled_when_it_is_taken_back(autojump_clock):
    """The next in line has it at once; the old owner's block ends by LeaseRevokedError, whatever it waited for."""
    shared = SharedDevice("camera", Camera())
    diary: list[str] = []

    async def keep() -> None:
        with pytest.raises(LeaseRevokedError, match="it was needed"):
            async with shared.acquire("keeper"):
                await trio.sleep_forever()
        diary.append("keeper left")

    async def wait() -> None:
        async with shared.acquire("waiter", timeout=5):
            diary.append("waiter has it")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert shared.revoke("it was needed", member="somebody else") is None
        assert shared.revoke("it was needed") == "keeper"
    assert sorted(diary) == ["keeper left", "waiter has it"]


async def test_it_is_taken_back_from_one_who_has_not_noticed_that_they_have_it(autojump_clock):
    """Revoked between the grant and the next step of the task that got it: that task does not enter, the next does."""
    shared = SharedDevice("camera", Camera())
    diary: list[str] = []

    async def use(name: str) -> None:
        try:
            async with shared.acquire(name, timeout=5) as camera:
                await camera.expose(name, 1)
                diary.append(name)
        except LeaseRevokedError as error:
            diary.append(f"{name} was told: {error.reason}, sent {error.sent}")

    async with trio.open_nursery() as nursery:
        async with shared.acquire("first", timeout=5):
            for name in ("second", "third"):
                nursery.start_soon(use, name)
                await trio.testing.wait_all_tasks_blocked()
        assert shared.revoke("it was needed") == "second"
    assert diary == ["second was told: it was needed, sent no", "third"]


async def test_it_is_taken_back_after_max_hold(autojump_clock):
    """An owner who keeps it too long loses it, and is told for how long that was allowed."""
    shared = SharedDevice("camera", Camera(), max_hold=2.0)
    began = trio.current_time()
    with pytest.raises(LeaseRevokedError, match="more than 2 s"):
        async with shared.acquire("keeper"):
            await trio.sleep_forever()
    assert trio.current_time() - began == pytest.approx(2.0)


async def test_a_cancelled_owner_leaves_it_free_and_is_no_error(autojump_clock):
    """Cancelled inside its block or while it waits, nothing is held and nothing but the cancellation is raised."""
    shared = SharedDevice("camera", Camera())
    with trio.move_on_after(1) as scope:
        async with shared.acquire("one"):
            await trio.sleep_forever()
    assert scope.cancelled_caught

    async def wait() -> None:
        async with shared.acquire("three", timeout=50):
            pytest.fail("it was not free")

    with trio.move_on_after(1) as scope:
        async with trio.open_nursery() as nursery, shared.acquire("two"):
            nursery.start_soon(wait)
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert shared.is_available()
    assert shared.statistics().waiting == ()


async def test_its_place_is_after_serial_ports_and_before_visa(autojump_clock):
    """A task that has a VISA transaction may not ask for it; acquire_all takes it in the right order."""
    shared = SharedDevice("camera", Camera())
    visa = Lease("dmm", kind=LineKind.VISA)
    async with visa.hold("one"):
        with pytest.raises(LockOrderError):
            async with shared.acquire("one"):
                pass
    other = SharedDevice("stage", Camera())
    async with acquire_all(other, shared, owner="both", timeout=1) as (stage, camera):
        assert (stage is other._device, camera is shared._device) == (True, True)
        assert (other.current_owner(), shared.current_owner()) == ("both", "both")


# --- in a lab ------------------------------------------------------------------------------------------------------


async def test_a_lab_finds_it_by_name_and_shows_who_has_it(autojump_clock):
    """share and get_shared give one object, over a stop and a start; a wrong name lists the right ones."""
    manager = lab()
    shared = manager.share("camera", Camera())
    with pytest.raises(ValueError, match="'camera' is shared already"):
        manager.share("camera", object())
    with pytest.raises(UnknownNameError, match="camera"):
        manager.get_shared("cam")
    async with manager:
        for _ in range(2):
            await manager.start()
            assert manager.get_shared("camera") is shared
            async with shared.acquire("logger"):
                [line] = manager.snapshot().lines
                assert (line.name, line.kind, line.owner) == ("camera", "device", "logger")
            await manager.shutdown(5)


async def test_a_member_loses_it_when_it_is_restarted_under_whatever_name(autojump_clock):
    """restart_actor gives it to who waits before the new life begins, also if the owner's name is not the member's."""
    manager = lab()
    shared = manager.share("camera", Camera())
    lives: list[str] = []

    async def hang() -> None:
        lives.append("begins")
        async with shared.acquire("a name of its own", timeout=5):
            with trio.CancelScope(shield=True):
                await trio.sleep(0.5)
                lives.append("ends")
            await trio.sleep_forever()

    async def wait() -> None:
        async with shared.acquire("waiter", timeout=5):
            lives.append("waiter")

    async with manager, trio.open_nursery() as nursery:
        await manager.start()
        await manager.v2.spawn(hang)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await manager.restart_actor("hang")
        await trio.testing.wait_all_tasks_blocked()
        assert lives == ["begins", "waiter", "ends", "begins"]
        await manager.shutdown(5)


async def test_a_stuck_member_loses_what_it_has_when_its_side_is_given_up(autojump_clock):
    """After the hard deadline others get the device, although its owner still runs; the report names the owner."""
    manager = lab()
    shared = manager.share("camera", Camera())

    async def stick() -> None:
        async with shared.acquire("sticky", timeout=5):
            with trio.CancelScope(shield=True):
                await trio.sleep(100)

    async with manager:
        await manager.start()
        await manager.v4.stage.add(  # any member of that side
            manager_member("sticky", stick)
        )
        await trio.testing.wait_all_tasks_blocked()
        report = await manager.stop_v4(1)
        assert [member.name for member in report.stuck] == ["sticky"]
        async with shared.acquire("next", timeout=0):
            pass


def manager_member(name: str, work: Any) -> Any:
    from trio_daq.lifecycle import Member

    async def serve(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await work()

    return Member(name, serve)


async def test_a_thread_has_it_through_a_door():
    """A real thread gets the object itself for its block, waits in the same line, and gives it back at its stop."""
    manager = lab()
    shared = manager.share("camera", Camera())
    has_it, may_leave = threading.Event(), threading.Event()
    seen: list[object] = []

    def old_driver(camera: DeviceDoor[Camera]) -> None:
        with camera.exclusive(timeout=5) as device:
            seen.append(device)
            has_it.set()
            may_leave.wait(5)

    async with manager:
        await manager.start()
        async with shared.acquire("first"):
            await manager.v2.spawn_thread(old_driver, shared, name="old")
            await trio.sleep(0.1)
            assert not has_it.is_set()
        await trio.to_thread.run_sync(has_it.wait, 5)
        assert shared.current_owner() == "old"
        with pytest.raises(AcquireTimeoutError):
            async with shared.acquire("second", timeout=0.1):
                pass
        may_leave.set()
        async with shared.acquire("second", timeout=5):
            pass
        await manager.wait_all_ended()
        assert seen == [shared._device]
