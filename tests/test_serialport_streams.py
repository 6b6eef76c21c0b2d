"""What every byte stream promises, whatever carries it: shown on each kind, with real ptys, sockets and pyserial."""

import contextlib
import io
import itertools
import os
import random
import socket
import subprocess
import sys
import threading
import time
import tty

import pytest
import serial
import serial.urlhandler.protocol_loop
import trio

from trio_daq.errors import HungCallError
from trio_daq.serialport import SerialPortConfig, driver
from trio_daq.serialport.opening import open_byte_stream
from trio_daq.sim import MemoryLine

pytestmark = pytest.mark.skipif(os.name != "posix", reason="ptys are POSIX's")

ALL = ("pty", "alt", "loop", "socket", "memory")
WITH_OTHER_END = ("pty", "alt", "socket", "memory")
PATTERN = bytes(range(251)) * 1000


class Link:
    """A line of one kind: `open` gives our side of it, the rest is the other end."""

    drivers_class = serial.Serial

    async def open(self):
        return await open_byte_stream(self.config)

    async def close(self):
        """Take the other end down."""


class PtyLink(Link):
    def __init__(self, url="{}"):
        self.master, slave = os.openpty()
        tty.setraw(self.master)
        tty.setraw(slave)
        os.set_blocking(self.master, False)
        self.config = SerialPortConfig(path=url.format(os.ttyname(slave)))
        self._slave = slave

    async def send(self, data):
        while data:
            try:
                data = data[os.write(self.master, data) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self.master)

    async def receive(self, count):
        data = bytearray()
        while len(data) < count:
            await trio.lowlevel.wait_readable(self.master)
            data += os.read(self.master, 4096)
        return bytes(data)

    async def hang_up(self):
        if self.master >= 0:
            trio.lowlevel.notify_closing(self.master)
            os.close(self.master)
            self.master = -1

    async def close(self):
        await self.hang_up()
        os.close(self._slave)


class LoopLink(Link):
    drivers_class = serial.urlhandler.protocol_loop.Serial
    config = SerialPortConfig(path="loop://")

    async def open(self):
        self.stream = await super().open()
        return self.stream

    async def send(self, data):
        await write_all(self.stream, data)

    async def receive(self, count):
        return await read_exactly(self.stream, count)


