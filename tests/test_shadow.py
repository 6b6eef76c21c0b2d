"""The shadow finds a planted difference on noisy readings, reports none on equal drivers, and survives bad input."""

import itertools
import logging
import math
import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs
import pytest
import pyvisa
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_daq.actors import Actor, Message, handles
from trio_daq.config import DualConfig, MemberConfig, RecordingConfig, SubsystemConfig, check_drivers
from trio_daq.data import DataDistributor, DataPublisher, Reading, Value
from trio_daq.drivers import Comparison, ComparisonReport, DriverContext, ShadowReport, Tolerance, shadow
from trio_daq.legacy import ThreadContext
from trio_daq.lifecycle import DualRuntimeManager
from trio_daq.sim import open_simulated_lab, read_log
from trio_daq.visa import VisaSessionConfig, VisaSessionManager

WINDOWS = int(os.environ.get("TRIO_DAQ_SHADOW_WINDOWS", "200"))
NOISE = 0.002
"""Standard deviation of each reading, of its value."""


def reading(value: Value, at: float = 0.0, unit: str = "V", instrument: str = "x") -> Reading:
    """Return a reading of the second *at*."""
    ns = round(at * 1e9)
    return Reading(
        instrument=instrument, channel="c", value=value, unit=unit, seq=0, time_ns=ns, monotonic_ns=ns, asked_ns=ns
    )


def compare(old: Iterable[Reading], new: Iterable[Reading], **tolerance: Any) -> ComparisonReport:
    """Compare readings in the order of their times."""
    comparison = Comparison("old", "new", Tolerance(**tolerance))
    sides = [(one.monotonic_ns, comparison.add_old, one) for one in old]
    sides += [(one.monotonic_ns, comparison.add_new, one) for one in new]
    for _, add, one in sorted(sides, key=lambda side: side[0]):
        add(one)
    return comparison.report()


def noisy(chance: random.Random, count: int, *, factor: float = 1.0, phase: float = 0.0) -> list[Reading]:
    """Return readings of a drifting voltage, one a second, with noise."""
    readings = []
    for second in range(count):
        at = second + phase
        truth = 1.2 + 0.01 * math.sin(2 * math.pi * at / 60)
        readings.append(reading(factor * truth * (1 + chance.gauss(0, NOISE)), at))
    return readings


# --- noise --------------------------------------------------------------------------------------------------------


def test_equal_drivers_give_no_difference_and_one_percent_is_always_found() -> None:
    """With 0.2 % of noise on each reading no window of equal drivers differs, and each does that has 1 % planted."""
    pairs = 20 * WINDOWS
    for seed in range(3):
        chance = random.Random(seed)
        equal = compare(noisy(chance, pairs), noisy(chance, pairs, phase=0.4))
        assert (equal.windows, equal.windows_agreeing, equal.agrees) == (WINDOWS, WINDOWS, True)
        planted = compare(noisy(chance, pairs), noisy(chance, pairs, phase=0.4, factor=1.01))
        assert (planted.windows, planted.windows_agreeing, planted.agrees) == (WINDOWS, 0, False)
        assert planted.pairs == pairs
        assert planted.worst_window is not None
        assert planted.worst_window.difference / planted.worst_window.old == pytest.approx(0.01, abs=0.004)
        # What pair after pair would have said: half of them right with the planted difference, and false alarms.
        assert equal.pairs_agreeing < 0.98 * pairs
        print(f"seed {seed}: pairs that agree by themselves: equal {equal.pairs_agreeing} of {pairs}")


def test_one_wild_reading_is_shown_and_turns_no_window() -> None:
    """A glitch is the worst pair, with both values, unit and time, and the median is not moved by it."""
    chance = random.Random(1)
    old, new = noisy(chance, 40), noisy(chance, 40, phase=0.1)
    new[7] = reading(55.0, 7.1)
    report = compare(old, new)
    assert report.agrees
    worst = report.worst_pair
    assert worst is not None
    assert (worst.new, worst.old, worst.unit) == (55.0, old[7].value, "V")
    assert (worst.began_ns, worst.ended_ns) == (7_000_000_000, 7_100_000_000)
    assert "new 55 V" in str(report)


