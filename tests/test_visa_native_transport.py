"""The native transport against servers on loopback that keep the rules, and against some that do not."""

import errno
import math
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from typing import Literal

import pytest
import trio

from trio_daq.errors import LineOpenError
from trio_daq.testing import CancelAtStep
from trio_daq.visa import VisaSessionConfig
from trio_daq.visa.native_transport import NativeTransport
from trio_daq.visa.tcp_connect import host_and_port
from trio_daq.visa.transport import (
    BlockError,
    ConnectionLostError,
    Request,
    TransportError,
    TransportTimeoutError,
    UnaskedInputError,
)

Instrument = Callable[[trio.SocketStream], Awaitable[None]]

ASK = Request(b"A?\n", "message")
BLOCK = Request(b"B?\n", "block")
TELL = Request(b"C\n", "nothing")
MORE = Request(b"", "message")

LATE = 0.05
"""Seconds that a wait may last beyond its deadline; a shared machine is given twice as much."""


@asynccontextmanager
async def served(instrument: Instrument) -> AsyncIterator[str]:
    """Serve on loopback for the length of the block, and give the resource name."""

    async def client(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await instrument(stream)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, client, 0, host="127.0.0.1"))
        yield f"TCPIP::127.0.0.1::{listener.socket.getsockname()[1]}::SOCKET"
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def connected(instrument: Instrument, **settings: object) -> AsyncIterator[NativeTransport]:
    """Serve, and give an open transport to it."""
    async with served(instrument) as resource:
        transport = NativeTransport(VisaSessionConfig(resource=resource, **settings))  # type: ignore[arg-type]
        await transport.open(2)
        try:
            yield transport
        finally:
            with trio.CancelScope(shield=True):
                await transport.aclose(0.1, abort=True)


def says(*chunks: bytes | float) -> Instrument:
    """Make an instrument that answers every line by *chunks*, a number being a pause in seconds."""

    async def instrument(stream: trio.SocketStream) -> None:
        async for data in stream:
            for _ in range(data.count(b"\n")):
                for chunk in chunks:
                    if isinstance(chunk, bytes):
                        await stream.send_all(chunk)
                    else:
                        await trio.sleep(chunk)

    return instrument


async def echo(stream: trio.SocketStream) -> None:
    """Answer every line by itself."""
    async for data in stream:
        await stream.send_all(data)


async def silent(stream: trio.SocketStream) -> None:
    """Read and say nothing."""
    async for _ in stream:
        pass


async def deaf(stream: trio.SocketStream) -> None:
    """Never read."""
    await trio.sleep_forever()


async def flooding(stream: trio.SocketStream) -> None:
    """Send for ever, and never what ends a reply."""
    await stream.receive_some(1)
    while True:
        await stream.send_all(b"x" * 65536)


def reset(stream: trio.SocketStream) -> None:
    """Close a connection by a reset."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    stream.socket.close()


def soon(seconds: float = 2.0) -> float:
    return trio.current_time() + seconds


async def ask(transport: NativeTransport, *requests: Request, timeout: float = 2.0) -> list[bytes]:
    return await transport.exchange(requests, soon(timeout))


async def until_readable(transport: NativeTransport) -> None:
    """Wait until something has come that nobody has read."""
    assert transport._socket is not None
    with trio.fail_after(2):
        await trio.lowlevel.wait_readable(transport._socket)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0


async def descriptors_fall_to(number: int) -> None:
    """Wait until no more are open; the server lets go of its end a moment after it sees the end of ours."""
    with trio.fail_after(2):
        while descriptors() > number:  # noqa: ASYNC110 - nothing tells of it
            await trio.sleep(0.001)


# --- connecting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resource", "place"),
    [
        ("TCPIP::meter.lab::5025::SOCKET", ("meter.lab", 5025)),
        ("tcpip12::10.0.0.1::1::socket", ("10.0.0.1", 1)),
        ("TCPIP0::[fe80::1%eth0]::65535::SOCKET", ("fe80::1%eth0", 65535)),
        ("TCPIP0::::1::5025::SOCKET", ("::1", 5025)),
    ],
)
def test_resource_name_tells_host_and_port(resource: str, place: tuple[str, int]) -> None:
    """Board and case do not matter, and an IPv6 address may stand in brackets or not."""
    assert host_and_port(resource) == place


@pytest.mark.parametrize(
    ("resource", "reason"),
    [
        ("TCPIP::127.0.0.1::0::SOCKET", "port 0 is not between 1 and 65535"),
        ("TCPIP::127.0.0.1::65536::SOCKET", "port 65536 is not between 1 and 65535"),
        ("TCPIP::127.0.0.1::x::SOCKET", "not of the form TCPIP::HOST::PORT::SOCKET"),
        ("TCPIP::127.0.0.1::INSTR", "not of the form TCPIP::HOST::PORT::SOCKET"),
        (f"TCPIP::{'x' * 64}.lab::5025::SOCKET", "there is no such host"),
    ],
)
async def test_bad_resource_name_is_refused_in_words(resource: str, reason: str) -> None:
    """What is wrong with a name is said, and by the error that every failure to open has."""
    with pytest.raises(LineOpenError, match=reason) as caught:
        await NativeTransport(VisaSessionConfig(resource=resource)).open(1)
    assert caught.value.resource == resource


async def test_refused_connection_is_explained() -> None:
    """The error says that it was refused, and what to look at."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    with pytest.raises(LineOpenError, match="the connection was refused") as caught:
        await NativeTransport(VisaSessionConfig(resource=f"TCPIP::localhost::{port}::SOCKET")).open(1)
    assert "another program" in caught.value.hint


