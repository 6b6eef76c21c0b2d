"""A VISA session through real pyvisa-py over loopback TCP: each command once, in order, and each reply to its asker."""

import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from trio_daq.errors import (
    CommandTimeoutError,
    LineLostError,
    LineOpenError,
    ReplyError,
    SessionClosedError,
)
from trio_daq.visa import VisaSessionConfig, VisaSessionManager


class Meter:
    """An instrument on loopback TCP that notes each command it gets.

    ``ECHO? X`` gives X, ``SLOW? X`` gives X after 150 ms, ``MUTE?`` nothing, ``BYTES?`` bytes that are no ASCII,
    ``HALF?`` half a reply and then the end of the connection, ``DROP?`` the end at once, and ``SAY X`` gives X although
    it is no query.
    """

    def __init__(self) -> None:
        self.port = 0
        self.commands: list[str] = []
        self.clients = 0
        self._scope = trio.CancelScope()

    @property
    def resource(self) -> str:
        return f"TCPIP::127.0.0.1::{self.port}::SOCKET"

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self._scope = trio.CancelScope()
        with self._scope:
            async with trio.open_nursery() as nursery:
                listeners = await nursery.start(trio.serve_tcp, self._client, self.port)
                self.port = listeners[0].socket.getsockname()[1]
                task_status.started()

    def stop(self) -> None:
        """Go away, connections and all; `serve` comes back at the same port."""
        self._scope.cancel()

    async def _client(self, stream: trio.SocketStream) -> None:
        self.clients += 1
        data = b""
        try:
            async for chunk in stream:
                data += chunk
                while b"\n" in data:
                    line, _, data = data.partition(b"\n")
                    self.commands.append(line.decode())
                    verb, _, text = line.partition(b" ")
                    if verb == b"SLOW?":
                        await trio.sleep(0.15)
                    if verb == b"DROP?":
                        return
                    if verb == b"HALF?":
                        await stream.send_all(b"1.2")
                        return
                    if verb in (b"ECHO?", b"SLOW?", b"SAY"):
                        await stream.send_all(text + b"\n")
                    if verb == b"BYTES?":
                        await stream.send_all(b"\xfe\x00~?1.5\n")
        except trio.BrokenResourceError:
            return


@pytest.fixture
async def meter(nursery: trio.Nursery) -> Meter:
    """An instrument that serves for the length of the test."""
    instrument = Meter()
    await nursery.start(instrument.serve)
    return instrument


async def wait_until(condition: Callable[[], object], within: float = 5.0) -> None:
    with trio.fail_after(within):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await trio.sleep(0.005)


# --- the everyday ------------------------------------------------------------------------------------------------


async def test_query_write_and_command(meter: Meter) -> None:
    """A query returns the reply without its end, a write nothing, and a command what the dialect says."""
    async with VisaSessionManager(meter.resource) as session:
        assert session.state == "open"
        assert await session.query("ECHO? one") == "one"
        await session.write("*RST")
        assert await session.enqueue_command("CONF:VOLT") == ""
        assert await session.enqueue_command("ECHO? two;") == "two;"
        assert await session.query("SAY three") == "three"
    assert session.state == "closed"
    assert meter.commands == ["ECHO? one", "*RST", "CONF:VOLT", "ECHO? two;", "SAY three"]


async def test_long_reply_comes_in_one_piece(meter: Meter) -> None:
    """A reply larger than any buffer on the way is returned whole."""
    text = "0123456789" * 20_000
    async with VisaSessionManager(meter.resource) as session:
        assert await session.query("ECHO? " + text) == text


