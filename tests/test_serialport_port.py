"""The shared port on a real pty: every owner gets the reply to their own command, whatever happened before."""

import os
import subprocess
import sys
import threading
import tty
from array import array
from collections.abc import AsyncIterator, Callable
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from trio_daq.errors import (
    AcquireTimeoutError,
    ExchangeTimeoutError,
    GuardReleasedError,
    LineLostError,
    LineOpenError,
    PortBusyError,
    SessionClosedError,
)
from trio_daq.serialport import LineState, SerialPortConfig, SharedSerialPort

pytestmark = pytest.mark.skipif(os.name != "posix", reason="ptys are POSIX")

TIOCGEXCL = 0x80045440
"""tty_ioctl(4): whether a terminal is in exclusive mode; the termios module has no name for it."""


class Device:
    """An instrument on a pty: ``slow X`` is answered after 150 ms, ``set X`` and ``mute X`` never, the rest at once.

    The answer to X is ``re X``.
    """

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        tty.setraw(self.slave)
        os.set_blocking(self.master, False)
        self.path = os.ttyname(self.slave)
        self.lines: list[bytes] = []

    async def serve(self) -> None:
        data = b""
        try:
            while True:
                await trio.lowlevel.wait_readable(self.master)
                data += os.read(self.master, 65536)
                while b"\n" in data:
                    line, _, data = data.partition(b"\n")
                    self.lines.append(line)
                    if line.startswith(b"slow"):
                        await trio.sleep(0.15)
                    if not line.startswith((b"set", b"mute")):
                        self.send(b"re " + line + b"\n")
        except trio.ClosedResourceError:
            return  # unplugged

    def send(self, data: bytes) -> None:
        os.write(self.master, data)

    def unplug(self) -> None:
        if self.master >= 0:
            trio.lowlevel.notify_closing(self.master)
            os.close(self.master)
            os.close(self.slave)
            self.master = -1


MakePort = Callable[..., SharedSerialPort]


@pytest.fixture
async def device(nursery: trio.Nursery) -> AsyncIterator[Device]:
    """An instrument that serves for the length of the test."""
    instrument = Device()
    nursery.start_soon(instrument.serve)
    yield instrument
    instrument.unplug()


@pytest.fixture
async def make_port(device: Device) -> AsyncIterator[MakePort]:
    """Make ports to the device that are closed at the end."""
    ports: list[SharedSerialPort] = []

    def make(**settings: Any) -> SharedSerialPort:
        defaults = {"path": device.path, "timeout": 0.1, "quiet_time": 0.03, "acquire_timeout": 5.0}
        ports.append(SharedSerialPort(SerialPortConfig(**{**defaults, **settings})))
        return ports[-1]

    yield make
    for port in ports:
        await port.aclose()


async def ask(port: SharedSerialPort, owner: str, command: bytes, timeout: float = 2.0) -> bytes:
    async with port.acquire(owner) as guard:
        return await guard.query(command, timeout=timeout)


# --- sharing -----------------------------------------------------------------------------------------------------


async def test_query_through_a_real_pty(device: Device, make_port: MakePort) -> None:
    """A query adds the write terminator, strips the read terminator, and leaves the port clean and free."""
    port = make_port(timeout=2.0)
    assert port.state is LineState.LOST
    async with port.acquire("alice") as guard:
        assert (port.current_owner(), port.is_available()) == ("alice", False)
        assert await guard.query(b"*IDN?") == b"re *IDN?"
    assert device.lines == [b"*IDN?"]
    assert (port.current_owner(), port.is_available(), port.state) == (None, True, LineState.CLEAN)
    seen = port.statistics()
    assert (seen.exchanges, seen.opens, seen.late_bytes) == ({"alice": 1}, 1, 0)


async def test_reads_of_every_kind_share_one_buffer(device: Device, make_port: MakePort) -> None:
    """What one read leaves is what the next read gets, and the terminator stays in `read_until`."""
    port = make_port(timeout=2.0)
    async with port.acquire("alice") as guard:
        await guard.write_all(b"abcdef\n")
        assert await guard.read_exactly(4) == b"re a"
        assert await guard.read_until(b"c") == b"bc"
        assert await guard.read_until() == b"def\n"
        await guard.write_all(b"xy\n")
        assert await guard.read(1) == b"r"
        assert await guard.read_until(timeout=2) == b"e xy\n"
    assert port.state is LineState.CLEAN
    assert device.lines == [b"abcdef", b"xy"]