async def test_unknown_host_is_explained() -> None:
    """The error says that there is no such host."""

    class NoNames(trio.abc.HostnameResolver):
        async def getaddrinfo(self, *_: object, **__: object) -> list[object]:  # type: ignore[override]
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        async def getnameinfo(self, *_: object) -> tuple[str, str]:
            raise NotImplementedError

    trio.socket.set_custom_hostname_resolver(NoNames())
    with pytest.raises(LineOpenError, match="there is no such host") as caught:
        await NativeTransport(VisaSessionConfig(resource="TCPIP::meter.lab::5025::SOCKET")).open(1)
    assert caught.value.hint


async def test_host_that_does_not_answer_is_given_up_in_time() -> None:
    """Opening is bounded by its timeout, and then no descriptor is left."""
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        waiting = []
        try:
            for _ in range(3):  # as many as the queue takes; further ones get no answer
                waiting.append(socket.socket())
                waiting[-1].setblocking(False)
                assert waiting[-1].connect_ex(server.getsockname()) in (0, errno.EINPROGRESS)
            await trio.sleep(0.05)
            before, began = descriptors(), trio.current_time()
            with pytest.raises(LineOpenError, match="it did not answer in time") as caught:
                await NativeTransport(
                    VisaSessionConfig(resource=f"TCPIP::127.0.0.1::{server.getsockname()[1]}::SOCKET")
                ).open(0.2)
            assert 0.2 <= trio.current_time() - began < 0.2 + 2 * LATE
            assert caught.value.hint == "Is it on and on this network?"
            assert descriptors() == before
        finally:
            for each in waiting:
                each.close()


async def test_close_during_opening_leaves_nothing_open() -> None:
    """Whoever opens is told, and no descriptor is left."""
    async with served(silent) as resource:
        before = descriptors()
        transport = NativeTransport(VisaSessionConfig(resource=resource))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.aclose, 0.1)
            with pytest.raises(LineOpenError, match="it was closed"):
                await transport.open(1)
        await descriptors_fall_to(before)


async def test_ipv6_address_is_reached() -> None:
    """A literal IPv6 address in the resource name is connected to."""
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    with closing(listener):
        transport = NativeTransport(
            VisaSessionConfig(resource=f"TCPIP::[::1]::{listener.getsockname()[1]}::SOCKET", transport="native")
        )
        await transport.open(1)
        with closing(listener.accept()[0]):
            pass
        await transport.aclose(0.1)


async def test_socket_is_quick_and_notices_a_vanished_host() -> None:
    """No 40 ms wait for acknowledgements, and probes that find out within 20 s that nobody is there."""
    async with connected(silent) as transport:
        connection = transport._socket
        assert connection is not None
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_KEEPIDLE") and hasattr(socket, "TCP_USER_TIMEOUT"):
            idle, between, count, unacknowledged = (
                connection.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
                for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
            )
            assert idle + between * count <= 20
            assert unacknowledged == 15_000