async def test_concurrent_owners_each_get_their_own_replies(meter: Meter) -> None:
    """Eight owners with 25 queries each, at once: each reply goes to the one who asked, and all are counted."""
    got: dict[str, str] = {}
    async with VisaSessionManager(meter.resource) as session:

        async def owner(name: str) -> None:
            for number in range(25):
                text = f"{name}-{number}"
                got[text] = await session.query(f"ECHO? {text}", owner=name)

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(owner, f"owner{number}")
        seen = session.statistics()
    assert len(got) == 200
    assert all(text == reply for text, reply in got.items())
    assert seen.executed == {f"owner{number}": 25 for number in range(8)}
    assert (seen.timed_out, seen.never_sent, seen.resyncs) == (0, 0, 0)


async def test_commands_run_in_the_order_in_which_they_were_queued(meter: Meter) -> None:
    """What was queued first is executed first, also when the first one is slow."""
    async with VisaSessionManager(meter.resource) as session, trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(session.enqueue_command, f"SLOW? {number}" if number == 0 else f"SET {number}")
            await wait_until(lambda number=number: session.queue_depth() == number and meter.commands)  # type: ignore[misc]
    assert meter.commands == ["SLOW? 0", *(f"SET {number}" for number in range(1, 10))]


async def test_queue_depth_and_statistics_name_who_waits(meter: Meter) -> None:
    """Only commands that are still wanted count; who is at the instrument and who waits is readable meanwhile."""
    async with VisaSessionManager(meter.resource) as session, trio.open_nursery() as nursery:
        nursery.start_soon(session.query, "SLOW? 1", 2, "alice")
        await wait_until(lambda: meter.commands)
        with trio.move_on_after(0.02):
            await session.query("ECHO? never", owner="bob")
        nursery.start_soon(session.query, "ECHO? 2", 2, "carol")
        await wait_until(session.queue_depth)
        seen = session.statistics()
        assert session.queue_depth() == 1
        assert (seen.in_flight, seen.waiting, session.current_owner()) == ("alice", ("carol",), "alice")
        assert 0.02 <= seen.in_flight_for < 1
    assert (session.queue_depth(), session.current_owner()) == (0, None)
    assert session.statistics().never_sent == 1


@pytest.mark.parametrize("command", ["*RST\nOUTP ON", "*RST\r", "", "  ", "VOLT 5 µ", "A\0B", None, b"*RST"])
async def test_commands_that_would_break_the_stream_are_refused(meter: Meter, command: Any) -> None:
    """A command that ends early, is empty or is no ASCII text never reaches the queue."""
    async with VisaSessionManager(meter.resource) as session:
        for call in (session.query, session.write, session.enqueue_command):
            with pytest.raises((TypeError, ValueError)):
                await call(command)
        assert await session.query("ECHO? fine") == "fine"
    assert meter.commands == ["ECHO? fine"]


# --- time --------------------------------------------------------------------------------------------------------


async def test_late_reply_after_a_timeout_reaches_nobody(meter: Meter) -> None:
    """The next commands get their own replies, and the connection that owed one was given up."""
    async with VisaSessionManager(meter.resource) as session:
        with pytest.raises(TimeoutError) as caught:
            await session.query("SLOW? late", timeout=0.05, owner="alice")
        for number in range(3):
            assert await session.query(f"ECHO? {number}") == str(number)
            await trio.sleep(0.08)
        seen = session.statistics()
    error = caught.value
    assert isinstance(error, CommandTimeoutError)
    assert (error.command, error.owner, error.phase, error.sent) == ("SLOW? late", "alice", "in_flight", "yes")
    assert 0.05 <= error.waited < 1
    assert (seen.resyncs, seen.timed_out, seen.never_sent) == (1, 1, 0)
    assert meter.clients == 2


async def test_expired_in_the_queue_is_never_sent(meter: Meter) -> None:
    """A command whose deadline passes while it waits fails at that time and does not reach the instrument."""
    async with VisaSessionManager(meter.resource) as session, trio.open_nursery() as nursery:
        nursery.start_soon(session.query, "SLOW? 1")
        await wait_until(lambda: meter.commands)
        with pytest.raises(CommandTimeoutError) as caught:
            await session.write("OUTP ON", timeout=0.03)
        assert (caught.value.phase, caught.value.sent, caught.value.position) == ("queued", "no", 1)
        assert 0.03 <= caught.value.waited < 0.14
        assert await session.query("ECHO? 2") == "2"
    assert meter.commands == ["SLOW? 1", "ECHO? 2"]


