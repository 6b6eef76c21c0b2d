"""The instrument in memory, as the connection to it is seen by a session."""

import pytest
import trio

from trio_daq.errors import LineOpenError
from trio_daq.sim import Answer, MemoryInstrument, Reply, SimulatedMeter
from trio_daq.visa import (
    BlockError,
    ConnectionLostError,
    Request,
    TransportTimeoutError,
    UnaskedInputError,
    VisaSessionConfig,
)

CONFIG = VisaSessionConfig(resource="TCPIP::memory::5025::SOCKET", max_block=1000)
SLOW = Request(b"SLOW? late,2\n", "message")
NAME = Request(b"*IDN?\n", "message")
IDENTITY = b"TRIO_DAQ,SIMULATED METER,1,0.1"


async def opened(instrument):
    transport = instrument.connect(CONFIG)
    await transport.open(1)
    return transport


async def test_a_late_reply_lies_there_for_the_same_connection_only(nursery, autojump_clock):
    """It comes on the connection that asked, where it is unasked input by then; a new connection brings nothing."""
    meter = MemoryInstrument(SimulatedMeter())
    nursery.start_soon(meter.serve)
    late, other = await opened(meter), await opened(meter)
    with pytest.raises(TransportTimeoutError):
        await late.exchange([SLOW], trio.current_time() + 1)
    assert (late.sent, late.completed) == ("yes", 0)
    assert await other.exchange([NAME], trio.current_time() + 5) == [IDENTITY]
    assert trio.current_time() == 2  # it is done with the slow one first
    with pytest.raises(UnaskedInputError, match="late"):
        await late.exchange([NAME], trio.current_time() + 1)
    assert late.sent == "no"
    assert await late.exchange([NAME], trio.current_time() + 1) == [IDENTITY]


async def test_a_command_that_is_cut_in_the_middle_is_never_carried_out(nursery, autojump_clock):
    """Half written, it is sent to an unknown degree; after the connection was closed nothing of it is left."""
    meter = MemoryInstrument(SimulatedMeter())
    nursery.start_soon(meter.serve)
    transport = await opened(meter)
    meter.write_time = 1.0
    with pytest.raises(TransportTimeoutError):
        await transport.exchange([NAME], trio.current_time() + 0.5)
    assert transport.sent == "unknown"
    await transport.aclose(1, abort=True)
    other = await opened(meter)
    assert await other.exchange([NAME], trio.current_time() + 5) == [IDENTITY]
    assert [text for _, text in meter.received] == ["*IDN?"]


async def test_a_device_clear_forgets_what_was_asked(nursery, autojump_clock):
    """Neither the reply under way nor the commands behind it come after it."""
    meter = MemoryInstrument(SimulatedMeter())
    nursery.start_soon(meter.serve)
    transport = await opened(meter)
    with pytest.raises(TransportTimeoutError):
        await transport.exchange([SLOW], trio.current_time() + 1)
    await transport.exchange([Request(b"*RST\n", "nothing")], trio.current_time() + 1)
    await transport.clear(1)
    assert await transport.drain(5, 9) == b""
    assert [entry.text for entry in meter.log if entry.event == "command"] == ["SLOW? late,2"]


async def test_a_closed_connection_is_lost_and_may_be_refused_again(nursery, autojump_clock):
    """Hanging up ends an exchange at once; while it refuses, nothing can be opened."""
    meter = MemoryInstrument(SimulatedMeter())
    nursery.start_soon(meter.serve)
    transport = await opened(meter)

    async def hang_up():
        await trio.sleep(0.5)
        meter.is_refusing = True
        meter.hang_up()

    nursery.start_soon(hang_up)
    with pytest.raises(ConnectionLostError, match="closed the connection"):
        await transport.exchange([SLOW], trio.current_time() + 9)
    assert trio.current_time() == 0.5
    with pytest.raises(LineOpenError, match="refused"):
        await opened(meter)
    meter.is_refusing = False
    await opened(meter)


class Scope:
    name = "scope"
    command_ends = reply_end = b"\n"

    def answer(self, command, now):
        blocks = {b"CURV?": b"#14a\nb\n", b"HUGE?": b"#45000", b"WORD?": b"word"}
        return Answer((Reply(blocks[command]),))

    def overrun(self):
        return Answer()


async def test_blocks_are_counted_and_others_refused(nursery, autojump_clock):
    """A block may hold terminators; what is none, or too large, is a BlockError."""
    scope = MemoryInstrument(Scope())
    nursery.start_soon(scope.serve)
    transport, told = await opened(scope), []
    blocks = await transport.exchange([Request(b"CURV?\n", "block")], 9, lambda *bytes_: told.append(bytes_))
    assert (blocks, told[-1]) == ([b"a\nb\n"], (4, 4))
    for command in (b"HUGE?\n", b"WORD?\n"):
        with pytest.raises(BlockError):
            await transport.exchange([Request(command, "block")], 9)
        await transport.drain(0, 1)
