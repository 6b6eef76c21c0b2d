"""One shutdown: asked for by many, carried out once, with one report for all who asked.

Invariant: the first request decides the reason and the time; later ones change nothing.
"""

from __future__ import annotations

import trio

from trio_daq.lifecycle.report import ShutdownReport
from trio_daq.sharing import checked_timeout


class Shutdown:
    """What is known of a shutdown, from before it is asked for until after it has ended.

    Args:
        timeout: Seconds that it may take where nobody names another time.

    Attributes:
        reason: Why it was asked for.
        timeout: Seconds that it may take.
        report: What became of each part, once it is known.
    """

    def __init__(self, timeout: float) -> None:
        self.reason = ""
        self.timeout = timeout
        self.report: ShutdownReport | None = None
        self._requested = trio.Event()
        self._ended = trio.Event()

    @property
    def is_requested(self) -> bool:
        """Whether anybody has asked for it."""
        return self._requested.is_set()

    def request(self, reason: str, timeout: float | None) -> None:
        """Ask for it.

        Raises:
            ValueError: If *timeout* is no number of seconds to wait.
        """
        checked = None if timeout is None else checked_timeout(timeout)
        if not self._requested.is_set():
            self.reason = reason
            self.timeout = self.timeout if checked is None else checked
            self._requested.set()

    async def wait_requested(self) -> None:
        """Wait until somebody asks for it."""
        await self._requested.wait()

    def end(self) -> None:
        """Say that nothing is left to be done; `report` is there."""
        self._ended.set()

    async def wait_report(self) -> ShutdownReport:
        """Wait until it has ended, and return the report."""
        await self._ended.wait()
        assert self.report is not None
        return self.report
