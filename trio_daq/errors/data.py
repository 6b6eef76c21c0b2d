"""Errors of readings on their way to subscribers and into files."""

from __future__ import annotations

from trio_daq.errors.daq_error import DaqError, error, seconds


@error
class PublishTimeoutError(DaqError, TimeoutError):
    """A subscriber that may not lose readings was too slow; the reading was given to nobody."""

    instrument: str
    subscriber: str
    waited: float

    def __str__(self) -> str:
        return (
            f"a reading of {self.instrument!r} could not be published within {seconds(self.waited)}: subscriber "
            f"{self.subscriber!r} is full and may lose nothing. It was given to nobody; publish less or read faster."
        )


@error
class RecordingError(DaqError, OSError):
    """The recorder could not write."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: cannot record: {self.reason}. What was acknowledged before is in the file."


@error
class AcknowledgeTimeoutError(DaqError, TimeoutError):
    """A reading was not in the run file in time. It may still get there."""

    path: str
    instrument: str
    seq: int
    waited: float

    def __str__(self) -> str:
        return (
            f"{self.path}: reading {self.seq} of {self.instrument!r} was not acknowledged within "
            f"{seconds(self.waited)}; it may still be, or it was never published."
        )


@error
class RunFileError(DaqError, OSError):
    """A run file cannot be read."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: cannot be read as a run: {self.reason}."
