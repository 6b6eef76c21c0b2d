"""What one exchange may leave behind, on a real pty: what an instrument says beyond its reply reaches nobody else."""

import os
import re
import tty
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
import trio
import trio.testing

from trio_daq.errors import ExchangeTimeoutError, GuardReleasedError, LineFeatureError, ReplyError
from trio_daq.serialport import LineState, SerialPortConfig, SharedSerialPort
from trio_daq.wire import SyncQuery

pytestmark = pytest.mark.skipif(os.name != "posix", reason="ptys are POSIX")

SYNC = SyncQuery("ECHO {nonce}", "{nonce}")

Step = bytes | float
"""Bytes to send, or seconds to wait."""


class Device:
    """An instrument on a pty: ``ECHO X`` gives X, and *script* says what else a command gives, by default ``re X``."""

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        tty.setraw(self.slave)
        os.set_blocking(self.master, False)
        self.path = os.ttyname(self.slave)
        self.lines: list[bytes] = []
        self.came_at: list[float] = []
        self.script: Callable[[bytes], Sequence[Step]] = lambda line: [b"re " + line + b"\n"]

    async def serve(self) -> None:
        data = b""
        while True:
            await trio.lowlevel.wait_readable(self.master)
            data += os.read(self.master, 65536)
            self.came_at.append(trio.current_time())
            while b"\n" in data:
                line, _, data = data.partition(b"\n")
                self.lines.append(line)
                steps = [line[5:] + b"\n"] if line.startswith(b"ECHO ") else self.script(line)
                for step in steps:
                    if isinstance(step, float):
                        await trio.sleep(step)
                    else:
                        os.write(self.master, step)

    def asked(self) -> list[bytes]:
        """What was asked, without the sync queries."""
        return [line for line in self.lines if not line.startswith(b"ECHO ")]

    def syncs(self) -> int:
        return sum(line.startswith(b"ECHO ") for line in self.lines)

    def close(self) -> None:
        trio.lowlevel.notify_closing(self.master)
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
async def device() -> AsyncIterator[Device]:
    """An instrument that serves for the length of the test."""
    instrument = Device()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(instrument.serve)
        yield instrument
        nursery.cancel_scope.cancel()
    instrument.close()


async def open_port(device: Device, **settings: Any) -> SharedSerialPort:
    """Return a port that is open and clean, so that the device's log starts anew."""
    defaults = {"path": device.path, "timeout": 0.5, "quiet_time": 0.05, "acquire_timeout": 5.0, "sync_query": SYNC}
    port = SharedSerialPort(SerialPortConfig(**{**defaults, **settings}))
    await port.recover()
    device.lines.clear()
    return port


async def ask(port: SharedSerialPort, command: bytes) -> bytes:
    async with port.acquire(f"asker of {command!r}") as guard:
        return await guard.query(command)


# --- more than a reply -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "leave",
    [
        ("write_all", [b"A?\n"], []),
        ("two writes, one read", [b"A?\n", b"B?\n"], ["read_until"]),
        ("half a read", [b"A?\n"], ["read_exactly"]),
        ("some bytes", [b"A?\n"], ["read"]),
    ],
    ids=lambda leave: leave[0],
)
async def test_a_reply_that_was_left_unread_reaches_nobody(device: Device, leave: Any) -> None:
    """A reply that comes 0.1 s after its owner has gone, having read none or a part of it, is not the next owner's."""
    _, writes, reads = leave
    port = await open_port(device)
    device.script = lambda line: [0.1, b"re " + line + b"\n"] if line == b"B?" else [b"re", 0.1, b" " + line + b"\n"]
    if not reads:
        device.script = lambda line: [0.1, b"re " + line + b"\n"]
    async with port.acquire("leaves") as guard:
        for command in writes:
            await guard.write_all(command)
        if reads == ["read_until"]:
            await guard.read_until()
        elif reads == ["read_exactly"]:
            await guard.read_exactly(2)
        elif reads == ["read"]:
            await guard.read(9)
    assert port.state is LineState.SUSPECT
    device.script = lambda line: [b"re " + line + b"\n"]
    for number in range(3):
        assert await ask(port, b"n%d" % number) == b"re n%d" % number
    assert device.syncs() >= 1
    assert port.statistics().recoveries == 2
    await port.aclose()


