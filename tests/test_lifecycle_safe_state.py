"""A shutter, run by real processes on real terminals: by its own log it ends closed, however the program ends.

`TRIO_DAQ_SAFE_RUNS` is how often each way of ending is tried; 1 where nothing is said. What is a shutter here: the one
of the simulated stage on a serial port, or through PyVISA on the same port; and a meter on TCP, which is open when it
is configured, and closed when it was reset.
"""

import collections
import os
import pty
import signal
import subprocess
import sys
import time

import attrs
import pytest
import trio

from trio_daq.sim import open_simulated_lab, read_log

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the simulated stage needs a pty")

RUNS = int(os.environ.get("TRIO_DAQ_SAFE_RUNS", "1"))

LAB = """
[application]
shutdown_timeout = 6.0
guard_after = 1.0

{line}

[recording]
enabled = false

[v2]
stop_timeout = {stop_timeout}

[[v2.instruments]]
id = "shutter"
driver = "shutter:{driver}"
{kind} = "shutter"
restart = "never"
"""

SERIAL = """
[serial.shutter]
path = "{lab.stage_path}"
write_terminator = "\\r\\n"
read_terminator = "\\r\\n"
timeout = 5.0
sync_query = {{ query = "ECHO {{nonce}}", answer = "{{nonce}}" }}
safe_state = [{{ write = "SHUT 0" }}, {{ query = "SHUT?", expect = "{expect}" }}]
"""

ASRL = """
[visa.shutter]
resource = "ASRL{lab.stage_path}::INSTR"
write_termination = "\\r\\n"
read_termination = "\\r\\n"
timeout = 5.0
sync_query = {{ query = "ECHO {{nonce}}", answer = "{{nonce}}" }}
safe_state = [{{ write = "SHUT 0" }}, {{ query = "SHUT?", expect = "{expect}" }}]
"""

SOCKET = """
[visa.shutter]
resource = "{lab.meter_resource}"
timeout = 5.0
safe_state = [{{ write = "*RST" }}, {{ query = "*OPC?", expect = "1" }}]
"""

ON_SERIAL = """
async def opened(serial):
    async with serial.acquire(timeout=5) as guard:
        await guard.write_only(b"SHUT 1\\r\\n")
        await guard.query(b"POS? opened")

def hung(serial):
    with serial.exclusive() as sequence:
        sequence.write_only(b"SHUT 1\\r\\n")
        sequence.query(b"POS? opened")
        sequence.read_until(timeout=30)  # nothing comes
"""

ON_VISA = """
async def opened(visa):
    await visa.write("{open}", timeout=5)
    await visa.query("{ask}", timeout=5)

def hung(visa):
    visa.write("{open}")
    visa.query("{ask}")
    visa.query("{slow}", timeout=30)
"""

DRIVERS = """
import ctypes, os, time
import trio

async def ending(LINE):
    await opened(LINE)

async def waiting(LINE, context):
    await opened(LINE)
    await context.stopping.wait()

async def failing(LINE):
    await opened(LINE)
    raise OSError("unplugged")

async def reopening(LINE, context):
    await opened(LINE)
    await context.stopping.wait()
    while True:
        try:
            await opened(LINE)
        except Exception:
            await trio.sleep(0.001)

async def holding_the_gil(LINE):
    await opened(LINE)
    ctypes.PyDLL(None).sleep(30)

async def leaving(LINE):
    await opened(LINE)
    os._exit(7)
"""


ON_TERMINAL = ("/bin/sh", "-c", 'exec "$@" <>"$0" >&0 2>&1')
"""Run a program on a terminal, which is that of its session if it leads one."""


@attrs.frozen
class Line:
    """What stands for a shutter, and for the line to it."""

    table: str
    drivers: str
    open: str = "SHUT 1"
    closed: str = "SHUT 0"
    asked: str = "SHUT?"
    ask: str = "POS? opened"
    slow: str = "SHUT 1"  # it is not answered

    @property
    def kind(self) -> str:
        return self.table.strip("\n[").partition(".")[0]


