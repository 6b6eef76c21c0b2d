"""The lease: one holder, in the order of asking, and facts that are right at every moment."""

import itertools
import logging
import math
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_daq.errors import AcquireTimeoutError, PortBusyError
from trio_daq.sharing import Lease, acting_as


def assert_nothing_left(lease):
    """The lease is free and nobody is in line."""
    statistics = lease.statistics()
    assert (statistics.holder, statistics.held_for, statistics.waiting) == (None, 0.0, ())
    assert lease.holder is None
    assert lease.held_for == 0.0
    assert lease._held is None
    assert not lease._waiting


async def until_blocked():
    await trio.testing.wait_all_tasks_blocked()


class Rivals:
    """Tasks that want one lease, and a diary of what happened."""

    def __init__(self, nursery, lease):
        self.nursery, self.lease = nursery, lease
        self.granted, self.failed = [], {}
        self.inside = 0

    async def start(self, owner, *, hold=math.inf, timeout=50.0):
        """Let a task ask, and return its cancel scope once it is inside or in line."""
        scope = trio.CancelScope()
        self.nursery.start_soon(self._want, scope, owner, hold, timeout)
        await until_blocked()
        return scope

    async def _want(self, scope, owner, hold, timeout):
        with scope:
            try:
                async with self.lease.hold(owner, timeout):
                    self.granted.append(owner)
                    self.inside += 1
                    assert self.inside == 1
                    try:
                        await trio.sleep(hold)
                    finally:
                        self.inside -= 1
            except (AcquireTimeoutError, PortBusyError) as error:
                self.failed[owner] = error


# --- exclusivity and order ---------------------------------------------------------------------------------------

# Whole numbers make many things happen at the same instant, which is where the trouble is.
wishes = st.fixed_dictionaries(
    {
        "ask": st.integers(0, 6),
        "hold": st.integers(0, 4),
        "timeout": st.sampled_from([0, 1, 2, 3, 5, 40]),
        "cancel": st.none() | st.integers(0, 8),
        "early": st.booleans(),
        "shy": st.booleans(),
    }
)


async def play(plan):
    """Let every wish of *plan* have its task; return who asked, who was granted, who left, in order, and the lease."""
    lease = Lease("thing")
    asked, granted, left = [], [], []
    inside = 0

    async def want(number, wish):
        nonlocal inside
        await trio.sleep(wish["ask"])
        claim = lease.hold(f"owner {number}", wish["timeout"])
        asked.append(number)
        try:
            async with claim:
                granted.append(number)
                inside += 1
                assert inside == 1, "two holders"
                assert lease.holder == claim.owner
                assert claim.alive
                assert claim.owner not in lease.statistics().waiting
                try:
                    if wish["shy"]:
                        await trio.lowlevel.cancel_shielded_checkpoint()
                    await trio.sleep(wish["hold"])
                finally:
                    inside -= 1
                    if wish["early"]:
                        claim.release()
                        claim.release()
                if wish["early"]:
                    await trio.sleep(1)
                    assert not claim.alive
        finally:
            if number not in granted:
                left.append(number)

    async def run(number, wish):
        with trio.move_on_at(math.inf if wish["cancel"] is None else wish["cancel"] + started):
            try:
                await want(number, wish)
            except (AcquireTimeoutError, PortBusyError) as error:
                errors[number] = error

    errors = {}
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number, wish in enumerate(plan):
            nursery.start_soon(run, number, wish)
    for number, error in errors.items():
        assert isinstance(error, PortBusyError) == (plan[number]["timeout"] == 0)
        assert isinstance(error, PortBusyError) or error.waited == plan[number]["timeout"]
    return asked, granted, left, lease


@settings(deadline=None)
@given(st.lists(wishes, max_size=12))
def test_one_holder_at_a_time_in_the_order_of_asking(plan):
    """Whoever asks, gives up, is cancelled or lets go early: never two holders, grants in call order, nothing left."""

    async def main():
        asked, granted, left, lease = await play(plan)
        assert granted == [number for number in asked if number not in left]
        assert len(granted) == sum(lease.statistics().grants.values())
        assert_nothing_left(lease)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@settings(deadline=None)
@given(st.lists(wishes, min_size=1, max_size=12))
def test_nobody_in_line_starves(plan):
    """Who is not cancelled and is ready to wait longer than all others together is granted it."""

    async def main():
        patient = [wish | {"timeout": 59, "cancel": None} for wish in plan]
        asked, granted, left, lease = await play(patient)
        assert granted == asked
        assert left == []
        assert_nothing_left(lease)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@settings(deadline=None)
