"""One rank of a lab's members, which start one after the other and stop together, within a time.

A stage knows its members and nothing of the other stages.

Invariants: its scope is shielded exactly from the moment when it has started, so a start can be timed out, and after
that nothing but `stop` ends its members; a stopped stage takes no new members and starts none again; of one stage, one
life runs at a time.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Awaitable, Callable

import trio

from trio_daq.errors import StateError, StoppingError, StuckError
from trio_daq.lifecycle.health import Note, subject_of
from trio_daq.lifecycle.member import START_TIMEOUT, Member
from trio_daq.lifecycle.report import MemberReport, StageReport
from trio_daq.sharing import ServiceNursery

_log = logging.getLogger("trio_daq.lifecycle")


class Stage:
    """Members that belong to one rank.

    Args:
        name: Its name, for example ``"v4"``.
        populate: Adds the first members, by `add`, at each start.
        on_failure: Told of a member that fails after it had started, and gets no further life.
        on_stopped: Told when it was stopped, or did not start.
        on_change: Told when a member has started, is going to be started again, has failed, is stuck, has fallen
            silent or come back.
        on_life_ended: Awaited after each life of a member and before its next, shielded, for at most 5 s.
        note: Takes down what happens to its members.
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
        on_change: Callable[[], object] = lambda: None,
        on_life_ended: Callable[[Member], Awaitable[None]] | None = None,
        note: Note = lambda *_: None,
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
        self._on_change = on_change
        self._on_life_ended = on_life_ended
        self._note = note
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

    @property
    def whereabouts(self) -> str:
        """How an error names the member that is being started, or the stage if it is none's fault."""
        return f"{self.name}.{self.starting}" if self.starting else self.name

    def expect_ended(self, action: str) -> None:
        """Refuse *action* while something of its last life runs.

        Raises:
            StuckError: If a member of it is stuck.
            StateError: If it is still being stopped.
        """
        reports = [member.report() for member in self.members.values()]
        if stuck := [report for report in reports if report.outcome == "stuck"]:
            names = ", ".join(f"{self.name}.{report.name}" for report in stuck)
            raise StuckError(member=names, where=tuple(frame for report in stuck for frame in report.frames))
        if not self.has_ended:
            left = [member.name for member in self.members.values() if not member.done.is_set()]
            actual = f"left with {', '.join(left) or self.name} still running"
            raise StateError(action=action, expected="wholly stopped", actual=actual)

    def open(self) -> None:
        """Begin a new life, right before `serve`: whoever stops everything from here on stops this stage too."""
        assert self.has_ended
        self.members, self.hurry, self.starting = {}, trio.Event(), None
        self._stopped, self._ended = trio.Event(), trio.Event()
        self._open, self._started = True, False

    async def start_in(self, nursery: trio.Nursery) -> None:
        """Begin a new life in *nursery*, and wait until its first members are ready.

        Raises:
            trio.TooSlowError: If they took longer than 30 s.
            Exception: What the first member to fail raised. `starting` names it.
        """
        self.open()
        with trio.move_on_after(START_TIMEOUT):
            await nursery.start(self.serve)
            return
        raise trio.TooSlowError(f"it was not ready within {START_TIMEOUT:g} s")

    @trio.lowlevel.enable_ki_protection
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

    def expect_room_for(self, name: str) -> trio.Nursery:
        """Return where a new member called *name* would run.

        Raises:
            StoppingError: If the stage does not run.
            ValueError: If a member of that name runs.
        """
        if self._nursery is None or not self._open:
            raise StoppingError(subsystem=self.name, action=f"starting {name!r}")
        old = self.members.get(name)
        if old is not None and not old.done.is_set():
            raise ValueError(f"{self.name} has a running member called {name!r}; choose another name")
        return self._nursery

    @trio.lowlevel.enable_ki_protection
    async def add(self, member: Member) -> None:
        """Start *member* and wait until it is ready.

        Raises:
            StoppingError: If the stage does not run, or is stopped meanwhile.
            ValueError: If a member of that name runs.
            trio.TooSlowError: If it was not ready within 30 s.
            Exception: Whatever *member* raised before it was ready; the stage then forgets it.
        """
        nursery = self.expect_room_for(member.name)
        self.starting = member.name
        self.members[member.name] = member
        member.on_life_ended = self._on_life_ended
        member.note = functools.partial(self._note, subject_of(self.name, member.name))
        try:
            await nursery.start(member.run, self._changed)
        except BaseException:
            # Since it ended another may have come in its place, or somebody have restarted it.
            if self.members.get(member.name) is member and member.done.is_set():
                del self.members[member.name]
            raise
        self.starting = None

    async def restart(self, name: str, take_back: Callable[[], object]) -> None:
        """End the life of a member, be it running, between two lives, or failed, and start it again.

        Args:
            name: Its id.
            take_back: Takes back what it holds, so that it cannot end later than those who wait for that.

        Raises:
            StuckError: If it does not end, or leaves a thread of its own inside a call. It is cancelled, and is not
                started.
            StoppingError: If the stage is stopped, also meanwhile, or the member is replaced.
            trio.TooSlowError: If it was not ready within 30 s; its policy then goes on.
            Exception: Whatever it raised before it was ready; its policy then goes on.
        """
        member = self.members.get(name)
        if member is None:  # it failed to start, or its side was started anew, since it was looked up
            raise StoppingError(subsystem=self.name, action=f"starting {name!r} again")
        async with member.restarting:
            if self._open and self.members.get(name) is member:
                take_back()
                grace = self.stop_timeout if member.stop_timeout is None else member.stop_timeout
                report = await member.stop(grace, self.hard_timeout, self.hurry, will_restart=True)
                left = {thread.name for thread in threading.enumerate()}.intersection(report.abandoned_threads)
                if report.outcome == "stuck" or left:
                    self._on_change()
                    raise StuckError(member=f"{self.name}.{name}", where=report.frames or sorted(left))
            # The stage may have been started anew meanwhile, or somebody else have taken the name: it is over then.
            if self._nursery is None or not self._open or self.members.get(name) is not member:
                raise StoppingError(subsystem=self.name, action=f"starting {name!r} again")
            member.prepare(patient=True)
            member.restarts += 1
            await self._nursery.start(member.run, self._changed)
            if not member.is_ready and member.error is not None:
                raise member.error

    async def stop(self, grace: float, hard: float) -> StageReport:
        """Close the intake, stop all members at once, and say what became of each.

        Members that do not end are reported as stuck and left alone.

        Args:
            grace: Seconds that its members have at most to end by themselves, whatever time they or the stage want.
            hard: Seconds more that they have to end when they are cancelled.
        """
        # A life that ends while several stop it may be followed by another before all of them notice.
        members, stopped, ended = self.members, self._stopped, self._ended
        self._open = False
        started = trio.current_time()
        reports: dict[str, MemberReport] = {}

        @trio.lowlevel.enable_ki_protection
        async def stop_one(member: Member) -> None:
            own = self.stop_timeout if member.stop_timeout is None else member.stop_timeout
            reports[member.name] = await member.stop(min(own, grace), hard, self.hurry)

        async with trio.open_nursery() as nursery:
            for member in members.values():
                nursery.start_soon(stop_one, member)
        stopped.set()
        report = StageReport(
            name=self.name,
            seconds=trio.current_time() - started,
            members=tuple(reports[name] for name in members if name in reports),
        )
        for member_report in report.stuck:
            _log.error("%s.%s does not stop; it is at %s", self.name, member_report.name, member_report.frames)
        if self._ended is ended:
            if self._started and not report.stuck:
                await ended.wait()  # at once: nothing is left in it
            self._tell_stopped()
        return report

    @trio.lowlevel.enable_ki_protection
    async def wait_all_ended(self) -> None:
        """Wait until every member has ended; one that somebody restarts has not."""
        while left := [one for one in self.members.values() if not one.done.is_set() or one.restarting.locked()]:
            await left[0].done.wait()
            async with left[0].restarting:  # whoever has it is about to begin its next life, or to give up
                pass

    def _changed(self, member: Member) -> None:
        self._on_change()
        if member.failure is not None:
            self._on_failure(self, member)

    def _tell_stopped(self) -> None:
        if self._on_stopped is not None:
            self._on_stopped()