LINES = {
    "serial": Line(SERIAL, ON_SERIAL),
    "socket": Line(SOCKET, ON_VISA, "CONF:VOLT", "*RST", "*OPC?", "MEAS:VOLT? opened", "SLOW? late,30"),
    "asrl": Line(ASRL, ON_VISA),
}


class Lab:
    """`trio-daq run` on a shutter, at a terminal of its own."""

    def __init__(
        self, lab, folder, driver: str, stop_timeout: float = 0.5, expect: str = "0", line: str = "serial"
    ) -> None:
        self.log = lab.log
        self.line = LINES[line]
        self.file = folder / "lab.toml"
        table = self.line.table.format(lab=lab, expect=expect)
        self.file.write_text(LAB.format(line=table, driver=driver, stop_timeout=stop_timeout, kind=self.line.kind))
        drivers = self.line.drivers.format(**attrs.asdict(self.line)) + DRIVERS.replace("LINE", self.line.kind)
        (folder / "shutter.py").write_text(drivers)
        if self.log.exists():
            os.truncate(self.log, 0)  # to be read again and again, and the instruments append to it

    def start(self) -> None:
        self.terminal, lines = pty.openpty()
        self.process = subprocess.Popen(
            [*ON_TERMINAL, os.ttyname(lines), sys.executable, "-m", "trio_daq", "run", str(self.file)],
            start_new_session=True,
        )
        while not self._has_terminal():
            assert self.process.poll() is None
            time.sleep(0.001)
        os.close(lines)

    def _has_terminal(self) -> bool:
        try:
            return os.tcgetpgrp(self.terminal) == self.process.pid
        except OSError:
            return False

    def said(self) -> list[str]:
        return [entry.text for entry in read_log(self.log) if entry.event == "command"]

    async def wait_open(self) -> None:
        with trio.fail_after(20):
            while self.line.ask not in self.said():  # noqa: ASYNC110 - a file has no event
                await trio.sleep(0.01)

    def type_ctrl_c(self) -> None:
        os.write(self.terminal, b"\x03")

    def hang_up(self) -> None:
        os.close(self.terminal)
        self.terminal = -1

    async def end(self, within: float) -> tuple[int, str]:
        """Return its exit code, and what it and its guardian said on the terminal."""
        try:
            with trio.fail_after(within):
                said = await trio.to_thread.run_sync(self._read_terminal, abandon_on_cancel=True)
                code = await trio.to_thread.run_sync(self.process.wait, abandon_on_cancel=True)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            if self.terminal >= 0:
                os.close(self.terminal)
        return code, said

    def _read_terminal(self) -> str:
        said = b""
        while self.terminal >= 0:
            try:
                said += os.read(self.terminal, 4096)
            except OSError:  # nobody has it open any more
                break
        return said.decode()

    def ends_closed(self) -> bool:
        shutter = [text for text in self.said() if text in (self.line.open, self.line.closed)]
        return self.line.open in shutter and shutter[-1] == self.line.closed


@pytest.fixture
async def lab(tmp_path):
    async with open_simulated_lab(tmp_path / "log") as lab:
        yield lab


def ctrl_c(lab: Lab) -> None:
    lab.type_ctrl_c()


def terminate(lab: Lab) -> None:
    lab.process.terminate()


ENDINGS = {
    "clean end": ("ending", 0.5, (), 0),
    "failed driver": ("failing", 0.5, (), 1),
    "hung in a call on the line": ("hung", 0.5, (terminate,), 128 + signal.SIGTERM),
    "reopening in its grace": ("reopening", 0.5, (terminate,), 128 + signal.SIGTERM),
    "Ctrl-C": ("waiting", 30.0, (ctrl_c,), 128 + signal.SIGINT),
    "second Ctrl-C": ("reopening", 30.0, (ctrl_c, ctrl_c), 128 + signal.SIGINT),
}