async def test_cancelled_in_the_queue_is_never_sent(meter: Meter) -> None:
    """The same for a command whose caller was cancelled, and for a caller that was cancelled before it asked."""
    async with VisaSessionManager(meter.resource) as session, trio.open_nursery() as nursery:
        nursery.start_soon(session.query, "SLOW? 1")
        await wait_until(lambda: meter.commands)
        with trio.move_on_after(0.03):
            await session.write("OUTP ON")
        with trio.CancelScope() as scope:
            scope.cancel()
            await session.write("OUTP ON")
        assert await session.query("ECHO? 2") == "2"
        assert session.statistics().never_sent == 1  # the other one was not even queued
    assert meter.commands == ["SLOW? 1", "ECHO? 2"]


async def test_full_queue_is_waited_for_within_the_deadline(meter: Meter) -> None:
    """With no place in the queue, the one deadline covers the wait for a place."""
    config = VisaSessionConfig(resource=meter.resource, queue_size=1)
    async with VisaSessionManager(config) as session, trio.open_nursery() as nursery:
        nursery.start_soon(session.query, "SLOW? 1")
        await wait_until(lambda: meter.commands)
        nursery.start_soon(session.query, "ECHO? 2")
        await wait_until(session.queue_depth)
        with pytest.raises(CommandTimeoutError) as caught:
            await session.query("ECHO? never", timeout=0.03)
        assert (caught.value.phase, caught.value.sent, caught.value.position) == ("place", "no", 2)
        assert await session.query("ECHO? 3") == "3"
    assert meter.commands == ["SLOW? 1", "ECHO? 2", "ECHO? 3"]


async def test_cancelled_in_flight_frees_the_caller_at_once(meter: Meter) -> None:
    """The exchange is finished without its caller, its reply goes to nobody, and the connection stays."""
    async with VisaSessionManager(meter.resource) as session:
        with trio.move_on_after(0.05) as scope:
            await session.query("SLOW? gone", owner="alice")
        assert scope.cancelled_caught
        assert session.current_owner() == "alice"
        assert await session.query("ECHO? next", owner="bob") == "next"
        seen = session.statistics()
    assert (seen.abandoned, seen.resyncs) == (1, 0)
    assert meter.clients == 1


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf")])
async def test_impossible_timeouts_are_refused(meter: Meter, timeout: float) -> None:
    """A timeout that is no finite number of seconds never reaches the queue."""
    async with VisaSessionManager(meter.resource) as session:
        with pytest.raises(ValueError, match="timeout"):
            await session.query("ECHO? 1", timeout=timeout)
    assert meter.commands == []


# --- replies that do not fit -------------------------------------------------------------------------------------


async def test_reply_that_is_no_text_is_an_error_of_its_own(meter: Meter) -> None:
    """Bytes that are no ASCII give ReplyError with the bytes, and the next command is right."""
    async with VisaSessionManager(meter.resource) as session:
        with pytest.raises(ReplyError) as caught:
            await session.query("BYTES?", owner="alice")
        assert (caught.value.reply, caught.value.owner) == (b"\xfe\x00~?1.5", "alice")
        assert await session.query("ECHO? 1") == "1"


async def test_reply_to_a_write_reaches_nobody(meter: Meter, caplog: pytest.LogCaptureFixture) -> None:
    """A line that nobody asked for is thrown away before the next command, and logged."""
    async with VisaSessionManager(meter.resource) as session:
        await session.write("SAY surprise")
        await trio.sleep(0.05)
        assert await session.query("ECHO? mine") == "mine"
        assert "9 bytes had come unasked" in caplog.text
        # With the reply of the next query in one packet, it lies in pyvisa-py's own buffer.
        await session.write("SAY first")
        await session.write("SAY second")
        assert await session.query("ECHO? a") in ("first", "second", "a")
        await trio.sleep(0.05)
        assert await session.query("ECHO? b") == "b"


