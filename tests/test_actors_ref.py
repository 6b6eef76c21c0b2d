"""Asking and telling: one deadline, one end for each ask, and nobody answered after they left."""

import contextlib
import itertools
import logging
import math
from typing import ClassVar

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_daq.actors import Actor, ActorCell, Message, handles
from trio_daq.errors import ActorStoppedError, AskTimeoutError, MailboxFullError


@attrs.frozen
class Work(Message[str]):
    """Take so many seconds, then answer."""

    name: str
    seconds: float = 0.0


@attrs.frozen(eq=False)
class Fail(Message[None]):
    """Take so many seconds, then raise."""

    error: BaseException
    seconds: float = 0.0


class Unknown(Message[None]):
    """Handled by nobody."""


class Worker(Actor):
    def __init__(self):
        self.begun, self.ended = [], []

    @handles(Work)
    async def work(self, message):
        self.begun.append(message.name)
        await trio.sleep(message.seconds)
        self.ended.append(message.name)
        return message.name.upper()

    @handles(Fail)
    async def fail(self, message):
        await trio.sleep(message.seconds)
        raise message.error


class Small(Worker):
    mailbox_capacity: ClassVar[int] = 1


class Choosy(Small):
    overflow = "fail"


class DropsOldest(Small):
    overflow = "drop_oldest"


class DropsNewest(Small):
    overflow = "drop_newest"


@contextlib.asynccontextmanager
async def running(actor):
    """Run *actor* for the length of the block; it handles what is in its mailbox before the block ends."""
    cell = ActorCell("worker", lambda: actor, type(actor))
    async with trio.open_nursery() as nursery:
        await nursery.start(cell.serve)
        yield cell
        cell.stop()


async def until_blocked():
    await trio.testing.wait_all_tasks_blocked()


class Asker:
    """A task that asks, and what came of it."""

    def __init__(self, nursery, ref, message, timeout=None):
        self.answer = self.error = None
        self.scope = trio.CancelScope()
        nursery.start_soon(self._ask, ref, message, timeout)

    async def _ask(self, ref, message, timeout):
        with self.scope:
            try:
                self.answer = await ref.ask(message, timeout)
            except Exception as error:
                self.error = error


# --- answers -----------------------------------------------------------------------------------------------------


async def test_the_answer_of_the_handler_comes_back(autojump_clock):
    """ask returns what the handler returns, after the time that it takes."""
    async with running(Worker()) as cell:
        start = trio.current_time()
        assert await cell.ref.ask(Work("a", 3)) == "A"
        assert trio.current_time() == start + 3
        assert cell.statistics().handled == 1
        assert cell.ref.name == "worker"


async def test_messages_are_handled_one_at_a_time_in_the_order_of_sending(autojump_clock):
    """Asks and tells of several senders are begun in order, each after the end of the one before."""
    actor = Worker()
    async with running(actor) as cell, trio.open_nursery() as nursery:
        for name in "abc":
            Asker(nursery, cell.ref, Work(name, 1))
            await until_blocked()
        await cell.ref.tell(Work("d", 1))
        cell.ref.tell_nowait(Work("e", 1))
        await trio.sleep(0.5)
        assert actor.begun == ["a"]
        await trio.sleep(1)
        assert (actor.begun, actor.ended) == (["a", "b"], ["a"])
    assert actor.ended == list("abcde")


async def test_tell_waits_only_for_the_mailbox(autojump_clock):
    """tell and tell_nowait return at once while there is room, whatever the actor is at."""
    actor = Worker()
    async with running(actor) as cell:
        start = trio.current_time()
        await cell.ref.tell(Work("a", 10))
        await cell.ref.tell(Work("b", 10))
        cell.ref.tell_nowait(Work("c", 10))
        assert trio.current_time() == start
    assert actor.ended == ["a", "b", "c"]


async def test_a_message_that_nobody_handles_ends_the_ask_only(autojump_clock):
    """A message without a handler raises TypeError to the asker, and the actor lives on."""
    async with running(Worker()) as cell:
        with pytest.raises(TypeError, match="'worker' handles no Unknown"):
            await cell.ref.ask(Unknown())
        assert await cell.ref.ask(Work("a")) == "A"
        assert cell.statistics().failed == 1


