"""The behaviour of the simulated SCPI meter."""

import pytest

from trio_daq.sim import Answer, Reply, SimulatedMeter

VOLTS = b"+1.234567E+00"


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        (b"*IDN?", b"TRIO_DAQ,SIMULATED METER,1,0.1"),
        (b"*opc?\r", b"1"),
        (b"MEAS:VOLT?", VOLTS),
        (b"MEAS:VOLT? n17", b"n17," + VOLTS),
        (b":measure:voltage:dc? n17", b"n17," + VOLTS),
        (b"SYST:ERR?", b'0,"No error"'),
        (b"*RST", b""),
        (b"CONF:VOLT:DC", b""),
        (b"MEASU:VOLT?", b""),
        (b"*RST;*OPC?; MEAS:VOLT? a ;*IDN?;", b"1;a," + VOLTS + b";TRIO_DAQ,SIMULATED METER,1,0.1"),
    ],
)
def test_replies(command: bytes, reply: bytes) -> None:
    """Each command has the reply that the module's table gives; those of a compound message are one line."""
    assert SimulatedMeter().answer(command, now=0.0).line == reply


def test_each_query_of_a_compound_message_keeps_its_tag() -> None:
    """The replies within one line stay apart, each with its own tag."""
    answer = SimulatedMeter().answer(b"MEAS:VOLT? a;*OPC?;MEAS:VOLT? b", now=0.0)
    assert [reply.tag for reply in answer.replies] == ["a", None, "b"]
    assert answer.tag == "a"


def test_voltage_drifts_within_its_band() -> None:
    """The voltage changes with time, by 10 mV at most."""
    volts = [float(SimulatedMeter().answer(b"MEAS:VOLT?", now=float(second)).line) for second in range(60)]
    assert len(set(volts)) > 10
    assert max(abs(value - 1.234567) for value in volts) <= 0.010001


def test_slow_query_takes_its_seconds() -> None:
    """SLOW? asks for its delay, with or without tag; the delays of one message add up."""
    meter = SimulatedMeter()
    assert meter.answer(b"SLOW? a, 60", now=0.0) == Answer((Reply(b"a," + VOLTS, "a"),), 60.0)
    assert meter.answer(b"SLOW? 60;SLOW? 60", now=0.0).delay == 120.0


@pytest.mark.parametrize(
    ("command", "front", "length"),
    [(b"CURV? n17,300", b"#3300n17,", 300), (b":curve? 7", b"#17", 7), (b"CURV? n17,4", b"#14n17,", 4)],
)
def test_curve_is_a_block_of_that_many_bytes(command: bytes, front: bytes, length: int) -> None:
    """CURV? gives a definite block of the length that was asked for, its tag in front, terminators among its bytes."""
    answer = SimulatedMeter().answer(command, now=0.0)
    assert answer.line.startswith(front)
    assert len(answer.line) == 2 + int(answer.line[1:2]) + length
    assert answer.is_block
    assert answer.tag == (None if b"n17" not in command else "n17")
    assert (b"\n" in answer.line) is (length > 10)


@pytest.mark.parametrize(
    ("command", "error"),
    [(b"CURV?", b"-109"), (b"CURV? n17,3", b"-224"), (b"CURV? 0", b"-224"), (b"CURV? 1e9", b"-224")],
)
def test_curve_without_a_sensible_length_is_an_error(command: bytes, error: bytes) -> None:
    """A block too short for its tag, empty or huge is refused like any wrong parameter."""
    meter = SimulatedMeter()
    assert meter.answer(command, now=0.0) == Answer()
    assert meter.answer(b"SYST:ERR?", now=0.0).line.startswith(error)


def test_errors_come_out_in_order_once() -> None:
    """What cannot be carried out is not answered, and SYST:ERR? gives the errors, oldest first."""
    meter = SimulatedMeter()
    assert meter.answer(b"BOGUS?;SLOW?;SLOW? a,b", now=0.0) == Answer()
    assert meter.overrun() == Answer()
    got = [meter.answer(b"SYST:ERR?", now=0.0).line for _ in range(5)]
    assert got == [
        b'-113,"Undefined header"',
        b'-109,"Missing parameter"',
        b'-224,"Illegal parameter value"',
        b'-363,"Input buffer overrun"',
        b'0,"No error"',
    ]


def test_error_queue_is_bounded_and_says_so() -> None:
    """A full queue keeps the oldest errors and ends in "Queue overflow"; *CLS empties it."""
    meter = SimulatedMeter()
    for _ in range(100):
        meter.answer(b"BOGUS", now=0.0)
    got = [meter.answer(b"SYST:ERR?", now=0.0).line for _ in range(21)]
    assert got == [b'-113,"Undefined header"'] * 19 + [b'-350,"Queue overflow"', b'0,"No error"']
    meter.answer(b"BOGUS;*CLS", now=0.0)
    assert meter.answer(b"SYST:ERR?", now=0.0).line == b'0,"No error"'
