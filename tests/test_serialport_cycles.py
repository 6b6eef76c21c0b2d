"""Hundreds of lives and of pulled cables, on real ptys: no descriptor, thread, task or lock is left of any of them.

The counts are the system's and Trio's own: /proc/self/fd, /proc/locks, the living tasks, the living threads.
"""

import contextlib
import os
import sys
import threading
import tty
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import serial
import trio
import trio.testing

from trio_daq.errors import LineLostError, LineOpenError, SessionClosedError
from trio_daq.serialport import LineState, SerialPortConfig, SharedSerialPort
from trio_daq.wire import SyncQuery

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="descriptors and locks are read from /proc")

SYNC = SyncQuery("ECHO {nonce}", "{nonce}")


class Socket:
    """Where devices are plugged in: a link to the pty of the present one.

    A device says X to ``ECHO X``, nothing to ``mute``, and ``re X`` to any other X. Each has another pty than the one
    before, as a USB adapter may have another number when it comes back.
    """

    def __init__(self, link: Path, nursery: trio.Nursery) -> None:
        self.link = link
        self.asked: list[bytes] = []
        self._nursery = nursery
        self._next = os.openpty()
        self._now: tuple[int, int] | None = None

    def plug(self) -> None:
        self._now = master, client_end = self._next
        tty.setraw(client_end)
        os.set_blocking(master, False)
        self.link.symlink_to(os.ttyname(client_end))
        self._nursery.start_soon(self._serve, master)

    def unplug(self) -> None:
        assert self._now is not None
        self.link.unlink()
        self._next = os.openpty()  # before the old one goes, or it would get the same number
        trio.lowlevel.notify_closing(self._now[0])
        for end in self._now:
            os.close(end)
        self._now = None

    def close(self) -> None:
        for end in self._next if self._now is None else self._now:
            with contextlib.suppress(OSError):
                trio.lowlevel.notify_closing(end)
            os.close(end)

    async def _serve(self, master: int) -> None:
        data = b""
        with contextlib.suppress(trio.ClosedResourceError):
            while True:
                await trio.lowlevel.wait_readable(master)
                data += os.read(master, 65536)
                while b"\n" in data:
                    line, _, data = data.partition(b"\n")
                    if line.startswith(b"ECHO "):
                        os.write(master, line[5:] + b"\n")
                        continue
                    self.asked.append(line)
                    if line != b"mute":
                        os.write(master, b"re " + line + b"\n")


@pytest.fixture
async def socket(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Socket]:
    """A socket with a device in it."""
    place = Socket(tmp_path / "stage", nursery)
    place.plug()
    yield place
    place.close()


def port_of(socket: Socket, **settings: Any) -> SharedSerialPort:
    defaults = {"path": str(socket.link), "timeout": 5.0, "acquire_timeout": 10.0, "sync_query": SYNC}
    return SharedSerialPort(SerialPortConfig(**{**defaults, **settings}))


async def ask(port: SharedSerialPort, command: bytes) -> bytes:
    async with port.acquire("asker") as guard:
        return await guard.query(command)


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Wait until *condition* holds, for *seconds* at most."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for is outside of Trio
            await trio.sleep(0.002)


# --- what there is -----------------------------------------------------------------------------------------------


def serial_threads() -> list[str]:
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("serial "))


def our_locks() -> int:
    """Return how many flock(2) locks this process has: proc_locks(5), fifth field."""
    entries = map(str.split, Path("/proc/locks").read_text().splitlines())
    return sum(entry[4] == str(os.getpid()) for entry in entries)


def task_names(task: trio.lowlevel.Task | None = None) -> Iterator[str]:
    task = task or trio.lowlevel.current_root_task()
    assert task is not None
    yield task.name
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from task_names(child)


@attrs.frozen
class Footprint:
    """What a program has of everything that a port could leave behind."""

    files: int
    locks: int
    threads: list[str]
    tasks: Counter[str]

    @classmethod
    def now(cls) -> "Footprint":
        names = Counter(task_names())
        assert names.total() == trio.lowlevel.current_statistics().tasks_living
        return cls(len(os.listdir("/proc/self/fd")), our_locks(), serial_threads(), names)


