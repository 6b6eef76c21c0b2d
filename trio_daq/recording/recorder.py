"""Record every reading that is published, and say which ones are safe.

It takes readings in batches, hands them to a thread that commits them, and only then acknowledges them. It knows no
SQL: `run_writer` does.

Invariant: a reading is acknowledged only after its transaction was committed, and readings of one instrument in
their order; so whatever kills the process, everything acknowledged can be read back.
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar, TypeVarTuple

import attrs
import trio

from trio_daq.data import DataDistributor, Reading, Subscription
from trio_daq.errors import AcknowledgeTimeoutError, HungCallError, RecordingError, StateError
from trio_daq.recording.run_writer import Committed, RunWriter, Survives, create_run
from trio_daq.sharing import WorkerThread, checked_timeout

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

_COMMIT_TIMEOUT = 5.0
"""Seconds for one batch; a disk that takes longer is not keeping up, and publishers wait for it."""

_NOTHING: Mapping[str, str] = MappingProxyType({})


@attrs.frozen
class RecorderStatistics:
    """A snapshot of a `Recorder`.

    Attributes:
        rows: Readings acknowledged.
        blocks: Blocks committed for them.
        rows_by_instrument: Readings acknowledged, by instrument.
        longest_commit: Seconds that the slowest commit took.
    """

    rows: int
    blocks: int
    rows_by_instrument: Mapping[str, int]
    longest_commit: float


class Recorder:
    """Records one run, in one file, from `serve` to `stop`.

    Args:
        distributor: Whose readings to record. While a full recorder lags behind, its publishers wait.
        directory: Where the file goes; made if missing.
        name: What the run is called. The file is ``NAME-YYYYmmdd-HHMMSS.sqlite``, in local time, with another
            character for each that has no place in a file name.
        survives: ``"kill"`` keeps what was acknowledged when the process is killed, ``"power-loss"`` also when the
            machine stops: each commit waits for the disk.
        metadata: Notes to be kept with the run, for example the sample, or the configuration as text.

    Example:
        >>> async def main(directory):
        ...     distributor = DataDistributor()
        ...     recorder = Recorder(distributor, directory, "demo")
        ...     async with trio.open_nursery() as nursery:
        ...         await nursery.start(recorder.serve)
        ...         reading = await DataPublisher(distributor, "dmm").publish("voltage", 1.5, "V")
        ...         await recorder.wait_acknowledged("dmm", reading.seq)
        ...         recorder.stop()
        ...     with open_run(recorder.path) as run:
        ...         print([reading.value for reading in run.readings()], run.ended_well)
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     trio.run(main, directory)
        [1.5] True
    """

    def __init__(
        self,
        distributor: DataDistributor,
        directory: str | os.PathLike[str],
        name: str,
        *,
        survives: Survives = "kill",
        metadata: Mapping[str, str] = _NOTHING,
    ) -> None:
        if survives not in ("kill", "power-loss"):
            raise ValueError(f"survives must be 'kill' or 'power-loss', not {survives!r}")
        self._distributor = distributor
        self._directory = Path(directory)
        self._name = name
        self._survives: Survives = survives
        self._metadata = dict(metadata)
        self._thread = WorkerThread(f"recorder {name}")
        self._path: Path | None = None
        self._served = False
        self._stopping = False
        self._ended: str | None = None
        self._waiting = trio.CancelScope()
        self._acknowledged: dict[str, int] = {}
        self._progress = trio.lowlevel.ParkingLot()
        self._rows: Counter[str] = Counter()
        self._blocks = 0
        self._longest_commit = 0.0

    @property
    def path(self) -> Path:
        """The run file.

        Raises:
            StateError: If `serve` has not made it yet.
        """
        if self._path is None:
            raise StateError(action="the path of a recorder", expected="started", actual="not started")
        return self._path

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Make the run file and record, until `stop`; everything published from ``started()`` on goes into it.

        Cancelled, it finishes the batch in hand, takes what has been published, and closes the file, marked as not
        ended in order: at most 5 s for each of the two.

        Raises:
            RecordingError: If the file cannot be made or written, or takes too long. What was acknowledged is in it.
            StateError: If it was called before: a recorder has one life.
        """
        if self._served:
            hint = "Make a new Recorder for each run."
            raise StateError(action="Recorder.serve", expected="fresh", actual="used before", hint=hint)
        self._served = True
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            writer = await self._in_thread(create_run, self._directory, self._name, self._survives, self._metadata)
            self._path = writer.path
            with self._distributor.subscribe("recorder", policy="block") as subscription:
                task_status.started()
                await self._record(writer, subscription)
        finally:
            self._ended = self._ended or "the run has ended"
            self._thread.stop()
            self._progress.unpark_all()

    def stop(self) -> None:
        """Ask `serve` to record what has been published by now, close the file and return. Does not wait for it."""
        self._stopping = True
        self._waiting.cancel()

    def acknowledged(self, instrument: str) -> int | None:
        """Return the ``seq`` of the last reading of *instrument* that is safe, with all before it; None if none is."""
        return self._acknowledged.get(instrument)

    async def wait_acknowledged(self, instrument: str, seq: int, timeout: float = 5.0) -> None:
        """Wait until reading *seq* of *instrument* is safe. Cancellation only stops waiting.

        Raises:
            AcknowledgeTimeoutError: If it was not within *timeout* seconds.
            RecordingError: If recording ended without it.
        """
        checked_timeout(timeout)
        await trio.lowlevel.checkpoint()
        with trio.move_on_after(timeout):
            while self._ended is None and not self._is_acknowledged(instrument, seq):
                await self._progress.park()
        if self._is_acknowledged(instrument, seq):
            return
        if self._ended is not None:
            raise self._error(f"reading {seq} of {instrument!r} was not acknowledged: {self._ended}")
        raise AcknowledgeTimeoutError(
            path=str(self._path or self._directory), instrument=instrument, seq=seq, waited=timeout
        )

    def statistics(self) -> RecorderStatistics:
        """Return a snapshot for health checks and displays."""
        return RecorderStatistics(
            rows=self._rows.total(),
            blocks=self._blocks,
            rows_by_instrument=dict(self._rows),
            longest_commit=self._longest_commit,
        )

    async def _record(self, writer: RunWriter, subscription: Subscription) -> None:
        in_order = False
        try:
            while not self._stopping:
                if batch := await self._next_batch(subscription):
                    self._acknowledge(await self._in_thread(writer.append, batch))
            in_order = True
        finally:
            if self._ended is None and writer.usable:
                last = subscription.receive_nowait()
                self._acknowledge(await self._in_thread(writer.finish, last, in_order))

    async def _next_batch(self, subscription: Subscription) -> list[Reading]:
        with trio.CancelScope() as self._waiting:
            return await subscription.receive()
        return []

    async def _in_thread(self, work: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
        # Shielded, since whether a transaction was committed must be known; it has a deadline of its own.
        with trio.CancelScope(shield=True):
            try:
                result = await self._thread.run(work, *args, timeout=_COMMIT_TIMEOUT, grace=0.0)
            except (sqlite3.Error, OSError, ValueError) as error:
                self._ended = _reason(error)
                raise self._error(self._ended) from error
        return result

    def _acknowledge(self, committed: Committed) -> None:
        self._acknowledged.update(committed.last_seq)
        self._rows.update(committed.rows)
        self._blocks += committed.blocks
        self._longest_commit = max(self._longest_commit, committed.longest)
        self._progress.unpark_all()

    def _is_acknowledged(self, instrument: str, seq: int) -> bool:
        return self._acknowledged.get(instrument, -1) >= seq

    def _error(self, reason: str) -> RecordingError:
        return RecordingError(path=str(self._path or self._directory), reason=reason)


def _reason(error: Exception) -> str:
    if isinstance(error, HungCallError):
        return f"the disk took longer than {error.waited:.3g} s"
    code = getattr(error, "sqlite_errorname", None)
    return f"{error} ({code})" if code else str(error)