@given(st.integers(1, 5), st.lists(st.sampled_from(["cancel", "release", "step"]), max_size=8))
def test_a_grant_and_a_cancellation_in_one_turn_lose_no_token(count, moves):
    """Cancelling waiters and the holder in one and the same turn, in any mixture, leaves the lease free at the end."""

    async def main():
        lease = Lease("thing")
        scopes, entered = [trio.CancelScope() for _ in range(count)], []

        async def want(number):
            with scopes[number]:
                async with lease.hold(f"rival {number}", timeout=50) as claim:
                    entered.append((number, claim))
                    assert lease.holder == claim.owner
                    await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(want, number)
                await until_blocked()
            waiting = list(scopes)
            for move in moves:
                if move == "step":
                    await until_blocked()
                elif move == "release":
                    entered[-1][1].release()
                elif waiting:
                    waiting.pop(len(waiting) // 2).cancel()
            for scope in scopes:
                scope.cancel()
        assert entered == sorted(entered, key=lambda entry: entry[0])
        assert_nothing_left(lease)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


# --- deadlines ---------------------------------------------------------------------------------------------------


async def test_a_grant_in_the_instant_of_the_deadline_counts(autojump_clock):
    """Handed on in the turn in which its deadline comes, the lease belongs to the waiter, and no error is raised."""
    lease = Lease("thing")
    granted = []

    async def waiter():
        async with lease.hold("waiter", timeout=5):
            granted.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        async with lease.hold("holder"):
            nursery.start_soon(waiter)
            await until_blocked()
            # The release comes first, then time jumps past the waiter's deadline before its task has run.
            start = trio.current_time()
            autojump_clock.jump(5)
        assert lease.holder == "waiter"
    assert granted == [start + 5]
    assert lease.statistics().timeouts == 0
    assert_nothing_left(lease)


async def test_a_holder_that_lets_go_in_the_instant_of_a_deadline_serves_the_waiter_or_nobody(autojump_clock):
    """With release and deadline at one time, a wait ends in a grant or in an error, and never in both or neither."""
    for _ in range(30):
        lease = Lease("thing")
        async with trio.open_nursery() as nursery:
            rivals = Rivals(nursery, lease)
            await rivals.start("holder", hold=5)
            await rivals.start("waiter", hold=1, timeout=5)
        assert (rivals.granted == ["holder", "waiter"]) != ("waiter" in rivals.failed)
        assert_nothing_left(lease)


async def test_a_wait_too_long_says_who_has_it_and_for_how_long(autojump_clock):
    """The error has resource, both names, the holder's time, the time waited, the place in line, and phase and sent."""
    lease = Lease("/dev/ttyUSB0")
    async with trio.open_nursery() as nursery:
        rivals = Rivals(nursery, lease)
        holder = await rivals.start("holder")
        await trio.sleep(10)
        first = await rivals.start("first", timeout=30)
        await rivals.start("second", timeout=2)
        await trio.sleep(3)
        holder.cancel()
        first.cancel()
    error = rivals.failed["second"]
    assert (error.resource, error.wanted_by, error.held_by) == ("/dev/ttyUSB0", "second", "holder")
    assert (error.held_for, error.waited, error.position) == (12, 2, 2)
    assert (error.phase, error.sent) == ("queue", "no")
    assert lease.statistics().timeouts == 1
    assert_nothing_left(lease)


async def test_a_timeout_of_zero_does_not_wait(autojump_clock):
    """With timeout=0 a busy lease raises at once and says who has it, for how long, and how many wait."""
    lease = Lease("/dev/ttyUSB0")
    async with trio.open_nursery() as nursery:
        rivals = Rivals(nursery, lease)
        holder = await rivals.start("holder")
        waiter = await rivals.start("waiter")
        await trio.sleep(3)
        before = trio.current_time()
        with pytest.raises(PortBusyError) as caught:
            async with lease.hold("hasty", timeout=0):
                pass
        assert trio.current_time() == before
        assert lease.statistics().waiting == ("waiter",)
        holder.cancel()
        waiter.cancel()
    error = caught.value
    assert (error.resource, error.wanted_by, error.held_by) == ("/dev/ttyUSB0", "hasty", "holder")
    assert (error.held_for, error.waiting, error.sent) == (3, 1, "no")
    assert_nothing_left(lease)


async def test_a_timeout_of_zero_gets_a_free_lease():
    """With timeout=0 a lease that nobody has is granted."""
    lease = Lease("thing")
    async with lease.hold("hasty", timeout=0):
        assert lease.holder == "hasty"
    assert_nothing_left(lease)


@asynccontextmanager
async def held_by_another_task(lease, owner):
    async def hold(task_status):
        async with lease.hold(owner):
            task_status.started()
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        await nursery.start(hold)
        yield
        nursery.cancel_scope.cancel()


async def test_without_a_timeout_the_lease_has_its_own(autojump_clock):
    """Where no timeout is named, the wait ends after the seconds given to the lease."""
    lease = Lease("thing", timeout=7)
    async with held_by_another_task(lease, "holder"):
        with pytest.raises(AcquireTimeoutError) as caught:
            async with lease.hold("other"):
                pass
    assert caught.value.waited == 7


@pytest.mark.parametrize(
    ("timeout", "kind"),
    [
        (math.inf, ValueError),
        (-math.inf, ValueError),
        (math.nan, ValueError),
        (-1, ValueError),
        (-0.001, ValueError),
        (True, TypeError),
        (False, TypeError),
        ("1", TypeError),
    ],
)
async def test_a_timeout_without_an_end_is_refused_at_once(timeout, kind):
    """Infinite, NaN, negative, boolean and textual timeouts raise where they are named, for one wait or for all."""
    with pytest.raises(kind, match="timeout"):
        Lease("thing").hold("owner", timeout)
    with pytest.raises(kind, match="timeout"):
        Lease("thing", timeout)


async def test_a_very_long_timeout_is_warned_about_once_per_owner(caplog):
    """Above 60 s there is one warning for each owner, and none at 60 s."""
    lease = Lease("thing")
    with caplog.at_level(logging.WARNING, "trio_daq.sharing"):
        for owner, timeout in [("anna", 60), ("anna", 61), ("anna", 3600), ("bert", 61)]:
            async with lease.hold(owner, timeout):
                pass
    assert [record.args for record in caplog.records] == [("thing", "anna", 61), ("thing", "bert", 61)]


# --- cancellation ------------------------------------------------------------------------------------------------


async def test_a_cancelled_wait_leaves_nothing_behind(autojump_clock):
    """A waiter that is cancelled leaves the line, and the next in line is granted in its stead."""
    lease = Lease("thing")
    async with trio.open_nursery() as nursery:
        rivals = Rivals(nursery, lease)
        holder = await rivals.start("holder")
        second = await rivals.start("second")
        await rivals.start("third", hold=1)
        second.cancel()
        await until_blocked()
        assert lease.statistics().waiting == ("third",)
        holder.cancel()
    assert rivals.granted == ["holder", "third"]
    assert lease.statistics().timeouts == 0
    assert_nothing_left(lease)


async def test_a_cancelled_holder_hands_on(autojump_clock):
    """Cancelled inside the block, a holder gives the lease to the next in line."""
    lease = Lease("thing")
    async with trio.open_nursery() as nursery:
        rivals = Rivals(nursery, lease)
        holder = await rivals.start("holder")
        await rivals.start("next", hold=1)
        holder.cancel()
    assert rivals.granted == ["holder", "next"]
    assert_nothing_left(lease)


async def test_an_error_inside_hands_on_and_comes_out(autojump_clock):
    """An exception of the block releases the lease and leaves the block as it is."""
    lease = Lease("thing")
    with pytest.raises(KeyError):
        async with lease.hold("holder"):
            raise KeyError("mine")
    assert_nothing_left(lease)


async def test_a_task_that_is_cancelled_already_gets_nothing():
    """A free lease is not granted to a task that is cancelled: it could send otherwise."""
    lease = Lease("thing")
    entered = False
    with trio.CancelScope() as scope:
        scope.cancel()
        async with lease.hold("late"):
            entered = True
    assert scope.cancelled_caught
    assert not entered
    assert lease.statistics().grants == {}
    assert_nothing_left(lease)


async def test_release_can_be_called_again():
    """Releasing twice, and leaving the block after that, takes the lease from nobody."""
    lease = Lease("thing")
    async with lease.hold("first") as first:
        first.release()
        first.release()
        async with lease.hold("second") as second:
            first.release()
            assert (first.alive, second.alive) == (False, True)
            assert lease.holder == "second"
    assert_nothing_left(lease)


async def test_a_claim_that_waits_cannot_release_what_another_holds(autojump_clock):
    """Calling release on a claim in line changes neither the holder nor the line."""
    lease = Lease("thing")
    claim = lease.hold("waiter")
    async with trio.open_nursery() as nursery, lease.hold("holder"):
        nursery.start_soon(_enter_and_leave, claim)
        await until_blocked()
        claim.release()
        assert lease.holder == "holder"
        assert lease.statistics().waiting == ("waiter",)
    assert_nothing_left(lease)


async def _enter_and_leave(claim):
    async with claim:
        pass


# --- names and facts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("owner", ["", " ", "\t\n"])
async def test_an_empty_owner_is_refused(owner):
    """A name of nothing or of white space raises at once."""
    with pytest.raises(ValueError, match="name"):
        Lease("thing").hold(owner)


async def test_the_owner_is_the_member_or_else_the_task():
    """Without a name the owner is the member that runs, tasks that it starts included, and outside it the task."""
    lease = Lease("thing")
    seen = []

    async def look():
        async with lease.hold():
            seen.append(lease.holder)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look, name="a task of its own")
        await until_blocked()
        with acting_as("member"):
            await look()
            nursery.start_soon(look, name="child of the member")
        await until_blocked()
        async with lease.hold():
            seen.append(lease.holder)
    assert seen == ["a task of its own", "member", "member", trio.lowlevel.current_task().name]