async def test_transport_is_opened_once() -> None:
    """A transport is one connection: it does not open a second one, nor one after it was closed."""
    async with connected(echo) as transport:
        with pytest.raises(LineOpenError, match="before"):
            await transport.open(1)
        assert await ask(transport, ASK) == [b"A?"]
        await transport.aclose(0.1)
        with pytest.raises(LineOpenError):
            await transport.open(1)
        with pytest.raises(ConnectionLostError, match="it was closed"):
            await ask(transport, ASK)
    with pytest.raises(ConnectionLostError, match="not open"):
        await ask(NativeTransport(VisaSessionConfig(resource="TCPIP::h::1::SOCKET")), ASK)


# --- messages --------------------------------------------------------------------------------------------------------


async def test_message_comes_without_its_termination_however_it_is_cut() -> None:
    """A termination of two bytes may be cut in two, and neither of them alone ends a message."""
    reply = b"1\n2\r3\r\r\n"
    for cut in range(1, len(reply)):
        async with connected(says(reply[:cut], 0.003, reply[cut:]), read_termination="\r\n") as transport:
            assert await ask(transport, ASK) == [b"1\n2\r3\r"]
            assert (transport.sent, transport.completed) == ("yes", 1)


async def test_requests_of_one_exchange_go_one_after_the_other() -> None:
    """Each is written when the one before it was answered; the replies come in order, b"" for none."""
    log = []

    async def instrument(stream: trio.SocketStream) -> None:
        async for data in stream:
            log.append(data)
            if data.endswith(b"?\n"):
                await trio.sleep(0.02)
                log.append(b"re")
                await stream.send_all(b"re " + data)

    async with connected(instrument) as transport:
        asked = [Request(b"1?\n", "message"), Request(b"2?\n", "message"), TELL]
        assert await ask(transport, *asked) == [b"re 1?", b"re 2?", b""]
        assert transport.completed == 3
        await trio.sleep(0.02)
    assert log == [b"1?\n", b"re", b"2?\n", b"re", b"C\n"]


async def test_another_reply_can_be_read_without_asking() -> None:
    """A request without bytes takes the next message, also one that came with the last."""
    async with connected(says(b"1\n2\n")) as transport:
        assert await ask(transport, ASK, MORE) == [b"1", b"2"]
        assert await ask(transport, ASK) == [b"1"]
        assert await ask(transport, MORE) == [b"2"]
        assert transport.sent == "no"


async def test_message_that_never_ends_fills_no_memory() -> None:
    """Above the size that is allowed it is an error, long before the deadline, and others run meanwhile."""
    async with connected(flooding, max_block=1_000_000) as transport:
        with pytest.raises(TransportError, match="bytes came without") as caught:
            await ask(transport, ASK, timeout=20)
        assert not isinstance(caught.value, TransportTimeoutError)
        assert 1_000_000 < len(transport._input) < 1_200_000


async def test_longest_message_is_taken() -> None:
    """A message of just the size that is allowed is no error, even if its termination comes late and cut."""
    async with connected(
        says(b"x" * 1000, 0.01, b"\r", 0.01, b"\n"), max_block=1000, read_termination="\r\n"
    ) as transport:
        assert await ask(transport, ASK) == [b"x" * 1000]


async def test_writes_in_a_row_give_others_a_turn() -> None:
    """Exchanges that need not wait run no other task out of its time."""
    async with connected(silent) as transport, trio.open_nursery() as nursery:
        turns = 0

        @nursery.start_soon
        async def other() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        for _ in range(50):
            await ask(transport, TELL)
        assert turns > 25
        nursery.cancel_scope.cancel()


# --- what nobody asked for -------------------------------------------------------------------------------------------


async def test_unasked_bytes_stop_the_exchange_before_it_begins() -> None:
    """They are handed over, nothing is written, and afterwards the connection is as it was."""
    asked = []

    async def instrument(stream: trio.SocketStream) -> None:
        await stream.send_all(b"boot\n")
        async for data in stream:
            asked.append(data)
            await stream.send_all(b"ok\n")

    async with connected(instrument) as transport:
        await until_readable(transport)
        with pytest.raises(UnaskedInputError) as caught:
            await ask(transport, ASK)
        assert caught.value.data == b"boot\n"
        assert (transport.sent, transport.completed, asked) == ("no", 0, [])
        assert await ask(transport, ASK) == [b"ok"]