# --- connections that fail ---------------------------------------------------------------------------------------


async def test_connection_closed_in_the_middle_is_told_at_once(meter: Meter) -> None:
    """An instrument that closes the connection gives LineLostError long before the timeout; the next command works."""
    async with VisaSessionManager(meter.resource, timeout=30) as session:
        for command in ("DROP?", "HALF?"):
            began = time.monotonic()
            with pytest.raises(LineLostError, match="closed the connection") as caught:
                await session.query(command, owner="alice")
            assert time.monotonic() - began < 2
            assert (caught.value.sent, caught.value.owner) == ("yes", "alice")
            assert await session.query("ECHO? again") == "again"
    assert isinstance(caught.value, ConnectionError)
    assert meter.clients == 3


async def test_connection_closed_at_idle_costs_no_command(meter: Meter, nursery: trio.Nursery) -> None:
    """A command that meets a dead connection was not sent: it waits for the next connection, and is sent once."""
    async with VisaSessionManager(meter.resource) as session:
        assert await session.query("ECHO? 1") == "1"
        meter.stop()
        await trio.sleep(0.02)
        await nursery.start(meter.serve)
        await session.write("OUTP ON")
        assert await session.query("ECHO? 2") == "2"
    assert meter.commands == ["ECHO? 1", "OUTP ON", "ECHO? 2"]


async def test_instrument_that_stays_away_and_comes_back(meter: Meter, nursery: trio.Nursery) -> None:
    """While it is away every command fails in time and unsent; once it is back, the next one works."""
    async with VisaSessionManager(meter.resource, timeout=0.4) as session:
        await session.query("ECHO? 1")
        meter.stop()
        with pytest.raises((LineLostError, CommandTimeoutError)):  # as it was written just before or not
            await session.query("DROP?")
        await wait_until(lambda: session.state == "lost")
        for _ in range(3):
            began = time.monotonic()
            with pytest.raises(CommandTimeoutError, match="refused") as caught:
                await session.write("OUTP ON")
            assert (caught.value.phase, caught.value.sent) == ("resync", "no")
            assert time.monotonic() - began < 0.9
        await nursery.start(meter.serve)
        assert await session.query("ECHO? 2", timeout=5) == "2"  # the next try comes after 2.5 s at most
        assert session.state == "open"
    assert "OUTP ON" not in meter.commands


async def test_command_that_expires_while_it_is_reopened_is_never_sent(meter: Meter, nursery: trio.Nursery) -> None:
    """A command, `sent="no"`, whose deadline passes or whose caller leaves during the reconnect is not sent later."""
    with slow_to_open() as gate:
        config = VisaSessionConfig(resource=meter.resource, backend="@slowopen", timeout=3)
        async with VisaSessionManager(config) as session:
            gate.fail = True
            with pytest.raises(LineLostError):
                await session.query("DROP?")
            await wait_until(lambda: gate.refused)
            gate.fail = False
            gate.delay = 0.3
            with pytest.raises(CommandTimeoutError) as caught:
                await session.write("OUTP ON", timeout=0.1)
            assert (caught.value.phase, caught.value.sent) == ("resync", "no")
            assert await session.query("ECHO? 2") == "2"
            gate.fail = True
            with pytest.raises(LineLostError):
                await session.query("DROP?")
            await wait_until(lambda: gate.refused == 2)
            gate.fail = False
            with trio.move_on_after(0.1):
                await session.write("OUTP ON", timeout=3)
            assert await session.query("ECHO? 3") == "3"
            assert session.statistics().never_sent == 2
    assert meter.commands == ["DROP?", "ECHO? 2", "DROP?", "ECHO? 3"]


