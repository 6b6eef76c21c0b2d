"""The PyVISA transport over raw sockets and serial lines: how replies end, what is refused, what an error means."""

import gc
import os
import pty
import re
import socket
import threading
import time
import tty
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from trio_daq.errors import LineOpenError
from trio_daq.visa import VisaSessionConfig
from trio_daq.visa.pyvisa_transport import PyvisaTransport
from trio_daq.visa.transport import (
    BlockError,
    ConnectionLostError,
    Request,
    Transport,
    TransportError,
    TransportTimeoutError,
    UnaskedInputError,
)


class Meter:
    r"""An instrument on loopback TCP.

    ``SAY? X`` answers with X after its escapes were resolved, ``SLOW? s X`` the same in pieces of one byte every *s*
    seconds, ``GONE`` closes, ``FLOOD`` never stops to send. While *deaf* it reads nothing.
    """

    def __init__(self) -> None:
        self.resource = ""
        self.lines: list[bytes] = []
        self.blocks: dict[bytes, bytes] = {}
        self.deaf = False
        self.hear = trio.Event()
        self.streams: list[trio.SocketStream] = []
        self.resets = 0

    async def serve(self, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, self._client, 0)
            self.resource = f"TCPIP::127.0.0.1::{listeners[0].socket.getsockname()[1]}::SOCKET"
            task_status.started()

    async def _client(self, stream: trio.SocketStream) -> None:
        self.streams.append(stream)
        if self.deaf:
            await self.hear.wait()
        data = b""
        try:
            async for chunk in stream:
                data += chunk
                while b"\n" in data:
                    line, _, data = data.partition(b"\n")
                    self.lines.append(line)
                    await self._answer(stream, line)
        except trio.BrokenResourceError:
            self.resets += 1

    async def _answer(self, stream: trio.SocketStream, line: bytes) -> None:
        verb, _, rest = line.partition(b" ")
        if line in self.blocks:
            await stream.send_all(self.blocks[line])
        elif verb == b"SAY?":
            await stream.send_all(rest.decode("unicode_escape").encode("latin-1"))
        elif verb == b"SLOW?":
            pause, _, text = rest.partition(b" ")
            for byte in text.decode("unicode_escape").encode("latin-1"):
                await trio.sleep(float(pause))
                await stream.send_all(bytes([byte]))
        elif verb == b"GONE":
            await stream.send_eof()
        elif verb == b"FLOOD":
            while True:
                await stream.send_all(b"x" * 1000)
                await trio.sleep(0.005)


@pytest.fixture
async def meter(nursery: trio.Nursery) -> AsyncIterator[Meter]:
    instrument = Meter()
    await nursery.start(instrument.serve)
    yield instrument
    instrument.hear.set()


@asynccontextmanager
async def opened(resource: str, **settings: Any) -> AsyncIterator[PyvisaTransport]:
    transport = PyvisaTransport(VisaSessionConfig(resource=resource, **settings))
    await transport.open(2)
    try:
        yield transport
    finally:
        assert await transport.aclose(2, abort=True)


async def ask(transport: Transport, *requests: tuple[bytes, str], timeout: float = 2.0, progress: Any = None) -> Any:
    replies = await transport.exchange(
        [Request(data, reply) for data, reply in requests],  # type: ignore[arg-type]
        trio.current_time() + timeout,
        progress,
    )
    return replies[0] if len(requests) == 1 else replies


async def wait_until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - threads and peers have no event
            await trio.sleep(0.01)


# --- how replies end -----------------------------------------------------------------------------------------------


async def test_several_requests_are_one_exchange(meter: Meter) -> None:
    """Writes, queries and blocks are carried out in order, and each gets its own reply, nothing for a write."""
    meter.blocks[b"CURV?"] = b"#15a\nb\nc\n"
    async with opened(meter.resource) as transport:
        requests = [
            (b"VOLT 1\n", "nothing"),
            (b"SAY? 1\\n\n", "message"),
            (b"CURV?\n", "block"),
            (b"*RST\n", "nothing"),
        ]
        assert await ask(transport, *requests) == [b"", b"1", b"a\nb\nc", b""]
        assert (transport.sent, transport.completed) == ("yes", 4)
        await wait_until(lambda: meter.lines == [b"VOLT 1", b"SAY? 1\\n", b"CURV?", b"*RST"])


