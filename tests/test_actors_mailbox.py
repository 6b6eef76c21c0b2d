"""The mailbox: bounded, in order, and fair to those who wait for room."""

import math

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_daq.actors.mailbox import Mailbox

RULES = ["block", "fail", "drop_oldest", "drop_newest"]


def full(capacity, overflow):
    mailbox = Mailbox(capacity, overflow)
    for number in range(capacity):
        mailbox.put_nowait(number)
    return mailbox


async def until_blocked():
    await trio.testing.wait_all_tasks_blocked()


puts = st.lists(
    st.tuples(st.integers(0, 6), st.none() | st.integers(0, 8), st.sampled_from(["put", "put", "put", "nowait"])),
    max_size=15,
)


@settings(deadline=None)
@given(st.integers(1, 3), puts, st.lists(st.integers(0, 3), max_size=15))
def test_items_leave_in_the_order_of_the_calls(capacity, plan, pauses):
    """Whoever waits, is cancelled or tries without waiting: what gets in leaves in call order, never more than fit."""

    async def main():
        mailbox = Mailbox(capacity, "block")
        called, inside, got = [], set(), []

        async def writer(number, at, cancel, kind):
            await trio.sleep(at)
            with trio.move_on_at(math.inf if cancel is None else start + cancel):
                called.append(number)
                if kind == "put":
                    assert await mailbox.put(number) is None
                else:
                    try:
                        mailbox.put_nowait(number)
                    except trio.WouldBlock:
                        return
                inside.add(number)

        async def reader():
            for pause in pauses:
                await trio.sleep(pause)
                got.append(await mailbox.get())
                assert len(mailbox) <= capacity
            while True:
                got.append(await mailbox.get())

        start = trio.current_time()
        async with trio.open_nursery() as outer:
            outer.start_soon(reader)
            async with trio.open_nursery() as nursery:
                for number, (at, cancel, kind) in enumerate(plan):
                    nursery.start_soon(writer, number, at, cancel, kind)
            await trio.sleep(100)
            outer.cancel_scope.cancel()
        assert got == [number for number in called if number in inside]
        assert len(mailbox) == 0
        assert not mailbox._writers

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_a_newcomer_does_not_overtake_those_who_wait():
    """Between the reader's making room and the waiting writer's first step, the room belongs to that writer."""
    mailbox = full(1, "block")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mailbox.put, "waited")
        await until_blocked()
        assert await mailbox.get() == 0
        with pytest.raises(trio.WouldBlock):
            mailbox.put_nowait("newcomer")
        nursery.start_soon(mailbox.put, "last")
        assert await mailbox.get() == "waited"
    assert await mailbox.get() == "last"


async def test_writers_that_wait_are_served_first_come_first():
    """Those who wait for room get in one by one, in the order in which they began to wait."""
    mailbox = full(2, "block")
    async with trio.open_nursery() as nursery:
        for letter in "abcd":
            nursery.start_soon(mailbox.put, letter)
            await until_blocked()
        got = [await mailbox.get() for _ in range(6)]
    assert got == [0, 1, *"abcd"]


async def test_a_cancelled_writer_is_not_in():
    """Cancelled while it waits, an item never gets in, and the next writer takes its turn."""
    mailbox = full(1, "block")
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(_cancel_when_blocked, scope)
            await mailbox.put("cancelled")
        assert scope.cancelled_caught
        nursery.start_soon(mailbox.put, "next")
        await until_blocked()
        assert [await mailbox.get(), await mailbox.get()] == [0, "next"]
    assert len(mailbox) == 0


async def _cancel_when_blocked(scope):
    await until_blocked()
    scope.cancel()


@pytest.mark.parametrize("overflow", RULES)
async def test_a_cancelled_task_puts_and_gets_nothing(overflow):
    """A task that is cancelled already neither puts nor takes, room or items or not."""
    mailbox = Mailbox(2, overflow)
    mailbox.put_nowait("there")
    with trio.CancelScope() as scope:
        scope.cancel()
        await mailbox.put("new")
    assert scope.cancelled_caught
    with trio.CancelScope() as scope:
        scope.cancel()
        await mailbox.get()
    assert scope.cancelled_caught
    assert mailbox.clear() == ["there"]


@pytest.mark.parametrize("overflow", ["block", "fail"])
async def test_without_room_nothing_is_dropped(overflow):
    """With ``block`` or ``fail`` an item that cannot wait raises, and those that are in stay."""
    mailbox = full(2, overflow)
    with pytest.raises(trio.WouldBlock):
        mailbox.put_nowait("new")
    if overflow == "fail":
        with pytest.raises(trio.WouldBlock):
            await mailbox.put("new")
    assert (mailbox.dropped, mailbox.clear()) == (0, [0, 1])


@pytest.mark.parametrize(
    ("overflow", "loser", "left"), [("drop_oldest", 0, [1, "new"]), ("drop_newest", "new", [0, 1])]
)
async def test_the_rule_says_who_is_dropped(overflow, loser, left):
    """The first in line or the new one is dropped, handed back to the one who put, and counted."""
    mailbox = full(2, overflow)
    assert mailbox.put_nowait("new") == loser
    assert (mailbox.dropped, mailbox.clear()) == (1, left)
    again = full(2, overflow)
    assert await again.put("new") == loser
    assert (again.dropped, again.clear()) == (1, left)


@pytest.mark.parametrize("overflow", ["fail", "drop_oldest", "drop_newest"])
async def test_a_writer_in_a_tight_loop_lets_the_reader_run(overflow):
    """Where putting never waits, a task that puts without end still gives the reader its turns."""
    mailbox = Mailbox(2, overflow)
    got = []

    async def reader():
        while True:
            got.append(await mailbox.get())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader)
        for number in range(200):
            try:
                await mailbox.put(number)
            except trio.WouldBlock:
                assert overflow == "fail"
        nursery.cancel_scope.cancel()
    assert len(got) > 20
    assert got == sorted(got)


async def test_closing_wakes_all_who_wait():
    """Writers that wait get ClosedResourceError and are not in; a reader of an empty mailbox gets EndOfChannel."""
    mailbox = full(1, "block")
    refused = []

    async def write(item):
        try:
            await mailbox.put(item)
        except trio.ClosedResourceError:
            refused.append(item)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, "a")
        nursery.start_soon(write, "b")
        await until_blocked()
        mailbox.close()
        mailbox.close()
    assert sorted(refused) == ["a", "b"]
    assert await mailbox.get() == 0
    with pytest.raises(trio.EndOfChannel):
        await mailbox.get()

    empty, ended = Mailbox(1, "block"), []

    async def read():
        try:
            await empty.get()
        except trio.EndOfChannel:
            ended.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await until_blocked()
        empty.close()
    assert ended == [True]


@pytest.mark.parametrize("overflow", RULES)
@pytest.mark.parametrize("room", [True, False])
async def test_a_closed_mailbox_takes_nothing(overflow, room):
    """After close, putting raises ClosedResourceError with room and without, and what is in can still be read."""
    mailbox = full(1, overflow)
    if room:
        await mailbox.get()
    mailbox.close()
    with pytest.raises(trio.ClosedResourceError):
        mailbox.put_nowait("late")
    with pytest.raises(trio.ClosedResourceError):
        await mailbox.put("late")
    assert mailbox.clear() == ([] if room else [0])


def test_a_mailbox_needs_room():
    """A capacity below 1 is refused."""
    with pytest.raises(ValueError, match="at least 1"):
        Mailbox(0, "block")
