"""A manager of stages, on the virtual clock: its order, its states, and what its block raises."""

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_daq.errors import LineOpenError, StartError, StateError, StoppingError, StuckError
from trio_daq.lifecycle import Manager, ManagerState, Member, Stage


class Lab:
    """A manager of stages whose members write a diary.

    Args:
        stages: What each stage, by its name, adds to itself when it starts.
        options: The manager's.
    """

    def __init__(self, stages: dict[str, Callable[["Lab"], list[Member]]], **options: Any) -> None:
        self.diary: list[str] = []
        self.reports: list[Any] = []
        self.stages = {name: self._stage(name, make) for name, make in stages.items()}
        self.manager = Manager(tuple(self.stages.values()), on_report=self.reports.append, **options)

    def _stage(self, name: str, make: Callable[["Lab"], list[Member]]) -> Stage:
        async def populate(stage: Stage) -> None:
            for member in make(self):
                await stage.add(member)

        return Stage(name, populate, lambda stage, member: self.manager._member_failed(stage, member))

    def member(self, name: str, drain: float = 0.0, start: float = 0.0) -> Member:
        """A member that is ready after *start* seconds and, asked, ends after *drain* more."""
        stopping = trio.Event()

        async def serve(*, task_status: trio.TaskStatus[None]) -> None:
            self.note(f"{name} starts")
            try:
                await trio.sleep(start)
                task_status.started()
                await stopping.wait()
                await trio.sleep(drain)
            finally:
                self.note(f"{name} ended")

        def stop() -> None:
            self.note(f"{name} is asked")
            stopping.set()

        return Member(name, serve, stop)

    def running(self, name: str, work: Callable[[], Awaitable[object]]) -> Member:
        """A member that does *work*, and is cancelled when it has to stop."""

        async def serve(*, task_status: trio.TaskStatus[None]) -> None:
            task_status.started()
            await work()

        return Member(name, serve)

    def failing(self, name: str, error: BaseException, after: float = 1.0) -> Member:
        """A member that fails after some time."""

        async def fail() -> None:
            await trio.sleep(after)
            raise error

        return self.running(name, fail)

    def hung(self, name: str, seconds: float) -> Member:
        """A member that hears nothing for *seconds*."""

        async def hang() -> None:
            with trio.CancelScope(shield=True):
                await trio.sleep(seconds)

        return self.running(name, hang)

    async def run(self, body: Callable[[], Awaitable[object]] = trio.sleep_forever) -> None:
        """Start, do *body*, and leave the block."""
        async with self.manager as manager:
            await manager.start()
            await body()

    def note(self, what: str) -> None:
        self.diary.append(what)


def lab_of_three(**options: Any) -> Lab:
    """Hardware, V2 and V4 with a member each, the sides with some time to drain."""
    return Lab(
        {
            "hardware": lambda lab: [lab.member("port")],
            "v2": lambda lab: [lab.member("logger", drain=1)],
            "v4": lambda lab: [lab.member("actor", drain=2)],
        },
        **options,
    )


STARTED = ["port starts", "logger starts", "actor starts"]
IN_ORDER = ["actor is asked", "actor ended", "logger is asked", "logger ended", "port is asked", "port ended"]


# --- the order -------------------------------------------------------------------------------------------------------


async def test_stages_stop_in_the_reverse_order_of_their_start(autojump_clock):
    """A stage is asked to stop only when the one that started after it has ended; the report says so too."""
    lab = lab_of_three()
    async with lab.manager as manager:
        await manager.start()
        assert lab.diary == STARTED
        report = await manager.shutdown(10)
    assert lab.diary == STARTED + IN_ORDER
    assert [stage.name for stage in report.stages] == ["v4", "v2", "hardware"]
    assert [stage.seconds for stage in report.stages] == [2, 1, 0]
    assert [member.outcome for stage in report.stages for member in stage.members] == ["drained"] * 3
    assert (report.seconds, report.timeout, report.reason) == (3, 10, "shutdown() was called")
    assert lab.reports == [report]


async def test_leaving_the_block_stops_in_order(autojump_clock):
    """Nobody needs to call shutdown()."""
    lab = lab_of_three()
    async with lab.manager as manager:
        await manager.start()
    assert lab.diary == STARTED + IN_ORDER
    assert manager.state is ManagerState.STOPPED
    assert manager.report is lab.reports[0]
    assert manager.report.reason == "the block ended"


