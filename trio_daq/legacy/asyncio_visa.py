"""A shared VISA session, for asyncio: the same verbs, which asyncio awaits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from trio_daq.legacy.asyncio_hold import AsyncioHold
from trio_daq.legacy.asyncio_host import AsyncioHost
from trio_daq.legacy.host import Job
from trio_daq.legacy.visa_door import session_verbs
from trio_daq.sharing import checked_timeout
from trio_daq.visa import Priority, Text, VisaSessionManager


class AwaitableVerbs(ABC):
    """What an asyncio task can do to an instrument: the verbs of `VisaSessionManager`, with its arguments.

    All of them raise what that session's verbs raise (`CommandTimeoutError` and its like, each with ``sent``), and
    besides `DoorClosedError` when the member has stopped. A command that waits when its task is cancelled is never
    sent; the reply to one that was sent reaches nobody.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout

    @abstractmethod
    async def _do(self, job: Job) -> Any:
        """Have *job* done and return its result."""

    async def enqueue_command(
        self, command: Text, timeout: float | None = None, owner: str | None = None, priority: Priority = "normal"
    ) -> str:
        """Queue *command* and return its reply, or ``""`` if the dialect says that it is not answered."""
        return str(await self._call("enqueue_command", command, timeout, owner, priority))

    async def query(
        self,
        command: Text,
        timeout: float | None = None,
        owner: str | None = None,
        priority: Priority = "normal",
        *,
        raw: bool = False,
    ) -> str:
        """Queue *command* and return its reply."""
        return str(await self._call("query", command, timeout, owner, priority, raw=raw))

    async def write(
        self,
        command: Text,
        timeout: float | None = None,
        owner: str | None = None,
        priority: Priority = "normal",
        *,
        raw: bool = False,
    ) -> None:
        """Queue *command*, expect no reply, and return when it was written.

        Cancelled once the member is to stop, it is written all the same before `asyncio.CancelledError` comes out.
        """
        await self._call("write", command, timeout, owner, priority, raw=raw)

    async def query_block(
        self, command: Text, timeout: float | None = None, owner: str | None = None, priority: Priority = "normal"
    ) -> bytes:
        """Queue *command* and return the data of the block that it is answered by."""
        return bytes(await self._call("query_block", command, timeout, owner, priority))

    async def query_values(
        self,
        command: Text,
        timeout: float | None = None,
        owner: str | None = None,
        priority: Priority = "normal",
        *,
        datatype: str = "ascii",
        big_endian: bool = False,
    ) -> Sequence[float]:
        """Queue *command* and return the numbers of its reply."""
        options = {"datatype": datatype, "big_endian": big_endian}
        values: Sequence[float] = await self._call("query_values", command, timeout, owner, priority, **options)
        return values

    async def batch(
        self,
        commands: Iterable[Text],
        timeout: float | None = None,
        owner: str | None = None,
        priority: Priority = "normal",
    ) -> list[str]:
        """Queue several commands as one order, and return their replies, ``""`` for each that is not answered."""
        return list(await self._call("batch", list(commands), timeout, owner, priority))

    async def wait_complete(
        self, every: float = 0.05, timeout: float = 10.0, owner: str | None = None, priority: Priority = "normal"
    ) -> None:
        """Wait until the instrument has finished what it was told, as `VisaSessionManager.wait_complete` does."""
        await self._do(
            Job("wait_complete", (every, timeout, self._name(owner), priority), {}, checked_timeout(timeout))
        )

    async def _call(
        self, verb: str, what: Any, timeout: float | None, owner: str | None, priority: Priority, **options: Any
    ) -> Any:
        patience = self._timeout if timeout is None else checked_timeout(timeout)
        return await self._do(Job(verb, (what, timeout, self._name(owner), priority), options, patience))

    def _name(self, owner: str | None) -> str | None:
        return owner


class AsyncioVisaDoor(AwaitableVerbs):
    """What an asyncio program gets for a VISA session. Each call is one order in the session's queue.

    Its commands bear the member's id where they name no owner.

    Args:
        host: Serves it.
        session: The session behind it.
    """

    def __init__(self, host: AsyncioHost, session: VisaSessionManager) -> None:
        super().__init__(session.config.timeout)
        self._host = host
        self._session = session
        self._verbs = session_verbs(session)

    @property
    def resource(self) -> str:
        """VISA resource name."""
        return self._session.resource

    @asynccontextmanager
    async def transaction(
        self, owner: str | None = None, timeout: float | None = None, max_hold: float | None = None
    ) -> AsyncIterator[AsyncioTransaction]:
        """Have the instrument for the length of an ``async with`` block: between its commands nobody else's come.

        It belongs to the asyncio task that asked. Inside the block the door itself must not be used by that task, which
        would wait for itself. A task that is cancelled inside gives the instrument back.

        Args:
            owner: Who wants it; the member's id if omitted. Its commands bear that name.
            timeout: Seconds to wait for it; the session's own if omitted.
            max_hold: Seconds after which it is taken back; the session's own if omitted.

        Raises:
            DaqError: As `VisaSessionManager.transaction` raises it.
            DoorClosedError: If the member has stopped.
        """
        name = self._host.owner if owner is None else owner
        patience = self._timeout if timeout is None else checked_timeout(timeout)
        hold = AsyncioHold(self._host, self.resource)
        await hold.enter(lambda: self._session.transaction(name, timeout, max_hold), session_verbs, patience)
        failed = True
        try:
            yield AsyncioTransaction(hold, self._timeout)
            failed = False
        finally:
            await hold.leave(failed=failed)

    async def _do(self, job: Job) -> Any:
        return await self._host.call(self.resource, self._verbs, job)

    def _name(self, owner: str | None) -> str:
        return self._host.owner if owner is None else owner


class AsyncioTransaction(AwaitableVerbs):
    """An instrument that an asyncio task has to itself for a while; made by `AsyncioVisaDoor.transaction`.

    Args:
        hold: What the task has.
        timeout: Seconds for each command that names no deadline.
    """

    def __init__(self, hold: AsyncioHold, timeout: float) -> None:
        super().__init__(timeout)
        self._hold = hold

    async def _do(self, job: Job) -> Any:
        return await self._hold.call(job)
