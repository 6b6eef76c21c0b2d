"""The two sides of a lab as their users see them: what runs there, how to add to it, how it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from trio_util import AsyncValue

from trio_daq.actors import Actor, ActorRef
from trio_daq.config import MemberConfig, ResolvedDriver, SubsystemConfig, resolve_driver
from trio_daq.data import DataDistributor
from trio_daq.lifecycle.driver_member import actor_member, task_member, thread_member
from trio_daq.lifecycle.lines import Lines
from trio_daq.lifecycle.member import Member
from trio_daq.lifecycle.safe_state import SafeStates
from trio_daq.lifecycle.stage import Stage
from trio_daq.lifecycle.state import Status

_A = TypeVar("_A", bound=Actor)


class Side:
    """What V2 and V4 have in common.

    Args:
        name: ``"v2"`` or ``"v4"``.
        config: Its settings.
        lines: Where its members find their ports and sessions.
        distributor: Where its members publish.
        folder: Where its drivers are looked for first.
        on_failure: Told of a member that fails.
        safe: Makes the lines of a member safe when it ends.
    """

    def __init__(
        self,
        name: str,
        config: SubsystemConfig,
        lines: Lines,
        distributor: DataDistributor,
        folder: Path | None,
        on_failure: Callable[[Stage, Member], object],
        safe: SafeStates,
    ) -> None:
        self._safe = safe
        self.config = config
        self.stage = Stage(name, self._populate, self._failed, self._stopped, stop_timeout=config.stop_timeout)
        self._distributor = distributor
        self._lines = lines
        self._folder = folder
        self._report_failure = on_failure
        self._status = AsyncValue(Status.INACTIVE)

    @property
    def status(self) -> Status:
        """How it is."""
        return self._status.value

    async def wait_status(self, status: Status) -> None:
        """Wait until it is *status*."""
        await self._status.wait_value(status)

    def problems(self) -> list[str]:
        """Say what is wrong with its members. Nothing is while it is stopped."""
        if self.status is Status.INACTIVE:
            return []
        name = self.stage.name
        return [
            f"{name}.{member.name} failed: {type(member.error).__name__}: {member.error}"
            for member in self.stage.members.values()
            if member.error is not None
        ]

    async def _populate(self, stage: Stage) -> None:
        if not self.config.enabled:
            return
        for member in self.config.instruments:
            made = self._member(member, resolve_driver(member, self._folder))
            made.serve = self._safe.guarding(member, made.serve)
            await stage.add(made)
        if self.status is not Status.ERROR:
            self._status.value = Status.ACTIVE

    def _member(self, config: MemberConfig, driver: ResolvedDriver) -> Member:
        kwargs = {**self._lines_of(config), **config.options}
        if driver.kind == "actor":
            actor_class = cast("type[Actor]", driver.target)
            return actor_member(config.id, actor_class, (), kwargs, self._distributor, config.stop_timeout)[0]
        make = task_member if driver.kind == "task" else thread_member
        return make(config.id, driver.target, (), kwargs, self._distributor, config.stop_timeout)

    def _lines_of(self, config: MemberConfig) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, names, find in (
            ("serial", config.serial, self._lines.port),
            ("visa", config.visa, self._lines.session),
        ):
            if isinstance(names, str):
                found[key] = find(names)
            elif names is not None:
                found[key] = tuple(find(name) for name in names)
        return found

    def _failed(self, stage: Stage, member: Member) -> None:
        if stage.is_running:
            self._status.value = Status.ERROR
        self._report_failure(stage, member)

    def _stopped(self) -> None:
        self._status.value = Status.INACTIVE


class V2Side(Side):
    """Old drivers: async functions, and blocking functions in threads."""

    async def spawn(
        self, target: Callable[..., Awaitable[Any]], *args: Any, name: str | None = None, **kwargs: Any
    ) -> Member:
        """Run an async function as a member, called as ``target(*args, **kwargs)``.

        If it has a parameter ``context`` it gets a `DriverContext`, and is asked to stop through it; otherwise it is
        cancelled when the side stops.

        Args:
            target: What to run.
            args: Its arguments.
            name: Id of the member; the name of the function if omitted.
            kwargs: Its keyword arguments.

        Raises:
            StoppingError: If the side does not run.
            ValueError: If a member of that name runs.
        """
        member = task_member(name or target.__name__, target, args, kwargs, self._distributor)
        await self.stage.add(member)
        return member

    async def spawn_thread(
        self, target: Callable[..., Any], *args: Any, name: str | None = None, **kwargs: Any
    ) -> Member:
        """Run a blocking function in a thread of its own as a member, called as ``target(*args, **kwargs)``.

        A port or session among its arguments reaches it as a blocking door. If it has a parameter ``context`` it gets
        a `ThreadContext`, and is asked to stop through it; otherwise its doors close when the side stops. Arguments
        and errors are those of `spawn`.
        """
        member = thread_member(name or target.__name__, target, args, kwargs, self._distributor)
        await self.stage.add(member)
        return member


class V4Side(Side):
    """Actors."""

    async def spawn(self, actor_class: type[_A], *args: Any, name: str | None = None, **kwargs: Any) -> ActorRef[_A]:
        """Start an actor as a member, made by ``actor_class(*args, **kwargs)``, and return its address.

        If its ``__init__`` has a parameter ``context`` it gets a `DriverContext`.

        Args:
            actor_class: Its class.
            args: Arguments of its ``__init__``.
            name: Id of the member; the name of the class if omitted.
            kwargs: Keyword arguments of its ``__init__``.

        Raises:
            StoppingError: If the side does not run.
            ValueError: If a member of that name runs.
            Exception: Whatever its ``on_start`` raised.
        """
        member, cell = actor_member(name or actor_class.__name__, actor_class, args, kwargs, self._distributor)
        await self.stage.add(member)
        return cell.ref