@pytest.mark.parametrize("termination", ["\n", "\r\n", "\n\n", "END\n"])
async def test_reply_ends_with_the_whole_termination(meter: Meter, termination: str) -> None:
    """VISA stops at the last character of a termination; a reply that holds that character alone goes on."""
    reply = "a\rb" if termination == "\n" else "a\nb"
    async with opened(meter.resource, read_termination=termination) as transport:
        sent = (reply + termination).encode().replace(b"\n", b"\\n").replace(b"\r", b"\\r")
        for _ in range(2):
            assert await ask(transport, (b"SAY? " + sent + b"\n", "message")) == reply.encode()


async def test_another_reply_is_read_without_asking(meter: Meter) -> None:
    """A request without bytes reads one more reply to the one before it."""
    async with opened(meter.resource) as transport:
        replies = await ask(transport, (b"SAY? 1\\n2\\n#12ab\\n\n", "message"), (b"", "message"), (b"", "block"))
        assert replies == [b"1", b"2", b"ab"]


async def test_slow_reply_is_waited_for_in_one_piece(meter: Meter) -> None:
    """A reply that trickles in is complete if its last byte comes by the deadline."""
    async with opened(meter.resource) as transport:
        assert await ask(transport, (b"SLOW? 0.05 FIRST-SECOND\\n\n", "message"), timeout=3) == b"FIRST-SECOND"


async def test_trickle_does_not_stretch_the_deadline(meter: Meter) -> None:
    """Bytes that come now and then do not make a reply be waited for any longer than its deadline."""
    async with opened(meter.resource) as transport:
        began = time.monotonic()
        with pytest.raises(TransportTimeoutError):
            await ask(transport, (b"SLOW? 0.1 " + b"x" * 40 + b"\n", "message"), timeout=0.5)
        assert 0.45 < time.monotonic() - began < 0.95
        assert (transport.sent, transport.completed) == ("yes", 0)


async def test_message_is_bounded(meter: Meter) -> None:
    """A reply of exactly max_block bytes is taken, a longer one is refused before it fills the memory."""
    meter.blocks[b"FITS?"] = b"x" * 100_000 + b"\r\n"
    meter.blocks[b"LONG?"] = b"x" * 100_001 + b"\r\n"
    async with opened(meter.resource, max_block=100_000, read_termination="\r\n") as transport:
        assert await ask(transport, (b"FITS?\n", "message")) == b"x" * 100_000
        with pytest.raises(TransportError, match="more than 100000 bytes"):
            await ask(transport, (b"LONG?\n", "message"))


