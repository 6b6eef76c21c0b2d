"""A line that real threads have without saying so: a simulated stage on a pty, judged by its own log."""

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

from trio_daq.errors import DoorClosedError, DoorInterruptedError, LockOrderError
from trio_daq.legacy import DeviceDoor, DoorHost, ImplicitLease, Job, SerialDoor
from trio_daq.serialport import LineState, SerialGuard, SerialPortConfig, SharedSerialPort
from trio_daq.sharing import SharedDevice
from trio_daq.sim import open_simulated_lab, read_log
from trio_daq.wire import SyncQuery

_T = TypeVar("_T")

LINGER = 0.4
"""Seconds."""


class Old:
    """An old library's object: it writes in one call and reads in the next."""

    def __init__(self, host: DoorHost, port: SharedSerialPort, linger: float = LINGER) -> None:
        self.lease = ImplicitLease(
            host,
            port.path,
            lambda: port.acquire(host.owner, timeout=3.0),
            lambda guard: {"write": guard.write_all, "read": guard.read_until, "query": guard.query},
            patience=3.0,
            linger=linger,
        )

    def write(self, command: bytes, *, goes_on: bool = False) -> None:
        data = command if goes_on else command + b"\r\n"
        self.lease.write(Job("write", (data,), patience=1.0), asks=b"?" in command, goes_on=goes_on)

    def read(self, timeout: float = 2.0) -> bytes:
        job = Job("read", (), {"timeout": timeout}, timeout)
        return bytes(self.lease.read(job, lambda _: "whole")).rstrip()

    def query(self, command: bytes) -> bytes:
        self.write(command)
        return self.read()


@attrs.frozen
class Lab:
    """A stage, its port, and the host of the member ``old``."""

    port: SharedSerialPort
    host: DoorHost
    old: Old
    members: trio.CancelScope
    log: Path
    old_entries: int

    def commands(self) -> list[str]:
        """Return the commands that the stage got in this test, without those that make the line clean."""
        commands = [entry.text for entry in read_log(self.log)[self.old_entries :] if entry.event == "command"]
        return [command for command in commands if not command.startswith("ECHO")]

    async def wait_for_commands(self, condition: Callable[[list[str]], bool]) -> None:
        with trio.fail_after(5):
            while not condition(self.commands()):  # noqa: ASYNC110 - the log is another process's
                await trio.sleep(0.005)

    async def ask(self, command: bytes, owner: str = "new", timeout: float = 5.0) -> bytes:
        async with self.port.acquire(owner, timeout=timeout) as guard:
            return await guard.query(command)


@attrs.frozen
class Instruments:
    """Where the simulated stage is, and its log."""

    stage: str
    log: Path