async def footprint() -> Footprint:
    """Return what there is once all that ends by itself has ended."""
    await trio.testing.wait_all_tasks_blocked()
    return Footprint.now()


async def footprint_before(socket: Socket) -> Footprint:
    """Return what there is after a first life, which leaves what a program has once: its alarm clock."""
    port = port_of(socket)
    await ask(port, b"first")
    await port.aclose()
    await until(lambda: not serial_threads())  # a thread says that it ends just before it does
    socket.asked.clear()
    return await footprint()


async def must_become(before: Footprint) -> None:
    """See that it comes back to *before*, within 2 s."""
    with contextlib.suppress(trio.TooSlowError):
        await until(lambda: Footprint.now() == before, 2)
    assert Footprint.now() == before


# --- 300 lives ---------------------------------------------------------------------------------------------------


async def test_three_hundred_lives_leave_nothing(socket: Socket) -> None:
    """Opened, used and closed 300 times, half of them with `keep` running: all counts are what they were before."""

    async def life(number: int) -> None:
        async with trio.open_nursery() as nursery:
            port = port_of(socket)
            if number % 2:
                nursery.start_soon(port.keep)
            assert await ask(port, b"%d" % number) == b"re %d" % number
            assert our_locks() == before.locks + 1
            assert len(serial_threads()) == len(before.threads) + 1
            await port.aclose()  # it ends `keep` too, or this nursery would stay open

    before = await footprint_before(socket)
    with trio.fail_after(30):
        for number in range(300):
            await life(number)
    await must_become(before)
    assert socket.asked == [b"%d" % number for number in range(300)]


async def test_closing_under_a_blocked_read_leaves_nothing(socket: Socket) -> None:
    """Closed 40 times while its owner waits for a reply that never comes and another waits in line, half with `keep`:
    each close takes less than a second, both are told, and all counts are what they were."""

    async def told(port: SharedSerialPort) -> None:
        with pytest.raises(SessionClosedError):
            await ask(port, b"mute")

    before = await footprint_before(socket)
    for number in range(40):
        async with trio.open_nursery() as nursery:
            port = port_of(socket)
            if number % 2:
                nursery.start_soon(port.keep)
            for _ in range(2):
                nursery.start_soon(told, port)
            await until(lambda: len(socket.asked) > number)  # noqa: B023 - it is awaited here
            with trio.fail_after(1):
                await port.aclose()
    await must_become(before)
    assert socket.asked == [b"mute"] * 40


# --- 200 pulled cables -------------------------------------------------------------------------------------------


class Cable:
    """One device and its port: pulled and plugged again and again, idle or in the middle of a read."""

    def __init__(self, socket: Socket, nursery: trio.Nursery, *, kept: bool) -> None:
        self.socket = socket
        self.port = port_of(socket)
        if kept:
            nursery.start_soon(self.port.keep)

    async def pull(self, number: int) -> None:
        if number % 2:
            self.socket.unplug()
        else:
            muted = self.socket.asked.count(b"mute")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._lose_a_reply)
                await until(lambda: self.socket.asked.count(b"mute") > muted)
                self.socket.unplug()
        await trio.lowlevel.checkpoint()
        self.socket.plug()
        assert await ask(self.port, b"%d" % number) == b"re %d" % number

    async def _lose_a_reply(self) -> None:
        with pytest.raises(LineLostError):
            await ask(self.port, b"mute")