async def test_concurrent_owners_each_get_their_own_replies(make_port: MakePort) -> None:
    """Ten owners with 30 queries each, at once: 300 replies, each to the one who asked."""
    port = make_port()
    got: dict[bytes, bytes] = {}

    async def owner(name: str) -> None:
        for number in range(30):
            command = f"{name} {number}".encode()
            got[command] = await ask(port, name, command)

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(owner, f"owner{number}")
    assert len(got) == 300
    assert all(reply == b"re " + command for command, reply in got.items())
    assert port.statistics().exchanges == {f"owner{number}": 30 for number in range(10)}


async def test_exchange_of_two_steps_is_not_cut_into(device: Device, make_port: MakePort) -> None:
    """While a block holds the port across a sleep, another owner's command does not come in between."""
    port = make_port(timeout=2.0)

    async def other() -> None:
        await ask(port, "bob", b"b")

    async with trio.open_nursery() as nursery, port.acquire("alice") as guard:
        await guard.query(b"a1")
        nursery.start_soon(other)
        await trio.sleep(0.03)
        assert port.statistics().lease.waiting == ("bob",)
        await guard.query(b"a2")
        guard.release()
    assert device.lines == [b"a1", b"a2", b"b"]


# --- unfinished exchanges ----------------------------------------------------------------------------------------


async def test_late_reply_after_a_timeout_reaches_nobody(make_port: MakePort) -> None:
    """The next owner gets the reply to their own command, and the late one is counted as dropped."""
    port = make_port(quiet_time=0.2)
    with pytest.raises(ExchangeTimeoutError):
        await ask(port, "alice", b"slow 1", timeout=0.05)
    assert port.state is LineState.DIRTY
    assert await ask(port, "bob", b"b") == b"re b"
    seen = port.statistics()
    assert (seen.recoveries, seen.late_bytes) == (2, len(b"re slow 1\n"))  # one recovery was that of opening


async def test_cancelled_exchange_leaves_the_next_owner_right(make_port: MakePort) -> None:
    """A reply whose asker was cancelled in flight reaches nobody."""
    port = make_port(quiet_time=0.2)
    await ask(port, "warm up", b"w")
    with trio.move_on_after(0.05) as scope:
        await ask(port, "alice", b"slow 1")
    assert scope.cancelled_caught
    assert await ask(port, "bob", b"b") == b"re b"


async def test_cancellation_swallowed_inside_the_block_leaves_everybody_right(make_port: MakePort) -> None:
    """Who gives up a query and asks another in the same block gets the second reply, and so does the next owner."""
    port = make_port(quiet_time=0.2)
    async with port.acquire("alice") as guard:
        with trio.move_on_after(0.05):
            await guard.query(b"slow 1", timeout=2)
        assert await guard.query(b"a2", timeout=2) == b"re a2"
        with trio.move_on_after(0.05):
            await guard.query(b"slow 3", timeout=2)
    assert await ask(port, "bob", b"b") == b"re b"


async def test_timeout_swallowed_inside_the_block_leaves_everybody_right(make_port: MakePort) -> None:
    """The same for a query that timed out, and whose error was caught in the block."""
    port = make_port(quiet_time=0.2)
    async with port.acquire("alice") as guard:
        with pytest.raises(ExchangeTimeoutError):
            await guard.query(b"slow 1", timeout=0.05)
    async with port.acquire("bob") as guard:
        with pytest.raises(ExchangeTimeoutError):
            await guard.query(b"slow 2", timeout=0.05)
        assert await guard.query(b"b", timeout=2) == b"re b"


async def test_read_that_was_given_up_can_be_taken_up_again(make_port: MakePort) -> None:
    """Bytes of a cancelled read are not lost: reading on in the same block gets the whole reply."""
    port = make_port(quiet_time=0.2)
    async with port.acquire("alice") as guard:
        await guard.write_all(b"slow 1\n")
        with trio.move_on_after(0.05):
            await guard.read_until(timeout=2)
        assert await guard.read_until(timeout=2) == b"re slow 1\n"
    assert port.state is LineState.CLEAN


async def test_owner_that_fails_after_writing_leaves_the_next_right(make_port: MakePort) -> None:
    """An exception between write and read comes out as it is, and its late reply reaches nobody."""
    port = make_port(quiet_time=0.2)
    with pytest.raises(KeyError, match="mine"):  # noqa: PT012 - the block is what is tested
        async with port.acquire("alice") as guard:
            await guard.write_all(b"slow 1\n")
            raise KeyError("mine")
    assert port.state is LineState.DIRTY
    assert await ask(port, "bob", b"b") == b"re b"


