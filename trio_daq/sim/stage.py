r"""A simulated stage controller: one axis, one shutter, a line protocol of plain words.

It knows nothing of serial lines; `answer` takes the bytes of one command. Commands, in any case of letters, where TAG
is any word, may be left out, and comes back in front of the reply::

    POS? TAG             TAG 12.500      position in mm
    MOVE X TAG           TAG OK          moves towards X mm at a finite speed
    SLOW? TAG SECONDS    TAG 12.500      the same as POS?, after that many seconds
    ECHO TEXT            TEXT            harmless: for finding the place in the stream of replies
    SHUT 0|1             (no reply)      0 closes the shutter, 1 opens it
    SHUT?                0|1
    *IDN?                TRIO_DAQ,SIMULATED STAGE,1,0.1

Anything else gives ``ERR UNKNOWN``, a wrong value ``ERR PARAMETER``.
"""

from __future__ import annotations

import math

from trio_daq.sim.answer import LONGEST_DELAY, Answer, Reply, parse_number, tag_text

IDENTITY = b"TRIO_DAQ,SIMULATED STAGE,1,0.1"
TRAVEL = 1000.0
"""mm to either side of 0."""


class SimulatedStage:
    r"""The stage controller's mind.

    Args:
        position: Where it stands at first, in mm.
        speed: mm per second.

    Example:
        >>> stage = SimulatedStage()
        >>> stage.answer(b"POS? n17", now=0.0).line
        b'n17 12.500'
        >>> stage.answer(b"MOVE 20 n18", now=0.0).line, stage.answer(b"POS?", now=0.5).line
        (b'n18 OK', b'17.500')
    """

    name = "stage"
    command_ends = b"\r\n"
    reply_end = b"\r\n"

    def __init__(self, position: float = 12.5, speed: float = 10.0) -> None:
        self._speed = speed
        self._start = self._target = position
        self._started_at = 0.0
        self._shutter = b"0"

    def answer(self, command: bytes, now: float) -> Answer:
        """Carry out one command."""
        verb, *words = command.split()
        match verb.upper(), words:
            case b"POS?", [] | [_]:
                return self._position(_last(words), now, 0.0)
            case b"MOVE", [_] | [_, _]:
                return self._move(words[0], _last(words[1:]), now)
            case b"SLOW?", [_] | [_, _]:
                delay = parse_number(words[-1], 0.0, LONGEST_DELAY)
                return _ERR_PARAMETER if delay is None else self._position(_last(words[:-1]), now, delay)
            case b"ECHO", [_, *_]:
                return _says(command.strip().split(maxsplit=1)[1])
            case b"SHUT", [b"0" | b"1"]:
                self._shutter = words[0]
                return Answer()
            case b"SHUT?", []:
                return _says(self._shutter)
            case b"*IDN?", []:
                return _says(IDENTITY)
            case b"SHUT" | b"MOVE" | b"ECHO" | b"POS?" | b"SLOW?", _:
                return _ERR_PARAMETER
        return _ERR_UNKNOWN

    def overrun(self) -> Answer:
        """Answer a command that was too long to be kept."""
        return _says(b"ERR TOO LONG")

    def _position(self, tag: bytes, now: float, delay: float) -> Answer:
        # Nothing can redirect the stage during the delay, so where it will be is known already.
        return _tagged(tag, b"%.3f" % self._at(now + delay), delay)

    def _move(self, target: bytes, tag: bytes, now: float) -> Answer:
        where = parse_number(target, -TRAVEL, TRAVEL)
        if where is None:
            return _ERR_PARAMETER
        self._start, self._started_at, self._target = self._at(now), now, where
        return _tagged(tag, b"OK")

    def _at(self, now: float) -> float:
        way = self._target - self._start
        gone = min(abs(way), self._speed * max(0.0, now - self._started_at))
        return self._start + math.copysign(gone, way)


def _last(words: list[bytes]) -> bytes:
    return words[-1] if words else b""


def _says(text: bytes) -> Answer:
    return Answer((Reply(text),))


def _tagged(tag: bytes, text: bytes, delay: float = 0.0) -> Answer:
    return Answer((Reply(tag + b" " + text if tag else text, tag_text(tag)),), delay)


_ERR_UNKNOWN = _says(b"ERR UNKNOWN")
_ERR_PARAMETER = _says(b"ERR PARAMETER")