class Gate:
    """How opening goes with the backend ``@slowopen``."""

    delay = 0.0
    fail = False
    refused = 0


class slow_to_open:
    """Register a backend, pyvisa-py but for `Gate`, for the length of a ``with`` block."""

    def __enter__(self) -> Gate:
        import pyvisa.highlevel
        from pyvisa_py import highlevel

        gate = Gate()

        class SlowLibrary(highlevel.PyVisaLibrary):  # type: ignore[misc, unused-ignore]
            def open(self, *args: Any, **kwargs: Any) -> Any:
                time.sleep(gate.delay)
                if gate.fail:
                    gate.refused += 1
                    raise ConnectionRefusedError("refused for the test")
                return super().open(*args, **kwargs)

        pyvisa.highlevel._WRAPPERS["slowopen"] = SlowLibrary
        return gate

    def __exit__(self, *_: object) -> None:
        import pyvisa.highlevel

        del pyvisa.highlevel._WRAPPERS["slowopen"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def test_refused_connection_is_an_open_error() -> None:
    """Nobody listens: LineOpenError with the cure, on entering, and nothing is left behind."""
    files = len(os.listdir("/proc/self/fd"))
    session = VisaSessionManager(f"TCPIP::127.0.0.1::{free_port()}::SOCKET")
    with pytest.raises(LineOpenError, match=r"the connection was refused \(.*\)\. Is the instrument on"):
        async with session:
            pytest.fail("entered")
    assert session.state == "closed"
    assert len(os.listdir("/proc/self/fd")) == files


async def test_connection_that_is_not_answered_is_an_open_error() -> None:
    """An address that takes no connection gives LineOpenError within the timeout."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:  # Linux drops what does not fit into the backlog
            filler.setblocking(False)
            filler.connect_ex(address)
        began = time.monotonic()
        with pytest.raises(LineOpenError, match=r"it did not answer in time\. Is it on and on this network"):
            async with VisaSessionManager(f"TCPIP::127.0.0.1::{address[1]}::SOCKET", timeout=0.3):
                pytest.fail("entered")
        assert time.monotonic() - began < 2.5
        for filler in fillers:
            filler.close()


async def test_resource_that_never_answers_times_out(meter: Meter) -> None:
    """It opens, but no reply comes: CommandTimeoutError by the session's own timeout."""
    async with VisaSessionManager(meter.resource, timeout=0.1) as session:
        with pytest.raises(CommandTimeoutError, match="the instrument had not answered") as caught:
            await session.query("MUTE?")
    assert 0.1 <= caught.value.waited < 1


@pytest.mark.parametrize("resource", ["NONSENSE::1", "TCPIP::"])
async def test_bad_resource_name_is_an_open_error(resource: str) -> None:
    """A name that VISA cannot read is a clear error on entering."""
    with pytest.raises(LineOpenError, match=resource):
        async with VisaSessionManager(resource, timeout=0.5):
            pytest.fail("entered")


def test_text_that_is_no_resource_name_is_refused_at_once() -> None:
    """A name without ``::`` does not make a session."""
    with pytest.raises(ValueError, match="VISA resource name"):
        VisaSessionManager("/dev/ttyUSB0")


async def test_missing_backend_is_an_open_error(meter: Meter) -> None:
    """A backend that is not installed is named."""
    with pytest.raises(LineOpenError, match="pyvisa_nowhere"):
        async with VisaSessionManager(VisaSessionConfig(resource=meter.resource, backend="@nowhere")):
            pytest.fail("entered")


# --- the end -----------------------------------------------------------------------------------------------------


async def test_close_refuses_what_waits_and_finishes_what_runs(meter: Meter) -> None:
    """The command in flight gets its reply; those in the queue get SessionClosedError and are never sent."""
    got: list[Any] = []
    async with trio.open_nursery() as nursery, VisaSessionManager(meter.resource) as session:

        async def caller(command: str) -> None:
            try:
                got.append(await session.query(command))
            except SessionClosedError as error:
                got.append(error.sent)

        nursery.start_soon(caller, "SLOW? 1")
        await wait_until(lambda: meter.commands)
        nursery.start_soon(caller, "ECHO? 2")
        nursery.start_soon(caller, "ECHO? 3")
        await wait_until(lambda: session.queue_depth() == 2)
        await session.close()
        with pytest.raises(SessionClosedError):
            await session.query("ECHO? 4")
        await session.close()
    assert sorted(got) == ["1", "no", "no"]
    assert meter.commands == ["SLOW? 1"]


async def test_close_is_bounded(meter: Meter) -> None:
    """A command that takes longer than close may wait is given up, and its caller told that it was sent."""
    async with trio.open_nursery() as nursery, VisaSessionManager(meter.resource) as session:

        async def caller() -> None:
            with pytest.raises(SessionClosedError) as caught:
                await session.query("MUTE?", timeout=1.0)
            assert caught.value.sent == "yes"

        nursery.start_soon(caller)
        await wait_until(lambda: meter.commands)
        began = time.monotonic()
        await session.close(timeout=0.1)
        assert time.monotonic() - began < 2.5


async def test_exception_of_the_body_keeps_its_type(meter: Meter) -> None:
    """What the block raises comes out bare."""
    with pytest.raises(KeyError, match="mine"):  # noqa: PT012 - the block is what is tested
        async with VisaSessionManager(meter.resource) as session:
            await session.query("ECHO? 1")
            raise KeyError("mine")
    assert session.state == "closed"


async def test_cancelled_block_closes_in_order(meter: Meter) -> None:
    """Cancellation from outside goes through, and the connection is closed after what was in flight."""
    with trio.move_on_after(0.1) as scope:
        async with VisaSessionManager(meter.resource) as session:
            await session.query("SLOW? 1")
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert session.state == "closed"
    with pytest.raises(SessionClosedError):
        await session.query("ECHO? 2")


async def test_session_has_one_life(meter: Meter) -> None:
    """A session that was closed cannot be entered again."""
    session = VisaSessionManager(meter.resource)
    async with session:
        pass
    with pytest.raises(SessionClosedError):
        async with session:
            pytest.fail("entered")


async def test_serve_runs_in_a_nursery_of_others(meter: Meter) -> None:
    """`serve` reports that it is open, carries out commands, and ends by `stop`."""
    session = VisaSessionManager(meter.resource)
    async with trio.open_nursery() as nursery:
        assert await nursery.start(session.serve) is session
        assert await session.query("ECHO? 1") == "1"
        session.stop()
    assert session.state == "closed"


async def test_thirty_lives_leave_no_file_and_no_thread(meter: Meter) -> None:
    """Opening, using and closing a session 30 times leaves neither a descriptor nor a thread."""

    async def life() -> None:
        clients = meter.clients
        async with VisaSessionManager(meter.resource) as session:
            assert await session.query("ECHO? 1") == "1"
        assert meter.clients == clients + 1

    @asynccontextmanager
    async def settled() -> AsyncIterator[None]:
        yield
        await trio.sleep(0.02)  # the instrument sees the end of the connection, too

    async with settled():
        await life()
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    async with settled():
        for _ in range(30):
            await life()
    assert len(os.listdir("/proc/self/fd")) == files
    await wait_until(lambda: threading.active_count() <= threads)


async def test_many_sessions_live_side_by_side(meter: Meter) -> None:
    """Sessions that open, work and close at the same time do not disturb each other."""

    async def life(name: str) -> None:
        for number in range(5):
            async with VisaSessionManager(meter.resource) as session:
                assert await session.query(f"ECHO? {name}{number}") == f"{name}{number}"

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(life, f"s{number}")
