"""Fan-out: policies, counts of what was lost, and one order for all."""

import contextlib
import itertools
import math

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_daq.data import DataDistributor, DataPublisher, Reading
from trio_daq.errors import PublishTimeoutError


async def publish(distributor, count, instrument="dmm", channel="v", timeout=5.0):
    publisher = DataPublisher(distributor, instrument)
    return [await publisher.publish(channel, number, timeout=timeout) for number in range(count)]


def seqs(batch):
    return [reading.seq for reading in batch]


def a_reading(seq, instrument="dmm"):
    return Reading(instrument=instrument, channel="v", value=0.0, seq=seq, time_ns=0, monotonic_ns=0, asked_ns=0)


# --- policies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "got", "lost"), [("drop_oldest", [6, 7, 8, 9], 6), ("drop_newest", [0, 1, 2, 3], 6), ("latest", [9], 9)]
)
async def test_who_falls_behind_loses_what_the_policy_says_and_it_is_counted(policy, got, lost):
    """A slow subscriber gets the newest, the oldest or the last readings, and everything else counts as lost."""
    distributor = DataDistributor()
    with distributor.subscribe("slow", policy=policy, capacity=4) as slow:
        await publish(distributor, 10)
        assert seqs(await slow.receive()) == got
        assert slow.lost == lost
        assert slow.receive_nowait() == []
        assert distributor.statistics().lost == {"slow": lost}


async def test_losses_show_before_the_slow_one_reads():
    """A subscriber that never reads is seen to lose readings in the statistics, not only once it reads again."""
    distributor = DataDistributor()
    with distributor.subscribe("stuck", capacity=4) as stuck:
        await publish(distributor, 10)
        assert distributor.statistics().lost == {"stuck": 6}
        assert distributor.statistics().backlog == {"stuck": 4}
        stuck.receive_nowait()
        assert distributor.statistics().lost == {"stuck": 6}
        assert distributor.statistics().backlog == {"stuck": 0}


async def test_latest_keeps_one_reading_of_each_channel_in_the_order_of_the_stream():
    """``latest`` gives the newest reading of each channel of each instrument, ordered as they were published."""
    distributor = DataDistributor()
    first, second = DataPublisher(distributor, "one"), DataPublisher(distributor, "two")
    with distributor.subscribe("table", policy="latest") as table:
        for publisher, channel, value in [(first, "a", 1), (first, "b", 2), (second, "a", 3), (first, "a", 4)]:
            await publisher.publish(channel, value)
        assert [(one.instrument, one.channel, one.value) for one in await table.receive()] == [
            ("one", "b", 2.0),
            ("two", "a", 3.0),
            ("one", "a", 4.0),
        ]
        assert table.lost == 1


async def test_a_blocking_subscriber_makes_the_publisher_wait_and_loses_nothing(autojump_clock):
    """With ``block`` the publisher goes on only when there is room, and every reading arrives."""
    distributor = DataDistributor()
    got = []
    with distributor.subscribe("recorder", policy="block", capacity=3) as recorder:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish, distributor, 20)
            while len(got) < 20:
                await trio.sleep(1)
                batch = recorder.receive_nowait()
                assert len(batch) <= 3
                got += seqs(batch)
    assert got == list(range(20))
    assert recorder.lost == 0


async def test_a_slow_subscriber_costs_the_others_nothing():
    """What one subscriber loses, another with more room gets."""
    distributor = DataDistributor()
    with distributor.subscribe("slow", capacity=1) as slow, distributor.subscribe("quick") as quick:
        await publish(distributor, 5)
        assert seqs(quick.receive_nowait()) == [0, 1, 2, 3, 4]
        assert seqs(slow.receive_nowait()) == [4]
        assert (quick.lost, slow.lost) == (0, 4)


