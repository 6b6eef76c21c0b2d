"""What happens to a meter on TCP from outside, while it is soaked, whoever asks it.

By counting: every so many exchanges it is frozen once, restarted once, switched off for a while once, and deaf once.
The instrument's own log tells of all of these but one: that a connection was refused only the system knows.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio
from notes import Notebook

from trio_daq.sim import SimulatedLab

WORLD_FAULTS = ("freeze", "restart", "refused", "deaf")
AWAY = 0.15
"""Seconds for which the meter is switched off, so that connections are refused."""


class VisaWorld:
    """What happens to the meter.

    Args:
        lab: The process of the instrument.
        book: Where the exchanges are counted.
        every: Each kind of fault comes once in so many exchanges.
        timeout: Seconds in which the instrument ought to answer.
    """

    def __init__(self, lab: SimulatedLab, book: Notebook, every: int, timeout: float) -> None:
        self._lab = lab
        self._book = book
        self._every = every
        self._timeout = timeout

    async def disturb(self, on_deaf: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint) -> None:
        """Do all this until cancelled, and call *on_deaf* whenever the meter has become deaf."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._note_stalls)
            for turn in itertools.count(1):
                while len(self._book.notes) < turn * self._every // len(WORLD_FAULTS):  # noqa: ASYNC110 - a list
                    await trio.sleep(0.002)
                kind = WORLD_FAULTS[turn % len(WORLD_FAULTS)]
                await self._happen(kind)
                if kind == "deaf":
                    await on_deaf()

    async def _happen(self, kind: str) -> None:
        match kind:
            case "freeze":
                with self._book.outage():
                    self._lab.freeze()
                    try:
                        await trio.sleep(1.2 * self._timeout)
                    finally:
                        self._lab.thaw()
            case "restart":
                await self._lab.restart_meter(0.0)
            case "refused":
                before = refused_connections()
                await self._lab.restart_meter(AWAY)
                await trio.sleep(1.2 * AWAY)
                self._book.seen["refused"] += refused_connections() > before
            case "deaf":
                await self._lab.deafen_meter(2 * self._timeout)

    async def _note_stalls(self) -> None:
        """Note when our own process did not run, so that nobody could take a reply in time."""
        limit = 0.4 * self._timeout
        looked = time.monotonic_ns()
        while True:
            await trio.sleep(limit / 2)
            before, looked = looked, time.monotonic_ns()
            if looked - before > 1e9 * limit:
                self._book.outages.append((before, looked))


def refused_connections() -> int:
    """Return how many connections of this computer were refused so far (RFC 4022, tcpAttemptFails). Linux only."""
    names, values = (line.split() for line in Path("/proc/net/snmp").read_text().splitlines() if line[:4] == "Tcp:")
    return int(values[names.index("AttemptFails")])