async def test_cancelling_the_block_from_outside_keeps_the_order(autojump_clock):
    """An outer deadline ends the body, and the stages all the same one after the other."""
    lab = lab_of_three()
    with trio.move_on_after(5) as limit:
        async with lab.manager as manager:
            await manager.start()
            await trio.sleep_forever()
    assert limit.cancelled_caught
    assert lab.diary == STARTED + IN_ORDER
    assert trio.current_time() == 5 + 3
    assert [member.outcome for stage in manager.report.stages for member in stage.members] == ["drained"] * 3


async def test_request_shutdown_cancels_the_body_first(autojump_clock):
    """The body is over before the first member is asked to stop."""
    lab = lab_of_three()
    async with lab.manager as manager:
        await manager.start()

        async def ask() -> None:
            await trio.sleep(1)
            manager.request_shutdown("the user is tired")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            try:
                await trio.sleep_forever()
            finally:
                lab.note("the body ended")
    assert lab.diary == [*STARTED, "the body ended", *IN_ORDER]
    assert manager.report.reason == "the user is tired"


async def test_a_body_that_does_not_leave_is_not_waited_for(autojump_clock):
    """After a second the stages are stopped under it."""
    lab = lab_of_three()
    async with lab.manager as manager:
        await manager.start()
        manager.request_shutdown()
        with trio.CancelScope(shield=True):
            await trio.sleep(60)
            assert manager.state is ManagerState.STOPPED
            assert manager.report.seconds == 1 + 3


async def test_a_member_may_ask_for_the_shutdown(autojump_clock):
    """request_shutdown() from inside a member stops everything in order, that member included."""
    lab = Lab(
        {
            "v2": lambda lab: [lab.member("logger")],
            "v4": lambda lab: [lab.running("watchdog", lambda: watch(lab))],
        }
    )

    async def watch(lab: Lab) -> None:
        await trio.sleep(1)
        lab.manager.request_shutdown("the room is on fire")
        lab.note("asked")
        await trio.sleep_forever()

    async with lab.manager as manager:
        await manager.start()
        await trio.sleep_forever()
    assert lab.diary == ["logger starts", "asked", "logger is asked", "logger ended"]
    assert manager.report.reason == "the room is on fire"


# --- who waits for the shutdown --------------------------------------------------------------------------------------


async def test_a_cancelled_caller_does_not_stop_the_shutdown(autojump_clock):
    """It stops waiting; the shutdown goes on, and the next caller gets the one report there is."""
    lab = lab_of_three()
    async with lab.manager as manager:
        await manager.start()
        with trio.move_on_after(0.5) as impatient:
            await manager.shutdown(10)
        assert impatient.cancelled_caught
        assert manager.state is ManagerState.SHUTTING_DOWN
        report = await manager.shutdown(99)
        assert (report.seconds, report.timeout) == (3, 10)
        assert await manager.shutdown() is report
    assert lab.reports == [report]
    assert lab.diary == STARTED + IN_ORDER


async def test_callers_at_the_same_time_share_one_report(autojump_clock):
    """There is one shutdown, however many ask for it."""
    lab = lab_of_three()
    got = []

    async def ask() -> None:
        got.append(await lab.manager.shutdown(10))

    async with lab.manager as manager:
        await manager.start()
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
    assert got == lab.reports * 5
    assert len(lab.reports) == 1


async def test_shutdown_from_inside_a_member_is_refused(autojump_clock):
    """A member, or a child of one, would wait for itself; the error says what to do instead."""
    refused = []

    async def child() -> None:
        with pytest.raises(StateError) as caught:
            await lab.manager.shutdown()
        refused.append(caught.value)

    async def member() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)

    lab = Lab({"v4": lambda lab: [lab.running("suicidal", member)]})
    async with lab.manager as manager:
        await manager.start()
        await wait_all_tasks_blocked()
        assert manager.state is ManagerState.RUNNING
    assert "'suicidal'" in refused[0].actual
    assert "request_shutdown()" in refused[0].hint


async def test_a_member_may_own_a_manager_and_shut_that_down(autojump_clock):
    """What is refused is waiting for oneself, not shutting another manager down."""
    inner = lab_of_three()

    async def own() -> None:
        async with inner.manager as manager:
            await manager.start()
            await manager.shutdown(10)

    lab = Lab({"v2": lambda lab: [lab.running("owner", own)]})
    async with lab.manager as manager:
        await manager.start()
        await lab.stages["v2"].wait_all_ended()
    assert inner.diary == STARTED + IN_ORDER
    assert manager.report.failed == ()