async def test_release_without_reading_makes_the_line_suspect(make_port: MakePort) -> None:
    """A reply that nobody read is thrown away before the next owner's first command."""
    port = make_port()
    async with port.acquire("alice") as guard:
        await guard.write_all(b"a\n")
    assert port.state is LineState.SUSPECT
    async with port.acquire("bob") as guard:
        await trio.sleep(0.05)  # the reply comes while bob has the port already
        assert await guard.query(b"b", timeout=2) == b"re b"
    assert port.state is LineState.CLEAN


async def test_leftover_bytes_make_the_line_suspect(make_port: MakePort) -> None:
    """A block that ends with half of a reply unread leaves no trace for the next owner."""
    port = make_port(on_acquire="keep")
    async with port.acquire("alice") as guard:
        await guard.write_all(b"a\n")
        assert await guard.read_exactly(2, timeout=2) == b"re"
    assert port.state is LineState.SUSPECT
    assert await ask(port, "bob", b"b") == b"re b"


async def test_write_only_leaves_the_line_clean(make_port: MakePort) -> None:
    """A command declared to have no reply costs the next owner nothing."""
    port = make_port()
    async with port.acquire("alice") as guard:
        await guard.write_only(b"set 1\n")
    assert port.state is LineState.CLEAN
    assert await ask(port, "bob", b"b") == b"re b"


@pytest.mark.parametrize("how", ["out of time", "cancelled", "half read"])
async def test_write_only_does_not_wait_for_a_late_reply(device: Device, make_port: MakePort, how: str) -> None:
    """What is to make the instrument safe goes out at once, though the last exchange was given up; whatever comes of
    that late reaches neither the next question of the same block nor the next owner."""
    port = make_port(quiet_time=0.3)
    async with port.acquire("alice") as guard:
        if how == "out of time":
            with pytest.raises(ExchangeTimeoutError):
                await guard.query(b"slow a", timeout=0.05)
        elif how == "cancelled":
            with trio.move_on_after(0.05):
                await guard.query(b"slow a", timeout=10)
        else:
            await guard.write_all(b"slow a\n")
            assert await guard.read_exactly(3, timeout=2) == b"re "
            with pytest.raises(ExchangeTimeoutError):
                await guard.read_exactly(100, timeout=0.05)
        began = trio.current_time()
        await guard.write_only(b"set off\n")
        assert trio.current_time() - began < 0.1
        if how == "out of time":
            assert await guard.query(b"b", timeout=5) == b"re b"
    assert await ask(port, "bob", b"c", timeout=5) == b"re c"
    assert device.lines[1] == b"set off"


@pytest.mark.parametrize(("on_acquire", "first"), [("discard", b"re b\n"), ("keep", b"news\n")])
async def test_unasked_input_follows_the_settings(
    device: Device, make_port: MakePort, on_acquire: str, first: bytes
) -> None:
    """What came while nobody had the line is thrown away or kept, as configured."""
    port = make_port(on_acquire=on_acquire)
    await ask(port, "alice", b"a")
    device.send(b"news\n")
    async with port.acquire("bob") as guard:
        await guard.write_all(b"b\n")
        assert await guard.read_until(timeout=2) == first


async def test_discard_input_returns_what_it_threw_away(device: Device, make_port: MakePort) -> None:
    """`discard_input` empties the driver and the buffer, and says what was in them."""
    port = make_port()
    async with port.acquire("alice") as guard:
        device.send(b"old\nnews\n")
        assert await guard.read_until(timeout=2) == b"old\n"
        assert guard.discard_input() == b"news\n"
        assert await guard.query(b"a", timeout=2) == b"re a"


async def test_peek_takes_nothing(device: Device, make_port: MakePort) -> None:
    """`peek` shows what has come, from the driver too, and leaves it for the next read, which may be limited."""
    port = make_port()
    async with port.acquire("alice") as guard:
        assert guard.peek() == b""
        device.send(b"12.5\n")
        with trio.fail_after(2):
            while guard.peek() != b"12.5\n":  # noqa: ASYNC110 - what comes has no event
                await trio.sleep(0.001)
        assert await guard.read_until(most=3, timeout=2) == b"12."
        assert guard.peek() == b"5\n"
        assert await guard.read_until(most=3, timeout=2) == b"5\n"
        with pytest.raises(ValueError, match="most must be at least 1"):
            await guard.read_until(most=0)
    with pytest.raises(GuardReleasedError):
        guard.peek()


