"""The life of an actor: start, timers, bugs, stop."""

import logging
import math
from typing import ClassVar

import attrs
import pytest
import trio
import trio.testing

from trio_daq.actors import Actor, ActorCell, Message, handles
from trio_daq.errors import ActorStoppedError
from trio_daq.sharing import owner_name


@attrs.frozen
class Tick(Message[None]):
    """Note the time, then take so many seconds."""

    seconds: float = 0.0


@attrs.frozen(eq=False)
class Fail(Message[None]):
    """Raise."""

    error: BaseException


class Diarist(Actor):
    """Notes what happens to it, with the time since it was made."""

    def __init__(self, timers=lambda actor: None, stop_seconds=0.0):
        self.timers, self.stop_seconds = timers, stop_seconds
        self.born = trio.current_time()
        self.ticks, self.diary = [], []

    def now(self):
        return trio.current_time() - self.born

    async def on_start(self):
        self.diary.append("start")
        self.timers(self)

    async def on_stop(self):
        self.diary.append("stop")
        await trio.sleep(self.stop_seconds)
        self.diary.append("stopped")

    @handles(Tick)
    async def tick(self, message):
        self.ticks.append(round(self.now(), 9))
        await trio.sleep(message.seconds)

    @handles(Fail)
    async def fail(self, message):
        await trio.lowlevel.checkpoint()
        raise message.error


def cell_of(actor):
    return ActorCell("diarist", lambda: actor, type(actor))


async def live(actor, seconds):
    """Let *actor* live for some seconds, stop it in order, and return its cell."""
    cell = cell_of(actor)
    async with trio.open_nursery() as nursery:
        await nursery.start(cell.serve)
        await trio.sleep(seconds)
        cell.stop()
    return cell


async def until_blocked():
    await trio.testing.wait_all_tasks_blocked()


# --- start -------------------------------------------------------------------------------------------------------


async def test_messages_are_handled_only_after_on_start(autojump_clock):
    """While on_start runs, messages wait; start returns when it has ended, with the actor's address."""

    class Slow(Diarist):
        async def on_start(self):
            await trio.sleep(3)

    actor = Slow()
    cell = cell_of(actor)
    cell.ref.tell_nowait(Tick())
    async with trio.open_nursery() as nursery:
        ref = await nursery.start(cell.serve)
        assert ref is cell.ref
        assert actor.now() == 3
        cell.stop()
    assert actor.ticks == [3]


async def test_a_failed_on_start_comes_out_after_on_stop(autojump_clock):
    """What on_start raises is raised bare, on_stop has run, and after stop who asks is told that it has stopped."""
    error = OSError("no such line")

    class Broken(Diarist):
        async def on_start(self):
            raise error

    actor = Broken()
    cell = cell_of(actor)
    with pytest.raises(OSError, match="no such line") as caught:
        await cell.serve()
    assert caught.value is error
    assert actor.diary == ["stop", "stopped"]
    cell.stop()
    with pytest.raises(ActorStoppedError):
        await cell.ref.ask(Tick())


async def test_an_actor_acts_under_its_own_name():
    """In its handlers, starts and stops an actor owns lines as itself."""
    names = []

    class Named(Diarist):
        async def on_start(self):
            names.append((self.name, owner_name(None)))

        async def on_stop(self):
            names.append((self.name, owner_name(None)))

        @handles(Tick)
        async def tick(self, message):
            names.append((self.name, owner_name(None)))

    cell = cell_of(Named())
    cell.ref.tell_nowait(Tick())
    async with trio.open_nursery() as nursery:
        await nursery.start(cell.serve)
        cell.stop()
    assert names == [("diarist", "diarist")] * 3
    assert owner_name(None) != "diarist"


async def test_an_actor_that_does_not_run_says_so():
    """Name and timers of an actor that was never spawned raise, and say what to do."""
    actor = Diarist()
    for use in (lambda: actor.name, lambda: actor.after(1, Tick()), lambda: actor.every(1, Tick())):
        with pytest.raises(AttributeError, match="spawn it"):
            use()


# --- timers ------------------------------------------------------------------------------------------------------


async def test_every_ticks_at_once_and_then_on_an_absolute_grid(autojump_clock):
    """Ticks come at 0, p, 2p and so on: handling time shifts none of them."""
    actor = Diarist(lambda actor: actor.every(2, Tick(seconds=0.7)))
    cell = await live(actor, 9)
    assert actor.ticks == [0, 2, 4, 6, 8]
    assert cell.statistics().missed_ticks == 0