# --- time ------------------------------------------------------------------------------------------------------------


async def test_a_hung_member_delays_the_next_stage_only_by_its_time(autojump_clock, caplog):
    """It is reported as stuck, the stages below still stop in order, and the block leaves when it has ended."""
    lab = Lab(
        {
            "hardware": lambda lab: [lab.member("port")],
            "v2": lambda lab: [lab.member("logger", drain=1)],
            "v4": lambda lab: [lab.hung("camera", 100)],
        }
    )
    async with lab.manager as manager:
        await manager.start()
        report = await manager.shutdown(10)
        assert [member.name for member in report.stuck] == ["camera"]
        assert (trio.current_time(), report.seconds) == (1 + 1, 1 + 1)  # cancelled at once, as it cannot be asked
        assert lab.diary[-4:] == IN_ORDER[2:]
    assert trio.current_time() == 100
    nags = [record for record in caplog.records if "cannot leave: camera" in record.getMessage()]
    assert len(nags) == math.ceil((100 - 2) / 5)


async def test_the_hard_time_of_later_stages_is_reserved(autojump_clock):
    """A first stage that wants more than there is gets its grace cut, and the last one still has its second."""
    lab = Lab(
        {
            "hardware": lambda lab: [lab.running("port", lambda: leave_slowly(0.9))],
            "v2": lambda lab: [lab.member("logger", drain=100)],
            "v4": lambda lab: [lab.member("actor", drain=100)],
        }
    )

    async def leave_slowly(seconds: float) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(seconds)

    async with lab.manager as manager:
        await manager.start()
        report = await manager.shutdown(4)
    v4, v2, hardware = report.stages
    assert (v4.seconds, v4.members[0].outcome) == (1, "cancelled")  # 4 s without the three hard seconds
    assert (v2.seconds, v2.members[0].outcome) == (1, "cancelled")  # V4 left at once, so its hard second is there
    assert (hardware.seconds, hardware.members[0].outcome) == (pytest.approx(0.9), "cancelled")


async def test_hurry_cuts_all_graces_short(autojump_clock):
    """After it nobody is waited for but to be cancelled, in order."""
    lab = Lab(
        {
            "v2": lambda lab: [lab.member("logger", drain=3)],
            "v4": lambda lab: [lab.member("actor", drain=3)],
        }
    )
    async with lab.manager as manager:
        await manager.start()

        async def hurry() -> None:
            await trio.sleep(1)
            manager.hurry()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hurry)
            report = await manager.shutdown(20)
    assert report.seconds == 1
    assert [member.outcome for stage in report.stages for member in stage.members] == ["cancelled", "cancelled"]
    assert lab.diary[2:] == ["actor is asked", "actor ended", "logger is asked", "logger ended"]


# --- errors ----------------------------------------------------------------------------------------------------------


async def test_an_exception_of_the_body_stays_bare(autojump_clock):
    """It is the very object, in no group, and the lab was stopped in order before."""
    lab = lab_of_three()
    error = KeyError("sample")

    async def fail() -> None:
        raise error

    with pytest.raises(KeyError) as caught:
        await lab.run(fail)
    assert caught.value is error
    assert lab.diary == STARTED + IN_ORDER
    assert lab.reports[0].reason == "the block raised KeyError"


async def test_a_bug_in_a_member_stops_everything_and_is_raised_bare(autojump_clock):
    """The body is cancelled, the stages stop in order, and the very TypeError comes out of the block."""
    error = TypeError("3 + 'volt'")
    lab = Lab(
        {
            "hardware": lambda lab: [lab.member("port")],
            "v2": lambda lab: [lab.member("logger"), lab.failing("buggy", error)],
            "v4": lambda lab: [lab.member("actor")],
        }
    )
    with pytest.raises(TypeError) as caught:
        await lab.run()
    assert caught.value is error
    assert lab.diary == STARTED + IN_ORDER
    assert [member.name for member in lab.reports[0].failed] == ["buggy"]
    assert "buggy" in lab.reports[0].reason


async def test_a_bug_met_while_stopping_is_raised_too(autojump_clock):
    """A bug in a member's own clean-up is not swallowed, also when the body waits for the report."""

    async def clumsy() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise NameError("colse")

    lab = Lab({"hardware": lambda lab: [lab.member("port")], "v4": lambda lab: [lab.running("clumsy", clumsy)]})
    with pytest.raises(NameError, match="colse"):
        await lab.run(lab.manager.shutdown)
    assert lab.diary == ["port starts", "port is asked", "port ended"]