# --- who may do what, and until when -----------------------------------------------------------------------------


async def test_cancelled_task_sends_nothing(device: Device, make_port: MakePort) -> None:
    """A task that is cancelled already gets no guard, and one that has a guard writes not a byte."""
    port = make_port()
    await ask(port, "warm up", b"w")
    with trio.CancelScope() as scope:
        scope.cancel()
        await ask(port, "alice", b"never")
    async with port.acquire("bob") as guard:
        with trio.CancelScope() as scope:
            scope.cancel()
            await guard.write_all(b"never\n")
    await trio.sleep(0.02)
    assert device.lines == [b"w"]
    assert port.state is LineState.CLEAN


async def test_guard_is_dead_after_its_block(device: Device, make_port: MakePort) -> None:
    """Every call of a released guard is refused, by block or by hand, and nothing is sent."""
    port = make_port()
    async with port.acquire("alice") as guard:
        await guard.query(b"a", timeout=2)
        guard.release()
        guard.release()
        with pytest.raises(GuardReleasedError, match=r"query.*'alice' after its guard was released"):
            await guard.query(b"never")
    for call in (guard.write_all, guard.write_only, guard.query, guard.read_until):
        with pytest.raises(GuardReleasedError):
            await call(b"never")
    for read in (guard.read, guard.read_exactly):
        with pytest.raises(GuardReleasedError):
            await read(1)
    with pytest.raises(GuardReleasedError):
        guard.discard_input()
    assert await ask(port, "bob", b"b") == b"re b"
    assert device.lines == [b"a", b"b"]


async def test_two_tasks_may_not_use_one_guard_at_once(device: Device, make_port: MakePort) -> None:
    """The second gets trio.BusyResourceError and sends nothing; the first gets its reply."""
    port = make_port(quiet_time=0.2)
    got = []
    async with port.acquire("alice") as guard, trio.open_nursery() as nursery:

        async def first() -> None:
            got.append(await guard.query(b"slow 1", timeout=2))

        nursery.start_soon(first)
        await trio.sleep(0.03)
        with pytest.raises(trio.BusyResourceError, match="another task uses this guard of 'alice'"):
            await guard.query(b"never")
    assert got == [b"re slow 1"]
    assert device.lines == [b"slow 1"]


async def test_timeout_of_an_exchange_says_what_came(device: Device, make_port: MakePort) -> None:
    """ExchangeTimeoutError is a TimeoutError with owner, operation, time, what was sent and what was received."""
    port = make_port()
    async with port.acquire("alice") as guard:
        device.send(b"12.")
        with pytest.raises(TimeoutError) as caught:
            await guard.query(b"mute", timeout=0.05)
    error = caught.value
    assert isinstance(error, ExchangeTimeoutError)
    assert (error.resource, error.owner, error.operation) == (device.path, "alice", "query(b'mute')")
    assert (error.sent, error.received) == ("yes", b"12.")
    assert 0.05 <= error.waited < 1
    assert "3 bytes came: b'12.'" in str(error)


async def test_default_timeout_is_that_of_the_settings(make_port: MakePort) -> None:
    """A call that names no timeout ends after the port's own."""
    port = make_port(timeout=0.05)
    async with port.acquire("alice") as guard:
        with pytest.raises(ExchangeTimeoutError) as caught:
            await guard.read(1)
    assert 0.05 <= caught.value.waited < 1
    assert caught.value.sent == "no"


async def test_timeout_of_the_wait_names_the_holder(device: Device, make_port: MakePort) -> None:
    """AcquireTimeoutError says who has the port, for how long, and the place in the queue."""
    port = make_port()

    async def alice(task_status: trio.TaskStatus[None]) -> None:
        async with port.acquire("alice"):
            task_status.started()
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        await nursery.start(alice)
        with pytest.raises(AcquireTimeoutError) as caught:
            async with port.acquire("bob", timeout=0.05):
                pytest.fail("entered")
        nursery.cancel_scope.cancel()
    error = caught.value
    assert (error.resource, error.wanted_by, error.held_by) == (device.path, "bob", "alice")
    assert (error.phase, error.position, error.sent) == ("queue", 1, "no")
    assert min(error.waited, error.held_for) >= 0.05