async def test_second_reply_reaches_no_later_request() -> None:
    """A reply too many stops the next exchange, and also the next request of the same one."""
    async with connected(says(b"1\n2\n")) as transport:
        assert await ask(transport, ASK) == [b"1"]
        with pytest.raises(UnaskedInputError) as unasked:
            await ask(transport, ASK)
        assert unasked.value.data == b"2\n"
        with pytest.raises(TransportError, match="after 1 requests, 2 bytes had come unasked") as caught:
            await ask(transport, ASK, ASK)
        assert not isinstance(caught.value, UnaskedInputError)
        assert (transport.sent, transport.completed) == ("no", 1)


# --- the other end goes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["end", "reset"])
async def test_connection_that_went_is_noticed_before_writing(how: str) -> None:
    """The end of the stream and a reset are found before the first byte is written."""

    async def instrument(stream: trio.SocketStream) -> None:
        if how == "reset":
            reset(stream)

    async with connected(instrument) as transport:
        await until_readable(transport)
        for _ in range(2):
            with pytest.raises(ConnectionLostError):
                await ask(transport, ASK)
            assert (transport.sent, transport.completed) == ("no", 0)
        with pytest.raises(ConnectionLostError):
            await transport.drain(0, 1)


@pytest.mark.parametrize("how", ["end", "reset"])
@pytest.mark.parametrize("request_", [ASK, BLOCK])
async def test_connection_that_goes_in_a_reply_is_lost_at_once(how: str, request_: Request) -> None:
    """Half a reply and then the end is no time-out, and the request counts as sent."""

    async def instrument(stream: trio.SocketStream) -> None:
        await stream.receive_some(100)
        await stream.send_all(b"#15ab")
        await trio.sleep(0.02)
        if how == "reset":
            reset(stream)

    async with connected(instrument) as transport:
        began = trio.current_time()
        with pytest.raises(ConnectionLostError):
            await ask(transport, request_, timeout=5)
        assert trio.current_time() - began < 1
        assert (transport.sent, transport.completed) == ("yes", 0)


async def test_last_reply_before_the_end_is_read() -> None:
    """An instrument that answers and hangs up has answered."""

    async def instrument(stream: trio.SocketStream) -> None:
        await stream.receive_some(100)
        await stream.send_all(b"bye\n")

    async with connected(instrument) as transport:
        assert await ask(transport, ASK) == [b"bye"]
        await until_readable(transport)
        with pytest.raises(ConnectionLostError, match="closed the connection"):
            await ask(transport, ASK)


async def test_reset_while_writing_tells_how_far_it_came() -> None:
    """When half of a request was taken, whether it was sent is unknown."""

    async def instrument(stream: trio.SocketStream) -> None:
        await trio.sleep(0.05)
        reset(stream)

    async with connected(instrument) as transport:
        with pytest.raises(ConnectionLostError):
            await ask(transport, Request(b"x" * 50_000_000, "nothing"))
        assert (transport.sent, transport.completed) == ("unknown", 0)


# --- deadlines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("request_", "told"), [(ASK, "no answer came"), (BLOCK, "no header of a block came")])
async def test_silence_costs_no_more_than_the_deadline(request_: Request, told: str) -> None:
    """The exchange ends at its deadline; the request counts as sent."""
    async with connected(silent) as transport:
        deadline = soon(0.1)
        with pytest.raises(TransportTimeoutError, match=told):
            await transport.exchange([TELL, request_], deadline)
        assert 0 <= trio.current_time() - deadline < 2 * LATE
        assert (transport.sent, transport.completed) == ("yes", 1)


@pytest.mark.parametrize("request_", [ASK, BLOCK])
async def test_bytes_that_keep_coming_put_off_no_deadline(request_: Request) -> None:
    """A reply that dribbles is given up at the deadline, as silence is."""
    async with connected(says(b"#510000", *(b"x", 0.005) * 200)) as transport:
        deadline = soon(0.1)
        with pytest.raises(TransportTimeoutError):
            await transport.exchange([request_], deadline)
        assert 0 <= trio.current_time() - deadline < 2 * LATE


async def test_time_out_tells_what_had_come() -> None:
    """Who has set a wrong termination sees it in the message."""
    async with connected(says(b"1.5\r")) as transport:
        with pytest.raises(TransportTimeoutError, match=re.escape(r"only '1.5\\r' came, and no b'\n', in time")):
            await ask(transport, ASK, timeout=0.05)


