"""`trio-daq run` as a process, on simulated instruments, with drivers of a user and with those that are built in."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from trio_daq.errors import RunFileError
from trio_daq.recording import open_run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the simulated stage needs a pty")

LINES = """
[application]
name = "bench"

[serial.stage]
path = "{stage}"
write_terminator = "\\r\\n"
read_terminator = "\\r\\n"
quiet_time = 0.05

[visa.meter]
resource = "{meter}"
timeout = 1.0

[recording]
directory = "runs"
"""

USER_DRIVERS = '''
"""Drivers as a user writes them, beside the file that names them."""

import time

from trio_daq import Actor, Message, handles


def old_stage_program(serial, context, step):
    position = 0.0
    try:
        while not context.wait_stopping(0.02):
            position += step
            serial.query(f"MOVE {position}".encode())
            context.publish("position", float(serial.query(b"POS?")), "mm")
    finally:  # if it is asked to stop inside a query, that raises
        context.publish("position", -1.0, "mm")


async def log_meter(visa, context, every=0.02):
    while not await context.wait_stopping(every):
        await context.publish("voltage", float(await visa.query("MEAS:VOLT?")), "V")


class Read(Message[None]):
    pass


class Both(Actor):
    def __init__(self, serial, visa, context):
        self.serial, self.visa, self.context = serial, visa, context

    async def on_start(self):
        self.every(0.02, Read())

    @handles(Read)
    async def read(self, message):
        async with self.serial.acquire() as guard:
            await self.context.publish("position", float(await guard.query(b"POS?")), "mm")
        await self.context.publish("voltage", float(await self.visa.query("MEAS:VOLT?")), "V")
'''

OF_THREE_KINDS = """
[v2]
[[v2.instruments]]
id = "old"
driver = "my_drivers:old_stage_program"
serial = "stage"
options = { step = 0.5 }

[[v2.instruments]]
id = "new"
driver = "my_drivers:log_meter"
kind = "task"
visa = "meter"

[v4]
[[v4.instruments]]
id = "both"
driver = "my_drivers:Both"
serial = "stage"
visa = "meter"
"""

POLLING = """
[v2]
[[v2.instruments]]
id = "where"
driver = "serial_poll"
serial = "stage"
options = { commands = { position = "POS?" }, units = { position = "mm" }, period = 0.02 }

[[v2.instruments]]
id = "how_much"
driver = "scpi_poll"
visa = "meter"
options = { commands = { voltage = "MEAS:VOLT?" }, units = { voltage = "V" }, period = 0.02 }
"""


@attrs.frozen
class Instruments:
    """Where the simulated instruments are, and what they noted."""

    stage: str
    meter: str
    log: Path

    def replies(self) -> list[dict[str, str]]:
        entries = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [entry for entry in entries if entry["event"] == "reply"]


@pytest.fixture
def instruments(tmp_path: Path) -> Iterator[Instruments]:
    """Simulated instruments, as `python -m trio_daq.sim` serves them."""
    command = [sys.executable, "-P", "-m", "trio_daq.sim", "--log", str(tmp_path / "log.jsonl")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        ready = json.loads(process.stdout.readline())
        resource = f"TCPIP::127.0.0.1::{ready['meter']}::SOCKET"
        yield Instruments(ready["stage"], resource, tmp_path / "log.jsonl")
        process.stdin.close()
        process.wait(10)


def trio_daq(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "trio_daq", *arguments]


def rows_by_owner(folder: Path) -> dict[tuple[str, str, str], list[float]]:
    """The values in the one run file of a folder, by instrument, channel and unit."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for path in folder.glob("*.sqlite"):
        try:
            with open_run(path) as run:
                for row in run.readings():
                    found.setdefault((row.instrument, row.channel, row.unit), []).append(row.value)
        except RunFileError:  # it is being made
            return {}
    return found


def run_until(condition: Callable[[], bool], folder: Path) -> tuple[int, str, str]:
    """Run the lab of *folder* until a condition holds, and then stop it; return exit code, stdout and stderr."""
    command = trio_daq("run", str(folder / "lab.toml"))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 20
        while not condition():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    return process.returncode, out, err


def test_drivers_of_three_kinds_share_two_instruments(instruments, tmp_path):
    """A blocking function, a task and an actor of the user's, found beside the file, each get their lines, options and
    context; what they publish is recorded, to the last reading after the Ctrl-C; `show` and `check` tell of it."""
    (tmp_path / "my_drivers.py").write_text(USER_DRIVERS)
    lab = tmp_path / "lab.toml"
    lab.write_text(LINES.format(stage=instruments.stage, meter=instruments.meter) + OF_THREE_KINDS)
    checked = subprocess.run(trio_daq("check", str(lab)), capture_output=True, text=True, check=True, timeout=30)
    assert checked.stdout.splitlines()[1:] == [
        f"  serial.stage: {instruments.stage} at 9600 baud",
        f"  visa.meter: {instruments.meter}",
        "  v2.old: thread my_drivers:old_stage_program",
        "  v2.new: task my_drivers:log_meter",
        "  v4.both: actor my_drivers:Both",
    ]
    expected = {
        ("old", "position", "mm"),
        ("new", "voltage", "V"),
        ("both", "position", "mm"),
        ("both", "voltage", "V"),
    }

    def all_are_at_work() -> bool:
        rows = rows_by_owner(tmp_path / "runs")
        return set(rows) == expected and min(len(values) for values in rows.values()) >= 5

    code, out, err = run_until(all_are_at_work, tmp_path)
    assert code == 130
    assert "WARNING" not in err
    assert "ERROR" not in err
    assert re.findall(r"^    (\S+) +drained ", out, re.MULTILINE) == [
        "both",
        "old",
        "new",
        "serial.stage",
        "visa.meter",
        "recorder",
    ]
    rows = rows_by_owner(tmp_path / "runs")
    assert rows["old", "position", "mm"][-1] == -1.0  # what it published when it was asked to stop
    values = [values for (_, channel, _), values in rows.items() if channel == "position"]
    positions = [
        entry["text"] for entry in instruments.replies() if entry["instrument"] == "stage" and entry["text"] != "OK"
    ]
    # The reply to a query that the stop interrupted is in the log, and reached nobody.
    assert len(positions) - (sum(map(len, values)) - 1) in (0, 1)
    file = re.search(r"^next: trio-daq show (.*)$", out, re.MULTILINE)[1]
    shown = subprocess.run(trio_daq("show", file), capture_output=True, text=True, check=True, timeout=30)
    assert f"{sum(map(len, rows.values()))} rows" in shown.stdout
    assert "ended in order" in shown.stdout
    assert all(re.search(rf"{owner} .*{channel}.*{unit}", shown.stdout) for owner, channel, unit in expected)


