"""Faults, order and log of one talk with a simulated instrument, in virtual time."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from trio_daq.sim import FaultPlan, LogEntry, SimulatedMeter, SimulatedStage, read_log, replies_by_tag
from trio_daq.sim.dialogue import Bench
from trio_daq.sim.faults import FaultSchedule
from trio_daq.sim.log import InstrumentLog
from trio_daq.sim.spoiling import EVENT_PAUSE, GARBAGE, SPLIT_PAUSE


class Talk:
    """A dialogue whose client notes when it got what."""

    def __init__(self, log: InstrumentLog, path: Path) -> None:
        self.log, self.path = log, path
        self.got: list[tuple[float, bytes]] = []

    async def send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.got.append((trio.current_time(), data))

    async def say(self, data: bytes, plan: FaultPlan, instrument: Any = None) -> None:
        bench = Bench(SimulatedStage() if instrument is None else instrument, plan, self.log)
        await bench.open_dialogue(self.send).take(data)

    @property
    def texts(self) -> list[bytes]:
        return [data for _, data in self.got]

    def entries(self, event: str) -> list[LogEntry]:
        return [entry for entry in read_log(self.path) if entry.event == event]


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Talk]:
    path = tmp_path / "log.jsonl"
    with InstrumentLog(path) as log:
        yield Talk(log, path)


def tagged(count: int) -> bytes:
    return b"".join(b"POS? n%d\r\n" % number for number in range(1, count + 1))


async def test_every_nth_answer_is_late(talk: Talk, autojump_clock: trio.testing.MockClock) -> None:
    """Each n-th tagged answer comes late by the plan's time, holds up what follows, and is logged as it fires."""
    await talk.say(b"ECHO x\r\n" + tagged(5), FaultPlan(late_every=2, late_by=0.25))
    began = talk.got[0][0]
    assert talk.texts == [b"x\r\n"] + [b"n%d 12.500\r\n" % number for number in range(1, 6)]
    assert [at - began for at, _ in talk.got] == pytest.approx([0, 0, 0.25, 0.25, 0.5, 0.5])
    assert [(entry.tag, entry.fault) for entry in talk.entries("fault")] == [("n2", "late"), ("n4", "late")]