# Through PyVISA each call is in a thread of its own: where that matters.
ON_ASRL = {"hung in a call on the line", "reopening in its grace", "second Ctrl-C"}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("line", LINES)
async def test_every_stop_leaves_it_closed(lab, tmp_path, ending, line) -> None:
    """The last word on the shutter is that it is closed, and the exit code says why the program ended."""
    if line == "asrl" and ending not in ON_ASRL:
        pytest.skip("as on serial")
    if line == "asrl" and ending == "hung in a call on the line" and RUNS == 1:
        pytest.skip("the hung call may still read the line, and its reply with it: then it is told as not safe")
    driver, stop_timeout, acts, code = ENDINGS[ending]
    closed = 0
    for _ in range(RUNS):
        one = Lab(lab, tmp_path, driver, stop_timeout, line=line)
        one.start()
        await one.wait_open()
        for act in acts:
            act(one)
            await trio.sleep(0.1)
        ended, said = await one.end(15)
        assert one.ends_closed(), said
        assert f"{one.line.kind}.shutter " in said
        assert "NOT SAFE" not in said
        assert code == ended, said
        assert "guardian" not in said
        closed += 1
    print(f"{line}, {ending}: closed in {closed} of {RUNS}")


async def test_a_line_that_is_not_safe_is_told_last(lab, tmp_path) -> None:
    """The lab does not start over it, and `trio-daq safe` says so; both by an exit code of their own."""
    one = Lab(lab, tmp_path, "waiting", expect="2")
    one.start()
    code, said = await one.end(20)
    assert (code, "SHUT 0" in one.said()) == (4, True), said
    assert "NOT SAFE: serial.shutter: it answers 'SHUT?' by '0', and not by '2'" in said


@pytest.mark.parametrize(("expect", "code", "text"), [("0", 0, "confirmed"), ("2", 4, "NOT SAFE: serial.shutter")])
async def test_from_cold(lab, tmp_path, expect, code, text) -> None:
    """`trio-daq safe` says how each line went, and by its exit code whether all are safe."""
    one = Lab(lab, tmp_path, "waiting", expect=expect)
    command = [sys.executable, "-m", "trio_daq", "safe", str(one.file)]
    ended = await trio.run_process(command, capture_stdout=True, check=False)
    assert (ended.returncode, text in ended.stdout.decode()) == (code, True), ended.stdout
    assert one.said() == ["SHUT 0", "SHUT?"]


def kill(lab: Lab) -> None:
    lab.process.kill()


def stop(lab: Lab) -> None:
    lab.process.send_signal(signal.SIGSTOP)


def close_terminal(lab: Lab) -> None:
    lab.hang_up()


def nothing(lab: Lab) -> None:
    pass


KILLS = {
    "kill -9": ("waiting", kill, -signal.SIGKILL),
    "SIGSTOP": ("waiting", stop, -signal.SIGKILL),
    "GIL held": ("holding_the_gil", nothing, -signal.SIGKILL),
    "os._exit": ("leaving", nothing, 7),
    "closed terminal": ("waiting", close_terminal, 128 + signal.SIGHUP),
}


@pytest.mark.parametrize("ending", KILLS)
@pytest.mark.parametrize("line", LINES)
async def test_the_guardian_closes_it(lab, tmp_path, ending, line) -> None:
    """Killed, stopped, hung with the GIL held, left by os._exit, its terminal closed: it is closed after that."""
    if line == "asrl" and ending != "kill -9":
        pytest.skip("as on serial")
    driver, act, code = KILLS[ending]
    times = []
    for _ in range(RUNS):
        one = Lab(lab, tmp_path, driver, line=line)
        one.start()
        await one.wait_open()
        began = time.monotonic_ns()
        act(one)
        ended, said = await one.end(15)
        assert one.ends_closed(), said
        assert code == ended, said
        # Whose terminal is closed has heard so, and does it all by itself.
        assert (f"guardian: {one.line.kind}.shutter" in said) is (act is not close_terminal), said
        log = read_log(lab.log)
        times.append((max(entry.t for entry in log if entry.text == one.line.closed) - began) / 1e6)
    counts = collections.Counter(round(time, -2) for time in times)
    print(f"{line}, {ending}: closed in {len(times)} of {RUNS}, ms until then: {sorted(counts.items())}")
