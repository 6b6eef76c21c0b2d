"""The simulated meter over HiSLIP, with pyvisa-py as the client and, for what that does not do, a plain socket."""

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
from trio_daq.sim.hislip_line import serve_on_hislip
from trio_daq.sim.meter import IDENTITY

HEADER = struct.Struct("!2sBBIQ")
MANY = 10_000
"""``*IDN?`` so many times is one command of 60 kB with a reply of 310 kB."""


served = partial(serve_meter, serve_on_hislip)
opened = partial(open_meter, "TCPIP::127.0.0.1::hislip0,{port}::INSTR")


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
    """A command of 60 kB and a reply of 310 kB go through in messages of 16 kB, and nothing is lost or added."""

    def script(port: int) -> str:
        with opened(port, 10_000) as meter:
            assert meter.visalib.sessions[meter.session].interface.max_msg_size < 20_000
            return meter.query(";".join(["*IDN?"] * MANY))

    async with served(tmp_path) as port:
        assert await in_thread(script, port) == ";".join([IDENTITY.decode()] * MANY) + "\n"


async def test_late_reply_bears_the_old_id(tmp_path: Path) -> None:
    """After a timeout the late reply does come, and a client that looks at the id gives it to nobody."""

    def script(port: int) -> str:
        with opened(port, 100) as meter:
            with pytest.raises(VisaIOError, match="TMO"):
                meter.query("SLOW? late,0.3")
            meter.timeout = 2000
            return meter.query("MEAS:VOLT? next")

    async with served(tmp_path) as port:
        assert (await in_thread(script, port)).startswith("next,")
    assert [entry.tag for entry in read_log(tmp_path / "log") if entry.event == "reply"] == ["late", "next"]


async def test_cleared_reply_never_comes(tmp_path: Path) -> None:
    """After a timeout and a device clear the next reply is the right one, at once, and the late one never went out."""

    def script(port: int) -> str:
        with opened(port, 200) as meter:
            with pytest.raises(VisaIOError, match="TMO"):
                meter.query("SLOW? late,30")
            meter.timeout = 2000
            meter.clear()
            return meter.query("MEAS:VOLT? next")

    async with served(tmp_path) as port:
        assert (await in_thread(script, port)).startswith("next,")
    assert [entry.tag for entry in read_log(tmp_path / "log") if entry.event == "reply"] == ["next"]


async def test_clear_forgets_half_a_command_and_those_that_wait(tmp_path: Path) -> None:
    """What a client wrote before a device clear, begun or waiting, is not carried out after it."""

    def script(port: int) -> str:
        with opened(port) as meter:
            for command in (b"SLOW? slow,30\n", b"MEAS:VOLT? waits\n", b"MEAS:VOLT? ha"):
                meter.write_raw(command)
            time.sleep(0.1)
            meter.clear()
            return meter.query("*IDN?")

    async with served(tmp_path) as port:
        assert await in_thread(script, port) == IDENTITY.decode() + "\n"
    commands = [entry.text for entry in read_log(tmp_path / "log") if entry.event == "command"]
    assert [command for command in commands if command != "SLOW? slow,30"] == ["*IDN?"]


async def test_planned_faults_fire_with_their_own_end(tmp_path: Path) -> None:
    """A late answer is late, half an answer has no END, and garbage behind one does not reach into the next."""

    def script(port: int) -> list[str]:
        with opened(port, 300) as meter:
            got = [meter.query("MEAS:VOLT? a")[:2], meter.query("MEAS:VOLT? b")[:2]]
            with pytest.raises(VisaIOError, match="TMO"):
                meter.query("MEAS:VOLT? c")
            return [*got, meter.query("MEAS:VOLT? d")[:2]]

    async with served(tmp_path, FaultPlan(garbage_after_every=2, half_every=3)) as port:
        assert await in_thread(script, port) == ["a,", "b,", "d,"]


async def test_status_byte_says_whether_a_reply_waits(tmp_path: Path) -> None:
    """MAV is set from the reply on until the client has read it, also while it works on nothing."""

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


@pytest.mark.parametrize("plan", [FaultPlan(reset_every=1), FaultPlan(fin_every=1)])
async def test_instrument_that_hangs_up_can_be_opened_again(tmp_path: Path, plan: FaultPlan) -> None:
    """A planned end of the connection ends both of them, at once, and the next client is served."""
    async with served(tmp_path, plan) as port:
        for _ in range(2):
            async with session(port) as (synchronous, asynchronous):
                await tell(synchronous, 7, payload=b"MEAS:VOLT? a")
                for stream in (synchronous, asynchronous):
                    with suppress(trio.BrokenResourceError):
                        while await hear(stream) != (0, 0, 0, b""):
                            pass


# --- what pyvisa-py does not do --------------------------------------------------------------------------------------


async def connect(port: int, kind: int, parameter: int = 0, payload: bytes = b"") -> trio.SocketStream:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    await tell(stream, kind, 0, parameter, payload)
    return stream


async def tell(
    stream: trio.SocketStream, kind: int, control: int = 0, parameter: int = 0, payload: bytes = b""
) -> None:
    await stream.send_all(HEADER.pack(b"HS", kind, control, parameter, len(payload)) + payload)


