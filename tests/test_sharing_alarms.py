"""Alarms ring when they should, and those that were set and cleared leave nothing behind that adds up."""

import itertools
import math

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_daq.sharing import Alarm
from trio_daq.sharing.alarms import _clock_of_this_run


def entries():
    """How many entries the heap of this run has."""
    return len(_clock_of_this_run.get()._heap)


def assert_bounded(alarms):
    """The bound that the module promises, by a count of its own."""
    assert entries() <= 2 * sum(alarm.time < math.inf for alarm in alarms) + 64


async def test_it_rings_once_at_its_time(autojump_clock):
    """An alarm rings at the time to which it was set last, once, and not at all once it is cleared."""
    start, rung = trio.current_time(), []
    alarms = {name: Alarm(lambda name=name: rung.append((name, trio.current_time() - start))) for name in "abcde"}
    for name, *times in [("a", 3), ("b", 3, 5), ("c", 5, 2), ("d", 1), ("e", 4, 2, 6)]:
        for time in times:
            alarms[name].set(start + time)
    alarms["d"].clear()
    alarms["d"].clear()
    await trio.sleep(10)
    assert rung == [("c", 2), ("a", 3), ("b", 5), ("e", 6)]
    assert all(alarm.time == math.inf for alarm in alarms.values())


@pytest.mark.parametrize("change", ["earlier and earlier", "cleared", "many, cleared", "many, rung"])
async def test_what_is_outdated_does_not_add_up(change, autojump_clock):
    """Whatever one does ten thousand times, the heap stays within its bound at every moment."""
    start, alarms = trio.current_time(), [Alarm(int)]
    for number in range(10_000):
        alarm = alarms[0]
        if change.startswith("many"):
            alarm = Alarm(int)
            alarms = [*alarms[-9:], alarm]
        alarm.set(start + 20_000 - number)
        assert_bounded(alarms)
        if change.endswith("cleared"):
            alarm.clear()
        elif change.endswith("rung"):
            alarm.set(trio.current_time() + 1)
            assert_bounded(alarms)
            await trio.sleep(1 if number % 10 == 0 else 0)
        assert_bounded(alarms)
    assert entries() <= 64 + 2 * 11


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["set", "clear", "wait"]), st.integers(0, 6)), max_size=200),
    st.integers(1, 3),
)
def test_each_rings_exactly_when_the_last_word_said(moves, burst):
    """Random setting, putting off, clearing, waiting: each alarm rings at the time set last and at no other."""

    async def main():
        start, rung, expected = trio.current_time(), [], []
        times = [math.inf] * 4
        alarms = [Alarm(lambda n=n: rung.append((trio.current_time() - start, n))) for n in range(4)]
        for number, move, value in moves:
            now = trio.current_time() - start
            if move == "set":
                for later in range(burst, 0, -1):
                    alarms[number].set(start + now + value + later + 0.25)  # never when a wait ends
                times[number] = now + value + 1.25
            elif move == "clear":
                alarms[number].clear()
                times[number] = math.inf
            else:
                await trio.sleep(value + 0.5)
                now += value + 0.5
                for each, time in enumerate(times):
                    if time <= now:
                        expected.append((time, each))
                        times[each] = math.inf
                assert sorted(rung) == sorted(expected)
            assert [alarm.time - start for alarm in alarms] == times
        await trio.sleep(20)
        expected += [(time, each) for each, time in enumerate(times) if time < math.inf]
        assert sorted(rung) == sorted(expected)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_an_alarm_that_fails_stops_no_other(autojump_clock, caplog):
    """What raises when it rings is logged, and the alarms after it ring."""
    rung = []

    def fail():
        raise KeyError("mine")

    now = trio.current_time()
    alarms = [Alarm(fail), Alarm(lambda: rung.append(trio.current_time() - now))]
    for alarm, seconds in zip(alarms, (1, 2), strict=True):
        alarm.set(now + seconds)
    await trio.sleep(5)
    assert rung == [2]
    assert [record.getMessage() for record in caplog.records] == ["an alarm failed"]


def test_it_may_live_through_several_runs():
    """Set and left so at the end of a run, an alarm is as good as new in the next one, at an earlier time or later."""
    rung = itertools.count()
    alarm = Alarm(lambda: next(rung))

    async def main(seconds):
        alarm.set(trio.current_time() + seconds)
        await trio.sleep(10)

    for seconds in (50, 5, 60, 5):
        trio.run(main, seconds, clock=trio.testing.MockClock(autojump_threshold=0))
    assert next(rung) == 2