async def test_a_tick_that_finds_the_one_before_unhandled_is_left_out(autojump_clock):
    """If handling takes longer than the period, ticks are left out and counted; those that come are on the grid."""
    actor = Diarist(lambda actor: actor.every(2, Tick(seconds=5)))
    cell = await live(actor, 19)
    assert actor.ticks == [0, 6, 12, 18]
    assert cell.statistics().missed_ticks == 6


async def test_ticks_do_not_drift_over_a_long_time(autojump_clock):
    """After a thousand ticks of a period that binary floats cannot hold, the last is where it must be."""
    actor = Diarist(lambda actor: actor.every(0.1, Tick(seconds=0.03)))
    await live(actor, 100.05)
    assert len(actor.ticks) == 1001
    assert actor.ticks[-1] == pytest.approx(100, abs=1e-6)


async def test_a_stalled_event_loop_skips_ticks_and_keeps_the_grid(autojump_clock):
    """If time has jumped over several ticks, one comes late, and the next is on the grid again."""
    actor = Diarist(lambda actor: actor.every(2, Tick()))
    cell = cell_of(actor)
    async with trio.open_nursery() as nursery:
        await nursery.start(cell.serve)
        await trio.sleep(1)
        autojump_clock.jump(6.5)
        await trio.sleep(3)
        cell.stop()
    assert actor.ticks == [0, 7.5, 8, 10]


async def test_a_full_mailbox_stops_a_timer_only_as_long_as_it_is_full(autojump_clock):
    """A tick without room is left out and counted, and the timer goes on, whatever the overflow policy."""
    for overflow in ("block", "fail", "drop_newest", "drop_oldest"):

        class Small(Diarist):
            mailbox_capacity: ClassVar[int] = 1

        Small.overflow = overflow
        actor = Small(lambda actor: actor.every(2, Tick()))
        cell = cell_of(actor)
        async with trio.open_nursery() as nursery:
            await nursery.start(cell.serve)
            await trio.sleep(1)
            await cell.ref.tell(Tick(seconds=6))
            await until_blocked()
            await cell.ref.tell(Tick())  # fills the mailbox until 7
            await trio.sleep(8)
            cell.stop()
        assert 8 in actor.ticks, overflow
        assert cell.statistics().missed_ticks + cell.statistics().dropped >= 2


async def test_a_tick_that_was_dropped_does_not_silence_its_timer(autojump_clock):
    """If a tick in the mailbox makes way for another message, the timer still ticks later."""

    class Small(Diarist):
        mailbox_capacity: ClassVar[int] = 1
        overflow = "drop_oldest"

    actor = Small(lambda actor: actor.every(2, Tick()))
    cell = cell_of(actor)
    async with trio.open_nursery() as nursery:
        await nursery.start(cell.serve)
        await trio.sleep(1)
        cell.ref.tell_nowait(Tick(seconds=2))
        await trio.sleep(1.5)
        cell.ref.tell_nowait(Tick())  # drops the tick of second 2
        assert cell.statistics().dropped == 1
        await trio.sleep(4)
        cell.stop()
    assert actor.ticks == [0, 1, 3, 4, 6]


async def test_after_tells_once(autojump_clock):
    """A message set for later comes once, at its time."""
    actor = Diarist(lambda actor: actor.after(3, Tick()))
    await live(actor, 20)
    assert actor.ticks == [3]


async def test_after_waits_for_room(autojump_clock):
    """A message set for later that finds a full mailbox of the policy ``block`` comes when there is room."""

    class Small(Diarist):
        mailbox_capacity: ClassVar[int] = 1

    actor = Small(lambda actor: actor.after(2, Tick()))
    cell = cell_of(actor)
    async with trio.open_nursery() as nursery:
        await nursery.start(cell.serve)
        await cell.ref.tell(Tick(seconds=5))
        await until_blocked()
        await cell.ref.tell(Tick(seconds=1))
        await trio.sleep(10)
        cell.stop()
    assert actor.ticks == [0, 5, 6]


