"""A device that goes away and comes back, on real ptys behind a link: who waits, who is told, what is asked first."""

import os
import tty
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from trio_daq.errors import AcquireTimeoutError, LineLostError, LineOpenError, ReplyError, SessionClosedError
from trio_daq.serialport import LineState, SerialPortConfig, SharedSerialPort
from trio_daq.wire import Exchange, SyncQuery

pytestmark = pytest.mark.skipif(os.name != "posix", reason="ptys are POSIX")

SYNC = SyncQuery("ECHO {nonce}", "{nonce}")


class Socket:
    """Where devices are plugged in: a link that points to the pty of the present one."""

    def __init__(self, link: Path, nursery: trio.Nursery) -> None:
        self.link = link
        self.asked: list[bytes] = []
        self._nursery = nursery
        self._ends: tuple[int, int] | None = None
        self._kept: list[int] = []

    def plug(self, name: bytes = b"ACME,1") -> None:
        """Plug in a device that says *name* to ``*IDN?``, X to ``ECHO X``, nothing to ``mute``, else ``re X``."""
        master, client_end = os.openpty()
        tty.setraw(client_end)
        os.set_blocking(master, False)
        self._ends = master, client_end
        self.link.symlink_to(os.ttyname(client_end))
        self._nursery.start_soon(self._serve, master, name)

    def unplug(self) -> None:
        if self._ends is not None:
            self.link.unlink()
            # A number that is free again would be given to the next pty: keep it busy, so that the path does change.
            self._kept.append(os.openpty()[1])
            trio.lowlevel.notify_closing(self._ends[0])
            for end in self._ends:
                os.close(end)
            self._ends = None

    async def _serve(self, master: int, name: bytes) -> None:
        data = b""
        try:
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
                        os.write(master, (name if line == b"*IDN?" else b"re " + line) + b"\n")
        except (trio.ClosedResourceError, OSError):
            return


@pytest.fixture
async def socket(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Socket]:
    """A socket with a device in it."""
    place = Socket(tmp_path / "stage", nursery)
    place.plug()
    yield place
    place.unplug()


def port_of(socket: Socket, **settings: Any) -> SharedSerialPort:
    defaults = {"path": str(socket.link), "timeout": 0.3, "quiet_time": 0.03, "acquire_timeout": 5.0}
    return SharedSerialPort(SerialPortConfig(**{**defaults, "sync_query": SYNC, **settings}))


async def ask(port: SharedSerialPort, owner: str, command: bytes, timeout: float | None = None) -> bytes:
    async with port.acquire(owner, timeout) as guard:
        return await guard.query(command)


async def until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until *condition* holds, for *seconds* at most."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for is outside of Trio
            await trio.sleep(0.005)


async def test_a_holder_in_a_read_is_told_within_a_tenth_of_a_second(socket: Socket, nursery: trio.Nursery) -> None:
    """Unplugging wakes whoever waits for a reply, with LineLostError."""
    port = port_of(socket, timeout=5.0)
    await port.recover()
    told: list[float] = []

    async def holder() -> None:
        with pytest.raises(LineLostError):
            await ask(port, "holder", b"mute")
        told.append(trio.current_time())

    nursery.start_soon(holder)
    await trio.sleep(0.1)
    socket.unplug()
    pulled = trio.current_time()
    await until(lambda: bool(told), 3)
    assert told[0] - pulled < 0.1
    assert port.state is LineState.LOST
    await port.aclose()


async def test_who_is_in_line_waits_for_the_device(socket: Socket, nursery: trio.Nursery) -> None:
    """A lost device that comes back within the deadline serves everybody in line, in order."""
    port = port_of(socket)
    assert await ask(port, "alice", b"a") == b"re a"
    socket.unplug()
    replies: list[bytes] = []

    async def waiter(command: bytes) -> None:
        replies.append(await ask(port, f"waiter {command!r}", command))

    for command in (b"b", b"c", b"d"):
        nursery.start_soon(waiter, command)
        await trio.testing.wait_all_tasks_blocked()
    await trio.sleep(0.3)
    socket.plug()
    await until(lambda: len(replies) == 3, 4)
    assert replies == [b"re b", b"re c", b"re d"]
    assert port.statistics().opens == 2
    await port.aclose()


async def test_a_keeper_opens_it_again_while_nobody_wants_it(socket: Socket, nursery: trio.Nursery) -> None:
    """With `keep` running, an idle port notices the loss within two heartbeats and is back before anybody asks."""
    port = port_of(socket)
    nursery.start_soon(port.keep)
    assert await ask(port, "alice", b"a") == b"re a"
    socket.unplug()
    await until(lambda: port.state is LineState.LOST, 3)
    socket.plug()
    await until(lambda: port.state is LineState.CLEAN, 4)
    assert socket.asked == [b"a"]
    assert await ask(port, "bob", b"b", timeout=0.2) == b"re b"
    await port.aclose()


