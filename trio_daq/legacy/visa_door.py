"""A shared VISA session, for a thread: the same verbs, which block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from trio_daq.errors import DoorInterruptedError
from trio_daq.legacy.hold import Hold
from trio_daq.legacy.host import DoorHost, Interruption, Job, Verbs
from trio_daq.sharing import checked_timeout
from trio_daq.visa import Priority, Text, Transaction, VisaSessionManager


class BlockingVerbs(ABC):
    """What a thread can do to an instrument: the verbs of `VisaSessionManager`, with its arguments.

    All of them raise what that session's verbs raise (`CommandTimeoutError` and its like, each with ``sent``), and
    besides `DoorInterruptedError` if the member is to stop, once in each thread, and `DoorClosedError` when it has.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout

    @abstractmethod
    def _do(self, job: Job) -> Any:
        """Have *job* done and return its result."""

    def enqueue_command(
        self, command: Text, timeout: float | None = None, owner: str | None = None, priority: Priority = "normal"
    ) -> str:
        """Queue *command* and return its reply, or ``""`` if the dialect says that it is not answered."""
        return str(self._call("enqueue_command", command, timeout, owner, priority))

    def query(
        self,
        command: Text,
        timeout: float | None = None,
        owner: str | None = None,
        priority: Priority = "normal",
        *,
        raw: bool = False,
    ) -> str:
        """Queue *command* and return its reply."""
        return str(self._call("query", command, timeout, owner, priority, raw=raw))

    def write(
        self,
        command: Text,
        timeout: float | None = None,
        owner: str | None = None,
        priority: Priority = "normal",
        *,
        raw: bool = False,
    ) -> None:
        """Queue *command*, expect no reply, and return when it was written."""
        self._call("write", command, timeout, owner, priority, raw=raw)

    def query_block(
        self, command: Text, timeout: float | None = None, owner: str | None = None, priority: Priority = "normal"
    ) -> bytes:
        """Queue *command* and return the data of the block that it is answered by."""
        return bytes(self._call("query_block", command, timeout, owner, priority))

    def query_values(
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
        values: Sequence[float] = self._call("query_values", command, timeout, owner, priority, **options)
        return values

    def batch(
        self,
        commands: Iterable[Text],
        timeout: float | None = None,
        owner: str | None = None,
        priority: Priority = "normal",
    ) -> list[str]:
        """Queue several commands as one order, and return their replies, ``""`` for each that is not answered."""
        return list(self._call("batch", list(commands), timeout, owner, priority))

    def _call(
        self, verb: str, what: Any, timeout: float | None, owner: str | None, priority: Priority, **options: Any
    ) -> Any:
        patience = self._timeout if timeout is None else checked_timeout(timeout)
        return self._do(Job(verb, (what, timeout, owner, priority), options, patience))


class VisaDoor(BlockingVerbs):
    """What a blocking function gets for a VISA session. Each call is one order in the session's queue.

    Its commands bear the member's id where they name no owner.

    Args:
        host: Serves it.
        session: The session behind it.

    Attributes:
        interruption: Makes the error by which a thread that is to stop is told so.
    """

    interruption: ClassVar[Interruption] = DoorInterruptedError

    def __init__(self, host: DoorHost, session: VisaSessionManager) -> None:
        super().__init__(session.config.timeout)
        self._host = host
        self._session = session
        self._verbs = session_verbs(session)

    @property
    def resource(self) -> str:
        """VISA resource name."""
        return self._session.resource

    @contextmanager
    def transaction(
        self, owner: str | None = None, timeout: float | None = None, max_hold: float | None = None
    ) -> Iterator[VisaTransaction]:
        """Have the instrument for the length of a ``with`` block: between its commands nobody else's come.

        It belongs to the thread that asked. Inside the block the door itself must not be used by that thread, which
        would wait for itself.

        Args:
            owner: Who wants it; the member's id if omitted. Its commands bear that name.
            timeout: Seconds to wait for it; the session's own if omitted.
            max_hold: Seconds after which it is taken back; the session's own if omitted.

        Raises:
            DaqError: As `VisaSessionManager.transaction` raises it.
            DoorInterruptedError: On entering, if the member is to stop, once in each thread.
            DoorClosedError: If the member has stopped.
        """
        name = self._host.owner if owner is None else owner
        patience = self._timeout if timeout is None else checked_timeout(timeout)
        hold = Hold(self._host, self.resource, type(self).interruption)
        hold.enter(lambda: self._session.transaction(name, timeout, max_hold), session_verbs, patience)
        failed = True
        try:
            yield VisaTransaction(hold, self._timeout)
            failed = False
        finally:
            hold.leave(failed=failed)

    def _call(
        self, verb: str, what: Any, timeout: float | None, owner: str | None, priority: Priority, **options: Any
    ) -> Any:
        name = self._host.owner if owner is None else owner
        return super()._call(verb, what, timeout, name, priority, **options)

    def _do(self, job: Job) -> Any:
        return self._host.call(self.resource, self._verbs, job, interruption=type(self).interruption)


class VisaTransaction(BlockingVerbs):
    """An instrument that a thread has to itself for a while; made by `VisaDoor.transaction`.

    Args:
        hold: What the thread has.
        timeout: Seconds for each command that names no deadline.
    """

    def __init__(self, hold: Hold, timeout: float) -> None:
        super().__init__(timeout)
        self._hold = hold

    def _do(self, job: Job) -> Any:
        return self._hold.call(job)


def session_verbs(instrument: VisaSessionManager | Transaction) -> Verbs:
    """Return what can be asked of *instrument*."""
    return {
        "enqueue_command": instrument.enqueue_command,
        "query": instrument.query,
        "write": instrument.write,
        "query_block": instrument.query_block,
        "query_values": instrument.query_values,
        "batch": instrument.batch,
        "wait_complete": instrument.wait_complete,
    }
