"""An instrument's own diary: what it was asked, what it answered, which faults fired.

It is written by the process of the instruments, one JSON line an event, handed to the operating system before the
bytes go to the client: whatever the client got is in the file, also if either side is killed right after. Bytes stand
in it as Latin-1, so none is lost.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from os import PathLike
from types import TracebackType
from typing import Literal, Self

import attrs

Event = Literal["command", "reply", "fault"]


@attrs.frozen(kw_only=True)
class LogEntry:
    """One event.

    Attributes:
        t: `time.monotonic_ns` of the instruments' process; on Linux, one clock for all processes of a computer.
        instrument: ``"stage"``, ``"meter"``, ``"bus 1"`` for a station on a bus, ``"lab"`` for all of them.
        event: ``"command"`` when a command was taken up; ``"reply"`` when a whole reply went out, once for each query
            of a compound message; ``"fault"`` when a fault fired.
        text: The command, the reply, or what the fault sent, without terminator.
        tag: The tag of the query (of a compound command: the first), or None.
        fault: A kind of fault that `FaultPlan` lists; ``"unplug"``; ``"restart"`` or ``"deaf"``, noted when it begins,
            or ``"freeze"``, noted when it is over, each with its length as text, ``"0.2 s"``; or None.
    """

    t: int
    instrument: str
    event: Event
    text: str
    tag: str | None = None
    fault: str | None = None


class InstrumentLog:
    """The writing side, used inside the process of the instruments as a ``with`` block; goes on where a file ends."""

    def __init__(self, path: str | PathLike[str]) -> None:
        self._path = path

    def __enter__(self) -> Self:
        self._file = open(self._path, "a", buffering=1, encoding="ascii")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(
        self, instrument: str, event: Event, text: bytes, tag: str | None = None, fault: str | None = None
    ) -> None:
        """Note one event, now."""
        entry = {
            "t": time.monotonic_ns(),
            "instrument": instrument,
            "event": event,
            "text": text.decode("latin-1"),
            "tag": tag,
            "fault": fault,
        }
        self._file.write(json.dumps(entry) + "\n")


def read_log(path: str | PathLike[str]) -> list[LogEntry]:
    """Return what a log holds so far; a last line that is still being written is left out.

    Raises:
        OSError: If there is no such file.
        ValueError: If it is no log of simulated instruments.
    """
    with open(path, encoding="ascii") as file:
        return [_entry(line) for line in file if line.endswith("\n")]


def replies_by_tag(entries: Iterable[LogEntry]) -> dict[str, str]:
    """Return what was answered in full to each tag; of a tag used twice, the last reply."""
    return {entry.tag: entry.text for entry in entries if entry.event == "reply" and entry.tag is not None}


def _entry(line: str) -> LogEntry:
    try:
        return LogEntry(**json.loads(line))
    except TypeError:
        raise ValueError(f"no line of an instrument's log: {line[:100]!r}") from None