async def hear(stream: trio.SocketStream) -> tuple[int, int, int, bytes]:
    """Return type, control code, parameter and payload of the next message; zeros at the end of the connection."""

    async def exactly(count: int) -> bytes:
        data = b""
        while len(data) < count and (more := await stream.receive_some(count - len(data))):
            data += more
        return data

    with trio.fail_after(5):
        header = await exactly(HEADER.size)
        if not header:
            return 0, 0, 0, b""
        _, kind, control, parameter, length = HEADER.unpack(header)
        return kind, control, parameter, await exactly(length)


@asynccontextmanager
async def session(port: int) -> AsyncIterator[tuple[trio.SocketStream, trio.SocketStream]]:
    """Have both connections of a client."""
    async with await connect(port, 0, 0x0200_7878, b"hislip0") as synchronous:
        kind, control, parameter, _ = await hear(synchronous)
        assert (kind, control, parameter >> 16) == (1, 0, 0x0100)
        async with await connect(port, 17, parameter & 0xFFFF) as asynchronous:
            assert (await hear(asynchronous))[0] == 18
            yield synchronous, asynchronous


async def test_reply_bears_the_id_of_its_question(tmp_path: Path) -> None:
    """The id of the message that asked comes back, and a client with small messages is sent smaller ones."""
    async with served(tmp_path) as port, session(port) as (synchronous, asynchronous):
        await tell(asynchronous, 15, 0, 0, (16 + 16).to_bytes(8, "big"))
        assert (await hear(asynchronous))[0] == 16
        await tell(synchronous, 6, 0, 0xFFFFFF00, b"*ID")
        await tell(synchronous, 7, 0, 0xFFFFFF02, b"N?")
        heard = [await hear(synchronous) for _ in range(2)]
    assert heard == [(6, 0, 0xFFFFFF02, IDENTITY[:16]), (7, 0, 0xFFFFFF02, IDENTITY[16:] + b"\n")]


async def test_clear_while_a_long_reply_is_not_read(tmp_path: Path) -> None:
    """A device clear in the middle of a reply that nobody reads ends it between two messages, never inside one."""
    acknowledged = trio.Event()

    async def ask_too_much(stream: trio.SocketStream) -> None:
        for number in range(200):  # 12 MB of replies: more than any socket buffer
            await tell(stream, 7, 0, number, b";".join([b"*IDN?"] * 2000))
        await acknowledged.wait()
        await tell(stream, 8)

    async with served(tmp_path) as port, session(port) as (synchronous, asynchronous), trio.open_nursery() as nursery:
        nursery.start_soon(ask_too_much, synchronous)
        await trio.sleep(0.5)
        await tell(asynchronous, 19)
        assert (await hear(asynchronous))[:2] == (23, 0)
        acknowledged.set()
        while (kind := (await hear(synchronous))[0]) in (6, 7):
            pass
        assert kind == 9
        await tell(synchronous, 7, 0, 0xFFFFFF00, b"*OPC?")
        assert await hear(synchronous) == (7, 0, 0xFFFFFF00, b"1\n")
    commands = [entry for entry in read_log(tmp_path / "log") if entry.event == "command"]
    assert 1 < len(commands) < 200


async def test_what_is_not_here_is_refused_and_the_session_goes_on(tmp_path: Path) -> None:
    """Unknown and vendor messages and too large ones give an Error with their code, a lock is not granted."""
    async with served(tmp_path) as port, session(port) as (synchronous, asynchronous):
        for kind, payload, code in ((99, b"", 1), (128, b"x", 3), (7, b"x" * 20_000, 4)):
            await tell(synchronous, kind, payload=payload)
            assert (await hear(synchronous))[:2] == (3, code)
        for kind, answer in ((4, (5, 0)), (24, (25, 0)), (10, (11, 0)), (27, (3, 1))):
            await tell(asynchronous, kind)
            assert (await hear(asynchronous))[:2] == answer
        await tell(synchronous, 7, payload=b"*OPC?")
        assert (await hear(synchronous))[3] == b"1\n"


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (HEADER.pack(b"GE", 0, 0, 0, 0), 1),
        (HEADER.pack(b"HS", 17, 0, 999, 0), 3),
        (HEADER.pack(b"HS", 0, 0, 0, 7) + b"hislip9", 3),
        (HEADER.pack(b"HS", 7, 0, 0, 0), 3),
        (HEADER.pack(b"HS", 0, 0, 0, 0) + HEADER.pack(b"HS", 7, 0, 0, 0), 2),
    ],
)
async def test_wrong_beginning_is_fatal(tmp_path: Path, first: bytes, code: int) -> None:
    """What begins no session gives a FatalError with its code and the end of the connection; others go on."""
    async with served(tmp_path) as port:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(first)
            heard = await hear(stream)
            if heard[0] == 1:
                heard = await hear(stream)
            assert heard[:2] == (2, code)
            assert await hear(stream) == (0, 0, 0, b"")
        async with session(port) as (synchronous, _):
            await tell(synchronous, 7, payload=b"*OPC?")
            assert (await hear(synchronous))[3] == b"1\n"


async def test_either_connection_ends_with_the_other(tmp_path: Path) -> None:
    """When a client closes one of its two connections, or goes away in the middle of a message, both end."""
    async with served(tmp_path) as port:
        async with session(port) as (synchronous, asynchronous):
            await asynchronous.aclose()
            assert await hear(synchronous) == (0, 0, 0, b"")
        async with session(port) as (synchronous, asynchronous):
            await synchronous.send_all(b"HS\x07")
            await synchronous.aclose()
            assert await hear(asynchronous) == (0, 0, 0, b"")
