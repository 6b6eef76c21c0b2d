"""Signals in real processes, on the clock of the one who sends them: order, time, exit code."""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

PROGRAM = """
import logging, sys, time
import trio
from trio_daq import Actor, DualConfig, run
from trio_daq.config import ApplicationConfig, RecordingConfig, SubsystemConfig

seconds = float(sys.argv[2])

class Slow(Actor):
    async def on_stop(self):
        await trio.sleep(0.1)
        print("v4 ended", flush=True)

async def draining(context):
    await context.stopping.wait()
    print("v2 asked", flush=True)
    try:
        await trio.sleep(seconds)
        print("v2 ended", flush=True)
    except trio.Cancelled:
        print("v2 cancelled", flush=True)
        raise

async def hanging(context):
    with trio.CancelScope(shield=True):
        await trio.sleep(60)

async def blocking(context):
    await trio.sleep(0.1)  # long enough for the others to be ready
    time.sleep(seconds)

async def failing(context):
    raise OSError("unplugged")

async def buggy(context):
    await trio.sleep(0.1)
    raise TypeError("3 + 'volt'")

async def short(context):
    pass

def old_program():
    time.sleep(60)

async def main(manager):
    await manager.v4.spawn(Slow)
    for name in sys.argv[1].split(","):
        if name == "old_program":
            await manager.v2.spawn_thread(old_program)
        else:
            await manager.v2.spawn(globals()[name])
    print("ready", flush=True)
    if {"failing", "buggy", "short"} & set(sys.argv[1].split(",")):
        for member in list(manager.v2.stage.members.values()):
            await member.done.wait()
    else:
        await trio.sleep_forever()

logging.basicConfig(level=logging.WARNING)
config = DualConfig(
    application=ApplicationConfig(shutdown_timeout=float(sys.argv[3])),
    v2=SubsystemConfig(stop_timeout=30.0),
    v4=SubsystemConfig(),
    recording=RecordingConfig(enabled=False),
)
sys.exit(run(config, main, on_report=lambda report: print(report, flush=True)))
"""


