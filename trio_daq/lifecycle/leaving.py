"""Leave a program that a stuck member still runs in: wait and say so, or end the process around it."""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

import trio

from trio_daq.lifecycle.member import Member

_log = logging.getLogger("trio_daq.lifecycle")

_NAG_PERIOD = 5.0
"""Seconds between messages about a block that cannot end because a member does not."""


_THREADS_TIMEOUT = 1.0
"""Seconds that the interpreter may wait for threads of the user when it exits."""


def exit_now(code: int) -> NoReturn:
    """End the process with what was logged and printed so far; nothing else is cleaned up."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # its reader is gone
            stream.flush()
    os._exit(code)


def stderr_number() -> int:
    """Return the file number of stderr, to be written to past all buffers; that of nowhere if there is none."""
    with suppress(OSError, ValueError):
        if sys.__stderr__ is not None:  # else 2 may be anything, such as an instrument
            return sys.__stderr__.fileno()
    return _nowhere()


@functools.cache
def _nowhere() -> int:
    return os.open(os.devnull, os.O_WRONLY)


def exit_despite_threads(code: int) -> None:
    """Let the interpreter, when it exits, wait a second for threads that were left behind, and not for ever.

    It waits for every thread that is no daemon, and for those of a `concurrent.futures` pool.
    """

    def exit_later() -> None:
        time.sleep(_THREADS_TIMEOUT)
        exit_now(code)

    def watch() -> None:
        threading.Thread(target=exit_later, name="trio_daq exit", daemon=True).start()

    # Nothing public is called before the interpreter waits: atexit comes after that.
    with suppress(AttributeError):
        threading._register_atexit(watch)  # type: ignore[attr-defined]


async def wait_for_stuck(members: Sequence[Member]) -> None:
    """Wait until all have ended, however long that takes, and say every 5 s which have not. Cannot be cancelled."""
    with trio.CancelScope(shield=True):
        while waiting := [member for member in members if not member.done.is_set()]:
            for one in map(Member.report, waiting):
                _log.error("cannot leave: %s does not end; it is at %s", one.name, one.frames)
            with trio.move_on_after(_NAG_PERIOD):
                for member in members:
                    await member.done.wait()
