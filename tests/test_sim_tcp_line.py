"""The meter on real loopback TCP: how its connections end, and what is done to it from outside."""

import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Self

import pytest
import trio

from trio_daq.sim import FaultPlan, LogEntry, SimulatedLab, open_simulated_lab, read_log


class Client:
    """A plain blocking client of the meter."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def say(self, data: bytes) -> None:
        self._socket.sendall(data)

    def read(self) -> bytes:
        """Return what comes, ``b""`` at the end of the stream."""
        return self._socket.recv(65536)

    def ask(self, command: bytes) -> bytes:
        self.say(command + b"\n")
        return self.read()


@asynccontextmanager
async def meter(log: Path, plan: FaultPlan | None = None) -> AsyncIterator[SimulatedLab]:
    async with open_simulated_lab(log, stage=None, meter=plan or FaultPlan()) as lab:
        with trio.fail_after(20):
            yield lab


def connect(lab: SimulatedLab) -> Client:
    assert lab.meter_port is not None
    return Client(lab.meter_port)


async def in_thread(script: Callable[[], object]) -> None:
    await trio.to_thread.run_sync(script, abandon_on_cancel=True)


async def logged(log: Path, is_wanted: Callable[[LogEntry], bool]) -> LogEntry:
    """Wait until something stands in the log."""
    while True:
        for entry in read_log(log):
            if is_wanted(entry):
                return entry
        await trio.sleep(0.005)


async def test_connection_is_reset_in_place_of_a_reply(tmp_path: Path) -> None:
    """The client of a reset connection sees the reset, and a new connection works."""

    def script() -> None:
        with connect(lab) as client, pytest.raises(ConnectionResetError):
            client.ask(b"MEAS:VOLT? a")
        with connect(lab) as client:
            assert client.ask(b"*OPC?") == b"1\n"

    async with meter(tmp_path / "log", FaultPlan(reset_every=1)) as lab:
        await in_thread(script)
    assert [(entry.event, entry.fault) for entry in read_log(tmp_path / "log")] == [
        ("command", None),
        ("fault", "reset"),
        ("command", None),
        ("reply", None),
    ]


async def test_connection_is_closed_in_place_of_a_reply_or_after_half(tmp_path: Path) -> None:
    """The stream ends, in turn with nothing and with half a reply in it."""

    def script() -> None:
        with connect(lab) as client:
            assert client.ask(b"CURV? a,10") == b""
        with connect(lab) as client:
            assert client.ask(b"CURV? b,10") == b"#210b,\0"
            assert client.read() == b""

    async with meter(tmp_path / "log", FaultPlan(fin_every=1)) as lab:
        await in_thread(script)


async def test_restarted_meter_refuses_and_comes_back_without_memory(tmp_path: Path) -> None:
    """A restart closes connections, refuses new ones while it lasts, and loses the errors; the port is the same."""

    async def is_refused() -> bool:
        try:
            with connect(lab):
                return False
        except ConnectionRefusedError:
            return True

    async with meter(tmp_path / "log") as lab:
        with connect(lab) as client:
            assert client.ask(b"BOGUS;*OPC?") == b"1\n"
            await lab.restart_meter(2.0)  # long enough for a computer that is busy just then
            began = time.monotonic()
            with suppress(ConnectionResetError):
                assert client.read() == b""
        while not await is_refused():
            assert time.monotonic() - began < 1.5
        while await is_refused():  # noqa: ASYNC110 - it cannot be waited for otherwise
            await trio.sleep(0.01)
        assert 1.8 < time.monotonic() - began < 8
        with connect(lab) as client:
            assert client.ask(b"SYST:ERR?") == b'0,"No error"\n'
    (fault,) = [entry for entry in read_log(tmp_path / "log") if entry.event == "fault"]
    assert (fault.fault, fault.text) == ("restart", "2 s")


async def test_restart_ends_a_slow_answer(tmp_path: Path) -> None:
    """What the meter was at when it was switched off is never answered."""
    async with meter(tmp_path / "log") as lab:
        with connect(lab) as client:
            client.say(b"SLOW? a,3600\n")
            await logged(tmp_path / "log", lambda entry: entry.tag == "a")
            await lab.restart_meter(0.0)

            def end() -> None:
                assert client.read() == b""

            await in_thread(end)
    assert [entry.tag for entry in read_log(tmp_path / "log") if entry.event == "reply"] == []


async def test_deaf_meter_blocks_a_writer(tmp_path: Path) -> None:
    """A deaf meter accepts, reads nothing, so that a writer of megabytes waits; then it reads all, in order."""

    def script() -> float:
        with connect(lab) as client:
            began = time.monotonic()
            client.say(b"CONF:VOLT:DC a" + b" " * 8_000_000 + b"\nMEAS:VOLT? b\n")
            seconds = time.monotonic() - began
            assert client.read().startswith(b"b,")
            return seconds

    async with meter(tmp_path / "log") as lab:
        await lab.deafen_meter(0.5)
        await logged(tmp_path / "log", lambda entry: entry.fault == "deaf")
        assert await trio.to_thread.run_sync(script, abandon_on_cancel=True) > 0.3
    commands = [entry.text for entry in read_log(tmp_path / "log") if entry.event == "command"]
    assert len(commands) == 2
    assert commands[0].startswith("CONF:VOLT:DC a")
    assert commands[0].endswith("(too long)")
    assert commands[1] == "MEAS:VOLT? b"


async def test_command_of_a_client_that_has_gone_is_carried_out(tmp_path: Path) -> None:
    """What a deaf meter has not read yet is carried out when it is read, although its connection was closed."""
    async with meter(tmp_path / "log") as lab:
        await lab.deafen_meter(0.2)
        await logged(tmp_path / "log", lambda entry: entry.fault == "deaf")
        with connect(lab) as client:
            client.say(b"SLOW? a,0.05\nSLOW? b,0.05\nMEAS:VOLT? c\n")
        assert [entry.event for entry in read_log(tmp_path / "log")] == ["fault"]
        await logged(tmp_path / "log", lambda entry: entry.event == "command" and entry.tag == "c")


async def test_only_a_meter_has_connections(tmp_path: Path) -> None:
    """Faults of a connection are refused for a serial line, and orders to a meter that is not there."""
    for plan in (FaultPlan(reset_every=1), FaultPlan(fin_every=1), FaultPlan(lie_every=1)):
        for lines in ({"stage": plan}, {"bus": plan}):
            with pytest.raises(ValueError, match="no connection"):
                async with open_simulated_lab(tmp_path / "log", **lines):
                    pytest.fail("entered")
    async with open_simulated_lab(tmp_path / "log", meter=None) as lab:
        with pytest.raises(ValueError, match="no meter"):
            await lab.restart_meter(0.1)
        with pytest.raises(ValueError, match="no meter"):
            await lab.deafen_meter(0.1)
