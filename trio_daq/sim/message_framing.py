"""What the servers of message-based lines share: exact counts of bytes in, replies as messages with an END out.

On such a line (HiSLIP, VXI-11, as on GPIB before them) END, not a byte, ends a message: IEEE 488.2-1992, 7.5 and 8.5.
"""

from __future__ import annotations

import trio

from trio_daq.sim.answer import SimulatedInstrument


async def receive_exactly(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    """Return the next *count* bytes. Cancelled, those that had come are lost.

    Raises:
        EOFError: If the client went away first.
        trio.BrokenResourceError: If it went away without a word.
    """
    received = bytearray()
    while len(received) < count:
        data = await stream.receive_some(count - len(received))
        if not data:
            raise EOFError(f"the client went away {count - len(received)} bytes early")
        received += data
    return bytes(received)


def with_end(instrument: SimulatedInstrument, data: bytes) -> bytes:
    """Return the last bytes of a client's message with what ends a command, which END does as well."""
    return data + instrument.command_ends[:1]


def split_at_end(instrument: SimulatedInstrument, data: bytes) -> list[tuple[bytes, bool]]:
    r"""Return what an instrument sends in one go as messages, each with whether END comes with its last byte.

    What stands behind the last terminator, such as half a reply or garbage, has none.

    Example:
        >>> from trio_daq.sim import SimulatedMeter
        >>> split_at_end(SimulatedMeter(), b"1.5\n~?")
        [(b'1.5\n', True), (b'~?', False)]
    """
    whole, end, rest = data.rpartition(instrument.reply_end)
    return [(part, has_end) for part, has_end in ((whole + end, True), (rest, False)) if part]
