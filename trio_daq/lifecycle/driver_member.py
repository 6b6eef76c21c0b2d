"""Make members of drivers: async functions, blocking functions in threads, and actors."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

from trio_daq.actors import Actor, ActorCell, ActorRegistry
from trio_daq.data import DataDistributor, DataPublisher
from trio_daq.drivers import DriverContext
from trio_daq.legacy import DoorHost, SerialDoor, ThreadContext, VisaDoor
from trio_daq.lifecycle.member import Member
from trio_daq.lifecycle.supervision import Supervision
from trio_daq.serialport import SharedSerialPort
from trio_daq.sharing import ServiceNursery, WorkerThread
from trio_daq.visa import VisaSessionManager

_A = TypeVar("_A", bound=Actor)

_THREAD_END_TIMEOUT = 0.5
"""Seconds that a thread has to end after its doors were closed, before it is reported as left behind."""

_ONCE = Supervision()


def wants_context(target: Callable[..., Any]) -> bool:
    """Return whether *target* has a parameter called ``context``."""
    return "context" in inspect.signature(target).parameters


def task_member(
    name: str,
    target: Callable[..., Awaitable[Any]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    distributor: DataDistributor,
    stop_timeout: float | None = None,
    supervision: Supervision = _ONCE,
) -> Member:
    """Make a member of an async function. With a context it is asked to stop; without, it is cancelled."""
    asks = wants_context(target) and "context" not in kwargs
    context = DriverContext(DataPublisher(distributor, name))

    async def serve(*, task_status: trio.TaskStatus[None]) -> None:
        nonlocal context
        context = DriverContext(DataPublisher(distributor, name))
        task_status.started()
        await target(*args, **(kwargs | {"context": context} if asks else kwargs))

    def request_stop() -> None:
        context.stopping.set()

    return Member(name, serve, request_stop if asks else None, stop_timeout=stop_timeout, supervision=supervision)


def thread_member(
    name: str,
    target: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    distributor: DataDistributor,
    stop_timeout: float | None = None,
    supervision: Supervision = _ONCE,
) -> Member:
    """Make a member of a blocking function, with doors in place of the ports and sessions among its arguments.

    With a context it is asked to stop; without, its doors are closed at once, and its next call through one raises
    `DoorClosedError`.
    """
    worker = WorkerThread(name)
    asks = wants_context(target) and "context" not in kwargs
    context = ThreadContext(DoorHost(name), DataPublisher(distributor, name))

    async def serve(*, task_status: trio.TaskStatus[None]) -> None:
        nonlocal context
        host = DoorHost(name)  # each life has doors of its own: those of the life before stay closed
        context = ThreadContext(host, DataPublisher(distributor, name))
        doors = tuple(_as_door(host, value) for value in args)
        options = {key: _as_door(host, value) for key, value in kwargs.items()}
        if asks:
            options["context"] = context
        try:
            async with ServiceNursery() as nursery:
                await nursery.start(host.serve)
                task_status.started()
                await worker.run(_run_script, functools.partial(target, *doors, **options))
                nursery.cancel_scope.cancel()
        finally:
            await worker.aclose(_THREAD_END_TIMEOUT)

    def request_stop() -> None:
        context.stopping.set()

    return Member(
        name,
        serve,
        request_stop if asks else None,
        stop_timeout=stop_timeout,
        supervision=supervision,
        abandoned_threads=worker.abandoned,
    )


def actor_member(
    name: str,
    actor_class: type[_A],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    distributor: DataDistributor,
    actors: ActorRegistry,
    stop_timeout: float | None = None,
    supervision: Supervision = _ONCE,
) -> tuple[Member, ActorCell[_A]]:
    """Make a member of an actor, in its place among *actors*.

    Asked to stop, it takes no more messages and handles those that it has.
    """
    asks = wants_context(actor_class) and "context" not in kwargs
    context = DriverContext(DataPublisher(distributor, name))

    def make() -> _A:
        nonlocal context
        context = DriverContext(DataPublisher(distributor, name))
        return actor_class(*args, **(kwargs | {"context": context} if asks else kwargs))

    cell = actors.place(name, make, actor_class)

    undelivered_before = cell.undelivered

    def request_stop() -> None:
        context.stopping.set()
        cell.stop()

    def request_restart() -> None:
        context.stopping.set()
        cell.restart()

    member = Member(
        name,
        cell.serve,
        request_stop,
        request_restart=request_restart,
        stop_timeout=stop_timeout,
        supervision=supervision,
        dropped_messages=lambda: cell.undelivered - undelivered_before,
        on_end=cell.stop,  # whoever still waits for it is told, and its address refuses more
    )
    return member, cell


def _run_script(script: Callable[[], object]) -> None:
    try:
        script()
    except SystemExit as error:  # old programs end so; it is no reason to end the lab
        if error.code not in (None, 0):
            raise RuntimeError(f"it left by sys.exit({error.code!r})") from error


def _as_door(host: DoorHost, value: Any) -> Any:
    if isinstance(value, SharedSerialPort):
        return SerialDoor(host, value)
    if isinstance(value, VisaSessionManager):
        return VisaDoor(host, value)
    if isinstance(value, tuple):
        return tuple(_as_door(host, item) for item in value)
    return value
