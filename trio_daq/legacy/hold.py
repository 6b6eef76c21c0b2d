"""Have something for the length of a block in another thread: a port, a transaction.

A task in the host's nursery is inside the ``async with`` for that block, and each call is a task beside it. It knows
neither ports nor sessions.

Invariants: it is entered and left once; of its calls one runs at a time; an exception of the block makes the task's
block fail too, so that what was left unfinished counts as interrupted.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

import trio

from trio_daq.errors import DoorClosedError, GuardReleasedError
from trio_daq.legacy.host import DoorHost, Interruption, Job, Verbs

_T = TypeVar("_T")


class _BlockFailedError(Exception):
    """The block ended by an exception."""


class Holding:
    """The Trio side of it.

    Attributes:
        is_granted: Whether it was had, be it for a moment.
        failed: Whether the block ended by an exception. To be set before *leaving*.
        leaving: To be set when the block has ended.
    """

    def __init__(self) -> None:
        self.is_granted = False
        self.failed = False
        self.leaving = trio.Event()
        self._verbs: Verbs = {}
        self._turn = trio.Lock()
        self._left = trio.Event()
        self._error: Exception | None = None

    async def have(
        self,
        acquire: Callable[[], AbstractAsyncContextManager[_T]],
        verbs: Callable[[_T], Verbs],
        granted: Future[Any],
    ) -> None:
        """Have what *acquire* gives until *leaving* is set; fill *granted* when it is there."""
        try:
            async with acquire() as got:
                self._verbs = verbs(got)
                await trio.lowlevel.checkpoint_if_cancelled()  # who was interrupted must not seem to have it
                self.is_granted = True
                granted.set_result(None)
                await self.leaving.wait()
                if self.failed:
                    raise _BlockFailedError
        except _BlockFailedError:
            pass
        except Exception as error:
            if not granted.done():
                raise
            self._error = error  # it is raised where the block is left
        finally:
            self._left.set()

    async def do(self, job: Job, done: Future[Any]) -> None:
        """Do *job* with it and fill *done*."""
        async with self._turn:
            done.set_result(await self._verbs[job.verb](*job.arguments, **job.options))

    async def wait_left(self, done: Future[Any]) -> None:
        """Wait until it was given back, and fill *done*, or raise why it could not be held to the end."""
        await self._left.wait()
        if self._error is not None and not self.failed:
            raise self._error
        done.set_result(None)


class Hold:
    """What a thread has for a while.

    Args:
        host: Serves it.
        resource: What it is, for errors.
        interruption: Makes the error by which the thread is told to stop.
    """

    def __init__(self, host: DoorHost, resource: str, interruption: Interruption) -> None:
        self._host = host
        self._resource = resource
        self._interruption = interruption
        self._is_over = False
        self._holding = Holding()

    def enter(
        self,
        acquire: Callable[[], AbstractAsyncContextManager[_T]],
        verbs: Callable[[_T], Verbs],
        patience: float,
    ) -> None:
        """Wait until the thread has it.

        Args:
            acquire: Called in the Trio thread; makes the block that has it.
            verbs: Told what that block gives; returns what can be asked for.
            patience: Seconds that it takes at most.
        """
        have = functools.partial(self._holding.have, acquire, verbs)
        try:
            self._host.post(
                self._resource, have, patience, sent="no", interruption=self._interruption, heed="while waiting"
            )
        except BaseException:  # the thread's own, which came though it may have been granted
            self._host.tell(self._holding.leaving.set)
            raise

    def leave(self, *, failed: bool) -> None:
        """Give it back. *failed*: the thread's block ended by an exception, which comes before that of leaving."""
        self._holding.failed = failed
        self._host.tell(self._holding.leaving.set)
        self._is_over = True
        # A closed door has given it back already, and must not replace the exception of the thread's block.
        with contextlib.suppress(DoorClosedError):
            self._host.post(self._resource, self._holding.wait_left, patience=0.0, interruption=None)

    def call(self, job: Job) -> Any:
        """Have *job* done and return its result.

        Raises:
            GuardReleasedError: If it was left.
            Exception: Whatever the job raised.
        """
        if self._is_over:
            raise GuardReleasedError(resource=self._resource, owner=self._host.owner, action=job.verb)
        do = functools.partial(self._holding.do, job)
        return self._host.post(self._resource, do, job.patience, interruption=self._interruption, heed=job.heed)
