"""The Trio side of all doors of one thread member: it does what threads ask, in tasks of the member's own nursery.

A thread posts a job, which is plain data, and blocks until its result is there. The host ends with its member, and
with it every job: a thread that was given up gets `DoorClosedError`, never `trio.Cancelled`, and can take nothing more.

Invariant: every job that was posted gets exactly one result or one error.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

import attrs
import trio

from trio_daq.errors import DoorClosedError, StateError

_MARGIN = 10.0
"""Seconds that a thread waits beyond the deadline of its job before it takes the event loop for dead."""

Verbs = Mapping[str, Callable[..., Awaitable[Any]]]
"""What can be asked for, by name."""


@attrs.frozen
class Job:
    """One thing that a thread wants done, as plain data.

    Attributes:
        verb: What to do, for example ``"query"``.
        arguments: Positional arguments.
        options: Keyword arguments.
        patience: Seconds after which it must have ended by itself.
    """

    verb: str
    arguments: tuple[Any, ...] = ()
    options: Mapping[str, Any] = attrs.field(factory=dict)
    patience: float = 0.0


class DoorHost:
    """Serves the doors of one member.

    Args:
        owner: The member's id, under which its doors own lines.
    """

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self._nursery: trio.Nursery | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._trio_thread: int | None = None

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. After that every call through a door raises `DoorClosedError`."""
        self._token = trio.lowlevel.current_trio_token()
        self._trio_thread = threading.get_ident()
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    def call(self, resource: str, verbs: Verbs, job: Job) -> Any:
        """Have *job* done and return its result. Called in any thread but Trio's.

        Raises:
            DoorClosedError: If the member is stopping.
            Exception: Whatever the job raised.
        """
        closed = self.closed(resource)

        def start(nursery: trio.Nursery, future: Future[Any]) -> None:
            nursery.start_soon(fulfil, verbs, job, future, closed)

        return self.post(resource, start, job.patience)

    def post(self, resource: str, start: Callable[[trio.Nursery, Future[Any]], None], patience: float) -> Any:
        """Have ``start(nursery, future)`` called in the Trio thread, and wait for the future.

        *start* must see to it that the future is filled, whatever happens.
        """
        token = self._token
        if threading.get_ident() == self._trio_thread:
            raise StateError(
                action=f"a blocking call on {resource}",
                expected="in another thread than its event loop",
                actual="in that very thread",
                hint="In async code use the port or the session itself.",
            )
        if token is None:
            raise self.closed(resource)
        future: Future[Any] = Future()

        def start_or_refuse() -> None:
            if self._nursery is None:
                future.set_exception(self.closed(resource))
            else:
                start(self._nursery, future)

        try:
            token.run_sync_soon(start_or_refuse)
            return future.result(patience + _MARGIN)
        except trio.RunFinishedError:
            raise self.closed(resource) from None
        except FutureTimeoutError as error:
            if future.done():
                raise  # the job's own timeout
            raise self.closed(resource) from error

    def closed(self, resource: str) -> DoorClosedError:
        """Return the error of a call that comes too late."""
        return DoorClosedError(resource=resource, owner=self.owner)


async def fulfil(verbs: Verbs, job: Job, future: Future[Any], closed: DoorClosedError) -> None:
    """Do *job* and fill *future*: with its result, its error, or *closed* if it was cancelled."""
    try:
        result = await verbs[job.verb](*job.arguments, **job.options)
    except Exception as error:  # noqa: BLE001 - it is raised in the thread
        future.set_exception(error)
    except BaseException:
        future.set_exception(closed)
        raise
    else:
        future.set_result(result)