async def test_holder_and_line_are_right_at_every_moment(autojump_clock):
    """Holder, holding time and line are right while free, held, contended, and between hand-off and first step."""
    lease = Lease("thing")

    def facts():
        now = lease.statistics()
        assert (now.holder, now.held_for) == (lease.holder, lease.held_for)
        return now.holder, now.held_for, now.waiting

    assert facts() == (None, 0.0, ())
    async with trio.open_nursery() as nursery:
        rivals = Rivals(nursery, lease)
        async with lease.hold("first") as first:
            assert facts() == ("first", 0.0, ())
            await trio.sleep(2)
            second = await rivals.start("second")
            await rivals.start("third", hold=1)
            await trio.sleep(1)
            assert facts() == ("first", 3.0, ("second", "third"))
            first.release()
            # No task has run since: the second has been handed the lease and has not made its first step.
            assert rivals.granted == []
            assert facts() == ("second", 0.0, ("third",))
            await trio.sleep(4)
            assert facts() == ("second", 4.0, ("third",))
        second.cancel()
        assert facts() == ("second", 4.0, ("third",))
        await until_blocked()
        assert facts() == ("third", 0.0, ())
    assert facts() == (None, 0.0, ())


async def test_a_newcomer_cannot_take_what_was_handed_on(autojump_clock):
    """Between hand-off and the successor's first step the lease is busy, and the newcomer is told whose it is."""
    lease = Lease("thing")
    async with trio.open_nursery() as nursery:
        rivals = Rivals(nursery, lease)
        async with lease.hold("first") as first:
            await rivals.start("second", hold=1)
            first.release()
            with pytest.raises(PortBusyError) as caught:
                async with lease.hold("newcomer", timeout=0):
                    pass
    assert (caught.value.held_by, caught.value.waiting) == ("second", 0)


