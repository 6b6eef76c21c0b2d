"""Programs that do not end by themselves, and one that is asked what it is at, as real processes.

They run all at once, since most of what they do is to wait for their end.
"""

import json
import signal
import subprocess
import sys
import time

import attrs
import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

TIMEOUT = 0.5
MARGIN = 2.0

PROGRAM = """
import ctypes, os, signal, sys, threading, time
import trio
from trio_daq import DualConfig, run
from trio_daq.config import ApplicationConfig, MemberConfig, RecordingConfig, SubsystemConfig
from trio_daq.serialport import SerialPortConfig
from trio_daq.wire import Exchange

what, path = sys.argv[1:]

async def holding(serial):
    async with serial.acquire(timeout=5):
        await trio.sleep_forever()

async def waiting(serial):
    async with serial.acquire(timeout=60):
        pass

def old_program():
    time.sleep(60)

async def lock_up():  # for ever, and no signal wakes it
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)

async def hold_the_gil(context):
    await context.stopping.wait()
    ctypes.PyDLL(None).sleep(60)

async def main(manager):
    if what == "asked":
        await manager.v2.spawn(holding, manager.serial["stage"])
        while manager.snapshot().lines[0].owner != "holding":
            await trio.sleep(0.01)
        await manager.v2.spawn(waiting, manager.serial["stage"])
        await manager.v2.spawn_thread(old_program)
        while manager.snapshot().lines[0].waiting != ("waiting",):
            await trio.sleep(0.01)
    elif what == "GIL held":
        await manager.v2.spawn(hold_the_gil)
    print("ready", flush=True)
    if what == "forking":
        if not os.fork():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)
            os._exit(0)
        await trio.sleep(4)
        print("done", flush=True)
        return
    if what == "more to do":
        await manager.shutdown()
        await trio.sleep(4)
        print("done", flush=True)
        return
    if what in ("locked up", "unsafe"):
        await lock_up()
    if what == "asked while blocked":
        time.sleep(2)
    while True:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            if what != "deaf":
                raise
            with trio.CancelScope(shield=True):
                await trio.sleep(60)

safe_state = [Exchange(write="SHUT 0"), Exchange(query="SHUT?", expect="0")] if what == "unsafe" else []
port = SerialPortConfig(
    path=path,
    write_terminator="\\r\\n",
    read_terminator="\\r\\n",
    safe_state=safe_state,
    quiet_time=0.1,
)
config = DualConfig(
    application=ApplicationConfig(shutdown_timeout=3.3 if what == "asked" else 0.5),
    serial={"stage": port} if what in ("asked", "unsafe") else {},
    v2=SubsystemConfig(stop_timeout=0.1),
    recording=RecordingConfig(enabled=False),
)
sys.exit(run(config, main, on_report=lambda report: print(report, flush=True)))
"""

SIGNALS = {
    "locked up": [signal.SIGTERM],
    "unsafe": [signal.SIGTERM],
    "GIL held": [signal.SIGTERM],
    "deaf": [signal.SIGTERM],
    "more to do": [],
    "forking": [],
    "asked": [signal.SIGQUIT, signal.SIGQUIT, signal.SIGTERM],
    "asked while blocked": [signal.SIGQUIT, signal.SIGTERM],
}


