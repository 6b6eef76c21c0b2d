"""One VISA instrument, one queue, one worker.

Callers put commands into a bounded memory channel; the worker, which alone touches the connection, takes them in
order. A command whose caller is gone, or whose deadline has passed, is not sent. After an exchange that did not end
well the connection is never used again.

Invariants: at most one command is in flight; `_waiting` holds the commands that have been asked for and not begun,
in order; a reply goes to the command that was in flight when its bytes were read, or to nobody.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Literal, Self

import attrs
import outcome
import trio

from trio_daq.errors import (
    CommandTimeoutError,
    DaqError,
    LineLostError,
    LineOpenError,
    LineUnusableError,
    ReplyError,
    Sent,
    SessionClosedError,
)
from trio_daq.sharing import ServiceNursery, checked_timeout, owner_name
from trio_daq.visa.pending import PendingCommand
from trio_daq.visa.pyvisa_transport import PyvisaTransport
from trio_daq.visa.settings import VisaSessionConfig
from trio_daq.visa.transport import TransportError, TransportTimeoutError
from trio_daq.wire import expects_reply

_log = logging.getLogger("trio_daq.visa")

_CLOSE_TIMEOUT = 2.0
"""Seconds that closing one connection may take before it is left to its thread."""


@attrs.frozen
class SessionStatistics:
    """What a `VisaSessionManager` looked like at one moment.

    Attributes:
        in_flight: Owner of the command that the instrument is at, or None.
        in_flight_for: Seconds since that command was sent, 0 if there is none.
        waiting: Owners of the commands in the queue, next one first.
        executed: Commands that were carried out, by owner.
        timed_out: Commands that ended by their deadline, wherever they were.
        never_sent: Commands that were dropped before they were sent.
        abandoned: Replies that came after their caller had left, and went to nobody.
        resyncs: Connections that were given up after an unfinished exchange.
        hand_overs: Commands of another owner than the one before.
        longest_wait: Seconds that a carried-out command had waited in the queue, at most.
    """

    in_flight: str | None
    in_flight_for: float
    waiting: tuple[str, ...]
    executed: Mapping[str, int]
    timed_out: int
    never_sent: int
    abandoned: int
    resyncs: int
    hand_overs: int
    longest_wait: float


class VisaSessionManager:
    """The one way to an instrument that many tasks use.

    Used alone it is an ``async with`` block; a manager runs `serve` in a nursery of its own instead.

    Args:
        config: Its settings, or just the VISA resource name.
        timeout: Overrides the settings: seconds for each command that names no deadline.

    Example::

        async with VisaSessionManager("TCPIP::192.168.1.100::5025::SOCKET", timeout=2.0) as dmm:
            print(await dmm.enqueue_command("*IDN?", owner="v2_logger"))
    """

    def __init__(self, config: VisaSessionConfig | str, timeout: float | None = None) -> None:
        settings = VisaSessionConfig(resource=config) if isinstance(config, str) else config
        self.config = settings if timeout is None else attrs.evolve(settings, timeout=timeout)
        self._send, self._receive = trio.open_memory_channel[PendingCommand](self.config.queue_size)
        self._waiting: dict[PendingCommand, None] = {}
        self._in_flight: PendingCommand | None = None
        self._sent_at = 0.0
        self._transport: PyvisaTransport | None = None
        self._unusable: str | None = None
        self._opened = self._closing = False
        self._stop = trio.CancelScope()
        self._ended = trio.Event()
        self._service: ServiceNursery | None = None
        self._executed: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._last_owner: str | None = None
        self._longest_wait = 0.0

    @property
    def resource(self) -> str:
        """The VISA resource name, as configured."""
        return self.config.resource

    @property
    def state(self) -> Literal["open", "lost", "unusable", "closed"]:
        """``"lost"``: the connection failed and is opened again for the next command; ``"unusable"``: it is not."""
        if self._closing or not self._opened:
            return "closed"
        if self._unusable is not None:
            return "unusable"
        return "open" if self._transport is not None else "lost"

    async def enqueue_command(self, command: str, timeout: float | None = None, owner: str | None = None) -> str:
        """Queue *command* and return its reply, or ``""`` if it is one that the instrument does not answer.

        Whether it answers is decided by the dialect: in SCPI, a header that ends in ``?``. One deadline covers the
        wait for a place, the queue and the exchange. Cancelled or expired before it is sent, it never will be;
        cancelled later, the exchange is finished and its reply dropped.

        Args:
            command: One program message, ASCII, without termination characters.
            timeout: Seconds, None for the session's own.
            owner: Who asks; the member's id or the task's name if omitted.

        Raises:
            TypeError, ValueError: If an argument is wrong.
            CommandTimeoutError: If there was no reply in time. Its ``sent`` says whether the instrument may act on it.
            LineLostError: If the connection failed while it was in flight.
            LineOpenError: If the connection had failed before and could not be opened again.
            LineUnusableError: If the connection had failed and must not be opened again by itself.
            ReplyError: If the reply is not ASCII.
            SessionClosedError: If the session is closed.
        """
        return await self._run(command, expects_reply(command), timeout, owner)

    async def query(self, command: str, timeout: float | None = None, owner: str | None = None) -> str:
        """Queue *command* and return its reply, whatever the command looks like. Raises as `enqueue_command`."""
        return await self._run(command, True, timeout, owner)

    async def write(self, command: str, timeout: float | None = None, owner: str | None = None) -> None:
        """Queue *command*, expect no reply, and return when it was written. Raises as `enqueue_command`."""
        await self._run(command, False, timeout, owner)

    def queue_depth(self) -> int:
        """Return how many commands wait; the one in flight and those whose caller has left do not count."""
        return len(self._waiting)

    def current_owner(self) -> str | None:
        """Return whose command the instrument is at, or None."""
        return self._in_flight.owner if self._in_flight is not None else None

    def statistics(self) -> SessionStatistics:
        """Return a snapshot for displays, health checks and tests."""
        return SessionStatistics(
            in_flight=self.current_owner(),
            in_flight_for=trio.current_time() - self._sent_at if self._in_flight is not None else 0.0,
            waiting=tuple(command.owner for command in self._waiting),
            executed=dict(self._executed),
            timed_out=self._counts["timed_out"],
            never_sent=self._counts["never_sent"],
            abandoned=self._counts["abandoned"],
            resyncs=self._counts["resyncs"],
            hand_overs=self._counts["hand_overs"],
            longest_wait=self._longest_wait,
        )

    async def serve(self, *, task_status: trio.TaskStatus[Self] = trio.TASK_STATUS_IGNORED) -> None:
        """Open the connection and carry out commands until `stop` or cancellation; then close it.

        Raises:
            LineOpenError: If the connection cannot be opened; nothing is left behind.
            SessionClosedError: If it was served before: a session has one life.
        """
        await self._open()
        task_status.started(self)
        await self._serve_open()

    def stop(self) -> None:
        """Take no more commands, fail those that wait with `SessionClosedError`, and let `serve` end.

        The command in flight is finished first, within its own deadline.
        """
        self._refuse_all()
        self._send.close()

    async def close(self, timeout: float = 2.0) -> None:
        """Stop, and wait until the connection is closed. Bounded: after *timeout* the command in flight is given up.

        Shielded from cancellation for that time.
        """
        checked_timeout(timeout)
        self.stop()
        if not self._opened:
            return
        with trio.CancelScope(shield=True):
            with trio.move_on_after(timeout):
                await self._ended.wait()
            self._stop.cancel()
            await self._ended.wait()

    async def __aenter__(self) -> Self:
        await self._open()
        self._service = ServiceNursery()
        nursery = await self._service.__aenter__()
        nursery.start_soon(self._serve_shielded)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        assert self._service is not None
        await self.close()
        return await self._service.__aexit__(kind, error, traceback)

    async def _open(self) -> None:
        if self._opened or self._closing:
            raise SessionClosedError(resource=self.resource, owner=owner_name(None))
        self._transport = await self._connect(self.config.timeout)
        self._opened = True

    async def _serve_shielded(self) -> None:
        # Nothing but close() ends the worker, so that a cancelled block still closes in order.
        with trio.CancelScope(shield=True):
            await self._serve_open()

    async def _serve_open(self) -> None:
        try:
            with self._stop:
                await self._work()
        finally:
            self._refuse_all()
            if self._transport is not None:
                await self._transport.aclose(_CLOSE_TIMEOUT)
            self._ended.set()

    async def _run(self, text: str, reply: bool, timeout: float | None, owner: str | None) -> str:
        self._check_text(text)
        seconds = self.config.timeout if timeout is None else checked_timeout(timeout)
        command = PendingCommand(text, reply, owner_name(owner), seconds)
        if self._closing:
            raise SessionClosedError(resource=self.resource, owner=command.owner)
        self._waiting[command] = None
        position = 0
        try:
            with trio.move_on_at(command.deadline):
                await self._send.send(command)
                command.phase = "queued" if command.phase == "place" else command.phase
                await command.wait()
        except (trio.ClosedResourceError, trio.BrokenResourceError) as error:
            raise SessionClosedError(resource=self.resource, owner=command.owner) from error
        finally:
            command.wanted = False
            if command in self._waiting:
                position = list(self._waiting).index(command) + (self._in_flight is not None)
                del self._waiting[command]
                self._counts["never_sent"] += 1
        result = command.result or outcome.Error(self._timeout_of(command, position))
        if isinstance(result, outcome.Error) and isinstance(result.error, CommandTimeoutError):
            self._counts["timed_out"] += 1
        return result.unwrap()

    async def _work(self) -> None:
        async for command in self._receive:
            if not command.is_due():
                continue
            del self._waiting[command]
            self._in_flight, self._sent_at = command, trio.current_time()
            try:
                await self._carry_out(command)
            finally:
                self._in_flight = None
                command.end(outcome.Error(self._closed(command)))

    async def _carry_out(self, command: PendingCommand) -> None:
        try:
            transport = self._transport or await self._reconnect(command)
        except DaqError as error:
            command.end(outcome.Error(error))
            return
        if not command.is_due():  # reopening took its time: the caller has left, or is about to
            self._counts["never_sent"] += 1
            command.end(outcome.Error(self._timeout_of(command, 0)))
            return
        command.phase = "in_flight"
        data = (command.text + self.config.write_termination).encode("ascii")
        try:
            reply = await transport.exchange(data, command.expects_reply, command.deadline)
        except TransportError as error:
            command.end(outcome.Error(self._explain(command, error, transport.sent)))
            await self._give_up(str(error))
            return
        self._count(command)
        command.end(outcome.capture(self._decode, command, reply))

    async def _connect(self, timeout: float) -> PyvisaTransport:
        transport = PyvisaTransport(self.config)
        try:
            await transport.open(timeout)
        except BaseException:
            await transport.aclose(_CLOSE_TIMEOUT)
            raise
        return transport

    async def _reconnect(self, command: PendingCommand) -> PyvisaTransport:
        """Open a new connection on the deadline of *command*, after the worker's own try has failed."""
        if self._unusable is not None:
            raise LineUnusableError(resource=self.resource, reason=self._unusable)
        command.phase = "resync"
        self._transport = await self._connect(max(0.001, command.deadline - trio.current_time()))
        return self._transport

    async def _give_up(self, reason: str) -> None:
        """Leave the connection, in which a late reply may sit, and open a new one at once if that is a cure."""
        transport, self._transport = self._transport, None
        self._counts["resyncs"] += 1
        if transport is not None:
            await transport.aclose(_CLOSE_TIMEOUT)
        if not self.resource.upper().startswith("TCPIP"):
            # Closing a GPIB, USB or serial session does not take back what the instrument is about to say.
            self._unusable = f"an exchange was left unfinished ({reason}) and its late reply cannot be told apart"
            _log.error("%s: %s", self.resource, self._unusable)
            return
        try:
            self._transport = await self._connect(self.config.timeout)
        except LineOpenError as error:
            _log.warning("%s", error)

    def _refuse_all(self) -> None:
        self._closing = True
        for command in list(self._waiting):
            command.end(outcome.Error(self._closed(command)))

    def _closed(self, command: PendingCommand) -> SessionClosedError:
        sent: Sent = self._transport.sent if self._transport is not None and command.phase == "in_flight" else "no"
        return SessionClosedError(resource=self.resource, owner=command.owner, sent=sent)

    def _count(self, command: PendingCommand) -> None:
        self._executed[command.owner] += 1
        self._counts["abandoned"] += not command.wanted
        self._counts["hand_overs"] += self._last_owner not in (None, command.owner)
        self._last_owner = command.owner
        self._longest_wait = max(self._longest_wait, self._sent_at - command.asked_at)

    def _decode(self, command: PendingCommand, reply: bytes) -> str:
        try:
            return reply.decode("ascii").removesuffix(self.config.read_termination)
        except UnicodeDecodeError:
            raise ReplyError(
                resource=self.resource, owner=command.owner, command=command.text, reply=reply, expected="ASCII text"
            ) from None

    def _explain(self, command: PendingCommand, error: TransportError, sent: Sent) -> DaqError:
        if isinstance(error, TransportTimeoutError):
            return self._timeout_of(command, 0)
        return LineLostError(resource=self.resource, owner=command.owner, reason=str(error), sent=sent)

    def _timeout_of(self, command: PendingCommand, position: int) -> CommandTimeoutError:
        in_flight = command.phase == "in_flight"
        return CommandTimeoutError(
            resource=self.resource,
            command=command.text,
            owner=command.owner,
            phase=command.phase,
            sent=self._transport.sent if in_flight and self._transport is not None else "yes" if in_flight else "no",
            waited=trio.current_time() - command.asked_at,
            position=position,
        )

    def _check_text(self, text: str) -> None:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"a command is text of at least one character, not {text!r}")
        if not text.isascii() or any(char in text for char in "\r\n\0" + self.config.write_termination):
            raise ValueError(
                f"{text!r} holds a character that is not ASCII or that would end the command early; "
                "termination is added by the session"
            )
