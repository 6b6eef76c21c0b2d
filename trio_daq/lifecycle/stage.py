"""One rank of a lab's members, which start one after the other and stop together, within a time.

A stage knows its members and nothing of the other stages.

Invariants: its scope is shielded exactly from the moment when it has started, so a start can be timed out, and after
that nothing but `stop` ends its members; a stopped stage takes no new members; of one stage, one life runs at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from trio_daq.errors import StoppingError
from trio_daq.lifecycle.member import Member
from trio_daq.lifecycle.report import MemberReport, StageReport
from trio_daq.sharing import ServiceNursery

_log = logging.getLogger("trio_daq.lifecycle")


class Stage:
    """Members that belong to one rank.

    Args:
        name: Its name, for example ``"v4"``.
        populate: Adds the first members, by `add`, at each start.
        on_failure: Told of a member that fails after it had started.
        on_stopped: Told when it was stopped, or did not start.
        stop_timeout: Seconds that its members have to end by themselves.
        hard_timeout: Seconds more that they have to end when they are cancelled.
    """

    def __init__(
        self,
        name: str,
        populate: Callable[[Stage], Awaitable[None]],
        on_failure: Callable[[Stage, Member], object],
        on_stopped: Callable[[], object] | None = None,
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
        self._on_stopped = on_stopped
        self._nursery: trio.Nursery | None = None
        self._open = self._started = False
        self._stopped = trio.Event()
        self._ended = trio.Event()
        self._ended.set()

    @property
    def is_running(self) -> bool:
        """Whether it takes members."""
        return self._open

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it runs, be it a stuck member."""
        return self._ended.is_set()

    def open(self) -> None:
        """Begin a new life, right before `serve`: whoever stops everything from here on stops this stage too."""
        assert self.has_ended
        self.members, self.hurry, self.starting = {}, trio.Event(), None
        self._stopped, self._ended = trio.Event(), trio.Event()
        self._open, self._started = True, False

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Start the first members, then keep the stage open until `stop` has ended.

        Raises:
            Exception: What the first member to fail raised; the others are cancelled. `starting` names it.
        """
        try:
            with trio.CancelScope() as scope:
                async with ServiceNursery() as nursery:
                    self._nursery = nursery
                    try:
                        await self._populate(self)
                        # A start that was cancelled is not adopted by the manager: shielded, it would hang for ever.
                        await trio.lowlevel.checkpoint_if_cancelled()
                        scope.shield = self._started = True
                        task_status.started()
                        await self._stopped.wait()
                    finally:
                        self._open = False
        finally:
            self._nursery = None
            self._ended.set()
            self._tell_stopped()

    async def add(self, member: Member) -> None:
        """Start *member* and wait until it is ready.

        Raises:
            StoppingError: If the stage does not run, or is stopped meanwhile.
            ValueError: If a member of that name runs.
            Exception: Whatever *member* raised before it was ready; the stage then forgets it.
        """
        if self._nursery is None or not self._open:
            raise StoppingError(subsystem=self.name, action=f"starting {member.name!r}")
        old = self.members.get(member.name)
        if old is not None and not old.done.is_set():
            raise ValueError(f"{self.name} has a running member called {member.name!r}; choose another name")
        self.starting = member.name
        self.members[member.name] = member
        try:
            await self._nursery.start(member.run, self._failed)
        except BaseException:
            del self.members[member.name]
            raise
        self.starting = None

    async def stop(self, grace: float, hard: float) -> StageReport:
        """Close the intake, stop all members at once, and say what became of each.

        Members that do not end are reported as stuck and left alone.

        Args:
            grace: Seconds that its members have at most to end by themselves, whatever time they or the stage want.
            hard: Seconds more that they have to end when they are cancelled.
        """
        self._open = False
        started = trio.current_time()
        reports: dict[str, MemberReport] = {}

        async def stop_one(member: Member) -> None:
            own = self.stop_timeout if member.stop_timeout is None else member.stop_timeout
            reports[member.name] = await member.stop(min(own, grace), hard, self.hurry)

        async with trio.open_nursery() as nursery:
            for member in self.members.values():
                nursery.start_soon(stop_one, member)
        self._stopped.set()
        report = StageReport(
            name=self.name,
            seconds=trio.current_time() - started,
            members=tuple(reports[name] for name in self.members if name in reports),
        )
        for member_report in report.stuck:
            _log.error("%s.%s does not stop; it is at %s", self.name, member_report.name, member_report.frames)
        if self._started and not report.stuck:
            await self._ended.wait()  # at once: nothing is left in it
        self._tell_stopped()
        return report

    async def wait_all_ended(self) -> None:
        """Wait until every member has ended by itself."""
        for member in list(self.members.values()):
            await member.done.wait()

    def _failed(self, member: Member) -> None:
        self._on_failure(self, member)

    def _tell_stopped(self) -> None:
        if self._on_stopped is not None:
            self._on_stopped()