class SocketLink(Link):
    """A server of one client at a time, which closes when the client does."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.config = SerialPortConfig(path=f"socket://127.0.0.1:{self.listener.getsockname()[1]}")
        self.server = None

    async def open(self):
        await self.hang_up()
        stream = await super().open()
        connection, _ = await trio.to_thread.run_sync(self.listener.accept)
        self.server = trio.SocketStream(trio.socket.from_stdlib_socket(connection))
        return stream

    async def send(self, data):
        await self.server.send_all(data)

    async def receive(self, count):
        data = bytearray()
        while len(data) < count:
            data += await self.server.receive_some()
        return bytes(data)

    async def hang_up(self):
        if self.server is not None:
            await self.server.aclose()
            self.server = None

    async def close(self):
        await self.hang_up()
        self.listener.close()


class MemoryLink(Link):
    config = SerialPortConfig(path="memory")

    def __init__(self):
        self.line = MemoryLine(capacity=3000)

    async def open(self):
        return await self.line.open_stream(self.config)

    async def send(self, data):
        await trio.lowlevel.checkpoint()
        self.line.send(data)

    async def receive(self, count):
        data = bytearray()
        while len(data) < count:
            data += await self.line.receive()
        return bytes(data)

    async def hang_up(self):
        await trio.lowlevel.checkpoint()
        self.line.unplug()


def make_link(kind):
    if kind == "alt":  # pyserial's own object for a pty, behind a URL, so in threads
        return PtyLink("alt://{}")
    return {"pty": PtyLink, "loop": LoopLink, "socket": SocketLink, "memory": MemoryLink}[kind]()


@pytest.fixture
async def link(request):
    link = make_link(request.param)
    with trio.fail_after(30):
        yield link
    await link.close()


@pytest.fixture
async def stream(link):
    stream = await link.open()
    yield stream
    await stream.aclose(timeout=2)


def on(*kinds):
    return pytest.mark.parametrize("link", kinds, indirect=True)


async def write_all(stream, data):
    rest = memoryview(data)
    while rest:
        rest = rest[stream.write_nowait(rest) :]
        if rest:
            await stream.wait_writable()


async def read_exactly(stream, count):
    data = bytearray(stream.read_nowait())
    while len(data) < count:
        await stream.wait_readable()
        data += stream.read_nowait()
    return bytes(data)


async def fill(stream):
    """Write `PATTERN` over and over until nothing more is taken; return how many bytes were.

    A pty that was full takes more a moment later without waking who waits for that, so it is asked again.
    """
    count, waited = 0, False
    while True:
        taken = stream.write_nowait(memoryview(PATTERN)[count % len(PATTERN) :])
        if waited and not taken:
            return count
        count += taken
        assert count < 100_000_000, "it takes bytes without end"
        if not taken:
            with trio.move_on_after(0.2):
                await stream.wait_writable()
        waited = not taken


def pattern(start, end):
    return bytes(itertools.islice(itertools.cycle(PATTERN), start % len(PATTERN), start % len(PATTERN) + end - start))


async def waiting(nursery, wait):
    """Start ``wait()``, and return where its outcome will be, once it surely waits."""
    outcomes = []

    async def run():
        try:
            await wait()
        except Exception as error:
            outcomes.append(type(error))
        else:
            outcomes.append(None)

    nursery.start_soon(run)
    await trio.sleep(0.02)
    return outcomes


async def until(condition):
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - it is threads that are waited for
            await trio.sleep(0.005)


# --- bytes -------------------------------------------------------------------------------------------------------


@on(*ALL)
async def test_bytes_arrive_whole_and_in_order_however_they_are_cut(link, stream, nursery):
    """Each way, 20 000 bytes in pieces of any length come out as they went in."""
    cut = random.Random(1)

    async def in_pieces(write):
        rest = PATTERN[:20_000]
        while rest:
            length = cut.randint(1, 700)
            await write(rest[:length])
            rest = rest[length:]

    nursery.start_soon(in_pieces, link.send)
    assert await read_exactly(stream, 20_000) == PATTERN[:20_000]
    nursery.start_soon(in_pieces, lambda piece: write_all(stream, piece))
    assert await link.receive(20_000) == PATTERN[:20_000]


@on(*ALL)
async def test_an_idle_line_has_no_bytes_and_is_not_lost(stream):
    """Nothing to read is `b""`, time and again."""
    for _ in range(3):
        assert stream.read_nowait() == b""
        assert stream.read_all_nowait() == b""
        await trio.sleep(0.06)


@on(*ALL)
async def test_a_cancelled_wait_loses_no_byte(link, stream, nursery):
    """However often the wait for bytes is cancelled, all of them come."""
    cut = random.Random(2)

    async def send():
        for start in range(0, 2000, 5):
            await link.send(PATTERN[start : start + 5])
            await trio.sleep(cut.choice((0, 0, 0.001)))

    nursery.start_soon(send)
    data, cancelled = bytearray(), 0
    while len(data) < 2000:
        with trio.move_on_after(cut.random() * 0.001) as scope:
            await stream.wait_readable()
        cancelled += scope.cancelled_caught
        data += stream.read_nowait()
    assert data == PATTERN[:2000]
    assert cancelled > 20


@on(*ALL)
async def test_partial_writes_are_counted(link, stream, nursery):
    """What a full line took is exactly what `write_nowait` said, and the rest can follow."""
    count = await fill(stream)
    assert stream.write_nowait(memoryview(PATTERN)) == 0
    nursery.start_soon(write_all, stream, pattern(count, count + 5000))
    assert await link.receive(count + 5000) == pattern(0, count + 5000)


@on(*WITH_OTHER_END)
async def test_a_write_that_is_stuck_does_not_stop_reading(link, stream):
    """Bytes come in while none go out."""
    await fill(stream)
    await link.send(b"meanwhile")
    with trio.fail_after(1):
        assert await read_exactly(stream, 9) == b"meanwhile"


# --- waiting -----------------------------------------------------------------------------------------------------


@on(*ALL)
async def test_wake_ends_the_waits_and_leaves_the_line_usable(link, stream, nursery):
    """Who waits to read or to write is woken with ClosedResourceError; then bytes come and go as before."""
    reading = await waiting(nursery, stream.wait_readable)
    stream.wake()
    await until(lambda: reading)
    assert reading == [trio.ClosedResourceError]

    count = await fill(stream)
    writing = await waiting(nursery, stream.wait_writable)
    stream.wake()
    await until(lambda: writing)
    assert writing == [trio.ClosedResourceError]

    assert await link.receive(count) == pattern(0, count)
    nursery.start_soon(link.send, b"still here")
    assert await read_exactly(stream, 10) == b"still here"


@on(*ALL)
async def test_a_wake_that_nobody_waits_for_is_forgotten(link, stream, nursery):
    """It does not end the next wait."""
    stream.wake()
    nursery.start_soon(link.send, b"x")
    await stream.wait_readable()
    assert await read_exactly(stream, 1) == b"x"


@on(*ALL)
async def test_a_second_reader_is_refused(stream, nursery):
    """One task waits to read; another is told so."""
    await waiting(nursery, stream.wait_readable)
    with pytest.raises(trio.BusyResourceError):
        await stream.wait_readable()
    stream.wake()


@on(*ALL)
async def test_a_second_writer_is_refused(stream, nursery):
    """One task waits to write; another is told so."""
    await fill(stream)
    await waiting(nursery, stream.wait_writable)
    with pytest.raises(trio.BusyResourceError):
        await stream.wait_writable()
    stream.wake()


# --- loss --------------------------------------------------------------------------------------------------------


@on(*WITH_OTHER_END)
async def test_a_loss_is_one_error_once_and_for_all(link, stream, nursery):
    """The waiting reader learns of it within 0.2 s; from then on all is BrokenResourceError, until it is closed."""
    reading = await waiting(nursery, stream.wait_readable)
    lost_at = trio.current_time()
    await link.hang_up()
    await until(lambda: reading)
    assert trio.current_time() - lost_at < 0.2
    assert reading[0] in (None, trio.BrokenResourceError)
    for _ in range(3):
        with pytest.raises(trio.BrokenResourceError):
            stream.read_nowait()
        with pytest.raises(trio.BrokenResourceError):
            stream.read_all_nowait()
        with pytest.raises(trio.BrokenResourceError):
            stream.write_nowait(memoryview(b"x"))
        with pytest.raises(trio.BrokenResourceError):
            await stream.wait_readable()
        with pytest.raises(trio.BrokenResourceError):
            await stream.control(lambda lines: lines.baudrate)
    started = trio.current_time()
    assert await stream.aclose(timeout=2)
    assert trio.current_time() - started < 0.5
    with pytest.raises(trio.ClosedResourceError):
        stream.read_nowait()


@on(*WITH_OTHER_END)
async def test_who_only_writes_learns_of_a_loss_too(link, stream, nursery):
    """A writer that waits on a full line is woken, and the next write says it."""
    await fill(stream)
    writing = await waiting(nursery, stream.wait_writable)
    await link.hang_up()
    await until(lambda: writing)
    assert writing[0] in (None, trio.BrokenResourceError)
    with pytest.raises(trio.BrokenResourceError):
        await write_all(stream, PATTERN * 100)


@on("alt")
async def test_bytes_from_before_a_loss_come_before_its_news(link, stream):
    """What a thread read in time is delivered."""
    await link.send(b"last words")
    await until(lambda: bytes(stream._inbound) == b"last words")
    await link.hang_up()
    await until(lambda: stream._lost)
    await stream.wait_readable()
    assert stream.read_nowait() == b"last words"
    with pytest.raises(trio.BrokenResourceError):
        stream.read_nowait()


@on("socket")
async def test_a_reset_connection_is_a_loss(link, stream):
    """ConnectionResetError has the same name here as any other loss."""
    link.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    await link.hang_up()
    await stream.wait_readable()
    with pytest.raises(trio.BrokenResourceError, match="reset"):
        stream.read_nowait()


# --- closing -----------------------------------------------------------------------------------------------------


@on(*ALL)
async def test_closing_under_a_blocked_read(link, stream, nursery):
    """It takes no second, the reader gets ClosedResourceError, and so does whoever comes later."""
    reading = await waiting(nursery, stream.wait_readable)
    started = trio.current_time()
    assert await stream.aclose(timeout=4)
    assert trio.current_time() - started < 1
    await until(lambda: reading)
    assert reading == [trio.ClosedResourceError]
    for action in (stream.read_nowait, stream.read_all_nowait, lambda: stream.write_nowait(memoryview(b"x"))):
        with pytest.raises(trio.ClosedResourceError):
            action()
    for action in (stream.wait_readable, stream.wait_writable, lambda: stream.control(print)):
        with pytest.raises(trio.ClosedResourceError):
            await action()
    stream.wake()
    assert await stream.aclose(timeout=4)


@on(*WITH_OTHER_END)
async def test_what_was_written_before_the_close_arrives(link, stream):
    """A last command is not thrown away, even one that is longer than what the other end has a buffer for."""
    count = stream.write_nowait(memoryview(PATTERN[:10_000]))
    assert count >= 3000
    assert await stream.aclose(timeout=4)
    assert await link.receive(count) == PATTERN[:count]


@on("pty", "alt", "loop", "socket")
async def test_closing_a_line_that_takes_no_bytes_is_bounded(stream):
    """The unsent rest waits no longer than half of the time given, and is then thrown away."""
    await fill(stream)
    started = trio.current_time()
    assert await stream.aclose(timeout=1)
    assert trio.current_time() - started < 0.9


@on("pty", "alt", "loop")
async def test_a_driver_that_holds_the_close_holds_nobody(link, monkeypatch):
    """`aclose` returns in time and says that it is not closed; the thread closes it when the driver lets go."""
    let_go, closed = threading.Event(), threading.Event()
    real_close = link.drivers_class.close

    def slow_close(line):
        assert let_go.wait(10)
        real_close(line)
        closed.set()

    stream = await link.open()
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(link.drivers_class, "close", slow_close)
    started = trio.current_time()
    assert not await stream.aclose(timeout=0.3)
    assert trio.current_time() - started < 0.6
    assert len(os.listdir("/proc/self/fd")) == before, "it was closed under the driver"
    with pytest.raises(trio.ClosedResourceError):
        stream.read_nowait()
    let_go.set()
    await until(closed.is_set)
    await until(lambda: not serial_threads())


@on("alt")
@pytest.mark.parametrize("call", ["read", "write"])
async def test_a_line_is_not_closed_under_a_call_that_hangs(link, monkeypatch, call):
    """A thread that the driver holds keeps its descriptor until it wakes."""
    let_go, inside = threading.Event(), threading.Event()
    stream = await link.open()

    def hang(line, argument):
        inside.set()
        assert let_go.wait(10)
        return b""

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(link.drivers_class, call, hang)
    stream.write_nowait(memoryview(b"x"))
    await until(inside.is_set)
    assert not await stream.aclose(timeout=0.2)
    assert len(os.listdir("/proc/self/fd")) == before
    let_go.set()
    await until(lambda: not serial_threads())
    assert len(os.listdir("/proc/self/fd")) < before


async def test_a_server_that_never_closes_delays_the_farewell_a_little():
    """Its end is awaited for half a second at most."""
    link = SocketLink()
    stream = await link.open()
    started = trio.current_time()
    assert await stream.aclose(timeout=30)
    assert 0.3 < trio.current_time() - started < 1
    await link.close()


async def test_unread_bytes_do_not_destroy_what_was_written_before_the_close():
    """Closing a socket with unread input would reset it, with our last bytes not yet read over there."""
    link = SocketLink()
    stream = await link.open()
    await link.send(b"never read")
    await stream.wait_readable()
    stream.write_nowait(memoryview(b"OUTP OFF\n"))
    await stream.aclose(timeout=1)
    assert await link.receive(9) == b"OUTP OFF\n"
    assert await link.server.receive_some() == b"", "a clean end, no reset"
    await link.close()


def serial_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("serial ")]


@on(*ALL)
async def test_nothing_is_left_after_fifty_lives(link, nursery):
    """No descriptor, no thread."""

    async def live():
        stream = await link.open()
        stream.write_nowait(memoryview(b"x"))
        if isinstance(link, SocketLink):
            await link.receive(1)
            await link.hang_up()
        assert await stream.aclose(timeout=4)

    await live()
    files = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        await live()
        if isinstance(link, MemoryLink):
            await link.receive(1)
    await until(lambda: not serial_threads())
    assert len(os.listdir("/proc/self/fd")) == files


# --- opening -----------------------------------------------------------------------------------------------------


@on("pty", "alt", "loop")
async def test_an_opening_that_is_cancelled_leaves_nothing(link):
    """Whenever it is cancelled, nothing stays open: who opens it next finds it free."""
    await (await link.open()).aclose(timeout=2)  # what Trio and pyserial open once, is open
    files = len(os.listdir("/proc/self/fd"))
    cancelled = 0
    for wait in (0, 0.0002, 0.0005, 0.001, 0.002, 0.004):
        with trio.move_on_after(wait) as scope:
            await (await link.open()).aclose(timeout=2)
        cancelled += scope.cancelled_caught
    assert cancelled
    assert len(os.listdir("/proc/self/fd")) == files
    await until(lambda: not serial_threads())


async def test_a_connection_that_does_not_come_about_can_be_cancelled():
    """A server that does not answer holds nobody longer than they wait."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as crowd:
        address = listener.getsockname()
        for _ in range(4):  # Linux drops who comes after the first in the queue
            waiting = crowd.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)
        files = len(os.listdir("/proc/self/fd"))
        with trio.move_on_after(0.2) as scope:
            await open_byte_stream(SerialPortConfig(path=f"socket://127.0.0.1:{address[1]}"))
        assert scope.cancelled_caught
        assert len(os.listdir("/proc/self/fd")) == files