async def test_busy_port_with_timeout_zero(make_port: MakePort) -> None:
    """``timeout=0`` does not wait: PortBusyError, an OSError, names the holder."""
    port = make_port()
    async with port.acquire("alice"):
        with pytest.raises(OSError, match="'alice' has held it") as caught:
            async with port.acquire("bob", timeout=0):
                pytest.fail("entered")
    assert isinstance(caught.value, PortBusyError)
    async with port.acquire("bob", timeout=0) as guard:
        assert await guard.query(b"b", timeout=2) == b"re b"


@pytest.mark.parametrize(("timeout", "kind"), [(-1, ValueError), (float("inf"), ValueError), ("1", TypeError)])
async def test_impossible_timeouts_are_refused_at_once(make_port: MakePort, timeout: Any, kind: type) -> None:
    """A timeout that is no finite number of seconds is a mistake, for the wait as for the exchange."""
    port = make_port()
    with pytest.raises(kind):
        port.acquire("alice", timeout=timeout)
    async with port.acquire("alice") as guard:
        with pytest.raises(kind):
            await guard.query(b"never", timeout=timeout)
        for wrong in (guard.read(0), guard.read_exactly(0), guard.read_until(b"")):
            with pytest.raises(ValueError, match="at least"):
                await wrong


# --- loss and return ---------------------------------------------------------------------------------------------


async def test_unplugging_during_a_read_is_told_at_once(device: Device, make_port: MakePort) -> None:
    """The holder of an unplugged line gets LineLostError long before its timeout."""
    port = make_port()
    async with port.acquire("alice") as guard:
        async with trio.open_nursery() as nursery:

            async def pull() -> None:
                await trio.sleep(0.05)
                device.unplug()

            nursery.start_soon(pull)
            began = trio.current_time()
            with pytest.raises(LineLostError, match=r"lost while 'alice' used it.*sent: yes") as caught:
                await guard.query(b"mute", timeout=30)
            assert trio.current_time() - began < 2
        assert isinstance(caught.value, ConnectionError)
        with pytest.raises(LineLostError, match="earlier in this block"):
            await guard.query(b"never")
    assert port.state is LineState.LOST


async def test_unplugging_at_idle_shows_at_the_next_acquire(device: Device, make_port: MakePort) -> None:
    """Nobody is handed a dead line: the next owner waits for the device, and is told that there is no such port."""
    port, impatient = make_port(acquire_timeout=0.3, exclusive=False), make_port(reconnect=False, exclusive=False)
    await ask(port, "alice", b"a")
    await ask(impatient, "carol", b"c")
    device.unplug()
    with pytest.raises(AcquireTimeoutError, match="there is no such serial port") as caught:
        await ask(port, "bob", b"b")
    assert (caught.value.phase, caught.value.held_by) == ("open", "bob")
    with pytest.raises(LineOpenError, match="there is no such serial port"):
        await ask(impatient, "carol", b"c")


async def test_replugged_device_works_again_under_its_link(
    device: Device, make_port: MakePort, tmp_path: Path, nursery: trio.Nursery
) -> None:
    """A link that points to another pty after a replug is followed at the next acquire."""
    link = tmp_path / "stage"
    link.symlink_to(device.path)
    port = make_port(path=str(link))
    assert await ask(port, "alice", b"a") == b"re a"
    again = Device()  # made before the old one is gone, so that it is surely another
    nursery.start_soon(again.serve)
    device.unplug()
    link.unlink()
    link.symlink_to(again.path)
    assert await ask(port, "bob", b"b") == b"re b"
    assert again.lines == [b"b"]
    assert port.statistics().opens == 2
    again.unplug()


async def test_half_a_command_is_not_finished_on_another_device(
    device: Device, make_port: MakePort, tmp_path: Path, nursery: trio.Nursery
) -> None:
    """The rest of a command whose device went away is not sent to the one that came instead."""
    deaf, again = Device(), Device()
    nursery.start_soon(again.serve)
    link = tmp_path / "stage"
    link.symlink_to(deaf.path)
    port = make_port(path=str(link))
    with pytest.raises(ExchangeTimeoutError):
        async with port.acquire("alice") as guard:
            await guard.write_all(b"x" * 100_000 + b"\n", timeout=0.05)
    deaf.unplug()
    link.unlink()
    link.symlink_to(again.path)
    assert await ask(port, "bob", b"b") == b"re b"
    assert again.lines == [b"b"]
    again.unplug()