@attrs.define
class Program:
    """One program, its end, and what it said."""

    process: subprocess.Popen[str]
    began: float = 0.0
    took: float = 0.0
    said: str = ""
    errors: str = ""


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """All programs, after their signals and their end, by their name."""
    folder = tmp_path_factory.mktemp("watchdog")
    (folder / "lab.py").write_text(PROGRAM)
    programs = {}
    instruments = subprocess.Popen(
        [sys.executable, "-m", "trio_daq.sim", "--log", str(folder / "log"), "--stage", "--bus"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        where = json.loads(instruments.stdout.readline())
        for what in SIGNALS:
            command = [sys.executable, "lab.py", what, where["bus"] if what == "asked" else where["stage"]]
            programs[what] = Program(
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder)
            )
        for what, program in programs.items():
            program.said = program.process.stdout.readline()
            for number in SIGNALS[what]:
                program.began = time.monotonic()
                program.process.send_signal(number)
                time.sleep(0.2)
        waiting = dict(programs)
        deadline = time.monotonic() + 30
        while waiting and time.monotonic() < deadline:
            for what, program in list(waiting.items()):
                if program.process.poll() is not None:
                    program.took = time.monotonic() - program.began
                    del waiting[what]
            time.sleep(0.005)
        for program in programs.values():
            program.process.kill()
            said, program.errors = program.process.communicate()
            program.said += said
    finally:
        instruments.communicate()
        for program in programs.values():
            program.process.kill()
            program.process.wait()
    return programs


def test_a_main_thread_that_hears_no_signal(ended):
    """It is in a library that no signal gets out of; the process ends all the same, says where it is, with 3."""
    program = ended["locked up"]
    assert program.process.returncode == 3, program.errors
    assert TIMEOUT + MARGIN <= program.took < TIMEOUT + MARGIN + 2
    assert "did not end in time" in program.errors
    assert "at lock_up (" in program.errors
    assert "thread MainThread" in program.errors


def test_a_line_that_was_not_made_safe_is_in_the_exit_code(ended):
    """Whoever started it learns by 4 that a shutter may be open."""
    program = ended["unsafe"]
    assert program.process.returncode == 4, program.errors
    assert "did not end in time" in program.errors


def test_the_lock_of_the_interpreter_held_for_ever(ended):
    """No Python runs any more once the shutdown has begun: the process ends 2 s later, by 1, with all its threads."""
    program = ended["GIL held"]
    assert program.process.returncode == 1, program.errors
    assert TIMEOUT + 2 * MARGIN <= program.took < TIMEOUT + 2 * MARGIN + 2
    assert " in hold_the_gil" in program.errors


def test_a_main_that_does_not_hear_its_cancellation(ended):
    """The shutdown is over and reported; the program that does not end is ended."""
    program = ended["deaf"]
    assert program.process.returncode == 3, program.errors
    assert TIMEOUT + MARGIN <= program.took < TIMEOUT + MARGIN + 2
    assert "SIGTERM was received" in program.said
    assert "the lab is stopped" in program.errors


def test_a_main_that_has_more_to_do_after_its_shutdown(ended):
    """It was not told to end, so nobody ends it."""
    program = ended["more to do"]
    assert (program.process.returncode, program.errors) == (0, "")
    assert program.said.endswith("done\n")


def test_a_signal_to_a_forked_child(ended):
    """It is the child's, and not the beginning of the end of the lab."""
    program = ended["forking"]
    assert (program.process.returncode, program.errors) == (0, "")
    assert "done\n" in program.said


def test_sigquit_tells_what_the_lab_is_at(ended):
    """Who has the line, who waits for it, where each member and thread is; as often as one asks; and it goes on."""
    program = ended["asked"]
    assert program.process.returncode == 128 + signal.SIGTERM, program.errors
    told = program.errors.split("trio-daq: ")[1:]
    assert len(told) == 2
    for text in told:
        lines = text.splitlines()
        assert lines[0] == "the lab is running"
        assert any(": holding has it for " in line and line.startswith("  serial.stage ") for line in lines), text
        assert any(line.endswith("; waiting wait") for line in lines), text
        assert {"v2.holding running", "v2.waiting running", "v2.old_program running"} <= {*lines}
        at = lines.index("v2.holding running")
        assert lines[at + 2].startswith("    at holding (")
        assert any(line.startswith("    at old_program (") for line in lines[lines.index("thread old_program #1") :])


def test_sigquit_while_the_event_loop_stands_still(ended):
    """`faulthandler` tells where all threads are; then the lab tells where the one is that blocks it."""
    program = ended["asked while blocked"]
    assert program.process.returncode == 128 + signal.SIGTERM, program.errors
    by_c, _, by_lab = program.errors.partition("trio-daq: ")
    assert " in main" in by_c
    assert "    at main (" in by_lab
