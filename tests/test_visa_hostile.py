"""Corners of a VISA session: what a hostile instrument, a hurried caller or a careless program can do to it."""

import socket
import time
from collections.abc import Awaitable, Callable

import pytest
import trio

from trio_daq.errors import CommandTimeoutError, LineLostError, LineOpenError, SessionClosedError
from trio_daq.visa import VisaSessionConfig, VisaSessionManager, canonical_resource

Answer = Callable[[trio.SocketStream, str], Awaitable[bytes | None]]


class Instrument:
    """An instrument on loopback TCP that answers ``ECHO? X`` by X, and else as it is told by *answer*."""

    def __init__(self, answer: Answer | None = None) -> None:
        self.port = self.clients = self.connected = 0
        self.commands: list[str] = []
        self._answer = answer
        self._life = trio.CancelScope()

    @property
    def resource(self) -> str:
        return f"TCPIP::127.0.0.1::{self.port}::SOCKET"

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.CancelScope() as self._life:
            async with trio.open_nursery() as nursery:
                listeners = await nursery.start(trio.serve_tcp, self._client, self.port)
                self.port = listeners[0].socket.getsockname()[1]
                task_status.started()

    def switch_off(self) -> None:
        self._life.cancel()

    async def _client(self, stream: trio.SocketStream) -> None:
        self.clients += 1
        self.connected += 1
        data = b""
        try:
            async for chunk in stream:
                *lines, data = (data + chunk).split(b"\n")
                for line in lines:
                    await self._obey(stream, line.decode())
        except trio.BrokenResourceError:
            return
        finally:
            self.connected -= 1

    async def _obey(self, stream: trio.SocketStream, command: str) -> None:
        self.commands.append(command)
        verb, _, text = command.partition(" ")
        if verb == "ECHO?":
            await stream.send_all(text.encode() + b"\n")
        elif self._answer is not None and (reply := await self._answer(stream, command)) is not None:
            await stream.send_all(reply)


async def wait_until(condition: Callable[[], object]) -> None:
    with trio.fail_after(5.0):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await trio.sleep(0.005)


# --- who gets what, how often ------------------------------------------------------------------------------------


async def test_command_is_not_repeated_for_a_line_that_came_before_the_error_query(nursery: trio.Nursery) -> None:
    """A write that is acknowledged after all goes out once with check_errors, and its error says that it was sent."""

    async def answer(_: trio.SocketStream, command: str) -> bytes | None:
        if command == "SYST:ERR?":
            return b'0,"none"\n'
        return b"3.5\nSURPLUS\n" if command == "MEAS?" else None

    instrument = Instrument(answer)
    await nursery.start(instrument.serve)
    config = VisaSessionConfig(resource=instrument.resource, check_errors="after_batch")
    async with VisaSessionManager(config) as session:
        with pytest.raises(LineLostError) as caught:
            await session.batch(["MOVE 1", "MEAS?"])
        assert caught.value.sent == "yes"
        assert await session.query("ECHO? next") == "next"
    assert instrument.commands.count("MOVE 1") == 1


@pytest.mark.parametrize("transport", ["native", "pyvisa"])
async def test_exception_in_progress_is_its_callers_alone(nursery: trio.Nursery, transport: str) -> None:
    """A progress function that raises gives its caller that exception; everybody else gets their own replies."""

    async def answer(stream: trio.SocketStream, _: str) -> bytes | None:
        await stream.send_all(b"#3200" + b"x" * 100)
        await trio.sleep(0.1)
        return b"y" * 100 + b"\n"

    def progress(done: int, size: int | None) -> None:
        raise KeyError(done, size)

    instrument = Instrument(answer)
    await nursery.start(instrument.serve)
    config = VisaSessionConfig(resource=instrument.resource, transport=transport)  # type: ignore[arg-type]
    async with VisaSessionManager(config) as session, VisaSessionManager(config) as other:
        with pytest.raises(KeyError):
            await session.query_block("CURV?", progress=progress)
        assert await other.query("ECHO? other") == "other"
        assert await session.query("ECHO? mine") == "mine"


