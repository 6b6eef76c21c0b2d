"""`trio-daq demo` as a process: what it promises, counted from the instruments' log, the drivers' notes and the file.

Nothing here believes the printed summary, but for the one number that only the recorder knows.
"""

import contextlib
import itertools
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from trio_daq.data import Reading
from trio_daq.recording import open_run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the simulated stage needs a pty")

V2 = {"old_scan", "logger", "impatient"}
V4 = {"stage_actor", "meter_actor"}


def command(folder: Path, seconds: float) -> list[str]:
    return [sys.executable, "-P", "-m", "trio_daq", "demo", "--seconds", str(seconds), "--directory", str(folder)]


def simulators(folder: Path) -> list[int]:
    """Return the processes of simulated instruments whose log is in *folder*."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:  # it has just ended
                continue
            if b"trio_daq.sim" in arguments and any(os.fsencode(folder) in argument for argument in arguments):
                found.append(int(entry.name))
    return found


def wait_until(condition: Any, within: float = 15.0) -> None:
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@attrs.frozen
class Demo:
    """What a demo left behind."""

    folder: Path
    code: int
    said: str

    @property
    def log(self) -> list[dict[str, Any]]:
        """The instruments' own log."""
        return [json.loads(line) for line in (self.folder / "demo-1/instruments.jsonl").read_text().splitlines()]

    @property
    def notes(self) -> list[dict[str, Any]]:
        """What the drivers saw; of one that was killed, the last line may be cut off."""
        lines = (self.folder / "demo-1/evidence.jsonl").read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    @property
    def run_file(self) -> Path:
        [file] = (self.folder / "demo-1").glob("*.sqlite")
        return file

    def replies(self, line: str) -> dict[str, str]:
        """What an instrument says that it answered to each tag."""
        replies = [one for one in self.log if one["instrument"] == line and one["event"] == "reply"]
        return {one["tag"]: one["text"] for one in replies if one["tag"] is not None}

    def count(self, outcome: str, line: str = "") -> int:
        """How many questions on that line the drivers say ended so."""
        return sum(one["outcome"] == outcome and one["line"] == line for one in self.notes)

    def rows(self) -> list[Reading]:
        with open_run(self.run_file) as run:
            return list(run.readings())

    def check_replies(self) -> None:
        """Check that each reply that a driver got is what the instrument answered to that very question."""
        replies = {line: self.replies(line) for line in ("stage", "meter")}
        received = [one for one in self.notes if one["outcome"] == "reply"]
        wrong = [one for one in received if replies[one["line"]].get(one["tag"]) != one["reply"]]
        assert received
        assert wrong == []

    def check_rows(self) -> None:
        """Check that the rows of each driver are numbered without a gap."""
        numbers: dict[str, list[int]] = {}
        for row in self.rows():
            numbers.setdefault(row.instrument, []).append(row.seq)
        assert numbers
        assert all(seqs == list(range(len(seqs))) for seqs in numbers.values())

    def check_order(self) -> None:
        """Check that the report lists the stages in the order of a stop."""
        stages = re.findall(r"^  (v4|v2|hardware|recording) ", self.said, re.MULTILINE)
        assert stages == ["v4", "v2", "hardware", "recording"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """A demo of five seconds that ended by itself."""
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run(command(folder, 5), capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    return Demo(folder, done.returncode, done.stdout)


def test_the_demo_ends_well_and_leaves_nothing_running(demo):
    """Its exit code is 0, and its simulated instruments are gone."""
    assert demo.code == 0
    assert simulators(demo.folder) == []
    demo.check_order()
    assert "the block ended" in demo.said


@pytest.mark.parametrize("line", ["stage", "meter"])
def test_old_and_new_code_shared_each_line(demo, line):
    """By the instrument's log it answered 200 questions or more, of V2 and of V4, taking turns."""
    owners = [tag.rpartition("-")[0] for tag in demo.replies(line)]
    shares = Counter(owners)
    assert len(owners) >= 200
    assert shares["old_scan"] > 10
    assert shares["logger"] > 10
    assert shares[f"{line}_actor"] > 10
    assert set(shares) <= V2 | V4
    hand_overs = sum(one != other for one, other in itertools.pairwise(owners))
    assert hand_overs > 50


@pytest.mark.parametrize("line", ["stage", "meter"])
def test_late_replies_and_cancelled_callers_were_met(demo, line):
    """By its log each instrument was late five times or more; by their notes, five callers or more left early."""
    assert sum(one["instrument"] == line and one["fault"] == "late" for one in demo.log) >= 5
    assert demo.count("late", line) >= 5
    assert demo.count("cancelled", line) >= 5


def test_no_reply_went_astray(demo):
    """Every reply that a driver noted is what the instrument logged for the tag of that very question."""
    demo.check_replies()
    assert sum(demo.count("reply", line) for line in ("stage", "meter")) >= 400


def test_no_reading_was_lost(demo):
    """Rows in the file, readings that the drivers published, and readings acknowledged: the same number."""
    rows = len(demo.rows())
    acknowledged = re.search(r"(\d+) acknowledged by the recorder", demo.said)
    assert rows == demo.count("published") == int(acknowledged[1])
    assert rows > 300
    demo.check_rows()
    with open_run(demo.run_file) as run:
        assert run.ended_well


def test_the_next_command_is_named_and_works(demo):
    """The last line names it; it shows each channel, and as many rows as the file holds."""
    next_line = demo.said.splitlines()[-1]
    prefix = "next: trio-daq "
    assert next_line.startswith(prefix)
    verb, _, path = next_line.removeprefix(prefix).partition(" ")
    show = [sys.executable, "-P", "-m", "trio_daq", verb, path]
    done = subprocess.run(show, capture_output=True, text=True, timeout=30, check=True)
    assert f"{len(demo.rows())} rows" in done.stdout
    assert "ended in order" in done.stdout
    for owner, channel in {(row.instrument, row.channel) for row in demo.rows()}:
        assert re.search(rf"{owner}.*{channel}", done.stdout)


# --- ended in the middle --------------------------------------------------------------------------------------------


def interrupted(folder: Path, number: signal.Signals) -> Demo:
    """A demo that got a signal when it had been at work for a while."""
    process = subprocess.Popen(command(folder, 60), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        evidence = folder / "demo-1/evidence.jsonl"
        wait_until(lambda: evidence.exists() and evidence.stat().st_size > 20_000)
        assert len(simulators(folder)) == 1
        process.send_signal(number)
        said, errors = process.communicate(timeout=10.0)  # the configured shutdown_timeout
        assert errors == ""
    finally:
        process.kill()
        process.communicate()
    return Demo(folder, process.returncode, said)


def test_sigterm_in_the_middle_stops_in_order(tmp_path):
    """All is as at the end of its time, but for the exit code, 143."""
    demo = interrupted(tmp_path, signal.SIGTERM)
    assert demo.code == 143
    assert simulators(tmp_path) == []
    assert "SIGTERM was received" in demo.said
    demo.check_order()
    demo.check_replies()
    demo.check_rows()
    assert len(demo.rows()) == demo.count("published")


def test_kill_9_in_the_middle_loses_nothing_that_was_acknowledged(tmp_path):
    """The run file opens, without an end, its rows without a gap, and the simulated instruments end by themselves.

    A driver notes a reading when it has handed it over, so the notes may be ahead of the file by what was waiting for
    the next commit, and behind it by one reading a driver.
    """
    demo = interrupted(tmp_path, signal.SIGKILL)
    assert demo.code == -signal.SIGKILL
    wait_until(lambda: simulators(tmp_path) == [], within=10)
    demo.check_rows()
    demo.check_replies()
    with open_run(demo.run_file) as run:
        assert (run.ended_well, run.ended_ns) == (False, None)
    rows = len(demo.rows())
    assert rows > 30
    assert demo.count("published") - 200 < rows <= demo.count("published") + len(V2 | V4)


@pytest.fixture
def terminal() -> Iterator[tuple[int, str]]:
    """A terminal: the side where a person sits, and the path of the other."""
    person, other = pty.openpty()
    yield person, os.ttyname(other)
    os.close(other)
    os.close(person)


def test_ctrl_c_at_a_terminal(tmp_path, terminal):
    """On a terminal a live table shows who owns what; Ctrl-C there stops in order, instruments last, exit code 130."""
    person, path = terminal
    on_terminal = "import os, sys\nos.login_tty(os.open(sys.argv[1], os.O_RDWR))\nos.execv(sys.argv[2], sys.argv[2:])"
    process = subprocess.Popen(
        [sys.executable, "-c", on_terminal, path, *command(tmp_path, 60)],
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"},
    )
    seen = b""
    try:
        os.set_blocking(person, False)

        def look() -> bytes:
            nonlocal seen
            with contextlib.suppress(BlockingIOError):
                seen += os.read(person, 65536)
            return seen

        wait_until(lambda: b"last values" in look() and len(re.findall(b"last values", seen)) > 3)
        assert b"waiting" in seen
        assert b"exchanges" in seen
        assert any(name.encode() in seen for name in V2)
        assert any(name.encode() in seen for name in V4)
        os.write(person, b"\x03")
        wait_until(lambda: look() and process.poll() is not None)
        look()
    finally:
        process.kill()
        process.wait()
    demo = Demo(tmp_path, process.returncode, seen.decode().replace("\r\n", "\n"))
    assert demo.code == 130
    assert simulators(tmp_path) == []
    assert "SIGINT was received" in demo.said
    demo.check_order()
    demo.check_replies()
    demo.check_rows()
    assert "WARNING" not in demo.said  # such as: the instruments had ended by themselves
    assert "Traceback" not in demo.said
