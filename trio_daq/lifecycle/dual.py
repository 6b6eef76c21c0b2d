"""The lab: two sides that share ports, sessions and recordings, started and stopped in order.

V2 is the old side (plain tasks, blocking functions in threads), V4 the side of actors. The rules of starting and
stopping are the `Manager`'s; here is what the stages hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType, TracebackType
from typing import Any, Literal, Self, TypeVar

import attrs
import trio

from trio_daq.config import DualConfig, check_drivers
from trio_daq.data import DataDistributor
from trio_daq.errors import StateError, UnhealthyError
from trio_daq.legacy import LineDirectory
from trio_daq.lifecycle.alone import start_alone, stop_alone
from trio_daq.lifecycle.checkup import check_up
from trio_daq.lifecycle.devices import Device, DeviceList
from trio_daq.lifecycle.health import HealthEvent, HealthHistory, HealthReport
from trio_daq.lifecycle.lines import Lines, LineSnapshot, unknown_name
from trio_daq.lifecycle.manager import Manager
from trio_daq.lifecycle.member import Member, expect_outside
from trio_daq.lifecycle.own_task import in_own_task
from trio_daq.lifecycle.report import MemberReport, SafeStateReport, ShutdownReport, StageReport
from trio_daq.lifecycle.safe_state import SafeStates
from trio_daq.lifecycle.side import Side, V2Side, V4Side
from trio_daq.lifecycle.stage import Stage
from trio_daq.lifecycle.stall import Stall, StallWatch
from trio_daq.lifecycle.state import ManagerState, Status
from trio_daq.recording import Recorder, RecorderStatistics
from trio_daq.serialport import SharedSerialPort
from trio_daq.sharing import SharedDevice, Wait, all_waits
from trio_daq.visa import VisaSessionManager

_T = TypeVar("_T")


@attrs.frozen
class LabSnapshot:
    """What a lab looked like at one moment.

    Attributes:
        state: Where its manager is.
        v2: How V2 is.
        v4: How V4 is.
        lines: Its ports, sessions and shared devices.
        members: Its members, by the name of their side.
        waits: Who waits for whom, in the whole program: for a line, a command's turn, an actor's answer.
        published: Readings published.
        recorded: What the recorder has acknowledged; None if nothing is recorded.
    """

    state: ManagerState
    v2: Status
    v4: Status
    lines: tuple[LineSnapshot, ...]
    members: Mapping[str, tuple[MemberReport, ...]]
    waits: tuple[Wait, ...]
    published: int
    recorded: RecorderStatistics | None


class DualRuntimeManager(Manager):
    """V2 and V4 under one root nursery, over shared ports and sessions.

    It starts recording, hardware, V2, V4, and stops them in the reverse order.

    Args:
        config: What the lab consists of. Its drivers are imported and checked here, before anything opens.
        on_stuck: See `Manager`.
        on_requested: See `Manager`.
        on_report: See `Manager`.

    Raises:
        ConfigError: If a driver cannot be imported or does not fit.

    Example::

        async with DualRuntimeManager(DualConfig.load_from_file("lab.toml")) as manager:
            await manager.start()
            print(await manager.enqueue_visa_command("*IDN?", timeout=2, owner="main"))
            report = await manager.shutdown(timeout=10)
    """

    def __init__(
        self,
        config: DualConfig,
        *,
        on_stuck: Literal["wait", "exit"] = "wait",
        on_requested: Callable[[float], object] = lambda _: None,
        on_report: Callable[[ShutdownReport], object] | None = None,
    ) -> None:
        check_drivers(config)
        self.config = config
        self.distributor = DataDistributor()
        self.recorder: Recorder | None = None
        self._health = history = HealthHistory()
        self._stalls = StallWatch(self._note_stall)
        self._lines = Lines(config, history.note)
        self._devices = DeviceList(self._lines)
        self._directory = LineDirectory(self._lines.by_resource, self._lines.resources)
        self._safe = safe = SafeStates(config, self._lines)
        for_sides = (
            self._lines,
            self.distributor,
            config.folder,
            self._member_failed,
            safe.after_life_of,
            history.note,
        )
        self.v2 = V2Side("v2", config.v2, *for_sides)
        self.v4 = V4Side("v4", config.v4, *for_sides)
        hardware = Stage("hardware", self._lines.populate, self._member_failed, note=history.note, stop_timeout=3.0)
        # Its seconds are hard ones, so that neither a short budget nor a second signal cuts them.
        made_safe = Stage(
            "safe state", safe.populate, self._member_failed, note=history.note, hard_timeout=safe.seconds
        )
        super().__init__(
            (
                Stage("recording", self._populate_recording, self._recording_failed, note=history.note),
                hardware,
                *((made_safe,) if safe.seconds else ()),
                self.v2.stage,
                self.v4.stage,
            ),
            shutdown_timeout=config.application.shutdown_timeout,
            on_stuck=on_stuck,
            on_requested=on_requested,
            on_stopping=self._begin_stop,
            on_report=on_report,
            safe_states=safe.reports,
        )

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Self:
        await super().__aenter__()
        assert self._root is not None
        self._old_code = trio.CancelScope(shield=True)  # old code may have to clean up
        self._root.start_soon(self._serve_old_code)
        self._stalls.start()
        return self

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        try:
            return await super().__aexit__(kind, error, traceback)
        finally:
            self._stalls.stop()

    async def _end(self, reason: str) -> None:
        try:
            await super()._end(reason)
        finally:
            self._old_code.cancel()

    @property
    def serial(self) -> Mapping[str, SharedSerialPort]:
        """Its serial ports, by name."""
        return MappingProxyType(self._lines.serial)

    @property
    def visa(self) -> Mapping[str, VisaSessionManager]:
        """Its VISA sessions, by name."""
        return MappingProxyType(self._lines.visa)

    def get_shared_serial_port(self, name_or_path: str) -> SharedSerialPort:
        """Return a port by its name, its path, or a link to its path: always the same object.

        Raises:
            UnknownNameError: If there is none.
        """
        return self._lines.port(name_or_path)

    def get_visa_session(self, name_or_resource: str | None = None) -> VisaSessionManager:
        """Return a session by its name or any spelling of its resource; None will do when there is only one.

        Raises:
            UnknownNameError: If there is none.
        """
        return self._lines.session(name_or_resource)

    def share(
        self, name: str, device: _T, *, acquire_timeout: float = 2.0, max_hold: float | None = None
    ) -> SharedDevice[_T]:
        """Share any object among the members of both sides, one owner at a time: a camera, a motor controller.

        It outlives stops and starts; closing it is for whoever made it.

        Args:
            name: By which `get_shared` finds it.
            device: The object.
            acquire_timeout: Seconds to wait for it where nobody names another time.
            max_hold: Seconds after which it is taken back from whoever has it; None for never.

        Raises:
            ValueError: If a device of that name is shared already.
        """
        shared = SharedDevice(name, device, acquire_timeout=acquire_timeout, max_hold=max_hold)
        self._lines.share(shared)
        return shared

    def get_shared(self, name: str) -> SharedDevice[Any]:
        """Return what `share` was given under *name*.

        Raises:
            UnknownNameError: If there is none.
        """
        return self._lines.device(name)

    async def enqueue_visa_command(
        self, command: str, timeout: float | None = None, owner: str | None = None, session: str | None = None
    ) -> str:
        """Queue a command on a session and return its reply. See `VisaSessionManager.enqueue_command`."""
        return await self._lines.session(session).enqueue_command(command, timeout, owner)

    async def devices(self, *, refresh: bool = False) -> tuple[Device, ...]:
        """Return what the lab uses, and what other serial ports this computer has.

        Args:
            refresh: Ask the system now; if not, it is asked once in 30 s, and when something was plugged.
        """
        return await self._devices.all(refresh=refresh)

    async def make_safe(self, name: str | None = None) -> tuple[SafeStateReport, ...]:
        """Take the steps of ``safe_state`` now, on a line such as ``"serial.stage"`` or on all, and say how it went.

        Whoever has the line loses it. See `SharedSerialPort.make_safe` and `VisaSessionManager.make_safe`. It is no
        interlock: it needs this program, the computer and the line to work.

        Raises:
            UnknownNameError: If there is no such line, or it has no safe state.
        """
        return await self._safe.make_safe(name)

    def v2_status(self) -> Status:
        """Return how V2 is."""
        return self.v2.status

    def v4_status(self) -> Status:
        """Return how V4 is."""
        return self.v4.status

    def is_v2_healthy(self) -> bool:
        """Return whether no member of V2 has failed, hangs or does not end. A side that is off is healthy."""
        return self.v2.status is not Status.ERROR

    def is_v4_healthy(self) -> bool:
        """Return whether no member of V4 has failed, hangs or does not end. A side that is off is healthy."""
        return self.v4.status is not Status.ERROR

    async def check_health(self) -> HealthReport:
        """Return how the lab is, if it measures: a degraded one has warnings in its report.

        Raises:
            UnhealthyError: If something is in error, or the lab does not run; its ``report`` says what.
        """
        report = check_up(self.state, self._stages, self._lines, self._stalls.last)
        if not report.healthy:
            raise UnhealthyError(report=report)
        return report

    def health_history(self) -> tuple[HealthEvent, ...]:
        """Return the last 1000 events, oldest first: starts and ends, failures, silences, lost lines, stalls."""
        return self._health.events()

    def watch_health(self, room: int = 100) -> AbstractContextManager[trio.MemoryReceiveChannel[HealthEvent]]:
        """Return a ``with`` block that gives the events of `health_history` as they come.

        Args:
            room: Events that may wait to be received; beyond that the oldest are lost.
        """
        return self._health.watch(room)

    async def start_v2(self) -> None:
        """Start V2 again after `stop_v2`. Does nothing if it runs.

        Raises:
            StuckError: If a member of its last life still runs.
        """
        await self._start_side(self.v2)

    async def start_v4(self) -> None:
        """Start V4 again after `stop_v4`. Does nothing if it runs.

        Raises:
            StuckError: If a member of its last life still runs.
        """
        await self._start_side(self.v4)

    async def restart_actor(self, name: str) -> None:
        """End a member of either side, be it an actor or not, and start it again. Its siblings do not notice.

        Ports and transactions that it holds are taken back and go to those who wait for them; then it has its
        ``stop_timeout`` to end, and is cancelled. An actor keeps its address and the messages that wait for it. A
        cancelled caller stops waiting; the restart goes on. It neither counts as one of its policy, nor makes these
        be forgotten.

        Raises:
            UnknownNameError: If there is no such member.
            StateError: If the lab does not run, or if a member asks for its own restart.
            StuckError: If it does not end.
            StoppingError: If its side is stopped, also meanwhile.
            trio.TooSlowError: If it was not ready within 30 s; its policy then goes on.
            Exception: Whatever it raised before it was ready; its policy then goes on.
        """
        action = f"restart_actor({name!r})"
        root = self._running(action)
        stages = {member: side.stage for side in (self.v2, self.v4) for member in side.stage.members}
        if name not in stages:
            raise unknown_name("member", name, stages)
        stage = stages[name]
        expect_outside((stage.members[name],), action, "It would wait for its own end.")
        await in_own_task(root, stage.restart, name, lambda: self._lines.take_back(name, "its owner is restarted"))

    async def stop_v2(self, timeout: float | None = None) -> StageReport:
        """Stop V2 alone, within *timeout* seconds; V4, hardware and recording go on."""
        return await self._stop_side(self.v2, timeout)

    async def stop_v4(self, timeout: float | None = None) -> StageReport:
        """Stop V4 alone, within *timeout* seconds; V2, hardware and recording go on."""
        return await self._stop_side(self.v4, timeout)

    async def wait_all_ended(self) -> None:
        """Wait until every member of both sides has ended by itself.

        Raises:
            StateError: If called from a member, which would wait for itself.
        """
        expect_outside(self._members(), "wait_all_ended()", "It would wait for its own end.")
        for side in (self.v2, self.v4):
            await side.stage.wait_all_ended()

    def snapshot(self) -> LabSnapshot:
        """Return what the lab looks like now."""
        return LabSnapshot(
            state=self.state,
            v2=self.v2.status,
            v4=self.v4.status,
            lines=self._lines.snapshot(),
            members={
                side.stage.name: tuple(member.report() for member in side.stage.members.values())
                for side in (self.v2, self.v4)
            },
            waits=all_waits(),
            published=self.distributor.statistics().published,
            recorded=self.recorder.statistics() if self.recorder is not None else None,
        )

    async def _start_side(self, side: Side) -> None:
        name = side.stage.name
        if not side.config.enabled:
            raise StateError(
                action=f"start_{name}()",
                expected=f"configured with {name}.enabled = true",
                actual="configured without it",
                hint=f"Add a table [{name}] to the configuration.",
            )
        await start_alone(side.stage, self._running(f"starting {name}"))

    async def _stop_side(self, side: Side, timeout: float | None) -> StageReport:
        name = side.stage.name
        return await stop_alone(side.stage, self._running(f"stopping {name}"), timeout)

    async def _populate_recording(self, stage: Stage) -> None:
        config = self.config.recording
        if not config.enabled:
            return
        self.recorder = Recorder(
            self.distributor,
            config.directory,
            self.config.application.name,
            survives=config.survives,
            metadata={"config": repr(self.config)},
        )
        await stage.add(Member("recorder", self.recorder.serve, self.recorder.stop))

    def _recording_failed(self, stage: Stage, member: Member) -> None:
        """Stop the lab: what it measures from now on would be lost."""
        self._member_failed(stage, member)
        self.request_shutdown("the recorder failed", member.error)

    async def _serve_old_code(self) -> None:
        with self._old_code:
            await self._directory.serve()

    def _begin_stop(self) -> None:
        self._directory.host.interrupt()
        # A subscriber that waits for nobody any more must not hold up members that publish while they stop.
        self.distributor.detach_blocking(keep="recorder")

    def _note_stall(self, stall: Stall) -> None:
        text = f"stood still for {stall.seconds:.2f} s, while {stall.who} was at {stall.where}"
        self._health.note("the event loop", "warning", text)
