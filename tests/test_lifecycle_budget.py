"""Properties of the ordered stop, over labs made at random: it ends in time, it keeps its order, it tells the truth."""

import itertools

import attrs
import trio
from hypothesis import event, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from trio_daq.lifecycle import Manager, Member, ShutdownReport, Stage

TICK = 1e-6
"""Sums of random fractions of seconds are not exact."""


@attrs.frozen
class Obedient:
    """Ends so many seconds after it was asked."""

    seconds: float


@attrs.frozen
class Stubborn:
    """Ignores the request, and ends so many seconds after it was cancelled."""

    seconds: float


@attrs.frozen
class Hung:
    """Hears nothing until so many seconds after it was started."""

    seconds: float


@attrs.frozen
class Quick:
    """Ends by itself before anybody asks."""


seconds = st.one_of(st.just(0.0), st.floats(0.01, 20.0))
behaviours = st.one_of(
    st.builds(Obedient, seconds),
    st.builds(Stubborn, seconds),
    st.builds(Hung, st.floats(50.0, 100.0)),
    st.just(Quick()),
)


@attrs.frozen
class Plan:
    """A stage: its own times, and how its members behave."""

    stop_timeout: float
    hard_timeout: float
    members: list[Obedient | Stubborn | Hung | Quick]


plans = st.lists(
    st.builds(Plan, st.floats(0.1, 10.0), st.floats(0.01, 3.0), st.lists(behaviours, max_size=3)),
    min_size=1,
    max_size=4,
)


def member(name: str, behaviour: Obedient | Stubborn | Hung | Quick, ends: dict[str, float]) -> Member:
    stopping = trio.Event()

    async def serve(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        try:
            match behaviour:
                case Obedient(seconds):
                    await stopping.wait()
                    await trio.sleep(seconds)
                case Stubborn(seconds):
                    try:
                        await trio.sleep_forever()
                    finally:
                        with trio.CancelScope(shield=True):
                            await trio.sleep(seconds)
                case Hung(seconds):
                    with trio.CancelScope(shield=True):
                        await trio.sleep(seconds)
        finally:
            ends[name] = trio.current_time()

    return Member(name, serve, stopping.set)


def stop_a_lab(plans: list[Plan], timeout: float) -> tuple[ShutdownReport, float, list[dict[str, float]]]:
    """Start such a lab, stop it, and return the report, the time that it took, and when each stage's members ended."""
    ends: list[dict[str, float]] = [{} for _ in plans]

    def stage(number: int, plan: Plan) -> Stage:
        async def populate(stage: Stage) -> None:
            for index, behaviour in enumerate(plan.members):
                await stage.add(member(f"{number}.{index}", behaviour, ends[number]))

        return Stage(str(number), populate, print, stop_timeout=plan.stop_timeout, hard_timeout=plan.hard_timeout)

    async def main() -> tuple[ShutdownReport, float]:
        async with Manager([stage(number, plan) for number, plan in enumerate(plans)]) as manager:
            await manager.start()
            await trio.sleep(1)
            begin = trio.current_time()
            report = await manager.shutdown(timeout)
            return report, trio.current_time() - begin

    report, took = trio.run(main, clock=MockClock(autojump_threshold=0))
    return report, took, ends


@settings(deadline=None)
@given(plans=plans, timeout=st.floats(0.1, 30.0))
def test_a_shutdown_returns_in_time_whatever_hangs(plans: list[Plan], timeout: float) -> None:
    """It takes no longer than its total, also when all members of all stages hang."""
    report, took, _ = stop_a_lab(plans, timeout)
    event(f"stuck: {bool(report.stuck)}")
    assert took <= timeout + TICK
    assert abs(report.seconds - took) < TICK


@settings(deadline=None)
@given(plans=plans, timeout=st.floats(0.1, 30.0))
def test_every_member_is_reported_as_what_it_did(plans: list[Plan], timeout: float) -> None:
    """Who had ended, drained, was cancelled, or is stuck: the report says it of each, stages in reverse."""
    report, _, _ = stop_a_lab(plans, timeout)
    assert [stage.name for stage in report.stages] == [str(number) for number in reversed(range(len(plans)))]
    for stage in report.stages:
        outcomes = {one.name: one.outcome for one in stage.members}
        assert len(outcomes) == len(plans[int(stage.name)].members)
        for index, behaviour in enumerate(plans[int(stage.name)].members):
            outcome = outcomes[f"{stage.name}.{index}"]
            match behaviour:
                case Quick():
                    assert outcome == "ended"
                case Hung():
                    assert outcome == "stuck"
                case Obedient():
                    assert outcome in ("drained", "cancelled")
                case Stubborn(seconds):
                    hard = plans[int(stage.name)].hard_timeout
                    assert outcome == "stuck" if seconds > hard + TICK else outcome in ("cancelled", "stuck")


@settings(deadline=None)
@given(plans=plans, timeout=st.floats(0.1, 30.0))
def test_a_stage_ends_before_the_next_is_stopped(plans: list[Plan], timeout: float) -> None:
    """Of two stages, the one started first ends last, but for members that are reported as stuck."""
    report, _, ends = stop_a_lab(plans, timeout)
    stuck = {one.name for one in report.stuck}
    quick = {
        f"{number}.{at}" for number, plan in enumerate(plans) for at, one in enumerate(plan.members) if one == Quick()
    }
    spans = [[end for name, end in stage.items() if name not in stuck | quick] for stage in ends]
    spans = [span for span in spans if span]
    for lower, upper in itertools.pairwise(spans):
        assert max(upper) <= min(lower)


@settings(deadline=None)
@given(plans=plans)
def test_enough_time_is_enough(plans: list[Plan]) -> None:
    """With the times of all stages as the total, every obedient member gets the whole grace of its stage."""
    total = sum(plan.stop_timeout + plan.hard_timeout for plan in plans)
    report, _, _ = stop_a_lab(plans, total)
    for stage in report.stages:
        plan = plans[int(stage.name)]
        for index, one in enumerate(stage.members):
            behaviour = plan.members[index]
            if isinstance(behaviour, Obedient) and abs(behaviour.seconds - plan.stop_timeout) > TICK:
                assert one.outcome == ("drained" if behaviour.seconds < plan.stop_timeout else "cancelled")


def test_time_that_a_blocked_event_loop_takes_is_not_that_of_the_next_stages() -> None:
    """They are late then, but have the seconds to be cancelled that were kept for them: a recorder must not be lost."""
    clock = MockClock(autojump_threshold=0)

    async def blocking(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            clock.jump(10)

    async def add_blocking(stage: Stage) -> None:
        await stage.add(Member("blocking", blocking))

    async def add_recorder(stage: Stage) -> None:
        await stage.add(member("recorder", Stubborn(0.4), {}))

    async def main() -> ShutdownReport:
        async with Manager([Stage("lower", add_recorder, print), Stage("upper", add_blocking, print)]) as manager:
            await manager.start()
            return await manager.shutdown(1)

    report = trio.run(main, clock=clock)
    assert {one.name: one.outcome for stage in report.stages for one in stage.members} == {
        "blocking": "cancelled",
        "recorder": "cancelled",
    }
