"""A lab whose two sides share a stage on a pty and a meter on TCP, and members that note what they were answered.

The instruments live in a process of their own, and their log is the judge: each question has a tag of its own, so a
reply that reached the wrong member, was made up, or was answered twice is seen.
"""

import itertools
import os
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from trio_daq.actors import Actor, Message, handles
from trio_daq.config import DualConfig, MemberConfig, RecordingConfig, SubsystemConfig
from trio_daq.drivers import DriverContext
from trio_daq.legacy import SerialDoor, ThreadContext, VisaDoor
from trio_daq.lifecycle import DualRuntimeManager
from trio_daq.serialport import SerialPortConfig, SharedSerialPort
from trio_daq.sim import LogEntry, SimulatedLab, open_simulated_lab, read_log, replies_by_tag
from trio_daq.visa import VisaSessionConfig, VisaSessionManager
from trio_daq.wire import SyncQuery


@attrs.define
class Notes:
    """What members were answered: ``(tag, reply)``, in the order in which they came. Threads may write."""

    replies: list[tuple[str, str]] = attrs.field(factory=list)

    def note(self, tag: str, reply: str) -> str:
        """Keep *reply*, and return what follows its tag."""
        self.replies.append((tag, reply))
        return reply.replace(",", " ").split()[-1]

    def count(self, owner: str) -> int:
        """How many replies *owner* has."""
        return sum(owner_of(tag) == owner for tag, _ in self.replies)

    def counts(self) -> Counter[str]:
        """How many replies each owner has."""
        return Counter(owner_of(tag) for tag, _ in self.replies)


def owner_of(tag: str) -> str:
    """Return who asked: tags are ``owner-number``."""
    return tag.rpartition("-")[0]


@attrs.frozen
class Lab:
    """A lab and its instruments."""

    manager: DualRuntimeManager
    simulated: SimulatedLab
    notes: Notes = attrs.field(factory=Notes)

    @property
    def port(self) -> SharedSerialPort:
        """The stage's port."""
        return self.manager.serial["stage"]

    @property
    def meter(self) -> VisaSessionManager:
        """The meter's session."""
        return self.manager.visa["meter"]

    def log(self, instrument: str | None = None) -> list[LogEntry]:
        """Return the diary of one instrument, or of both."""
        return [entry for entry in read_log(self.simulated.log) if instrument in (None, entry.instrument)]

    def asked(self, instrument: str | None = None) -> list[str]:
        """Return the tags of the questions that came, in their order."""
        return [entry.tag for entry in self.log(instrument) if entry.event == "command" and entry.tag]

    def check_replies(self) -> None:
        """Check that each noted reply is what an instrument says that it answered to that very question, once."""
        answered = replies_by_tag(self.log())
        wrong = [(tag, reply, answered.get(tag)) for tag, reply in self.notes.replies if answered.get(tag) != reply]
        assert wrong == []
        again = [tag for tag, times in Counter(tag for tag, _ in self.notes.replies).items() if times > 1]
        assert again == []

    async def wait_asked(self, *owners: str, times: int = 1) -> None:
        """Wait until each of *owners* has asked so many more questions than now, by the instruments' log."""
        before = Counter(map(owner_of, self.asked()))
        await until(lambda: all(Counter(map(owner_of, self.asked()))[one] >= before[one] + times for one in owners))


async def until(condition: Callable[[], object], seconds: float = 15.0) -> None:
    """Wait for something that happens outside of Trio."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - a file, a thread or another process has no event
            await trio.sleep(0.01)


def port_config(path: str, **settings: Any) -> SerialPortConfig:
    """Return the settings of a simulated stage's port."""
    defaults: dict[str, Any] = {
        "write_terminator": "\r\n",
        "read_terminator": "\r\n",
        "timeout": 5.0,
        "acquire_timeout": 10.0,
        "quiet_time": 0.2,
        "sync_query": SyncQuery("ECHO {nonce}", "{nonce}"),
    }
    return SerialPortConfig(path=path, **(defaults | settings))


def config_for(
    simulated: SimulatedLab,
    folder: Path | None = None,
    v2: SubsystemConfig | None = None,
    v4: SubsystemConfig | None = None,
    **port_settings: Any,
) -> DualConfig:
    """Return the settings of a lab on *simulated*. What it measures is recorded if there is a *folder*."""
    path = port_settings.pop("path", simulated.stage_path)
    return DualConfig(
        serial={"stage": port_config(path, **port_settings)},
        visa={"meter": VisaSessionConfig(resource=simulated.meter_resource or "", timeout=10.0)},
        v2=v2 or SubsystemConfig(),
        v4=v4 or SubsystemConfig(),
        recording=RecordingConfig(enabled=folder is not None, directory=(folder or Path()) / "runs"),
    )


