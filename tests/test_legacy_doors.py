"""Doors from real threads to a simulated stage on a pty and a meter on TCP, beside async owners of both."""

import functools
import json
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import attrs
import pytest
import trio

from trio_daq.data import DataDistributor, DataPublisher
from trio_daq.errors import (
    AcquireTimeoutError,
    CommandTimeoutError,
    DeadlockError,
    DoorClosedError,
    ExchangeTimeoutError,
    GuardReleasedError,
    LeaseRevokedError,
    SessionClosedError,
    StateError,
)
from trio_daq.legacy import DoorHost, SerialDoor, SerialSequence, ThreadContext, VisaDoor, VisaTransaction
from trio_daq.serialport import LineState, SerialPortConfig, SharedSerialPort
from trio_daq.sim import read_log
from trio_daq.visa import VisaSessionManager

_T = TypeVar("_T")


@attrs.frozen
class Lab:
    """Two simulated instruments, the port and the session to them, and the doors of the member ``old``."""

    port: SharedSerialPort
    session: VisaSessionManager
    host: DoorHost
    stage: SerialDoor
    meter: VisaDoor
    members: trio.CancelScope
    log: Path

    old_entries: int

    def commands(self, instrument: str) -> list[str]:
        """Return the commands that an instrument got in this test."""
        entries = read_log(self.log)[self.old_entries :]
        return [entry.text for entry in entries if (entry.instrument, entry.event) == (instrument, "command")]


@attrs.frozen
class Instruments:
    """Where the simulated instruments are."""

    stage: str
    meter: str
    log: Path


