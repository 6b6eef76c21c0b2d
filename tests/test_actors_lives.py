"""Several lives in one place: what is kept, what is not, and who is told."""

import contextlib
import functools
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
from trio_daq.errors import ActorStoppedError, AskTimeoutError, MailboxFullError, StateError


@attrs.frozen
class Work(Message[str]):
    """Take so many seconds; answer with the number of the life."""

    name: str = ""
    seconds: float = 0.0


class Mistake(Message[None]):
    """Handled by a programming error."""


class Worker(Actor):
    """Notes in a diary, shared by its lives, what happens in which life."""

    mailbox_capacity: ClassVar[int] = 3

    def __init__(self, diary, stop_seconds=0.0, timers=lambda actor: None):
        self.diary, self.stop_seconds, self.timers = diary, stop_seconds, timers
        diary.append("made")
        self.life = diary.count("made")

    async def on_start(self):
        self.timers(self)

    async def on_stop(self):
        await trio.sleep(self.stop_seconds)
        self.diary.append(f"{self.life} stopped")

    @handles(Work)
    async def work(self, message):
        self.diary.append(f"{self.life} {message.name}")
        await trio.sleep(message.seconds)
        return f"life {self.life}"

    @handles(Mistake)
    async def mistake(self, message):
        self.diary.append("mistake")
        await trio.lowlevel.checkpoint()
        raise AssertionError


def cell_of(diary, actor_class=Worker, **kwargs):
    return ActorCell("worker", lambda: actor_class(diary, **kwargs), actor_class)


async def two_lives(cell, first_ends=(), pause=0):
    """Serve *cell* until the first life ends in *first_ends* or well, then a second time after some seconds."""
    with contextlib.suppress(first_ends):
        await cell.serve()
    await trio.sleep(pause)
    await cell.serve()


async def until_blocked():
    await trio.testing.wait_all_tasks_blocked()


# --- restart -----------------------------------------------------------------------------------------------------


async def test_a_restart_ends_the_message_at_hand_and_keeps_the_others(autojump_clock):
    """Restarted, an actor finishes what it is at; what waits is handled by a new one, in order, by the same address."""
    diary = []
    cell = cell_of(diary)
    ref = cell.ref
    async with trio.open_nursery() as nursery:
        nursery.start_soon(two_lives, cell)
        await ref.tell(Work("a", 1))
        await until_blocked()
        for name in "bc":
            await ref.tell(Work(name))
        cell.restart()
        assert await ref.ask(Work("d")) == "life 2"
        cell.stop()
    assert diary == ["made", "1 a", "1 stopped", "made", "2 b", "2 c", "2 d", "2 stopped"]
    assert (cell.statistics().lives, cell.statistics().undelivered) == (2, 0)


async def test_an_idle_actor_restarts_at_once(autojump_clock):
    """A restart of an actor that has nothing to do needs no message to be noticed."""
    diary = []
    cell = cell_of(diary)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(two_lives, cell)
        await until_blocked()
        cell.restart()
        await until_blocked()
        assert diary == ["made", "1 stopped", "made"]
        cell.stop()


async def test_the_message_that_killed_a_life_is_not_handled_again(autojump_clock):
    """A bug goes to the one who asked; those who wait behind it are served by the next life."""
    diary = []
    cell = cell_of(diary)
    answers = []

    async def ask():
        answers.append(await cell.ref.ask(Work("after")))
        cell.stop()

    async with trio.open_nursery() as nursery:
        cell.ref.tell_nowait(Work("first", 1))
        nursery.start_soon(two_lives, cell, AssertionError)
        await until_blocked()
        nursery.start_soon(pytest_raises, AssertionError, cell.ref.ask, Mistake())
        await until_blocked()
        nursery.start_soon(ask)
    assert answers == ["life 2"]
    assert diary.count("mistake") == 1


async def pytest_raises(error, function, *args):
    with pytest.raises(error):
        await function(*args)