@pytest.mark.parametrize("sync_query", [SYNC, None], ids=["sync", "quiet"])
@pytest.mark.parametrize(
    "script",
    [
        lambda line: [b"re " + line + b"\nre " + line + b"\n"],
        lambda line: [line + b"\nre " + line + b"\n"],
        lambda line: [b"re " + line + b"\n", 0.02, b"HELLO\n"],
        lambda line: [b"re " + line + b"\n", 0.02, b"half a li"],
    ],
    ids=["twice", "echo", "unasked line", "unasked bytes"],
)
async def test_what_comes_beyond_the_reply_reaches_nobody(
    device: Device, script: Callable[[bytes], Sequence[Step]], sync_query: SyncQuery | None
) -> None:
    """An answer given twice, an echo in front of it, a line or bytes behind it: everybody else gets their own."""
    port = await open_port(device, sync_query=sync_query)
    device.script = script
    assert await ask(port, b"odd") in (b"re odd", b"odd")
    device.script = lambda line: [b"re " + line + b"\n"]
    await trio.sleep(0.05)
    for number in range(4):
        assert await ask(port, b"n%d" % number) == b"re n%d" % number
    assert device.asked() == [b"odd", b"n0", b"n1", b"n2", b"n3"]
    assert port.state is LineState.CLEAN
    await port.aclose()


async def test_an_echo_before_a_slow_reply_reaches_nobody(device: Device) -> None:
    """The command comes back at once and the reply proper 50 ms later, when its asker has gone: it is read away."""
    port = await open_port(device)
    device.script = lambda line: [line + b"\n", 0.05, b"re " + line + b"\n"]
    assert await ask(port, b"odd") == b"odd"
    device.script = lambda line: [b"re " + line + b"\n"]
    assert await ask(port, b"next") == b"re next"
    await port.aclose()


async def test_an_odd_line_is_no_lasting_slip(device: Device) -> None:
    """Inside one block, a second line that comes late makes one query wrong at the most, never those that follow."""
    port = await open_port(device, sync_query=None)
    async with port.acquire("owner") as guard:
        device.script = lambda line: [b"re " + line + b"\n", 0.02, b"HELLO\n"]
        assert await guard.query(b"odd") == b"re odd"
        device.script = lambda line: [b"re " + line + b"\n"]
        await trio.sleep(0.05)
        for number in range(4):
            assert await guard.query(b"n%d" % number) == b"re n%d" % number
    assert port.statistics().stray_bytes == len(b"HELLO\n")
    await port.aclose()


async def test_a_query_is_not_answered_by_what_was_written_before_it(device: Device) -> None:
    """In one block, a command whose reply was left unread comes before a query: the query gets its own reply."""
    port = await open_port(device)
    device.script = lambda line: [0.05 if line == b"A?" else 0.0, b"re " + line + b"\n"]
    async with port.acquire("owner") as guard:
        await guard.write_all(b"A?\n")
        assert await guard.query(b"B?") == b"re B?"
    await port.aclose()


async def test_commands_may_be_written_ahead(device: Device) -> None:
    """Several commands first and their replies afterwards: each comes in its order, and the line is clean."""
    port = await open_port(device)
    async with port.acquire("owner") as guard:
        for number in range(5):
            await guard.write_all(b"n%d\n" % number)
            await trio.sleep(0.01)
        assert [await guard.read_until() for _ in range(5)] == [b"re n%d\n" % number for number in range(5)]
    assert port.state is LineState.CLEAN
    assert device.syncs() == 0
    await port.aclose()


# --- match -------------------------------------------------------------------------------------------------------


async def test_match_drops_what_does_not_fit(device: Device) -> None:
    """Lines that do not match are dropped and counted, the one that does is returned, and the line is made clean."""
    port = await open_port(device)
    device.script = lambda line: [b"re old\n", b"HELLO\n", b"re " + line + b"\n"]
    async with port.acquire("owner") as guard:
        assert await guard.query(b"n1", match=rb"\bn1\b") == b"re n1"
    assert (port.state, port.statistics().unmatched) == (LineState.DIRTY, 2)
    device.script = lambda line: [b"re " + line + b"\n"]
    assert await ask(port, b"n2") == b"re n2"
    await port.aclose()


async def test_match_that_is_never_met_times_out(device: Device) -> None:
    """A reply that does not match is not returned for want of a better one; the error shows the trace."""
    port = await open_port(device)
    async with port.acquire("owner") as guard:
        with pytest.raises(ExchangeTimeoutError) as caught:
            await guard.query(b"n1", match=b"n2", timeout=0.05)
    messages = [(entry.owner, entry.direction, entry.data) for entry in caught.value.trace][-3:]
    assert messages == [("owner", "write", b"n1\n"), ("owner", "read", b"re n1\n"), ("nobody", "drop", b"re n1\n")]
    assert await ask(port, b"n3") == b"re n3"
    await port.aclose()