async def test_two_hundred_pulled_cables_leave_nothing(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Four devices, two of them with `keep`, are unplugged and plugged 50 times each, every second time during a read:
    each time the next owner is answered, no count grows meanwhile, and none is left at the end."""
    sockets = [Socket(tmp_path / f"stage{number}", nursery) for number in range(4)]
    for socket in sockets:
        socket.plug()
    before = await footprint_before(sockets[0])
    cables = [Cable(socket, nursery, kept=number < 2) for number, socket in enumerate(sockets)]
    for cable in cables:
        assert await ask(cable.port, b"first") == b"re first"
    opened = await footprint()
    assert opened.locks == before.locks + 4
    with trio.fail_after(35):
        for number in range(50):
            async with trio.open_nursery() as round_of_four:
                for cable in cables:
                    round_of_four.start_soon(cable.pull, number)
            await must_become(opened)
    assert {cable.port.statistics().opens for cable in cables} == {51}
    for cable in cables:
        await cable.port.aclose()
    await must_become(before)
    for socket in sockets:
        socket.close()


# --- a driver that holds the close -------------------------------------------------------------------------------


class HeldClose:
    """What a driver does that holds a close."""

    def __init__(self) -> None:
        self.let_go, self.entered = threading.Event(), threading.Event()


@contextlib.contextmanager
def a_driver_that_holds_the_close() -> Iterator[HeldClose]:
    """Let pyserial's close wait until it is let go, as Linux does for up to 30 s (``closing_wait``, setserial(8))."""
    held, real_close = HeldClose(), serial.Serial.close

    def close(line: serial.Serial) -> None:
        if line.is_open:  # the garbage collector closes also what could not be opened
            held.entered.set()
            assert held.let_go.wait(20)
        real_close(line)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serial.Serial, "close", close)
        try:
            yield held
        finally:
            held.let_go.set()


@contextlib.asynccontextmanager
async def event_loop_must_go_on() -> AsyncIterator[None]:
    """See that no turn of the event loop inside the block takes half a second."""
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            began = trio.current_time()
            await trio.sleep(0.01)
            longest = max(longest, trio.current_time() - began)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        yield
        nursery.cancel_scope.cancel()
    assert longest < 0.5


@pytest.mark.parametrize("kept", [False, True], ids=["alone", "kept"])
async def test_a_close_that_the_driver_holds_is_bounded(
    socket: Socket, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture, kept: bool
) -> None:
    """`aclose` returns in its time and says so; meanwhile the program runs, and nobody else gets the line. When the
    driver lets go, thread, descriptor and lock are gone, and the port can be opened again."""
    before = await footprint_before(socket)
    port = port_of(socket)
    if kept:
        nursery.start_soon(port.keep)
    assert await ask(port, b"a") == b"re a"
    opened = await footprint()
    with a_driver_that_holds_the_close() as held:
        async with event_loop_must_go_on():
            began = trio.current_time()
            await port.aclose(timeout=0.3)
            assert 0.3 <= trio.current_time() - began < 1
            assert held.entered.is_set()
            with pytest.raises(LineOpenError, match=r"this process .*an abandoned thread"):
                await port_of(socket).open()
        await until(lambda: serial_threads() == opened.threads)  # the one that was refused has ended
        left = await footprint()
        assert (left.files, left.locks) == (opened.files, opened.locks)
        assert left.tasks == before.tasks
        assert "the driver has not let it close for 0.3 s" in caplog.text
        held.let_go.set()
        await must_become(before)
    again = port_of(socket)
    assert await ask(again, b"b") == b"re b"
    await again.aclose()
    await must_become(before)


async def test_a_lost_device_whose_close_is_held_comes_back(socket: Socket) -> None:
    """The driver holds the close of an adapter that was pulled: when it is plugged again, the next owner gets it all
    the same within their deadline, and the old thread and descriptor go when the driver lets go."""
    before = await footprint_before(socket)
    port = port_of(socket, acquire_timeout=6.0)
    assert await ask(port, b"a") == b"re a"
    opened = await footprint()
    with a_driver_that_holds_the_close() as held:
        socket.unplug()
        socket.plug()
        async with event_loop_must_go_on():
            assert await ask(port, b"b") == b"re b"
        assert held.entered.is_set()
        assert port.state is LineState.CLEAN
        assert len(serial_threads()) == len(opened.threads) + 1
        held.let_go.set()
        await must_become(opened)
    await port.aclose()
    await must_become(before)


async def test_a_holder_is_told_at_once_though_the_close_is_held(socket: Socket) -> None:
    """A holder in a read learns of a pulled cable within a tenth of a second, although the driver holds the close."""
    port = port_of(socket)
    told: list[float] = []

    async def holder() -> None:
        with pytest.raises(LineLostError):
            await ask(port, b"mute")
        told.append(trio.current_time())

    await port.open()
    with a_driver_that_holds_the_close():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(holder)
            await until(lambda: socket.asked)
            socket.unplug()
            pulled = trio.current_time()
        assert told[0] - pulled < 0.1
    await port.aclose()
    socket.plug()