# --- closing -----------------------------------------------------------------------------------------------------


async def test_closing_ends_a_read_and_the_queue(make_port: MakePort) -> None:
    """The holder in a read, the one in line, and the one who comes later all get SessionClosedError."""
    port = make_port()
    failed: dict[str, SessionClosedError] = {}

    async def owner(name: str) -> None:
        with pytest.raises(SessionClosedError) as caught:
            await ask(port, name, b"mute", timeout=30)
        failed[name] = caught.value

    async with trio.open_nursery() as nursery:
        nursery.start_soon(owner, "alice")
        while port.current_owner() != "alice" or port.state is not LineState.CLEAN:  # noqa: ASYNC110
            await trio.sleep(0.01)
        await trio.sleep(0.02)
        nursery.start_soon(owner, "bob")
        await trio.sleep(0.02)
        await port.aclose()
    assert {name: error.sent for name, error in failed.items()} == {"alice": "yes", "bob": "no"}
    await owner("carol")
    with pytest.raises(SessionClosedError):
        await port.open()
    assert not port.is_available()
    await port.aclose()


async def test_closing_while_it_is_made_clean(make_port: MakePort) -> None:
    """Who waits for a line that is being made clean gets SessionClosedError when it is closed."""
    port = make_port(quiet_time=30, acquire_timeout=30)
    async with trio.open_nursery() as nursery:

        async def owner() -> None:
            with pytest.raises(SessionClosedError):
                await ask(port, "alice", b"never")

        nursery.start_soon(owner)
        while port.state is not LineState.DIRTY:  # noqa: ASYNC110
            await trio.sleep(0.01)
        await port.aclose()


async def test_fifty_lives_leave_no_file_and_no_thread(device: Device) -> None:
    """Opening, using and closing a port 50 times leaves neither a descriptor nor a thread."""
    config = SerialPortConfig(path=device.path, timeout=2, quiet_time=0.001)

    async def life() -> None:
        port = SharedSerialPort(config)
        assert await ask(port, "alice", b"a") == b"re a"
        await port.aclose()

    await life()
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(50):
        await life()
    assert len(os.listdir("/proc/self/fd")) == files
    with trio.fail_after(5):
        while threading.active_count() > threads:  # noqa: ASYNC110 - a thread says that it ends just before it does
            await trio.sleep(0.01)


# --- one program at a time ---------------------------------------------------------------------------------------

OPEN = "import sys, serial; serial.Serial(sys.argv[1], exclusive=True).close(); print('opened')"


async def opens_elsewhere(path: str) -> str:
    """Return what another process says that opens *path* with plain pyserial."""
    command = [sys.executable, "-c", OPEN, path]
    done = await trio.run_process(command, capture_stdout=True, stderr=subprocess.STDOUT, check=False)
    return done.stdout.decode()


def is_exclusive(device: Device) -> bool:
    answer = array("i", [0])
    ioctl(device.slave, TIOCGEXCL, answer)
    return bool(answer[0])


async def test_port_is_ours_alone_until_it_is_closed(device: Device, make_port: MakePort) -> None:
    """While open, another program is refused and the terminal is in exclusive mode; closed, neither holds."""
    port = make_port()
    await ask(port, "alice", b"a")
    assert is_exclusive(device)
    assert "Could not exclusively lock port" in await opens_elsewhere(device.path)
    await port.aclose()
    assert not is_exclusive(device)
    assert await opens_elsewhere(device.path) == "opened\n"


async def test_port_of_another_program_is_refused(device: Device, make_port: MakePort) -> None:
    """A port that somebody else has locked gives LineOpenError with the cure, and works once it is free."""
    import serial

    port = make_port()
    with serial.Serial(device.path, exclusive=True):
        with pytest.raises(LineOpenError, match=r"has locked it\. One SharedSerialPort"):
            await ask(port, "alice", b"a")
        assert not is_exclusive(device)
    assert await ask(port, "alice", b"a") == b"re a"


async def test_sharing_with_other_programs_can_be_allowed(device: Device, make_port: MakePort) -> None:
    """With ``exclusive=False`` no lock is set."""
    port = make_port(exclusive=False)
    await ask(port, "alice", b"a")
    assert not is_exclusive(device)
    assert await opens_elsewhere(device.path) == "opened\n"
