"""What a simulated instrument answers to one command.

An instrument here is a plain object: the bytes of one command and the time go in, an `Answer` comes out. It knows
neither pty nor socket, neither faults nor log, and never waits.
"""

from __future__ import annotations

from typing import Protocol

import attrs


@attrs.frozen
class Reply:
    """The reply to one query.

    Attributes:
        text: Its bytes, without terminator.
        tag: The tag of the query, or None if it bore none.
    """

    text: bytes
    tag: str | None = None


@attrs.frozen
class Answer:
    """Everything that one command gives.

    Attributes:
        replies: One for each query in it; they go out as one line, joined by ``;``. Empty: the command is not answered.
        delay: Seconds that the instrument takes, during which it does nothing else for this client.
    """

    replies: tuple[Reply, ...] = ()
    delay: float = 0.0

    @property
    def tag(self) -> str | None:
        """The first tag in it, or None."""
        return next((reply.tag for reply in self.replies if reply.tag is not None), None)

    @property
    def is_block(self) -> bool:
        """Whether it is one definite block (IEEE 488.2-1992, 8.7.9) and nothing else."""
        return len(self.replies) == 1 and self.replies[0].text[:1] == b"#"

    @property
    def line(self) -> bytes:
        """What goes to the client, without terminator."""
        return b";".join(reply.text for reply in self.replies)


class SimulatedInstrument(Protocol):
    """What a line server needs of an instrument.

    Attributes:
        name: What the log calls it.
        command_ends: Each of these bytes ends a command.
        reply_end: What ends a reply.
    """

    name: str
    command_ends: bytes
    reply_end: bytes

    def answer(self, command: bytes, now: float) -> Answer:
        """Carry out one command, without its terminator, at *now* seconds of any clock that never goes back."""
        ...

    def overrun(self) -> Answer:
        """Answer a command that was too long to be kept."""
        ...


LONGEST_DELAY = 3600.0
"""Seconds; a `SLOW?` for longer is taken as a mistake."""


def parse_number(text: bytes, least: float, most: float) -> float | None:
    """Return the number that *text* is, or None if it is none or lies outside *least* to *most*."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if least <= number <= most else None  # NaN fails both comparisons


def tag_text(tag: bytes) -> str | None:
    """Return a tag as text, byte for byte, or None for no tag."""
    return tag.decode("latin-1") if tag else None
