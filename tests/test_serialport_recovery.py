"""How a line becomes clean again, on a real pty: after half commands, late replies, chatter, cancellation anywhere."""

import os
import tty
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.testing

from trio_daq.errors import AcquireTimeoutError, ExchangeTimeoutError, LineUnusableError
from trio_daq.serialport import LineState, SerialPortConfig, SharedSerialPort
from trio_daq.testing import CancelAtStep

pytestmark = pytest.mark.skipif(os.name != "posix", reason="ptys are POSIX")

LONG = b"x" * 100_000
"""More than a pty holds: some 10 kB."""


class Device:
    """An instrument on a pty that answers X by ``re X``, in two pieces, from the moment it is told to `listen`."""

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        tty.setraw(self.slave)
        os.set_blocking(self.master, False)
        self.path = os.ttyname(self.slave)
        self.lines: list[bytes] = []
        self.listen = trio.Event()
        self.gap = 0.0

    async def serve(self) -> None:
        data = b""
        await self.listen.wait()
        while True:
            await trio.lowlevel.wait_readable(self.master)
            data += os.read(self.master, 65536)
            while b"\n" in data:
                line, _, data = data.partition(b"\n")
                self.lines.append(line)
                if not line.startswith(b"x"):
                    await self.answer(b"re " + line + b"\n")

    async def answer(self, reply: bytes) -> None:
        await trio.sleep(self.gap)
        os.write(self.master, reply[:2])
        await trio.sleep(self.gap)
        os.write(self.master, reply[2:])

    def close(self) -> None:
        trio.lowlevel.notify_closing(self.master)
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
async def device() -> AsyncIterator[Device]:
    """An instrument that does not listen yet."""
    instrument = Device()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(instrument.serve)
        yield instrument
        nursery.cancel_scope.cancel()
    instrument.close()


def make_port(device: Device, **settings: Any) -> SharedSerialPort:
    defaults = {"path": device.path, "timeout": 2.0, "quiet_time": 0.05, "acquire_timeout": 5.0}
    return SharedSerialPort(SerialPortConfig(**{**defaults, **settings}))


async def ask(port: SharedSerialPort, owner: str, command: bytes) -> bytes:
    async with port.acquire(owner) as guard:
        return await guard.query(command)


async def write_half(port: SharedSerialPort) -> None:
    """Write a long command to an instrument that does not read, until it times out."""
    with pytest.raises(ExchangeTimeoutError) as caught:
        async with port.acquire("alice") as guard:
            await guard.write_all(LONG + b"\n", timeout=0.05)
    assert caught.value.sent == "unknown"


async def test_rest_of_a_command_is_sent_before_the_next(device: Device) -> None:
    """A write that timed out half way is finished for the next owner, whose command stands on its own."""
    port = make_port(device)
    await write_half(port)
    device.listen.set()
    assert await ask(port, "bob", b"b") == b"re b"
    assert device.lines == [LONG, b"b"]
    await port.aclose()


async def test_rest_of_a_command_survives_a_retry(device: Device) -> None:
    """A line that takes no bytes is refused; tried again later, the rest of the command still goes first."""
    port = make_port(device, quiet_time=0.02)
    await write_half(port)
    with pytest.raises(LineUnusableError, match="it takes no bytes") as caught:
        await ask(port, "bob", b"b1")
    assert port.state is LineState.UNUSABLE
    device.listen.set()
    with pytest.raises(LineUnusableError, match="could not be made clean before"):
        await ask(port, "bob", b"b2")
    assert caught.value.retry_in is not None
    await trio.sleep(caught.value.retry_in)
    assert await ask(port, "bob", b"b3") == b"re b3"
    assert device.lines == [LONG, b"b3"]
    await port.aclose()


async def test_rest_of_a_command_survives_an_impatient_owner(device: Device) -> None:
    """The owner who left half a command tries another, times out again and leaves input unread: the rest still goes."""
    port = make_port(device, on_acquire="keep")
    await port.recover()
    async with port.acquire("alice") as guard:
        os.write(device.master, b"news")
        assert await guard.read_exactly(2) == b"ne"
        for command in (LONG, b"never"):
            with pytest.raises(ExchangeTimeoutError):
                await guard.write_all(command + b"\n", timeout=0.03)
        assert await guard.read(9) == b"ws"
        os.write(device.master, b"more")
        with pytest.raises(ExchangeTimeoutError):
            await guard.read_exactly(9, timeout=0.03)
    device.listen.set()
    assert await ask(port, "bob", b"b") == b"re b"
    assert device.lines == [LONG, b"b"]
    await port.aclose()


async def test_chatty_line_is_refused_until_it_is_quiet(device: Device) -> None:
    """A line that never falls silent gives LineUnusableError in bounded time, and works once it has stopped."""
    device.listen.set()
    port = make_port(device)

    async def chat() -> None:
        while True:
            os.write(device.master, b"bla\n")
            await trio.sleep(0.01)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(chat)
        began = trio.current_time()
        with pytest.raises(LineUnusableError, match=r"has not been quiet for 0\.05 s") as caught:
            await ask(port, "alice", b"a")
        assert 0.4 < trio.current_time() - began < 3
        began = trio.current_time()
        with pytest.raises(LineUnusableError, match="The next try is in"):
            await ask(port, "bob", b"b1")
        assert trio.current_time() - began < 0.3
        nursery.cancel_scope.cancel()
    assert caught.value.retry_in is not None
    await trio.sleep(caught.value.retry_in)
    assert await ask(port, "bob", b"b2") == b"re b2"
    assert device.lines == [b"b2"]
    await port.aclose()