async def test_a_server_that_is_not_there_is_an_oserror():
    """It keeps the number of the system's error."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        await open_byte_stream(SerialPortConfig(path=f"socket://127.0.0.1:{port}"))


@pytest.mark.parametrize("url", ["socket://", "socket://127.0.0.1", "socket://127.0.0.1:99999", "nosuch://x"])
async def test_a_url_that_is_none_is_a_valueerror(url):
    """It is refused before anything is opened."""
    with pytest.raises(ValueError, match=r"socket://HOST:PORT|out of range|nosuch"):
        await open_byte_stream(SerialPortConfig(path=url))


# --- control -----------------------------------------------------------------------------------------------------


@on("pty", "alt", "loop", "memory")
async def test_the_baud_rate_of_an_open_line_can_be_changed(link, stream, nursery):
    """And an idle line is still idle, not lost, after it."""
    await stream.control(lambda lines: setattr(lines, "baudrate", 19200))
    assert await stream.control(lambda lines: lines.baudrate) == 19200
    assert stream.read_nowait() == b""
    nursery.start_soon(link.send, b"x")
    assert await read_exactly(stream, 1) == b"x"


@on("loop")
async def test_modem_lines(stream):
    """They are set and read where they are wired: loop:// has RTS on CTS."""
    assert await stream.control(lambda lines: setattr(lines, "rts", False)) is None
    assert await stream.control(lambda lines: lines.cts) is False
    await stream.control(lambda lines: setattr(lines, "rts", True))
    assert await stream.control(lambda lines: lines.cts) is True