async def test_after_without_room_is_counted_where_nobody_waits(autojump_clock):
    """With the policy ``fail`` such a message is left out and counted, and the actor lives on."""

    class Small(Diarist):
        mailbox_capacity: ClassVar[int] = 1
        overflow = "fail"

    actor = Small(lambda actor: actor.after(2, Tick()))
    cell = cell_of(actor)
    async with trio.open_nursery() as nursery:
        await nursery.start(cell.serve)
        await cell.ref.tell(Tick(seconds=5))
        await until_blocked()
        await cell.ref.tell(Tick(seconds=1))
        await trio.sleep(10)
        cell.stop()
    assert actor.ticks == [0, 5]
    assert cell.statistics().missed_ticks == 1


async def test_timers_end_with_the_actor(autojump_clock):
    """Stopping an actor ends at once all that it set for later, and keeps nobody waiting."""

    def timers(actor):
        actor.after(1000, Tick())
        actor.every(500, Tick())

    actor = Diarist(timers)
    await live(actor, 1)
    assert actor.now() == 1
    assert actor.ticks == [0]
    with pytest.raises(ActorStoppedError):
        actor.after(1, Tick())


@pytest.mark.parametrize("seconds", [-1, math.inf, math.nan])
async def test_times_without_an_end_are_refused(seconds, autojump_clock):
    """A delay or period that is negative, infinite or NaN raises, and so does a period of 0."""
    errors = []

    def timers(actor):
        for set_timer in (
            lambda: actor.after(seconds, Tick()),
            lambda: actor.every(seconds, Tick()),
            lambda: actor.every(0, Tick()),
        ):
            with pytest.raises(ValueError, match="must be a finite number") as caught:
                set_timer()
            errors.append(str(caught.value).split()[0])

    actor = Diarist(timers)
    await live(actor, 1)
    assert errors == ["delay", "period", "period"]
    assert actor.ticks == []


# --- bugs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [True, False])
async def test_a_bug_in_a_handler_ends_the_actor(asked, autojump_clock):
    """A programming error goes to the asker and comes out of the actor bare, cause kept, after on_stop."""
    actor = Diarist(lambda actor: actor.every(1, Tick()))
    cell = cell_of(actor)
    error = TypeError("a mistake")
    error.__cause__ = cause = KeyError()
    got = []

    async def ask():
        with pytest.raises(TypeError) as caught:
            await cell.ref.ask(Fail(error))
        got.append(caught.value)

    async with trio.open_nursery() as nursery:
        if asked:
            nursery.start_soon(ask)
        else:
            cell.ref.tell_nowait(Fail(error))
        with pytest.raises(TypeError, match="a mistake") as caught, trio.fail_after(100):
            await cell.serve()
    assert caught.value is error
    assert error.__cause__ is cause
    assert got == [error] * asked
    assert actor.diary == ["start", "stop", "stopped"]
    assert not cell.is_running


async def test_those_who_wait_behind_a_bug_are_told(autojump_clock):
    """If no life follows a bug, all asks in the mailbox, and all senders waiting for room, end when the cell stops."""

    class Small(Diarist):
        mailbox_capacity: ClassVar[int] = 2

    cell = cell_of(Small())
    ended = []

    async def send(verb, seconds):
        await trio.sleep(seconds)
        with pytest.raises(ActorStoppedError, match="diarist"):
            await verb(Tick())
        ended.append(trio.current_time())

    async def serve():
        with pytest.raises(AssertionError):
            await cell.serve()
        cell.stop()

    async with trio.open_nursery() as nursery:
        cell.ref.tell_nowait(Tick(seconds=3))
        nursery.start_soon(serve)
        await until_blocked()
        cell.ref.tell_nowait(Fail(AssertionError()))
        start = trio.current_time()
        nursery.start_soon(send, cell.ref.ask, 1)
        nursery.start_soon(send, cell.ref.ask, 2)
        nursery.start_soon(send, cell.ref.tell, 2.5)
    assert ended == [start + 3] * 3


# --- stop --------------------------------------------------------------------------------------------------------


async def test_stop_drains_the_mailbox(autojump_clock):
    """After stop the messages that are in are handled, asks are answered, and then on_stop runs."""
    actor = Diarist()
    cell = cell_of(actor)
    answered = []

    async def ask():
        await cell.ref.ask(Tick(seconds=1))
        answered.append(actor.now())

    async with trio.open_nursery() as nursery:
        await nursery.start(cell.serve)
        await cell.ref.tell(Tick(seconds=1))
        nursery.start_soon(ask)
        await until_blocked()
        cell.stop()
        cell.stop()
    assert actor.ticks == [0, 1]
    assert answered == [2]
    assert actor.diary == ["start", "stop", "stopped"]
    assert cell.undelivered == 0


