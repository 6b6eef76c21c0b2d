"""A VISA instrument without socket, thread or process: what sessions send it, a task of the test carries out.

For tests on a virtual clock, and for users: `trio.testing.MockClock` sees all of its waiting. It is as true as a real
one: it takes up one command after the other, whichever connection they came by; what it says late comes late, on the
connection that asked; a new connection brings nothing of an old one.

Invariants: a command is in `MemoryInstrument.received` from the moment in which its last byte came; it is in the log
from the moment in which it is taken up; a connection that is gone gives and takes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import attrs
import trio

from trio_daq.errors import LineOpenError, Sent
from trio_daq.sharing import Bell
from trio_daq.sim.answer import Answer, SimulatedInstrument
from trio_daq.sim.command_cutter import CommandCutter, TooLong
from trio_daq.sim.dialogue import Bench, Dialogue
from trio_daq.sim.faults import NO_FAULTS, FaultPlan
from trio_daq.sim.log import Event, InstrumentLog, LogEntry
from trio_daq.visa import (
    BlockError,
    ConnectionLostError,
    Progress,
    Request,
    Transport,
    TransportError,
    TransportTimeoutError,
    UnaskedInputError,
    VisaSessionConfig,
)
from trio_daq.wire import BlockFormatError, BlockReader, ReceiveBuffer, printable

_KEPT = 65536
"""Bytes that are kept of what is thrown away."""


class MemoryInstrument:
    r"""One instrument, from its own side. A session's side is what `connect` makes.

    Args:
        instrument: What answers, such as a `SimulatedMeter`.
        plan: What goes wrong with its answers.

    Attributes:
        log: What it took up and answered so far.
        received: Each command that came, with the Trio time, whether or not it was carried out later.
        slow_by: Seconds that each command takes beside its own.
        write_time: Seconds that the bytes of a command are on their way.
        is_silent: Whether it carries out commands and answers none.
        is_refusing: Whether it refuses connections.

    Example:
        >>> from trio_daq.sim import SimulatedMeter
        >>> from trio_daq.visa import VisaSessionConfig, VisaSessionManager
        >>> async def main():
        ...     meter = MemoryInstrument(SimulatedMeter())
        ...     async with trio.open_nursery() as nursery:
        ...         nursery.start_soon(meter.serve)
        ...         config = VisaSessionConfig(resource="TCPIP::meter::5025::SOCKET")
        ...         async with VisaSessionManager(config, make_transport=meter.connect) as session:
        ...             print(await session.query("*IDN?"))
        ...         nursery.cancel_scope.cancel()
        >>> trio.run(main)
        TRIO_DAQ,SIMULATED METER,1,0.1
    """

    def __init__(self, instrument: SimulatedInstrument, plan: FaultPlan = NO_FAULTS) -> None:
        diary = _Diary()
        self.log: list[LogEntry] = diary.entries
        self.received: list[tuple[float, str]] = []
        self.slow_by = self.write_time = 0.0
        self.is_silent = self.is_refusing = False
        self._bench = Bench(_Moody(self, instrument), plan, diary)
        self._commands: deque[tuple[Dialogue, bytes | TooLong]] = deque()
        self._arrived = Bell()
        self._connections: list[_MemoryTransport] = []

    def connect(self, config: VisaSessionConfig) -> Transport:
        """Make a connection that is not open yet: what `VisaSessionManager` takes as ``make_transport``."""
        return _MemoryTransport(self, config)

    async def serve(self) -> None:
        """Carry out commands until cancelled. One task does so, for all connections."""
        while True:
            while not self._commands:
                await self._arrived.wait()
            dialogue, command = self._commands.popleft()
            await dialogue.answer(command)
            await trio.lowlevel.checkpoint()

    def hang_up(self) -> None:
        """Close all connections. What came by them and was not taken up yet is never carried out."""
        for connection in tuple(self._connections):
            connection._end("the instrument closed the connection", forget=True)

    def send_unasked(self, data: bytes) -> None:
        """Send bytes that nobody has asked for by all connections."""
        for connection in self._connections:
            connection._feed(data)

    def _take(self, dialogue: Dialogue, command: bytes | TooLong) -> None:
        text = command.head if isinstance(command, TooLong) else command
        self.received.append((trio.current_time(), text.decode("latin-1")))
        self._commands.append((dialogue, command))
        self._arrived.ring()

    def _forget(self, dialogue: Dialogue | None) -> None:
        self._commands = deque(entry for entry in self._commands if entry[0] is not dialogue)


class _Diary(InstrumentLog):
    """A log that is kept in memory, by Trio's clock."""

    def __init__(self) -> None:
        self.entries: list[LogEntry] = []

    def write(
        self, instrument: str, event: Event, text: bytes, tag: str | None = None, fault: str | None = None
    ) -> None:
        now = int(trio.current_time() * 1e9)
        entry = LogEntry(t=now, instrument=instrument, event=event, text=text.decode("latin-1"), tag=tag, fault=fault)
        self.entries.append(entry)