async def test_time_out_does_not_spoil_the_next_exchange() -> None:
    """The alarm of one exchange rings in no other."""
    async with connected(says(0.1, b"1\n")) as transport:
        with pytest.raises(TransportTimeoutError):
            await ask(transport, ASK, timeout=0.05)
        assert await transport.drain(0.1, 1) == b"1\n"
        assert await ask(transport, ASK, timeout=0.3) == [b"1"]
        assert await transport.exchange([ASK], math.inf) == [b"1"]
        assert transport._alarm.time == math.inf


async def test_nothing_is_sent_after_the_deadline() -> None:
    """A deadline that has passed already stops the exchange before its first byte."""
    asked = bytearray()

    async def instrument(stream: trio.SocketStream) -> None:
        async for data in stream:
            asked.extend(data)

    async with connected(instrument) as transport:
        with pytest.raises(TransportTimeoutError):
            await transport.exchange([ASK], trio.current_time())
        assert (transport.sent, transport.completed) == ("no", 0)
        await trio.sleep(0.02)
        assert asked == b""


async def test_write_to_a_deaf_instrument_ends_in_time() -> None:
    """Half taken: unknown. Once the system takes nothing any more: no."""
    async with connected(deaf) as transport:
        endless = Request(b"x" * 50_000_000, "nothing")
        outcomes = []
        while "no" not in outcomes:
            deadline = soon(0.1)
            with pytest.raises(TransportTimeoutError, match="did not take"):
                await transport.exchange([endless], deadline)
            assert 0 <= trio.current_time() - deadline < 2 * LATE
            outcomes.append(transport.sent)
            assert len(outcomes) < 20
        assert outcomes == ["unknown"] * (len(outcomes) - 1) + ["no"]
        assert len(outcomes) > 1


async def test_large_write_arrives_whole() -> None:
    """What the system takes in pieces comes out as it went in."""
    data = bytes(range(256)) * 40_000 + b"\n"
    came = bytearray()

    async def instrument(stream: trio.SocketStream) -> None:
        await trio.sleep(0.02)
        async for chunk in stream:
            came.extend(chunk)
            if len(came) == len(data):
                await stream.send_all(b"ok\n")

    async with connected(instrument) as transport:
        assert await ask(transport, Request(data, "message"), timeout=10) == [b"ok"]
    assert came == data


