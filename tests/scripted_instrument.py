"""Instruments on loopback TCP that know one conversation each, in a process of their own.

Run as a program with the path of a log: it serves every conversation of `legacy_conversations` some times over, each
time on a port of its own, prints the ports as one JSON line, and ends when its stdin does. Its log is the truth about
what drivers sent and got.

A conversation is strict: only its next command is answered, and what was not expected stands in the log. Beside it an
instrument answers `NEIGHBOUR` to whoever asks, at any time: that is how others use a driver's session meanwhile.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import trio
from legacy_conversations import CONVERSATIONS, Conversation

from trio_daq.sim import NO_FAULTS, Answer, LogEntry, Reply
from trio_daq.sim.dialogue import Bench, Dialogue
from trio_daq.sim.log import InstrumentLog
from trio_daq.sim.spoiling import HangUp
from trio_daq.sim.tcp_line import TcpLine

NEIGHBOUR = b"NEIGHBOUR? "


class ScriptedInstrument:
    """One side of a conversation.

    Args:
        name: What the log calls it.
        conversation: What it expects, and what it says.
    """

    command_ends = reply_end = b""  # what it is told and what it says are whole, terminators and all

    def __init__(self, name: str, conversation: Conversation) -> None:
        self.name = name
        self.conversation = conversation
        self._turns = conversation.on_the_wire()

    def answer(self, command: bytes, now: float) -> Answer:
        """Say what is due."""
        if command.startswith(NEIGHBOUR):
            question = command.removesuffix(self.conversation.session_write_end)
            tag = question.removeprefix(NEIGHBOUR)
            return Answer((Reply(tag + self.conversation.session_read_end, tag.decode()),))
        if not self._turns or command != self._turns[0][0]:
            return Answer()
        _, reply = self._turns.pop(0)
        return Answer(() if reply is None else (Reply(reply),))

    def overrun(self) -> Answer:
        """Never happens: see `ScriptCutter`."""
        raise NotImplementedError

    def length_of_command(self, data: bytes) -> int:
        """Return how many bytes at the start of *data* are a command, 0 if it is not all there."""
        if data.startswith(NEIGHBOUR):
            return data.find(self.conversation.session_write_end) + len(self.conversation.session_write_end)
        expected = self._turns[0][0] if self._turns else b""
        if data.startswith(expected) and expected:
            return len(expected)
        return 0 if expected.startswith(data) or NEIGHBOUR.startswith(data) else len(data)


@attrs.define
class ScriptCutter:
    """Cut what a client sends as the conversation has it, so that any byte may stand in a command."""

    _instrument: ScriptedInstrument
    _data: bytes = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take bytes, yield commands."""
        self._data += data
        while length := self._instrument.length_of_command(self._data):
            command, self._data = self._data[:length], self._data[length:]
            yield command


class ScriptedBench(Bench):
    """A bench for instruments that know where their commands end."""

    instrument: ScriptedInstrument

    def open_dialogue(
        self, send: Callable[[bytes], Awaitable[None]], hang_up: Callable[[HangUp], None] | None = None
    ) -> Dialogue:
        return Dialogue(self, send, hang_up, ScriptCutter(self.instrument))  # type: ignore[arg-type]


async def serve(log_path: str, copies: list[str]) -> None:
    """Serve all conversations until stdin ends."""
    with InstrumentLog(log_path) as log:
        async with trio.open_nursery() as nursery:
            ports: dict[str, int] = {}
            for copy in copies:
                for name, conversation in CONVERSATIONS.items():
                    instrument = ScriptedInstrument(f"{name} {copy}", conversation)
                    line = TcpLine(ScriptedBench(instrument, NO_FAULTS, log))
                    ports[instrument.name] = await nursery.start(line.serve)
            sys.stdout.write(json.dumps(ports) + "\n")
            sys.stdout.flush()
            await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
            nursery.cancel_scope.cancel()


@attrs.frozen
class ScriptedLab:
    """The process of the instruments, from outside."""

    log_path: Path
    ports: dict[str, int]

    def resource(self, name: str, copy: str) -> str:
        """Return the VISA name of an instrument."""
        return f"TCPIP::127.0.0.1::{self.ports[f'{name} {copy}']}::SOCKET"


@contextmanager
def open_scripted_lab(log: Path, *copies: str) -> Iterator[ScriptedLab]:
    """Have every conversation, once for each of *copies*."""
    here = Path(__file__)
    paths = [str(here.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, str(here), str(log), *copies]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield ScriptedLab(log, json.loads(process.stdout.readline()))
        finally:
            process.stdin.close()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()


def talk(entries: list[LogEntry], name: str) -> list[tuple[str, str]]:
    """Return what was said to and by one instrument, neighbours left out: ``("command" or "reply", text)``."""
    return [
        (entry.event, entry.text)
        for entry in entries
        if entry.instrument == name and entry.tag is None and not entry.text.startswith(NEIGHBOUR.decode())
    ]


if __name__ == "__main__":
    trio.run(serve, sys.argv[1], sys.argv[2:])