async def test_a_bug_is_not_lost_to_a_deadline_outside(autojump_clock):
    """Where an outer deadline and a bug end the block together, the bug comes out."""

    async def clumsy() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise NameError("colse")

    lab = Lab({"v4": lambda lab: [lab.running("clumsy", clumsy)]})

    async def run() -> None:
        with trio.move_on_after(5):
            await lab.run()

    with pytest.raises(NameError):
        await run()


async def test_an_exception_of_the_body_goes_before_a_bug(autojump_clock):
    """The body's own exception comes out, with a note on the bug that met it."""
    lab = Lab({"v4": lambda lab: [lab.failing("buggy", TypeError("3 + 'volt'"))]})

    async def fail() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise KeyError("sample")

    with pytest.raises(KeyError) as caught:
        await lab.run(fail)
    assert any("3 + 'volt'" in note for note in caught.value.__notes__)


async def test_sys_exit_in_a_member_is_an_ordered_end_of_the_program(autojump_clock):
    """SystemExit ends the lab in order, and then passes with its code."""
    lab = Lab(
        {
            "v2": lambda lab: [lab.member("logger"), lab.failing("quitter", SystemExit(7))],
            "v4": lambda lab: [lab.member("actor")],
        }
    )
    with pytest.raises(SystemExit) as caught:
        await lab.run()
    assert caught.value.code == 7
    assert lab.diary[2:] == ["actor is asked", "actor ended", "logger is asked", "logger ended"]


class NoOrdinaryError(BaseException):
    """As some test and task libraries have them, to pass every `except Exception`."""


@pytest.mark.parametrize("error", [NoOrdinaryError("out"), GeneratorExit()], ids=lambda error: type(error).__name__)
async def test_a_member_that_raises_what_is_no_exception_ends_the_lab_in_order(autojump_clock, error):
    """Its siblings are asked to end, it is in the report, and its error leaves the block."""
    lab = Lab(
        {
            "v2": lambda lab: [lab.member("logger"), lab.failing("strange", error)],
            "v4": lambda lab: [lab.member("actor")],
        }
    )
    with pytest.raises(type(error)) as caught:
        await lab.run()
    assert caught.value is error
    assert lab.diary[2:] == ["actor is asked", "actor ended", "logger is asked", "logger ended"]
    assert lab.manager.report.reason == f"strange ended by {type(error).__name__}"
    assert [member.name for member in lab.manager.report.failed] == ["strange"]
    assert lab.manager.report.exit_code == 1


async def test_a_fault_of_the_lab_stops_nothing(autojump_clock):
    """A member that fails by an OSError is in the report; all others went on, and the block raises nothing."""
    lab = Lab(
        {
            "v2": lambda lab: [lab.failing("unplugged", OSError("gone")), lab.member("logger")],
            "v4": lambda lab: [lab.member("actor")],
        }
    )
    async with lab.manager as manager:
        await manager.start()
        await trio.sleep(10)
        assert manager.state is ManagerState.RUNNING
        assert not any("asked" in line for line in lab.diary)
    assert [(member.name, str(member.error)) for member in manager.report.failed] == [("unplugged", "gone")]


async def test_a_listener_that_fails_does_not_hold_the_shutdown_up(autojump_clock):
    """An on_report that raises, say for a closed terminal, cannot make the block hang; the block raises its error."""

    def report(_: object) -> None:
        raise BrokenPipeError("the reader is gone")

    async def populate(stage: Stage) -> None: ...

    with pytest.raises(BrokenPipeError):
        async with Manager([Stage("v2", populate, print)], on_report=report) as manager:
            await manager.start()
    assert manager.state is ManagerState.STOPPED


# --- the start -------------------------------------------------------------------------------------------------------


def lab_with_bad_start(bad: Callable[[Lab], Member], **options: Any) -> Lab:
    return Lab(
        {
            "recording": lambda lab: [lab.member("recorder")],
            "hardware": lambda lab: [lab.member("port")],
            "v2": lambda lab: [bad(lab)],
            "v4": lambda lab: [lab.member("actor")],
        },
        **options,
    )


ROLLED_BACK = ["port is asked", "port ended", "recorder is asked", "recorder ended"]


