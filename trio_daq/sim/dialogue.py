"""One client's talk with a simulated instrument: commands in, replies out, strictly in order.

It asks the instrument, lets the faults fire and keeps the log. It knows neither pty nor socket: bytes are given to it,
and it sends through a function it was given.

Invariants: the next command is looked at only when the last one is answered; what is sent was logged before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs
import trio

from trio_daq.sim.answer import Answer, SimulatedInstrument
from trio_daq.sim.command_cutter import CommandCutter
from trio_daq.sim.faults import GARBAGE, Fault, FaultPlan, FaultSchedule
from trio_daq.sim.log import InstrumentLog

CHUNK = 16 * 1024
"""Bytes that a line server reads at once."""


class Bench:
    """One instrument at work: its behaviour, its faults, its diary, shared by all its clients.

    Args:
        instrument: What answers.
        plan: What goes wrong.
        log: Where all of it is noted, open.
    """

    def __init__(self, instrument: SimulatedInstrument, plan: FaultPlan, log: InstrumentLog) -> None:
        self.instrument = instrument
        self.faults = FaultSchedule(plan)
        self.log = log

    def open_dialogue(self, send: Callable[[bytes], Awaitable[None]]) -> Dialogue:
        """Return the talk with one more client, which gets its bytes through *send*."""
        return Dialogue(self, send, CommandCutter(self.instrument.command_ends))


@attrs.define
class Dialogue:
    """The talk with one client."""

    _bench: Bench
    _send: Callable[[bytes], Awaitable[None]]
    _cutter: CommandCutter

    async def take(self, data: bytes) -> None:
        """Take bytes that the client sent and answer every command that they complete, one after the other.

        It has a checkpoint only where it waits; its caller waits for bytes in between. Cancelled, the commands not yet
        looked at are lost: that is for the end of the client or of the process.
        """
        for command in self._cutter.feed(data):
            await self._answer(command)

    async def _answer(self, command: bytes | None) -> None:
        bench = self._bench
        if command is None:
            answer = bench.instrument.overrun()
        else:
            answer = bench.instrument.answer(command, trio.current_time())
        bench.log.write(bench.instrument.name, "command", b"(too long)" if command is None else command, answer.tag)
        if answer.delay:
            await trio.sleep(answer.delay)
        if answer.replies:
            await self._reply(answer, bench.faults.next() if answer.tag is not None else None)

    async def _reply(self, answer: Answer, fault: Fault | None) -> None:
        line = answer.line + self._bench.instrument.reply_end
        match fault:
            case "late":
                self._note_fault(answer, fault, b"")
                await trio.sleep(self._bench.faults.plan.late_by)
            case "silent":
                self._note_fault(answer, fault, b"")
                return
            case "half":
                half = answer.line[: (len(answer.line) + 1) // 2]
                self._note_fault(answer, fault, half)
                await self._send(half)
                return
            case "garbage":
                self._note_fault(answer, fault, GARBAGE)
                line = GARBAGE + line
        for reply in answer.replies:
            self._bench.log.write(self._bench.instrument.name, "reply", reply.text, reply.tag)
        await self._send(line)

    def _note_fault(self, answer: Answer, fault: Fault, sent: bytes) -> None:
        self._bench.log.write(self._bench.instrument.name, "fault", sent, answer.tag, fault)
