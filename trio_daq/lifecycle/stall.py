"""Notice that the event loop stands still, while it does, and say who holds it and where.

A thread looks at the loop once in `STALL_AFTER` seconds, and an instrument of Trio's tells it since when the loop has
been at its current round. The round, not the step: that costs 0.8 us each time the loop looks for I/O and nothing for
each step of a task (`before_task_step` costs 0.35 us for each, measured), wakes no loop that sleeps, and leaves a
virtual clock alone, which a task that beats would not. Who it is shows the tree of tasks, of which exactly one runs.

Invariants: one warning and one record for each stall; nothing is left after `stop`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable

import attrs
import trio

from trio_daq.lifecycle.whereabouts import frames_of_thread, tell_place
from trio_daq.sharing import member_of

_log = logging.getLogger("trio_daq.lifecycle")

STALL_AFTER = 1.0
"""Seconds. A step of a task ought to take milliseconds; a second is what a person notices."""

_JOIN_TIMEOUT = 1.0
"""Seconds for the thread to end, which sleeps or is about to write one line to the log."""


@attrs.frozen
class Stall:
    """A time for which no task ran but one.

    Attributes:
        seconds: How long it took.
        who: The member that ran, else the task; ``"a task"`` if it could not be seen.
        where: The function, file and line that it was at.
        ended_at: When it was over, as `time.monotonic`.
    """

    seconds: float
    who: str
    where: str
    ended_at: float


class StallWatch(trio.abc.Instrument):
    """Watches over the event loop from `start` to `stop`, both to be called inside it.

    Args:
        on_stall: Called in the Trio thread when a stall is over.
        stall_after: Seconds from which on standing still is a stall.

    Attributes:
        last: The last stall, None if there was none.
    """

    def __init__(self, on_stall: Callable[[Stall], object], stall_after: float = STALL_AFTER) -> None:
        self.last: Stall | None = None
        self._on_stall = on_stall
        self._stall_after = stall_after
        self._since = math.inf
        self._seen: tuple[float, str, str] | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to watch the event loop that this is called in."""
        self._token = trio.lowlevel.current_trio_token()
        self._root = trio.lowlevel.current_root_task()
        self._ident = threading.get_ident()
        self._since = time.monotonic()
        self._stopping = threading.Event()
        trio.lowlevel.add_instrument(self)
        self._thread = threading.Thread(target=self._watch, name="trio_daq stall watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Watch no more, and wait until the thread has ended, which it does at once."""
        if self._thread is not None:
            self._stopping.set()
            with contextlib.suppress(KeyError):
                trio.lowlevel.remove_instrument(self)
            self._thread.join(_JOIN_TIMEOUT)
            self._thread = None

    def after_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - that is how Trio calls it
        """Note that a round begins. Called by Trio."""
        self._since = time.monotonic()

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002
        """Note that a round has ended. Called by Trio."""
        since, self._since = self._since, math.inf
        if since + self._stall_after < time.monotonic():
            # Not here: Trio has decided by now how long it is going to sleep.
            self._token.run_sync_soon(self._note, since, time.monotonic())

    def _note(self, since: float, ended_at: float) -> None:
        seen, self._seen = self._seen, None
        # A call that does not even let other threads run is over before it can be looked at.
        who, where = seen[1:] if seen is not None and seen[0] == since else ("a task", "an unknown place")
        self.last = Stall(ended_at - since, who, where, ended_at)
        self._on_stall(self.last)

    def _watch(self) -> None:
        looked_at = math.inf
        while True:
            since = self._since
            standing = time.monotonic() - since
            if since != looked_at and standing >= self._stall_after:
                looked_at = since
                self._look(since)
            pause = self._stall_after - standing if 0 < standing < self._stall_after else self._stall_after
            if self._stopping.wait(pause):
                return

    def _look(self, since: float) -> None:
        task = _running(self._root)
        outermost = getattr(task.coro, "cr_frame", None) if task is not None else None
        where = tell_place(frames_of_thread(self._ident, outermost))
        who = "a task" if task is None else member_of(task) or task.name
        if self._since != since:
            return  # it has gone on meanwhile, so this may be about anything
        self._seen = (since, who, where)
        _log.warning(
            "the event loop has stood still for %.2f s: %s is at %s. Blocking code belongs in a thread: spawn_thread",
            time.monotonic() - since,
            who,
            where,
        )


def _running(root: trio.lowlevel.Task | None) -> trio.lowlevel.Task | None:
    tasks = [root] if root is not None else []
    while tasks:
        task = tasks.pop()
        if getattr(task.coro, "cr_running", False):
            return task
        tasks += (child for nursery in task.child_nurseries for child in nursery.child_tasks)
    return None
