"""Leave a program that a stuck member still runs in: wait and say so, or end the process around it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

import trio

from trio_daq.lifecycle.member import Member

_log = logging.getLogger("trio_daq.lifecycle")

_NAG_PERIOD = 5.0
"""Seconds between messages about a block that cannot end because a member does not."""


def exit_now(code: int) -> NoReturn:
    """End the process with what was logged and printed so far; nothing else is cleaned up."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # its reader is gone
            stream.flush()
    os._exit(code)


async def wait_for_stuck(members: Sequence[Member]) -> None:
    """Wait until all have ended, however long that takes, and say every 5 s which have not. Cannot be cancelled."""
    with trio.CancelScope(shield=True):
        while waiting := [member for member in members if not member.done.is_set()]:
            for one in map(Member.report, waiting):
                _log.error("cannot leave: %s does not end; it is at %s", one.name, one.frames)
            with trio.move_on_after(_NAG_PERIOD):
                for member in members:
                    await member.done.wait()
