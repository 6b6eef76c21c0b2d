"""Corners of a shared port, on the virtual clock: what happens between losing, revoking, recovering and closing."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import attrs
import pytest
import trio

from trio_daq.errors import (
    AcquireTimeoutError,
    ExchangeTimeoutError,
    LeaseRevokedError,
    LineLostError,
    PortBusyError,
    SessionClosedError,
)
from trio_daq.serialport import LineState, SerialPortConfig, SharedSerialPort
from trio_daq.sharing import Lease
from trio_daq.sim import MemoryLine
from trio_daq.wire import Exchange, SyncQuery

CONFIG = SerialPortConfig(path="memory", timeout=1.0, quiet_time=0.5, acquire_timeout=5.0)
ECHO = SyncQuery("ECHO {nonce}", "{nonce}")


class Instrument:
    """``N DELAY`` gives ``re N`` after DELAY seconds, ``ECHO X`` gives X, anything else gives ``re`` and itself."""

    def __init__(self, line: MemoryLine) -> None:
        self.line = line
        self.heard: list[bytes] = []
        self.mute: set[bytes] = set()

    async def serve(self) -> None:
        data = b""
        while True:
            data += await self.line.receive()
            while b"\n" in data:
                command, _, data = data.partition(b"\n")
                self.heard.append(command)
                words = command.split()
                if any(command.startswith(beginning) for beginning in self.mute):
                    continue
                if b"ECHO" in words:
                    self.line.send(command.replace(b"ECHO ", b"") + b"\n")
                elif len(words) == 2 and words[1].replace(b".", b"").isdigit():
                    await trio.sleep(float(words[1]))
                    self.line.send(b"re " + words[0] + b"\n")
                else:
                    self.line.send(b"re " + command + b"\n")


@pytest.fixture
async def line() -> MemoryLine:
    return MemoryLine()


@pytest.fixture
async def instrument(line: MemoryLine, nursery: trio.Nursery) -> Instrument:
    device = Instrument(line)
    nursery.start_soon(device.serve)
    return device


def port_on(line: MemoryLine, **changes: Any) -> SharedSerialPort:
    return SharedSerialPort(attrs.evolve(CONFIG, **changes), line.open_stream)


async def ask(port: SharedSerialPort, command: bytes, timeout: float | None = None) -> bytes:
    async with port.acquire("asker", timeout) as guard:
        return await guard.query(command)


@pytest.mark.parametrize("on_acquire", ["keep", "discard"])
async def test_a_block_never_opens_a_lost_line(
    autojump_clock: Any, line: MemoryLine, instrument: Instrument, on_acquire: Any
) -> None:
    """Another device that is plugged in meanwhile hears nothing of the block in which the first one was lost."""
    port = port_on(line, on_acquire=on_acquire, identify=Exchange(query="*IDN?", expect="re .*"))
    async with port.acquire("owner") as guard:
        line.unplug()
        with pytest.raises(LineLostError):
            await guard.query(b"1 0")
        line.plug()
        heard = list(instrument.heard)
        for call in (guard.write_all, guard.write_only, guard.query):
            with pytest.raises(LineLostError, match="earlier in this block"):
                await call(b"OPEN")
        with pytest.raises(LineLostError):
            guard.discard_input()
        assert instrument.heard == heard
    assert await ask(port, b"2 0") == b"re 2"
    assert instrument.heard[-2:] == [b"*IDN?", b"2 0"]


async def test_the_longest_patience_of_a_cut_exchange_counts(
    autojump_clock: Any, line: MemoryLine, instrument: Instrument
) -> None:
    """A query of 10 s that is cut, and a short read after it: its reply is waited for, and reaches nobody else."""
    port = port_on(line)
    async with port.acquire("hasty") as guard:
        with trio.move_on_after(0.1):
            await guard.query(b"1 5", timeout=10)
        with pytest.raises(ExchangeTimeoutError):
            await guard.read_until(timeout=0.5)
    assert await ask(port, b"2 0", timeout=30) == b"re 2"


async def test_revoked_in_the_middle_of_making_it_clean(
    autojump_clock: Any, line: MemoryLine, instrument: Instrument, nursery: trio.Nursery
) -> None:
    """An owner who is revoked while their own block makes the line clean gives it over; the next gets their reply."""
    port = port_on(line, sync_query=ECHO)
    caught: list[Exception] = []

    async def owner() -> None:
        async with port.acquire("owner") as guard:
            with trio.move_on_after(0.1):
                await guard.query(b"1 3", timeout=9)
            try:
                await guard.query(b"2 0", timeout=9)
            except LeaseRevokedError as error:
                caught.append(error)

    nursery.start_soon(owner)
    await trio.sleep(1)
    assert port.revoke("test") == "owner"
    assert await ask(port, b"3 0", timeout=20) == b"re 3"
    assert [error.sent for error in caught] == ["no"]
    assert b"2 0" not in instrument.heard


async def test_assumed_off_while_it_is_asked(
    autojump_clock: Any, line: MemoryLine, instrument: Instrument, nursery: trio.Nursery
) -> None:
    """A station that is said to be off while somebody waits for its answer lets them go on at once."""
    stations = {name: SyncQuery(f"{name} ECHO {{nonce}}", f"{name} {{nonce}}") for name in "ab"}
    port = port_on(line, stations=stations)
    instrument.mute.add(b"b ")
    served: list[float] = []

    async def owner() -> None:
        async with port.acquire("owner", 30, station="a") as guard:
            assert await guard.query(b"a 0") == b"re a"
            served.append(trio.current_time())

    nursery.start_soon(owner)
    await trio.sleep(2)
    assert served == []
    port.assume_off("b")
    await trio.sleep(8)
    assert len(served) == 1
    assert served[0] < 10


async def test_a_closed_port_says_so_at_once_though_it_is_held(
    autojump_clock: Any, line: MemoryLine, instrument: Instrument
) -> None:
    """Who asks for a port that was closed under its holder is not left to wait for that holder."""
    port = port_on(line)
    async with port.acquire("holder"):
        await port.aclose()
        began = trio.current_time()
        for timeout in (0, 3):
            with pytest.raises(SessionClosedError):
                await ask(port, b"1 0", timeout=timeout)
        assert trio.current_time() == began


async def test_a_port_is_closed_by_its_own_block(autojump_clock: Any, line: MemoryLine, instrument: Instrument) -> None:
    """After ``async with port`` the device is free, whatever the block raised."""
    for error in (None, KeyError):
        try:
            async with port_on(line) as port:
                assert await ask(port, b"1 0") == b"re 1"
                if error is not None:
                    raise error
        except KeyError:
            assert error is KeyError
        with pytest.raises(SessionClosedError):
            await ask(port, b"1 0")


async def test_what_a_greeting_leaves_behind_is_cleared(
    autojump_clock: Any, line: MemoryLine, nursery: trio.Nursery
) -> None:
    """An instrument that echoes its identify query: the first owner gets the reply to their own command."""

    async def echoing() -> None:
        data = b""
        while True:
            data += await line.receive()
            while b"\n" in data:
                command, _, data = data.partition(b"\n")
                if not command.startswith(b"ECHO"):
                    line.send(command + b"\n")
                    await trio.sleep(0.02)
                line.send((command[5:] if command.startswith(b"ECHO") else b"re " + command) + b"\n")

    nursery.start_soon(echoing)
    port = port_on(line, sync_query=ECHO, identify=Exchange(query="*IDN?"))
    async with port.acquire("owner") as guard:
        assert await guard.query(b"POS?", match=b"^re ") == b"re POS?"
    assert port.statistics().exchanges == {"owner": 1}


async def test_no_owner_is_revoked_before_they_have_anything(
    autojump_clock: Any, line: MemoryLine, nursery: trio.Nursery
) -> None:
    """While a device is being recognised there is nothing to take back, and its owner gets the port afterwards."""
    port = port_on(line, identify=Exchange(query="1 2", expect="re 1"), timeout=5.0)
    nursery.start_soon(Instrument(line).serve)
    got: list[bytes] = []

    async def owner() -> None:
        got.append(await ask(port, b"2 0", timeout=20))

    nursery.start_soon(owner)
    await trio.sleep(1)
    assert port.revoke("test") is None
    await trio.sleep(9)
    assert got == [b"re 2"]


async def test_the_trace_shows_what_went_out_and_what_recovery_heard(
    autojump_clock: Any, line: MemoryLine, instrument: Instrument
) -> None:
    """A command that was cut before its first byte is not in it; a sync query and what came instead are."""
    port = port_on(line, min_gap=1.0, sync_query=ECHO, timeout=3.0)
    assert await ask(port, b"1 0") == b"re 1"
    with trio.move_on_after(0.2):
        await ask(port, b"never 0")
    assert b"never 0\n" not in [entry.data for entry in port.trace()]
    assert [entry.direction for entry in port.trace() if entry.owner == "recovery"] == ["write", "read"]


async def test_short_or_no_time_is_told_as_it_is(
    autojump_clock: Any, line: MemoryLine, instrument: Instrument, nursery: Any
) -> None:
    """With ``timeout=0`` a port that has still to be opened is opened all the same; one that is held is busy."""
    port = port_on(line)
    assert await ask(port, b"1 0", timeout=0) == b"re 1"
    async with port.acquire("holder"):
        with pytest.raises(PortBusyError):
            async with port.acquire("other", timeout=0):
                pytest.fail("two owners")
    line.unplug()
    with pytest.raises(AcquireTimeoutError) as caught:
        await ask(port, b"1 0", timeout=0)
    assert (caught.value.phase, caught.value.sent) == ("open", "no")


async def test_a_time_out_shows_what_came_and_was_not_taken(
    autojump_clock: Any, line: MemoryLine, instrument: Instrument
) -> None:
    """Replies that did not match, or went to the side channel, are named in the error."""
    port = port_on(line, unsolicited="re U.*")
    async with port.acquire("owner") as guard:
        with pytest.raises(ExchangeTimeoutError, match=r"not taken for the reply: b're 1\\n'") as caught:
            await guard.query(b"1 0", match=b"xx")
        assert caught.value.dropped == b"re 1\n"
        with pytest.raises(ExchangeTimeoutError, match=r"not taken for the reply: b're UX\\n'"):
            await guard.query(b"UX")


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda guard: guard.query(b"A?", match="re"), "match is bytes"),
        (lambda guard: guard.query(b"A?", match=b"(re"), "match must be a regular expression"),
        (lambda guard: guard.query(b"A?\n"), "query adds the terminator"),
        (lambda guard: guard.query("A?"), "data is bytes"),
        (lambda guard: guard.read_exactly(2.0), "count is a whole number"),
        (lambda guard: guard.read(0), "max_bytes must be at least 1"),
        (lambda guard: guard.read_until("\n"), "data is bytes"),
        (lambda guard: guard.send_break(9), "duration must be 5 s at most"),
        (lambda guard: guard.set_baud_rate(True), "baud_rate is a whole number"),
    ],
)
async def test_a_mistake_in_a_call_is_told_before_anything_is_sent(
    autojump_clock: Any, line: MemoryLine, instrument: Instrument, mistake: Any, message: str
) -> None:
    """TypeError or ValueError in one sentence; the instrument hears nothing, and the line stays clean."""
    port = port_on(line)
    async with port.acquire("owner") as guard:
        with pytest.raises((TypeError, ValueError), match=message):
            await mistake(guard)
    assert (instrument.heard, port.state) == ([], LineState.CLEAN)


async def test_a_swapped_owner_and_timeout_is_told(autojump_clock: Any, line: MemoryLine) -> None:
    """``acquire(5.0)`` says what was probably meant; settings that are no settings likewise."""
    with pytest.raises(TypeError, match=r"an owner is a name, not 5\.0; did you mean timeout=5\.0"):
        port_on(line).acquire(5.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="SerialPortConfig"):
        SharedSerialPort("/dev/ttyUSB0")  # type: ignore[arg-type]


async def test_max_hold_says_whether_something_was_sent(
    autojump_clock: Any, line: MemoryLine, instrument: Instrument
) -> None:
    """A block that is cancelled for holding too long and had sent nothing ends with ``sent = "no"``."""
    port = port_on(line, max_hold=1.0)
    with pytest.raises(LeaseRevokedError) as caught:
        async with port.acquire("idler"):
            await trio.sleep(5)
    assert caught.value.sent == "no"


async def test_a_lease_keeps_no_task_alive(autojump_clock: Any) -> None:
    """An owner whose task has ended can be freed, under whatever name it had the lease."""
    lease = Lease("stage", max_hold=5)
    tasks: list[weakref.ref[trio.lowlevel.Task]] = []

    async def owner(name: str) -> None:
        tasks.append(weakref.ref(trio.lowlevel.current_task()))
        async with lease.hold(name):
            await trio.sleep(0.1)

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(owner, f"run {number}")
    await trio.sleep(10)  # its alarms are forgotten when their time has come
    gc.collect()
    assert [task() for task in tasks if task() is not None] == []


class Echoing(Instrument):
    """Sends each line back at once, and then does as the others."""

    async def serve(self) -> None:
        send, receive = trio.open_memory_channel[bytes](100)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.answer, receive)
            data = b""
            while True:
                data += await self.line.receive()
                while b"\n" in data:
                    command, _, data = data.partition(b"\n")
                    self.line.send(command + b"\n")
                    send.send_nowait(command)

    async def answer(self, commands: trio.MemoryReceiveChannel[bytes]) -> None:
        async for command in commands:
            number, _, delay = command.partition(b" ")
            await trio.sleep(0.05 if number == b"ECHO" else float(delay))
            self.line.send((delay if number == b"ECHO" else b"re " + number) + b"\n")


@pytest.mark.parametrize("sync_query", [ECHO, None], ids=["sync", "quiet"])
async def test_an_echoed_sync_query_is_no_answer(
    autojump_clock: Any, line: MemoryLine, nursery: trio.Nursery, sync_query: SyncQuery | None
) -> None:
    """On a line that echoes, neither the sync query that comes back nor an echo ends the wait for a late reply."""
    nursery.start_soon(Echoing(line).serve)
    port = port_on(line, echo=True, sync_query=sync_query, timeout=2.0)
    async with port.acquire("hasty") as guard:
        with trio.move_on_after(0.1):
            await guard.query(b"1 1.5")
    for number in (b"2", b"3", b"4"):
        assert await ask(port, number + b" 0.01") == b"re " + number


async def test_a_part_of_a_reply_is_no_whole_one(autojump_clock: Any, line: MemoryLine, instrument: Instrument) -> None:
    """What is read up to a terminator of the caller's own leaves a doubt, and its rest reaches nobody."""
    port = port_on(line, sync_query=ECHO)
    async with port.acquire("owner") as guard:
        await guard.write_all(b"1 0.5\n")
        line.send(b"1.0,")
        assert await guard.read_until(b",") == b"1.0,"
    assert port.state is LineState.SUSPECT
    assert await ask(port, b"2 0") == b"re 2"