async def test_a_failed_start_is_rolled_back_in_reverse(autojump_clock):
    """What had started is stopped in order; the error says who, why, and how the rest was stopped."""
    error = LineOpenError(resource="/dev/ttyUSB0", reason="no such file")

    def bad(lab: Lab) -> Member:
        async def fail(*, task_status: trio.TaskStatus[None]) -> None:
            raise error

        return Member("stage", fail)

    lab = lab_with_bad_start(bad)
    with pytest.raises(StartError) as caught:
        async with lab.manager as manager:
            await manager.start()
    assert caught.value.member == "v2.stage"
    assert caught.value.cause is error
    assert caught.value.__cause__ is error
    assert [stage.name for stage in caught.value.report.stages] == ["hardware", "recording"]
    assert lab.diary[-4:] == ROLLED_BACK
    assert "actor starts" not in lab.diary
    assert manager.state is ManagerState.STOPPED
    assert str(error) in str(caught.value)


async def test_a_start_that_hangs_is_timed_out(autojump_clock):
    """After 30 s the start of a stage is given up, and what had started is stopped."""
    lab = lab_with_bad_start(lambda lab: lab.member("sleepy", start=math.inf))
    with pytest.raises(StartError) as caught:
        async with lab.manager as manager:
            await manager.start()
    assert trio.current_time() == 30
    assert caught.value.member == "v2.sleepy"
    assert isinstance(caught.value.cause, trio.TooSlowError)
    assert "30 s" in str(caught.value)
    assert lab.diary[-4:] == ROLLED_BACK


async def test_a_cancelled_start_is_rolled_back(autojump_clock):
    """Whoever cancels start() finds the lab stopped again, in order."""
    lab = lab_with_bad_start(lambda lab: lab.member("sleepy", start=20))
    async with lab.manager as manager:
        with trio.move_on_after(5) as limit:
            await manager.start()
        assert limit.cancelled_caught
        assert manager.state is ManagerState.STOPPED
        assert lab.diary[-5:] == ["sleepy ended", *ROLLED_BACK]
        assert [stage.name for stage in manager.report.stages] == ["hardware", "recording"]


async def test_a_shutdown_during_the_start_ends_the_start(autojump_clock):
    """start() raises StartError by StoppingError, and the shutdown's caller gets its report, at once."""
    lab = lab_with_bad_start(lambda lab: lab.member("sleepy", start=20))
    async with lab.manager as manager, trio.open_nursery() as nursery:

        async def start() -> None:
            with pytest.raises(StartError) as caught:
                await manager.start()
            assert isinstance(caught.value.cause, StoppingError)
            assert caught.value.report is manager.report

        nursery.start_soon(start)
        await trio.sleep(5)
        assert manager.state is ManagerState.STARTING
        report = await manager.shutdown(10)
        assert [stage.name for stage in report.stages] == ["hardware", "recording"]
        assert report.seconds == 0
    assert lab.diary[-4:] == ROLLED_BACK


async def test_a_bug_during_the_start_ends_the_start(autojump_clock):
    """A member that fails by a bug as soon as it is ready stops the lab, in order, before the next stage starts."""
    error = TypeError("3 + 'volt'")

    def buggy(lab: Lab) -> Member:
        async def fail(*, task_status: trio.TaskStatus[None]) -> None:
            task_status.started()
            raise error

        return Member("buggy", fail)

    lab = lab_with_bad_start(buggy)
    with trio.fail_after(1), pytest.raises(TypeError) as caught:
        await lab.run()
    assert caught.value is error
    assert lab.diary == ["recorder starts", "port starts", *ROLLED_BACK]


async def test_start_again_after_a_stop(autojump_clock):
    """A stopped manager starts once more, with new members, and has a new report then."""
    lab = lab_of_three()
    async with lab.manager as manager:
        await manager.start()
        first = await manager.shutdown(10)
        await manager.start()
        assert manager.report is None
        second = await manager.shutdown(10)
    assert lab.diary == (STARTED + IN_ORDER) * 2
    assert lab.reports == [first, second]
    assert first is not second


async def test_no_start_over_a_member_that_still_runs(autojump_clock):
    """A member of the last life that is stuck is named; when it has ended, the manager starts again."""
    lab = Lab({"v4": lambda lab: [lab.hung("camera", 100)]})
    async with lab.manager as manager:
        await manager.start()
        await manager.shutdown(10)
        with pytest.raises(StuckError, match="camera"):
            await manager.start()
        assert manager.state is ManagerState.STOPPED
        await trio.sleep(100)
        await manager.start()


