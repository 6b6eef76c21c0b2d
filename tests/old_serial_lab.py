"""A simulated stage on a pty, a shared port to it, and the host of a member ``old`` with its door."""

import contextlib
import functools
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import attrs
import trio

from trio_daq.legacy import DoorHost, SerialDoor
from trio_daq.serialport import SerialPortConfig, SharedSerialPort
from trio_daq.sim import read_log
from trio_daq.wire import SyncQuery

_T = TypeVar("_T")


@attrs.frozen
class Lab:
    """A stage, its port, and what the member ``old`` has of it."""

    port: SharedSerialPort
    host: DoorHost
    door: SerialDoor
    members: trio.CancelScope
    log: Path
    old_entries: int

    def commands(self) -> list[str]:
        """Return the commands that the stage got in this test, without those that make the line clean."""
        commands = [entry.text for entry in read_log(self.log)[self.old_entries :] if entry.event == "command"]
        return [command for command in commands if not command.startswith("ECHO")]

    def dropped(self) -> bytes:
        """Return what reached nobody, of what the port remembers."""
        return b"".join(entry.data for entry in self.port.trace() if entry.direction == "drop")

    async def wait_for_commands(self, condition: Callable[[list[str]], bool]) -> None:
        with trio.fail_after(5):
            while not condition(self.commands()):  # noqa: ASYNC110 - the log is another process's
                await trio.sleep(0.005)

    async def wait_for_owner(self, owner: str) -> None:
        with trio.fail_after(5):
            while self.port.current_owner() != owner:  # noqa: ASYNC110 - a change of owner has no event
                await trio.sleep(0.001)

    async def ask(self, command: bytes, timeout: float = 10.0) -> bytes:
        async with self.port.acquire("new", timeout=timeout) as guard:
            return await guard.query(command)


@attrs.frozen
class Instruments:
    """Where the simulated stage is, and its log."""

    stage: str
    log: Path


@contextlib.contextmanager
def running_instruments(folder: Path) -> Iterator[Instruments]:
    """Have a process of simulated instruments, for a whole module."""
    log = folder / "log.jsonl"
    command = [sys.executable, "-m", "trio_daq.sim", "--log", str(log)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield Instruments(json.loads(process.stdout.readline())["stage"], log)


@contextlib.asynccontextmanager
async def open_lab(path: str, log: Path, **settings: Any) -> AsyncIterator[Lab]:
    """Have a lab on the stage at *path*, whose dirty line is clean when its sync query has been answered."""
    defaults: dict[str, Any] = {
        "write_terminator": "\r\n",
        "read_terminator": "\r\n",
        "timeout": 0.3,
        "quiet_time": 1.0,
        "sync_query": SyncQuery("ECHO {nonce}", "{nonce}"),
    }
    config = SerialPortConfig(path=path, **(defaults | settings))
    async with SharedSerialPort(config) as port, trio.open_nursery() as nursery:
        await port.recover(timeout=5)
        host, scope = DoorHost("old"), trio.CancelScope()

        async def serve(task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await host.serve(task_status=task_status)

        await nursery.start(serve)
        yield Lab(port, host, SerialDoor(host, port), scope, log, len(read_log(log)))
        scope.cancel()


async def in_thread(work: Callable[..., _T], *args: Any) -> _T:
    return await trio.to_thread.run_sync(functools.partial(work, *args), abandon_on_cancel=True)