async def test_listening_begins_with_the_next_reading():
    """A subscriber gets nothing that was published before it came, and nothing after it left is held for it."""
    distributor = DataDistributor(capacity=8)
    await publish(distributor, 5)
    with distributor.subscribe("late", policy="block") as late:
        assert late.receive_nowait() == []
        await publish(distributor, 3)
        assert seqs(await late.receive()) == [5, 6, 7]
    await publish(distributor, 50)  # would wait for a blocking subscriber that had not left
    assert distributor.statistics().lost == {}


@pytest.mark.parametrize("arguments", [{"policy": "Block"}, {"policy": ""}, {"capacity": 0}, {"capacity": -1}])
async def test_an_unknown_policy_and_no_room_are_refused(arguments):
    """A policy that does not exist and a capacity below 1 raise, and subscribe nobody."""
    distributor = DataDistributor()
    with pytest.raises(ValueError, match=next(iter(arguments))), distributor.subscribe("wrong", **arguments):
        pass
    assert distributor.statistics().backlog == {}
    with pytest.raises(ValueError, match="capacity"):
        DataDistributor(capacity=0)


# --- waiting, deadlines, cancellation ----------------------------------------------------------------------------


async def test_publish_is_all_or_nothing(autojump_clock):
    """Out of time, a reading was given to nobody, its number is used for the next, and the slow one is named."""
    distributor = DataDistributor()
    with (
        distributor.subscribe("recorder", policy="block", capacity=2) as recorder,
        distributor.subscribe("table") as table,
    ):
        await publish(distributor, 2)
        start = trio.current_time()
        with pytest.raises(PublishTimeoutError) as caught:
            await DataPublisher(distributor, "dmm").publish("v", 99, timeout=3)
        assert trio.current_time() == start + 3
        assert (caught.value.instrument, caught.value.subscriber, caught.value.waited) == ("dmm", "recorder", 3)
        with trio.move_on_after(1) as scope:
            await DataPublisher(distributor, "dmm").publish("v", 98, timeout=3)
        assert scope.cancelled_caught
        assert seqs(table.receive_nowait()) == seqs(recorder.receive_nowait()) == [0, 1]
        reading = await DataPublisher(distributor, "dmm").publish("v", 2)
        assert reading.seq == 2
        assert table.receive_nowait() == recorder.receive_nowait() == [reading]


async def test_each_room_made_is_used_at_once_and_by_one(autojump_clock):
    """Of publishers that wait, one goes on in the instant in which there is room for one; the other waits on."""
    distributor = DataDistributor()
    went = []

    async def wait(timeout):
        try:
            await publish(distributor, 1, timeout=timeout)
            went.append(("published", trio.current_time() - start))
        except PublishTimeoutError:
            went.append(("timed out", trio.current_time() - start))

    with distributor.subscribe("recorder", policy="block", capacity=1) as recorder:
        await publish(distributor, 1)
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, 4)
            nursery.start_soon(wait, 4)
            await trio.sleep(1)
            recorder.receive_nowait()
    assert went == [("published", 1), ("timed out", 4)]


async def test_room_in_the_instant_of_the_deadline_counts(autojump_clock):
    """If there is room at the moment when time is up, the reading is published."""
    distributor = DataDistributor()
    with distributor.subscribe("recorder", policy="block", capacity=1) as recorder:
        await publish(distributor, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish, distributor, 1)
            await trio.testing.wait_all_tasks_blocked()
            recorder.receive_nowait()
            autojump_clock.jump(5)
        assert seqs(recorder.receive_nowait()) == [1]


@pytest.mark.parametrize("timeout", [-1, math.inf, math.nan])
async def test_a_wait_without_an_end_is_refused_even_where_there_is_room(timeout):
    """A negative, infinite or NaN timeout raises before anything is published, whether or not it would be needed."""
    distributor = DataDistributor()
    with pytest.raises(ValueError, match="timeout"):
        await DataPublisher(distributor, "dmm").publish("v", 1, timeout=timeout)
    assert distributor.statistics().published == 0


