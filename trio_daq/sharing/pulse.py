"""Signs of life: whatever a member does with its lines is one, and nobody has to say so.

A pulse goes with a member through its tasks as a context variable, like its name. Where it is used nothing is known of
who listens: a lease, a guard and a queue call `beat`, which costs next to nothing where nobody waits for it.

Invariants: a pulse that is not watched, or rests, never falls silent; each silence ends by at most one return.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import trio

from trio_daq.sharing.alarms import Alarm

_pulse: ContextVar[Pulse | None] = ContextVar("trio_daq_pulse", default=None)


class Pulse:
    """When somebody last showed a sign of life, and what happens when they have shown none for too long.

    One alarm looks after it, at most once in *seconds*, and not at all while it rests.

    Args:
        seconds: How long they may show none.
        on_silence: Called when they have shown none for so long.
        on_return: Called at the next one after that.

    Attributes:
        seconds: How long they may show none.
        last: Trio time of the last one.
        is_silent: Whether there has been none for too long.
    """

    __slots__ = (
        "_alarm",
        "_due",
        "_is_resting",
        "_is_watched",
        "_on_return",
        "_on_silence",
        "is_silent",
        "last",
        "seconds",
    )

    def __init__(self, seconds: float, on_silence: Callable[[], object], on_return: Callable[[], object]) -> None:
        self.seconds = seconds
        self.last = -math.inf
        self.is_silent = False
        self._on_silence = on_silence
        self._on_return = on_return
        self._alarm = Alarm(self._look)
        self._due = math.inf
        self._is_watched = self._is_resting = False

    def watch(self) -> None:
        """Expect signs of life from now on."""
        self._is_watched = True
        self.beat()

    def ignore(self) -> None:
        """Expect none any more."""
        self._is_watched = self.is_silent = False
        self._alarm.clear()

    def beat(self) -> None:
        """Note a sign of life."""
        if not self._is_watched:
            return
        self._is_resting = False
        self.last = trio.current_time()
        if self._alarm.time == math.inf:
            self._look_at(self.last + self.seconds)
        if self.is_silent:
            self.is_silent = False
            self._on_return()

    def rest(self) -> None:
        """Note that there is nothing to do, so that no sign of life is due until the next."""
        self.beat()
        self._is_resting = True  # the alarm may still ring once, and is not set again

    def _look(self) -> None:
        if not self._is_watched or self._is_resting:
            return
        now, due = trio.current_time(), self.last + self.seconds
        if now < due:
            self._look_at(due)
        elif now - self._due > self.seconds / 4:
            # The whole event loop stood still. Whoever waited for it is not to blame, and has not run yet.
            self._look_at(now + self.seconds / 2)
        else:
            self.is_silent = True
            self._on_silence()

    def _look_at(self, time: float) -> None:
        self._due = time
        self._alarm.set(time)


@contextmanager
def living_by(pulse: Pulse | None) -> Iterator[None]:
    """Let signs of life of the current task, and of tasks started in this block, be those of *pulse*."""
    token = _pulse.set(pulse)
    try:
        yield
    finally:
        _pulse.reset(token)


def current_pulse() -> Pulse | None:
    """Return the pulse of the member that runs, None if nobody waits for its signs of life."""
    return _pulse.get()


def beat() -> None:
    """Note a sign of life of the member that runs, if somebody waits for one."""
    pulse = _pulse.get()
    if pulse is not None:
        pulse.beat()