def test_window_of_one_judges_each_pair() -> None:
    """Without noise each pair can be judged, and each that differs is in the report, with both values."""
    report = compare(
        [reading(10.0, at) for at in range(5)], [reading(10.0 if at != 3 else 10.2, at) for at in range(5)], window=1
    )
    assert (report.pairs, report.pairs_agreeing, report.windows_agreeing, report.agrees) == (5, 4, 4, False)
    [difference] = report.differences
    assert (difference.old, difference.new, difference.began_ns) == (10.0, 10.2, 3_000_000_000)
    assert difference.allowed == pytest.approx(0.051)


def test_long_list_of_differences_is_cut() -> None:
    """The first hundred are kept, the text has the first ten, and all are counted."""
    report = compare([reading(1.0, at) for at in range(150)], [reading(2.0, at) for at in range(150)], window=1)
    assert (report.windows, report.windows_agreeing, len(report.differences)) == (150, 0, 100)
    assert str(report).count("differs:") == 10
    assert "and 140 windows more" in str(report)


def test_absolute_tolerance_counts_near_zero() -> None:
    """Where values are about zero, a part of them allows nothing, and the absolute tolerance says what is."""
    old, new = [reading(1e-6, at) for at in range(3)], [reading(-1e-6, at) for at in range(3)]
    assert not compare(old, new, window=1).agrees
    assert compare(old, new, window=1, absolute=1e-5).agrees
    assert compare([reading(0.0)], [reading(0.0)], window=1, relative=0.0).agrees


def test_rows_are_compared_place_by_place() -> None:
    """Of a row of numbers the place that is the farthest out is named."""
    old = [reading((1.0, 2.0, 3.0), at) for at in range(4)]
    new = [reading((1.0, 2.1, 3.01), at) for at in range(4)]
    report = compare(old, new, window=2)
    assert (report.windows, len(report.differences)) == (2, 2)
    assert (report.differences[0].index, report.differences[0].new) == (1, 2.1)
    assert compare(old, old, window=2).agrees


# --- pairs --------------------------------------------------------------------------------------------------------


def test_the_nearest_are_paired_and_the_others_counted() -> None:
    """Ten readings to one: each of the slower side gets its nearest, and nine of ten have no partner."""
    old = [reading(1.0 + at, at + 0.02) for at in range(1, 5)]
    new = [reading(1.0 + tenth / 10, tenth / 10) for tenth in range(50)]
    report = compare(old, new, window=1, within=0.3, relative=0.0)
    assert (report.pairs, report.agrees) == (4, True)
    assert report.unpaired_old.count == 0
    assert report.unpaired_new.count in (42, 43)  # up to within before the end they wait still
    assert report.unpaired_new.first is new[0]


def test_readings_too_far_apart_are_no_pair() -> None:
    """What was measured more than the allowed time apart is unpaired, and the times are told."""
    report = compare([reading(1.0, at) for at in range(10)], [reading(1.0, at + 0.5) for at in range(10)], within=0.2)
    assert (report.pairs, report.windows) == (0, 0)
    assert (report.unpaired_old.count, report.unpaired_new.count) == (10, 9)
    assert report.problems == ("0 pairs are too few to judge; a window has 20",)