async def test_statistics_count_grants_hand_overs_and_the_longest_wait(autojump_clock):
    """Grants are counted per owner, hand-overs when the owner changes, and the longest wait is that of a grant."""
    lease = Lease("thing")
    async with trio.open_nursery() as nursery:
        rivals = Rivals(nursery, lease)
        await rivals.start("anna", hold=3)
        await rivals.start("anna", hold=1)
        await rivals.start("bert", hold=1)
        await rivals.start("carl", timeout=1)
    statistics = lease.statistics()
    assert statistics.grants == {"anna": 2, "bert": 1}
    assert (statistics.hand_overs, statistics.longest_wait, statistics.timeouts) == (1, 4, 1)


async def test_two_claims_of_one_name_are_two_claims(autojump_clock):
    """Equal owner names do not share a lease: the second waits for the first."""
    lease = Lease("thing")
    async with held_by_another_task(lease, "twin"):
        with pytest.raises(AcquireTimeoutError) as caught:
            async with lease.hold("twin", timeout=1):
                pass
    assert (caught.value.wanted_by, caught.value.held_by) == ("twin", "twin")


# --- letting others run ------------------------------------------------------------------------------------------


async def test_many_fast_grants_let_another_task_run():
    """A task that takes a free lease again and again yields at every 64th grant, so others run all the time."""
    lease = Lease("thing")
    grants = 0
    seen = [0]

    async def other():
        while True:
            seen.append(grants)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(1280):
            async with lease.hold("busy"):
                grants += 1
        nursery.cancel_scope.cancel()
    # Trio shuffles who runs first in a turn, so another task may have to let one turn pass.
    assert max(after - before for before, after in itertools.pairwise(seen)) <= 128
    assert len(seen) > 10
