"""The PyVISA transport over HiSLIP and VXI-11, where the instrument marks the end of a message."""

import itertools
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from trio_daq.visa import VisaSessionConfig
from trio_daq.visa.pyvisa_transport import PyvisaTransport
from trio_daq.visa.transport import BlockError, ConnectionLostError, Request, TransportTimeoutError


class Meter:
    """What both instruments below answer: *replies* by command, nothing to others; ``GONE`` ends the connection."""

    def __init__(self) -> None:
        self.resource = ""
        self.replies: dict[bytes, bytes] = {}
        self.commands: list[bytes] = []
        self.clears = 0
        self.deaf = trio.Event()
        self.deaf.set()

    async def serve(self, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, self._client, 0)
            self.resource = self.name(listeners[0].socket.getsockname()[1])
            task_status.started()

    async def _client(self, stream: trio.SocketStream) -> None:
        try:
            await self.converse(stream)
        except (EOFError, trio.BrokenResourceError, trio.ClosedResourceError):
            await trio.aclose_forcefully(stream)

    def name(self, port: int) -> str:
        raise NotImplementedError

    async def converse(self, stream: trio.SocketStream) -> None:
        raise NotImplementedError


async def take(stream: trio.SocketStream, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        if not (some := await stream.receive_some(count - len(data))):
            raise EOFError
        data += some
    return bytes(data)


class HislipMeter(Meter):
    """HiSLIP 1.0 as far as it is needed (IVI-6.1): both channels, data, device clear."""

    header = struct.Struct("!2sBBIQ")

    def __init__(self) -> None:
        super().__init__()
        self._ids = itertools.count(1)

    def name(self, port: int) -> str:
        return f"TCPIP::127.0.0.1::hislip0,{port}::INSTR"

    async def converse(self, stream: trio.SocketStream) -> None:
        command = b""
        while True:
            _, kind, _, parameter, size = self.header.unpack(await take(stream, self.header.size))
            payload = await take(stream, size)
            if kind == 0:  # Initialize
                await self._send(stream, 1, 0x0100_0000 + next(self._ids))
            elif kind == 17:  # AsyncInitialize
                await self._send(stream, 18, 0)
            elif kind == 15:  # AsyncMaxMsgSize
                await self._send(stream, 16, 0, struct.pack("!Q", 1 << 20))
            elif kind == 19:  # AsyncDeviceClear
                self.clears += 1
                await self._send(stream, 23, 0)
            elif kind == 8:  # DeviceClearComplete
                await self._send(stream, 9, 0)
            elif kind in (6, 7):  # Data, DataEND
                command += payload
                if kind == 7:
                    await self._carry_out(stream, command.rstrip(b"\n"), parameter)
                    command = b""

    async def _carry_out(self, stream: trio.SocketStream, command: bytes, message_id: int) -> None:
        self.commands.append(command)
        await self.deaf.wait()
        if command == b"GONE":
            raise EOFError
        if (reply := self.replies.get(command)) is not None:
            cut = len(reply) // 2
            await self._send(stream, 6, message_id, reply[:cut])
            await self._send(stream, 7, message_id, reply[cut:])

    async def _send(self, stream: trio.SocketStream, kind: int, parameter: int, payload: bytes = b"") -> None:
        await stream.send_all(self.header.pack(b"HS", kind, 0, parameter, len(payload)) + payload)


class Vxi11Meter(Meter):
    """VXI-11 as far as it is needed (VXI-11 rev 1.0, RFC 1057): links, write, read, clear."""

    unlinked = 0

    def name(self, port: int) -> str:
        return f"TCPIP::127.0.0.1,{port}::inst0::INSTR"

    async def converse(self, stream: trio.SocketStream) -> None:
        waiting = b""
        while True:
            (mark,) = struct.unpack("!I", await take(stream, 4))
            record = await take(stream, mark & 0x7FFFFFFF)
            transaction, procedure, arguments = record[:4], struct.unpack("!I", record[20:24])[0], record[40:]
            await self.deaf.wait()
            if procedure == 10:  # create_link
                result = struct.pack("!IIII", 0, 7, 0, 1 << 20)
            elif procedure == 11:  # device_write
                (size,) = struct.unpack("!I", arguments[16:20])
                command = arguments[20 : 20 + size].rstrip(b"\n")
                self.commands.append(command)
                if command == b"GONE":
                    raise EOFError
                waiting = self.replies.get(command, b"")
                result = struct.pack("!II", 0, size)
            elif procedure == 12:  # device_read
                size, timeout = struct.unpack("!II", arguments[4:12])
                data, waiting = waiting[:size], waiting[size:]
                if not data:
                    await trio.sleep(timeout / 1000)
                result = struct.pack("!III", 0 if data else 15, 0 if waiting else 4, len(data))
                result += data + bytes(-len(data) % 4)
            else:  # device_clear, destroy_link
                self.clears += procedure == 15
                self.unlinked += procedure == 23
                waiting = b""
                result = bytes(4)
            reply = transaction + struct.pack("!IIIII", 1, 0, 0, 0, 0) + result
            await stream.send_all(struct.pack("!I", 0x80000000 + len(reply)) + reply)


@pytest.fixture(params=[HislipMeter, Vxi11Meter])
async def meter(request: pytest.FixtureRequest, nursery: trio.Nursery) -> AsyncIterator[Meter]:
    instrument: Meter = request.param()
    await nursery.start(instrument.serve)
    yield instrument
    instrument.deaf.set()


@asynccontextmanager
async def opened(meter: Meter, **settings: Any) -> AsyncIterator[PyvisaTransport]:
    transport = PyvisaTransport(VisaSessionConfig(resource=meter.resource, **settings))
    await transport.open(2)
    try:
        yield transport
    finally:
        assert await transport.aclose(2)


async def ask(transport: PyvisaTransport, data: bytes, reply: Any, timeout: float = 2.0) -> bytes:
    return (await transport.exchange([Request(data, reply)], trio.current_time() + timeout))[0]


async def test_message_ends_with_its_last_byte(meter: Meter) -> None:
    """A reply ends by END: with its termination, which is taken off, without, or with many inside."""
    meter.replies = {b"A?": b"1\n2\n", b"B?": b"3", b"C?": b"\n"}
    async with opened(meter) as transport:
        assert await ask(transport, b"A?\n", "message") == b"1\n2"
        assert await ask(transport, b"B?\n", "message") == b"3"
        assert await ask(transport, b"C?\n", "message") == b""


@pytest.mark.parametrize("size", [65535, 65536, 65537, 131072])
async def test_message_of_any_length_ends(meter: Meter, size: int) -> None:
    """A reply that fills the last read exactly is not waited for any longer."""
    meter.replies = {b"A?": b"x" * (size - 1) + b"\n"}
    async with opened(meter) as transport:
        assert await ask(transport, b"A?\n", "message") == b"x" * (size - 1)
        assert await ask(transport, b"A?\n", "message") == b"x" * (size - 1)


async def test_block_may_have_no_length(meter: Meter) -> None:
    """Where END is told, blocks may be of known or of unknown length, and must hold what they announce."""
    payload = bytes(range(256)) * 9000
    meter.replies = {
        b"A?": b"#7%07d" % len(payload) + payload + b"\n",
        b"B?": b"#0" + payload + b"\n",
        b"C?": b"#15abc\n",
        b"D?": b"#13abc",
        b"E?": b"#13abc\r\n",
    }
    async with opened(meter, read_termination="\r\n") as transport:
        for _ in range(2):
            assert await ask(transport, b"A?\n", "block") == payload
            assert await ask(transport, b"B?\n", "block") == payload
            assert await ask(transport, b"D?\n", "block") == b"abc"
            assert await ask(transport, b"E?\n", "block") == b"abc"
        with pytest.raises(BlockError, match="announced 5"):
            await ask(transport, b"C?\n", "block")


async def test_clear_makes_it_usable_after_a_timeout(meter: Meter) -> None:
    """A device clear reaches the instrument, and the next exchange gets its own reply."""
    meter.replies = {b"A?": b"1\n"}
    async with opened(meter) as transport:
        began = time.monotonic()
        with pytest.raises(TransportTimeoutError):
            await ask(transport, b"MUTE?\n", "message", timeout=0.3)
        assert time.monotonic() - began < 0.7
        assert transport.sent == "yes"
        await transport.clear(1)
        assert meter.clears == 1
        assert await ask(transport, b"A?\n", "message") == b"1"
        assert await transport.drain(0.05, 1) == b""


async def test_lost_connection_is_told(meter: Meter) -> None:
    """An instrument that goes away is told as that, and before a write too."""
    async with opened(meter) as transport:
        with pytest.raises(ConnectionLostError):
            await ask(transport, b"GONE\n", "message")
        began = time.monotonic()
        with pytest.raises(ConnectionLostError):
            await ask(transport, b"A\n", "nothing")
        assert (transport.sent, time.monotonic() - began < 0.3) == ("no", True)


async def test_instrument_that_answers_nothing_is_given_up(meter: Meter) -> None:
    """Neither a command that is not read nor one that is not acknowledged is waited for beyond its deadline."""
    transport = PyvisaTransport(VisaSessionConfig(resource=meter.resource))
    await transport.open(2)
    meter.deaf = trio.Event()
    began = time.monotonic()
    with pytest.raises(TransportTimeoutError):
        await ask(transport, b"x" * 20_000_000 + b"\n", "message", timeout=0.3)
    assert time.monotonic() - began < 1.2  # with the grace that a hung call has
    meter.deaf.set()
    assert await transport.aclose(1, abort=True)


async def test_thread_that_was_given_up_is_freed(nursery: trio.Nursery) -> None:
    """pyvisa-py waits a second longer than told over VXI-11; its thread, given up, ends with its connection."""
    meter = Vxi11Meter()
    await nursery.start(meter.serve)
    transport = PyvisaTransport(VisaSessionConfig(resource=meter.resource))
    await transport.open(2)
    meter.deaf = trio.Event()
    began = time.monotonic()
    with pytest.raises(TransportTimeoutError, match="has not returned"):
        await ask(transport, b"A?\n", "message", timeout=1)
    assert await transport.aclose(0.4)
    assert time.monotonic() - began < 1.9
    meter.deaf.set()


async def test_link_is_given_back(nursery: trio.Nursery) -> None:
    """A VXI-11 instrument, which has few links, is told that one is not needed any more."""
    meter = Vxi11Meter()
    await nursery.start(meter.serve)
    async with opened(meter) as transport:
        await ask(transport, b"A\n", "nothing", timeout=0.1)
        await trio.sleep(0.5)
    assert meter.unlinked == 1


async def test_connections_are_tuned(meter: Meter) -> None:
    """All TCP connections below have keepalive on and Nagle's algorithm off."""
    async with opened(meter) as transport:
        inside: Any = transport._connection.inside  # type: ignore[union-attr]
        assert len(inside._links) == (2 if isinstance(meter, HislipMeter) else 1)
        for link in inside._links:
            assert link.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