async def test_an_operational_error_goes_to_the_asker_and_the_actor_lives(autojump_clock):
    """What a handler raises for reasons of the lab is raised by ask, and the next message is handled."""
    error = OSError("the instrument is off")
    async with running(Worker()) as cell:
        with pytest.raises(OSError, match="off") as caught:
            await cell.ref.ask(Fail(error))
        assert caught.value is error
        assert await cell.ref.ask(Work("a")) == "A"
        assert (cell.statistics().failed, cell.statistics().handled) == (1, 1)


@pytest.mark.parametrize("gone", [False, True], ids=["told", "asker gone"])
async def test_an_operational_error_that_nobody_waits_for_is_logged(gone, autojump_clock, caplog):
    """If a told message fails, or the asker has left, the error is in the log, and the actor lives on."""
    async with running(Worker()) as cell:
        with caplog.at_level(logging.WARNING, "trio_daq.actors"):
            if gone:
                with pytest.raises(AskTimeoutError):
                    await cell.ref.ask(Fail(OSError("instrument off"), 2), timeout=1)
            else:
                await cell.ref.tell(Fail(OSError("instrument off")))
            await trio.sleep(5)
        assert "instrument off" in caplog.text
        assert await cell.ref.ask(Work("a")) == "A"


async def test_an_error_that_an_asker_got_is_not_logged(autojump_clock, caplog):
    """What was raised to somebody is not also in the log."""
    async with running(Worker()) as cell:
        with pytest.raises(OSError, match="off"):
            await cell.ref.ask(Fail(OSError("off")))
    assert caplog.records == []


# --- the deadline ------------------------------------------------------------------------------------------------


async def test_one_deadline_covers_mailbox_and_handling_and_says_where_the_time_went(autojump_clock):
    """Each of three asks times out after its own seconds, in the mailbox, in the queue, and being handled."""
    actor = Small()
    async with running(actor) as cell, trio.open_nursery() as nursery:
        start = trio.current_time()
        askers = []
        for name, timeout in [("handled", 4), ("queued", 3), ("outside", 2)]:
            askers.append(Asker(nursery, cell.ref, Work(name, 10), timeout))
            await until_blocked()
        await trio.sleep(4.5)
        errors = [asker.error for asker in askers]
        assert [type(error) for error in errors] == [AskTimeoutError] * 3
        assert [error.phase for error in errors] == ["handling", "queued", "mailbox"]
        assert [error.waited for error in errors] == [4, 3, 2]
        assert {error.actor for error in errors} == {"worker"}
        assert errors[0].message == repr(Work("handled", 10))
        assert trio.current_time() == start + 4.5
    assert actor.ended == ["handled"]


async def test_time_spent_outside_counts_for_the_answer(autojump_clock):
    """An ask that waited for room, then in the mailbox, has only what is left of its seconds for its handling."""
    async with running(Small()) as cell, trio.open_nursery() as nursery:
        for name in "ab":
            nursery.start_soon(cell.ref.tell, Work(name, 2))
            await until_blocked()
        start = trio.current_time()
        with pytest.raises(AskTimeoutError) as caught:
            await cell.ref.ask(Work("c", 3), timeout=6)
        assert trio.current_time() == start + 6
        assert caught.value.phase == "handling"


async def test_five_seconds_where_nobody_says_otherwise(autojump_clock):
    """ask and tell without a timeout end after 5 s."""
    async with running(Small()) as cell:
        await cell.ref.tell(Work("busy", 20))
        await until_blocked()
        await cell.ref.tell(Work("full", 0))
        for verb in (cell.ref.ask, cell.ref.tell):
            with pytest.raises(AskTimeoutError) as caught:
                await verb(Work("late"))
            assert (caught.value.waited, caught.value.phase) == (5, "mailbox")


async def test_an_answer_in_the_instant_of_the_deadline_ends_the_ask_once(autojump_clock):
    """With answer and deadline at one time, the ask gives the answer or times out, and counts as late only then."""
    for _ in range(20):
        async with running(Worker()) as cell:
            try:
                assert await cell.ref.ask(Work("a", 1), timeout=1) == "A"
                late = 0
            except AskTimeoutError:
                late = 1
            await until_blocked()
            assert cell.statistics().late_answers == late


