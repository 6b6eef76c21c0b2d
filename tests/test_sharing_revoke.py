"""Taking a lease back: the next in line has it at once, and the old claim is dead and harmless."""

import contextlib
import logging
import math

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_daq.errors import AcquireTimeoutError, LeaseRevokedError
from trio_daq.sharing import Lease


async def until_blocked():
    await trio.testing.wait_all_tasks_blocked()


def assert_nothing_left(lease):
    statistics = lease.statistics()
    assert (statistics.holder, statistics.held_for, statistics.waiting) == (None, 0.0, ())


async def hold(lease, owner, claims, seconds=1.0):
    async with lease.hold(owner, 50) as claim:
        claims[owner] = claim
        await trio.sleep(seconds)


# --- by hand -----------------------------------------------------------------------------------------------------


async def test_a_free_lease_has_nobody_to_take_it_from(autojump_clock):
    """Revoking a free lease returns None, counts nothing and leaves it to be taken."""
    lease = Lease("stage")
    assert lease.revoke("test") is None
    assert lease.statistics().revocations == 0
    async with lease.hold("anna") as claim:
        assert (claim.alive, claim.revoked) == (True, None)
    assert lease.revoke("test") is None


async def test_the_next_in_line_has_it_at_once(autojump_clock):
    """Revoking names the holder and hands over in the same turn, in the order of the line."""
    lease = Lease("stage")
    claims = {}
    async with trio.open_nursery() as nursery:
        for owner in ("first", "second", "third"):
            nursery.start_soon(hold, lease, owner, claims, 5.0)
            await until_blocked()
        await trio.sleep(2)
        assert lease.revoke("stuck") == "first"
        assert (lease.holder, lease.statistics().waiting) == ("second", ("third",))
        assert (claims["first"].alive, claims["first"].revoked) == (False, "stuck")
        await until_blocked()
        assert (claims["second"].alive, claims["second"].revoked) == (True, None)
        assert lease.revoke("stuck too") == "second"
        assert lease.holder == "third"
    assert lease.statistics().revocations == 2
    assert_nothing_left(lease)


async def test_a_dead_claim_takes_nothing_from_the_next(autojump_clock):
    """What a revoked holder does with its claim, releasing it or leaving the block, changes nothing for the others."""
    lease = Lease("stage")
    claims = {}
    async with trio.open_nursery() as nursery:
        async with lease.hold("first") as dead:
            for owner in ("second", "third"):
                nursery.start_soon(hold, lease, owner, claims, 9.0)
                await until_blocked()
            lease.revoke("test")
            dead.release()
            dead.release()
            assert (lease.holder, lease.statistics().waiting) == ("second", ("third",))
        await until_blocked()
        assert (lease.holder, lease.statistics().waiting) == ("second", ("third",))
        assert claims["second"].alive
    assert_nothing_left(lease)


async def test_the_holder_is_told_before_the_next_has_it():
    """The callback of a holder runs when its claim is revoked and not yet handed on; who has none is not revocable."""
    lease = Lease("stage")
    told = []
    assert not lease.is_revocable
    async with lease.hold("anna") as claim:
        assert not lease.is_revocable
        claim.on_revoked = lambda: told.append((lease.holder, claim.revoked))
        assert lease.is_revocable
        lease.revoke("test")
        assert told == [("anna", "test")]
        assert not lease.is_revocable
    assert told == [("anna", "test")]


async def test_the_error_says_what_happened():
    """The error of a revoked claim has resource, owner, action, reason and sent."""
    lease = Lease("stage")
    async with lease.hold("anna") as claim:
        lease.revoke("it was stuck")
        error = claim.revocation("query(b'A?')", "yes")
    assert (error.resource, error.owner, error.action) == ("stage", "anna", "query(b'A?')")
    assert (error.reason, error.sent) == ("it was stuck", "yes")
    assert str(error) == (
        "stage: was taken back from 'anna' during query(b'A?'): it was stuck (command sent: yes). Acquire it again."
    )


async def test_a_revoked_holder_may_ask_again(autojump_clock):
    """Inside the block of its dead claim a task can wait for the lease like anybody else, and is no circle."""
    lease = Lease("stage")
    claims = {}
    async with trio.open_nursery() as nursery, lease.hold("first"):
        nursery.start_soon(hold, lease, "second", claims, 2.0)
        await until_blocked()
        lease.revoke("test")
        start = trio.current_time()
        async with lease.hold("first", 10) as again:
            assert again.alive
            assert trio.current_time() == start + 2
    assert_nothing_left(lease)