@pytest.fixture(scope="module")
def instruments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instruments]:
    """One process of simulated instruments for all tests here."""
    log = tmp_path_factory.mktemp("sim") / "log.jsonl"
    command = [sys.executable, "-m", "trio_daq.sim", "--log", str(log)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield Instruments(json.loads(process.stdout.readline())["stage"], log)


@pytest.fixture
async def lab(instruments: Instruments) -> AsyncIterator[Lab]:
    """A lab whose dirty line is clean when its sync query has been answered, however late that is."""
    config = SerialPortConfig(
        path=instruments.stage,
        write_terminator="\r\n",
        read_terminator="\r\n",
        timeout=0.3,
        quiet_time=1.0,
        sync_query=SyncQuery("ECHO {nonce}", "{nonce}"),
    )
    async with SharedSerialPort(config) as port, trio.open_nursery() as nursery:
        await port.recover()
        host, scope = DoorHost("old"), trio.CancelScope()

        async def serve(task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await host.serve(task_status=task_status)

        await nursery.start(serve)
        yield Lab(port, host, Old(host, port), scope, instruments.log, len(read_log(instruments.log)))
        scope.cancel()


async def in_thread(work: Callable[..., _T], *args: Any) -> _T:
    return await trio.to_thread.run_sync(functools.partial(work, *args), abandon_on_cancel=True)


async def test_nobody_comes_between_a_question_and_its_reply(lab: Lab) -> None:
    """Others get the line after the reply was read, however long the thread takes to read it, and soon after that."""
    asked, may_read = threading.Event(), threading.Event()

    def script() -> bytes:
        lab.old.write(b"POS? a")
        asked.set()
        may_read.wait(5)
        return lab.old.read()

    async with trio.open_nursery() as nursery:

        async def release() -> None:
            await in_thread(asked.wait, 5)
            nursery.start_soon(lab.ask, b"POS? b")
            await trio.sleep(LINGER / 2)
            assert lab.port.statistics().lease.waiting == ("new",)
            may_read.set()

        nursery.start_soon(release)
        assert await in_thread(script) == b"a 12.500"
        with trio.fail_after(0.2):
            while lab.port.current_owner() == "old":  # noqa: ASYNC110
                await trio.sleep(0.001)
    assert lab.commands()[-2:] == ["POS? a", "POS? b"]
    assert lab.port.state is LineState.CLEAN


async def test_forgotten_reply_delays_others_by_the_lease_only(lab: Lab) -> None:
    """The line comes to others after the linger and in a clean state, and the thread's next call raises nothing."""
    for number in range(2):
        slow = f"SLOW? old{number} 0.6".encode()  # it comes when others could already have the line
        await in_thread(lab.old.write, slow)
        began = time.monotonic()
        assert await lab.ask(f"POS? new{number}".encode()) == f"new{number} 12.500".encode()
        assert LINGER - 0.1 < time.monotonic() - began < LINGER + 2.0
        with pytest.raises(TimeoutError):
            await in_thread(lab.old.read, 0.1)
        assert await in_thread(lab.old.query, b"POS? again") == b"again 12.500"


async def test_thread_that_ends_after_a_question_leaves_a_clean_line(lab: Lab) -> None:
    """So does a program that dies between its write and its read."""

    def dying() -> None:
        lab.old.write(b"SLOW? dead 0.6")
        raise OSError("out of luck")

    with pytest.raises(OSError, match="out of luck"):
        await in_thread(dying)
    assert await lab.ask(b"POS? new") == b"new 12.500"


async def test_what_asks_nothing_is_given_back_soon(lab: Lab) -> None:
    """A command without a question delays nobody by more than a moment."""
    await in_thread(lab.old.write, b"SHUT 1")
    began = time.monotonic()
    assert await lab.ask(b"SHUT?") == b"1"
    assert time.monotonic() - began < LINGER / 2


async def test_a_read_tells_that_commands_are_answered(lab: Lab) -> None:
    """A reply to a command that asks nothing is read at once; after that such commands keep the line."""
    assert await in_thread(lab.old.query, b"MOVE 12.5 a") == b"a OK"
    await in_thread(lab.old.write, b"MOVE 12.5 b")
    await trio.sleep(LINGER / 2)
    assert lab.port.current_owner() == "old"
    assert await in_thread(lab.old.read) == b"b OK"


async def test_a_read_that_is_too_late_tells_nothing(lab: Lab) -> None:
    """What was asked last was a question: that no reply to it is there is no sign that commands are answered."""
    await in_thread(lab.old.write, b"POS? forgotten")
    await trio.sleep(2 * LINGER)
    with pytest.raises(TimeoutError):
        await in_thread(lab.old.read, 0.05)
    await in_thread(lab.old.write, b"SHUT 1")
    await trio.sleep(LINGER / 2)
    assert lab.port.current_owner() is None


async def test_a_read_without_a_line_takes_one(lab: Lab) -> None:
    """It waits for what may come, gives the line back, and makes the object keep it after each write."""
    with pytest.raises(TimeoutError):
        await in_thread(lab.old.read, 0.05)
    assert lab.port.current_owner() is None
    await in_thread(lab.old.write, b"SHUT 1")
    await trio.sleep(LINGER / 2)
    assert lab.port.current_owner() == "old"


async def test_a_thread_in_a_loop_lets_others_in(lab: Lab) -> None:
    """Between two exchanges of one thread comes whoever has waited for longer."""
    stop = threading.Event()
    got: list[bytes] = []

    def script() -> None:
        while not stop.is_set():
            got.append(lab.old.query(b"POS? %d" % len(got)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, script)
        for number in range(20):
            assert await lab.ask(f"ECHO {number}".encode(), timeout=2.0) == str(number).encode()
        stop.set()
    assert got == [b"%d 12.500" % number for number in range(len(got))]


async def test_a_command_in_pieces_is_one(lab: Lab) -> None:
    """While the rest of a command is still to come nobody else writes."""
    await in_thread(functools.partial(lab.old.write, b"PO", goes_on=True))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lab.ask, b"POS? b")
        await trio.sleep(0.1)
        assert await in_thread(lab.old.query, b"S? a") == b"a 12.500"
    assert lab.commands()[-2:] == ["POS? a", "POS? b"]


async def test_giving_back_with_a_reply_due_cleans_the_line(lab: Lab) -> None:
    """Others need not wait for the linger, and get no late reply."""
    await in_thread(lab.old.write, b"SLOW? late 0.4")
    began = time.monotonic()
    lab.old.lease.give_back()
    assert await lab.ask(b"POS? new") == b"new 12.500"
    assert time.monotonic() - began < 2.0
    assert b"late 12.500" in b"".join(entry.data for entry in lab.port.trace() if entry.direction == "drop")


async def test_two_lines_at_once_are_neither_refused_nor_a_deadlock(lab: Lab, tmp_path: Path) -> None:
    """Two threads that each ask one instrument, then use the other, then read: the circle ends by the linger."""
    async with open_simulated_lab(tmp_path / "other.jsonl", meter=None) as simulated:
        config = attrs.evolve(lab.port.config, path=simulated.stage_path)
        async with SharedSerialPort(config) as other_port:
            both_asked = threading.Barrier(2, timeout=5)

            def script(first: Old, second: Old) -> bytes:
                first.write(b"POS? first")
                both_asked.wait()
                return second.query(b"POS? second")

            replies: list[bytes] = []

            async def run(first: Old, second: Old) -> None:
                replies.append(await in_thread(script, first, second))

            with trio.fail_after(5):
                async with trio.open_nursery() as nursery:
                    for ports in ((lab.port, other_port), (other_port, lab.port)):
                        nursery.start_soon(run, *(Old(lab.host, port) for port in ports))
            assert replies == [b"second 12.500"] * 2


async def test_lock_order_does_not_bind_it(lab: Lab) -> None:
    """A thread that has something of a higher kind is refused a port that it asks for by name, and not this one."""
    device = DeviceDoor(lab.host, SharedDevice("camera", object()))

    def script() -> bytes:
        with device.exclusive():
            with pytest.raises(LockOrderError):
                SerialDoor(lab.host, lab.port).query(b"POS? a")
            return lab.old.query(b"POS? b")

    assert await in_thread(script) == b"b 12.500"


async def test_stop_interrupts_a_read_and_serves_the_way_out(lab: Lab) -> None:
    """The read raises within 250 ms, and what is written after it reaches the instrument."""
    notes: list[Any] = []

    def script() -> None:
        lab.old.write(b"SLOW? a 0.5")
        try:
            lab.old.read(10)
        except DoorInterruptedError:
            notes.append(time.monotonic())
            lab.old.write(b"SHUT 0")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, script)
        await lab.wait_for_commands(lambda commands: "SLOW? a 0.5" in commands)
        await trio.sleep(0.05)
        asked_at = time.monotonic()
        lab.host.interrupt()
    assert notes[0] - asked_at < 0.25
    await lab.wait_for_commands(lambda commands: commands[-1] == "SHUT 0")
    assert await lab.ask(b"SHUT?") == b"0"


async def test_reply_to_a_question_that_a_stop_interrupts_answers_no_other(lab: Lab) -> None:
    """It is written first, and then raises; what the way out asks after it gets its own reply."""
    got: list[bytes] = []

    def script() -> None:
        with pytest.raises(DoorInterruptedError):
            lab.old.write(b"POS? measured")
        got.append(lab.old.query(b"POS? left"))

    async with trio.open_nursery() as nursery, lab.port.acquire("new", timeout=1.0):
        nursery.start_soon(in_thread, script)
        await trio.sleep(0.1)
        lab.host.interrupt()
    assert [reply.split()[0] for reply in got] == [b"left"]


async def test_nothing_is_taken_after_the_end_of_the_member(lab: Lab) -> None:
    """What the member still had is given back, dirty if need be, and its calls are refused."""
    await in_thread(lab.old.write, b"SLOW? a 0.2")
    lab.members.cancel()
    assert await lab.ask(b"POS? new") == b"new 12.500"
    with pytest.raises(DoorClosedError):
        await in_thread(lab.old.read)


async def test_two_threads_of_one_object_have_one_line(lab: Lab) -> None:
    """They take it once, and their calls follow each other."""

    def script(command: bytes) -> None:
        lab.old.write(command)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(in_thread, script, f"POS? {number}".encode())
    await lab.wait_for_commands(lambda commands: len(commands) == 8)
    assert sorted(lab.commands()) == [f"POS? {number}" for number in range(8)]
    assert lab.port.statistics().lease.grants["old"] == 1


async def test_a_line_that_was_taken_back_is_taken_anew(lab: Lab) -> None:
    """The call that meets the loss may raise; the one after that works."""
    await in_thread(lab.old.write, b"POS? a")
    lab.port.revoke("the test wants it")
    guard: SerialGuard
    async with lab.port.acquire("new", timeout=5) as guard:
        assert await guard.query(b"POS? b") == b"b 12.500"
    with pytest.raises(OSError, match="the test wants it"):
        await in_thread(lab.old.read)
    assert await in_thread(lab.old.query, b"POS? c") == b"c 12.500"


async def test_a_line_that_is_held_for_too_long_is_taken_back(instruments: Instruments) -> None:
    """``max_hold`` of the port counts here too; the thread's next call takes the line anew."""
    config = SerialPortConfig(path=instruments.stage, read_terminator="\r\n", timeout=0.1, quiet_time=0.1, max_hold=0.2)
    async with SharedSerialPort(config) as port, trio.open_nursery() as nursery:
        host = DoorHost("old")
        await nursery.start(host.serve)
        old = Old(host, port, linger=10.0)
        await in_thread(old.write, b"POS? a")
        began = time.monotonic()
        async with port.acquire("new", timeout=5) as guard:
            assert await guard.query(b"POS? b") == b"b 12.500"
        assert time.monotonic() - began < 2
        with pytest.raises(TimeoutError):
            await in_thread(old.read, 0.1)
        assert await in_thread(old.query, b"POS? c") == b"c 12.500"
        nursery.cancel_scope.cancel()