async def test_block_is_counted(meter: Meter) -> None:
    """Bytes of a block are no termination, whatever they are, and the next reply is a message again."""
    payload = bytes(range(256)) * 8000
    meter.blocks[b"CURV?"] = b"#7%07d" % len(payload) + payload + b"\n"
    meter.blocks[b"NONE?"] = b"#10\n"
    told: list[tuple[int, int | None]] = []

    def progress(done: int, size: int | None) -> None:
        assert trio.lowlevel.in_trio_task() or trio.lowlevel.in_trio_run()
        told.append((done, size))

    async with opened(meter.resource) as transport:
        for _ in range(2):
            assert await ask(transport, (b"CURV?\n", "block"), progress=progress) == payload
            assert await ask(transport, (b"NONE?\n", "block")) == b""
            assert await ask(transport, (b"SAY? 5\\n\n", "message")) == b"5"
    assert told[-1] == (len(payload), len(payload))
    assert [done for done, _ in told[: len(told) // 2]] == sorted(done for done, _ in told[: len(told) // 2])


async def test_progress_that_fails_reaches_its_caller(meter: Meter) -> None:
    """An error of the callback is raised by the exchange and ends nobody else."""
    meter.blocks[b"CURV?"] = b"#15hello\n"
    async with opened(meter.resource) as transport:
        with pytest.raises(ZeroDivisionError):
            await ask(transport, (b"CURV?\n", "block"), progress=lambda done, size: 1 // 0)
        assert await ask(transport, (b"CURV?\n", "block")) == b"hello"


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (b"1.5E3\n", "no block"),
        (b"#0abc\n", "unknown length"),
        (b"#6200000\n", "allowed"),
        (b"#13abcd\n", "more bytes follow"),
    ],
)
async def test_what_is_no_block_is_refused(meter: Meter, reply: bytes, message: str) -> None:
    """A header that is none, too large, or without a length, or a block that is longer than it said, is an error."""
    meter.blocks[b"CURV?"] = reply
    async with opened(meter.resource, max_block=100_000) as transport:
        with pytest.raises(BlockError, match=message):
            await ask(transport, (b"CURV?\n", "block"))


# --- what is refused ---------------------------------------------------------------------------------------------


async def test_unasked_input_is_taken_out(meter: Meter) -> None:
    """Bytes that nobody asked for stop an exchange before its first byte is written, and are gone for the next."""
    async with opened(meter.resource) as transport:
        assert await ask(transport, (b"SAY? 1\\n2\\n\n", "message")) == b"1"
        with pytest.raises(UnaskedInputError) as caught:
            await ask(transport, (b"VOLT 1\n", "nothing"))
        assert (caught.value.data, transport.sent, transport.completed) == (b"2\n", "no", 0)
        assert await ask(transport, (b"SAY? 3\\n\n", "message")) == b"3"
        assert b"VOLT 1" not in meter.lines


async def test_expired_exchange_is_not_begun(meter: Meter) -> None:
    """With no time left nothing is written."""
    async with opened(meter.resource) as transport:
        with pytest.raises(TransportTimeoutError):
            await ask(transport, (b"VOLT 1\n", "nothing"), timeout=0)
        assert (transport.sent, transport.completed) == ("no", 0)
        await ask(transport, (b"SAY? 3\\n\n", "message"))
    assert meter.lines == [b"SAY? 3\\n"]


async def test_requests_after_a_timeout_are_not_written(meter: Meter) -> None:
    """A query that is not answered ends its exchange; what came after it never reaches the instrument."""
    async with opened(meter.resource) as transport:
        with pytest.raises(TransportTimeoutError):
            await ask(transport, (b"A\n", "nothing"), (b"MUTE?\n", "message"), (b"B\n", "nothing"), timeout=0.2)
        assert (transport.sent, transport.completed) == ("yes", 1)
    await trio.sleep(0.05)
    assert meter.lines == [b"A", b"MUTE?"]


async def test_cancelled_exchange_writes_nothing_more(meter: Meter) -> None:
    """After a cancellation the request in hand may go on in the thread, but none of the next is begun."""
    async with opened(meter.resource) as transport:
        with trio.move_on_after(0.1):
            await ask(transport, (b"SLOW? 0.1 abc\\n\n", "message"), (b"B\n", "nothing"), timeout=2)
        await trio.sleep(0.5)
        assert meter.lines == [b"SLOW? 0.1 abc\\n"]


async def test_instrument_that_does_not_read_is_given_up(meter: Meter) -> None:
    """pyvisa-py would wait for ever to write; we wait until the deadline, and no thread is left behind."""
    meter.deaf = True
    async with opened(meter.resource) as transport:
        began = time.monotonic()
        with pytest.raises(TransportTimeoutError):
            await ask(transport, (b"x" * 20_000_000, "nothing"), timeout=0.3)
        assert 0.25 < time.monotonic() - began < 0.6
        assert transport.sent == "unknown"
        assert transport._worker.abandoned() == ()


@pytest.mark.parametrize("abort", [False, True])
async def test_closing_ends_a_read_that_goes_on(meter: Meter, abort: bool) -> None:
    """A read whose caller was cancelled does not hold up closing: its connection ends under it."""
    transport = PyvisaTransport(VisaSessionConfig(resource=meter.resource))
    await transport.open(2)
    with trio.move_on_after(0.05):
        await ask(transport, (b"MUTE?\n", "message"), timeout=10)
    began = time.monotonic()
    assert await transport.aclose(0.5, abort=abort)
    assert time.monotonic() - began < (0.3 if abort else 0.6)
    await wait_until(lambda: not worker_threads())


async def test_abort_throws_away_what_was_not_sent(meter: Meter) -> None:
    """Closed with abort, a command that the instrument has not read yet is reset away instead of being delivered."""
    meter.deaf = True
    transport = PyvisaTransport(VisaSessionConfig(resource=meter.resource))
    await transport.open(2)
    with pytest.raises(TransportTimeoutError):
        await ask(transport, (b"x" * 20_000_000 + b"\n", "nothing"), timeout=0.2)
    assert await transport.aclose(1, abort=True)
    meter.hear.set()
    await wait_until(lambda: meter.resets == 1)
    assert meter.lines == []


async def test_raw_socket_has_no_device_clear(meter: Meter) -> None:
    """A clear that could not keep its promise is refused."""
    async with opened(meter.resource) as transport:
        with pytest.raises(TransportError, match="no device clear"):
            await transport.clear(1)


async def test_drain_waits_for_silence(meter: Meter) -> None:
    """Late bytes are dropped until none came for a while, and a flood is not drained for ever."""
    async with opened(meter.resource) as transport:
        with pytest.raises(TransportTimeoutError):
            await ask(transport, (b"SLOW? 0.15 ab\\n\n", "message"), timeout=0.1)
        assert await transport.drain(0.25, 2) == b"ab\n"
        assert await ask(transport, (b"SAY? 3\\n\n", "message")) == b"3"
        await ask(transport, (b"SAY? 4\\n\n", "nothing"))
        await trio.sleep(0.05)
        assert await transport.drain(0, 1) == b"4\n"
        await ask(transport, (b"FLOOD\n", "nothing"))
        began = time.monotonic()
        with pytest.raises(TransportTimeoutError):
            await transport.drain(0.1, 0.3)
        assert time.monotonic() - began < 0.6


# --- connections ---------------------------------------------------------------------------------------------------


async def test_closed_connection_is_told_as_lost(meter: Meter) -> None:
    """The end of the stream is no silence: it is told at once, in a read and before a write."""
    async with opened(meter.resource) as transport:
        began = time.monotonic()
        with pytest.raises(ConnectionLostError):
            await ask(transport, (b"GONE\n", "message"), timeout=2)
        with pytest.raises(ConnectionLostError):
            await ask(transport, (b"VOLT 1\n", "nothing"), timeout=2)
        assert transport.sent == "no"
        with pytest.raises(ConnectionLostError):
            await transport.drain(0.5, 1)
        assert time.monotonic() - began < 0.4


async def test_connection_is_tuned(meter: Meter) -> None:
    """Nagle's algorithm is off and keepalive on: a write before a query costs no 40 ms."""
    async with opened(meter.resource) as transport:
        connection: Any = transport._connection
        link = connection.inside._link
        assert link.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert link.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 15_000


@pytest.mark.parametrize(
    "form", ["TCPIP::127.0.0.1::{}::SOCKET", "TCPIP::127.0.0.1::hislip0,{}::INSTR", "TCPIP::127.0.0.1,{}::inst0::INSTR"]
)
async def test_refused_port_is_not_open(form: str) -> None:
    """A port that nobody listens on is told as that, though pyvisa-py takes it for open, and costs no file."""
    failures = []
    files = open_files()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        for _ in range(3):
            transport = PyvisaTransport(VisaSessionConfig(resource=form.format(unused.getsockname()[1])))
            with pytest.raises(LineOpenError, match="refused") as caught:
                await transport.open(2)
            failures.append(caught.value)  # with all that its traceback holds
            assert await transport.aclose(1)
    assert open_files() == files


async def test_open_that_is_cancelled_leaves_nothing(meter: Meter) -> None:
    """Whenever a cancellation comes while opening, the connection ends, without anybody closing it."""
    for tries in range(10):
        transport = PyvisaTransport(VisaSessionConfig(resource=meter.resource))
        with trio.move_on_after(0.0004 * tries):
            await transport.open(2)
        if transport._gone:
            await wait_until(lambda: not worker_threads())
        else:
            await transport.aclose(1)
    await wait_until(lambda: not worker_threads())


def worker_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("visa ")]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"))