@on("pty", "alt", "socket")
async def test_what_a_line_does_not_have_is_an_oserror(stream):
    """A pty has no modem lines, a raw connection has nothing of the sort; the line stays usable."""
    with pytest.raises(OSError) as refused:  # noqa: PT011
        await stream.control(lambda lines: lines.cts)
    assert isinstance(refused.value, io.UnsupportedOperation) == ("Socket" in type(stream).__name__)
    assert stream.read_nowait() == b""


@on("pty", "alt")
async def test_what_termios_refuses_is_an_oserror(link, stream, monkeypatch):
    """termios.error is neither an OSError nor a SerialException; nobody should have to know."""
    import termios

    def refuse(lines):
        termios.tcgetattr(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))

    with pytest.raises(OSError, match="Inappropriate ioctl"):
        await stream.control(refuse)


@on("pty", "alt")
async def test_a_control_that_hangs_is_the_loss_of_the_line(link, monkeypatch, nursery):
    """Its thread is given up and closes the line when it wakes, so nobody may use it any more."""
    monkeypatch.setattr(driver, "PATIENCE", 0.1)
    let_go = threading.Event()
    stream = await link.open()
    await fill(stream)
    reading = await waiting(nursery, stream.wait_readable)
    writing = await waiting(nursery, stream.wait_writable)
    with pytest.raises(HungCallError):
        await stream.control(lambda lines: let_go.wait(10))
    await until(lambda: reading and writing)
    assert reading == writing == [trio.BrokenResourceError]
    with pytest.raises(trio.BrokenResourceError):
        stream.write_nowait(memoryview(b"x"))
    assert not await stream.aclose(timeout=0.1)
    let_go.set()
    await until(lambda: not serial_threads())


