"""The promise: every acknowledged reading is readable, whatever ended the recorder."""

import os
import random
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from trio_daq.recording import open_run

WRITER = Path(__file__).with_name("recording_writer.py")
ROWS = {"dmm": 0, "scope": 8}


def start_writer(*arguments):
    return subprocess.Popen([sys.executable, str(WRITER), *map(str, arguments)], stdout=subprocess.PIPE)


def told_acknowledged(lines):
    """The last number that was printed for each instrument; a line that the kill has cut off does not count."""
    last = {}
    for line in lines:
        if line.endswith(b"\n") and not line.startswith(b"failed"):
            instrument, seq = line.split()
            last[instrument.decode()] = int(seq)
    return last


def check_holds(run, acknowledged):
    """Check that *run* holds each instrument without gaps or repeats, right, and at least up to *acknowledged*."""
    for instrument, last in acknowledged.items():
        readings = list(run.readings(instrument))
        assert [reading.seq for reading in readings] == list(range(len(readings)))
        assert len(readings) > last
        row = ROWS[instrument]
        assert all(one.value == ((float(one.seq),) * row if row else one.seq) for one in readings)


@pytest.mark.parametrize("trial", range(15))
def test_every_acknowledged_reading_is_there_after_kill_9(trial, tmp_path):
    """Whatever was acknowledged when the process was killed can be read back, and the run has no end."""
    moment = random.Random(trial)
    with start_writer(tmp_path, moment.choice(["kill", "power-loss"])) as writer:
        path = Path(os.fsdecode(writer.stdout.readline()).strip())
        lines = [writer.stdout.readline() for _ in range(moment.randrange(1, 150))]
        writer.kill()
        acknowledged = told_acknowledged([*lines, *writer.stdout])
    assert acknowledged
    with open_run(path) as run:
        check_holds(run, acknowledged)
        assert (run.ended_ns, run.ended_well) == (None, False)


@pytest.mark.parametrize("limit", [150_000, 1_000_000, 6_000_000])
@pytest.mark.skipif(sys.platform == "win32", reason="a limit for the size of files is POSIX")
def test_a_full_disk_ends_recording_and_keeps_what_was_acknowledged(limit, tmp_path):
    """When the file can grow no more, serve raises RecordingError and loses nothing that it had acknowledged."""
    with start_writer(tmp_path, "kill", limit) as writer:
        path = Path(os.fsdecode(writer.stdout.readline()).strip())
        lines = list(writer.stdout)
    assert writer.returncode == 0
    assert b"SQLITE_" in lines[-1]
    assert lines[-1].startswith(b"failed ")
    acknowledged = told_acknowledged(lines)
    assert acknowledged
    with open_run(path) as run:
        check_holds(run, acknowledged)
        assert run.ended_ns is None


@pytest.fixture
def killed_run():
    """A run that was killed, in a folder that everybody may read, and what had been acknowledged of it."""
    with tempfile.TemporaryDirectory() as folder:
        with start_writer(folder, "kill") as writer:
            path = Path(os.fsdecode(writer.stdout.readline()).strip())
            lines = [writer.stdout.readline() for _ in range(10)]
            writer.kill()
            acknowledged = told_acknowledged([*lines, *writer.stdout])
        path.parent.chmod(0o555)
        yield path, acknowledged["dmm"]
        path.parent.chmod(0o755)


READ = """
import os, sys, urllib.parse  # pathlib imports it late, when this user may not read the standard library any more
from trio_daq.errors import RunFileError
from trio_daq.recording import open_run
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    with open_run(sys.argv[1]) as run:
        print(sum(1 for _ in run.readings("dmm")))
except RunFileError as error:
    print(error)
"""


def read_without_rights(path):
    """Count the readings of dmm as a user who may not write to the folder, or return what the error says."""
    return subprocess.run([sys.executable, "-c", READ, path], stdout=subprocess.PIPE, text=True, check=True).stdout


@pytest.mark.skipif(sys.platform == "win32", reason="rights are given the POSIX way")
def test_a_killed_run_can_be_read_by_a_user_who_may_not_write(killed_run):
    """With its -wal and -shm a killed run is read; without the -shm the error says what to do."""
    path, acknowledged = killed_run
    assert int(read_without_rights(path)) > acknowledged
    path.parent.chmod(0o755)
    path.with_name(path.name + "-shm").unlink()
    path.parent.chmod(0o555)
    assert "copy it, with the -wal file beside it" in read_without_rights(path)


@pytest.mark.skipif(sys.platform == "win32", reason="rights are given the POSIX way")
def test_a_run_whose_wal_was_taken_in_can_be_read_by_a_user_who_may_not_write(killed_run):
    """Without a -wal a run is read as it is, and no file is made beside it."""
    path, acknowledged = killed_run
    path.parent.chmod(0o755)
    connection = sqlite3.connect(path)
    connection.execute("SELECT count(*) FROM run").fetchall()
    connection.close()  # the last one out takes the WAL in and deletes it
    path.parent.chmod(0o555)
    assert os.listdir(path.parent) == [path.name]
    assert int(read_without_rights(path)) > acknowledged
    assert os.listdir(path.parent) == [path.name]
