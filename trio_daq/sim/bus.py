r"""Several simulated instruments on one line, as on RS-485, each called by its address in front of a command.

Each works in its own order and knows nothing of the others, so a late reply of one can come into an exchange with
another. Two that send at the same moment do not garble each other here: what one sends at once stays together.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import attrs
import trio

from trio_daq.sim.answer import Answer, SimulatedInstrument
from trio_daq.sim.command_cutter import CommandCutter
from trio_daq.sim.dialogue import Bench, Dialogue

INBOX = 100
"""Commands that wait for one station before the line is not read any more."""


class SimulatedStation:
    r"""An instrument with an address, which stands in front of its commands and of its replies.

    Args:
        address: One word.
        instrument: What answers.

    Example:
        >>> from trio_daq.sim import SimulatedStage
        >>> SimulatedStation(b"1", SimulatedStage()).answer(b"1 POS? n17", now=0.0).line
        b'1 n17 12.500'
    """

    def __init__(self, address: bytes, instrument: SimulatedInstrument) -> None:
        self.name = f"bus {address.decode('ascii')}"
        self.command_ends = instrument.command_ends
        self.reply_end = instrument.reply_end
        self._address = address
        self._instrument = instrument

    def answer(self, command: bytes, now: float) -> Answer:
        """Carry out one command, with the address in front of it."""
        _, _, rest = command.partition(b" ")
        return self._addressed(self._instrument.answer(rest, now)) if rest.strip() else Answer()

    def overrun(self) -> Answer:
        """Answer a command that was too long to be kept."""
        return self._addressed(self._instrument.overrun())

    def _addressed(self, answer: Answer) -> Answer:
        replies = tuple(attrs.evolve(reply, text=self._address + b" " + reply.text) for reply in answer.replies)
        return attrs.evolve(answer, replies=replies)


class SimulatedBus:
    """Stations on one line.

    Args:
        stations: Their benches by address; all end commands alike.
        nursery: Where they work.
    """

    def __init__(self, stations: Mapping[bytes, Bench], nursery: trio.Nursery) -> None:
        self._stations = stations
        self._nursery = nursery

    def open_dialogue(self, send: Callable[[bytes], Awaitable[None]]) -> BusDialogue:
        """Return the talk over one line, whose client gets its bytes through *send*."""
        inboxes = {}
        for address, bench in self._stations.items():
            inboxes[address], commands = trio.open_memory_channel[bytes](INBOX)
            self._nursery.start_soon(_work, bench.open_dialogue(send), commands)
        (ends,) = {bench.instrument.command_ends for bench in self._stations.values()}
        return BusDialogue(inboxes, CommandCutter(ends))


@attrs.define
class BusDialogue:
    """The talk over one line with all its stations."""

    _inboxes: Mapping[bytes, trio.MemorySendChannel[bytes]]
    _cutter: CommandCutter

    async def take(self, data: bytes) -> None:
        """Take bytes that the client sent. What names no station is heard by none."""
        for command in self._cutter.feed(data):
            if isinstance(command, bytes) and (inbox := self._inboxes.get(command.split(maxsplit=1)[0])) is not None:
                await inbox.send(command)


async def _work(dialogue: Dialogue, commands: trio.MemoryReceiveChannel[bytes]) -> None:
    async for command in commands:
        await dialogue.answer(command)