@settings(max_examples=100, deadline=None)
@given(
    times=st.lists(st.tuples(st.booleans(), st.floats(0, 100)), max_size=60),
    within=st.floats(0, 5),
    window=st.integers(1, 5),
)
def test_every_reading_is_in_one_pair_or_unpaired(times: list[tuple[bool, float]], within: float, window: int) -> None:
    """Nothing is counted twice or lost, whatever the times; only what came lately waits for a partner."""
    sides: tuple[list[Reading], list[Reading]] = ([], [])
    for is_new, at in sorted(times, key=lambda time: time[1]):
        sides[is_new].append(reading(1.0, at))
    report = compare(*sides, window=window, within=within)
    for side, unpaired in zip(sides, (report.unpaired_old, report.unpaired_new), strict=True):
        waiting = len(side) - report.pairs - unpaired.count
        late = [one for one in side if (side[-1].monotonic_ns - one.monotonic_ns) / 1e9 <= within + 1e-6]
        assert 0 <= waiting <= len(late)
    assert report.windows == report.windows_agreeing == report.pairs // window


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (reading(1.0, unit="V"), reading(1000.0, unit="mV"), "the units differ: old in 'V', new in 'mV'"),
        (reading(math.nan), reading(1.0), "old nan, new finite"),
        (reading(1.0), reading(-math.inf), "old finite, new -inf"),
        (reading((1.0, math.nan)), reading((1.0, 2.0)), "old nan, new finite"),
        (reading((1.0, 2.0)), reading((1.0, 2.0, 3.0)), "old is a row of 2, new is a row of 3"),
        (reading(1.0), reading((1.0,)), "old is one number, new is a row of 1"),
        (reading(()), reading(()), "rows without a number"),
    ],
)
def test_what_cannot_be_compared_is_one_entry(old: Reading, new: Reading, said: str) -> None:
    """Bad pairs, however many, are one sentence with their number; the good ones beside them are judged."""
    count = 50
    olds = [attrs.evolve(old, monotonic_ns=at * 10**9) for at in range(count)]
    news = [attrs.evolve(new, monotonic_ns=at * 10**9) for at in range(count)]
    good = [reading(2.0, count + at) for at in range(10)]
    report = compare(olds + good, news + good, window=5)
    [problem] = report.problems
    assert said in problem
    assert problem.endswith("(50 pairs)")
    assert (report.pairs, report.windows_agreeing, report.agrees) == (10, 2, False)
    assert problem in str(report)


@pytest.mark.parametrize("silent", ["old", "new"])
def test_a_side_that_says_nothing_is_a_problem(silent: str) -> None:
    """A side from which nothing came is named."""
    sides = {"old": [reading(1.0, at) for at in range(30)], "new": [reading(1.0, at) for at in range(30)]}
    sides[silent] = []
    report = compare(sides["old"], sides["new"])
    assert report.problems == (f"nothing came from {silent}",)
    assert (report.unpaired_old.count + report.unpaired_new.count, report.agrees) == (28, False)  # two still wait


def test_a_side_that_falls_silent_is_a_problem() -> None:
    """A side that stopped long before the other is named, with its time; a pause of its own kind is no silence."""
    good = [reading(1.0, at) for at in range(100)]
    report = compare(good, good[:60])
    [problem] = report.problems
    assert problem.startswith("nothing has come from new since")
    assert problem.endswith("for 40 s")
    assert compare(good, good[:92]).agrees  # as when one side of a lab stops before the other
    assert compare(good, [*good[:20], *good[50:61]], relative=0.1).agrees


def test_nothing_that_was_ever_measured_crashes_it() -> None:
    """Any mix of numbers, rows and units gives a report and text."""
    values: list[Value] = [
        0.0,
        -0.0,
        1.0,
        1.7e308,
        -1.7e308,
        5e-324,
        math.nan,
        math.inf,
        (),
        (1.0,),
        (1.7e308, math.nan),
    ]
    for window in (1, 2, 3):
        comparison = Comparison("old", "new", Tolerance(window=window, absolute=0.0))
        for at, (old, new, unit) in enumerate(itertools.product(values, values, ("", "V"))):
            comparison.add_old(reading(old, at, unit))
            comparison.add_new(reading(new, at, "V"))
        report = comparison.report()
        assert not report.agrees
        assert len(report.problems) < 30
        assert str(report)