async def test_serve_runs_in_the_callers_nursery(autojump_clock):
    """`await nursery.start(manager.serve)` gives the running manager; cancelling the nursery stops it in order."""
    lab = lab_of_three()
    async with trio.open_nursery() as nursery:
        manager = await nursery.start(lab.manager.serve)
        assert manager is lab.manager
        assert manager.state is ManagerState.RUNNING
        nursery.cancel_scope.cancel()
    assert lab.diary == STARTED + IN_ORDER


async def test_serve_ends_with_the_shutdown(autojump_clock):
    """After a shutdown the nursery that serves the manager is free."""
    lab = lab_of_three()
    async with trio.open_nursery() as nursery:
        manager = await nursery.start(lab.manager.serve)
        await manager.shutdown(10)
    assert manager.state is ManagerState.STOPPED


async def test_serve_raises_a_failed_start_to_its_starter(autojump_clock):
    """`nursery.start` raises the StartError itself."""

    def bad(lab: Lab) -> Member:
        async def fail(*, task_status: trio.TaskStatus[None]) -> None:
            raise OSError("no")

        return Member("stage", fail)

    lab = lab_with_bad_start(bad)
    async with trio.open_nursery() as nursery:
        with pytest.raises(StartError):
            await nursery.start(lab.manager.serve)


# --- wrong states ----------------------------------------------------------------------------------------------------


async def test_start_outside_of_the_block_is_refused():
    """The error names the two ways to open a manager."""
    lab = lab_of_three()
    with pytest.raises(StateError) as caught:
        await lab.manager.start()
    assert (caught.value.expected, caught.value.actual) == ("open", "closed")
    assert "async with" in caught.value.hint
    assert "serve" in caught.value.hint
    assert lab.diary == []


async def test_start_while_it_starts_runs_or_stops_is_refused(autojump_clock):
    """Each time the error says which state it takes and which there is, and nothing is disturbed."""
    lab = lab_with_bad_start(lambda lab: lab.member("sleepy", start=5, drain=5))

    async def refused(state: str) -> None:
        with pytest.raises(StateError) as caught:
            await lab.manager.start()
        assert (caught.value.action, caught.value.actual) == ("start()", state)
        assert caught.value.expected == "uninitialized or stopped"

    async with lab.manager as manager:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(manager.start)
            await trio.sleep(1)
            await refused("starting")
        await refused("running")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(manager.shutdown, 10)
            await trio.sleep(1)
            await refused("shutting down")
    assert lab.diary[-6:] == ["sleepy is asked", "sleepy ended", *ROLLED_BACK]


async def test_shutdown_of_what_was_never_started_is_refused():
    """There is nothing to stop, and the error says so."""
    async with lab_of_three().manager as manager:
        with pytest.raises(StateError) as caught:
            await manager.shutdown()
    assert (caught.value.expected, caught.value.actual) == ("running", "uninitialized")


@pytest.mark.parametrize("timeout", [-1, math.nan, math.inf])
async def test_a_shutdown_needs_a_time_that_ends(timeout, autojump_clock):
    """An infinite, negative or undefined time is refused, and the lab runs on."""
    lab = lab_of_three()
    async with lab.manager as manager:
        await manager.start()
        with pytest.raises(ValueError, match="timeout"):
            await manager.shutdown(timeout)
        assert manager.state is ManagerState.RUNNING


async def test_a_manager_is_opened_once_at_a_time(autojump_clock):
    """A second block inside the first is refused; after it, a new block is fine."""
    lab = lab_of_three()
    async with lab.manager as manager:
        with pytest.raises(StateError, match="open already"):
            async with manager:
                pass
        await manager.start()
    async with manager:
        await manager.start()
    assert lab.diary == (STARTED + IN_ORDER) * 2


async def test_request_shutdown_of_an_idle_manager_leaves_the_block(autojump_clock):
    """Before the start, or after the stop, it ends the body and nothing else."""
    lab = lab_of_three()
    async with lab.manager as manager:
        manager.request_shutdown()
        await trio.sleep_forever()
    async with lab.manager as manager:
        await manager.start()
        await manager.shutdown(10)
        manager.request_shutdown()
        await trio.sleep_forever()
    assert len(lab.reports) == 1


async def test_the_shutdown_is_logged_in_a_line(autojump_clock, caplog):
    """How long it took and why stands in the log."""
    caplog.set_level(logging.INFO, "trio_daq.lifecycle")
    async with lab_of_three().manager as manager:
        await manager.start()
    assert "stopped in 3.00 s of 15 s: the block ended" in caplog.text
