"""Old and new programs use one meter through one session of a lab, and no reply reaches who did not ask for it.

Two Trio tasks, a driver of PyMeasure, one of QCoDeS, a raw PyVISA script and an asyncio program, while replies come too
late, tasks are cancelled, and a script thinks better of its question. Every question bears a tag, which the meter gives
back with the reply and notes in its log; a reply is wrong if its tag is not that of the question, or if it is not what
the meter says that it answered. The same blocking programs on PyVISA alone show what that is worth.

``TRIO_DAQ_SOUP_COMMANDS`` says how many questions are asked. Not in the default run: ``nox -s legacy``.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import pyvisa
import trio
from pyvisa.resources import MessageBasedResource, TCPIPSocket

from trio_daq.config import DualConfig, RecordingConfig, SubsystemConfig
from trio_daq.errors import CommandTimeoutError
from trio_daq.lifecycle import DualRuntimeManager
from trio_daq.sim import FaultPlan, open_simulated_lab, read_log, replies_by_tag
from trio_daq.visa import VisaSessionConfig, VisaSessionManager

pymeasure_keithley = pytest.importorskip("pymeasure.instruments.keithley", exc_type=ImportError)
qcodes_instrument = pytest.importorskip("qcodes.instrument", exc_type=ImportError)
qcodes_rigol = pytest.importorskip("qcodes.instrument_drivers.rigol", exc_type=ImportError)

pytestmark = pytest.mark.filterwarnings("ignore:It is not known whether this device support SCPI:FutureWarning")

COMMANDS = int(os.environ.get("TRIO_DAQ_SOUP_COMMANDS", "500"))

OWNERS = {"pymeasure", "qcodes", "pyvisa", "task0", "task1", "asyncio"}

TIMEOUT = 0.15
"""Seconds that every program waits for a reply."""
FAULTS = FaultPlan(late_every=25, late_by=2 * TIMEOUT)

SHARED, PLAIN = "@trio_daq", "@py"
LINES = {"read_termination": "\n", "write_termination": "\n"}


@attrs.define
class Book:
    """What was asked, and what came of it. Any thread may write.

    Attributes:
        replies: Questions' tags and what those who asked them got.
        failed: How many got an error.
        left: How many are still to be asked.
    """

    left: int
    replies: list[tuple[str, str]] = attrs.field(factory=list)
    failed: Counter[str] = attrs.field(factory=Counter)
    _lock: threading.Lock = attrs.field(factory=threading.Lock)

    def tags(self, owner: str) -> Iterator[tuple[int, str]]:
        """Number questions, until all have been asked by somebody."""
        number = 0
        while True:
            with self._lock:
                if self.left == 0:
                    return
                self.left -= 1
            yield number, f"{owner}-{number}"
            number += 1

    @contextlib.contextmanager
    def forgiving(self, owner: str, *errors: type[Exception]) -> Iterator[None]:
        """Go on after an error, as old programs do."""
        try:
            yield
        except errors:
            self.failed[owner] += 1

    def wrong(self, log: Path) -> list[tuple[str, str]]:
        """Return the replies that are not the caller's, by the log of the instrument."""
        answered = replies_by_tag(read_log(log))
        return [(tag, reply) for tag, reply in self.replies if _tag(reply) != tag or not _is_said(answered, tag, reply)]


def _tag(reply: str) -> str:
    return reply.partition(",")[0]


def _is_said(answered: dict[str, str], tag: str, reply: str) -> bool:
    said = answered.get(tag, "")
    return said == reply or (said.startswith("#") and said.endswith(reply))


UPSETS = (pyvisa.VisaIOError, ValueError)
"""What old programs take for a bad moment: a timeout, or a reply in which nothing makes sense."""

# --- the programs ----------------------------------------------------------------------------------------------------


def use_pymeasure(meter: Any, book: Book) -> None:
    """Ask by a driver that PyMeasure ships."""
    for number, tag in book.tags("pymeasure"):
        with book.forgiving("pymeasure", *UPSETS):
            if number % 7 == 3:
                meter.write(f"CONF:VOLT:DC {tag}")
            book.replies.append((tag, meter.ask(f"MEAS:VOLT? {tag}")))