async def test_recovery_keeps_the_pace_of_the_instrument(
    autojump_clock: Any, line: MemoryLine, instrument: Instrument
) -> None:
    """With ``char_delay`` and ``min_gap`` the sync query goes out as slowly as a command, and the next one waits."""
    port = port_on(line, sync_query=ECHO, char_delay=0.01, min_gap=0.2)
    began = trio.current_time()
    assert await ask(port, b"1 0") == b"re 1"
    assert trio.current_time() - began >= 0.2 + 0.01 * len(b"ECHO s1") + 0.2
    assert len(instrument.heard) == 2


async def test_a_station_assumed_off_before_the_line_is_opened(
    autojump_clock: Any, line: MemoryLine, instrument: Instrument
) -> None:
    """It is not asked when the line is opened, nor when it comes back, but before it is talked to."""
    stations = {name: SyncQuery(f"{name} ECHO {{nonce}}", f"{name} {{nonce}}") for name in "ab"}
    port = port_on(line, stations=stations)
    port.assume_off("b")
    for number in range(2):
        async with port.acquire("owner", station="a") as guard:
            assert await guard.query(b"a 0") == b"re a"
        assert not any(command.startswith(b"b ") for command in instrument.heard), number
        line.unplug()
        line.plug()
    async with port.acquire("owner", station="b") as guard:
        assert await guard.query(b"b 0") == b"re b"
    assert instrument.heard[-1] == b"b 0"
    assert any(command.startswith(b"b ECHO") for command in instrument.heard[-3:-1])