@asynccontextmanager
async def running_lab(folder: Path, *, record: bool = False, **settings: Any) -> AsyncIterator[Lab]:
    """Have a lab that runs; *settings* are those of `config_for`."""
    async with open_simulated_lab(folder / "instruments.jsonl") as simulated:
        config = config_for(simulated, folder if record else None, **settings)
        async with DualRuntimeManager(config) as manager:
            await manager.start()
            yield Lab(manager, simulated)


def member(name: str, driver: Any, notes: Notes, **options: Any) -> MemberConfig:
    """Return the settings of a member that uses both lines and takes *notes*."""
    path = f"{driver.__module__}:{driver.__qualname__}"
    return MemberConfig(id=name, driver=path, serial="stage", visa="meter", options={"notes": notes, **options})


def has_open(path: str) -> bool:
    """Return whether this process has a descriptor of the device at *path*, by what the kernel says."""
    for number in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{number}") == os.path.realpath(path):
                return True
        except OSError:  # that one was of the listing itself
            continue
    return False


def is_connected_to(tcp_port: int | None) -> bool:
    """Return whether somebody on this computer has a connection to *tcp_port*, by what the kernel says."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(int(line.split()[2].split(":")[1], 16) == tcp_port and line.split()[3] == "01" for line in lines)


def thread_names() -> set[str]:
    """Return the names of all threads but those that Trio keeps for later."""
    return {thread.name for thread in threading.enumerate() if not thread.name.startswith("Trio thread")}


# --- members ---------------------------------------------------------------------------------------------------------


def read_in_thread(serial: SerialDoor, visa: VisaDoor, context: ThreadContext, notes: Notes) -> None:
    """Read both instruments, in blocking code."""
    for number in itertools.count():
        tag = f"{context.id}-{number}"
        notes.note(tag, serial.query(f"POS? {tag}".encode()).decode())
        notes.note(f"{tag}m", visa.query(f"MEAS:VOLT? {tag}m"))
        if context.wait_stopping(0.002):
            break


async def read_in_task(
    serial: SharedSerialPort, visa: VisaSessionManager, context: DriverContext, notes: Notes
) -> None:
    """Read both instruments, as a task."""
    for number in itertools.count():
        await read_both(serial, visa, notes, f"{context.id}-{number}")
        if await context.wait_stopping(0.002):
            break


async def read_both(serial: SharedSerialPort, visa: VisaSessionManager, notes: Notes, tag: str) -> None:
    """Ask each instrument once, as whoever runs this."""
    async with serial.acquire() as guard:
        notes.note(tag, (await guard.query(f"POS? {tag}".encode())).decode())
    notes.note(f"{tag}m", await visa.query(f"MEAS:VOLT? {tag}m"))


@attrs.frozen
class Ask(Message[str]):
    """Ask one question, ``POS?`` of the stage or anything of the meter, and return the number in the reply."""

    question: str
    tag: str


@attrs.frozen
class Tick(Message[None]):
    """Read once."""


class Instruments(Actor):
    """Asks either instrument what it is told to ask; with a *period*, it also reads both again and again."""

    def __init__(
        self,
        serial: SharedSerialPort,
        visa: VisaSessionManager,
        context: DriverContext,
        notes: Notes,
        period: float | None = None,
    ) -> None:
        self.serial, self.visa, self.context, self.notes, self.period = serial, visa, context, notes, period
        self.numbers = itertools.count()

    async def on_start(self) -> None:
        if self.period is not None:
            self.every(self.period, Tick())

    @handles(Tick)
    async def tick(self, _: Tick) -> None:
        await read_both(self.serial, self.visa, self.notes, f"{self.name}-{next(self.numbers)}")

    @handles(Ask)
    async def ask(self, message: Ask) -> str:
        command = message.question.format(tag=message.tag)
        if message.question.startswith(("POS?", "SLOW? {tag} ", "MOVE")):
            async with self.serial.acquire() as guard:
                return self.notes.note(message.tag, (await guard.query(command.encode())).decode())
        return self.notes.note(message.tag, await self.visa.query(command))
