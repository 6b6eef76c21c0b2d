"""A shared VISA session, for a thread."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from trio_daq.legacy.host import DoorHost, Job
from trio_daq.visa import VisaSessionManager


class VisaDoor:
    """What a blocking function gets for a VISA session. Each call is one command in the session's queue.

    Args:
        host: Serves it.
        session: The session behind it.
    """

    def __init__(self, host: DoorHost, session: VisaSessionManager) -> None:
        self._host = host
        self._session = session
        self._verbs: dict[str, Callable[..., Awaitable[Any]]] = {
            "enqueue_command": session.enqueue_command,
            "query": session.query,
            "write": session.write,
        }

    @property
    def resource(self) -> str:
        """VISA resource name."""
        return self._session.resource

    def enqueue_command(self, command: str, timeout: float | None = None, owner: str | None = None) -> str:
        """Queue *command* and return its reply, or ``""`` if the dialect says that it is not answered.

        Raises:
            DaqError: As `VisaSessionManager.enqueue_command` raises it.
            DoorClosedError: If the member is stopping.
        """
        return str(self._call("enqueue_command", command, timeout, owner))

    def query(self, command: str, timeout: float | None = None, owner: str | None = None) -> str:
        """Queue *command* and return its reply. Raises as `enqueue_command`."""
        return str(self._call("query", command, timeout, owner))

    def write(self, command: str, timeout: float | None = None, owner: str | None = None) -> None:
        """Queue *command*, expect no reply, and return when it was written. Raises as `enqueue_command`."""
        self._call("write", command, timeout, owner)

    def _call(self, verb: str, command: str, timeout: float | None, owner: str | None) -> Any:
        patience = self._session.config.timeout if timeout is None else timeout
        options = {"timeout": timeout, "owner": owner or self._host.owner}
        return self._host.call(self.resource, self._verbs, Job(verb, (command,), options, patience))
