"""The instruments' own log."""

import time
from pathlib import Path

import pytest

from trio_daq.sim import LogEntry, read_log, replies_by_tag
from trio_daq.sim.log import InstrumentLog


def test_reads_back_what_was_written(tmp_path: Path) -> None:
    """Entries come back as they were, every byte of them, in order, with the time of writing."""
    path = tmp_path / "log.jsonl"
    before = time.monotonic_ns()
    with InstrumentLog(path) as log:
        log.write("stage", "command", b"POS? \xff\r", "\xff")
        log.write("stage", "fault", bytes(range(256)), None, "garbage")
        first, second = read_log(path)  # while it is open: each event is in the file at once
    assert first == LogEntry(t=first.t, instrument="stage", event="command", text="POS? \xff\r", tag="\xff")
    assert second.text.encode("latin-1") == bytes(range(256))
    assert second.fault == "garbage"
    assert before <= first.t <= second.t <= time.monotonic_ns()


def test_goes_on_where_a_file_ends(tmp_path: Path) -> None:
    """A second run adds to the log of the first."""
    for number in (1, 2):
        with InstrumentLog(tmp_path / "log.jsonl") as log:
            log.write("stage", "reply", b"%d" % number, "tag")
    entries = read_log(tmp_path / "log.jsonl")
    assert [entry.text for entry in entries] == ["1", "2"]
    assert replies_by_tag(entries) == {"tag": "2"}


def test_unfinished_last_line_is_left_out(tmp_path: Path) -> None:
    """A line that was cut by a kill does not spoil the others."""
    path = tmp_path / "log.jsonl"
    with InstrumentLog(path) as log:
        log.write("stage", "reply", b"x", "a")
    with path.open("a") as file:
        file.write('{"t": 1, "instr')
    assert replies_by_tag(read_log(path)) == {"a": "x"}


@pytest.mark.parametrize("text", ["nonsense\n", '{"t": 1}\n', "[]\n", "1\n"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    """A file that is no such log gives a ValueError."""
    path = tmp_path / "log.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=r".+"):
        read_log(path)