# --- in memory ---------------------------------------------------------------------------------------------------


async def test_a_memory_line_lives_on_a_virtual_clock(autojump_clock):
    """An instrument that takes an hour to answer takes no time to test."""
    line = MemoryLine()
    stream = await line.open_stream(SerialPortConfig(path="memory"))
    started = time.monotonic()

    async def instrument():
        assert await line.receive() == b"*TST?"
        await trio.sleep(3600)
        line.send(b"0\n")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(instrument)
        await write_all(stream, b"*TST?")
        assert await read_exactly(stream, 2) == b"0\n"
    assert trio.current_time() >= 3600
    assert time.monotonic() - started < 5


async def test_a_memory_line_can_be_unplugged_and_plugged(autojump_clock):
    """Unplugged there is no such port; plugged again a new stream works, and the old one stays lost."""
    line, config = MemoryLine(), SerialPortConfig(path="memory")
    old = await line.open_stream(config)
    with pytest.raises(OSError, match="busy"):
        await line.open_stream(config)
    old.write_nowait(memoryview(b"on its way"))
    line.unplug()
    with pytest.raises(FileNotFoundError):
        await line.open_stream(config)
    line.send(b"to nobody")
    line.plug()
    new = await line.open_stream(config)
    with pytest.raises(trio.BrokenResourceError):
        old.read_nowait()
    await old.aclose(timeout=1)
    assert new.read_nowait() == b""
    new.write_nowait(memoryview(b"hello"))
    assert await line.receive() == b"hello"