class Program:
    """A lab in a process of its own, with what it prints."""

    def __init__(self, path: Path, members: str, seconds: float, timeout: float) -> None:
        path.write_text(PROGRAM)
        command = [sys.executable, str(path), members, str(seconds), str(timeout)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.said: list[str] = []
        self._readers = [threading.Thread(target=self._read)]
        self._readers[0].start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put("")

    def wait_for(self, line: str) -> None:
        """Read until it has said so."""
        while not self.said or self.said[-1] != line:
            said = self._lines.get(timeout=20)
            assert said, f"it ended without saying {line!r}: {self.process.communicate()}"
            self.said.append(said)

    def send(self, number: signal.Signals) -> float:
        """Send a signal, and return when."""
        self.process.send_signal(number)
        return time.monotonic()

    def end(self, within: float) -> int:
        """Wait for its end, and return its exit code."""
        try:
            code = self.process.wait(within)
        finally:
            self.process.kill()
            self._readers[0].join()
        while line := self._lines.get():
            self.said.append(line)
        self.errors = self.process.stderr.read()
        return code


@pytest.fixture(autouse=True)
def hang_up_is_heard() -> Iterator[None]:
    """Let a lab that a test starts hear SIGHUP also if the tests run under ``nohup``, whose children would not."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Start a lab with those V2 members, and wait until it runs."""
    started: list[Program] = []

    def start(members: str, seconds: float = 0.1, timeout: float = 10.0, ready: bool = True) -> Program:
        started.append(Program(tmp_path / "lab.py", members, seconds, timeout))
        if ready:
            started[-1].wait_for("ready")
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_stops_in_order(number, code, program):
    """V4 ends before V2 is asked, the report names the signal, and the exit code is 128 and its number."""
    lab = program("draining")
    lab.send(number)
    assert lab.end(within=5) == code
    assert lab.said[1:4] == ["v4 ended", "v2 asked", "v2 ended"]
    assert lab.said[4].endswith(f"{number.name} was received")
    assert [line.split()[0] for line in lab.said if line.startswith("  ") and line[2] != " "] == [
        "v4",
        "v2",
        "hardware",
        "recording",
    ]
    assert lab.errors == ""


def test_a_second_signal_hurries(program):
    """The grace of the members ends there and then; they are cancelled, in order, and the first signal's code stays."""
    lab = program("draining", seconds=60, timeout=100)
    lab.send(signal.SIGTERM)
    lab.wait_for("v2 asked")
    sent = lab.send(signal.SIGINT)
    assert lab.end(within=5) == 143
    assert time.monotonic() - sent < 2
    assert "v2 cancelled" in lab.said


def test_a_third_signal_ends_the_process_at_once(program):
    """Nothing is waited for any more, not even a member that hears nothing."""
    lab = program("hanging", timeout=100)
    lab.send(signal.SIGINT)
    lab.wait_for("v4 ended")
    lab.send(signal.SIGINT)
    time.sleep(0.2)  # two signals that arrive as one are one
    sent = lab.send(signal.SIGINT)
    assert lab.end(within=5) == 130
    assert time.monotonic() - sent < 0.5


def test_three_signals_count_while_the_event_loop_is_blocked(program):
    """A member that blocks the event loop cannot hide the impatience of a user."""
    lab = program("blocking", seconds=60)
    time.sleep(0.4)
    for _ in range(3):
        sent = lab.send(signal.SIGINT)
        time.sleep(0.1)
    assert lab.end(within=5) == 130
    assert time.monotonic() - sent < 1


def test_a_stuck_member_is_left_behind_in_time(program):
    """The process ends by itself within the total time, with code 3, and says who was stuck where."""
    lab = program("hanging,draining", timeout=3.5)
    sent = lab.send(signal.SIGTERM)
    assert lab.end(within=10) == 3
    assert time.monotonic() - sent < 3.5 + 1
    assert any("hanging" in line and "stuck" in line for line in lab.said)
    assert any(line.strip().startswith("at hanging (") for line in lab.said)
    assert "v2 ended" in lab.said


def test_an_old_program_that_hangs_does_not_keep_the_process(program):
    """A thread inside a call that does not return is named, and the process ends without it."""
    lab = program("old_program", timeout=3.3)
    lab.send(signal.SIGTERM)
    assert lab.end(within=5) == 143
    assert any("old_program" in line and "left threads: old_program" in line for line in lab.said)


@pytest.mark.parametrize(("members", "code"), [("short", 0), ("failing,short", 1)])
def test_a_lab_that_ends_by_itself(members, code, program):
    """The exit code is 0, or 1 if a member failed."""
    lab = program(members)
    assert lab.end(within=5) == code
    assert lab.said[-1].strip()
    assert any("the block ended" in line for line in lab.said)


def test_a_bug_ends_with_its_traceback(program):
    """A TypeError in a member stops all in order and comes out of run(), where its traceback shows it."""
    lab = program("draining,buggy", seconds=0)
    assert lab.end(within=5) == 1
    assert lab.errors.rstrip().endswith("TypeError: 3 + 'volt'")
    assert lab.said[1:3] == ["v4 ended", "v2 asked"]


def test_nohup_is_obeyed(program):
    """A lab that was started with SIGHUP ignored outlives its terminal, and still ends in order by SIGTERM."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        lab = program("draining")
    finally:
        signal.signal(signal.SIGHUP, before)
    lab.send(signal.SIGHUP)
    time.sleep(0.2)
    assert lab.process.poll() is None
    lab.send(signal.SIGTERM)
    assert lab.end(within=5) == 143


def test_signals_are_given_back(tmp_path):
    """After run() the handlers are those of before, so the program that called it has its own Ctrl-C."""
    program = tmp_path / "caller.py"
    program.write_text(
        """
import signal, trio
from trio_daq import DualConfig, run
from trio_daq.config import RecordingConfig, SubsystemConfig

mine = lambda *_: None
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, mine)
config = DualConfig(v2=SubsystemConfig(), recording=RecordingConfig(enabled=False))
assert run(config) == 0
assert signal.getsignal(signal.SIGTERM) is mine
assert signal.getsignal(signal.SIGHUP) is mine
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""
    )
    # A parent that ignores Ctrl-C, such as a job in the background, would pass that on.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        subprocess.run([sys.executable, str(program)], check=True, timeout=20, env=os.environ)
    finally:
        signal.signal(signal.SIGINT, before)
