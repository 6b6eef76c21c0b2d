"""Read a run file back, also while it is being written, and after the writer was killed.

It knows nothing of instruments or of Trio: its calls block, so a Trio program makes them in a thread.

The format, version 1: an SQLite database with `APPLICATION_ID` as ``application_id``, the version as ``user_version``,
and these tables:

- ``run (key, value)``: ``name``, ``started_ns`` (wall clock), ``survives``, ``metadata.KEY`` for what the user gave,
  and at the end ``ended_ns`` and ``ended_well``, 1 if the run was stopped in order, 0 if it was cancelled. A run that
  was killed, or that failed, has no end.
- ``channel (id, instrument, name, unit)``: what the channel numbers stand for.
- ``block (id, rows, crc, data)``: the readings, in the order of publishing, as `blocks` packs them; ids run from 1
  without gaps.

Each block is one transaction, with the channels that it is the first to use, and is never changed later. While a run
is being written, and after a kill, its newest blocks stand in ``FILE-wal``, which belongs to the file: copy both.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from trio_daq.data import Reading, Value
from trio_daq.errors import RunFileError
from trio_daq.recording.blocks import Block, Channel, channel_of, unpack

APPLICATION_ID = 0x74444151
"""The letters tDAQ, in the place where SQLite keeps a program's mark; https://www.sqlite.org/fileformat.html."""

FORMAT_VERSION = 1
METADATA_PREFIX = "metadata."

SCHEMA = (
    "CREATE TABLE run (key TEXT PRIMARY KEY, value)",
    "CREATE TABLE channel (id INTEGER PRIMARY KEY, instrument TEXT NOT NULL, name TEXT NOT NULL, unit TEXT NOT NULL)",
    "CREATE TABLE block (id INTEGER PRIMARY KEY, rows INTEGER NOT NULL, crc INTEGER NOT NULL, data BLOB NOT NULL)",
)


@attrs.frozen
class ChannelSummary:
    """What a run holds of one channel.

    Attributes:
        instrument: Who measured.
        channel: What was measured.
        unit: In which unit. A channel that changed its unit has two summaries.
        rows: How many readings.
        first_seq: ``seq`` of the first one.
        last_seq: ``seq`` of the last one.
        first_time_ns: ``time_ns`` of the first one.
        last_time_ns: ``time_ns`` of the last one.
        last_value: Value of the last one.
    """

    instrument: str
    channel: str
    unit: str
    rows: int
    first_seq: int
    last_seq: int
    first_time_ns: int
    last_time_ns: int
    last_value: Value


@contextmanager
def open_run(path: str | os.PathLike[str]) -> Iterator[RunFile]:
    """Open a run file to read it, for the length of a ``with`` block. Nothing is written or made.

    Raises:
        RunFileError: If there is no such file, or it is no run, or one of another format.
    """
    file = Path(path)
    connection = _connect(file)
    try:
        yield RunFile(file, connection)
    finally:
        connection.close()