# --- lines that come by themselves ---------------------------------------------------------------------------------


async def test_unsolicited_lines_go_to_the_side_channel(device: Device) -> None:
    """Lines that match ``unsolicited`` are nobody's reply, wherever they come; who wants them gets them in order."""
    port = await open_port(device, unsolicited=rb"EVENT \d+")
    with port.unsolicited() as events:
        device.script = lambda line: [b"EVENT 1\n", b"re " + line + b"\nEVENT 2\n", 0.02, b"EVENT 3\n"]
        assert await ask(port, b"n1") == b"re n1"
        await trio.sleep(0.05)
        device.script = lambda line: [b"re " + line + b"\n"]
        async with port.acquire("reader") as guard:
            await guard.write_all(b"n2\n")
            assert await guard.read_until() == b"re n2\n"
        device.script = lambda line: [0.1, b"EVENT 4\nre " + line + b"\n"]
        async with port.acquire("hasty") as guard:
            with pytest.raises(ExchangeTimeoutError):
                await guard.query(b"n3", timeout=0.02)
        device.script = lambda line: [b"re " + line + b"\n"]
        assert await ask(port, b"n4") == b"re n4"
        assert [events.receive_nowait() for _ in range(4)] == [b"EVENT %d" % number for number in range(1, 5)]
    assert (port.statistics().unsolicited, port.statistics().stray_bytes) == (4, 0)
    await port.aclose()


async def test_a_keeper_hears_them_on_an_idle_port(device: Device, nursery: trio.Nursery) -> None:
    """With `keep` running, a line that comes while nobody uses the port arrives within about a second."""
    port = await open_port(device, unsolicited=b"EVENT.*")
    nursery.start_soon(port.keep)
    with port.unsolicited() as events, trio.fail_after(3):
        os.write(device.master, b"EVENT idle\n")
        assert await events.receive() == b"EVENT idle"
    await port.aclose()


async def test_a_subscriber_that_does_not_read_loses_the_newest(device: Device) -> None:
    """It costs the port nothing: replies go on, and what there was room for is there."""
    port = await open_port(device, unsolicited=b"EVENT.*")
    device.script = lambda line: [b"EVENT " + line + b"\nre " + line + b"\n"]
    with port.unsolicited(room=2) as events:
        for number in range(5):
            assert await ask(port, b"n%d" % number) == b"re n%d" % number
        assert [events.receive_nowait() for _ in range(2)] == [b"EVENT n0", b"EVENT n1"]
        with pytest.raises(trio.WouldBlock):
            events.receive_nowait()
    await port.aclose()


# --- the manner of speaking ----------------------------------------------------------------------------------------


async def test_an_announced_echo_is_read_and_compared(device: Device) -> None:
    """With ``echo`` the command comes back first and is not taken for the reply; a wrong one is a ReplyError."""
    port = await open_port(device, echo=True, sync_query=None)
    device.script = lambda line: [line + b"\n", b"re " + line + b"\n"]
    assert await ask(port, b"n1") == b"re n1"
    assert port.state is LineState.CLEAN
    device.script = lambda line: [line.upper() + b"\n", b"re " + line + b"\n"]
    with pytest.raises(ReplyError, match="sent back") as caught:
        await ask(port, b"n2")
    assert (caught.value.reply, caught.value.sent) == (b"N2\n", "yes")
    device.script = lambda line: [line + b"\n", b"re " + line + b"\n"]
    assert await ask(port, b"n3") == b"re n3"
    await port.aclose()


async def test_a_gap_is_kept_between_messages(device: Device) -> None:
    """With ``min_gap`` a command goes out that long after the last byte either way, also between owners."""
    port = await open_port(device, min_gap=0.05)
    gaps = []
    for number in range(4):
        await ask(port, b"n%d" % number)
        answered = trio.current_time()
        device.came_at.clear()
        await ask(port, b"m%d" % number)
        gaps.append(device.came_at[0] - answered)
    assert min(gaps) >= 0.045
    await port.aclose()


async def test_bytes_are_written_one_by_one(device: Device) -> None:
    """With ``char_delay`` each byte goes out by itself; cancelled in the middle, the rest goes before the next one."""
    port = await open_port(device, char_delay=0.01, sync_query=None)
    device.came_at.clear()
    assert await ask(port, b"abcdefgh") == b"re abcdefgh"
    assert len(device.came_at) == 9
    with trio.move_on_after(0.045):
        await ask(port, b"ABCDEFGH")
    assert await ask(port, b"next") == b"re next"
    assert device.asked() == [b"abcdefgh", b"ABCDEFGH", b"next"]
    await port.aclose()