def test_polling_needs_no_code(instruments, tmp_path):
    """serial_poll and scpi_poll alone make a lab; each number that was recorded is one that its instrument sent."""
    (tmp_path / "lab.toml").write_text(LINES.format(stage=instruments.stage, meter=instruments.meter) + POLLING)
    expected = {("where", "position", "mm"), ("how_much", "voltage", "V")}

    def both_are_at_work() -> bool:
        rows = rows_by_owner(tmp_path / "runs")
        return set(rows) == expected and min(len(values) for values in rows.values()) >= 5

    code, _, err = run_until(both_are_at_work, tmp_path)
    assert code == 130
    assert "WARNING" not in err
    sent: dict[str, list[float]] = {"stage": [], "meter": []}
    for entry in instruments.replies():
        sent[entry["instrument"]].append(float(entry["text"]))
    rows = rows_by_owner(tmp_path / "runs")
    assert rows["where", "position", "mm"] == sent["stage"]
    assert rows["how_much", "voltage", "V"] == sent["meter"]


def test_polling_an_instrument_that_is_silent_goes_on_and_says_so(tmp_path):
    """A lab is not ended by one instrument that is off: each turn is a warning with its name, until Ctrl-C; what took
    the call may answer later."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        calls = []

        def answer_nobody() -> None:
            while True:
                try:
                    calls.append(server.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=answer_nobody)
        thread.start()
        resource = f"TCPIP::127.0.0.1::{server.getsockname()[1]}::SOCKET"
        (tmp_path / "lab.toml").write_text(
            f"""
            [visa.dmm]
            resource = "{resource}"
            timeout = 0.2
            [v2]
            [[v2.instruments]]
            id = "poll"
            driver = "scpi_poll"
            visa = "dmm"
            options = {{ commands = {{ voltage = "MEAS:VOLT?" }}, period = 0.1 }}
            [recording]
            enabled = false
            """
        )
        code, out, err = run_until(lambda: len(calls) >= 3, tmp_path)
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        for call in calls:
            call.close()
    warnings = [line for line in err.splitlines() if line.startswith("WARNING")]
    assert code == 130
    assert len(warnings) >= 2
    assert f"{resource}: 'MEAS:VOLT?' of 'poll' did not finish within 0.2" in warnings[0]
    assert "the instrument had not answered" in warnings[0]
    assert "Traceback" not in err
    assert "poll" in out


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_impatient_user_does_not_change_the_exit_code(tmp_path: Path, second: signal.Signals) -> None:
    """A signal that comes when the lab has ended, and the interpreter has not yet, is of no effect any more."""
    (tmp_path / "naps.py").write_text(
        "import atexit, time\n"
        "def end():\n    print('ending', flush=True)\n    time.sleep(0.5)\n"
        "async def nap(context):\n    atexit.register(end)\n    await context.stopping.wait()\n"
    )
    member = "[[v2.instruments]]\nid = 'nap'\ndriver = 'naps:nap'\n"
    (tmp_path / "lab.toml").write_text(f"[v2]\n{member}[recording]\nenabled = false\n")
    command = trio_daq("run", str(tmp_path / "lab.toml"))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert "Ctrl-C" in process.stdout.readline()
            process.send_signal(signal.SIGINT)
            while process.stdout.readline() != "ending\n":
                assert process.poll() is None
            process.send_signal(second)
            errors = process.stderr.read()
            assert process.wait(10) == 130
            assert "KeyboardInterrupt" not in errors
        finally:
            process.kill()


def test_a_reader_that_is_gone_does_not_keep_the_lab(tmp_path):
    """`trio-daq run lab.toml | head -1` ends in order when it is told to, though nobody reads its report."""
    (tmp_path / "naps.py").write_text("async def nap(context):\n    await context.stopping.wait()\n")
    member = "[[v2.instruments]]\nid = 'nap'\ndriver = 'naps:nap'\n"
    (tmp_path / "lab.toml").write_text(f"[v2]\n{member}[recording]\ndirectory = 'runs'\n")
    command = trio_daq("run", str(tmp_path / "lab.toml"))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert b"Ctrl-C" in process.stdout.readline()
        process.stdout.close()
        process.send_signal(signal.SIGTERM)
        errors = process.stderr.read()
        assert process.wait(10) == 1
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert b"Traceback" not in errors
    [file] = (tmp_path / "runs").glob("*.sqlite")
    with open_run(file) as run:
        assert run.ended_well