class _Moody:
    """The instrument's mind, as slow and as silent as it was told to be."""

    def __init__(self, body: MemoryInstrument, mind: SimulatedInstrument) -> None:
        self.name, self.command_ends, self.reply_end = mind.name, mind.command_ends, mind.reply_end
        self._body = body
        self._mind = mind

    def answer(self, command: bytes, now: float) -> Answer:
        return self._in_this_mood(self._mind.answer(command, now))

    def overrun(self) -> Answer:
        return self._in_this_mood(self._mind.overrun())

    def _in_this_mood(self, answer: Answer) -> Answer:
        replies = () if self._body.is_silent else answer.replies
        return attrs.evolve(answer, replies=replies, delay=answer.delay + self._body.slow_by)


class _MemoryTransport:
    """One connection to a `MemoryInstrument`, from the session's side; see `Transport`."""

    def __init__(self, instrument: MemoryInstrument, config: VisaSessionConfig) -> None:
        self.sent: Sent = "no"
        self.completed = 0
        self._instrument = instrument
        self._config = config
        self._termination = config.read_termination.encode("latin-1")
        self._input = ReceiveBuffer()
        self._readable = Bell()
        self._gone = "it is not open"
        self._is_used = False
        self._dialogue: Dialogue | None = None
        self._cutter = CommandCutter(b"\n")

    async def open(self, timeout: float) -> None:  # noqa: ARG002 - it takes no time
        await trio.lowlevel.checkpoint()
        if self._instrument.is_refusing or self._is_used:
            reason = "this connection has been opened or closed" if self._is_used else "the connection was refused"
            raise LineOpenError(resource=self._config.resource, reason=reason, hint="Is the instrument on?")
        self._is_used, self._gone = True, ""
        self._begin_dialogue()
        self._instrument._connections.append(self)

    async def exchange(
        self, requests: Sequence[Request], deadline: float, progress: Progress | None = None
    ) -> list[bytes]:
        self.sent, self.completed = "no", 0
        await trio.lowlevel.checkpoint_if_cancelled()
        if deadline <= trio.current_time():
            raise TransportTimeoutError("no time was left for it")
        replies = []
        with trio.move_on_at(deadline):
            for request in requests:
                if request.data:
                    self.sent = "no"
                    if not request.behind:
                        self._refuse_unasked()
                    await self._write(request.data)
                replies.append(await self._read(request, progress))
                self.completed += 1
            await trio.lowlevel.cancel_shielded_checkpoint()
            return replies
        raise TransportTimeoutError(f"after {printable(self._input.peek(), 60)!r}, no {self._termination!r} came")

    async def drain(self, quiet: float, timeout: float) -> bytes:
        await trio.lowlevel.checkpoint()
        drained = bytearray()
        now = trio.current_time()
        quiet_at, end = now + quiet, now + timeout
        while True:
            self._refuse_if_gone()
            now = trio.current_time()
            if data := self._input.clear():
                drained += data[: _KEPT - len(drained)]
                quiet_at = now + quiet
            elif now >= quiet_at:
                return bytes(drained)
            if now >= end:
                raise TransportTimeoutError(f"it was not quiet for {quiet:g} s within {timeout:g} s")
            with trio.move_on_at(min(quiet_at, end)):
                await self._readable.wait()

    async def clear(self, timeout: float) -> None:  # noqa: ARG002 - it takes no time
        await trio.lowlevel.checkpoint()
        self._refuse_if_gone()
        self._instrument._forget(self._dialogue)
        self._begin_dialogue()

    async def aclose(self, timeout: float, *, abort: bool = False) -> bool:  # noqa: ARG002 - it takes no time
        self._is_used = True
        self._end("it was closed", forget=abort)
        await trio.lowlevel.cancel_shielded_checkpoint()
        return True

    # --- one exchange ------------------------------------------------------------------------------------------------

    def _refuse_unasked(self) -> None:
        self._refuse_if_gone()
        if len(self._input):
            unasked = UnaskedInputError(self._input.clear())
            if self.completed:  # an UnaskedInputError would say that nothing was written yet
                raise TransportError(f"after {self.completed} requests, {unasked}")
            raise unasked

    async def _write(self, data: bytes) -> None:
        if self._instrument.write_time:
            half = len(data) // 2
            self._deliver(data[:half])
            self.sent, data = "unknown", data[half:]
            await trio.sleep(self._instrument.write_time)
            self._refuse_if_gone()
        self._deliver(data)
        self.sent = "yes"

    async def _read(self, request: Request, progress: Progress | None) -> bytes:
        match request.reply:
            case "message":
                return await self._read_message()
            case "block":
                return await self._read_block(progress)
            case "raw":
                return await self._read_message() + self._termination
        return b""

    async def _read_message(self) -> bytes:
        while (message := self._input.take_until(self._termination)) is None:
            if len(self._input) > self._config.max_block:
                raise TransportError(f"{len(self._input)} bytes came without {self._termination!r}")
            await self._wait()
        return message[: -len(self._termination)]

    async def _read_block(self, progress: Progress | None) -> bytes:
        block = BlockReader(self._config.max_block)
        try:
            while not block.is_complete:
                if block.wanted is None:
                    raise BlockError("it does not tell its length, and nothing else tells its end", self._input.peek())
                if (data := self._input.take_some(block.wanted)) is None:
                    await self._wait()
                    continue
                block.feed(data)
                if progress is not None and block.size is not None:
                    progress(block.received, block.size)
        except BlockFormatError as error:
            raise BlockError(str(error), error.data) from error
        if rest := (await self._read_message()).strip():
            raise BlockError(f"{len(rest)} bytes followed the block", rest)
        return bytes(block.payload)

    async def _wait(self) -> None:
        self._refuse_if_gone()
        await self._readable.wait()

    # --- the instrument's side ---------------------------------------------------------------------------------------

    def _begin_dialogue(self) -> None:
        """Speak to the instrument from scratch: what it still has to say about earlier commands reaches nobody."""

        async def send(data: bytes) -> None:
            if self._dialogue is dialogue:
                self._feed(data)

        self._dialogue = dialogue = self._instrument._bench.open_dialogue(send)
        self._cutter = CommandCutter(self._instrument._bench.instrument.command_ends)
        self._input.clear()

    def _deliver(self, data: bytes) -> None:
        assert self._dialogue is not None
        for command in self._cutter.feed(data):
            self._instrument._take(self._dialogue, command)

    def _feed(self, data: bytes) -> None:
        if not self._gone:
            self._input.feed(data)
            self._readable.ring()

    def _end(self, reason: str, *, forget: bool) -> None:
        if forget:
            self._instrument._forget(self._dialogue)
        if self in self._instrument._connections:
            self._instrument._connections.remove(self)
        self._dialogue, self._gone = None, self._gone or reason
        self._readable.ring()

    def _refuse_if_gone(self) -> None:
        if self._gone:
            raise ConnectionLostError(self._gone)