@pytest.mark.parametrize("timeout", [math.inf, math.nan, -1])
async def test_a_timeout_without_an_end_is_refused(timeout):
    """Infinite, NaN and negative timeouts raise, and nothing is sent."""
    async with running(Worker()) as cell:
        for verb in (cell.ref.ask, cell.ref.tell):
            with pytest.raises(ValueError, match="timeout"):
                await verb(Work("a"), timeout)
            with pytest.raises(TypeError, match="timeout"):
                await verb(Work("a"), True)
        assert cell.statistics().waiting == 0


async def test_a_late_answer_is_counted_and_harms_nobody(autojump_clock):
    """The answer to an asker who left is dropped and counted, and the actor goes on."""
    actor = Worker()
    async with running(actor) as cell:
        with pytest.raises(AskTimeoutError):
            await cell.ref.ask(Work("slow", 3), timeout=1)
        assert cell.statistics().late_answers == 0
        await trio.sleep(5)
        assert (cell.statistics().late_answers, cell.statistics().handled) == (1, 1)
        assert await cell.ref.ask(Work("next")) == "NEXT"
        assert cell.statistics().late_answers == 1
    assert actor.ended == ["slow", "next"]


# --- cancellation ------------------------------------------------------------------------------------------------


async def test_the_message_of_an_asker_who_left_before_it_was_begun_is_skipped(autojump_clock):
    """Cancelled or out of time in the mailbox, an ask is never handled, nor counted as handled."""
    actor = Worker()
    async with running(actor) as cell, trio.open_nursery() as nursery:
        await cell.ref.tell(Work("busy", 5))
        await until_blocked()
        cancelled = Asker(nursery, cell.ref, Work("cancelled"))
        expired = Asker(nursery, cell.ref, Work("expired"), 1)
        await until_blocked()
        cancelled.scope.cancel()
        await trio.sleep(2)
        assert expired.error.phase == "queued"
        assert await cell.ref.ask(Work("next")) == "NEXT"
        assert cell.statistics().handled == 2
    assert actor.begun == ["busy", "next"]


async def test_a_cancelled_ask_that_was_begun_is_finished_and_its_answer_dropped(autojump_clock):
    """Cancelling an asker does not cancel the handler; the answer is counted as late."""
    actor = Worker()
    async with running(actor) as cell, trio.open_nursery() as nursery:
        asker = Asker(nursery, cell.ref, Work("a", 3))
        await trio.sleep(1)
        asker.scope.cancel()
        await trio.sleep(5)
        assert asker.scope.cancelled_caught
        assert cell.statistics().late_answers == 1
    assert actor.ended == ["a"]


async def test_a_cancelled_task_asks_and_tells_nothing():
    """A task that is cancelled already sends no message."""
    actor = Worker()
    async with running(actor) as cell:
        for verb in (cell.ref.ask, cell.ref.tell):
            with trio.CancelScope() as scope:
                scope.cancel()
                await verb(Work("a"))
            assert scope.cancelled_caught
    assert actor.begun == []


# --- a full mailbox ----------------------------------------------------------------------------------------------


async def test_block_lets_senders_wait_in_order(autojump_clock):
    """Those who wait for room are handled in the order of their calls; tell_nowait does not wait and raises."""
    actor = Small()
    async with running(actor) as cell, trio.open_nursery() as nursery:
        for name in "abcd":
            nursery.start_soon(cell.ref.tell, Work(name, 1))
            await until_blocked()
        with pytest.raises(MailboxFullError) as caught:
            cell.ref.tell_nowait(Work("x"))
        assert (caught.value.actor, caught.value.capacity) == ("worker", 1)
    assert actor.ended == list("abcd")


async def test_fail_raises_at_once(autojump_clock):
    """With ``fail`` ask, tell and tell_nowait raise MailboxFullError without waiting, and nothing is dropped."""
    actor = Choosy()
    async with running(actor) as cell:
        await cell.ref.tell(Work("a", 1))
        await until_blocked()
        await cell.ref.tell(Work("b", 1))
        start = trio.current_time()
        with pytest.raises(MailboxFullError):
            await cell.ref.tell(Work("x"))
        with pytest.raises(MailboxFullError):
            await cell.ref.ask(Work("x"))
        with pytest.raises(MailboxFullError):
            cell.ref.tell_nowait(Work("x"))
        assert trio.current_time() == start
        assert cell.statistics().dropped == 0
    assert actor.ended == ["a", "b"]