def test_a_difference_that_overflows_is_one() -> None:
    """Values at the ends of what a float can hold do not agree because their difference is no number."""
    most = 1.7e308
    report = compare(
        [reading((1.0, most), 0), reading((1.0, -most), 1)],
        [reading((1.0, -most), 0), reading((1.0, most), 1)],
        window=2,
        absolute=1.0,
    )
    assert (report.windows, report.windows_agreeing) == (1, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"relative": -0.1},
        {"absolute": math.nan},
        {"within": math.inf},
        {"window": 0},
        {"window": 2.5},
        {"window": True},
    ],
)
def test_tolerance_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    """It is a ValueError that names the value."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Tolerance(**wrong)


# --- as a member --------------------------------------------------------------------------------------------------


async def publish(distributor: DataDistributor, values: Iterable[tuple[str, str, float, str]]) -> None:
    publishers: dict[str, DataPublisher] = {}
    for instrument, channel, value, unit in values:
        publisher = publishers.setdefault(instrument, DataPublisher(distributor, instrument))
        await publisher.publish(channel, value, unit)


async def shadowed(values: Iterable[tuple[str, str, float, str]], **options: Any) -> tuple[ShadowReport, list[Reading]]:
    """Have a shadow beside what is published; return its report, and its own readings."""
    distributor = DataDistributor()
    context = DriverContext(DataPublisher(distributor, "shadow"))
    reports: list[ShadowReport] = []

    async def run() -> None:
        reports.append(await shadow(context=context, old="old", new="new", **options))

    with distributor.subscribe("test") as heard:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await trio.testing.wait_all_tasks_blocked()
            await publish(distributor, values)
            await trio.testing.wait_all_tasks_blocked()
            context.stopping.set()
        return reports[0], [one for one in heard.receive_nowait() if one.instrument == "shadow"]


async def test_shadow_publishes_the_difference_of_each_window_and_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    """New minus old of each window is a reading; the first that differs is a warning, and so is the report."""
    values = [(side, "volts", value, "V") for _ in range(6) for side, value in (("old", 2.0), ("new", 2.5))]
    report, readings = await shadowed(values, tolerance={"window": 2})
    assert [(one.channel, one.value, one.unit) for one in readings] == [("volts", 0.5, "V")] * 3
    assert (report.agrees, report.lost) == (False, 0)
    first, last = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "old and new differ in volts" in first
    assert "old/volts and new/volts DO NOT AGREE: 0 of 3 windows agree" in last


async def test_what_is_published_while_it_stops_counts() -> None:
    """Readings that come in the moment of the stop are in its report, in whatever order tasks run then."""
    for _ in range(30):
        distributor = DataDistributor()
        context = DriverContext(DataPublisher(distributor, "shadow"))
        reports: list[ShadowReport] = []

        async def run(context: DriverContext, reports: list[ShadowReport]) -> None:
            reports.append(await shadow(context=context, old="old", new="new", tolerance=Tolerance(window=1)))

        async def publish_when_stopping(distributor: DataDistributor, stopping: trio.Event) -> None:
            await stopping.wait()
            for number in range(3):
                for side in ("old", "new"):
                    at = reading(1.0, instrument=side)
                    distributor.publish_nowait(attrs.evolve(at, seq=number, monotonic_ns=number))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, context, reports)
            nursery.start_soon(publish_when_stopping, distributor, context.stopping)
            await trio.testing.wait_all_tasks_blocked()
            context.stopping.set()
        assert [one.pairs for one in reports[0].channels] == [3]


async def test_shadow_takes_all_channels_by_their_names() -> None:
    """A channel that only one side has is a problem of the report; what others publish is not looked at."""
    values = [("old", "a", 1.0, "V"), ("new", "a", 1.0, "V"), ("new", "b", 1.0, "V"), ("third", "c", 1.0, "V")]
    report, _ = await shadowed(values, tolerance=Tolerance(window=1))
    assert [(one.old, one.agrees, one.problems) for one in report.channels] == [
        ("old/a", True, ()),
        ("old/b", False, ("nothing came from old/b",)),
    ]


async def test_shadow_takes_channels_that_changed_their_names() -> None:
    """Channels may be named, old to new; one that never comes is a problem, and the others are left alone."""
    values = [("old", "a", 1.0, "V"), ("new", "volts", 1.0, "V"), ("new", "a", 5.0, "V")]
    report, _ = await shadowed(values, channels={"a": "volts", "x": "y"}, tolerance=Tolerance(window=1))
    assert [(one.old, one.new, one.agrees) for one in report.channels] == [
        ("old/a", "new/volts", True),
        ("old/x", "new/y", False),
    ]


async def test_shadow_of_nothing_agrees_on_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """If neither side is there, the report says so and does not claim that they agree."""
    report, _ = await shadowed([])
    assert not report.agrees
    assert "nothing came from old or new" in caplog.text


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"new": "old"}, "name the channels"),
        ({"tolerance": {"relativ": 1}}, "relativ"),
        ({"tolerance": {"window": 0}}, "window"),
        ({"tolerance": {"relative": "0.5 %"}}, "relative"),
        ({"tolerance": 0.01}, "tolerance must be a table"),
        ({"channels": ["voltage"]}, "channels must be a table"),
        ({"channels": {"voltage": 1}}, "channels must be a table"),
        ({"channels": {}}, "channels names none"),
        ({"new": 3}, "new must be the id of a member"),
    ],
)
async def test_shadow_refuses_what_makes_no_sense(options: dict[str, Any], match: str) -> None:
    """It is a ValueError before it listens; a TypeError, which counts as a bug, would end the lab."""
    context = DriverContext(DataPublisher(DataDistributor(), "shadow"))
    with pytest.raises(ValueError, match=match):
        await shadow(context=context, **{"old": "old", "new": "new", **options})


def test_a_file_can_name_it() -> None:
    """It is a built-in driver, checked like others before anything is opened."""
    options = {"old": "a", "new": "b", "tolerance": {"relative": 0.01}}
    member = MemberConfig(id="compare", driver="shadow", options=options)
    config = DualConfig(v2=SubsystemConfig(instruments=(member,)), recording=RecordingConfig(enabled=False))
    assert check_drivers(config)["compare"].target is shadow


# --- on an instrument ---------------------------------------------------------------------------------------------


def old_meter(resource: str, context: ThreadContext) -> None:
    """A blocking driver, written for pyvisa."""
    library = pyvisa.ResourceManager("@trio_daq")
    meter: Any = library.open_resource(resource, read_termination="\n", write_termination="\n", timeout=2000)
    while not context.wait_stopping(0.005):
        meter.write("MEAS:VOLT? old")
        context.publish("voltage", float(meter.read().split(",")[1]), "V")
    meter.close()
    library.close()


@attrs.frozen
class Measure(Message[None]):
    """Measure once."""


class NewMeter(Actor):
    """The driver that is to take its place, with a wrong factor perhaps."""

    def __init__(self, visa: VisaSessionManager, factor: float, context: DriverContext) -> None:
        self.visa, self.factor, self.context = visa, factor, context

    async def on_start(self) -> None:
        self.every(0.005, Measure())

    @handles(Measure)
    async def measure(self, message: Measure) -> None:
        reply = await self.visa.query("MEAS:VOLT? new")
        await self.context.publish("voltage", float(reply.split(",")[1]) * self.factor, "V")


@pytest.mark.parametrize("factor", [1.0, 1.01])
async def test_old_thread_and_new_actor_on_one_meter(factor: float, tmp_path: Path) -> None:
    """A shadow beside an old V2 thread and a new V4 actor on one session finds 1 % in the actor, and else nothing."""
    reports: list[ShadowReport] = []

    async def compare_meters(context: DriverContext) -> None:
        reports.append(await shadow(context=context, old="old", new="new", tolerance={"within": 0.5}))

    async with open_simulated_lab(tmp_path / "log.jsonl", stage=None) as simulated:
        config = DualConfig(
            visa={"meter": VisaSessionConfig(resource=simulated.meter_resource)},
            v2=SubsystemConfig(),
            v4=SubsystemConfig(),
            recording=RecordingConfig(enabled=False),
        )
        async with DualRuntimeManager(config) as manager:
            await manager.start()
            with manager.distributor.subscribe("test") as heard, trio.fail_after(20):
                await manager.v2.spawn(compare_meters)
                await manager.v2.spawn_thread(old_meter, simulated.meter_resource, name="old")
                await manager.v4.spawn(NewMeter, manager.visa["meter"], factor, name="new")
                windows = 0
                while windows < 3:
                    windows += sum(one.instrument == "compare_meters" for one in await heard.receive())
            await manager.shutdown(timeout=10)
    answered = [entry.text for entry in read_log(tmp_path / "log.jsonl") if entry.event == "reply"]
    [report] = reports
    [channel] = report.channels
    assert channel.windows >= 3
    assert channel.pairs <= min(sum(text.startswith(side) for text in answered) for side in ("old,", "new,"))
    assert channel.windows_agreeing == (channel.windows if factor == 1.0 else 0)
    assert report.agrees is (factor == 1.0), str(report)
