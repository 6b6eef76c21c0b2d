"""The simulated meter over VXI-11, with pyvisa-py as the client and, for what that does not do, a plain socket."""

import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trio
from pyvisa.errors import VisaIOError
from sim_clients import in_thread, open_meter, serve_meter

from trio_daq.sim import FaultPlan, read_log
from trio_daq.sim.meter import IDENTITY
from trio_daq.sim.onc_rpc import XdrReader, pack_opaque, pack_unsigned
from trio_daq.sim.vxi11_line import CORE_PROGRAM, INPUT_BUFFER, MAXIMUM_WRITE, serve_on_vxi11

MANY = 10_000
"""``*IDN?`` so many times is one command of 60 kB with a reply of 310 kB."""


served = partial(serve_meter, serve_on_vxi11)
opened = partial(open_meter, "TCPIP::127.0.0.1,{port}::inst0::INSTR")


async def test_unchanged_program_is_answered(tmp_path: Path) -> None:
    """A pyvisa program opens it, asks, writes and asks again, and END alone ends a command as well as a line feed."""

    def script(port: int) -> list[str]:
        with opened(port) as meter:
            got = [meter.query("*IDN?")]
            meter.write("BOGUS")
            meter.write_raw(b"SYST:ERR?")
            return [*got, meter.read(), meter.query("MEAS:VOLT? n1")[:3]]

    async with served(tmp_path) as port:
        got = await in_thread(script, port)
    assert got == [IDENTITY.decode() + "\n", '-113,"Undefined header"\n', "n1,"]


async def test_long_messages_are_cut_and_joined(tmp_path: Path) -> None:
    """A command of 60 kB and a reply of 310 kB go through in calls of 16 kB, and nothing is lost or added."""

    def script(port: int) -> str:
        with opened(port, 10_000) as meter:
            assert meter.visalib.sessions[meter.session].max_recv_size == MAXIMUM_WRITE
            return meter.query(";".join(["*IDN?"] * MANY))

    async with served(tmp_path) as port:
        assert await in_thread(script, port) == ";".join([IDENTITY.decode()] * MANY) + "\n"


async def test_late_reply_stays_until_it_is_read(tmp_path: Path) -> None:
    """A read that times out takes nothing: the late reply goes to whoever reads next, as on a real instrument."""

    def script(port: int) -> list[str]:
        with opened(port, 100) as meter:
            with pytest.raises(VisaIOError, match="TMO"):
                meter.query("SLOW? late,0.3")
            meter.timeout = 2000
            return [meter.query("MEAS:VOLT? next")[:5], meter.read()[:5]]

    async with served(tmp_path) as port:
        assert await in_thread(script, port) == ["late,", "next,"]


async def test_cleared_reply_never_comes(tmp_path: Path) -> None:
    """After a device clear the next reply is the right one, whether the late one had come by then or was to come."""

    def script(port: int) -> list[str]:
        got = []
        with opened(port, 100) as meter:
            for late_by, pause in (("30", 0.0), ("0.15", 0.2)):
                meter.timeout = 100
                with pytest.raises(VisaIOError, match="TMO"):
                    meter.query(f"SLOW? late,{late_by}")
                time.sleep(pause)
                meter.timeout = 2000
                meter.clear()
                got.append(meter.query("MEAS:VOLT? next")[:5])
        return got

    async with served(tmp_path) as port:
        assert await in_thread(script, port) == ["next,", "next,"]
    assert [entry.tag for entry in read_log(tmp_path / "log") if entry.event == "reply"] == ["next", "late", "next"]


async def test_clear_forgets_half_a_command_and_those_that_wait(tmp_path: Path) -> None:
    """What a client wrote before a device clear, begun or waiting, is not carried out after it."""

    def script(port: int) -> str:
        with opened(port) as meter:
            for command in (b"SLOW? slow,30\n", b"MEAS:VOLT? waits\n", b"MEAS:VOLT? ha"):
                meter.write_raw(command)
            meter.clear()
            return meter.query("*IDN?")

    async with served(tmp_path) as port:
        assert await in_thread(script, port) == IDENTITY.decode() + "\n"
    commands = [entry.text for entry in read_log(tmp_path / "log") if entry.event == "command"]
    assert [command for command in commands if command != "SLOW? slow,30"] == ["*IDN?"]