def use_qcodes(meter: Any, book: Book) -> None:
    """Ask by a driver that QCoDeS ships."""
    for number, tag in book.tags("qcodes"):
        with book.forgiving("qcodes", *UPSETS):
            if number % 5 == 2:
                book.replies.append((tag, _block(meter.visa_handle, tag)))
            else:
                book.replies.append((tag, meter.ask(f"MEAS:VOLT? {tag}")))


def use_pyvisa(meter: MessageBasedResource, book: Book) -> None:
    """Ask as scripts do; now and then think better of it."""
    for number, tag in book.tags("pyvisa"):
        with book.forgiving("pyvisa", *UPSETS):
            match number % 11:
                case 2:
                    book.replies.append((tag, _block(meter, tag)))
                case 5:
                    meter.write(f"MEAS:VOLT? {tag}")
                    meter.clear()
                case 7:
                    meter.write(f"MEAS:VOLT? {tag}")
                    book.replies.append((tag, meter.read()))
                case _:
                    book.replies.append((tag, meter.query(f"MEAS:VOLT? {tag}")))


def _block(meter: MessageBasedResource, tag: str) -> str:
    return bytes(meter.query_binary_values(f"CURV? {tag},300", datatype="B", container=bytes)).decode("latin-1")


async def use_trio(meter: VisaSessionManager, book: Book, owner: str) -> None:
    """Ask as a task, and be cancelled now and then, before or after the command was sent."""
    chance = random.Random(owner)
    for number, tag in book.tags(owner):
        patience = chance.uniform(0, 0.004) if number % 4 == 1 else 10
        with trio.move_on_after(patience), book.forgiving(owner, CommandTimeoutError):
            reply = await meter.query(f"MEAS:VOLT? {tag}", timeout=10 * TIMEOUT, owner=owner)
            book.replies.append((tag, reply))


async def use_asyncio(meter: Any, book: Book) -> None:
    """Ask as an asyncio program, and be cancelled now and then."""
    chance = random.Random("asyncio")
    for number, tag in book.tags("asyncio"):
        patience = chance.uniform(0, 0.004) if number % 4 == 1 else 10
        with book.forgiving("asyncio", CommandTimeoutError), contextlib.suppress(asyncio.TimeoutError):
            async with asyncio.timeout(patience):
                book.replies.append((tag, await meter.query(f"MEAS:VOLT? {tag}", timeout=10 * TIMEOUT)))


@attrs.frozen
class Where:
    """How the blocking programs reach the meter.

    Attributes:
        resource: Its VISA name.
        library: The VISA library that they are told.
        shared: A session that all of them use, or None if each opens its own.
        alive: Drivers that use it, which close it when they are collected.
    """

    resource: str
    library: str
    shared: MessageBasedResource | None = None
    alive: list[Any] = attrs.field(factory=list)


def run_pymeasure(where: Where, book: Book) -> None:
    meter = pymeasure_keithley.Keithley2000(where.resource, visa_library=where.library, **LINES, timeout=1000 * TIMEOUT)
    with contextlib.closing(meter.adapter.connection):
        if where.shared is not None:
            meter.adapter.connection = where.shared
            where.alive.append(meter)
        use_pymeasure(meter, book)


def run_qcodes(where: Where, book: Book) -> None:
    if where.shared is None:
        meter = qcodes_rigol.RigolDS1074Z(
            f"meter{next(_numbers)}", where.resource, visalib=where.library, timeout=TIMEOUT
        )
        with contextlib.closing(meter):
            use_qcodes(meter, book)
    else:
        meter = qcodes_rigol.RigolDS1074Z(f"meter{next(_numbers)}", None, resource=where.shared, timeout=TIMEOUT)
        where.alive.append(meter)
        use_qcodes(meter, book)


def run_script(where: Where, book: Book) -> None:
    if where.shared is not None:
        use_pyvisa(where.shared, book)
        return
    with open_resource(where.resource, where.library) as meter:
        use_pyvisa(meter, book)