async def test_a_memory_line_notes_what_is_no_byte(autojump_clock):
    """Modem lines, breaks and the baud rate are there for the instrument to see and to set."""
    line = MemoryLine()
    stream = await line.open_stream(SerialPortConfig(path="memory", baud_rate=57600))
    assert line.controls.baudrate == 57600
    await stream.control(lambda lines: setattr(lines, "dtr", False))
    await stream.control(lambda lines: setattr(lines, "break_condition", True))
    line.controls.cts = False
    assert await stream.control(lambda lines: lines.cts) is False
    assert (line.controls.dtr, line.controls.break_condition) == (False, True)


# --- Windows -----------------------------------------------------------------------------------------------------


def test_windows_can_import_all_but_the_posix_stream():
    """Of our modules only `posix_stream` needs fcntl and termios; third parties choose for themselves."""
    program = """
import sys, importlib, serial.tools.list_ports, trio
for name in ("fcntl", "termios", "pty", "tty", "pwd", "grp", "resource"):
    sys.modules[name] = None
for name in ("byte_stream", "opening", "thread_stream", "socket_stream", "driver"):
    importlib.import_module("trio_daq.serialport." + name)
importlib.import_module("trio_daq.sim.memory_line")
try:
    import trio_daq.serialport.posix_stream
except ImportError:
    print("as it should be")
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "as it should be", done.stderr