async def test_a_life_that_was_cancelled_tells_the_one_it_worked_for(autojump_clock):
    """Cancelled in a handler, the asker learns that the message will not be handled again; the mailbox is kept."""
    diary = []
    cell = cell_of(diary)
    errors = []

    async def ask():
        with pytest.raises(ActorStoppedError) as caught:
            await cell.ref.ask(Work("hung", 4))
        errors.append(str(caught.value))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await until_blocked()
        with trio.move_on_after(1):
            await cell.serve()
        cell.ref.tell_nowait(Work("next"))
        nursery.start_soon(cell.serve)
        await until_blocked()
        cell.stop()
    assert errors == [
        "actor 'worker' was ended while it handled Work(name='hung', seconds=4), which is not handled again."
    ]
    assert diary == ["made", "1 hung", "1 stopped", "made", "2 next", "2 stopped"]


async def test_between_lives_an_ask_waits_by_its_deadline(autojump_clock):
    """An ask sent between two lives is answered by the next, or times out as queued, and then is never begun."""
    diary = []
    cell = cell_of(diary)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(two_lives, cell, (), 3)
        await until_blocked()
        cell.restart()
        await until_blocked()
        start = trio.current_time()
        with pytest.raises(AskTimeoutError) as caught:
            await cell.ref.ask(Work("early"), timeout=2)
        assert (caught.value.phase, caught.value.waited) == ("queued", 2)
        assert await cell.ref.ask(Work("late"), timeout=2) == "life 2"
        assert trio.current_time() == start + 3
        cell.stop()
    assert "2 early" not in diary


async def test_no_life_begins_before_the_one_before_has_ended(autojump_clock):
    """While on_stop runs, another life is refused, and nothing of it is made."""
    diary = []
    cell = cell_of(diary, stop_seconds=1.5)
    async with trio.open_nursery() as nursery:
        await nursery.start(cell.serve)
        cell.restart()
        await trio.sleep(1)
        assert cell.is_running
        with pytest.raises(StateError, match="worker"):
            await cell.serve()
        await trio.sleep(1)
        assert not cell.is_running
        nursery.start_soon(cell.serve)
        await until_blocked()
        cell.stop()
    assert diary == ["made", "1 stopped", "made", "2 stopped"]


async def test_an_actor_that_cannot_be_made_leaves_its_place_free():
    """If the factory raises, that comes out, and another life can be tried."""
    tries = []

    def make():
        tries.append(None)
        if len(tries) == 1:
            raise OSError("no licence")
        return Worker([])

    cell = ActorCell("worker", make, Worker)
    with pytest.raises(OSError, match="licence"):
        await cell.serve()
    async with trio.open_nursery() as nursery:
        await nursery.start(cell.serve)
        cell.stop()


async def test_the_timers_of_a_life_end_with_it(autojump_clock):
    """Ticks of one life, also one that waits in the mailbox, are not handled in the next, which sets its own."""
    diary = []
    ticks = []

    class Ticking(Worker):
        @handles(Work)
        async def work(self, message):
            ticks.append((self.life, trio.current_time() - start, message.name))
            await trio.sleep(message.seconds)

    def timers(actor):
        actor.every(2, Work("tick", 0.0))
        actor.after(7, Work("once"))

    cell = cell_of(diary, Ticking, timers=timers)
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(two_lives, cell, (), 1)
        await trio.sleep(1.5)
        await cell.ref.tell(Work("long", 3))  # until 4.5; the tick of second 2 waits behind it
        await trio.sleep(2)
        cell.restart()
        await trio.sleep(5)
        cell.stop()
    assert ticks == [(1, 0, "tick"), (1, 1.5, "long"), (2, 5.5, "tick"), (2, 7.5, "tick")]


async def test_an_old_life_sets_no_timers_in_the_next(autojump_clock):
    """Whoever keeps the object of a life that has ended cannot make it tick."""
    actors = []
    cell = cell_of([], timers=actors.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(two_lives, cell)
        await until_blocked()
        cell.restart()
        await until_blocked()
        old, new = actors
        with pytest.raises(ActorStoppedError):
            old.after(1, Work())
        new.after(1, Work())
        cell.stop()


# --- stop --------------------------------------------------------------------------------------------------------


async def test_stopped_between_lives_a_place_ends_what_waits(autojump_clock):
    """Asks that wait for a life that will not come end at once when the cell is stopped, and later ones are refused."""
    cell = cell_of([])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pytest_raises, ActorStoppedError, cell.ref.ask, Work())
        await until_blocked()
        start = trio.current_time()
        cell.stop()
    assert trio.current_time() == start
    assert cell.undelivered == 1
    await pytest_raises(ActorStoppedError, cell.ref.ask, Work())