@pytest.mark.parametrize("how", ["tell", "tell_nowait", "ask"])
async def test_drop_oldest_ends_the_ask_that_it_drops(how, autojump_clock):
    """The ask that makes way for a newer message ends at once in MailboxFullError, however that was sent."""
    actor = DropsOldest()
    async with running(actor) as cell, trio.open_nursery() as nursery:
        await cell.ref.tell(Work("busy", 2))
        await until_blocked()
        old = Asker(nursery, cell.ref, Work("old"))
        await until_blocked()
        if how == "tell_nowait":
            cell.ref.tell_nowait(Work("new"))
        elif how == "tell":
            await cell.ref.tell(Work("new"))
        else:
            Asker(nursery, cell.ref, Work("new"))
        start = trio.current_time()
        await until_blocked()
        assert isinstance(old.error, MailboxFullError)
        assert trio.current_time() == start
        assert cell.statistics().dropped == 1
    assert actor.ended == ["busy", "new"]


async def test_drop_newest_drops_the_new_one(autojump_clock):
    """A new message that finds no room is dropped and counted; an ask is told so, a tell is not."""
    actor = DropsNewest()
    async with running(actor) as cell:
        await cell.ref.tell(Work("busy", 2))
        await until_blocked()
        await cell.ref.tell(Work("old"))
        await cell.ref.tell(Work("x"))
        cell.ref.tell_nowait(Work("x"))
        with pytest.raises(MailboxFullError):
            await cell.ref.ask(Work("x"))
        assert cell.statistics().dropped == 3
    assert actor.ended == ["busy", "old"]


async def test_a_quick_actor_and_a_full_mailbox_leave_others_their_turns():
    """An actor whose handlers never wait lets other tasks run at least once in 64 messages."""

    class Quick(Actor):
        mailbox_capacity: ClassVar[int] = 1000

        def __init__(self):
            self.done = 0

        @handles(Work)
        async def work(self, message):
            self.done += 1

    actor, steps = Quick(), []
    async with running(actor) as cell:
        for _ in range(1000):
            cell.ref.tell_nowait(Work("a"))
        while actor.done < 1000:
            steps.append(actor.done)
            await trio.lowlevel.checkpoint()
    assert len(steps) >= 7
    assert max(after - before for before, after in itertools.pairwise(steps)) <= 192


# --- every ask ends once -----------------------------------------------------------------------------------------

asks = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 3), st.sampled_from([0, 1, 2, 4, 40]), st.none() | st.integers(0, 8)),
    max_size=10,
)


@settings(deadline=None)
@given(asks, st.sampled_from([Small, Choosy, DropsOldest, DropsNewest, Worker]), st.none() | st.integers(0, 8))
def test_each_ask_ends_in_its_own_answer_or_in_one_error(plan, actor_class, stop):
    """Whatever deadlines, cancellations, policy and stop: own answer or error, in time; what was left is skipped."""

    async def main():
        actor, askers = actor_class(), []

        async def ask(number, at, seconds, timeout, cancel):
            await trio.sleep(at)
            asked = trio.current_time()
            with trio.move_on_at(math.inf if cancel is None else start + cancel) as scope:
                try:
                    outcome = await cell.ref.ask(Work(f"m{number}", seconds), timeout)
                except (AskTimeoutError, MailboxFullError, ActorStoppedError) as error:
                    outcome = error
            assert trio.current_time() - asked <= timeout
            askers.append((number, "cancelled" if scope.cancelled_caught else outcome))

        start = trio.current_time()
        async with running(actor) as cell, trio.open_nursery() as nursery:
            for number, step in enumerate(plan):
                nursery.start_soon(ask, number, *step)
            if stop is not None:
                await trio.sleep(stop)
                cell.stop()
        assert len(askers) == len(plan)
        for number, outcome in askers:
            name = f"m{number}"
            assert actor.begun.count(name) <= 1
            if isinstance(outcome, str) and outcome != "cancelled":
                assert outcome == name.upper()
            elif isinstance(outcome, AskTimeoutError):
                assert (name in actor.begun) == (outcome.phase == "handling")
            elif outcome != "cancelled":
                assert name not in actor.begun
        assert actor.begun == actor.ended

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
