"""What the demo's drivers saw, written down by themselves, to be held against the instruments' own log.

One JSON line an event. Each question bears a tag that no other has, so a reply that reached the wrong asker shows.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TextIO

import attrs

Outcome = Literal["reply", "late", "cancelled", "error", "published"]


@attrs.frozen(kw_only=True)
class Event:
    """One thing that a driver saw.

    Attributes:
        owner: Which driver.
        line: ``"stage"`` or ``"meter"``; empty for a reading that was published.
        tag: Tag of the question.
        outcome: What became of it.
        reply: The reply, if there was one.
    """

    owner: str
    line: str
    tag: str
    outcome: Outcome
    reply: str = ""


class Evidence:
    """The notes of one driver."""

    def __init__(self, owner: str, file: TextIO | None) -> None:
        self._owner = owner
        self._file = file
        self._numbers = itertools.count(1)

    def tag(self) -> str:
        """Return a tag that nobody else uses."""
        return f"{self._owner}-{next(self._numbers)}"

    def note(self, line: str, tag: str, outcome: Outcome, reply: str = "") -> None:
        """Write down what became of a question."""
        if self._file is not None:
            event = Event(owner=self._owner, line=line, tag=tag, outcome=outcome, reply=reply)
            self._file.write(json.dumps(attrs.asdict(event)) + "\n")

    def note_published(self) -> None:
        """Write down that a reading was published."""
        self.note("", "", "published")


@contextmanager
def taking_notes(owner: str, path: str | None) -> Iterator[Evidence]:
    """Take notes in the file *path*, or nowhere if there is none, for the length of a ``with`` block."""
    if path is None:
        yield Evidence(owner, None)
        return
    with open(path, "a", buffering=1, encoding="utf-8") as file:
        yield Evidence(owner, file)


def read_evidence(path: Path) -> list[Event]:
    """Return all that the drivers noted; nothing if none of them did."""
    if not path.exists():
        return []
    # A process that was killed may have left half a line at the end.
    return [Event(**json.loads(line)) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