async def test_flooded_line_does_not_stop_the_program(device: Device) -> None:
    """A device that writes as fast as it can is refused in bounded time, and other tasks go on meanwhile."""
    port = make_port(device)
    await port.recover()
    os.set_blocking(device.master, True)
    flood = await trio.lowlevel.open_process(["cat", "/dev/zero"], stdout=device.master)
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await trio.sleep(0.01)
            beats += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(beat)
        async with port.acquire("alice") as guard:
            guard.discard_input()
            with pytest.raises(ExchangeTimeoutError):
                await guard.read_until(b"\n", timeout=0.1)
            await guard.write_all(b"xa\n")
            with pytest.raises(ExchangeTimeoutError):
                await guard.read_until(b"\n", timeout=0.1)
        with pytest.raises(LineUnusableError):
            await port.recover()
        assert beats > 10
        nursery.cancel_scope.cancel()
    flood.kill()
    await flood.wait()
    os.set_blocking(device.master, False)
    await port.aclose()


async def test_impatient_owners_make_the_line_clean_together(device: Device) -> None:
    """Owners whose deadlines are shorter than the quiet time fail one after the other, until it is clean."""
    device.listen.set()
    port = make_port(device, quiet_time=0.3)
    await port.open()
    failures = 0
    while port.state is not LineState.CLEAN:
        try:
            async with port.acquire(f"owner{failures}", timeout=0.04) as guard:
                assert await guard.query(b"q") == b"re q"
        except AcquireTimeoutError as error:
            last = error
            failures += 1
        assert failures < 20
    assert failures >= 2
    assert (last.phase, last.held_by, last.position) == ("resync", f"owner{failures - 1}", 0)
    assert port.statistics().recoveries == 1
    assert device.lines == [b"q"]
    await port.aclose()


async def test_impatient_owners_give_a_chatty_line_up_together(device: Device) -> None:
    """The time for which owners have listened adds up, so that a line which never falls silent is refused at last."""
    device.listen.set()
    port = make_port(device, quiet_time=0.02)
    await port.open()

    async def chat() -> None:
        while True:
            os.write(device.master, b"bla\n")
            await trio.sleep(0.005)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(chat)
        failures = 0
        while port.state is not LineState.UNUSABLE:
            with pytest.raises((AcquireTimeoutError, LineUnusableError)):
                await port.recover(timeout=0.04)
            failures += 1
            assert failures < 12
        assert failures > 2
        nursery.cancel_scope.cancel()
    await port.aclose()


async def test_quiet_time_counts_from_the_last_byte(device: Device) -> None:
    """Each late byte starts the silence anew, so a reply that dribbles in reaches nobody."""
    device.listen.set()
    port = make_port(device, quiet_time=0.15)
    await port.recover()
    async with port.acquire("alice") as guard:
        await guard.write_all(b"xa\n")
        with pytest.raises(ExchangeTimeoutError):
            await guard.read_until(timeout=0.02)

    async def dribble() -> None:
        for byte in b"late reply\n":
            os.write(device.master, bytes([byte]))
            await trio.sleep(0.04)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dribble)
        assert await ask(port, "bob", b"b") == b"re b"
    assert port.statistics().late_bytes == len(b"late reply\n")
    await port.aclose()


@pytest.mark.parametrize("when", ["before", "after"])
async def test_cancelled_at_any_step_the_next_owner_is_right(device: Device, when: Any) -> None:
    """Cancelled at each step of opening, waiting, resync, a long write and a reply in pieces: the next one is right."""
    device.listen.set()
    device.gap = 0.005
    injected = 0
    for at in range(1, 100):
        port = make_port(device, quiet_time=0.025, timeout=0.2)
        first = injected % 2 == 0  # every other life starts with somebody else in the line, so that there is a queue
        reached = await _life_with_cancellation(port, at, when, first)
        assert await ask(port, "next", b"n%d" % at) == b"re n%d" % at
        assert port.state is LineState.CLEAN
        await port.aclose()
        if not reached:
            break
        injected += 1
    assert injected >= 12
    assert set(device.lines) <= {b"f", LONG, b"own", *(b"n%d" % at for at in range(100))}


async def _life_with_cancellation(port: SharedSerialPort, at: int, when: Any, wait_in_line: bool) -> bool:
    """Use the port and cancel at step *at*; return whether that step was reached."""
    scope = trio.CancelScope()
    finished = False

    async def holder(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with port.acquire("first") as guard:
            task_status.started()
            with trio.move_on_after(0.005):  # leaves its exchange unfinished
                await guard.query(b"f")

    async def owner() -> None:
        nonlocal finished
        with scope, CancelAtStep(scope, at, when):
            async with port.acquire("own") as guard:
                await guard.write_all(LONG + b"\n")
                assert await guard.query(b"own") == b"re own"
                await guard.write_all(b"own\n")
                assert await guard.read_until() == b"re own\n"
            finished = True

    async with trio.open_nursery() as nursery:
        if wait_in_line:
            await nursery.start(holder)
        nursery.start_soon(owner)
    return not finished