async def test_a_gap_longer_than_the_deadline_sends_nothing(device: Device) -> None:
    """A command whose turn comes after its deadline is not sent."""
    port = await open_port(device, min_gap=0.3)
    await ask(port, b"n1")
    async with port.acquire("hasty") as guard:
        with pytest.raises(ExchangeTimeoutError) as caught:
            await guard.query(b"never", timeout=0.05)
    assert caught.value.sent == "no"
    assert device.asked() == [b"n1"]
    await port.aclose()


# --- the rest of the guard -----------------------------------------------------------------------------------------


async def test_a_pty_has_no_modem_lines(device: Device) -> None:
    """What a device cannot is one error, an OSError, that names the call; the port goes on."""
    port = await open_port(device)
    async with port.acquire("owner") as guard:
        for call in (guard.modem_lines, lambda: guard.set_modem_lines(dtr=True)):
            with pytest.raises(LineFeatureError, match="modem_lines of 'owner' is not possible"):
                await call()
        assert await guard.query(b"n1") == b"re n1"
    await port.aclose()


async def test_the_baud_rate_can_be_changed_on_the_open_port(device: Device) -> None:
    """The driver has it, the port says it, and a break goes through; nonsense is refused before it gets there."""
    port = await open_port(device)
    async with port.acquire("owner") as guard:
        await guard.set_baud_rate(57600)
        await guard.send_break(0.01)
        with pytest.raises(ValueError, match="baud_rate must be at least 1"):
            await guard.set_baud_rate(0)
        assert await guard.query(b"n1") == b"re n1"
    import termios

    assert (port.baud_rate, termios.tcgetattr(device.slave)[4]) == (57600, termios.B57600)
    await port.aclose()


async def test_a_break_lasts_as_long_as_it_was_told_to(device: Device) -> None:
    """The line is held for the time that was asked for, and a cancellation waits for its end."""
    port = await open_port(device)
    async with port.acquire("owner") as guard:
        began = trio.current_time()
        await guard.send_break(0.3)
        assert 0.3 <= trio.current_time() - began < 1
        with trio.move_on_after(0.05):
            await guard.send_break(0.3)
        assert trio.current_time() - began >= 0.6
        assert await guard.query(b"n1") == b"re n1"
    await port.aclose()


async def test_released_from_another_task_in_the_middle_of_a_read(device: Device, nursery: trio.Nursery) -> None:
    """The reader gets GuardReleasedError, and the next owner reads undisturbed and gets no late reply."""
    port = await open_port(device)
    device.script = lambda line: [0.1 if line == b"slow" else 0.0, b"re " + line + b"\n"]
    failed = trio.Event()
    guards = []

    async def reader() -> None:
        async with port.acquire("reader") as guard:
            guards.append(guard)
            with pytest.raises(GuardReleasedError):
                await guard.query(b"slow")
            failed.set()

    nursery.start_soon(reader)
    await trio.sleep(0.03)
    guards[0].release()
    assert await ask(port, b"n1") == b"re n1"
    with trio.fail_after(2):
        await failed.wait()
    await port.aclose()


async def test_text_is_refused_where_bytes_are_meant(device: Device) -> None:
    """Data of a wrong type gives a TypeError that says so, nothing is sent, and the line stays clean."""
    port = await open_port(device)
    async with port.acquire("owner") as guard:
        for call in (guard.query, guard.write_all, guard.write_only):
            with pytest.raises(TypeError, match=re.escape("data is bytes, not '*IDN?'")):
                await call("*IDN?")  # type: ignore[arg-type]
    assert (port.state, device.lines) == (LineState.CLEAN, [])
    await port.aclose()


async def test_the_trace_is_logged_where_it_is_asked_for(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    """With ``trace`` each message is a log record; without, the last 200 exchanges are kept all the same."""
    port = await open_port(device, trace=True)
    caplog.set_level("INFO", "trio_daq.trace")
    caplog.clear()
    assert await ask(port, b"n1") == b"re n1"
    said = [record.getMessage() for record in caplog.records if record.name == "trio_daq.trace"]
    assert said == [f"{device.path}: asker of b'n1' {words}" for words in ("write b'n1\\n'", "read b're n1\\n'")]
    for number in range(300):
        await ask(port, b"k%d" % number)
    assert [entry.data for entry in port.trace()[-2:]] == [b"k299\n", b"re k299\n"]
    assert len(port.trace()) == 400
    await port.aclose()
