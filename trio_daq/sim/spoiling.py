"""What goes out when a fault fires, in place of the reply alone.

A reply and a fault go in, bytes and pauses come out; it neither waits nor sends, and does not know when faults fire.
"""

from __future__ import annotations

from typing import Literal

import attrs

from trio_daq.sim.faults import Fault

HangUp = Literal["reset", "fin"]

GARBAGE = b"\xfe\x00~?"
"""Bytes that are no text in UTF-8, no command and no terminator."""

SPLIT_PAUSE = 0.001
"""Seconds between two bytes: at 9600 baud a byte takes as long."""
MOST_PIECES = 64
"""A longer reply is not split into bytes but into so many pieces."""

LIE = 1000
"""Bytes of a block that are announced and do not come."""

EVENT_PAUSE = 0.005
"""Seconds from a reply to a line that nobody asked for: the next command is on its way by then, or nobody listens."""


@attrs.frozen
class Outgoing:
    """What an instrument sends upon one command.

    Attributes:
        pieces: Seconds to wait and bytes to send then, one after the other.
        extra: What the fault sends beside the reply, or in its place.
        is_whole: Whether the whole reply is in it.
        hang_up: How the connection ends after that, or None if it stays.
    """

    pieces: tuple[tuple[float, bytes], ...]
    extra: bytes = b""
    is_whole: bool = True
    hang_up: HangUp | None = None


def spoil(fault: Fault | None, reply: bytes, command: bytes, end: bytes, *, late_by: float, number: int) -> Outgoing:
    """Return what goes out for a reply that *fault* befalls, or the reply as it is.

    Args:
        fault: What goes wrong, None for nothing.
        reply: The reply, without terminator.
        command: What was asked, without terminator.
        end: The terminator.
        late_by: Seconds by which a late reply is late.
        number: How many faults of this kind there have been, this one included.
    """
    line = reply + end
    match fault:
        case None:
            return Outgoing(((0.0, line),))
        case "late":
            return Outgoing(((late_by, line),))
        case "silent":
            return Outgoing((), is_whole=False)
        case "half":
            half = _half(reply)
            return Outgoing(((0.0, half),), half, is_whole=False)
        case "reset":
            return Outgoing((), is_whole=False, hang_up="reset")
        case "fin":
            half = b"" if number % 2 else _half(reply)
            return Outgoing(((0.0, half),), half, is_whole=False, hang_up="fin")
        case "lie":
            lie = _lie(reply)
            return Outgoing(((0.0, lie + end),), lie, is_whole=False)
        case "garbage":
            return Outgoing(((0.0, GARBAGE + line),), GARBAGE)
        case "garbage_after":
            return Outgoing(((0.0, line + GARBAGE),), GARBAGE)
        case "echo":
            return Outgoing(((0.0, command + end + line),), command)
        case "split":
            length = -(-len(line) // MOST_PIECES)
            return Outgoing(tuple((SPLIT_PAUSE, line[at : at + length]) for at in range(0, len(line), length)))
        case "twice":
            return Outgoing(((0.0, line + line),), reply)
        case "unsolicited":
            event = b"EVENT %d" % number
            turns = (
                ((0.0, event + end + line),),
                ((0.0, line + event + end),),
                ((0.0, line), (EVENT_PAUSE, event + end)),
            )
            return Outgoing(turns[(number - 1) % len(turns)], event)


def _half(reply: bytes) -> bytes:
    return reply[: (len(reply) + 1) // 2]


def _lie(block: bytes) -> bytes:
    """Return *block* with a header that tells of `LIE` more bytes."""
    start = 2 + int(block[1:2])
    length = b"%d" % (int(block[2:start]) + LIE)
    return b"#%d%s%s" % (len(length), length, block[start:])