async def test_late_fault_is_logged_before_it_is_over(talk: Talk, autojump_clock: trio.testing.MockClock) -> None:
    """During the delay the log holds the fault and not yet the reply."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk.say, tagged(1), FaultPlan(late_every=1, late_by=5.0))
        await trio.sleep(1.0)
        assert [entry.event for entry in read_log(talk.path)] == ["command", "fault"]
        assert replies_by_tag(read_log(talk.path)) == {}
    assert replies_by_tag(read_log(talk.path)) == {"n1": "n1 12.500"}


async def test_silent_half_and_garbage(talk: Talk) -> None:
    """Silence, half a reply and garbage reach the client as such; only whole replies are logged as replies."""
    await talk.say(tagged(2), FaultPlan(silent_every=2))
    assert talk.texts == [b"n1 12.500\r\n"]
    await talk.say(b"POS? h1\nPOS? h2\n", FaultPlan(half_every=2))
    assert talk.texts[1:] == [b"h1 12.500\r\n", b"h2 12"]
    await talk.say(b"POS? g1\n", FaultPlan(garbage_every=1))
    assert talk.texts[3:] == [GARBAGE + b"g1 12.500\r\n"]
    assert set(replies_by_tag(read_log(talk.path))) == {"n1", "h1", "g1"}
    faults = [(entry.tag, entry.fault, entry.text) for entry in talk.entries("fault")]
    assert faults == [("n2", "silent", ""), ("h2", "half", "h2 12"), ("g1", "garbage", GARBAGE.decode("latin-1"))]


async def test_echo_and_second_reply_come_in_the_same_write(talk: Talk) -> None:
    """A command sent back, a reply given twice and garbage behind a reply go out at once with the reply itself."""
    for tag, plan in (
        (b"e1", FaultPlan(echo_every=1)),
        (b"t1", FaultPlan(twice_every=1)),
        (b"g1", FaultPlan(garbage_after_every=1)),
    ):
        await talk.say(b"POS? " + tag + b"\n", plan)
    assert talk.texts == [
        b"POS? e1\r\ne1 12.500\r\n",
        b"t1 12.500\r\nt1 12.500\r\n",
        b"g1 12.500\r\n" + GARBAGE,
    ]
    faults = [(entry.fault, entry.text) for entry in talk.entries("fault")]
    assert faults == [("echo", "POS? e1"), ("twice", "t1 12.500"), ("garbage_after", GARBAGE.decode("latin-1"))]
    assert [entry.text for entry in talk.entries("reply")] == ["e1 12.500", "t1 12.500", "g1 12.500"]


async def test_split_reply_comes_byte_by_byte(talk: Talk, autojump_clock: trio.testing.MockClock) -> None:
    """Each byte of a split reply goes out alone, after a pause, and the reply is logged before the first."""
    began = trio.current_time()
    await talk.say(b"POS? s1\n", FaultPlan(split_every=1))
    assert talk.texts == [bytes([byte]) for byte in b"s1 12.500\r\n"]
    assert [at - began for at, _ in talk.got] == pytest.approx([SPLIT_PAUSE * n for n in range(1, 12)])
    assert [(entry.event, entry.fault) for entry in read_log(talk.path)] == [
        ("command", None),
        ("fault", "split"),
        ("reply", None),
    ]


async def test_unsolicited_lines_come_before_behind_and_later(
    talk: Talk, autojump_clock: trio.testing.MockClock
) -> None:
    """Lines that nobody asked for are numbered, and come in turn in front of a reply, behind it, and a moment later."""
    began = trio.current_time()
    await talk.say(tagged(4), FaultPlan(unsolicited_every=1))
    assert [(data, at - began) for at, data in talk.got] == [
        (b"EVENT 1\r\nn1 12.500\r\n", 0),
        (b"n2 12.500\r\nEVENT 2\r\n", 0),
        (b"n3 12.500\r\n", 0),
        (b"EVENT 3\r\n", pytest.approx(EVENT_PAUSE)),
        (b"EVENT 4\r\nn4 12.500\r\n", pytest.approx(EVENT_PAUSE)),
    ]
    assert [entry.text for entry in talk.entries("fault")] == [f"EVENT {number}" for number in range(1, 5)]


async def test_blocks_lie_and_other_answers_wait_for_one(talk: Talk) -> None:
    """The header of a block tells of more bytes than come; a lie that is due waits for the next block."""
    await talk.say(b"CURV? a,10\nMEAS:VOLT? b\nCURV? c,10\n", FaultPlan(lie_every=2), SimulatedMeter())
    lies = [(entry.tag, entry.text) for entry in talk.entries("fault") if entry.fault == "lie"]
    assert lies == [("c", "#41010c,\0\1\2\3\4\5\6\7")]
    assert (talk.texts[0], talk.texts[2]) == (b"#210a,\0\1\2\3\4\5\6\7\n", b"#41010c,\0\1\2\3\4\5\6\7\n")
    assert list(replies_by_tag(read_log(talk.path))) == ["a", "b"]


async def test_long_reply_is_split_into_few_pieces(talk: Talk, autojump_clock: trio.testing.MockClock) -> None:
    """A block of kilobytes that is split comes in 64 pieces at most, and nothing of it is lost."""
    await talk.say(b"CURV? a,5000\n", FaultPlan(split_every=1), SimulatedMeter())
    assert 32 < len(talk.texts) <= 64
    (reply,) = talk.entries("reply")
    assert b"".join(talk.texts) == reply.text.encode("latin-1") + b"\n"


async def test_instrument_hangs_up(talk: Talk) -> None:
    """In place of a reply, or after half of it, the line is told to end, and what came after is not looked at."""
    how: list[str] = []
    bench = Bench(SimulatedStage(), FaultPlan(reset_every=2, fin_every=2), talk.log)
    for _ in range(3):
        await bench.open_dialogue(talk.send, how.append).take(b"POS? a\nPOS? b\nPOS? c\n")
    await bench.open_dialogue(talk.send, how.append).take(b"POS? a\nPOS? d\nPOS? c\n")
    assert how == ["reset", "fin", "reset", "fin"]
    faults = [(entry.tag, entry.fault, entry.text) for entry in talk.entries("fault")]
    assert faults == [("b", "reset", ""), ("a", "fin", ""), ("a", "reset", ""), ("a", "fin", "a 12")]
    assert [entry.tag for entry in talk.entries("command")] == ["a", "b", "a", "a", "a"]


async def test_untagged_queries_are_answered_well(talk: Talk) -> None:
    """No fault touches a query without a tag, and it is not counted."""
    await talk.say(b"POS?\nECHO x\nPOS? n1\nSHUT?\nPOS? n2\n", FaultPlan(silent_every=2))
    assert talk.texts == [b"12.500\r\n", b"x\r\n", b"n1 12.500\r\n", b"0\r\n"]


async def test_slow_query_holds_up_the_next(talk: Talk, autojump_clock: trio.testing.MockClock) -> None:
    """One command at a time: what follows a slow query is looked at after its answer."""
    began = trio.current_time()
    await talk.say(b"SLOW? a 2\nPOS? b\n", FaultPlan())
    assert [(at - began, data) for at, data in talk.got] == [
        (pytest.approx(2.0), b"a 12.500\r\n"),
        (pytest.approx(2.0), b"b 12.500\r\n"),
    ]
    assert [(entry.event, entry.tag) for entry in read_log(talk.path)] == [
        ("command", "a"),
        ("reply", "a"),
        ("command", "b"),
        ("reply", "b"),
    ]


async def test_compound_reply_is_logged_by_query(talk: Talk) -> None:
    """The log holds what was answered to each tag of a compound message; the client gets one line."""
    await talk.say(b"MEAS:VOLT? a;*OPC?;MEAS:VOLT? b\n", FaultPlan(), SimulatedMeter())
    replies = replies_by_tag(read_log(talk.path))
    assert list(replies) == ["a", "b"]
    assert talk.texts == [f"{replies['a']};1;{replies['b']}\n".encode()]


async def test_commands_without_reply_are_logged(talk: Talk) -> None:
    """What is not answered is in the log as a command, and nothing is sent."""
    await talk.say(b"SHUT 1\r\n", FaultPlan(silent_every=1))
    assert [(entry.event, entry.text, entry.tag) for entry in read_log(talk.path)] == [("command", "SHUT 1", None)]
    assert talk.texts == []


async def test_overrun_is_answered_once(talk: Talk) -> None:
    """A line of more than 64 KiB gives one error, and the stage goes on."""
    await talk.say(b"x" * 100_000 + b"\nPOS? n1\n", FaultPlan())
    assert talk.texts == [b"ERR TOO LONG\r\n", b"n1 12.500\r\n"]


def test_faults_due_together_both_fire() -> None:
    """Where several faults are due at one answer, each fires, one after the other."""
    schedule = FaultSchedule(FaultPlan(late_every=5, silent_every=10, half_every=10))
    fired = [schedule.next() for _ in range(104)]
    assert fired[9:12] == ["late", "silent", "half"]
    assert Counter(fault for fault in fired if fault) == {"late": 20, "silent": 10, "half": 10}


def test_seed_draws_which_answers_go_wrong() -> None:
    """Two schedules of one seed agree; other seeds shift the faults and leave their number as it is."""

    def fired(seed: int) -> list[str | None]:
        schedule = FaultSchedule(FaultPlan(late_every=10, twice_every=20, seed=seed))
        return [schedule.next() for _ in range(200)]

    assert fired(3) == fired(3)
    assert len({tuple(fired(seed)) for seed in range(10)}) > 5
    counts = [Counter(fired(seed)) for seed in range(10)]
    assert {(count["late"], count["twice"]) for count in counts} <= {(20, 10), (20, 9), (19, 10)}  # one may be deferred


@pytest.mark.parametrize("wrong", [{"late_every": -1}, {"late_by": float("nan")}, {"late_by": -0.1}])
def test_plan_refuses_wrong_numbers(wrong: dict[str, Any]) -> None:
    """A plan cannot hold a number that means nothing."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FaultPlan(**wrong)


def test_plan_refuses_a_boolean() -> None:
    """True is no number of answers."""
    with pytest.raises(TypeError, match="half_every"):
        FaultPlan(half_every=True)