class RunFile:
    """One run, read only. Made by `open_run`, and used in the thread that opened it.

    Every call shows what is committed at its time, so a run that is still being written grows from call to call.

    Attributes:
        path: The file.
        name: The name that the run was given.
        metadata: What the user noted at the start.
        started_ns: Wall clock at the start, as in `time.time_ns`.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        facts = self._facts()
        if "name" not in facts or "started_ns" not in facts:
            raise self._error("it does not say when it started")
        self.name: str = facts["name"]
        self.started_ns: int = facts["started_ns"]
        self.metadata: Mapping[str, str] = {
            key.removeprefix(METADATA_PREFIX): value for key, value in facts.items() if key.startswith(METADATA_PREFIX)
        }

    @property
    def ended_ns(self) -> int | None:
        """Wall clock at the end; None while it is being written, and for ever if it was killed or failed.

        Raises:
            RunFileError: If the file is damaged.
        """
        return self._facts().get("ended_ns")

    @property
    def ended_well(self) -> bool:
        """Whether the run was stopped in order: not cancelled, killed or failed, nor still being written.

        Raises:
            RunFileError: If the file is damaged.
        """
        return bool(self._facts().get("ended_well", False))

    def readings(self, instrument: str | None = None) -> Iterator[Reading]:
        """Yield the readings in the order of publishing, bit for bit as they were published.

        Args:
            instrument: Only those of this one.

        Raises:
            RunFileError: If a block is damaged or missing; the message names it. All blocks before it were yielded.
        """
        [(blocks,)] = self._query("SELECT max(id) FROM block")
        channels: dict[int, Channel] = {
            number: (of_instrument, name, unit)
            for number, of_instrument, name, unit in self._query("SELECT id, instrument, name, unit FROM channel")
        }
        # One query a block: a query left open by a slow reader would keep the writer's WAL growing.
        for number in range(1, (blocks or 0) + 1):
            found = self._query("SELECT rows, crc, data FROM block WHERE id = ?", number)
            if not found:
                raise self._error(f"block {number} is missing")
            try:
                readings = unpack(Block(*found[0]), channels)
            except (ValueError, TypeError) as error:  # TypeError: damage that turned bytes into text
                raise self._error(f"block {number} is damaged: {error}") from error
            for reading in readings:
                if instrument is None or reading.instrument == instrument:
                    yield reading

    def summary(self) -> tuple[ChannelSummary, ...]:
        """Count the readings of each channel, in the order of their first readings. Reads the whole file.

        Raises:
            RunFileError: If a block is damaged or missing; the message names it.
        """
        first: dict[Channel, Reading] = {}
        last: dict[Channel, Reading] = {}
        rows: dict[Channel, int] = {}
        for reading in self.readings():
            channel = channel_of(reading)
            first.setdefault(channel, reading)
            last[channel] = reading
            rows[channel] = rows.get(channel, 0) + 1
        return tuple(
            ChannelSummary(
                *channel,
                rows=rows[channel],
                first_seq=first[channel].seq,
                last_seq=last[channel].seq,
                first_time_ns=first[channel].time_ns,
                last_time_ns=last[channel].time_ns,
                last_value=last[channel].value,
            )
            for channel in first
        )

    def _facts(self) -> dict[str, Any]:
        return dict(self._query("SELECT key, value FROM run"))

    def _query(self, statement: str, *values: int) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._error(str(error)) from error

    def _error(self, reason: str) -> RunFileError:
        return RunFileError(path=str(self.path), reason=reason)


def _connect(file: Path) -> sqlite3.Connection:
    if not file.is_file():
        raise RunFileError(path=str(file), reason="it is a folder" if file.is_dir() else "there is no such file")
    uri = file.absolute().as_uri() + "?mode=ro"
    try:
        try:
            return _checked(file, uri)
        except sqlite3.OperationalError as error:
            # A WAL database wants a -shm file beside it, and this folder cannot have one. Without a -wal all is in
            # the file itself and nobody writes to it, so it can be read as it is; with one that would hide readings.
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                raise
            if file.with_name(file.name + "-wal").exists():
                reason = f"{error}; copy it, with the -wal file beside it, to a folder that you can write to"
                raise RunFileError(path=str(file), reason=reason) from error
            return _checked(file, uri + "&immutable=1")
    except sqlite3.Error as error:
        raise RunFileError(path=str(file), reason=str(error)) from error


def _checked(file: Path, uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True)
    try:
        [(application,)] = connection.execute("PRAGMA application_id").fetchall()
        [(version,)] = connection.execute("PRAGMA user_version").fetchall()
        if application != APPLICATION_ID:
            raise RunFileError(path=str(file), reason="it is not a run of trio_daq")
        if version != FORMAT_VERSION:
            reason = f"it has format {version}, and this version of trio_daq reads format {FORMAT_VERSION}"
            raise RunFileError(path=str(file), reason=reason)
    except BaseException:
        connection.close()
        raise
    return connection