async def test_revoked_before_its_first_step(autojump_clock):
    """Who is handed a lease and loses it again in the same turn does not enter, is told why, and the third has it."""
    lease = Lease("stage")
    claims, seen = {}, []

    async def unlucky():
        try:
            async with lease.hold("unlucky", 50):
                seen.append("entered")
        except LeaseRevokedError as error:
            seen.append((error.reason, error.sent, lease.holder))

    async with trio.open_nursery() as nursery, lease.hold("first"):
        nursery.start_soon(unlucky)
        await until_blocked()
        nursery.start_soon(hold, lease, "third", claims, 5.0)
        await until_blocked()
        lease.revoke("once")
        lease.revoke("twice")
        assert lease.holder == "third"
        await until_blocked()
        assert seen == [("twice", "no", "third")]
        assert claims["third"].alive
    assert_nothing_left(lease)


moves = st.lists(st.tuples(st.sampled_from([0, 1, 2]), st.sampled_from(["ask", "revoke", "release", "cancel"])))


@settings(deadline=None)
@given(moves, st.sampled_from([None, 2.5]))
def test_never_two_live_claims(plan, max_hold):
    """Whatever is asked, revoked, released and cancelled: at most one claim lives, grants are in the order of asking,
    and nothing is left."""

    async def main():
        lease = Lease("stage", max_hold=max_hold)
        claims, scopes, served, let_go, entries, gone = [], [], [], set(), [], []

        def check():
            living = [claim for claim in claims if claim.alive]
            assert len(living) <= 1
            # Not the order in which the blocks are entered: Trio shuffles those who were served in one turn.
            if living and living[0] is not (claims[served[-1]] if served else None):
                served.append(claims.index(living[0]))
            assert lease.holder == (living[0].owner if living else None)
            assert not (living and living[0].revoked)

        async def want(number):
            scopes.append(trio.CancelScope())
            claims.append(claim := lease.hold(f"owner {number}", 59))
            entered = False
            with scopes[number]:
                try:
                    async with claim:
                        entered = True
                        assert claim.alive or claim.revoked or number in let_go
                        check()
                        await trio.sleep(4)
                        check()
                except LeaseRevokedError:
                    assert claim.revoked is not None
            check()
            (entries if entered else gone).append(number)

        async with trio.open_nursery() as nursery:
            for pause, move in plan:
                await trio.sleep(pause)
                check()
                if move == "ask":
                    nursery.start_soon(want, len(claims))
                    await until_blocked()
                elif move == "revoke":
                    before = lease.holder
                    assert lease.revoke("test") == before
                elif move == "release":
                    for number, claim in enumerate(claims):
                        if claim.alive:
                            let_go.add(number)
                        claim.release()
                        check()
                elif scopes:
                    scopes[len(scopes) // 2].cancel()
                check()
        assert served == sorted(set(served))
        assert sorted(entries + gone) == list(range(len(claims)))
        assert set(entries) <= set(served)
        assert_nothing_left(lease)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


# --- max_hold ----------------------------------------------------------------------------------------------------


async def test_a_block_that_lasts_too_long_is_cancelled(autojump_clock):
    """After max_hold the block is cancelled and raises LeaseRevokedError, and the next in line has the lease then."""
    lease = Lease("stage", max_hold=3)
    seen = []

    async def following():
        await until_blocked()
        async with lease.hold("next", 50):
            seen.append(trio.current_time())

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(following)
        with pytest.raises(LeaseRevokedError, match="more than 3 s") as caught:
            await hold(lease, "slow", {}, math.inf)
        assert trio.current_time() == start + 3
    assert seen == [start + 3]
    assert (caught.value.owner, caught.value.resource) == ("slow", "stage")
    assert lease.statistics().revocations == 1
    assert_nothing_left(lease)


async def test_max_hold_counts_from_the_grant(autojump_clock):
    """The time that a waiter has waited is not taken off its own max_hold."""
    lease = Lease("stage", max_hold=3)
    start = trio.current_time()
    ends = []

    async def rival(owner):
        with pytest.raises(LeaseRevokedError):
            await hold(lease, owner, {}, math.inf)
        ends.append(trio.current_time() - start)

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(rival, f"rival {number}")
    assert ends == [3, 6, 9]


async def test_a_block_that_ends_in_time_is_left_alone(autojump_clock):
    """Before max_hold, or after an early release, nothing is revoked and what follows is not cancelled."""
    lease = Lease("stage", max_hold=3)
    async with lease.hold("quick"):
        await trio.sleep(2.9)
    await trio.sleep(9)
    async with lease.hold("early") as claim:
        claim.release()
        await trio.sleep(9)
    assert lease.statistics().revocations == 0
    assert_nothing_left(lease)


async def test_a_body_that_catches_its_cancellation_is_told_all_the_same(autojump_clock):
    """A body that gets over our cancellation and ends well still raises LeaseRevokedError on leaving."""
    lease = Lease("stage", max_hold=3)

    async def stubborn():
        async with lease.hold("stubborn"):
            with trio.CancelScope(shield=True):
                await trio.sleep(9)

    async def deaf():
        async with lease.hold("deaf"):
            with contextlib.suppress(trio.Cancelled):
                await trio.sleep(9)

    for body in (stubborn, deaf):
        with pytest.raises(LeaseRevokedError):
            await body()
    assert_nothing_left(lease)


async def test_a_cancellation_from_outside_stays_one(autojump_clock):
    """Cancelled from outside before, at or after max_hold, the block ends cancelled and not in our error."""
    lease = Lease("stage", max_hold=3)
    for at in (2, 4):
        with trio.move_on_after(at) as outer:
            async with lease.hold("anna"):
                with trio.CancelScope(shield=True):
                    await trio.sleep(9)
                await trio.sleep(9)
        assert outer.cancelled_caught, at
    for _ in range(20):
        with trio.move_on_after(3) as outer:
            try:
                async with lease.hold("anna"):
                    await trio.sleep_forever()
            except LeaseRevokedError:
                continue  # our alarm came first in that instant, and the outer scope had nothing left to cancel
        assert outer.cancelled_caught
    assert_nothing_left(lease)


@pytest.mark.parametrize("late", [False, True])
async def test_an_exception_of_the_body_stays_what_it_is(late, autojump_clock):
    """What the body raises comes out as it is, before max_hold and after it."""
    lease = Lease("stage", max_hold=3)

    async def fail():
        async with lease.hold("anna"):
            try:
                await trio.sleep(9 if late else 1)
            finally:
                raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await fail()
    assert lease.statistics().revocations == late
    assert_nothing_left(lease)


async def test_an_exception_beside_our_cancellation_stays(autojump_clock):
    """Where one child of the block fails while another is cancelled by max_hold, the failure comes out."""
    lease = Lease("stage", max_hold=3)

    async def fail():
        try:
            await trio.sleep_forever()
        finally:
            raise KeyError("mine")

    async def two_children():
        async with lease.hold("anna"), trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            nursery.start_soon(trio.sleep_forever)

    with pytest.raises(ExceptionGroup) as caught:
        await two_children()
    assert caught.group_contains(KeyError)
    assert not caught.group_contains(LeaseRevokedError)
    assert_nothing_left(lease)


async def test_taken_back_by_hand_under_max_hold(autojump_clock):
    """A block under max_hold whose lease was revoked by hand is not cancelled, and raises on leaving."""
    lease = Lease("stage", max_hold=3)
    start = trio.current_time()

    async def lose_it():
        async with lease.hold("anna"):
            lease.revoke("by hand")
            await trio.sleep(9)

    with pytest.raises(LeaseRevokedError, match="by hand"):
        await lose_it()
    assert trio.current_time() == start + 9
    assert lease.statistics().revocations == 1


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
async def test_a_max_hold_that_means_nothing_is_refused(value):
    """Zero, negative and endless max_hold raise where they are named."""
    with pytest.raises(ValueError, match="max_hold"):
        Lease("stage", max_hold=value)


# --- figures -----------------------------------------------------------------------------------------------------


async def test_wait_and_hold_times_are_counted(autojump_clock):
    """Successful waits and all holds stand in the histograms, time-outs in neither; revoked holds count too."""
    lease = Lease("stage")
    claims = {}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold, lease, "first", claims, 3.0)
        await until_blocked()
        nursery.start_soon(hold, lease, "second", claims, 20.0)
        await until_blocked()
        with pytest.raises(AcquireTimeoutError):
            async with lease.hold("third", 1):
                pass
        await trio.sleep(2.5)
        lease.revoke("test")
    statistics = lease.statistics()
    assert statistics.wait_times == {1e-6: 1, 4.194304: 1}
    assert statistics.hold_times == {0.524288: 1, 4.194304: 1}
    assert (statistics.revocations, statistics.timeouts) == (1, 1)
    assert statistics.longest_wait == 3