async def test_half_a_reply_has_no_end(tmp_path: Path) -> None:
    """Half an answer has no END, so the next one is read as its other half."""

    def script(port: int) -> str:
        with opened(port, 200) as meter:
            with pytest.raises(VisaIOError, match="TMO"):
                meter.query("MEAS:VOLT? a")
            return meter.query("*OPC?")

    async with served(tmp_path, FaultPlan(half_every=1)) as port:
        got = await in_thread(script, port)
    assert (got[:5], got[8:]) == ("a,+1.", "1\n")


async def test_status_byte_says_whether_a_reply_waits(tmp_path: Path) -> None:
    """MAV is set from the reply on until the client has read it."""

    def script(port: int) -> list[int]:
        with opened(port) as meter:
            got = [meter.read_stb()]
            meter.write("MEAS:VOLT?")
            end = time.monotonic() + 5
            while not meter.read_stb() & 0x10:
                assert time.monotonic() < end
            meter.read()
            return [*got, meter.read_stb()]

    async with served(tmp_path) as port:
        assert await in_thread(script, port) == [0, 0]


async def test_two_clients_do_not_disturb_each_other(tmp_path: Path) -> None:
    """A slow answer to one client holds up no other, and clearing one clears no other."""

    def script(port: int) -> list[str]:
        with opened(port) as one, opened(port) as other:
            one.write("SLOW? one,0.3")
            got = [other.query("MEAS:VOLT? other")[:6]]
            other.clear()
            return [*got, one.read()[:4]]

    async with served(tmp_path) as port:
        assert await in_thread(script, port) == ["other,", "one,"]


async def test_busy_instrument_makes_a_writer_wait(tmp_path: Path) -> None:
    """An instrument that is at a slow command takes some more, then makes the client wait for its own timeout."""

    def script(port: int) -> int:
        written = 0
        with opened(port, 100) as meter, pytest.raises(VisaIOError, match="TMO"):  # noqa: PT012 - which write fails is what is asked
            while written < 100:
                meter.write("SLOW? s,30")
                written += 1
        return written

    async with served(tmp_path) as port:
        assert await in_thread(script, port) in (INPUT_BUFFER, INPUT_BUFFER + 1)


async def test_locks_are_not_supported(tmp_path: Path) -> None:
    """A lock, and a link that asks for one, is answered with error 8; so is what else was left out."""

    def script(port: int) -> None:
        with opened(port) as meter:
            with pytest.raises(VisaIOError, match="NSUP_OPER"):
                meter.lock_excl(timeout=100)
            link = meter.visalib.sessions[meter.session]
            assert link.interface.device_remote(link.link, 0, 0, 0) == 8
            assert link.interface.device_docmd(link.link, 0, 0, 0, 1, 1, 1, b"") == (8, b"")
            assert link.interface.create_link(1, 1, 0, "inst0")[0] == 8
            assert link.interface.create_link(1, 0, 0, "gpib0")[0] == 3
            assert link.interface.device_read(999, 10, 0, 0, 0, 0)[0] == 4
            assert link.interface.device_clear(999, 0, 0, 0) == 4
            assert link.interface.device_write(link.link, 0, 0, 8, bytes(MAXIMUM_WRITE + 1)) == (5, 0)
            assert link.interface.destroy_link(999) == 4
            assert link.interface.call_0() is None

    async with served(tmp_path) as port:
        await in_thread(script, port)


# --- what pyvisa-py does not do --------------------------------------------------------------------------------------


