"""Messages that nobody will handle: how many of each kind, and the last of them to look at.

It knows nothing of mailboxes. Each kind is logged once for each actor: a dropping mailbox may drop a thousand a second.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Any, Literal

import attrs
import trio

from trio_daq.actors.messages import Message

_log = logging.getLogger("trio_daq.actors")

_KEPT = 100
"""Dead letters that are kept; older ones are only counted."""

Fate = Literal["dropped", "undelivered", "refused"]
"""Why nobody handled it: the mailbox was full, the actor stopped with it in the mailbox, or had stopped before."""


@attrs.frozen
class DeadLetter:
    """A message that nobody handled.

    Attributes:
        message: What was said.
        fate: Why nobody handled it.
        at: Trio time at which that became certain.
    """

    message: Message[Any]
    fate: Fate
    at: float


class DeadLetters:
    """The dead letters of one actor, in all its lives.

    Args:
        actor: Its name, for the log.

    Attributes:
        counts: How many of each kind there were.
    """

    __slots__ = ("_actor", "_last", "counts")

    def __init__(self, actor: str) -> None:
        self.counts: dict[Fate, int] = {"dropped": 0, "undelivered": 0, "refused": 0}
        self._actor = actor
        self._last: deque[DeadLetter] | None = None  # most actors have none, and an empty one is 700 bytes

    def add(self, message: Message[Any], fate: Fate) -> None:
        """Count and keep *message*."""
        if self._last is None:
            self._last = deque(maxlen=_KEPT)
        self._last.append(DeadLetter(message, fate, trio.current_time()))
        self.counts[fate] += 1
        if self.counts[fate] == 1:
            _log.warning("actor %s: %r was %s; more of this kind are counted, not logged", self._actor, message, fate)

    def last(self) -> tuple[DeadLetter, ...]:
        """Return the last 100, oldest first."""
        return tuple(self._last or ())