def open_resource(resource: str, library: str, **options: Any) -> MessageBasedResource:
    manager = pyvisa.ResourceManager(library)
    meter = manager.open_resource(resource, **LINES, timeout=1000 * TIMEOUT, **options)
    assert isinstance(meter, MessageBasedResource)
    return meter


_numbers = itertools.count()
PROGRAMS = (run_pymeasure, run_qcodes, run_script)


# --- on a session of a lab -------------------------------------------------------------------------------------------


async def test_no_reply_of_a_shared_session_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two tasks, PyMeasure, QCoDeS, a script and an asyncio program on one session: 0 wrong replies."""
    log = tmp_path / "log.jsonl"
    book = Book(COMMANDS)
    async with open_simulated_lab(log, stage=None, meter=FAULTS) as simulated:
        where = Where(simulated.meter_resource or "", SHARED)
        config = DualConfig(
            visa={"meter": VisaSessionConfig(resource=where.resource)},
            v2=SubsystemConfig(),
            recording=RecordingConfig(enabled=False),
        )
        async with DualRuntimeManager(config) as manager:
            await manager.start()
            meter = manager.visa["meter"]
            for program in PROGRAMS:
                await manager.v2.spawn_thread(program, where, book)
            for owner in ("task0", "task1"):
                await manager.v2.spawn(use_trio, meter, book, owner, name=owner)
            await manager.v2.spawn_asyncio(use_asyncio, meter, book)
            await manager.wait_all_ended()
            assert manager.is_v2_healthy(), manager.v2_status()
    show(capsys, "one session of trio_daq, with tasks and asyncio", book, log)
    assert book.wrong(log) == []
    assert {owner_of(tag) for tag, _ in book.replies} == OWNERS
    assert len(book.replies) > COMMANDS / 2


# --- on PyVISA alone -------------------------------------------------------------------------------------------------


class OneCallAtATime(TCPIPSocket):
    """A resource with a lock around each call, which is what one can do without touching the drivers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._one = threading.Lock()

    def write_raw(self, *args: Any, **kwargs: Any) -> int:
        with self._one:
            return super().write_raw(*args, **kwargs)

    def _read_raw(self, *args: Any, **kwargs: Any) -> bytearray:
        with self._one:
            return super()._read_raw(*args, **kwargs)

    def clear(self) -> None:
        with self._one:  # without it pyvisa-py may hang for ever in a read of which this takes the bytes
            super().clear()


@pytest.mark.parametrize("is_shared", [False, True], ids=["own_sessions", "one_session"])
async def test_replies_are_wrong_on_pyvisa_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], is_shared: bool
) -> None:
    """The same blocking programs get wrong replies from the same meter: on sessions of their own, and on one."""
    log = tmp_path / "log.jsonl"
    book = Book(COMMANDS)
    async with open_simulated_lab(log, stage=None, meter=FAULTS) as simulated:
        resource = simulated.meter_resource or ""
        shared = open_resource(resource, PLAIN, resource_pyclass=OneCallAtATime) if is_shared else None
        where = Where(resource, PLAIN, shared)
        async with trio.open_nursery() as nursery:
            for program in PROGRAMS:
                nursery.start_soon(trio.to_thread.run_sync, program, where, book)
        qcodes_instrument.Instrument.close_all()
        if shared is not None:
            shared.close()
    show(
        capsys,
        "PyVISA alone, one session, one call at a time" if is_shared else "PyVISA alone, own sessions",
        book,
        log,
    )
    assert book.wrong(log) != []


def owner_of(tag: str) -> str:
    return tag.partition("-")[0]


def show(capsys: pytest.CaptureFixture[str], what: str, book: Book, log: Path) -> None:
    """Print a line of the comparison."""
    with capsys.disabled():
        wrong, failed = len(book.wrong(log)), sum(book.failed.values())
        print(f"\n{what:50} {COMMANDS} questions, {len(book.replies)} replies, {failed} errors, {wrong} wrong replies")