class Client:
    """One client's connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream

    async def tell(self, call: bytes, *, fragment: int = 1 << 20) -> None:
        for at in range(0, len(call), fragment):
            piece = call[at : at + fragment]
            last = 0x80000000 if at + fragment >= len(call) else 0
            await self.stream.send_all(struct.pack("!I", len(piece) | last) + piece)

    async def hear(self) -> XdrReader:
        """Return the next reply, behind its transaction number and message type."""
        with trio.fail_after(5):
            data = b""
            while len(data) < 4 or len(data) < 4 + (struct.unpack("!I", data[:4])[0] & 0x7FFFFFFF):
                more = await self.stream.receive_some()
                assert more, "the connection ended"
                data += more
        reader = XdrReader(data[4:])
        assert (reader.unsigned(), reader.unsigned()) == (7, 1)
        return reader

    async def call(self, procedure: int, arguments: bytes = b"", *, fragment: int = 1 << 20) -> XdrReader:
        """Return the result of a procedure that is accepted."""
        await self.tell(header(procedure) + arguments, fragment=fragment)
        reply = await self.hear()
        assert [reply.unsigned() for _ in range(4)] == [0, 0, 0, 0]
        return reply


def header(procedure: int, *, program: int = CORE_PROGRAM, version: int = 1, rpc_version: int = 2) -> bytes:
    return pack_unsigned(7, 0, rpc_version, program, version, procedure, 0, 0, 0, 0)


@asynccontextmanager
async def client(port: int) -> AsyncIterator[Client]:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        yield Client(stream)


async def test_reading_ends_for_each_of_three_reasons(tmp_path: Path) -> None:
    """The count, the character and END are told apart, together where they coincide; calls may come in fragments."""
    async with served(tmp_path) as port, client(port) as one:
        made = await one.call(10, pack_unsigned(1, 0, 0) + pack_opaque(b"inst0"), fragment=5)
        assert made.unsigned() == 0
        link = made.unsigned()
        await one.call(11, pack_unsigned(link, 1000, 0, 8) + pack_opaque(b"*OPC?;*OPC?;SYST:ERR?"))
        got = []
        for size, flags, character in ((1, 0, 0), (100, 0x80, 59), (2, 0x80, 59), (100, 0x80, 10), (100, 0, 0)):
            reply = await one.call(12, pack_unsigned(link, size, 50, 0, flags, character))
            got.append((reply.unsigned(), reply.unsigned(), reply.opaque()))
    assert got == [
        (0, 1, b"1"),
        (0, 2, b";"),
        (0, 3, b"1;"),
        (0, 6, b'0,"No error"\n'),
        (15, 0, b""),
    ]


@pytest.mark.parametrize(
    ("call", "reply"),
    [
        (header(10, program=100000), [0, 0, 0, 1]),
        (header(10, version=2), [0, 0, 0, 2, 1, 1]),
        (header(99), [0, 0, 0, 3]),
        (header(12), [0, 0, 0, 4]),
        (header(10, rpc_version=3), [1, 0, 2, 2]),
    ],
)
async def test_wrong_call_is_refused_in_rpc_terms(tmp_path: Path, call: bytes, reply: list[int]) -> None:
    """Another program, version or procedure, and missing arguments, get their accept or reject status."""
    async with served(tmp_path) as port, client(port) as one:
        await one.tell(call)
        heard = await one.hear()
        assert [heard.unsigned() for _ in reply] == reply
        await one.call(0)


@pytest.mark.parametrize(
    ("said", "leaves"),
    [(b"\x80\x00\x00\x04*IDN", False), (b"\xff\xff\xff\xff", False), (b"\x80\x00\x00\x08\x00", True)],
)
async def test_what_is_no_call_ends_the_connection_alone(tmp_path: Path, said: bytes, leaves: bool) -> None:
    """Noise, a record of gigabytes and a client that goes away in one do no harm to others."""
    async with served(tmp_path) as port, client(port) as one, client(port) as other:
        await one.stream.send_all(said)
        if leaves:
            await one.stream.send_eof()
        with trio.fail_after(5):
            assert await one.stream.receive_some() == b""
        await other.call(0)


@pytest.mark.parametrize("plan", [FaultPlan(reset_every=1), FaultPlan(fin_every=1)])
async def test_instrument_that_hangs_up_can_be_opened_again(tmp_path: Path, plan: FaultPlan) -> None:
    """A planned end of the connection ends it at once, and the next client is served."""
    async with served(tmp_path, plan) as port:
        for _ in range(2):
            async with client(port) as one:
                made = await one.call(10, pack_unsigned(1, 0, 0) + pack_opaque(b"inst0"))
                assert made.unsigned() == 0
                await one.tell(header(11) + pack_unsigned(made.unsigned(), 1000, 0, 8) + pack_opaque(b"MEAS:VOLT? a"))
                with trio.fail_after(5), suppress(trio.BrokenResourceError):
                    while await one.stream.receive_some():
                        pass
