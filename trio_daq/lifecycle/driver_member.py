"""Make members of drivers: async functions, blocking functions in threads, asyncio programs, and actors."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

from trio_daq.actors import Actor, ActorCell, ActorRegistry
from trio_daq.data import DataDistributor, DataPublisher
from trio_daq.drivers import DriverContext
from trio_daq.legacy import AsyncioProgram, DoorHost
from trio_daq.lifecycle.member import Member
from trio_daq.lifecycle.supervision import Supervision
from trio_daq.lifecycle.thread_life import BlockingProgram, Program, ThreadLives
from trio_daq.sharing import interruptible

_A = TypeVar("_A", bound=Actor)

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
    """Make a member of an async function. With a context it is asked to stop; without, it is cancelled.

    Raises:
        TypeError: If *target* is no async function.
    """
    if not _is_async(target):
        raise TypeError(
            f"{name!r} is no async function, so it would block the event loop; use spawn_thread for it, or wrap what "
            "returns an awaitable in an async def"
        )
    asks = wants_context(target) and "context" not in kwargs
    context = DriverContext(DataPublisher(distributor, name))

    async def serve(*, task_status: trio.TaskStatus[None]) -> None:
        nonlocal context
        context = DriverContext(DataPublisher(distributor, name))
        task_status.started()
        await interruptible(target, *args, **(kwargs | {"context": context} if asks else kwargs))

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

    Asked to stop, it learns so by its context, or by `DoorInterruptedError` from its call in flight or its next one;
    its doors serve on until it is cancelled.

    Raises:
        TypeError: If *target* is an async function.
    """
    if _is_async(target):
        raise TypeError(
            f"{name!r} is an async function, which runs in no thread; use spawn for it, or spawn_asyncio if it is "
            "written for asyncio"
        )
    publisher = DataPublisher(distributor, name)

    def new_program(host: DoorHost) -> Program:
        return BlockingProgram(host, target, args, kwargs, publisher)

    return _member_of(ThreadLives(name, new_program), name, stop_timeout, supervision)


def asyncio_member(
    name: str,
    target: Callable[..., Awaitable[Any]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    distributor: DataDistributor,
    stop_timeout: float | None = None,
    supervision: Supervision = _ONCE,
) -> Member:
    """Make a member of an async function that is written for asyncio, with awaitable doors among its arguments.

    It has an event loop in a thread of its own. Asked to stop, its main task is cancelled once; its doors serve on
    until the member is cancelled.

    Raises:
        TypeError: If *target* is no async function.
    """
    if not _is_async(target):
        raise TypeError(f"{name!r} is no async function, which asyncio needs; use spawn_thread for it")
    publisher = DataPublisher(distributor, name)

    def new_program(host: DoorHost) -> Program:
        return AsyncioProgram(host, target, args, kwargs, publisher)

    return _member_of(ThreadLives(name, new_program), name, stop_timeout, supervision)


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


def _member_of(lives: ThreadLives, name: str, stop_timeout: float | None, supervision: Supervision) -> Member:
    return Member(
        name,
        lives.serve,
        lives.request_stop,
        stop_timeout=stop_timeout,
        supervision=supervision,
        abandoned_threads=lives.abandoned_threads,
        frames=lives.frames,
    )


def _is_async(target: Callable[..., Any]) -> bool:
    while isinstance(target, functools.partial):
        target = target.func
    return inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(getattr(target, "__call__", None))  # noqa: B004
