"""One client's talk with a simulated instrument: commands in, replies out, strictly in order.

It asks the instrument, lets the faults fire and keeps the log. It knows neither pty nor socket: bytes are given to it,
and it sends through a function it was given.

Invariants: the next command is looked at only when the last one is answered; what is sent was logged before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable

import attrs
import trio

from trio_daq.sim.answer import Answer, SimulatedInstrument
from trio_daq.sim.command_cutter import CommandCutter, TooLong
from trio_daq.sim.faults import Fault, FaultPlan, FaultSchedule
from trio_daq.sim.log import InstrumentLog
from trio_daq.sim.spoiling import HangUp, spoil

CHUNK = 16 * 1024
"""Bytes that a line server reads at once."""


class Bench:
    """One instrument at work: its behaviour, its faults, its diary, shared by all its clients.

    Args:
        instrument: What answers; it may be replaced at any time.
        plan: What goes wrong.
        log: Where all of it is noted, open.
    """

    def __init__(self, instrument: SimulatedInstrument, plan: FaultPlan, log: InstrumentLog) -> None:
        self.instrument = instrument
        self.faults = FaultSchedule(plan)
        self.fired: Counter[Fault] = Counter()
        self.log = log

    def open_dialogue(
        self, send: Callable[[bytes], Awaitable[None]], hang_up: Callable[[HangUp], None] | None = None
    ) -> Dialogue:
        """Return the talk with one more client, which gets its bytes through *send* and is dropped by *hang_up*."""
        return Dialogue(self, send, hang_up, CommandCutter(self.instrument.command_ends))


@attrs.define
class Dialogue:
    """The talk with one client.

    Attributes:
        is_over: Whether the instrument has hung up.
    """

    _bench: Bench
    _send: Callable[[bytes], Awaitable[None]]
    _hang_up: Callable[[HangUp], None] | None
    _cutter: CommandCutter
    is_over: bool = False

    async def take(self, data: bytes) -> None:
        """Take bytes that the client sent and answer every command that they complete, one after the other.

        It has a checkpoint only where it waits; its caller waits for bytes in between. Cancelled, the commands not yet
        looked at are lost: that is for the end of the client or of the process. So they are after it has hung up.
        """
        for command in self._cutter.feed(data):
            await self.answer(command)
            if self.is_over:
                return

    async def answer(self, command: bytes | TooLong) -> None:
        """Answer one command, without terminator."""
        bench = self._bench
        if isinstance(command, TooLong):
            command, answer = command.head + b"... (too long)", bench.instrument.overrun()
        else:
            answer = bench.instrument.answer(command, trio.current_time())
        bench.log.write(bench.instrument.name, "command", command, answer.tag)
        if answer.delay:
            await trio.sleep(answer.delay)
        if answer.replies:
            fault = None if answer.tag is None else bench.faults.next(is_block=answer.is_block)
            await self._reply(command, answer, fault)

    async def _reply(self, command: bytes, answer: Answer, fault: Fault | None) -> None:
        bench, name = self._bench, self._bench.instrument.name
        if fault is not None:
            bench.fired[fault] += 1
        outgoing = spoil(
            fault,
            answer.line,
            command,
            bench.instrument.reply_end,
            late_by=bench.faults.plan.late_by,
            number=0 if fault is None else bench.fired[fault],
        )
        if fault is not None:
            bench.log.write(name, "fault", outgoing.extra, answer.tag, fault)
        unlogged = answer.replies if outgoing.is_whole else ()
        for pause, data in outgoing.pieces:
            if pause:
                await trio.sleep(pause)
            for reply in unlogged:
                bench.log.write(name, "reply", reply.text, reply.tag)
            unlogged = ()
            await self._send(data)
        if outgoing.hang_up is not None and self._hang_up is not None:
            self.is_over = True
            self._hang_up(outgoing.hang_up)
