"""The simulated instruments in their own process, on a real pty and a real socket, in real time."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import pyvisa
import serial
import trio
from pyvisa.resources import MessageBasedResource

from trio_daq.errors import StartError
from trio_daq.sim import NO_FAULTS, FaultPlan, MeterOver, open_simulated_lab, read_log, replies_by_tag
from trio_daq.sim.meter import IDENTITY

COMMAND = [sys.executable, "-m", "trio_daq.sim"]

HOLDER = """
import sys, trio
from trio_daq.sim import open_simulated_lab

async def main():
    async with open_simulated_lab(sys.argv[1]) as lab:
        print(lab.pid, lab.meter_port, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


def is_running(pid: int) -> bool:
    """Return whether a process still runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def exists(pid: int) -> bool:
    """Return whether a process is there, be it as a zombie."""
    return Path(f"/proc/{pid}").exists()


def wait_gone(pid: int, within: float = 10.0) -> None:
    end = time.monotonic() + within
    while is_running(pid):
        assert time.monotonic() < end, f"process {pid} still runs"
        time.sleep(0.01)


def talk_tcp(port: int, *messages: bytes) -> list[bytes]:
    """Send messages one by one to the meter and return the reply line to each."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client, client.makefile("rb") as lines:
        replies = []
        for message in messages:
            client.sendall(message + b"\n")
            replies.append(lines.readline())
        return replies


@pytest.fixture
def started(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command, started by hand, listening."""
    command = [*COMMAND, "--log", str(tmp_path / "log.jsonl")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        yield process
        process.kill()


async def test_pyserial_talks_to_the_stage(tmp_path: Path) -> None:
    """An unchanged pyserial program gets its replies, closes, opens again, and what it got is in the log."""
    log = tmp_path / "log.jsonl"

    def script(path: str) -> list[bytes]:
        got = []
        for number in range(3):
            with serial.Serial(path, timeout=1) as port:
                port.write(b"POS? n%d\r\n" % number)
                got.append(port.readline())
                port.write(b"SHUT 1\r\nSHUT?\r")
                got.append(port.readline())
        return got

    async with open_simulated_lab(log, meter=None) as lab:
        assert lab.meter_port is None
        assert lab.meter_resource is None
        assert lab.stage_path is not None
        got = await trio.to_thread.run_sync(script, lab.stage_path)
    assert got == [line for number in range(3) for line in (b"n%d 12.500\r\n" % number, b"1\r\n")]
    assert replies_by_tag(read_log(log)) == {f"n{number}": f"n{number} 12.500" for number in range(3)}


async def test_stage_needs_no_terminal_settings(tmp_path: Path) -> None:
    """A client that sets nothing gets each byte as it was sent, a reply larger than the pty's buffer included."""
    word = bytes(range(33, 127)) * 600

    def script(path: str) -> bytes:
        with open(path, "r+b", buffering=0) as port:
            got = bytearray()
            for question, length in ((b"POS? n1\r", 11), (b"ECHO " + word + b"\n", len(word) + 2)):
                writer = threading.Thread(target=lambda data=question: port.write(data))
                writer.start()
                end = len(got) + length
                while len(got) < end:
                    got += port.read(4096)
                writer.join()
            return bytes(got)

    async with open_simulated_lab(tmp_path / "log.jsonl", meter=None) as lab:
        assert lab.stage_path is not None
        with trio.fail_after(10):
            got = await trio.to_thread.run_sync(script, lab.stage_path, abandon_on_cancel=True)
    assert got == b"n1 12.500\r\n" + word + b"\r\n"


async def test_stage_survives_a_client_that_does_not_read(tmp_path: Path) -> None:
    """More replies than a pty holds stop the stage; once a new client has thrown them away, it goes on."""

    def flood(path: str) -> None:
        questions = (b"ECHO " + b"x" * 100 + b"\n") * 3000
        with serial.Serial(path, timeout=1, write_timeout=0.3) as port, pytest.raises(serial.SerialTimeoutException):
            port.write(questions)

    def look(path: str) -> bytes:
        with serial.Serial(path, timeout=0.2) as port:  # opening throws old input away
            while port.read(4096):
                pass
            port.timeout = 5
            port.write(b"\nPOS? after\n")
            while not (line := port.readline()).startswith(b"after"):
                assert line
            return line

    async with open_simulated_lab(tmp_path / "log.jsonl", meter=None) as lab:
        assert lab.stage_path is not None
        await trio.to_thread.run_sync(flood, lab.stage_path)
        assert await trio.to_thread.run_sync(look, lab.stage_path) == b"after 12.500\r\n"


async def test_sockets_talk_to_the_meter(tmp_path: Path) -> None:
    """A plain socket gets its replies, and the log holds the same."""
    log = tmp_path / "log.jsonl"
    async with open_simulated_lab(log, stage=None) as lab:
        assert lab.stage_path is None
        assert lab.meter_port is not None
        assert lab.meter_resource == f"TCPIP::127.0.0.1::{lab.meter_port}::SOCKET"
        idn, error, measured = await trio.to_thread.run_sync(
            talk_tcp, lab.meter_port, b"*IDN?", b"BOGUS;SYST:ERR?", b"MEAS:VOLT? n1"
        )
        assert (idn, error) == (b"TRIO_DAQ,SIMULATED METER,1,0.1\n", b'-113,"Undefined header"\n')
        assert replies_by_tag(read_log(log)) == {"n1": measured.decode().strip()}


async def test_slow_connection_holds_up_no_other(tmp_path: Path) -> None:
    """While one connection waits for a slow query, another is served."""
    async with open_simulated_lab(tmp_path / "log.jsonl", stage=None) as lab:
        assert lab.meter_port is not None
        with socket.create_connection(("127.0.0.1", lab.meter_port)) as slow:
            slow.sendall(b"SLOW? never,3600\n*OPC?\n")
            assert await trio.to_thread.run_sync(talk_tcp, lab.meter_port, b"*OPC?") == [b"1\n"]
            slow.setblocking(False)
            with pytest.raises(BlockingIOError):
                slow.recv(1)


async def test_broken_connection_harms_nobody(tmp_path: Path) -> None:
    """A client that resets its connection while it is owed a reply leaves the meter working for others."""
    log = tmp_path / "log.jsonl"
    async with open_simulated_lab(log, stage=None) as lab:
        assert lab.meter_port is not None
        client = socket.create_connection(("127.0.0.1", lab.meter_port))
        client.sendall(b"*OPC?\nSLOW? x,0.1\n")
        assert client.recv(2) == b"1\n"
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close by a reset
        client.close()
        with trio.fail_after(10):
            while "x" not in replies_by_tag(read_log(log)):  # noqa: ASYNC110 - a file has no event
                await trio.sleep(0.01)
        assert await trio.to_thread.run_sync(talk_tcp, lab.meter_port, b"*OPC?") == [b"1\n"]


async def test_fault_plan_reaches_the_instrument(tmp_path: Path) -> None:
    """A plan given in Python fires in the process: the reply is late by that much, and the log says so."""
    log = tmp_path / "log.jsonl"
    async with open_simulated_lab(log, stage=None, meter=FaultPlan(late_every=2, late_by=0.05)) as lab:
        assert lab.meter_port is not None
        await trio.to_thread.run_sync(talk_tcp, lab.meter_port, b"MEAS:VOLT? a", b"MEAS:VOLT? b")
    entries = read_log(log)
    assert [(entry.event, entry.tag) for entry in entries][-3:] == [("command", "b"), ("fault", "b"), ("reply", "b")]
    assert entries[-1].t - entries[-2].t >= 50_000_000


@pytest.mark.parametrize("over", get_args(MeterOver))
async def test_meter_is_there_over_each_line(tmp_path: Path, over: MeterOver) -> None:
    """Whatever carries the meter's messages, its VISA resource name opens it with pyvisa."""

    def script(resource: str) -> str:
        with pyvisa.ResourceManager("@py").open_resource(resource, read_termination="\n") as meter:
            assert isinstance(meter, MessageBasedResource)
            meter.write_termination = "\n"
            return meter.query("*IDN?")

    async with open_simulated_lab(tmp_path / "log.jsonl", stage=None, meter_over=over) as lab:
        assert (lab.meter_port is None) is (over == "pty")
        assert (lab.meter_path is None) is (over != "pty")
        assert lab.meter_resource is not None
        assert await trio.to_thread.run_sync(script, lab.meter_resource) == IDENTITY.decode()


async def test_stage_can_be_unplugged_and_comes_back(tmp_path: Path) -> None:
    """Unplugging hangs up on whoever has the port open and takes the link away; replugging brings the stage back."""
    link, log = tmp_path / "stage", tmp_path / "log.jsonl"

    def ask(port: serial.Serial, tag: bytes) -> bytes:
        port.write(b"POS? " + tag + b"\n")
        return port.readline()

    async with open_simulated_lab(log, meter=None, stage_link=link) as lab:
        assert lab.stage_path == str(link)
        first = os.readlink(link)
        with serial.Serial(str(link), timeout=5) as port:
            assert ask(port, b"a") == b"a 12.500\r\n"
            await lab.unplug_stage()
            assert not link.is_symlink()
            with pytest.raises(OSError, match=r".+"):
                port.read(1)
            await lab.replug_stage()
            assert os.readlink(link) != first  # the old one is still in use here
        with serial.Serial(str(link), timeout=5) as port:
            assert ask(port, b"b") == b"b 12.500\r\n"
    assert not link.is_symlink()
    assert [entry.fault for entry in read_log(log) if entry.event == "fault"] == ["unplug"]


async def test_what_is_said_without_a_cable_is_lost(tmp_path: Path) -> None:
    """A stage that is pulled out in the middle of a slow query goes on, and its reply reaches nobody."""
    link = tmp_path / "stage"
    async with open_simulated_lab(tmp_path / "log.jsonl", meter=None, stage_link=link) as lab:
        with serial.Serial(str(link)) as port:
            port.write(b"SLOW? a 0.1\n")
            with trio.fail_after(5):
                while not read_log(tmp_path / "log.jsonl"):  # noqa: ASYNC110 - a file has no event
                    await trio.sleep(0.005)
            await lab.unplug_stage()
        await trio.sleep(0.15)
        await lab.replug_stage()

        def look() -> bytes:
            with link.open("r+b", buffering=0) as port:  # pyserial would throw away what had come
                port.write(b"POS? b\n")
                return port.readline()

        assert await trio.to_thread.run_sync(look) == b"b 12.500\r\n"
    assert list(replies_by_tag(read_log(tmp_path / "log.jsonl"))) == ["a", "b"]


async def test_only_a_linked_stage_can_be_unplugged(tmp_path: Path) -> None:
    """Without a link nobody could find the stage again, and a link to no stage is a mistake."""
    async with open_simulated_lab(tmp_path / "log.jsonl", meter=None) as lab:
        with pytest.raises(ValueError, match="stage_link"):
            await lab.unplug_stage()
    with pytest.raises(ValueError, match="stage_link needs a stage"):
        async with open_simulated_lab(tmp_path / "log.jsonl", stage=None, stage_link=tmp_path / "stage"):
            pytest.fail("entered")


async def test_frozen_instruments_answer_when_they_thaw(tmp_path: Path) -> None:
    """A frozen process answers nothing, answers after it thaws, and notes how long it was frozen."""
    log = tmp_path / "log.jsonl"
    async with open_simulated_lab(log, meter=None, stall_limit=0.1) as lab:
        with serial.Serial(lab.stage_path, timeout=0.2) as port:
            lab.freeze()
            port.write(b"POS? a\n")
            assert await trio.to_thread.run_sync(port.readline) == b""
            lab.thaw()
            port.timeout = 5
            assert await trio.to_thread.run_sync(port.readline) == b"a 12.500\r\n"
        with trio.fail_after(5):
            while not any(entry.fault == "freeze" for entry in read_log(log)):  # noqa: ASYNC110 - a file has no event
                await trio.sleep(0.01)
    freezes = [float(entry.text.removesuffix(" s")) for entry in read_log(log) if entry.fault == "freeze"]
    assert 0.2 <= max(freezes) < 5


async def test_stations_of_a_bus_do_not_wait_for_each_other(tmp_path: Path) -> None:
    """A slow answer of one station comes after the answers of the others, and after its own earlier ones."""
    log = tmp_path / "log.jsonl"

    def script(path: str) -> list[bytes]:
        with serial.Serial(path, timeout=5) as port:
            port.write(b"1 SLOW? a 0.2\r\n1 ECHO x\r\n4 POS? none\r\n2 POS? b\r\n")
            return [port.readline() for _ in range(3)]

    async with open_simulated_lab(log, stage=None, meter=None, bus=NO_FAULTS) as lab:
        assert (lab.stage_path, lab.meter_port) == (None, None)
        assert lab.bus_path is not None
        got = await trio.to_thread.run_sync(script, lab.bus_path)
    assert got == [b"2 b 12.500\r\n", b"1 a 12.500\r\n", b"1 x\r\n"]
    assert [(entry.instrument, entry.tag) for entry in read_log(log) if entry.event == "reply"] == [
        ("bus 2", "b"),
        ("bus 1", "a"),
        ("bus 1", None),
    ]


async def test_terminal_cannot_interrupt_the_instruments(tmp_path: Path) -> None:
    """The process has a session of its own, so that Ctrl-C at our terminal does not reach it."""
    async with open_simulated_lab(tmp_path / "log.jsonl") as lab:
        assert os.getsid(lab.pid) == lab.pid != os.getsid(0)


async def test_ends_by_itself_and_leaves_no_file_open(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Leaving the block needs no signal, and every pipe to the process is closed after it."""
    before = len(os.listdir("/proc/self/fd"))
    async with open_simulated_lab(tmp_path / "log.jsonl"):
        assert len(os.listdir("/proc/self/fd")) > before
    assert len(os.listdir("/proc/self/fd")) == before
    assert caplog.messages == []


async def test_instruments_that_died_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A process that was killed during the block does no harm to its end, and is in the program's log."""
    async with open_simulated_lab(tmp_path / "log.jsonl", stage=None) as lab:
        os.kill(lab.pid, signal.SIGKILL)
        await trio.to_thread.run_sync(wait_gone, lab.pid)
    assert caplog.messages == [f"the simulated instruments (pid {lab.pid}) had ended by themselves"]


async def test_exception_keeps_its_type_and_nothing_is_left(tmp_path: Path) -> None:
    """The block's own exception comes out bare, and the process is gone by then."""
    pid = 0
    with pytest.raises(KeyError, match="mine"):  # noqa: PT012 - the block is what is tested
        async with open_simulated_lab(tmp_path / "log.jsonl") as lab:
            pid = lab.pid
            assert is_running(pid)
            raise KeyError("mine")
    assert not exists(pid)


async def test_cancelled_block_ends_the_process(tmp_path: Path) -> None:
    """Cancellation leaves no process behind either, and goes on to the scope that asked for it."""
    pid = 0
    with trio.move_on_after(60) as scope:
        async with open_simulated_lab(tmp_path / "log.jsonl") as lab:
            pid = lab.pid
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert not exists(pid)


async def test_process_that_cannot_end_is_killed(tmp_path: Path) -> None:
    """A process that no longer reacts is killed within the promised five seconds."""
    began = time.monotonic()
    async with open_simulated_lab(tmp_path / "log.jsonl") as lab:
        os.kill(lab.pid, signal.SIGSTOP)
        began = time.monotonic()
    assert time.monotonic() - began < 5.5
    assert not exists(lab.pid)


async def test_failed_start_is_one_clear_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A log that cannot be written gives StartError at once; the reason stands on stderr."""
    with pytest.raises(StartError, match=r"simulated instruments did not start: .*code 1"):
        async with open_simulated_lab(tmp_path / "missing" / "log.jsonl"):
            pytest.fail("entered")
    assert "FileNotFoundError" in capfd.readouterr().err


async def test_a_lab_of_nothing_is_refused(tmp_path: Path) -> None:
    """Neither stage nor meter nor bus is a mistake, not a lab."""
    with pytest.raises(ValueError, match="a stage or a meter or a bus"):
        async with open_simulated_lab(tmp_path / "log.jsonl", stage=None, meter=None):
            pytest.fail("entered")


async def test_foreign_modules_in_the_folder_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trio.py in the user's folder is not mistaken for Trio."""
    (tmp_path / "trio.py").write_text("raise SystemExit('the wrong trio')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)  # a relative one would name this folder now
    async with open_simulated_lab("log.jsonl", stage=NO_FAULTS, meter=None) as lab:
        assert is_running(lab.pid)


def test_prints_one_line(started: subprocess.Popen[bytes]) -> None:
    """The command says in one JSON line where everything is, prints no more, and has no controlling terminal."""
    assert started.stdin is not None
    assert started.stdout is not None
    ready = json.loads(started.stdout.readline())
    assert ready["pid"] == started.pid
    assert talk_tcp(ready["meter"], b"*OPC?") == [b"1\n"]
    assert Path(ready["stage"]).is_char_device()
    terminal = Path(f"/proc/{started.pid}/stat").read_text().rpartition(")")[2].split()[4]
    assert terminal == "0"
    started.stdin.close()
    assert started.stdout.read() == b""


def test_ends_with_stdin(started: subprocess.Popen[bytes]) -> None:
    """When stdin ends, the process ends by itself, well, with its pty and its port."""
    assert started.stdin is not None
    assert started.stdout is not None
    ready = json.loads(started.stdout.readline())
    started.stdin.close()
    assert started.wait(timeout=5) == 0
    with pytest.raises(ConnectionRefusedError):
        talk_tcp(ready["meter"])


def test_ends_at_sigterm(started: subprocess.Popen[bytes]) -> None:
    """SIGTERM ends the process well, also in the middle of a slow query."""
    assert started.stdout is not None
    ready = json.loads(started.stdout.readline())
    with socket.create_connection(("127.0.0.1", ready["meter"])) as client:
        client.sendall(b"*OPC?\nSLOW? x,3600\n")
        assert client.recv(2) == b"1\n"
        started.terminate()
        assert started.wait(timeout=5) == 0


def test_killed_parent_takes_the_instruments_along(tmp_path: Path) -> None:
    """After kill -9 of the program that opened the lab, its process ends by itself and the log is whole."""
    log = tmp_path / "log.jsonl"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(log)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        pid, port = map(int, holder.stdout.readline().split())
        (reply,) = talk_tcp(port, b"MEAS:VOLT? n1")
        assert is_running(pid)
        holder.kill()
    wait_gone(pid)
    assert replies_by_tag(read_log(log)) == {"n1": reply.decode().strip()}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--meter", "--stage-late-every", "2"], "need --stage"),
        (["--meter-late-by", "nan"], "late_by"),
        (["--stage-half-every", "-1"], "half_every"),
        (["--stage", "--bus-late-every", "2"], "need --bus"),
        (["--stage-reset-every", "2"], "no connection"),
    ],
)
def test_wrong_command_line_is_refused(tmp_path: Path, wrong: list[str], said: str) -> None:
    """A command line that cannot be meant ends with code 2 and says why."""
    ended = subprocess.run(
        [*COMMAND, "--log", str(tmp_path / "log"), *wrong], capture_output=True, text=True, timeout=20
    )
    assert ended.returncode == 2
    assert said in ended.stderr