async def test_a_keeper_ends_with_its_port(socket: Socket) -> None:
    """Closing the port ends `keep`, also in the middle of waiting for a device that is gone."""
    port = port_of(socket)
    await port.recover()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(port.keep)
            await trio.sleep(0.05)
            socket.unplug()
            with pytest.raises((LineLostError, AcquireTimeoutError)):
                await ask(port, "alice", b"mute", timeout=0.1)
            await trio.sleep(0.3)
            await port.aclose()


async def test_another_device_is_refused(socket: Socket) -> None:
    """With ``identify``, what is plugged in instead gets no command of anybody, until the right one is back."""
    port = port_of(socket, identify=Exchange(query="*IDN?", expect="ACME,.*"), acquire_timeout=1.0)
    assert await ask(port, "alice", b"a") == b"re a"
    socket.unplug()
    socket.plug(b"OTHER,7")
    with pytest.raises(LineOpenError, match=r"another device is there: it answers '\*IDN\?' by 'OTHER,7'") as caught:
        await ask(port, "bob", b"b")
    assert "Expected 'ACME,.*'" in str(caught.value)
    assert socket.asked == [b"*IDN?", b"a", b"*IDN?"]
    socket.unplug()
    socket.plug()
    assert await ask(port, "bob", b"b2") == b"re b2"
    assert b"b" not in socket.asked
    await port.aclose()


async def test_a_device_that_does_not_say_who_it_is_is_refused(socket: Socket) -> None:
    """An identify query without an answer is an error that says so; nothing else is asked."""
    port = port_of(socket, identify=Exchange(query="mute", expect="ACME"))
    with pytest.raises(LineOpenError, match="does not answer 'mute', by which it is recognised"):
        await ask(port, "alice", b"a")
    assert socket.asked == [b"mute"]
    await port.aclose()


async def test_what_it_has_to_know_again_is_told_before_the_next_grant(socket: Socket) -> None:
    """``on_reconnect`` runs when the device has come back, not at the first opening, and before anybody's command."""
    steps = (Exchange(write="mute"), Exchange(query="mode 2", expect="re mode 2"))
    port = port_of(socket, on_reconnect=steps)
    assert await ask(port, "alice", b"a") == b"re a"
    socket.unplug()
    socket.plug()
    assert await ask(port, "bob", b"b") == b"re b"
    assert await ask(port, "bob", b"c") == b"re c"
    assert socket.asked == [b"a", b"mute", b"mode 2", b"b", b"c"]
    await port.aclose()


async def test_an_unexpected_answer_when_it_comes_back_is_told(socket: Socket) -> None:
    """A step of ``on_reconnect`` with another answer is a ReplyError, and the port serves nobody until it is right."""
    port = port_of(socket, on_reconnect=[Exchange(query="mode 2", expect="OK")])
    assert await ask(port, "alice", b"a") == b"re a"
    socket.unplug()
    socket.plug()
    for _ in range(2):
        with pytest.raises(ReplyError, match="expected 'OK', since the device has come back"):
            await ask(port, "bob", b"b")
    assert socket.asked == [b"a", b"mode 2", b"mode 2"]
    assert port.current_owner() is None
    await port.aclose()


async def test_cancelled_while_it_is_recognised(socket: Socket) -> None:
    """Who is cancelled in the middle of ``identify`` leaves it to the next owner, who asks it again."""
    port = port_of(socket, identify=Exchange(query="slow", expect="re slow"))
    await port.open()
    for _ in range(3):
        with trio.move_on_after(0.0001):
            await ask(port, "hasty", b"never")
    assert await ask(port, "bob", b"b") == b"re b"
    # On a busy computer a hasty one may be through with it before the time is looked at.
    commands = [asked for asked in socket.asked if asked != b"slow"]
    assert commands in ([b"b"], [b"never", b"b"])
    assert socket.asked[socket.asked.index(commands[0]) - 1] == b"slow"
    await port.aclose()


async def test_closing_ends_the_wait_for_a_lost_device(socket: Socket, nursery: trio.Nursery) -> None:
    """Who waits for a device to come back gets SessionClosedError at once when the port is closed."""
    port = port_of(socket, acquire_timeout=30.0)
    await port.recover()
    socket.unplug()
    told = trio.Event()

    async def waiter() -> None:
        with pytest.raises(SessionClosedError):
            await ask(port, "waiter", b"a")
        told.set()

    nursery.start_soon(waiter)
    await trio.sleep(0.3)
    with trio.fail_after(1):
        await port.aclose()
        await told.wait()


async def test_without_reconnect_the_first_error_is_the_answer(socket: Socket) -> None:
    """With ``reconnect = False`` nobody waits for a device that is gone."""
    port = port_of(socket, reconnect=False)
    await port.recover()
    socket.unplug()
    began = trio.current_time()
    with pytest.raises((LineOpenError, LineLostError)):
        await ask(port, "alice", b"a")
    with pytest.raises(LineOpenError, match="there is no such serial port"):
        await ask(port, "alice", b"a")
    assert trio.current_time() - began < 1
    socket.plug()
    assert await ask(port, "alice", b"b") == b"re b"
    await port.aclose()