async def test_reply_that_came_by_the_deadline_counts() -> None:
    """When the loop was held up past the deadline, what lies in the socket by then is still a reply."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        resource = f"TCPIP::127.0.0.1::{server.getsockname()[1]}::SOCKET"
        transport = NativeTransport(VisaSessionConfig(resource=resource))
        await transport.open(1)
        with closing(server.accept()[0]) as instrument:
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def answer_and_hold_up() -> None:
                    await trio.sleep(0.02)
                    instrument.sendall(b"1.5\n")
                    time.sleep(0.2)  # noqa: ASYNC251 - it is what the test is about

                assert await ask(transport, ASK, timeout=0.1) == [b"1.5"]
        await transport.aclose(0.1)


# --- blocks ----------------------------------------------------------------------------------------------------------


class Told:
    """What was told of the progress of blocks."""

    def __init__(self) -> None:
        self.all: list[tuple[int, int | None]] = []

    def progress(self, received: int, total: int | None) -> None:
        self.all.append((received, total))


async def test_block_is_the_same_however_it_is_cut() -> None:
    """The bytes of a block are counted, so a termination among them ends nothing; progress tells of all."""
    reply = b"#15a\nb\n#\n"
    for cut in range(1, len(reply)):
        async with connected(says(reply[:cut], 0.003, reply[cut:])) as transport:
            told = Told()
            assert await transport.exchange([BLOCK, BLOCK], soon(), told.progress) == [b"a\nb\n#"] * 2
            assert told.all.count((5, 5)) == 2
            assert transport.completed == 2


@pytest.mark.parametrize("size", [0, 1, 9, 10, 65_530, 65_536, 1_000_001])
async def test_block_of_any_size_arrives(size: int) -> None:
    """Sizes around those of a read make no difference."""
    payload = os.urandom(size)
    async with connected(says(b"#%d%d" % (len(str(size)), size) + payload + b"\n")) as transport:
        assert await ask(transport, BLOCK, BLOCK, timeout=5) == [payload, payload]


async def test_termination_of_a_block_may_come_late() -> None:
    """It belongs to the block: the exchange waits for it, and the next one finds nothing left."""
    async with connected(says(b"#12ab", 0.05, b"\r", 0.05, b"\n"), read_termination="\r\n") as transport:
        assert await ask(transport, BLOCK) == [b"ab"]
        assert await ask(transport, BLOCK) == [b"ab"]


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (b"#15ab", "2 of 5 bytes of the block"),
        (b"#12ab", "2 of 2 bytes of the block"),
        (b"#41", "no header of a block"),
    ],
)
async def test_block_that_does_not_end_is_a_time_out(reply: bytes, told: str) -> None:
    """Too few bytes, no termination, half a header: the deadline ends the wait, and the message says what had come."""
    async with connected(says(reply)) as transport:
        deadline = soon(0.1)
        with pytest.raises(TransportTimeoutError, match=told):
            await transport.exchange([BLOCK], deadline)
        assert 0 <= trio.current_time() - deadline < 2 * LATE


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (b'-113,"Undefined header"\n', "Undefined header"),
        (b"#0abc\n", "indefinite"),
        (b"#9999999999", "999999999"),
        (b"#41001xx", "1001"),
        (b"#2-1\n", "-1"),
        (b"#a123", "#a"),
        (b":CURVE #0" + b"x" * 500, "indefinite"),
    ],
)
async def test_what_is_no_block_is_refused_at_once(reply: bytes, told: str) -> None:
    """Text, an indefinite block and a length that is none or too large are errors as soon as they are seen."""
    async with connected(says(reply), max_block=1000) as transport:
        began = trio.current_time()
        with pytest.raises(BlockError, match=told) as caught:
            await ask(transport, BLOCK, timeout=5)
        assert trio.current_time() - began < 1
        assert caught.value.data
        assert reply.startswith(caught.value.data)
        assert (transport.sent, transport.completed) == ("yes", 0)


async def test_bytes_between_block_and_termination_are_no_part_of_it() -> None:
    """A block whose length is told too short is an error, not a short block."""
    async with connected(says(b"#12abc\n")) as transport:
        with pytest.raises(BlockError, match="followed the block") as caught:
            await ask(transport, BLOCK)
        assert caught.value.data == b"c"


# --- making clean, and the end ---------------------------------------------------------------------------------------


async def test_drain_reads_until_it_is_quiet() -> None:
    """Late bytes put off the end of the silence; their beginning is returned; then there is nothing left."""
    async with connected(says(0.03, b"a\n", 0.03, b"x" * 100_000, 0.03, b"\n")) as transport:
        with pytest.raises(TransportTimeoutError):
            await ask(transport, ASK, timeout=0.01)
        drained = await transport.drain(0.1, 5)
        assert drained == b"a\n" + b"x" * (65536 - 2)
        assert await transport.drain(0, 1) == b""


async def test_drain_without_quiet_takes_what_is_there() -> None:
    """Also what was read before and not taken; and it waits for nothing."""
    async with connected(says(b"1\n2\n", 0.05, b"3\n")) as transport:
        assert await ask(transport, ASK) == [b"1"]
        began = trio.current_time()
        assert await transport.drain(0, 1) == b"2\n"
        assert trio.current_time() - began < 0.03
        assert await transport.drain(0.1, 1) == b"3\n"


async def test_drain_of_a_flood_ends_in_time() -> None:
    """An instrument that never stops is given up at the timeout, whatever silence is asked for."""
    async with connected(flooding) as transport:
        await ask(transport, TELL)
        for quiet in (0.0, 0.05):
            await until_readable(transport)
            began = trio.current_time()
            if quiet:
                with pytest.raises(TransportTimeoutError):
                    await transport.drain(quiet, 0.1)
            else:
                with suppress(TransportTimeoutError):
                    await transport.drain(quiet, 0.1)
            assert trio.current_time() - began < 0.1 + 2 * LATE


async def test_silence_longer_than_the_time_for_it_is_not_claimed() -> None:
    """A drain that could not wait for the whole silence does not say that it was quiet."""
    async with connected(silent) as transport:
        with pytest.raises(TransportTimeoutError):
            await transport.drain(0.2, 0.05)
        assert await transport.drain(0.05, 0.05) == b""


async def test_device_clear_is_refused() -> None:
    """A raw socket has none, and says so."""
    async with connected(echo) as transport:
        with pytest.raises(TransportError, match="no device clear"):
            await transport.clear(1)
        assert await ask(transport, ASK) == [b"A?"]


async def test_close_delivers_what_was_written() -> None:
    """The instrument reads it to the end, and sees the end, though something it sent was never read."""
    came, ended = bytearray(), trio.Event()

    async def instrument(stream: trio.SocketStream) -> None:
        came.extend(await stream.receive_some(10))
        await stream.send_all(b"unread\n")
        await trio.sleep(0.04)
        async for data in stream:
            came.extend(data)
        ended.set()

    async with connected(instrument) as transport:
        await ask(transport, Request(b"x" * 200_000, "nothing"))
        await until_readable(transport)
        assert await transport.aclose(2)
        with trio.fail_after(2):
            await ended.wait()
    assert len(came) == 200_000


async def test_abort_throws_away_what_was_not_sent() -> None:
    """The instrument sees a reset instead of the rest of a command whose caller was told that it failed."""
    came, outcome = 0, ""
    over, go_on = trio.Event(), trio.Event()

    async def instrument(stream: trio.SocketStream) -> None:
        nonlocal came, outcome
        await go_on.wait()
        try:
            async for data in stream:
                came += len(data)
            outcome = "end"
        except trio.BrokenResourceError:
            outcome = "reset"
        over.set()

    async with connected(instrument) as transport:
        with pytest.raises(TransportTimeoutError):
            await ask(transport, Request(b"x" * 50_000_000, "nothing"), timeout=0.05)
        began = trio.current_time()
        assert await transport.aclose(1, abort=True)
        assert trio.current_time() - began < LATE
        go_on.set()
        with trio.fail_after(2):
            await over.wait()
    assert outcome == "reset"
    assert came < 10_000_000


@pytest.mark.parametrize("instrument", [flooding, deaf, silent])
@pytest.mark.parametrize("abort", [False, True])
async def test_close_is_bounded_complete_and_idempotent(instrument: Instrument, abort: bool) -> None:
    """Whatever the instrument does, it ends within its timeout and leaves no descriptor, also when cancelled."""
    async with served(instrument) as resource:
        before = descriptors()
        transport = NativeTransport(VisaSessionConfig(resource=resource))
        await transport.open(1)
        await ask(transport, TELL)
        began = trio.current_time()
        with trio.CancelScope() as scope:
            scope.cancel()
            assert await transport.aclose(0.1, abort=abort)
            assert await transport.aclose(0.1)
        assert not scope.cancelled_caught
        assert trio.current_time() - began < 0.1
        await descriptors_fall_to(before + (instrument is deaf))  # that one holds its end


@pytest.mark.parametrize("request_", [ASK, Request(b"x" * 50_000_000, "nothing")])
async def test_close_wakes_an_exchange(request_: Request) -> None:
    """An exchange that waits is told at once that the connection is gone."""
    async with connected(deaf) as transport, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def close() -> None:
            await trio.sleep(0.02)
            await transport.aclose(0.1, abort=True)

        began = trio.current_time()
        with pytest.raises(ConnectionLostError, match="it was closed"):
            await ask(transport, request_, timeout=5)
        assert trio.current_time() - began < 1


# --- cancellation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
async def test_cancelled_anywhere_the_transport_can_be_drained_and_closed(when: Literal["before", "after"]) -> None:
    """At whatever step: no alarm stays set, after a drain the next reply is the right one, no descriptor is left."""

    async def instrument(stream: trio.SocketStream) -> None:
        async for data in stream:
            if data != BLOCK.data:
                await stream.send_all(data)
                continue
            for part in (b"#34", b"00" + b"\n" * 200, b"\n" * 200, b"\n"):
                await stream.send_all(part)
                await trio.sleep(0.002)

    steps = 0
    async with served(instrument) as resource:
        while True:
            before = descriptors()
            transport = NativeTransport(VisaSessionConfig(resource=resource))
            with trio.CancelScope() as scope, CancelAtStep(scope, steps + 1, when) as cancelling:
                await transport.open(1)
                assert await ask(transport, ASK, BLOCK, ASK) == [b"A?", b"\n" * 400, b"A?"]
                assert await transport.drain(0.002, 1) == b""
            assert transport._alarm.time == math.inf
            if transport._socket is not None:
                await transport.drain(0.02, 1)
                assert await ask(transport, Request(b"next\n", "message")) == [b"next"]
            assert await transport.aclose(0.1)
            await descriptors_fall_to(before)
            if not cancelling.reached:
                break
            steps += 1
    assert 8 <= steps <= 60