async def test_after_stop_nothing_is_taken(autojump_clock):
    """From the call of stop on, ask, tell and tell_nowait raise, while draining and after the end."""
    actor = Diarist()
    cell = cell_of(actor)

    async def refused():
        with pytest.raises(ActorStoppedError):
            await cell.ref.ask(Tick())
        with pytest.raises(ActorStoppedError):
            await cell.ref.tell(Tick())
        with pytest.raises(ActorStoppedError):
            cell.ref.tell_nowait(Tick())

    async with trio.open_nursery() as nursery:
        await nursery.start(cell.serve)
        await cell.ref.tell(Tick(seconds=5))
        await until_blocked()
        cell.stop()
        await refused()
    await refused()
    assert actor.ticks == [0]


async def test_senders_that_wait_for_room_are_refused_by_stop(autojump_clock):
    """Stop ends at once the wait of those who are not in yet."""

    class Small(Diarist):
        mailbox_capacity: ClassVar[int] = 1

    actor = Small()
    cell = cell_of(actor)
    refused = []

    async def tell():
        with pytest.raises(ActorStoppedError):
            await cell.ref.tell(Tick())
        refused.append(actor.now())

    async with trio.open_nursery() as nursery:
        await nursery.start(cell.serve)
        await cell.ref.tell(Tick(seconds=5))
        await until_blocked()
        await cell.ref.tell(Tick())
        nursery.start_soon(tell)
        await trio.sleep(1)
        cell.stop()
    assert refused == [1]
    assert actor.ticks == [0, 5]


async def test_on_stop_runs_to_its_end_under_cancellation(autojump_clock):
    """Cancelled in the middle of a message, the actor still does what on_stop must do, and then ends cancelled."""
    actor = Diarist(stop_seconds=1.5)
    cell = cell_of(actor)
    with trio.move_on_after(3) as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(cell.serve)
            await cell.ref.tell(Tick(seconds=100))
    assert scope.cancelled_caught
    assert actor.diary == ["start", "stop", "stopped"]
    assert actor.now() == 4.5


@pytest.mark.parametrize("cancelled", [True, False])
async def test_on_stop_is_cut_after_two_seconds(cancelled, autojump_clock, caplog):
    """An on_stop that does not end is cut after 2 s, at any kind of end, and that is logged."""
    actor = Diarist(stop_seconds=1000)
    cell = cell_of(actor)
    async with trio.open_nursery() as nursery:
        await nursery.start(cell.serve)
        with caplog.at_level(logging.WARNING, "trio_daq.actors"):
            if cancelled:
                nursery.cancel_scope.cancel()
            else:
                cell.stop()
    assert actor.diary == ["start", "stop"]
    assert actor.now() == 2
    assert "diarist: on_stop took longer than 2 s" in caplog.text


async def test_cancellation_ends_the_asks_and_counts_what_was_not_delivered(autojump_clock):
    """Cancelled, an actor ends the ask at hand; stopped then, those in the mailbox; the left-overs are counted."""
    cell = cell_of(Diarist())
    stopped = []

    async def ask():
        with pytest.raises(ActorStoppedError):
            await cell.ref.ask(Tick(seconds=50), timeout=40)
        stopped.append(trio.current_time())

    async with trio.open_nursery() as askers:
        with trio.move_on_after(3):
            async with trio.open_nursery() as nursery:
                await nursery.start(cell.serve)
                start = trio.current_time()
                askers.start_soon(ask)
                await until_blocked()
                askers.start_soon(ask)
                await until_blocked()
                await cell.ref.tell(Tick())
                await trio.sleep_forever()
        cell.stop()
    assert stopped == [start + 3] * 2
    assert cell.undelivered == 2
    assert cell.statistics().waiting == 0


async def test_statistics_count_what_happened(autojump_clock):
    """Waiting, handled and failed are right while the actor lives."""
    cell = cell_of(Diarist())
    async with trio.open_nursery() as nursery:
        await nursery.start(cell.serve)
        await cell.ref.tell(Tick())
        await cell.ref.tell(Fail(OSError("off")))
        await cell.ref.tell(Tick(seconds=5))
        await until_blocked()
        await cell.ref.tell(Tick())
        now = cell.statistics()
        assert (now.handled, now.failed, now.waiting) == (1, 1, 1)
        assert (now.dropped, now.late_answers, now.missed_ticks) == (0, 0, 0)
        cell.stop()
    assert cell.statistics().handled == 3