@pytest.fixture(scope="module")
def instruments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instruments]:
    """One process of simulated instruments for all tests here."""
    log = tmp_path_factory.mktemp("sim") / "log.jsonl"
    command = [sys.executable, "-m", "trio_daq.sim", "--log", str(log)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        where = json.loads(process.stdout.readline())
        yield Instruments(where["stage"], f"TCPIP::127.0.0.1::{where['meter']}::SOCKET", log)


@pytest.fixture
async def lab(instruments: Instruments) -> AsyncIterator[Lab]:
    """A lab whose host serves until its scope is cancelled."""
    port = SharedSerialPort(
        SerialPortConfig(path=instruments.stage, read_terminator=b"\r\n", timeout=2.0, quiet_time=0.2)
    )
    await port.recover()
    async with trio.open_nursery() as members, VisaSessionManager(instruments.meter) as session:
        host, scope = DoorHost("old"), trio.CancelScope()

        async def serve(task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await host.serve(task_status=task_status)

        await members.start(serve)
        entries = len(read_log(instruments.log))
        doors = SerialDoor(host, port), VisaDoor(host, session)
        yield Lab(port, session, host, *doors, scope, instruments.log, entries)
        scope.cancel()
    await port.aclose()


async def in_thread(work: Callable[..., _T], *args: Any) -> _T:
    """Run blocking code in a real thread of its own and return its result."""
    return await trio.to_thread.run_sync(functools.partial(work, *args), abandon_on_cancel=True)


async def wait_until(condition: Callable[[], object], within: float = 5.0) -> None:
    with trio.fail_after(within):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await trio.sleep(0.005)


# --- everyday ----------------------------------------------------------------------------------------------------


async def test_threads_and_tasks_share_a_port(lab: Lab) -> None:
    """Four threads and four tasks with 20 queries each, at once: each gets its own replies."""
    got: dict[str, bytes] = {}

    def old(name: str) -> None:
        for number in range(20):
            got[f"{name}{number}"] = lab.stage.query(f"ECHO {name}{number}".encode())

    async def new(name: str) -> None:
        for number in range(20):
            async with lab.port.acquire(name, timeout=10) as guard:
                got[f"{name}{number}"] = await guard.query(f"ECHO {name}{number}".encode())

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(in_thread, old, f"old{number}-")
            nursery.start_soon(new, f"new{number}-")
    assert len(got) == 160
    assert all(reply.decode() == text for text, reply in got.items())
    assert lab.port.statistics().exchanges["old"] == 80


async def test_threads_and_tasks_share_a_session(lab: Lab) -> None:
    """The same for a VISA session; the door's commands run under the member's name unless another is given."""
    got: dict[str, str] = {}

    def old(name: str) -> None:
        for number in range(20):
            got[f"{name}{number}"] = lab.meter.query(f"MEAS:VOLT? {name}{number}")

    async def new(name: str) -> None:
        for number in range(20):
            got[f"{name}{number}"] = await lab.session.query(f"MEAS:VOLT? {name}{number}", timeout=10)

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(in_thread, old, f"old{number}-")
            nursery.start_soon(new, f"new{number}-")
    assert len(got) == 120
    assert all(reply.startswith(tag + ",") for tag, reply in got.items())
    assert await in_thread(lab.meter.enqueue_command, "*IDN?", 2.0, "guest") == "TRIO_DAQ,SIMULATED METER,1,0.1"
    assert await in_thread(lab.meter.enqueue_command, "*CLS") == ""
    await in_thread(lab.meter.write, "*RST")
    executed = lab.session.statistics().executed
    assert (executed["old"], executed["guest"]) == (62, 1)
    assert (lab.meter.resource, lab.stage.path) == (lab.session.resource, lab.port.path)


async def test_exclusive_sequence_is_never_cut_into(lab: Lab) -> None:
    """What a thread asks in one exclusive block stands together in the instrument's log, however many others ask."""
    done = trio.Event()

    def old() -> None:
        for number in range(15):
            with lab.stage.exclusive(timeout=10) as sequence:
                sequence.write_only(b"SHUT 1\n")
                assert sequence.query(b"SHUT?") == b"1"
                sequence.write_all(b"ECHO part %d\n" % number)
                assert sequence.read_exactly(4) == b"part"
                assert sequence.read(1) == b" "
                assert sequence.read_until() == b"%d\r\n" % number

    async def new() -> None:
        while not done.is_set():
            async with lab.port.acquire("new", timeout=10) as guard:
                await guard.query(b"ECHO x")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(new)
        await in_thread(old)
        done.set()
    commands = lab.commands("stage")
    for number in range(15):
        at = commands.index(f"ECHO part {number}")
        assert commands[at - 2 : at] == ["SHUT 1", "SHUT?"]
    assert commands.count("ECHO x") > 5


async def test_publish_from_a_thread(lab: Lab) -> None:
    """A thread's reading reaches subscribers in the Trio thread, with its own time of asking."""
    distributor = DataDistributor()
    context = ThreadContext(lab.host, DataPublisher(distributor, "old"))
    with distributor.subscribe("table") as table:
        reading = await in_thread(functools.partial(context.publish, "x", 1.5, "mm", asked_ns=7))
        assert list(await table.receive()) == [reading]
    assert (reading.instrument, reading.channel, reading.value, reading.unit) == ("old", "x", 1.5, "mm")
    assert (reading.seq, reading.asked_ns) == (0, 7)
    assert context.log.name == "trio_daq.member.old"


async def test_thread_learns_that_it_is_to_stop(lab: Lab) -> None:
    """`wait_stopping` returns early when the member is to stop, and says so."""
    context = ThreadContext(lab.host, DataPublisher(DataDistributor(), "old"))
    assert context.wait_stopping(0.001) is False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, lambda: results.append(context.wait_stopping(30)))
        results: list[bool] = []
        await trio.sleep(0.02)
        began = time.monotonic()
        context.stopping.set()
    assert results == [True]
    assert time.monotonic() - began < 5


async def test_numbers_blocks_and_batches_for_a_thread(lab: Lab) -> None:
    """A thread asks for them by the verbs and arguments of the session, and they bear the member's name."""
    door = lab.meter

    def old() -> None:
        [volts] = door.query_values("MEAS:VOLT?")
        assert 1.2 < volts < 1.3
        block = door.query_block("CURV? n,300", 2.0)
        assert (block[:2], len(block)) == (b"n,", 300)
        values = door.query_values("CURV? 400", datatype="B", big_endian=True)
        assert list(values[:3]) == [0, 1, 2]
        assert door.batch(iter(["*CLS", "*OPC?", "MEAS:VOLT? a"]), 2.0)[:2] == ["", "1"]
        assert door.query("*OPC?", 2.0, "guest", "urgent") == "1"
        door.write("CONF:VOLT\n", raw=True)

    with pytest.raises(ValueError, match="datatype"):
        await in_thread(lambda: door.query_values("CURV? 4", datatype="ascci"))
    await in_thread(old)
    assert lab.session.statistics().executed == {"old": 7, "guest": 1}


async def test_transaction_of_a_thread_is_never_cut_into(lab: Lab) -> None:
    """What a thread asks in one transaction stands together in the instrument's log, however many others ask."""
    done = trio.Event()

    def old() -> None:
        for number in range(10):
            with lab.meter.transaction("scan", 10) as meter:
                meter.write("CONF:VOLT")
                assert meter.query(f"MEAS:VOLT? t{number}").startswith(f"t{number},")
                assert meter.batch(["*CLS", "*OPC?"]) == ["", "1"]

    async def new() -> None:
        while not done.is_set():
            await lab.session.query("*IDN?", timeout=10)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(new)
        await in_thread(old)
        done.set()
    commands = lab.commands("meter")
    for number in range(10):
        at = commands.index(f"MEAS:VOLT? t{number}")
        assert commands[at - 1 : at + 3] == ["CONF:VOLT", f"MEAS:VOLT? t{number}", "*CLS", "*OPC?"]
    assert commands.count("*IDN?") > 5
    assert lab.session.statistics().executed["scan"] == 40


async def test_transaction_of_a_thread_ends_in_every_way(lab: Lab) -> None:
    """Its own error comes out, it cannot wait for itself, it can be taken back, and it is dead after its block."""

    def fail() -> None:
        with lab.meter.transaction():
            raise KeyError("mine")

    def wait_for_itself() -> None:
        with lab.meter.transaction():
            lab.meter.query("*IDN?")

    def hold_for_ever() -> None:
        with lab.meter.transaction(max_hold=0.05) as meter:
            time.sleep(0.2)
            with pytest.raises(LeaseRevokedError):
                meter.query("*IDN?")

    def keep() -> VisaTransaction:
        with lab.meter.transaction() as meter:
            return meter

    with pytest.raises(KeyError, match="mine"):
        await in_thread(fail)
    with pytest.raises(DeadlockError):
        await in_thread(wait_for_itself)
    with pytest.raises(LeaseRevokedError):
        await in_thread(hold_for_ever)
    kept = await in_thread(keep)
    with pytest.raises(GuardReleasedError):
        await in_thread(kept.query, "*IDN?")
    assert lab.commands("meter") == []
    async with lab.session.transaction("new", 1.0) as meter:
        with pytest.raises(CommandTimeoutError) as late:
            await in_thread(lambda: lab.meter.transaction(timeout=0.05).__enter__())
        assert (late.value.owner, late.value.sent) == ("old", "no")
        assert await meter.query("*OPC?") == "1"


# --- errors ------------------------------------------------------------------------------------------------------


async def test_errors_arrive_in_the_thread_with_their_facts(lab: Lab) -> None:
    """Each failure is the error that an async owner would get, under the member's name."""
    with pytest.raises(ExchangeTimeoutError) as exchange:
        await in_thread(lab.stage.query, b"SLOW? a 0.1", 0.03)
    assert (exchange.value.owner, exchange.value.sent) == ("old", "yes")
    with pytest.raises(CommandTimeoutError) as command:
        await in_thread(lab.meter.query, "SLOW? a,0.1", 0.03)
    assert (command.value.owner, command.value.phase) == ("old", "in_flight")

    def wait_for_the_port() -> None:
        with lab.stage.exclusive(timeout=0.05):
            pytest.fail("entered")

    async with lab.port.acquire("new", timeout=5):
        with pytest.raises(AcquireTimeoutError) as acquire:
            await in_thread(wait_for_the_port)
    assert (acquire.value.wanted_by, acquire.value.held_by) == ("old", "new")
    assert await in_thread(lab.stage.query, b"ECHO b") == b"b"
    assert await in_thread(lab.meter.query, "*OPC?") == "1"


async def test_mistakes_arrive_in_the_thread_and_break_nothing(lab: Lab) -> None:
    """A wrong argument is the thread's own TypeError or ValueError, and the doors of the member go on."""

    def wrong_timeout() -> None:
        with lab.stage.exclusive(timeout=-1):
            pytest.fail("entered")

    def wrong_count() -> None:
        with lab.stage.exclusive() as sequence:
            sequence.read(0)

    for mistake in (wrong_timeout, wrong_count, lambda: lab.meter.query("A\nB")):
        with pytest.raises(ValueError):  # noqa: PT011 - three kinds of mistake
            await in_thread(mistake)
    assert await in_thread(lab.stage.query, b"ECHO b") == b"b"


async def test_failed_block_of_a_thread_leaves_the_next_right(lab: Lab) -> None:
    """An exception between write and read comes out as it is, and the late reply reaches nobody."""

    def old() -> None:
        with lab.stage.exclusive() as sequence:
            sequence.write_all(b"SLOW? late 0.1\n")
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await in_thread(old)
    assert lab.port.state is LineState.DIRTY
    assert await in_thread(lab.stage.query, b"ECHO b") == b"b"


async def test_sequence_is_dead_after_its_block(lab: Lab) -> None:
    """A sequence that a thread kept beyond its block is refused, and the port is free."""

    def old() -> SerialSequence:
        with lab.stage.exclusive("guest") as sequence:
            assert lab.port.current_owner() == "guest"
        return sequence

    sequence = await in_thread(old)
    assert lab.port.current_owner() is None
    with pytest.raises(GuardReleasedError):
        await in_thread(sequence.query, b"ECHO never")
    assert "ECHO never" not in lab.commands("stage")


async def test_door_refuses_the_thread_of_the_event_loop(lab: Lab) -> None:
    """A blocking call there would wait for itself for ever: StateError instead."""
    with pytest.raises(StateError, match="In async code use the port or the session itself"):
        lab.stage.query(b"ECHO never")
    with pytest.raises(StateError):
        lab.meter.query("*IDN?")
    assert lab.commands("stage").count("ECHO never") == 0


async def test_closed_session_and_port_are_told_to_the_thread(lab: Lab) -> None:
    """A line that is closed under a thread gives SessionClosedError there."""
    await lab.session.close()
    with pytest.raises(SessionClosedError):
        await in_thread(lab.meter.query, "*IDN?")
    await lab.port.aclose()
    with pytest.raises(SessionClosedError):
        await in_thread(lab.stage.query, b"ECHO a")


# --- the end of the member ---------------------------------------------------------------------------------------


@attrs.define
class Failure:
    """What a thread ended with."""

    error: BaseException | None = None


def start_thread(work: Callable[[], object]) -> tuple[threading.Thread, Failure]:
    failure = Failure()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failure.error = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, failure


@pytest.mark.parametrize("kind", ["visa query", "serial query", "read in a sequence", "wait for the port", "publish"])
async def test_stopping_the_member_frees_its_thread(lab: Lab, kind: str) -> None:
    """Whatever a thread waits for, it gets DoorClosedError, never trio.Cancelled, and nothing of it goes on."""
    entered = threading.Event()
    distributor = DataDistributor()
    context = ThreadContext(lab.host, DataPublisher(distributor, "old"))

    def read() -> None:
        with lab.stage.exclusive() as sequence:
            sequence.write_all(b"SLOW? a 0.2\n")
            entered.set()
            sequence.read_until(timeout=30)

    work: Callable[[], object] = {
        "visa query": lambda: lab.meter.query("SLOW? a,0.2", 30),
        "serial query": lambda: lab.stage.query(b"SLOW? a 0.2", 30),
        "read in a sequence": read,
        "wait for the port": lambda: lab.stage.query(b"ECHO never"),
        "publish": lambda: [context.publish("x", 1.0) for _ in range(9)],
    }[kind]
    busy: Callable[[], object] = {
        "visa query": lambda: lab.commands("meter"),
        "serial query": lambda: lab.commands("stage"),
        "read in a sequence": entered.is_set,
        "wait for the port": lambda: lab.port.statistics().lease.waiting == ("old",),
        "publish": lambda: distributor.statistics().backlog["full"] == 3,
    }[kind]
    with distributor.subscribe("full", policy="block", capacity=3):
        if kind == "wait for the port":
            async with lab.port.acquire("new"):
                thread, failure = start_thread(work)
                await wait_until(busy)
                lab.members.cancel()
                await in_thread(thread.join, 5)
        else:
            thread, failure = start_thread(work)
            await wait_until(busy)
            await trio.sleep(0.02)
            lab.members.cancel()
            await in_thread(thread.join, 5)
    assert isinstance(failure.error, DoorClosedError)
    assert isinstance(failure.error, ConnectionError)
    assert failure.error.sent == ("no" if kind == "wait for the port" else "unknown")
    assert lab.port.current_owner() is None
    async with lab.port.acquire("new", timeout=5) as guard:
        assert await guard.query(b"ECHO b") == b"b"
    assert await lab.session.query("*OPC?") == "1"
    assert "ECHO never" not in lab.commands("stage")


async def test_thread_that_was_given_up_can_take_nothing_more(lab: Lab) -> None:
    """After its member ended, every door of a thread is closed: nothing is acquired, sent or published."""
    context = ThreadContext(lab.host, DataPublisher(DataDistributor(), "old"))
    await in_thread(lab.stage.query, b"ECHO a")
    lab.members.cancel()
    await trio.testing.wait_all_tasks_blocked()

    def sequence() -> None:
        with lab.stage.exclusive():
            pytest.fail("entered")

    calls: list[Callable[[], object]] = [
        lambda: lab.stage.query(b"ECHO never"),
        sequence,
        lambda: lab.meter.query("*IDN?"),
        lambda: lab.meter.write("*RST"),
        lambda: context.publish("x", 1.0),
    ]
    for call in calls:
        with pytest.raises(DoorClosedError, match="the door of 'old' is closed"):
            await in_thread(call)
    assert lab.commands("stage") == ["ECHO a"]
    assert lab.commands("meter") == []


async def test_exception_of_the_block_outlives_a_closed_door(lab: Lab) -> None:
    """A thread whose block fails after the member ended gets its own exception, not that of the door."""
    entered, go_on = threading.Event(), threading.Event()

    def old() -> None:
        with lab.stage.exclusive():
            entered.set()
            go_on.wait(5)
            raise KeyError("mine")

    thread, failure = start_thread(old)
    await wait_until(entered.is_set)
    lab.members.cancel()
    await wait_until(lab.port.is_available)
    go_on.set()
    await in_thread(thread.join, 5)
    assert isinstance(failure.error, KeyError)


def test_door_is_closed_before_and_after_its_event_loop() -> None:
    """Without a running host, and after the program's event loop has ended, a call fails at once."""
    host = DoorHost("old")
    door = VisaDoor(host, trio.run(_make_session))
    with pytest.raises(DoorClosedError):
        door.query("*IDN?")

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(host.serve)
            nursery.cancel_scope.cancel()

    trio.run(main)
    thread, failure = start_thread(lambda: door.query("*IDN?"))
    thread.join(5)
    assert isinstance(failure.error, DoorClosedError)


async def _make_session() -> VisaSessionManager:
    return VisaSessionManager("TCPIP::127.0.0.1::1::SOCKET")
