"""Have jobs done in Trio for asyncio tasks, which await them: no thread waits, and many tasks may ask at once.

A job acts on behalf of the asyncio task that posted it: what one task has and what it waits for belong together. A task
that is cancelled withdraws its job, so that it is never begun, or is cancelled in Trio too; only when that is over does
`asyncio.CancelledError` come out. It is the only error by which a task is told that somebody does not want it any more.

Invariant: when a call has raised or returned, nothing of it goes on, unless the event loop of Trio did not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from concurrent.futures import Future
from typing import Any, Literal

from trio_daq.errors import Sent, StateError
from trio_daq.legacy import host as doors
from trio_daq.legacy.host import DoorHost, Job, Serve, Verbs

GivesWay = Literal["always", "before the stop", "never"]
"""When a job is withdrawn from a task that is cancelled; otherwise it is finished first. A write gives way only before
its member is to stop, since later it may be what makes its instrument safe."""


class AsyncioHost:
    """The asyncio side of the doors of one member.

    Args:
        host: Does the jobs.

    Attributes:
        is_stopping: Whether the member is to stop. For the thread of the asyncio loop.
    """

    def __init__(self, host: DoorHost) -> None:
        self.is_stopping = False
        self._host = host

    @property
    def owner(self) -> str:
        """The member's id."""
        return self._host.owner

    async def call(self, resource: str, verbs: Verbs, job: Job) -> Any:
        """Have *job* done and return its result.

        Raises:
            DoorClosedError: If the member has stopped, or the event loop of Trio does not answer.
            Exception: Whatever the job raised.
        """
        serve = functools.partial(doors.do_job, verbs, job)
        return await self.post(resource, serve, job.patience, gives_way=when_it_gives_way(job))

    async def post(
        self,
        resource: str,
        serve: Serve,
        patience: float,
        *,
        sent: Sent = "unknown",
        gives_way: GivesWay = "always",
    ) -> Any:
        """Have ``serve(future)`` run as a Trio task, and wait for the future.

        Args:
            resource: What the job is for; it opens the message of an error.
            serve: The task. It may go on after it has filled the future.
            patience: Seconds after which the future must have been filled.
            sent: What a `DoorClosedError` says of the command if the job had begun.
            gives_way: When it is withdrawn if the asyncio task is cancelled.
        """
        call = self._host.submit(resource, serve, agent=_current_task(resource), sent=sent, interruption=None)
        try:
            await _wait_filled(call.future, patience + doors.MARGIN)
        except asyncio.CancelledError:
            withdrawn = gives_way == "always" or (gives_way == "before the stop" and not self.is_stopping)
            if withdrawn and not call.future.done():
                self._host.give_up(call)
            await _outlast(call.future, (0.0 if withdrawn else patience) + doors.MARGIN)
            raise
        if not call.future.done():
            raise self._host.unanswered(call, patience)
        return call.future.result()

    def beat(self) -> None:
        """Show a sign of life of the member."""
        self._host.beat()

    def tell(self, note: Any) -> None:
        """Have ``note()`` called in the Trio thread, without waiting for it; unlike a job it is never given up."""
        self._host.tell(note)


def when_it_gives_way(job: Job) -> GivesWay:
    """Return when *job* is withdrawn from a task that is cancelled."""
    return "before the stop" if job.writes else "always"


def _current_task(resource: str) -> asyncio.Task[Any]:
    task = None
    with contextlib.suppress(RuntimeError):  # there is no event loop of asyncio in this thread
        task = asyncio.current_task()
    if task is None:
        raise StateError(
            action=f"a call on {resource}",
            expected="awaited in a task of asyncio",
            actual="called elsewhere",
            hint="In Trio use the port or the session itself.",
        )
    return task


async def _wait_filled(future: Future[Any], timeout: float) -> None:
    """Wait until *future*, which another thread fills, is done, or *timeout* has passed."""
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not waiter.done():
            waiter.set_result(None)

    def wake_from_thread(_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
            loop.call_soon_threadsafe(wake)

    timer = loop.call_later(timeout, wake)
    future.add_done_callback(wake_from_thread)
    try:
        await waiter
    finally:
        timer.cancel()


async def _outlast(future: Future[Any], timeout: float) -> None:
    """Do the same, however often the task is cancelled; the caller is about to raise that."""
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    while not future.done() and (left := end - loop.time()) > 0:
        with contextlib.suppress(asyncio.CancelledError):
            await _wait_filled(future, left)
