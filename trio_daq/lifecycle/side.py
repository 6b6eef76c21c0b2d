"""The two sides of a lab as their users see them: what runs there, how to add to it, how it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import trio
from trio_util import AsyncValue

from trio_daq.actors import Actor, ActorRef, ActorRegistry
from trio_daq.config import MemberConfig, ResolvedDriver, SubsystemConfig, resolve_driver
from trio_daq.data import DataDistributor
from trio_daq.lifecycle.checkup import stage_problems
from trio_daq.lifecycle.driver_member import actor_member, asyncio_member, task_member, thread_member
from trio_daq.lifecycle.health import Note
from trio_daq.lifecycle.lines import Lines
from trio_daq.lifecycle.member import Member
from trio_daq.lifecycle.stage import Stage
from trio_daq.lifecycle.state import Status
from trio_daq.lifecycle.supervision import Supervision

_A = TypeVar("_A", bound=Actor)

_ONCE = Supervision()


class Side:
    """What V2 and V4 have in common.

    Args:
        name: ``"v2"`` or ``"v4"``.
        config: Its settings.
        lines: Where its members find their ports and sessions.
        distributor: Where its members publish.
        folder: Where its drivers are looked for first.
        on_failure: Told of a member that fails and gets no further life.
        on_life_ended: Awaited after each life of a member and before its next. See `Stage`.
        note: Takes down what happens to it and to its members.
    """

    def __init__(
        self,
        name: str,
        config: SubsystemConfig,
        lines: Lines,
        distributor: DataDistributor,
        folder: Path | None,
        on_failure: Callable[[Stage, Member], object],
        on_life_ended: Callable[[Member], Awaitable[None]] | None = None,
        note: Note = lambda *_: None,
    ) -> None:
        self.config = config
        self.stage = Stage(
            name,
            self._populate,
            on_failure,
            self._stopped,
            on_change=self._update,
            on_life_ended=on_life_ended,
            note=note,
            stop_timeout=config.stop_timeout,
        )
        self._populated = False
        self._note = note
        self._distributor = distributor
        self._actors = ActorRegistry()
        self._lines = lines
        self._folder = folder
        self._status = AsyncValue(Status.INACTIVE)

    @property
    def status(self) -> Status:
        """How it is."""
        return self._status.value

    async def wait_status(self, status: Status) -> None:
        """Wait until it is *status*."""
        await self._status.wait_value(status)

    def problems(self) -> list[str]:
        """Say which of its members have failed, hang or do not end, and why. Nothing is wrong while it is stopped."""
        return [str(problem) for problem in stage_problems(self.stage) if problem.severity == "error"]

    async def _populate(self, stage: Stage) -> None:
        if not self.config.enabled:
            return
        for member in self.config.instruments:
            await stage.add(self._member(member, resolve_driver(member, self._folder)))
        self._populated = True
        self._note(stage.name, "info", "has started")
        self._update()

    def _member(self, config: MemberConfig, driver: ResolvedDriver) -> Member:
        kwargs = {**self._lines_of(config), **config.options}
        rules = Supervision(
            restart=config.restart,
            required=config.required,
            on_bug=config.on_bug,
            escalate=config.escalate,
            heartbeat=config.heartbeat,
        )
        if driver.kind == "actor":
            actor_class = cast("type[Actor]", driver.target)
            return actor_member(
                config.id, actor_class, (), kwargs, self._distributor, self._actors, config.stop_timeout, rules
            )[0]
        make = {"task": task_member, "thread": thread_member, "asyncio": asyncio_member}[driver.kind]
        return make(config.id, driver.target, (), kwargs, self._distributor, config.stop_timeout, rules)

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

    def _update(self) -> None:
        if not self.stage.is_running:
            return
        if any(member.trouble() is not None for member in self.stage.members.values()):
            self._status.value = Status.ERROR
        elif self._populated:
            self._status.value = Status.ACTIVE

    def _stopped(self) -> None:
        for member in self.stage.members.values():
            if not member.done.is_set():  # whoever needs what it has shall not wait for it
                self._lines.take_back(member.name, "its owner does not end")
        if self._populated:
            self._populated = False
            if any(member.is_stuck for member in self.stage.members.values()):
                self._note(self.stage.name, "error", "was left, with members that do not end")
            else:
                self._note(self.stage.name, "info", "has stopped")
        self._status.value = Status.INACTIVE


class V2Side(Side):
    """Old drivers: async functions, blocking functions in threads, and asyncio programs in threads."""

    async def spawn(
        self,
        target: Callable[..., Awaitable[Any]],
        *args: Any,
        name: str | None = None,
        supervision: Supervision = _ONCE,
        **kwargs: Any,
    ) -> Member:
        """Run an async function as a member, called as ``target(*args, **kwargs)``.

        If it has a parameter ``context`` it gets a `DriverContext`, and is asked to stop through it; otherwise it is
        cancelled when the side stops.

        Args:
            target: What to run.
            args: Its arguments.
            name: Id of the member; the name of the function if omitted.
            supervision: When it is started again; if omitted, it runs once.
            kwargs: Its keyword arguments.

        Raises:
            TypeError: If *target* is not such a function.
            StoppingError: If the side does not run.
            ValueError: If a member of that name runs.
        """
        member = task_member(name or target.__name__, target, args, kwargs, self._distributor, supervision=supervision)
        await self.stage.add(member)
        return member

    async def spawn_thread(
        self,
        target: Callable[..., Any],
        *args: Any,
        name: str | None = None,
        supervision: Supervision = _ONCE,
        **kwargs: Any,
    ) -> Member:
        """Run a blocking function in a thread of its own as a member, called as ``target(*args, **kwargs)``.

        A port or session among its arguments reaches it as a blocking door. If it has a parameter ``context`` it gets
        a `ThreadContext`. When the side stops its call in flight, or its next one, raises `DoorInterruptedError` once,
        unless it has seen `ThreadContext.stopping`; its doors close ``stop_timeout`` later. Arguments and errors are
        those of `spawn`.
        """
        member = thread_member(
            name or target.__name__, target, args, kwargs, self._distributor, supervision=supervision
        )
        await self.stage.add(member)
        return member

    async def spawn_asyncio(
        self,
        target: Callable[..., Awaitable[Any]],
        *args: Any,
        name: str | None = None,
        supervision: Supervision = _ONCE,
        **kwargs: Any,
    ) -> Member:
        """Run an async function that is written for asyncio as a member, called as ``target(*args, **kwargs)``.

        It has an event loop in a thread of its own. A port or session among its arguments reaches it as an awaitable
        door. If it has a parameter ``context`` it gets an `AsyncioContext`. When the side stops its main task is
        cancelled once, unless it waits for `AsyncioContext.stopping`; its doors close ``stop_timeout`` later. Arguments
        and errors are those of `spawn`.
        """
        member = asyncio_member(
            name or target.__name__, target, args, kwargs, self._distributor, supervision=supervision
        )
        await self.stage.add(member)
        return member


class V4Side(Side):
    """Actors."""

    @trio.lowlevel.enable_ki_protection
    async def spawn(
        self,
        actor_class: type[_A],
        *args: Any,
        name: str | None = None,
        supervision: Supervision = _ONCE,
        **kwargs: Any,
    ) -> ActorRef[_A]:
        """Start an actor as a member, made by ``actor_class(*args, **kwargs)``, and return its address.

        If its ``__init__`` has a parameter ``context`` it gets a `DriverContext`.

        Args:
            actor_class: Its class.
            args: Arguments of its ``__init__``.
            name: Id of the member; the name of the class if omitted.
            supervision: When it is started again; if omitted, it runs once.
            kwargs: Keyword arguments of its ``__init__``.

        Raises:
            StoppingError: If the side does not run.
            ValueError: If a member of that name runs.
            trio.TooSlowError: If its ``on_start`` took longer than 30 s.
            Exception: Whatever its ``on_start`` raised.
        """
        member_id = name or actor_class.__name__
        self.stage.expect_room_for(member_id)  # before it has a place, which may be that of one between two lives
        member, cell = actor_member(
            member_id, actor_class, args, kwargs, self._distributor, self._actors, supervision=supervision
        )
        try:
            await self.stage.add(member)
        except BaseException:
            cell.stop()  # nobody will come to what is sent to it
            raise
        return cell.ref

    def actor(self, name: str) -> ActorRef[Any]:
        """Return the address of the actor called *name*, one of the configuration or a spawned one.

        It is that which `spawn` returned, and stays good over restarts of the actor and of the side. What is asked
        while the actor is stopped raises `ActorStoppedError`.

        Raises:
            UnknownNameError: If there never was one of that name; it lists those that there are.
        """
        return self._actors.ref(name)
