"""Several instruments on one line: the one that owes a reply has to answer before anybody else gets the line."""

import os
import tty
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from trio_daq.errors import ExchangeTimeoutError, LineUnusableError
from trio_daq.serialport import LineState, SerialPortConfig, SharedSerialPort
from trio_daq.wire import SyncQuery

pytestmark = pytest.mark.skipif(os.name != "posix", reason="ptys are POSIX")

STATIONS = {name: SyncQuery(f"{name} ECHO {{nonce}}", f"{name} {{nonce}}") for name in ("1", "2", "3")}


class Bus:
    """Three stations on a pty: ``N X`` is answered ``N re X`` by station N, each in its own order, after *delays*."""

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        tty.setraw(self.slave)
        os.set_blocking(self.master, False)
        self.path = os.ttyname(self.slave)
        self.delays: dict[str, list[float]] = {name: [] for name in STATIONS}
        self.off: set[str] = set()
        self.lines: list[bytes] = []

    async def serve(self) -> None:
        data = b""
        async with trio.open_nursery() as nursery:
            queues = {}
            for name in STATIONS:
                queues[name], receive = trio.open_memory_channel[bytes](100)
                nursery.start_soon(self._station, name, receive)
            while True:
                await trio.lowlevel.wait_readable(self.master)
                data += os.read(self.master, 65536)
                while b"\n" in data:
                    line, _, data = data.partition(b"\n")
                    self.lines.append(line)
                    queues[line[:1].decode()].send_nowait(line[2:])

    async def _station(self, name: str, commands: trio.MemoryReceiveChannel[bytes]) -> None:
        async for command in commands:
            if name in self.off:
                continue
            if not command.startswith(b"ECHO ") and self.delays[name]:
                await trio.sleep(self.delays[name].pop(0))
            says = command[5:] if command.startswith(b"ECHO ") else b"re " + command
            os.write(self.master, name.encode() + b" " + says + b"\n")

    def close(self) -> None:
        trio.lowlevel.notify_closing(self.master)
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
async def bus() -> AsyncIterator[Bus]:
    line = Bus()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.serve)
        yield line
        nursery.cancel_scope.cancel()
    line.close()


def port_of(bus: Bus, **settings: Any) -> SharedSerialPort:
    defaults = {"path": bus.path, "timeout": 0.1, "quiet_time": 0.05, "acquire_timeout": 5.0, "stations": STATIONS}
    return SharedSerialPort(SerialPortConfig(**{**defaults, **settings}))


async def ask(port: SharedSerialPort, station: str, command: bytes) -> bytes:
    async with port.acquire(f"owner of {station}", station=station) as guard:
        return await guard.query(station.encode() + b" " + command)


async def test_a_late_reply_of_one_station_is_not_anothers(bus: Bus) -> None:
    """A station answers after its asker has gone, while another is asked: that one's asker gets that one's reply."""
    port = port_of(bus)
    for round_ in range(6):
        late, other = ("1", "2") if round_ % 2 else ("3", "1")
        bus.delays[late] = [0.25]
        with pytest.raises(ExchangeTimeoutError):
            await ask(port, late, b"slow%d" % round_)
        for number in range(3):
            command = b"n%d.%d" % (round_, number)
            assert await ask(port, other, command) == other.encode() + b" re " + command
    await port.aclose()


async def test_only_the_station_that_owes_is_asked(bus: Bus) -> None:
    """After an unfinished exchange with station 2, neither 1 nor 3 is troubled."""
    port = port_of(bus)
    assert await ask(port, "1", b"a") == b"1 re a"
    assert sorted({line[:6] for line in bus.lines}) == [b"1 ECHO", b"1 a", b"2 ECHO", b"3 ECHO"]
    bus.lines.clear()
    bus.delays["2"] = [0.2]
    with pytest.raises(ExchangeTimeoutError):
        await ask(port, "2", b"slow")
    assert await ask(port, "3", b"b") == b"3 re b"
    assert {line[:6] for line in bus.lines} == {b"2 slow", b"2 ECHO", b"3 b"}
    await port.aclose()


async def test_a_station_that_is_off_stops_the_line_until_it_is_said(bus: Bus) -> None:
    """A station that never answers makes the line refuse, by its name; assumed to be off, the others go on."""
    port = port_of(bus, quiet_time=0.02)
    assert await ask(port, "1", b"a") == b"1 re a"
    bus.off.add("2")
    with pytest.raises(ExchangeTimeoutError):
        await ask(port, "2", b"b")
    with pytest.raises(LineUnusableError, match="its station '2' has not answered its sync query") as caught:
        await ask(port, "1", b"c")
    assert port.state is LineState.UNUSABLE
    port.assume_off("2")
    assert caught.value.retry_in is not None
    await trio.sleep(caught.value.retry_in)
    assert await ask(port, "1", b"d") == b"1 re d"
    with pytest.raises(LineUnusableError, match="its station '2'"):
        await ask(port, "2", b"e")
    bus.off.clear()
    port.assume_off("2")
    await trio.sleep(3)
    bus.lines.clear()
    assert await ask(port, "2", b"f") == b"2 re f"
    assert any(line.startswith(b"2 ECHO") for line in bus.lines[: bus.lines.index(b"2 f")])
    await port.aclose()


async def test_a_bus_is_looked_after_too(bus: Bus, nursery: trio.Nursery) -> None:
    """With `keep` running and the sync query asked now and then, a bus serves all, with stray lines in between."""
    port = port_of(bus, sync_every=0.3)
    nursery.start_soon(port.keep)
    for round_ in range(4):
        for station in STATIONS:
            command = b"n%d" % round_
            assert await ask(port, station, command) == station.encode() + b" re " + command
        os.write(bus.master, b"2 HELLO\n")
        await trio.sleep(0.6)
    assert port.statistics().stray_bytes >= 3 * len(b"2 HELLO\n")
    assert port.state in (LineState.CLEAN, LineState.SUSPECT)
    await port.aclose()


async def test_a_station_that_is_not_there_is_a_mistake(bus: Bus) -> None:
    """A name that is none of the port's, or none where one is needed, is refused at once with those there are."""
    port = port_of(bus)
    for wrong in (None, "4"):
        with pytest.raises(ValueError, match=r"station must be one of its stations, not .*; it has: '1', '2', '3'"):
            port.acquire("owner", station=wrong)
    with pytest.raises(ValueError, match="it has: none"):
        SharedSerialPort(SerialPortConfig(path=bus.path)).acquire("owner", station="1")
    with pytest.raises(ValueError, match="it has no station '4'"):
        port.assume_off("4")
    assert bus.lines == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stations": {"": STATIONS["1"]}}, "stations must have names"),
        ({"stations": {"a": None}}, "stations must each have a sync query"),
        ({"stations": STATIONS, "sync_query": STATIONS["1"]}, "either stations"),
    ],
)
def test_impossible_stations_are_refused(settings: dict[str, Any], message: str) -> None:
    """Each station has a name and a sync query of its own, and the line none beside them."""
    with pytest.raises((ValueError, TypeError), match=message):
        SerialPortConfig(path="/dev/ttyUSB0", **settings)