async def test_a_cancelled_task_publishes_nothing():
    """A task that is cancelled already gives its reading to nobody."""
    distributor = DataDistributor()
    with trio.CancelScope() as scope:
        scope.cancel()
        await publish(distributor, 1)
    assert scope.cancelled_caught
    assert distributor.statistics().published == 0


async def test_a_publisher_that_never_waits_lets_listeners_run():
    """Publishing in a tight loop gives a listener its turns, so that it loses nothing with a little room."""
    distributor = DataDistributor(capacity=256)
    got = []

    async def listen(task_status):
        with distributor.subscribe("listener") as listener:
            task_status.started()
            while len(got) < 2000:
                got.extend(seqs(await listener.receive()))
            assert listener.lost == 0

    async with trio.open_nursery() as nursery:
        await nursery.start(listen)
        await publish(distributor, 2000)
    assert got == list(range(2000))


async def test_receive_waits_for_one_and_takes_all(autojump_clock):
    """Receive sleeps until a reading comes, and then gives all that have come, oldest first."""
    distributor = DataDistributor()
    with distributor.subscribe("listener") as listener:
        async with trio.open_nursery() as nursery:

            async def later():
                await trio.sleep(5)
                await publish(distributor, 3)

            nursery.start_soon(later)
            start = trio.current_time()
            assert seqs(await listener.receive()) == [0, 1, 2]
            assert trio.current_time() == start + 5


@pytest.mark.parametrize("policy", ["drop_oldest", "drop_newest", "latest", "block"])
async def test_a_cancelled_receive_takes_nothing(policy):
    """Cancelled before or in the very turn in which a reading came, receive leaves it or returns it."""
    distributor = DataDistributor()
    with distributor.subscribe("listener", policy=policy) as listener:
        await publish(distributor, 1)
        with trio.CancelScope() as scope:
            scope.cancel()
            await listener.receive()
        assert scope.cancelled_caught
        assert seqs(listener.receive_nowait()) == [0]

        got = []

        async def receive():
            got.extend(await listener.receive())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            await publish(distributor, 1)
            nursery.cancel_scope.cancel()
        assert seqs(got + listener.receive_nowait()) == [1]


# --- letting go of blocking subscribers --------------------------------------------------------------------------


async def test_detach_blocking_frees_a_publisher_that_waits(autojump_clock):
    """Every ``block`` subscriber but the one kept becomes a ``drop_oldest`` one at once, with its losses counted."""
    distributor = DataDistributor()
    with (
        distributor.subscribe("recorder", policy="block", capacity=8) as recorder,
        distributor.subscribe("plot", policy="block", capacity=2) as plot,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish, distributor, 5)
            await trio.testing.wait_all_tasks_blocked()
            assert distributor.statistics().published == 2
            start = trio.current_time()
            distributor.detach_blocking(keep="recorder")
        assert trio.current_time() == start
        assert (recorder.policy, plot.policy) == ("block", "drop_oldest")
        assert seqs(plot.receive_nowait()) == [3, 4]
        assert plot.lost == 3
        assert seqs(recorder.receive_nowait()) == [0, 1, 2, 3, 4]


async def test_the_one_kept_still_blocks(autojump_clock):
    """The subscriber that is kept goes on holding publishers back."""
    distributor = DataDistributor()
    with distributor.subscribe("recorder", policy="block", capacity=2):
        distributor.detach_blocking(keep="recorder")
        with pytest.raises(PublishTimeoutError):
            await publish(distributor, 3, timeout=1)


async def test_leaving_frees_a_publisher_that_waits(autojump_clock):
    """When a blocking subscriber ends its block, the publisher that waited for it goes on."""
    distributor = DataDistributor()
    async with trio.open_nursery() as nursery:
        with distributor.subscribe("plot", policy="block", capacity=1):
            nursery.start_soon(publish, distributor, 3)
            await trio.testing.wait_all_tasks_blocked()
            start = trio.current_time()
    assert trio.current_time() == start
    assert distributor.statistics().published == 3