async def test_two_hundred_cycles_leave_nothing(meter: Meter) -> None:
    """Opening and closing again and again leaves neither a file, nor a thread, nor a session in the library."""
    async with opened(meter.resource) as first:  # so that one manager, and one library, see all of them
        library: Any = first._connection._library  # type: ignore[union-attr]
        files = open_files()
        for number in range(200):
            async with opened(meter.resource) as transport:
                assert await ask(transport, (b"SAY? %d\\n\n" % number, "message")) == b"%d" % number
            await meter.streams.pop().aclose()
        gc.collect()
        await wait_until(lambda: len(worker_threads()) == 1)
        assert open_files() == files
        assert len(library.sessions) == 2  # the manager's and the first one


# --- serial lines ----------------------------------------------------------------------------------------------------


@pytest.fixture
def line() -> Iterator[tuple[str, int]]:
    """A pseudo-terminal: its resource name, and the instrument's end of it."""
    instrument, computer = pty.openpty()
    tty.setraw(instrument)
    tty.setraw(computer)
    yield f"ASRL{os.ttyname(computer)}::INSTR", instrument
    os.close(instrument)
    os.close(computer)


async def test_serial_line_is_a_stream_too(line: tuple[str, int]) -> None:
    """Terminations of two characters, blocks, unasked input and draining work on a serial line."""
    resource, instrument = line
    async with opened(resource, read_termination="\r\n") as transport, trio.open_nursery() as nursery:

        async def answer(reply: bytes) -> None:
            await trio.to_thread.run_sync(os.read, instrument, 100)
            os.write(instrument, reply)

        nursery.start_soon(answer, b"a\nb\r\n")
        assert await ask(transport, (b"A?\n", "message")) == b"a\nb"
        nursery.start_soon(answer, b"#15\r\n\r\n1\r\n")
        assert await ask(transport, (b"B?\n", "block")) == b"\r\n\r\n1"
        nursery.start_soon(answer, b"1\r\n2\r\n")
        assert await ask(transport, (b"C?\n", "message")) == b"1"
        await trio.sleep(0.05)
        with pytest.raises(UnaskedInputError, match=re.escape("2")):
            await ask(transport, (b"D?\n", "message"))
        assert transport.sent == "no"
        os.write(instrument, b"xyz")
        assert await transport.drain(0.1, 1) == b"xyz"
        with pytest.raises(TransportError, match="VI_ERROR_NSUP_OPER"):
            await transport.clear(1)


async def test_serial_deadline_is_not_doubled(line: tuple[str, int]) -> None:
    """pyvisa-py gives the last byte a whole timeout of its own; here the deadline holds, and the thread lives."""
    resource, instrument = line
    async with opened(resource) as transport, trio.open_nursery() as nursery:

        async def answer() -> None:
            await trio.sleep(0.7)
            os.write(instrument, b"late")

        nursery.start_soon(answer)
        began = time.monotonic()
        with pytest.raises(TransportTimeoutError):
            await ask(transport, (b"A?\n", "message"), timeout=0.8)
        assert time.monotonic() - began < 1.1
        assert transport._worker.abandoned() == ()