async def test_a_stopped_place_takes_messages_again_in_its_next_life(autojump_clock):
    """Served again after stop, the actor answers by the same address."""
    cell = cell_of([])
    for life in (1, 2):
        async with trio.open_nursery() as nursery:
            await nursery.start(cell.serve)
            assert await cell.ref.ask(Work()) == f"life {life}"
            cell.stop()
        await pytest_raises(ActorStoppedError, cell.ref.ask, Work())


async def test_stop_does_not_wait_behind_a_full_mailbox(autojump_clock):
    """Asked to stop with a full mailbox and senders outside, the actor refuses those at once and drains the others."""
    diary = []
    cell = cell_of(diary)
    refused = []

    async def tell():
        with pytest.raises(ActorStoppedError):
            await cell.ref.tell(Work("outside"))
        refused.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        await nursery.start(cell.serve)
        await cell.ref.tell(Work("0", 5))
        await until_blocked()
        for name in "123":
            cell.ref.tell_nowait(Work(name))
        nursery.start_soon(tell)
        await until_blocked()
        start = trio.current_time()
        cell.stop()
    assert refused == [start]
    assert diary == ["made", "1 0", "1 1", "1 2", "1 3", "1 stopped"]


async def test_a_stop_after_a_restart_still_drains(autojump_clock):
    """If the lab stops while a restart waits for the message at hand, what is in the mailbox is handled first."""
    diary = []
    cell = cell_of(diary)
    async with trio.open_nursery() as nursery:
        await nursery.start(cell.serve)
        await cell.ref.tell(Work("a", 2))
        await until_blocked()
        await cell.ref.tell(Work("b"))
        cell.restart()
        cell.stop()
    assert diary == ["made", "1 a", "1 b", "1 stopped"]


# --- dead letters ------------------------------------------------------------------------------------------------


async def test_dead_letters_say_what_became_of_whom(autojump_clock, caplog):
    """Dropped, undelivered and refused messages can be looked at, in order; each kind is counted, and logged once."""

    class Dropping(Worker):
        overflow = "drop_oldest"

    cell = cell_of([], Dropping)
    with caplog.at_level(logging.WARNING, "trio_daq.actors"):
        for name in "abcde":
            cell.ref.tell_nowait(Work(name))
        cell.stop()
        for _ in range(2):
            with pytest.raises(ActorStoppedError):
                cell.ref.tell_nowait(Work("late"))
    letters = [(letter.message.name, letter.fate) for letter in cell.ref.dead_letters()]
    assert letters == [
        *((name, "dropped") for name in "ab"),
        *((name, "undelivered") for name in "cde"),
        *((name, "refused") for name in ("late", "late")),
    ]
    now = cell.ref.statistics()
    assert (now.dropped, now.undelivered, now.refused, now.waiting) == (2, 3, 2, 0)
    assert [record.args[2] for record in caplog.records] == ["dropped", "undelivered", "refused"]


async def test_a_hundred_dead_letters_are_kept(autojump_clock):
    """However many there are, the last hundred can be looked at, and all are counted."""
    cell = cell_of([])
    cell.stop()
    for number in range(150):
        with pytest.raises(ActorStoppedError):
            cell.ref.tell_nowait(Work(str(number)))
    assert [letter.message.name for letter in cell.ref.dead_letters()] == [str(number) for number in range(50, 150)]
    assert cell.ref.statistics().refused == 150


async def test_a_withdrawn_ask_makes_room_at_once(autojump_clock):
    """An ask that timed out in the mailbox takes no place there, and is no dead letter: who asked was told."""

    class Choosy(Worker):
        mailbox_capacity: ClassVar[int] = 1
        overflow = "fail"

    cell = cell_of([], Choosy)
    with pytest.raises(AskTimeoutError):
        await cell.ref.ask(Work("gone"), timeout=1)
    cell.ref.tell_nowait(Work("here"))
    with pytest.raises(MailboxFullError):
        cell.ref.tell_nowait(Work("no room"))
    assert cell.ref.dead_letters() == ()


