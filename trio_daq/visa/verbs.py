"""What one can do to an instrument: the same verbs for a session and for a transaction in it.

They turn text into requests and replies into text, numbers and blocks. Where an order is put is not their business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence

import trio

from trio_daq.errors import CommandTimeoutError, LineFeatureError, ReplyError
from trio_daq.sharing import checked_timeout, owner_name
from trio_daq.visa.order import Order, Priority
from trio_daq.visa.pending import PendingReply
from trio_daq.visa.queue import PRIORITIES
from trio_daq.visa.resource_name import is_stream
from trio_daq.visa.settings import VisaSessionConfig
from trio_daq.visa.transport import Progress, ReplyKind, Request
from trio_daq.wire import Command, parse_values, printable, reply_rule, unpack_values

_SHOWN = 60
"""Bytes of what is written raw that errors show."""

Text = str | Command
"""One program message, without its termination."""


class CommandVerbs(ABC):
    """The verbs.

    All of them take ``timeout``: seconds for the wait for a place, the queue and the exchange together, None for the
    session's own; ``owner``: who asks, the member's id or the task's name if omitted; and ``priority``: ``"urgent"``
    goes before ``"normal"``, and that before ``"background"``, but nobody is passed over more than eight times.

    All of them raise the same errors: TypeError or ValueError for a wrong argument, and `CommandTimeoutError` if it did
    not end in time, `LineLostError` if the connection failed while it was in flight, `LineUnusableError` if the
    connection could not be made trustworthy, `SessionClosedError`, `DeadlockError` if it would have to wait for its own
    task, `InstrumentError` if ``check_errors`` found any. In a transaction also `TransactionBrokenError` if the
    connection was opened anew since it sent something, `LeaseRevokedError` if it was taken back, and
    `GuardReleasedError` after its end. Each says by ``sent`` whether the instrument may act on it.

    Cancelled before it was sent, a command never will be; cancelled later, it is finished and its reply dropped.
    """

    config: VisaSessionConfig

    @abstractmethod
    def _put(self, order: Order, *, wait: bool) -> None:
        """Put *order* into the queue; with *wait* it may wait for a place there."""

    @abstractmethod
    def _new_order(
        self,
        requests: Sequence[Request],
        texts: Sequence[str],
        owner: str,
        timeout: float,
        priority: Priority,
        progress: Progress | None,
    ) -> Order:
        """Return an order that is yet to be put."""

    @property
    def resource(self) -> str:
        """The VISA resource name, as configured."""
        return self.config.resource

    async def enqueue_command(
        self, command: Text, timeout: float | None = None, owner: str | None = None, priority: Priority = "normal"
    ) -> str:
        """Queue *command* and return its reply, or ``""`` if the dialect says that it is not answered.

        Raises:
            DaqError: As all verbs do; ReplyError if the reply is not ASCII.
        """
        text = _text(command)
        kind: ReplyKind = "message" if self._is_answered(text) else "nothing"
        return (await self._run([text], [kind], timeout, owner, priority))[0]

    async def query(
        self,
        command: Text,
        timeout: float | None = None,
        owner: str | None = None,
        priority: Priority = "normal",
        *,
        raw: bool = False,
    ) -> str:
        """Queue *command* and return its reply, whatever the command looks like.

        Args:
            command: One program message, without its termination.
            timeout: As for all verbs.
            owner: As for all verbs.
            priority: As for all verbs.
            raw: Whether *command* may hold any character up to U+00FF, terminations included, sent as that byte.

        Raises:
            DaqError: As all verbs do; ReplyError if the reply is not ASCII.
        """
        return (await self._run([_text(command)], ["message"], timeout, owner, priority, raw=raw))[0]

    async def write(
        self,
        command: Text,
        timeout: float | None = None,
        owner: str | None = None,
        priority: Priority = "normal",
        *,
        raw: bool = False,
    ) -> None:
        """Queue *command*, expect no reply, and return when it was written. Arguments and errors as for `query`."""
        await self._run([_text(command)], ["nothing"], timeout, owner, priority, raw=raw)

    async def query_block(
        self,
        command: Text,
        timeout: float | None = None,
        owner: str | None = None,
        priority: Priority = "normal",
        *,
        progress: Progress | None = None,
    ) -> bytes:
        """Queue *command* and return the data of the block that it is answered by (IEEE 488.2, 8.7.9 and 8.7.10).

        Args:
            command: One program message, without its termination.
            timeout: As for all verbs.
            owner: As for all verbs.
            priority: As for all verbs.
            progress: Called with the bytes that have come and those that will come in all, None if the block does not
                say. It must neither wait nor raise.

        Raises:
            DaqError: As all verbs do; ReplyError if the reply is no block, or larger than ``max_block``.
        """
        text = _text(command)
        order = self._order([text], ["block"], timeout, owner, priority, progress=progress)
        return (await self._carry_out(order))[0]

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
        """Queue *command* and return the numbers of its reply.

        Args:
            command: One program message, without its termination.
            timeout: As for all verbs.
            owner: As for all verbs.
            priority: As for all verbs.
            datatype: ``"ascii"`` for numbers in text, parted by commas or blanks; else they come in a block, each as
                the letter says in which `struct` names it, such as ``"f"`` or ``"h"``.
            big_endian: Whether the most significant byte comes first.

        Returns:
            A list of floats for ``"ascii"``; else a NumPy array where NumPy is installed, and an `array.array` where
            it is not.

        Raises:
            DaqError: As all verbs do; ReplyError if the reply does not hold such numbers.
        """
        text, name = _text(command), self._owner(owner)
        reply: str | bytes
        if datatype == "ascii":
            reply = await self.query(text, timeout, name, priority)
        else:
            unpack_values(b"", datatype, big_endian)  # to refuse a wrong letter before anything is sent
            reply = await self.query_block(text, timeout, name, priority)
        try:
            return parse_values(reply) if isinstance(reply, str) else unpack_values(reply, datatype, big_endian)
        except ValueError as error:
            raise self._reply_error(text, name, reply, f"numbers: {error}") from None

    async def batch(
        self,
        commands: Iterable[Text],
        timeout: float | None = None,
        owner: str | None = None,
        priority: Priority = "normal",
    ) -> list[str]:
        """Queue several commands as one order, and return their replies, ``""`` for each that is not answered.

        They are carried out one after the other, nobody's in between, and with PyVISA in one go.

        Raises:
            DaqError: As all verbs do, naming the command at which it ended; those before it were carried out.
        """
        texts = [_text(command) for command in commands]
        if not texts:
            raise ValueError("a batch has at least one command")
        kinds: list[ReplyKind] = ["message" if self._is_answered(text) else "nothing" for text in texts]
        return await self._run(texts, kinds, timeout, owner, priority)

    async def write_raw(
        self,
        data: bytes,
        timeout: float | None = None,
        owner: str | None = None,
        priority: Priority = "normal",
        *,
        behind: bool = False,
    ) -> None:
        """Queue *data*, whatever it is and with the termination that it has, and return when it was written.

        Args:
            data: At least one byte.
            timeout: As for all verbs.
            owner: As for all verbs.
            priority: As for all verbs.
            behind: In a transaction, whether replies to what it wrote before may lie there, to be read later. Without
                this they are taken for somebody's late ones, and the connection is made trustworthy first.

        Raises:
            DaqError: As all verbs do.
        """
        seconds = self.config.timeout if timeout is None else checked_timeout(timeout)
        request, text = Request(data, "nothing", behind), printable(data, _SHOWN)
        await self._carry_out(self._new_order([request], [text], self._owner(owner), seconds, priority, None))

    async def read_stb(
        self, timeout: float | None = None, owner: str | None = None, priority: Priority = "normal"
    ) -> int:
        """Read the status byte (IEEE 488.2-1992, 11.2) beside the messages, as a serial poll does.

        Raises:
            LineFeatureError: If the connection has no way for that: raw sockets and serial ports; ask ``*STB?`` there.
            DaqError: As all verbs do.
        """
        name = self._owner(owner)
        if is_stream(self.resource):
            reason = "a raw socket or serial port carries messages only; ask *STB?"
            raise LineFeatureError(resource=self.resource, owner=name, action="a serial poll", reason=reason)
        seconds = self.config.timeout if timeout is None else checked_timeout(timeout)
        order = self._new_order([Request(b"", "status")], ["(a serial poll)"], name, seconds, priority, None)
        return (await self._carry_out(order))[0][0]

    @trio.lowlevel.enable_ki_protection
    def submit(
        self, command: Text, timeout: float | None = None, owner: str | None = None, priority: Priority = "normal"
    ) -> PendingReply:
        """Give *command* its place in the queue now, and return what its reply can be waited for with.

        So an order can be fixed, which starting tasks cannot. The command is carried out whether or not anybody waits,
        unless it is cancelled before.

        Raises:
            QueueFullError: If there is no place.
            DaqError: If the session is closed or its connection unusable.
        """
        text = _text(command)
        kind: ReplyKind = "message" if self._is_answered(text) else "nothing"
        order = self._order([text], [kind], timeout, owner, priority)
        self._put(order, wait=False)
        return PendingReply(order, self._text_of)

    async def poll_until(
        self,
        command: Text,
        is_ready: Callable[[str], bool],
        every: float = 0.1,
        timeout: float = 10.0,
        owner: str | None = None,
        priority: Priority = "normal",
    ) -> str:
        """Ask *command* every so often until *is_ready* accepts its reply; return that. Others go on in between.

        Args:
            command: A query.
            is_ready: Told each reply.
            every: Seconds from one question to the next.
            timeout: Seconds for all of it.
            owner: As for all verbs.
            priority: As for all verbs.

        Raises:
            CommandTimeoutError: If it was not so in time; ``sent`` is ``"yes"`` once the question was answered at all.
            DaqError: As all verbs do.
        """
        checked_timeout(timeout)
        checked_timeout(every, "every", zero=False)
        name, began = self._owner(owner), trio.current_time()
        end = began + timeout
        while True:
            asked = trio.current_time()
            reply = await self.query(command, max(0.001, min(self.config.timeout, end - asked)), name, priority)
            if is_ready(reply):
                return reply
            pause = max(0.0, asked + every - trio.current_time())
            if trio.current_time() + pause >= end:
                raise CommandTimeoutError(
                    resource=self.resource,
                    command=str(command),
                    owner=name,
                    phase="in_flight",
                    sent="yes",
                    waited=trio.current_time() - began,
                    trouble=f"its last reply was {reply!r}",
                )
            await trio.sleep(pause)

    async def wait_complete(
        self, every: float = 0.05, timeout: float = 10.0, owner: str | None = None, priority: Priority = "normal"
    ) -> None:
        """Wait until the instrument has finished what it was told, by ``*OPC`` and the event status register.

        Others' commands go on in between, which waiting for the reply to ``*OPC?`` would not let them. They must not
        read the event status register meanwhile, since reading clears it (IEEE 488.2-1992, 10.12 and 11.5.1).

        Raises:
            CommandTimeoutError: If it had not finished in time.
            ReplyError: If ``*ESR?`` is not answered by a number.
            DaqError: As all verbs do.
        """
        name = self._owner(owner)
        began = trio.current_time()
        # The register is read first, so that what an earlier wait left in it does not end this one.
        first = min(self.config.timeout, checked_timeout(timeout))
        await self._run(["*ESR?", "*OPC"], ["message", "nothing"], first, name, priority)

        def is_complete(reply: str) -> bool:
            try:
                return bool(int(float(reply)) & 1)
            except ValueError:
                raise self._reply_error("*ESR?", name, reply, "a number") from None

        left = max(0.001, timeout - (trio.current_time() - began))
        await self.poll_until("*ESR?", is_complete, every, left, name, priority)

    # --- between text and requests -----------------------------------------------------------------------------------

    async def _run(
        self,
        texts: Sequence[str],
        kinds: Sequence[ReplyKind],
        timeout: float | None,
        owner: str | None,
        priority: Priority,
        *,
        raw: bool = False,
    ) -> list[str]:
        order = self._order(texts, kinds, timeout, owner, priority, raw=raw)
        return self._text_of(order, await self._carry_out(order))

    @trio.lowlevel.enable_ki_protection
    async def _carry_out(self, order: Order) -> list[bytes]:
        await trio.lowlevel.checkpoint_if_cancelled()  # else a cancelled task would still send
        self._put(order, wait=True)
        return await order.wait(abandon=True)

    def _order(
        self,
        texts: Sequence[str],
        kinds: Sequence[ReplyKind],
        timeout: float | None,
        owner: str | None,
        priority: Priority,
        *,
        raw: bool = False,
        progress: Progress | None = None,
    ) -> Order:
        seconds = self.config.timeout if timeout is None else checked_timeout(timeout)
        if priority not in PRIORITIES:
            raise ValueError(f"priority is one of {', '.join(PRIORITIES)}, not {priority!r}")
        requests = [Request(self._encode(text, raw), kind) for text, kind in zip(texts, kinds, strict=True)]
        return self._new_order(requests, texts, self._owner(owner), seconds, priority, progress)

    def _owner(self, given: str | None) -> str:
        return owner_name(given)

    def _is_answered(self, text: str) -> bool:
        return reply_rule(self.config.dialect)(text)

    def _encode(self, text: str, raw: bool) -> bytes:
        end = self.config.write_termination
        if not text.strip():
            raise ValueError(f"a command is text of at least one character, not {text!r}")
        if raw:
            try:
                return (text + end).encode("latin-1")
            except UnicodeEncodeError:
                raise ValueError(f"{text!r} holds a character that is no byte") from None
        if not text.isascii() or "\n" in text or "\r" in text or "\0" in text or end in text:
            raise ValueError(
                f"{text!r} holds a character that is not ASCII or that would end the command early; termination is "
                "added by the session. If it is meant, say raw=True to query or write"
            )
        return (text + end).encode("ascii")

    def _text_of(self, order: Order, replies: list[bytes]) -> list[str]:
        try:
            return [reply.decode("ascii") for reply in replies]
        except UnicodeDecodeError:
            at = next(at for at, reply in enumerate(replies) if not reply.isascii())
            raise self._reply_error(order.texts[at], order.owner, replies[at], "ASCII text") from None

    def _reply_error(self, command: str, owner: str, reply: bytes | str, expected: str) -> ReplyError:
        return ReplyError(resource=self.resource, owner=owner, command=command, reply=reply, expected=expected)


def _text(command: Text) -> str:
    if not isinstance(command, (str, Command)):
        raise TypeError(f"a command is text or a Command, not {command!r}")
    return str(command)