async def test_a_call_that_was_refused_has_sent_nothing(
    autojump_clock: Any, line: MemoryLine, instrument: Instrument
) -> None:
    """After a command that went out, the next call of a guard that is dead says ``sent = "no"`` for its own."""
    port = port_on(line)
    async with port.acquire("owner") as guard:
        assert await guard.query(b"1 0") == b"re 1"
        port.revoke("test")
        with pytest.raises(LeaseRevokedError) as caught:
            await guard.query(b"2 0")
    assert caught.value.sent == "no"
    assert instrument.heard == [b"1 0"]


@pytest.mark.parametrize("latency", [0.3, 0.51, 0.9])
async def test_an_instrument_that_is_slower_than_the_quiet_time(
    autojump_clock: Any, line: MemoryLine, nursery: trio.Nursery, latency: float
) -> None:
    """Whose every answer takes longer than the sync query is first awaited is made clean all the same."""

    async def serve() -> None:
        data = b""
        while True:
            data += await line.receive()
            while b"\n" in data:
                command, _, data = data.partition(b"\n")
                await trio.sleep(latency)
                line.send((command[5:] if command.startswith(b"ECHO ") else b"re " + command) + b"\n")

    nursery.start_soon(serve)
    port = port_on(line, sync_query=ECHO, timeout=3.0)
    assert await ask(port, b"A", timeout=30) == b"re A"
    assert await ask(port, b"B", timeout=30) == b"re B"