# --- log records -------------------------------------------------------------------------------------------------


def records(caplog, level):
    return [record.getMessage() for record in caplog.records if record.levelno == level]


async def test_every_step_is_logged(autojump_clock, caplog):
    """Ask, grant, release, expiry and a cancelled wait are DEBUG records with resource, owner and seconds; revocation
    is a WARNING."""
    lease = Lease("stage")
    claims = {}
    with caplog.at_level(logging.DEBUG, "trio_daq.sharing"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold, lease, "anna", claims, 3.0)
            await until_blocked()
            nursery.start_soon(hold, lease, "bert", claims, 9.0)
            await until_blocked()
            with pytest.raises(AcquireTimeoutError):
                async with lease.hold("carl", 2):
                    pass
            with trio.move_on_after(0.5):
                await hold(lease, "dora", claims)
            await trio.sleep(1.5)
            lease.revoke("stuck")
    assert {record.name for record in caplog.records} == {"trio_daq.sharing"}
    assert records(caplog, logging.DEBUG) == [
        "stage: anna asks for it; held by None for 0.000000 s",
        "stage: granted to anna after 0.000000 s",
        "stage: bert asks for it; held by anna for 0.000000 s",
        "stage: carl asks for it; held by anna for 0.000000 s",
        "stage: carl waited in vain for 2.000000 s; anna has held it for 2.000000 s",
        "stage: dora asks for it; held by anna for 2.000000 s",
        "stage: dora was cancelled after waiting for 0.500000 s",
        "stage: released by anna after 3.000000 s",
        "stage: granted to bert after 3.000000 s",
        "stage: released by bert after 1.000000 s",
    ]
    assert records(caplog, logging.WARNING) == [
        "stage: carl has waited for half of its 2 s; anna has held it for 1.000 s",
        "stage: taken back from bert after 1.000 s: stuck",
    ]