async def test_a_withdrawn_ask_lets_in_who_waits_for_room(autojump_clock):
    """When an ask in a full mailbox times out, the first sender that waits for room gets it at once."""
    diary = []
    cell = cell_of(diary)
    async with trio.open_nursery() as nursery:
        await nursery.start(cell.serve)
        await cell.ref.tell(Work("busy", 4))
        await until_blocked()
        start = trio.current_time()
        nursery.start_soon(functools.partial(pytest_raises, AskTimeoutError, cell.ref.ask, Work("gone"), 1))
        await until_blocked()
        for name in "bc":
            cell.ref.tell_nowait(Work(name))
        await cell.ref.tell(Work("d"))
        assert trio.current_time() == start + 1
        cell.stop()
    assert diary == ["made", "1 busy", "1 b", "1 c", "1 d", "1 stopped"]


# --- whatever the policy -----------------------------------------------------------------------------------------

tells = st.lists(
    st.tuples(
        st.integers(0, 6),
        st.integers(0, 2),
        st.integers(1, 4),
        st.sampled_from(["tell", "tell", "ask", "tell_nowait"]),
        st.none() | st.integers(0, 8),
    ),
    max_size=14,
)


@settings(deadline=None)
@given(
    st.integers(1, 3),
    st.sampled_from(["block", "fail", "drop_oldest", "drop_newest"]),
    tells,
    st.lists(st.sampled_from(["restart", "cancel"]), max_size=2),
    st.integers(1, 12),
    st.booleans(),
)
def test_each_message_has_one_fate(capacity, policy, plan, ends, stop_at, cut):
    """Whatever policy, restarts, cancellations and stop: each message is handled or has one other fate, in order."""

    async def main():
        class Small(Worker):
            mailbox_capacity: ClassVar[int] = capacity
            overflow = policy

        diary, sent, told = [], [], {}
        cell = cell_of(diary, Small)
        life = trio.CancelScope()

        async def lives():
            nonlocal life
            while not stopped.is_set():
                with trio.CancelScope() as life:
                    await cell.serve()

        async def send(number, at, seconds, timeout, verb, cancel):
            await trio.sleep(at)
            name = str(number)
            sent.append(name)
            with trio.move_on_at(math.inf if cancel is None else start + cancel) as scope:
                try:
                    if verb == "tell_nowait":
                        cell.ref.tell_nowait(Work(name, seconds))
                    else:
                        await getattr(cell.ref, verb)(Work(name, seconds), timeout)
                    told[name] = "sent"
                except (MailboxFullError, AskTimeoutError, ActorStoppedError) as error:
                    told[name] = error
            if scope.cancelled_caught:
                told[name] = "cancelled"

        async def watch():
            while True:
                assert cell.statistics().waiting <= capacity
                await trio.sleep(0.5)

        start, stopped = trio.current_time(), trio.Event()
        async with trio.open_nursery() as outer:
            outer.start_soon(watch)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lives)
                for number, step in enumerate(plan):
                    nursery.start_soon(send, number, *step)
                for kind in ends:
                    await trio.sleep(1.25)
                    if kind == "restart":
                        cell.restart()
                    else:
                        life.cancel()
                await trio.sleep_until(start + max(stop_at, 3))
                stopped.set()
                cell.stop()
                if cut:
                    await trio.sleep(0.25)
                    life.cancel()
            outer.cancel_scope.cancel()
        begun = [line.split()[1] for line in diary if line[0].isdigit() and not line.endswith("stopped")]
        dead = {}
        for letter in cell.dead_letters():
            assert letter.message.name not in dead
            dead[letter.message.name] = letter.fate
        assert len(begun) == len(set(begun))
        assert begun == [name for name in sent if name in begun]
        assert set(told) == set(sent)
        for name, result in told.items():
            if name in begun:
                assert name not in dead
            elif name not in dead:
                # nobody will handle it, and its sender knows
                assert result == "cancelled" or isinstance(result, (MailboxFullError, AskTimeoutError))
            elif dead[name] == "refused":
                assert isinstance(result, ActorStoppedError)
            elif dead[name] == "dropped":
                assert policy.startswith("drop")
        assert cell.statistics().waiting == 0

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
