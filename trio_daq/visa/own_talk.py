"""What a session says to its instrument of its own accord: who are you, remember this, what went wrong.

It carries out exchanges on a connection that it is handed, and decides nothing about that connection.
"""

from __future__ import annotations

import logging

import trio

from trio_daq.errors import LineOpenError, ReplyError
from trio_daq.visa.error_queue import InstrumentErrors, NoErrorReplyError, read_error_queue
from trio_daq.visa.settings import VisaSessionConfig
from trio_daq.visa.transport import ReplyKind, Request, Transport
from trio_daq.wire import Exchange, Trace, printable

_log = logging.getLogger("trio_daq.visa")

OURSELVES = "trio_daq"
"""The owner of our own exchanges in the trace."""


class OwnTalk:
    """Exchanges that nobody asked for.

    Args:
        resource: The instrument, for errors and logs.
        config: What to ask.
        trace: Where it is noted.

    Attributes:
        asked: What was asked last, for whoever has to explain that there was no answer.
        errors: What was in the instrument's error queue when it was last read here.
    """

    def __init__(self, resource: str, config: VisaSessionConfig, trace: Trace) -> None:
        self.asked = ""
        self.errors: InstrumentErrors = []
        self._resource = resource
        self._config = config
        self._trace = trace

    async def greet(self, transport: Transport, *, again: bool, came_back: bool) -> None:
        """Recognise the instrument and, if it was there before, tell it what it has to know again.

        One that was lost meanwhile is made safe first.

        Raises:
            LineOpenError: If it is another one, or answers a step otherwise than expected.
            TransportError: If an exchange failed; `asked` says which.
        """
        deadline = trio.current_time() + self._config.timeout
        if self._config.identify is not None:
            await self._identify(transport, self._config.identify, deadline)
        safe_state = self._config.safe_state if came_back else ()
        for step in (*safe_state, *self._config.on_reconnect) if again else ():
            await self._take_step(transport, step, deadline)
        if self._config.check_errors != "never":
            await self.look_at_errors(transport, "opening")

    async def look_at_errors(self, transport: Transport, occasion: str) -> None:
        """Empty the error queue, and log what was in it. Raises as `greet`."""
        deadline = trio.current_time() + self._config.timeout
        try:
            self.errors = await self.read_errors(transport, deadline, OURSELVES, occasion)
        except ReplyError as error:
            raise LineOpenError(resource=self._resource, reason=str(error)) from error
        for code, text in self.errors:
            _log.warning("%s: in the error queue after %s: %d %s", self._resource, occasion, code, text)

    async def read_errors(self, transport: Transport, deadline: float, owner: str, command: str) -> InstrumentErrors:
        """Empty the error queue and return what was in it, after *command* of *owner*.

        Raises:
            ReplyError: If a reply is no error of an error queue.
            TransportError: If an exchange failed.
        """

        async def ask() -> bytes:
            return await self._ask(transport, self._config.error_query.encode("ascii"), deadline)

        try:
            return await read_error_queue(ask)
        except NoErrorReplyError as error:
            raise ReplyError(
                resource=self._resource,
                owner=owner,
                command=f"{self._config.error_query} after {command}",
                reply=error.reply,
                expected="an error code and its text",
            ) from error

    async def _identify(self, transport: Transport, identify: Exchange, deadline: float) -> None:
        reply = await self._ask(transport, identify.query, deadline)
        if not identify.accepts(reply):
            raise LineOpenError(
                resource=self._resource,
                reason=f"another instrument is there: it answers {self.asked!r} by {printable(reply)!r}",
                hint=f"Expected {printable(identify.expect)!r}.",
            )

    async def _take_step(self, transport: Transport, step: Exchange, deadline: float) -> None:
        if step.write:
            await self._say(transport, step.write, "nothing", deadline)
        elif not step.accepts(reply := await self._ask(transport, step.query, deadline)):
            raise LineOpenError(
                resource=self._resource,
                reason=f"it answers {self.asked!r} by {printable(reply)!r}",
                hint=f"Expected {printable(step.expect)!r}, since the connection was opened again.",
            )

    async def _ask(self, transport: Transport, query: bytes, deadline: float) -> bytes:
        reply = await self._say(transport, query, "message", deadline)
        self._trace.note(OURSELVES, "read", reply)
        return reply

    async def _say(self, transport: Transport, command: bytes, reply: ReplyKind, deadline: float) -> bytes:
        self.asked = printable(command)
        data = command + self._config.write_termination.encode("ascii")
        self._trace.note(OURSELVES, "write", data)
        return (await transport.exchange([Request(data, reply)], deadline))[0]
