"""Run a driver that knows nothing of us, by plain PyVISA or on a session of a lab that others use meanwhile."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import outcome
import trio
from legacy_conversations import CONVERSATIONS
from scripted_instrument import NEIGHBOUR, ScriptedLab, open_scripted_lab, talk

from trio_daq.config import DualConfig, RecordingConfig, SubsystemConfig
from trio_daq.lifecycle import DualRuntimeManager
from trio_daq.sim import read_log
from trio_daq.visa import VisaSessionConfig, VisaSessionManager

PLAIN = "@py"
SHARED = "@trio_daq"
"""What drivers are told as their VISA library."""

Exercise = Callable[[str, str], None]
"""Makes a driver of a resource and a VISA library, uses it, checks what it gives, and closes it."""


@attrs.frozen
class DriverBench:
    """The instruments for a module of tests, with one conversation for each way of running a driver."""

    lab: ScriptedLab

    def run_plain(self, name: str, exercise: Exercise) -> None:
        """Run a driver as people do today."""
        exercise(self.lab.resource(name, "plain"), PLAIN)
        self.check(name, "plain")

    async def run_shared(self, name: str, exercise: Exercise) -> None:
        """Run the same driver in a V2 thread, on a session that a Trio task asks meanwhile."""
        conversation = CONVERSATIONS[name]
        resource = self.lab.resource(name, "shared")
        session = VisaSessionConfig(
            resource=resource,
            write_termination=conversation.session_write_end.decode(),
            read_termination=conversation.session_read_end.decode(),
            dialect=conversation.dialect,
        )
        config = DualConfig(
            visa={"instrument": session}, v2=SubsystemConfig(), recording=RecordingConfig(enabled=False)
        )
        async with DualRuntimeManager(config) as manager:
            await manager.start()
            neighbour = Neighbour(manager.visa["instrument"])
            async with trio.open_nursery() as nursery:
                await nursery.start(neighbour.ask)
                result = await _run_in_v2(manager, exercise, resource)
                nursery.cancel_scope.cancel()
        result.unwrap()
        assert neighbour.wrong == []
        self.check(name, "shared")

    def check(self, name: str, copy: str) -> None:
        """Check, by the log of the instrument, that it was told what the conversation has, all of it, and no more."""
        expected = []
        for sent, answer in CONVERSATIONS[name].on_the_wire():
            expected.append(("command", sent.decode("latin-1")))
            if answer is not None:
                expected.append(("reply", answer.decode("latin-1")))
        for _ in range(100):  # a command that is not answered may still be on its way
            if (said := talk(read_log(self.lab.log_path), f"{name} {copy}")) == expected:
                return
            time.sleep(0.02)
        assert said == expected


@contextmanager
def open_driver_bench(folder: Path) -> Iterator[DriverBench]:
    """Have the instruments."""
    with open_scripted_lab(folder / "instruments.jsonl", "plain", "shared") as lab:
        yield DriverBench(lab)


@attrs.define
class Neighbour:
    """A Trio task that asks the session of a driver without pause.

    Attributes:
        wrong: Questions and replies that do not belong together.
    """

    _session: VisaSessionManager
    wrong: list[tuple[str, str]] = attrs.field(factory=list)

    async def ask(self, task_status: trio.TaskStatus[None]) -> None:
        """Ask until cancelled; `started` with the first reply."""
        for number in itertools.count():
            tag = f"n{number}"
            reply = await self._session.query(f"{NEIGHBOUR.decode()}{tag}", timeout=20, owner="neighbour")
            if reply != tag:
                self.wrong.append((tag, reply))
            if number == 0:
                task_status.started()
            await trio.sleep(0.001)


async def _run_in_v2(manager: DualRuntimeManager, exercise: Exercise, resource: str) -> outcome.Maybe[None]:
    """Run *exercise* as a thread member; return what became of it."""
    ended = trio.Event()
    token = trio.lowlevel.current_trio_token()
    results: list[outcome.Maybe[None]] = []

    def drive() -> None:
        results.append(outcome.capture(exercise, resource, SHARED))
        token.run_sync_soon(ended.set)

    await manager.v2.spawn_thread(drive, name="driver")
    with trio.fail_after(60):
        await ended.wait()
    return results[0]
