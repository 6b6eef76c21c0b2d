r"""A simulated multimeter that speaks SCPI.

It knows nothing of sockets; `answer` takes the bytes of one program message. Commands, in short or long form, in any
case of letters, where TAG is any word, may be left out, and comes back in front of the reply::

    MEAS:VOLT[:DC]? TAG      TAG,+1.234567E+00    a voltage that drifts slowly
    SLOW? TAG,SECONDS        TAG,+1.234567E+00    the same, after that many seconds
    CURV? TAG,COUNT          #3200TAG,...         a definite block of that many bytes of any value, TAG in front
    CONF:VOLT[:DC]           (no reply)
    SYST:ERR[:NEXT]?         0,"No error"         or the oldest error, which it takes out of the queue
    *IDN? *OPC? *RST *CLS                         as in IEEE 488.2-1992, section 10

Units of a message are joined by ``;``, and so are their replies. Every header is read from the root of the command
tree, with or without the leading colon. What cannot be carried out is not answered and leaves an error in the queue
(SCPI-99, volume 2, chapter 21.8), which all connections share.
"""

from __future__ import annotations

import math
import re
from collections import deque

from trio_daq.sim.answer import LONGEST_DELAY, Answer, Reply, parse_number, tag_text

IDENTITY = b"TRIO_DAQ,SIMULATED METER,1,0.1"
LONGEST_CURVE = 1024 * 1024
"""Bytes in a block."""
QUEUE_LENGTH = 20
"""Errors kept; SCPI-99 volume 2, 21.8.1 asks for at least two."""

_HEADERS = {
    re.compile(rb"\*IDN\?"): "identity",
    re.compile(rb"\*OPC\?"): "complete",
    re.compile(rb"\*RST"): "reset",
    re.compile(rb"\*CLS"): "clear",
    re.compile(rb":?MEAS(URE)?:VOLT(AGE)?(:DC)?\?"): "measure",
    re.compile(rb":?CONF(IGURE)?:VOLT(AGE)?(:DC)?"): "configure",
    re.compile(rb":?SLOW\?"): "slow",
    re.compile(rb":?CURV(E)?\?"): "curve",
    re.compile(rb":?SYST(EM)?:ERR(OR)?(:NEXT)?\?"): "error",
}

_RAMP = bytes(range(256))
"""Every byte, terminators and ``#`` among them: only counting finds the end of the block."""
_NO_ERROR = b'0,"No error"'
_MISSING_PARAMETER = b'-109,"Missing parameter"'
_UNDEFINED_HEADER = b'-113,"Undefined header"'
_ILLEGAL_VALUE = b'-224,"Illegal parameter value"'
_QUEUE_OVERFLOW = b'-350,"Queue overflow"'
_INPUT_OVERRUN = b'-363,"Input buffer overrun"'


class SimulatedMeter:
    r"""The meter's mind.

    Example:
        >>> meter = SimulatedMeter()
        >>> meter.answer(b"MEAS:VOLT? n17", now=0.0).line
        b'n17,+1.234567E+00'
        >>> meter.answer(b"BOGUS;SYST:ERR?;*OPC?", now=0.0).line
        b'-113,"Undefined header";1'
    """

    name = "meter"
    command_ends = b"\n"
    reply_end = b"\n"

    def __init__(self) -> None:
        self._errors: deque[bytes] = deque()

    def answer(self, command: bytes, now: float) -> Answer:
        """Carry out one program message; delays of its units add up."""
        replies: list[Reply] = []
        delay = 0.0
        for unit in command.split(b";"):
            if unit.strip():
                part = self._unit(unit, now + delay)
                replies += part.replies
                delay += part.delay
        return Answer(tuple(replies), delay)

    def overrun(self) -> Answer:
        """Note that a message was too long to be kept; as other errors, it is not answered."""
        return self._fail(_INPUT_OVERRUN)

    def _unit(self, unit: bytes, now: float) -> Answer:
        header, *rest = unit.split(maxsplit=1)
        parameters = rest[0].strip() if rest else b""
        match next((verb for pattern, verb in _HEADERS.items() if pattern.fullmatch(header.upper())), None):
            case "identity":
                return Answer((Reply(IDENTITY),))
            case "complete":
                return Answer((Reply(b"1"),))
            case "measure":
                return _voltage(parameters, now)
            case "slow":
                return self._slow(parameters, now)
            case "curve":
                return self._curve(parameters)
            case "error":
                return Answer((Reply(self._errors.popleft() if self._errors else _NO_ERROR),))
            case "clear":
                self._errors.clear()
                return Answer()
            case "reset" | "configure":  # there is one range and one function: nothing to change
                return Answer()
        return self._fail(_UNDEFINED_HEADER)

    def _slow(self, parameters: bytes, now: float) -> Answer:
        tag, _, seconds = parameters.rpartition(b",")
        if not seconds:
            return self._fail(_MISSING_PARAMETER)
        delay = parse_number(seconds, 0.0, LONGEST_DELAY)
        return self._fail(_ILLEGAL_VALUE) if delay is None else _voltage(tag.strip(), now + delay, delay)

    def _curve(self, parameters: bytes) -> Answer:
        tag, _, count = parameters.rpartition(b",")
        if not count:
            return self._fail(_MISSING_PARAMETER)
        front = tag.strip() + b"," if tag.strip() else b""
        length = parse_number(count, max(1, len(front)), LONGEST_CURVE)
        if length is None:
            return self._fail(_ILLEGAL_VALUE)
        data = (front + _RAMP * (int(length) // len(_RAMP) + 1))[: int(length)]
        digits = b"%d" % len(data)
        return Answer((Reply(b"#%d%s%s" % (len(digits), digits, data), tag_text(tag.strip())),))

    def _fail(self, error: bytes) -> Answer:
        if len(self._errors) == QUEUE_LENGTH:
            self._errors[-1] = _QUEUE_OVERFLOW  # SCPI-99 volume 2, 21.8.1: the newest is lost, and that is said
        else:
            self._errors.append(error)
        return Answer()


def _voltage(tag: bytes, now: float, delay: float = 0.0) -> Answer:
    """Return 1.234567 V with 10 mV of drift up and down every minute."""
    volts = b"%+.6E" % (1.234567 + 0.01 * math.sin(2 * math.pi * now / 60))
    return Answer((Reply(tag + b"," + volts if tag else volts, tag_text(tag)),), delay)