async def test_reply_at_the_end_of_the_patience_for_it_harms_nobody(nursery: trio.Nursery) -> None:
    """If a reply comes just when the wait for it is given up, the next command is carried out all the same."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        resource = f"TCPIP::127.0.0.1::{listener.getsockname()[1]}::SOCKET"
        config = VisaSessionConfig(resource=resource, resync_timeout=0.05)
        got: list[str] = []
        async with VisaSessionManager(config) as session:
            instrument, _ = listener.accept()

            async def ask_and_leave(scope: trio.CancelScope) -> None:
                with scope:
                    await session.query("FIRST?")

            async def ask() -> None:
                got.append(await session.query("SECOND?"))

            with instrument:
                instrument.setblocking(False)
                async with trio.open_nursery() as callers:
                    scope = trio.CancelScope()
                    callers.start_soon(ask_and_leave, scope)
                    await trio.lowlevel.wait_readable(instrument)
                    assert instrument.recv(100) == b"FIRST?\n"
                    callers.start_soon(ask)
                    scope.cancel()
                    await wait_until(lambda: scope.cancelled_caught)
                    instrument.send(b"1\n")
                    time.sleep(0.1)  # noqa: ASYNC251 - so that the loop sees reply and deadline at once
                    await trio.lowlevel.wait_readable(instrument)
                    assert instrument.recv(100) == b"SECOND?\n"
                    instrument.send(b"2\n")
        assert got == ["2"]


@pytest.mark.parametrize("transport", ["native", "pyvisa"])
async def test_white_space_after_a_block_is_part_of_its_end(nursery: trio.Nursery, transport: str) -> None:
    """A block that ends by CR LF where LF is expected is returned, by whichever transport."""

    async def answer(_: trio.SocketStream, __: str) -> bytes | None:
        return b"#15abcde\r\n"

    instrument = Instrument(answer)
    await nursery.start(instrument.serve)
    config = VisaSessionConfig(resource=instrument.resource, transport=transport)  # type: ignore[arg-type]
    async with VisaSessionManager(config) as session:
        assert await session.query_block("CURV?") == b"abcde"


async def test_trace_does_not_keep_blocks(nursery: trio.Nursery) -> None:
    """Of a long message the trace keeps the beginning only, so that 200 blocks do not fill the memory."""

    async def answer(_: trio.SocketStream, __: str) -> bytes | None:
        return b"#6100000" + b"x" * 100_000 + b"\n"

    instrument = Instrument(answer)
    await nursery.start(instrument.serve)
    async with VisaSessionManager(instrument.resource) as session:
        assert await session.query_block("CURV?") == b"x" * 100_000
        assert max(len(entry.data) for entry in session.trace()) == 4096


# --- closing -----------------------------------------------------------------------------------------------------


async def test_what_waits_to_be_opened_is_not_opened_after_the_session_was_closed(nursery: trio.Nursery) -> None:
    """A reconnect that waits for the bus ends when its session is closed, and leaves no connection behind."""
    released = trio.Event()

    async def answer(_: trio.SocketStream, __: str) -> bytes | None:
        await released.wait()
        return b"slow\n"

    busy, instrument = Instrument(answer), Instrument()
    await nursery.start(busy.serve)
    await nursery.start(instrument.serve)

    async def reconnect(session: VisaSessionManager) -> None:
        with pytest.raises(SessionClosedError):
            await session.reconnect()

    async with VisaSessionManager(VisaSessionConfig(resource=busy.resource, bus="b")) as other:
        async with VisaSessionManager(VisaSessionConfig(resource=instrument.resource, bus="b")) as session:
            slow = other.submit("SLOW?")
            await wait_until(lambda: "SLOW?" in busy.commands)
            async with trio.open_nursery() as callers:
                callers.start_soon(reconnect, session)
                await trio.testing.wait_all_tasks_blocked()
                await session.close()
        released.set()
        assert await slow.wait() == "slow"
        assert await other.query("ECHO? on") == "on"
        await wait_until(lambda: not instrument.connected)
    assert instrument.clients == 1


async def test_transaction_of_a_closed_session_says_so(nursery: trio.Nursery) -> None:
    """After its session was closed a transaction neither sends nor begins, though another session goes on."""
    instrument = Instrument()
    await nursery.start(instrument.serve)
    async with (
        VisaSessionManager(instrument.resource) as other,
        VisaSessionManager(instrument.resource) as session,
    ):
        later = session.transaction()
        async with session.transaction() as transaction:
            await session.close()
            with pytest.raises(SessionClosedError):
                await transaction.query("ECHO? 1")
        with pytest.raises(SessionClosedError):
            await later.__aenter__()
        assert await other.query("ECHO? 2") == "2"
    assert instrument.commands == ["ECHO? 2"]


async def test_second_session_that_cannot_open_leaves_the_first_one_its_reconnecting(nursery: trio.Nursery) -> None:
    """A lost connection comes back by itself also after another session of the resource could not be opened."""
    instrument = Instrument()
    await nursery.start(instrument.serve)
    config = VisaSessionConfig(resource=instrument.resource)
    async with VisaSessionManager(config) as session:
        instrument.switch_off()
        await wait_until(lambda: not instrument.connected)
        with pytest.raises(CommandTimeoutError):
            await session.query("ECHO? 1", timeout=0.1)
        with pytest.raises(LineOpenError):
            await VisaSessionManager(config).__aenter__()
        await nursery.start(instrument.serve)
        await wait_until(lambda: session.state == "open")


# --- many --------------------------------------------------------------------------------------------------------


async def test_many_deadlines_at_once_do_not_stop_the_loop(nursery: trio.Nursery) -> None:
    """Thousands of commands that expire together in the queue cost little each, wherever they stand in it."""

    async def answer(_: trio.SocketStream, __: str) -> bytes | None:
        await trio.sleep_forever()

    instrument = Instrument(answer)
    await nursery.start(instrument.serve)
    config = VisaSessionConfig(resource=instrument.resource, queue_size=100_000)
    async with VisaSessionManager(config) as session:
        session.submit("MUTE?", timeout=30.0)
        replies = [session.submit(f"NOW? {n}", timeout=0.5) for n in range(8000)]
        began = time.monotonic()
        with pytest.raises(CommandTimeoutError):
            await replies[-1].wait()
        assert time.monotonic() - began < 8  # 2.5 were seen beside nine other programs
        await session.close(timeout=0.0)


# --- settings and names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["write_termination", "read_termination", "error_query"])
def test_text_that_cannot_be_sent_is_refused_with_the_settings(name: str) -> None:
    """A termination or an error query that is no bytes on the wire is refused before anything is opened."""
    with pytest.raises(ValueError, match=name):
        VisaSessionConfig(resource="TCPIP::h::5025::SOCKET", **{name: "€"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("TCPIP::LocalHost::5025::SOCKET", "tcpip0::localhost::05025::socket"),
        ("TCPIP::h::INST0::INSTR", "TCPIP::H::INSTR"),
        ("TCPIP::h::hislip0::INSTR", "TCPIP0::h::HISLIP0,4880::INSTR"),
        ("GPIB::5::INSTR", "GPIB00::05::INSTR"),
        ("GPIB::5::2::INSTR", "GPIB0::5::02::INSTR"),
        ("USB::0x0957::0x1755::MY1::INSTR", "USB0::2391::5973::MY1::0::INSTR"),
        ("USB::0x0957::0x175A::MY1::INSTR", "USB0::0X957::0x175a::MY1::0::INSTR"),
        ("ASRL1::INSTR", "asrl01"),
        ("TCPIP::localhost::5025::SOCKET", "TCPIP0::127.0.0.1::5025::SOCKET"),
    ],
)
def test_one_name_for_each_spelling(one: str, other: str) -> None:
    """Spellings of one resource have one canonical name, so that its sessions share a worker."""
    assert canonical_resource(one) == canonical_resource(other)


def test_serial_numbers_of_two_instruments_stay_apart() -> None:
    """What looks like a number in a USB serial number is text, and so is a difference of case."""
    names = [f"USB0::0x1234::0x5678::{serial}::INSTR" for serial in ("12", "012", "0012", "ab", "AB")]
    assert len({canonical_resource(name) for name in names}) == len(names)