async def test_half_time_names_the_holder_of_that_moment(autojump_clock, caplog):
    """Once a wait passes half its deadline, one WARNING names who has the lease then; a shorter wait says nothing."""
    lease = Lease("stage")
    claims = {}
    with caplog.at_level(logging.WARNING, "trio_daq.sharing"):
        async with trio.open_nursery() as nursery:
            for owner in ("anna", "bert"):
                nursery.start_soon(hold, lease, owner, claims, 4.0)
                await until_blocked()
            async with lease.hold("carl", 10):
                pass
    assert records(caplog, logging.WARNING) == [
        "stage: carl has waited for half of its 10 s; bert has held it for 1.000 s"
    ]


async def test_half_time_in_the_turn_of_the_grant_says_nothing(autojump_clock, caplog):
    """A waiter that was handed the lease before its half time is not said to wait for itself."""
    lease = Lease("stage")
    claims = {}
    with caplog.at_level(logging.WARNING, "trio_daq.sharing"):
        async with trio.open_nursery() as nursery, lease.hold("anna") as claim:
            nursery.start_soon(hold, lease, "bert", claims)
            await until_blocked()
            # Handed on first; then, before bert has run, the clock jumps past half of its 50 s.
            claim.release()
            autojump_clock.jump(30)
    assert records(caplog, logging.WARNING) == []


async def test_two_living_tasks_of_one_name_are_said_once(autojump_clock, caplog):
    """Two tasks that live and own a lease under one name are one WARNING, however often they take it."""
    lease = Lease("stage")

    async def twin():
        for _ in range(5):
            async with lease.hold("twin", 50):
                await trio.sleep(1)
        await trio.sleep(50)

    with caplog.at_level(logging.WARNING, "trio_daq.sharing"):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(twin)
    assert records(caplog, logging.WARNING) == ["stage: two tasks own it as 'twin'; give each a name of its own"]


async def test_a_name_that_is_inherited_from_a_dead_task_is_no_warning(autojump_clock, caplog):
    """A task may take the name of one that has ended, as a restarted member does, and its own again and again."""
    lease = Lease("stage")
    claims = {}
    with caplog.at_level(logging.WARNING, "trio_daq.sharing"):
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hold, lease, "member", claims)
        for _ in range(3):
            await hold(lease, "own", claims)
    assert records(caplog, logging.WARNING) == []


async def test_each_warning_of_a_name_is_said_whatever_was_said_before(autojump_clock, caplog):
    """That an owner was warned of a long timeout does not hide that two tasks bear its name."""
    lease = Lease("stage")
    claims = {}
    with caplog.at_level(logging.WARNING, "trio_daq.sharing"):
        async with lease.hold("twin", 61):
            pass
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold, lease, "twin", claims)
    assert records(caplog, logging.WARNING) == [
        "stage: twin is ready to wait 61 s for it; is that meant?",
        "stage: two tasks own it as 'twin'; give each a name of its own",
    ]
