"""A stage with a shutter, run by real processes: by its own log it ends closed, however the program ends.

`TRIO_DAQ_SAFE_RUNS` is how often each way of ending is tried; 2 where nothing is said.
"""

import os
import signal
import subprocess
import sys
import time

import pytest
import trio

from trio_daq.sim import open_simulated_lab, read_log

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the simulated stage needs a pty")

RUNS = int(os.environ.get("TRIO_DAQ_SAFE_RUNS", "2"))

LAB = """
[application]
shutdown_timeout = 6.0
guard_after = 1.0

[serial.stage]
path = "{path}"
write_terminator = "\\r\\n"
read_terminator = "\\r\\n"
timeout = 5.0
sync_query = {{ query = "ECHO {{nonce}}", answer = "{{nonce}}" }}
safe_state = [{{ write = "SHUT 0" }}, {{ query = "SHUT?", expect = "{expect}" }}]

[recording]
enabled = false

[v2]
stop_timeout = {stop_timeout}

[[v2.instruments]]
id = "shutter"
driver = "shutter:{driver}"
serial = "stage"
"""

DRIVERS = """
import ctypes, os, time
import trio

async def opened(serial):
    async with serial.acquire(timeout=5) as guard:
        await guard.write_only(b"SHUT 1\\r\\n")
        await guard.query(b"POS? opened")

async def waiting(serial, context):
    await opened(serial)
    await context.stopping.wait()

async def failing(serial):
    await opened(serial)
    raise OSError("unplugged")

def hung(serial, context):
    with serial.exclusive() as sequence:
        sequence.write_only(b"SHUT 1\\r\\n")
        sequence.query(b"POS? opened")
        sequence.read_until(timeout=30)  # nothing comes

async def reopening(serial, context):
    await opened(serial)
    await context.stopping.wait()
    while True:
        try:
            await opened(serial)
        except Exception:
            await trio.sleep(0.001)

async def holding_the_gil(serial):
    await opened(serial)
    ctypes.PyDLL(None).sleep(30)

async def leaving(serial):
    await opened(serial)
    os._exit(7)
"""


class Lab:
    """`trio-daq run` on the stage."""

    def __init__(self, lab, folder, driver: str, stop_timeout: float = 0.5, expect: str = "0") -> None:
        self.log = lab.log
        self.file = folder / "lab.toml"
        self.file.write_text(LAB.format(path=lab.stage_path, driver=driver, stop_timeout=stop_timeout, expect=expect))
        (folder / "shutter.py").write_text(DRIVERS)
        self.seen = len(read_log(lab.log)) if lab.log.exists() else 0

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trio_daq", "run", str(self.file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )

    def said(self) -> list[str]:
        return [entry.text for entry in read_log(self.log)[self.seen :] if entry.event == "command"]

    async def wait_open(self) -> None:
        with trio.fail_after(20):
            while "POS? opened" not in self.said():  # noqa: ASYNC110 - a file has no event
                await trio.sleep(0.01)

    async def end(self, within: float) -> tuple[int, str]:
        """Return its exit code, and what it and its guardian said."""
        try:
            with trio.fail_after(within):
                said = await trio.to_thread.run_sync(lambda: self.process.communicate()[0], abandon_on_cancel=True)
        finally:
            if self.process.poll() is None:
                self.process.kill()
        return self.process.returncode, said

    def ends_closed(self) -> bool:
        shutter = [text for text in self.said() if text.startswith("SHUT ")]
        return "SHUT 1" in shutter and shutter[-1] == "SHUT 0"


@pytest.fixture
async def lab(tmp_path):
    async with open_simulated_lab(tmp_path / "log", meter=None) as lab:
        yield lab


ENDINGS = {
    "clean stop": ("waiting", 1, 128 + signal.SIGTERM, signal.SIGTERM),
    "failed driver": ("failing", 0, 1, None),
    "hung in a call on the line": ("hung", 1, None, signal.SIGINT),
    "reopening in its grace": ("reopening", 1, 128 + signal.SIGINT, signal.SIGINT),
    "second SIGINT": ("reopening", 2, 128 + signal.SIGINT, signal.SIGINT),
}


@pytest.mark.parametrize("ending", ENDINGS)
async def test_every_stop_leaves_it_closed(lab, tmp_path, ending) -> None:
    """The last word on the shutter is that it is closed, and the exit code says why the program ended."""
    driver, signals, code, number = ENDINGS[ending]
    for _ in range(RUNS):
        one = Lab(lab, tmp_path, driver, 30.0 if signals == 2 else 0.5)
        one.start()
        await one.wait_open()
        for _ in range(signals):
            one.process.send_signal(number)
            await trio.sleep(0.1)
        ended, said = await one.end(15)
        assert one.ends_closed(), said
        assert "serial.stage" in said
        assert "NOT SAFE" not in said
        assert code in (None, ended), said
        assert "guardian" not in said


async def test_a_line_that_is_not_safe_is_told_last(lab, tmp_path) -> None:
    """The lab does not start over it, and `trio-daq safe` says so; both by an exit code of their own."""
    one = Lab(lab, tmp_path, "waiting", expect="2")
    one.start()
    code, said = await one.end(20)
    assert (code, "SHUT 0" in one.said()) == (4, True), said
    assert "NOT SAFE: serial.stage: it answers 'SHUT?' by '0', and not by '2'" in said


@pytest.mark.parametrize(("expect", "code", "text"), [("0", 0, "confirmed"), ("2", 4, "NOT SAFE: serial.stage")])
async def test_from_cold(lab, tmp_path, expect, code, text) -> None:
    """`trio-daq safe` says how each line went, and by its exit code whether all are safe."""
    one = Lab(lab, tmp_path, "waiting", expect=expect)
    command = [sys.executable, "-m", "trio_daq", "safe", str(one.file)]
    ended = await trio.run_process(command, capture_stdout=True, check=False)
    assert (ended.returncode, text in ended.stdout.decode()) == (code, True), ended.stdout
    assert one.said() == ["SHUT 0", "SHUT?"]


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()


def stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGSTOP)


def hang_up(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGHUP)


def nothing(process: subprocess.Popen[str]) -> None:
    pass


@pytest.mark.parametrize(
    ("driver", "end", "is_guarded"),
    [
        ("waiting", kill, True),
        ("waiting", stop, True),
        ("holding_the_gil", nothing, True),
        ("leaving", nothing, True),
        ("waiting", hang_up, False),
    ],
)
async def test_the_guardian_closes_it(lab, tmp_path, driver, end, is_guarded) -> None:
    """Killed, stopped, hung with the GIL held, left by os._exit, its terminal closed: it is closed after that."""
    times = []
    for _ in range(RUNS):
        one = Lab(lab, tmp_path, driver)
        one.start()
        await one.wait_open()
        began = time.monotonic_ns()
        end(one.process)
        _, said = await one.end(15)
        assert one.ends_closed(), said
        assert ("guardian: serial.stage" in said) is is_guarded, said
        times.append((max(entry.t for entry in read_log(lab.log) if entry.text == "SHUT 0") - began) / 1e6)
    print(driver, end.__name__, "ms until it was closed:", sorted(round(t) for t in times))