# --- numbers and order -------------------------------------------------------------------------------------------


async def test_a_wrong_number_is_refused():
    """A reading whose number is not the next one of its instrument raises and is given to nobody."""
    distributor = DataDistributor()
    distributor.publish_nowait(a_reading(0))
    for wrong in (0, 2, -1):
        with pytest.raises(ValueError, match="expected 1"):
            distributor.publish_nowait(a_reading(wrong))
    distributor.publish_nowait(a_reading(0, "another"))
    assert distributor.statistics().published == 2


async def test_publish_nowait_gives_a_full_blocking_subscriber_nothing():
    """Where publishing would have to wait, nobody gets the reading and its number stays free."""
    distributor = DataDistributor()
    with distributor.subscribe("recorder", policy="block", capacity=1), distributor.subscribe("table") as table:
        distributor.publish_nowait(a_reading(0))
        with pytest.raises(trio.WouldBlock):
            distributor.publish_nowait(a_reading(1))
        assert seqs(table.receive_nowait()) == [0]
        assert distributor.next_seq("dmm") == 1


subscribers = st.tuples(st.sampled_from(["drop_oldest", "drop_newest", "latest", "block"]), st.integers(1, 6))
sources = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from([0.5, 2, 50]), st.none() | st.integers(0, 3)), max_size=8
)


@settings(deadline=None)
@given(
    st.lists(subscribers, min_size=1, max_size=5),
    st.lists(st.integers(0, 4), min_size=5, max_size=5),
    st.lists(sources, min_size=1, max_size=3),
    st.integers(1, 6),
)
def test_one_order_for_all_without_gaps(policies, paces, instruments, ring):
    """Whatever the policies, paces, deadlines and cancellations: one order, numbers without gaps, losses counted.

    Each subscriber sees a part of one stream in its order; a blocking one sees all of it; what it got and what it
    lost is all there was; an instrument's published numbers are 0, 1, 2 and so on.
    """

    async def main():
        distributor = DataDistributor(capacity=ring)
        stream, got, done = [], [[] for _ in policies], []

        async def listen(number, subscription, pace):
            while True:
                await trio.sleep(pace)
                got[number] += await subscription.receive()

        async def measure(name, steps):
            publisher = DataPublisher(distributor, name)
            for pause, timeout, cancel in steps:
                await trio.sleep(pause)
                with (
                    trio.move_on_after(math.inf if cancel is None else cancel),
                    contextlib.suppress(PublishTimeoutError),
                ):
                    stream.append(await publisher.publish(f"c{pause}", 1.0, timeout=timeout))
            done.append(name)

        with contextlib.ExitStack() as stack:
            subscriptions = [
                stack.enter_context(distributor.subscribe(f"s{number}", policy=policy, capacity=capacity))
                for number, (policy, capacity) in enumerate(policies)
            ]
            async with trio.open_nursery() as listeners:
                for number, subscription in enumerate(subscriptions):
                    listeners.start_soon(listen, number, subscription, paces[number])
                async with trio.open_nursery() as nursery:
                    for number, steps in enumerate(instruments):
                        nursery.start_soon(measure, f"i{number}", steps)
                listeners.cancel_scope.cancel()
            for number, subscription in enumerate(subscriptions):
                got[number] += subscription.receive_nowait()
            lost = [subscription.lost for subscription in subscriptions]

        assert len(done) == len(instruments)
        assert len(stream) == distributor.statistics().published
        for number in range(len(instruments)):
            mine = [reading.seq for reading in stream if reading.instrument == f"i{number}"]
            assert mine == list(range(len(mine)))
        places = {(reading.instrument, reading.seq): place for place, reading in enumerate(stream)}
        for (policy, _), taken, missing in zip(policies, got, lost, strict=True):
            order = [places[reading.instrument, reading.seq] for reading in taken]
            assert all(before < after for before, after in itertools.pairwise(order))
            assert len(taken) + missing == len(stream)
            if policy == "block":
                assert missing == 0

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
