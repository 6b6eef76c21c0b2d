"""One rank of a lab's members, which start one after the other and stop together, within a time.

A stage knows its members and nothing of the other stages.

Invariants: its scope is shielded exactly from the moment when it has started, so a start can be timed out, and after
that nothing but `stop` ends its members; a stopped stage takes no new members.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from trio_daq.errors import StoppingError
from trio_daq.lifecycle.member import Member
from trio_daq.lifecycle.report import MemberReport, StageReport

_log = logging.getLogger("trio_daq.lifecycle")


class Stage:
    """Members that belong to one rank.

    Args:
        name: Its name, for example ``"v4"``.
        populate: Adds the first members, by `add`, at each start.
        stop_timeout: Seconds that its members have to end by themselves.
        hard_timeout: Seconds more that they have to end when they are cancelled.
        on_failure: Told of a member that fails after it had started.
    """

    def __init__(
        self,
        name: str,
        populate: Callable[[Stage], Awaitable[None]],
        on_failure: Callable[[Stage, Member], object],
        *,
        stop_timeout: float = 5.0,
        hard_timeout: float = 1.0,
    ) -> None:
        self.name = name
        self.stop_timeout = stop_timeout
        self.hard_timeout = hard_timeout
        self.members: dict[str, Member] = {}
        self.hurry = trio.Event()
        self.starting: str | None = None
        self._populate = populate
        self._on_failure = on_failure
        self._nursery: trio.Nursery | None = None
        self._open = False
        self._stopped = trio.Event()

    @property
    def is_running(self) -> bool:
        """Whether it takes members."""
        return self._open

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Start the first members, then keep the stage open until `stop` has ended.

        Raises:
            Exception: What the first member to fail raised; the others are cancelled. `starting` names it.
        """
        self.members, self.hurry, self._stopped = {}, trio.Event(), trio.Event()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                self._nursery, self._open = nursery, True
                try:
                    await self._populate(self)
                    scope.shield = True
                    task_status.started()
                    await self._stopped.wait()
                finally:
                    self._open = False

    async def add(self, member: Member) -> None:
        """Start *member* and wait until it is ready.

        Raises:
            StoppingError: If the stage does not run.
            ValueError: If a member of that name runs.
            Exception: Whatever *member* raised before it was ready.
        """
        if self._nursery is None or not self._open:
            raise StoppingError(subsystem=self.name, action=f"starting {member.name!r}")
        old = self.members.get(member.name)
        if old is not None and not old.done.is_set():
            raise ValueError(f"{self.name} has a running member called {member.name!r}; choose another name")
        self.starting = member.name
        self.members[member.name] = member
        await self._nursery.start(member.run, self._failed)
        self.starting = None

    async def stop(self, grace: float) -> StageReport:
        """Close the intake, stop all members at once, and say what became of each.

        Takes at most *grace* and the hard timeout. Members that do not end are reported as stuck and left alone.
        """
        self._open = False
        started = trio.current_time()
        reports: dict[str, MemberReport] = {}

        async def stop_one(member: Member) -> None:
            reports[member.name] = await member.stop(grace, self.hard_timeout, self.hurry)

        async with trio.open_nursery() as nursery:
            for member in self.members.values():
                nursery.start_soon(stop_one, member)
        self._stopped.set()
        report = StageReport(
            name=self.name,
            seconds=trio.current_time() - started,
            members=tuple(reports[name] for name in self.members),
        )
        for member_report in report.stuck:
            _log.error("%s.%s does not stop; it is at %s", self.name, member_report.name, member_report.frames)
        return report

    async def wait_all_ended(self) -> None:
        """Wait until every member has ended by itself."""
        for member in list(self.members.values()):
            await member.done.wait()

    def _failed(self, member: Member) -> None:
        self._on_failure(self, member)
