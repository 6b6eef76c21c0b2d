"""Have something for the length of an ``async with`` block of an asyncio task: a port, a transaction.

Invariant: a task that is cancelled while it waits, or right when it is granted, has left nothing in line and holds
nothing when `asyncio.CancelledError` comes out.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from trio_daq.errors import DoorClosedError, GuardReleasedError
from trio_daq.legacy.asyncio_host import AsyncioHost, when_it_gives_way
from trio_daq.legacy.hold import Holding
from trio_daq.legacy.host import Job, Verbs

_T = TypeVar("_T")


class AsyncioHold:
    """What an asyncio task has for a while.

    Args:
        host: Serves it.
        resource: What it is, for errors.
    """

    def __init__(self, host: AsyncioHost, resource: str) -> None:
        self._host = host
        self._resource = resource
        self._is_over = False
        self._holding = Holding()

    async def enter(
        self,
        acquire: Callable[[], AbstractAsyncContextManager[_T]],
        verbs: Callable[[_T], Verbs],
        patience: float,
    ) -> None:
        """Wait until the task has it. Arguments as for `Hold.enter`."""
        have = functools.partial(self._holding.have, acquire, verbs)
        try:
            await self._host.post(self._resource, have, patience, sent="no")
        except BaseException:
            if self._holding.is_granted:
                await self.leave(failed=True)
            else:
                self._host.tell(self._holding.leaving.set)
            raise

    async def leave(self, *, failed: bool) -> None:
        """Give it back, cancelled or not. *failed*: the block ended by an exception, which comes before ours."""
        self._holding.failed = failed
        self._host.tell(self._holding.leaving.set)
        self._is_over = True
        # A closed door has given it back already, and must not replace the exception of the block.
        with contextlib.suppress(DoorClosedError):
            await self._host.post(self._resource, self._holding.wait_left, 0.0, gives_way="never")

    async def call(self, job: Job) -> Any:
        """Have *job* done and return its result.

        Raises:
            GuardReleasedError: If it was left.
            Exception: Whatever the job raised.
        """
        if self._is_over:
            raise GuardReleasedError(resource=self._resource, owner=self._host.owner, action=job.verb)
        do = functools.partial(self._holding.do, job)
        return await self._host.post(self._resource, do, job.patience, gives_way=when_it_gives_way(job))
