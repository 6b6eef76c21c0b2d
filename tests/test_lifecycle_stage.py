"""One stage and its members, on the virtual clock: how they start, how they are asked, cancelled and given up."""

from collections.abc import Callable

import pytest
import trio

from trio_daq.errors import LineOpenError, StoppingError
from trio_daq.lifecycle import Member, Stage


def never(stage: Stage, member: Member) -> None:
    raise AssertionError(f"{member.name} failed") from member.error


def stage_of(*members: Member, on_failure: Callable[[Stage, Member], object] = never, **times: float) -> Stage:
    """Make a stage with those members."""

    async def populate(stage: Stage) -> None:
        for member in members:
            await stage.add(member)

    return Stage("v4", populate, on_failure, **times)


def obedient(name: str, takes: float = 0.0, **options: float) -> Member:
    """A member that ends, when asked, after *takes* seconds."""
    stopping = trio.Event()

    async def serve(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await stopping.wait()
        await trio.sleep(takes)

    return Member(name, serve, stopping.set, **options)


def deaf(name: str) -> Member:
    """A member that cannot be asked, and ends when it is cancelled."""

    async def serve(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await trio.sleep_forever()

    return Member(name, serve)


def hung(name: str, seconds: float) -> Member:
    """A member that shields itself for *seconds* and hears nothing."""

    async def hang_in_driver(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        with trio.CancelScope(shield=True):
            await trio.sleep(seconds)

    return Member(name, hang_in_driver, lambda: None)


async def start(stage: Stage, nursery: trio.Nursery) -> None:
    stage.open()
    await nursery.start(stage.serve)


async def test_members_start_one_after_the_other(autojump_clock):
    """A member begins to start only when the one before it is ready."""
    seen = []

    def slow(name: str) -> Member:
        async def serve(*, task_status: trio.TaskStatus[None]) -> None:
            seen.append((trio.current_time() - begin, f"{name} begins"))
            await trio.sleep(2)
            task_status.started()
            seen.append((trio.current_time() - begin, f"{name} is ready"))

        return Member(name, serve)

    begin = trio.current_time()
    stage = stage_of(slow("a"), slow("b"))
    async with trio.open_nursery() as nursery:
        await start(stage, nursery)
        assert seen == [(0, "a begins"), (2, "a is ready"), (2, "b begins"), (4, "b is ready")]
        await stage.stop(1, 1)


async def test_members_stop_side_by_side_and_each_in_its_own_way(autojump_clock):
    """Who ends within the grace is drained, who does not is cancelled, who had ended before has just ended."""

    async def short(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()

    stage = stage_of(obedient("quick"), obedient("slow", 3), obedient("late", 7), deaf("deaf"), Member("short", short))
    async with trio.open_nursery() as nursery:
        await start(stage, nursery)
        await trio.sleep(1)
        report = await stage.stop(5, 1)
    assert [(one.name, one.outcome, one.seconds) for one in report.members] == [
        ("quick", "drained", 0),
        ("slow", "drained", 3),
        ("late", "cancelled", 5),
        ("deaf", "cancelled", 0),
        ("short", "ended", 0),
    ]
    assert (report.name, report.seconds, report.stuck) == ("v4", 5, ())
    assert stage.has_ended


async def test_a_member_that_hangs_shielded_is_reported_with_its_frames(autojump_clock):
    """After grace and hard time a member that still runs is stuck, and the report says in which function."""
    stage = stage_of(hung("camera", 60), obedient("dmm"))
    async with trio.open_nursery() as nursery:
        await start(stage, nursery)
        report = await stage.stop(2, 1)
        [stuck] = report.stuck
        assert (report.seconds, stuck.name, stuck.outcome) == (3, "camera", "stuck")
        assert any("hang_in_driver" in frame and __file__ in frame for frame in stuck.frames)
        assert not stage.has_ended
        assert not stage.is_running
        assert report.members[1].outcome == "drained"


@pytest.mark.parametrize(("of_member", "of_stage", "most", "expected"), [(9, 5, 20, 9), (1, 5, 20, 1), (9, 5, 3, 3)])
async def test_the_grace_of_a_member_is_its_own_within_what_is_left(
    of_member, of_stage, most, expected, autojump_clock
):
    """A member's own stop_timeout goes before its stage's, be it longer or shorter, and neither beyond what is left."""
    stage = stage_of(obedient("slow", 100, stop_timeout=of_member), stop_timeout=of_stage)
    async with trio.open_nursery() as nursery:
        await start(stage, nursery)
        report = await stage.stop(most, 1)
    assert report.seconds == expected


async def test_hurry_cuts_the_grace_short(autojump_clock):
    """Set in the middle of the grace, it cancels the members then."""
    stage = stage_of(obedient("slow", 100))
    async with trio.open_nursery() as nursery:
        await start(stage, nursery)

        async def hurry() -> None:
            await trio.sleep(2)
            stage.hurry.set()

        nursery.start_soon(hurry)
        report = await stage.stop(50, 1)
    assert (report.seconds, report.members[0].outcome) == (2, "cancelled")


async def test_a_member_that_cannot_be_asked_is_cancelled(autojump_clock, caplog):
    """If asking a member to stop raises, it is cancelled at once, the error is logged, and the others are unharmed."""

    def refuse() -> None:
        raise ValueError("not today")

    broken = deaf("broken")
    broken.request_stop = refuse
    stage = stage_of(broken, obedient("well", 1))
    async with trio.open_nursery() as nursery:
        await start(stage, nursery)
        report = await stage.stop(5, 1)
    assert [one.outcome for one in report.members] == ["cancelled", "drained"]
    assert "not today" in caplog.text


async def test_a_start_that_fails_cancels_the_rest_of_the_stage(autojump_clock):
    """The error of the member that failed comes out as it is, and nothing of the stage is left."""
    error = LineOpenError(resource="/dev/ttyUSB0", reason="no such file")

    async def fail(*, task_status: trio.TaskStatus[None]) -> None:
        raise error

    first = deaf("first")
    stage = stage_of(first, Member("second", fail), deaf("third"))
    async with trio.open_nursery() as nursery:
        with pytest.raises(LineOpenError) as caught:
            await start(stage, nursery)
    assert caught.value is error
    assert stage.starting == "second"
    assert first.done.is_set()
    assert list(stage.members) == ["first"]
    assert stage.has_ended


async def test_a_start_that_hangs_can_be_timed_out(autojump_clock):
    """A stage is not shielded before it has started."""

    async def hang(*, task_status: trio.TaskStatus[None]) -> None:
        await trio.sleep_forever()

    stage = stage_of(Member("hanging", hang))
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(5) as limit:
            await start(stage, nursery)
    assert limit.cancelled_caught
    assert trio.current_time() == 5


async def test_a_running_stage_is_deaf_to_cancellation_from_outside(autojump_clock):
    """Only `stop` ends the members of a stage that has started."""
    stage = stage_of(obedient("dmm", 2))
    async with trio.open_nursery() as nursery:
        await start(stage, nursery)
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.sleep(10)
            assert not stage.members["dmm"].done.is_set()
            report = await stage.stop(5, 1)
    assert report.members[0].outcome == "drained"


async def test_a_member_that_fails_leaves_its_siblings_alone(autojump_clock):
    """Its stage is told, keeps its error for the report, and goes on."""

    async def fail(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await trio.sleep(1)
        raise OSError("unplugged")

    told = []
    stage = stage_of(
        Member("bad", fail), obedient("good"), on_failure=lambda stage, member: told.append((stage.name, member.name))
    )
    async with trio.open_nursery() as nursery:
        await start(stage, nursery)
        await trio.sleep(2)
        assert told == [("v4", "bad")]
        assert not stage.members["good"].done.is_set()
        report = await stage.stop(5, 1)
    assert [one.outcome for one in report.members] == ["failed", "drained"]
    assert str(report.members[0].error) == "unplugged"


async def test_a_stage_that_does_not_run_takes_no_members(autojump_clock):
    """Adding a member before the start, while it stops, or afterwards is refused, naming both."""
    stage = stage_of(obedient("slow", 2))

    async def refused() -> None:
        with pytest.raises(StoppingError) as caught:
            await stage.add(deaf("new"))
        assert caught.value.subsystem == "v4"
        assert "'new'" in caught.value.action

    await refused()
    async with trio.open_nursery() as nursery:
        await start(stage, nursery)
        nursery.start_soon(stage.stop, 5, 1)
        await trio.sleep(1)
        await refused()
    await refused()


async def test_a_running_name_is_taken_and_an_ended_one_is_free(autojump_clock):
    """Two running members have two names; a name can be used again when its member has ended."""
    first = obedient("dmm")
    stage = stage_of(first)
    async with trio.open_nursery() as nursery:
        await start(stage, nursery)
        with pytest.raises(ValueError, match="'dmm'"):
            await stage.add(deaf("dmm"))
        first.request_stop()
        await first.done.wait()
        await stage.add(deaf("dmm"))
        report = await stage.stop(5, 1)
    assert [(one.name, one.outcome) for one in report.members] == [("dmm", "cancelled")]


async def test_a_member_stopped_while_it_starts_says_so_to_its_starter(autojump_clock):
    """Whoever adds a member that the stop of the stage overtakes gets a StoppingError, in time."""

    async def slow_start(*, task_status: trio.TaskStatus[None]) -> None:
        await trio.sleep(100)
        task_status.started()

    stage = stage_of()
    async with trio.open_nursery() as nursery:
        await start(stage, nursery)
        nursery.start_soon(trio.sleep, 0)

        async def add() -> None:
            with pytest.raises(StoppingError):
                await stage.add(Member("slow", slow_start))

        nursery.start_soon(add)
        await trio.sleep(1)
        report = await stage.stop(5, 1)
    assert trio.current_time() == 2 - 1
    assert report.seconds == 0


async def test_a_member_that_fails_to_start_is_forgotten(autojump_clock):
    """Its error went to whoever added it; it is no failure of the stage."""

    async def fail(*, task_status: trio.TaskStatus[None]) -> None:
        raise OSError("not there")

    stage = stage_of(obedient("dmm"))
    async with trio.open_nursery() as nursery:
        await start(stage, nursery)
        with pytest.raises(OSError, match="not there"):
            await stage.add(Member("bad", fail))
        report = await stage.stop(5, 1)
    assert [one.name for one in report.members] == ["dmm"]


async def test_what_a_member_left_behind_is_in_its_report():
    """Threads that were given up and messages that nobody handled are told when the report is made."""
    left = []

    async def serve(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            left.append("thread 1")

    member = Member("old", serve, abandoned_threads=lambda: tuple(left), dropped_messages=lambda: 3 * len(left))
    stage = stage_of(member)
    async with trio.open_nursery() as nursery:
        await start(stage, nursery)
        report = await stage.stop(1, 1)
    assert (report.members[0].abandoned_threads, report.members[0].dropped_messages) == (("thread 1",), 3)
