"""Write one run file: the blocking half of the recorder, for one thread.

It knows no Trio. The format is described in `run_file`.

Invariants: what a method returned for is committed. After a failure, or after `RunWriter.finish`, the file is closed
and the writer is not usable any more.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import attrs

from trio_daq.data import Reading
from trio_daq.recording.blocks import Channel, channel_of, pack
from trio_daq.recording.run_file import APPLICATION_ID, FORMAT_VERSION, METADATA_PREFIX, SCHEMA

_log = logging.getLogger("trio_daq.recording")

Survives = Literal["kill", "power-loss"]
"""What a commit lives through: the end of the process, or also of the power."""

_SYNCHRONOUS = {"kill": "NORMAL", "power-loss": "FULL"}
"""In WAL mode FULL syncs the disk at each commit and NORMAL only at checkpoints, which a killed process does not
notice, since the system keeps what was written; https://www.sqlite.org/pragma.html#pragma_synchronous."""

_LOCK_TIMEOUT = 4.0
"""Seconds to wait for another program that writes to the file; below the recorder's own deadline."""

_NAME_LENGTH = 50
"""Characters of a run's name that go into its file name: with four bytes each it stays under the usual 255."""


@attrs.frozen
class Committed:
    """What one call has committed.

    Attributes:
        rows: Readings, by instrument.
        last_seq: The last ``seq``, by instrument.
        blocks: Blocks, and so transactions.
        longest: Seconds that the slowest transaction took.
    """

    rows: Mapping[str, int]
    last_seq: Mapping[str, int]
    blocks: int
    longest: float


def create_run(directory: Path, name: str, survives: Survives, metadata: Mapping[str, str]) -> RunWriter:
    """Make *directory* and a new run file in it, and return its writer.

    Raises:
        OSError: If the directory or the file cannot be made.
        sqlite3.Error: If SQLite cannot write the file.
        ValueError: If the name or the metadata are no valid text.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = _new_file(directory, name)
    connection = sqlite3.connect(path, timeout=_LOCK_TIMEOUT, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {_SYNCHRONOUS[survives]}")
        connection.execute("BEGIN IMMEDIATE")
        for statement in SCHEMA:
            connection.execute(statement)
        facts = {"name": name, "started_ns": time.time_ns(), "survives": survives}
        facts |= {METADATA_PREFIX + key: value for key, value in metadata.items()}
        connection.executemany("INSERT INTO run (key, value) VALUES (?, ?)", facts.items())
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return RunWriter(path, connection)


class RunWriter:
    """An open run file. Made by `create_run`, and used in the same thread.

    Attributes:
        path: The file.
        usable: Whether it takes readings: not while a call is under way, not after one has failed, not at the end.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self.usable = True
        self._connection = connection
        self._numbers: dict[Channel, int] = {}
        self._blocks = 0

    def append(self, readings: Sequence[Reading]) -> Committed:
        """Commit *readings*, each block in a transaction of its own.

        Raises:
            sqlite3.Error: If the file cannot be written. It is then closed, with what was committed before.
            ValueError: If a reading cannot be stored. The file is then closed too.
        """
        self.usable = False
        try:
            committed = self._commit(readings)
        except BaseException:
            self._connection.close()  # which rolls back what is not committed
            raise
        self.usable = True
        return committed

    def finish(self, readings: Sequence[Reading], in_order: bool) -> Committed:
        """Commit *readings* and the end of the run, and leave one closed file without a WAL beside it.

        The WAL stays if somebody reads the file just now; then both belong together.

        Raises:
            sqlite3.Error: If the file cannot be written. It is then closed, with what was committed before.
            ValueError: If a reading cannot be stored. The file is then closed too.
        """
        self.usable = False
        with contextlib.closing(self._connection) as connection:
            committed = self._commit(readings)
            end = time.time_ns(), int(in_order)
            connection.execute("INSERT INTO run (key, value) VALUES ('ended_ns', ?), ('ended_well', ?)", end)
            connection.execute("PRAGMA busy_timeout = 0")
            for statement in ("PRAGMA wal_checkpoint(TRUNCATE)", "PRAGMA journal_mode = DELETE"):
                try:
                    connection.execute(statement)
                except sqlite3.OperationalError as error:
                    _log.info("%s: keeps its WAL: %s", self.path, error)
        return committed

    def _commit(self, readings: Sequence[Reading]) -> Committed:
        fresh = [channel for channel in dict.fromkeys(map(channel_of, readings)) if channel not in self._numbers]
        for channel in fresh:
            self._numbers[channel] = len(self._numbers) + 1
        longest = 0.0
        before = self._blocks
        for block in pack(readings, self._numbers):
            began = time.perf_counter()
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(
                "INSERT INTO channel (id, instrument, name, unit) VALUES (?, ?, ?, ?)",
                [(self._numbers[channel], *channel) for channel in fresh],
            )
            self._connection.execute(
                "INSERT INTO block (id, rows, crc, data) VALUES (?, ?, ?, ?)",
                (self._blocks + 1, block.rows, block.crc, block.data),
            )
            self._connection.execute("COMMIT")
            self._blocks += 1
            fresh = []
            longest = max(longest, time.perf_counter() - began)
        return Committed(
            rows=Counter([reading.instrument for reading in readings]),
            last_seq={reading.instrument: reading.seq for reading in readings},
            blocks=self._blocks - before,
            longest=longest,
        )


def _new_file(directory: Path, name: str) -> Path:
    safe = re.sub(r"[^\w.-]+", "_", name).strip("._-")[:_NAME_LENGTH] or "run"
    stem = f"{safe}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in itertools.count(1):
        path = directory / (f"{stem}.sqlite" if number == 1 else f"{stem}-{number}.sqlite")
        with contextlib.suppress(FileExistsError):
            path.touch(exist_ok=False)
            return path
    raise AssertionError("unreachable")
