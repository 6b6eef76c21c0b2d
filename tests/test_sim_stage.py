"""The behaviour of the simulated stage controller."""

import pytest

from trio_daq.sim import Answer, Reply, SimulatedStage


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        (b"POS?", b"12.500"),
        (b"POS? n17", b"n17 12.500"),
        (b"pos? n17", b"n17 12.500"),
        (b"MOVE 20 n18", b"n18 OK"),
        (b"MOVE 20", b"OK"),
        (b"ECHO a  b c", b"a  b c"),
        (b"SHUT?", b"0"),
        (b"*IDN?", b"TRIO_DAQ,SIMULATED STAGE,1,0.1"),
        (b"BOGUS", b"ERR UNKNOWN"),
        (b"SHUTTER?", b"ERR UNKNOWN"),
        (b"SHUT? 1", b"ERR UNKNOWN"),
        (b"SHUT 2", b"ERR PARAMETER"),
        (b"SHUT", b"ERR PARAMETER"),
        (b"MOVE nan x", b"ERR PARAMETER"),
        (b"MOVE 1e9", b"ERR PARAMETER"),
        (b"SLOW? x -1", b"ERR PARAMETER"),
        (b"SLOW? x inf", b"ERR PARAMETER"),
        (b"POS? a b", b"ERR PARAMETER"),
    ],
)
def test_replies(command: bytes, reply: bytes) -> None:
    """Each command has the reply that the module's table gives."""
    assert SimulatedStage().answer(command, now=0.0).line == reply


def test_tag_stands_apart() -> None:
    """A reply carries its tag also as a value, byte for byte, and None where the query had none."""
    stage = SimulatedStage()
    assert stage.answer(b"POS? \xff\xa0", 0.0).replies == (Reply(b"\xff\xa0 12.500", "\xff\xa0"),)
    assert stage.answer(b"POS?", 0.0).tag is None


def test_shutter_keeps_what_it_was_told() -> None:
    """SHUT is not answered, and SHUT? tells its last value."""
    stage = SimulatedStage()
    assert stage.answer(b"SHUT 1", 0.0) == Answer()
    assert stage.answer(b"SHUT?", 0.0).line == b"1"
    assert stage.answer(b"SHUT 0", 0.0) == Answer()
    assert stage.answer(b"SHUT?", 0.0).line == b"0"


def test_moves_at_finite_speed() -> None:
    """The position goes towards the target at the given speed, both ways, and stops there."""
    stage = SimulatedStage(position=0.0, speed=2.0)
    stage.answer(b"MOVE 10", now=100.0)
    assert stage.answer(b"POS?", now=101.0).line == b"2.000"
    assert stage.answer(b"POS?", now=200.0).line == b"10.000"
    stage.answer(b"MOVE -10", now=200.0)
    assert stage.answer(b"POS?", now=201.5).line == b"7.000"
    stage.answer(b"MOVE 7", now=201.5)
    assert stage.answer(b"POS?", now=300.0).line == b"7.000"


def test_slow_query_tells_the_position_at_its_end() -> None:
    """SLOW? takes its seconds and answers where the stage is by then."""
    stage = SimulatedStage(position=0.0, speed=2.0)
    stage.answer(b"MOVE 10", now=0.0)
    assert stage.answer(b"SLOW? n1 3", now=0.0) == Answer((Reply(b"n1 6.000", "n1"),), 3.0)
    assert stage.answer(b"SLOW? 3", now=0.0) == Answer((Reply(b"6.000"),), 3.0)
