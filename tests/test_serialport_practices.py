"""What experience with shared serial ports demands, each point by its name: practices, troubles, and old defects.

The lists are those of the system that this one follows: its six best practices, its troubleshooting of serial ports,
and the eight defects that were found in its serial port by running it. The points have tests of their own elsewhere;
here it is shown that none of them was forgotten, and what our answer to it is.
"""

import contextlib
import itertools
import logging
import math
import os
import re
import sys
import threading
import tty
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from trio_daq.config import DualConfig, RecordingConfig, SubsystemConfig
from trio_daq.errors import (
    AcquireTimeoutError,
    DeadlockError,
    ExchangeTimeoutError,
    GuardReleasedError,
    LeaseRevokedError,
    LineOpenError,
    PortBusyError,
)
from trio_daq.lifecycle import DualRuntimeManager
from trio_daq.serialport import LineState, SerialGuard, SerialPortConfig, SharedSerialPort
from trio_daq.sharing import acting_as
from trio_daq.sim import MemoryLine
from trio_daq.wire import SyncQuery

SYNC = SyncQuery("ECHO {nonce}", "{nonce}")

Script = Callable[[bytes], Sequence[bytes | float]]
"""What a command gives: bytes to send, seconds to wait."""


def answer(command: bytes) -> Sequence[bytes | float]:
    """``slow X`` is answered after 3 s, ``mute`` never, the rest at once."""
    if command == b"mute":
        return []
    return [3.0 if command.startswith(b"slow") else 0.0, b"re " + command + b"\n"]


class Instrument:
    """``ECHO X`` gives X; *script* says what any other command gives."""

    def __init__(self, receive: Callable[[], Awaitable[bytes]], send: Callable[[bytes], object]) -> None:
        self.asked: list[bytes] = []
        self.script: Script = answer
        self._receive = receive
        self.send = send

    async def serve(self) -> None:
        data = b""
        while True:
            data += await self._receive()
            while b"\n" in data:
                command, _, data = data.partition(b"\n")
                if command.startswith(b"ECHO "):
                    self.send(command[5:] + b"\n")
                    continue
                self.asked.append(command)
                for step in self.script(command):
                    if isinstance(step, float):
                        await trio.sleep(step)
                    else:
                        self.send(step)


@attrs.frozen
class Lab:
    """A port and the instrument at its other end."""

    port: SharedSerialPort
    instrument: Instrument


@pytest.fixture
async def lab(nursery: trio.Nursery) -> Lab:
    """A clean port to an instrument in memory, for the virtual clock."""
    return await memory_lab(nursery)


async def memory_lab(nursery: trio.Nursery, **settings: Any) -> Lab:
    line = MemoryLine()
    instrument = Instrument(line.receive, line.send)
    nursery.start_soon(instrument.serve)
    defaults = {"path": "memory", "timeout": 10.0, "sync_query": SYNC}
    lab = Lab(SharedSerialPort(SerialPortConfig(**{**defaults, **settings}), line.open_stream), instrument)
    await lab.port.recover("test")
    return lab


@attrs.frozen
class PtyLab(Lab):
    """The same on a real pty, and where that is."""

    path: str


@pytest.fixture
async def pty_lab(nursery: trio.Nursery) -> AsyncIterator[PtyLab]:
    """A clean port to an instrument on a real pty, in real time."""
    if os.name != "posix":
        pytest.skip("ptys are POSIX")
    master, client_end = os.openpty()
    tty.setraw(client_end)
    os.set_blocking(master, False)

    async def receive() -> bytes:
        await trio.lowlevel.wait_readable(master)
        return os.read(master, 65536)

    instrument = Instrument(receive, lambda data: os.write(master, data))
    path = os.ttyname(client_end)
    port = SharedSerialPort(SerialPortConfig(path=path, timeout=2.0, acquire_timeout=5.0, sync_query=SYNC))
    scope = trio.CancelScope()

    async def serve() -> None:
        with scope:
            await instrument.serve()

    nursery.start_soon(serve)
    await port.recover("test")
    yield PtyLab(port, instrument, path)
    await port.aclose()
    scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    os.close(master)
    os.close(client_end)


async def ask(port: SharedSerialPort, owner: str, command: bytes, timeout: float | None = None) -> bytes:
    async with port.acquire(owner, timeout) as guard:
        return await guard.query(command)


async def hold(port: SharedSerialPort, owner: str, seconds: float) -> None:
    async with port.acquire(owner):
        await trio.sleep(seconds)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[int], list[str]]]:
    """What our library says at one level, without the user having written a line for it."""
    with caplog.at_level(logging.DEBUG, "trio_daq"):
        yield lambda level: [record.getMessage() for record in caplog.records if record.levelno == level]


# --- best practices ----------------------------------------------------------------------------------------------


async def test_practice_1_every_wait_for_a_port_ends(
    autojump_clock: MockClock, lab: Lab, nursery: trio.Nursery
) -> None:
    """Best practice 1, a timeout for every acquire: who names none has one, of 2 s, and none can be without an end."""
    nursery.start_soon(hold, lab.port, "hog", 1000.0)
    await trio.testing.wait_all_tasks_blocked()
    began = trio.current_time()
    with pytest.raises(AcquireTimeoutError):
        await ask(lab.port, "patient", b"a")
    assert trio.current_time() - began == 2.0 == SerialPortConfig(path="x").acquire_timeout
    for endless in (math.inf, math.nan, -1.0):
        with pytest.raises(ValueError, match="timeout"):
            lab.port.acquire("patient", endless)
        with pytest.raises(ValueError, match="acquire_timeout"):
            SerialPortConfig(path="x", acquire_timeout=endless)


async def test_practice_2_the_port_can_be_given_back_early(
    autojump_clock: MockClock, lab: Lab, nursery: trio.Nursery
) -> None:
    """Best practice 2, a small scope of the guard: released by hand, the port serves the next owner while the first
    goes on with slow work in its block, and its guard can do no more harm."""
    async with lab.port.acquire("first") as guard:
        reply = await guard.query(b"a")
        guard.release()
        began = trio.current_time()
        assert await ask(lab.port, "second", b"b", timeout=0) == b"re b"
        assert trio.current_time() == began
        with pytest.raises(GuardReleasedError, match="first"):
            await guard.query(b"c")
        await trio.sleep(60)  # what is slow: a database, a network
    assert reply == b"re a"
    assert lab.instrument.asked == [b"a", b"b"]


async def test_practice_3_a_time_out_says_enough_to_go_on(
    autojump_clock: MockClock, lab: Lab, nursery: trio.Nursery
) -> None:
    """Best practice 3, time-outs handled with grace: the error is known by its type, says whose the port is and for
    how long, has sent nothing, and a second try with more patience succeeds."""
    nursery.start_soon(hold, lab.port, "v2_slow", 1.0)
    await trio.sleep(0.25)
    with pytest.raises(TimeoutError) as caught:
        await ask(lab.port, "v4_fast", b"a", timeout=0.5)
    error = caught.value
    assert isinstance(error, AcquireTimeoutError)
    assert (error.held_by, error.held_for, error.sent) == ("v2_slow", 0.75, "no")
    assert "v2_slow" in str(error)
    assert await ask(lab.port, "v4_fast", b"a", timeout=2.0) == b"re a"
    assert lab.instrument.asked == [b"a"]


async def test_practice_4_asking_for_what_one_has_is_refused(autojump_clock: MockClock, lab: Lab) -> None:
    """Best practice 4, no other wait while one holds: a helper that wants the port which its caller has, called
    directly or in a nursery, is refused at once instead of hanging; given back before, it gets it."""

    async def helper() -> bytes:
        return await ask(lab.port, "helper", b"status", timeout=5.0)

    began = trio.current_time()
    async with lab.port.acquire("caller") as guard:
        with pytest.raises(DeadlockError, match=r"helper.*caller"):
            await helper()
        with pytest.raises(ExceptionGroup) as caught:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(helper)
        assert caught.group_contains(DeadlockError, match=r"helper.*caller")
        await guard.query(b"START")
    assert trio.current_time() == began
    assert await helper() == b"re status"
    assert await ask(lab.port, "caller", b"STOP") == b"re STOP"
    assert lab.instrument.asked == [b"START", b"status", b"STOP"]


async def test_practice_5_two_tasks_of_one_name_are_noticed(
    autojump_clock: MockClock, lab: Lab, nursery: trio.Nursery, log: Callable[[int], list[str]]
) -> None:
    """Best practice 5, one stable name for each owner: two living tasks that use one name are told apart and logged
    once; a member needs no name, since its id is taken; one that comes after another's end is no second."""

    async def work(times: int) -> None:
        for _ in range(times):
            await ask(lab.port, "actor", b"a")
            await trio.sleep(0.1)

    await work(1)
    async with trio.open_nursery() as members:
        members.start_soon(work, 3)
        await trio.testing.wait_all_tasks_blocked()
        members.start_soon(work, 3)
    [warning] = [text for text in log(logging.WARNING) if "two tasks" in text]
    assert "'actor'" in warning
    for _ in range(2):  # a member, and the same member started again
        async with trio.open_nursery() as members:

            async def life() -> None:
                with acting_as("v4_stage"):
                    async with lab.port.acquire() as guard:
                        assert guard.owner == lab.port.current_owner() == "v4_stage"

            members.start_soon(life)
    assert len([text for text in log(logging.WARNING) if "two tasks" in text]) == 1


async def test_practice_6_the_way_of_a_port_is_in_the_log(
    autojump_clock: MockClock, lab: Lab, nursery: trio.Nursery, log: Callable[[int], list[str]]
) -> None:
    """Best practice 6, acquisitions are logged: who waits behind whom, gets it after which time and gives it back is
    there at DEBUG, and at WARNING who holds up others, without a line of the user's."""
    nursery.start_soon(hold, lab.port, "first", 1.5)
    await trio.testing.wait_all_tasks_blocked()
    await ask(lab.port, "second", b"a", timeout=2.0)
    told = iter(log(logging.DEBUG))
    for step in (
        r"memory: granted to first after 0\.0",
        r"memory: second .* first",  # asks, or waits, and who has it
        r"memory: released by first after 1\.5",
        r"memory: granted to second after 1\.5",
        r"memory: released by second after 0\.0",
    ):
        assert any(re.match(step, text) for text in told), f"{step} is not told, or not in this order"
    assert log(logging.WARNING) == ["memory: second has waited for half of its 2 s; first has held it for 1.000 s"]


# --- troubleshooting: "Timeout acquiring serial port" ------------------------------------------------------------


async def test_trouble_time_out_while_the_owner_is_slow(
    autojump_clock: MockClock, lab: Lab, nursery: trio.Nursery
) -> None:
    """Troubleshooting, time-out while the port is acquired, its owner slow: the diagnosis is right while it lasts, and
    tries with doubled patience come through when the owner is done."""
    nursery.start_soon(hold, lab.port, "v2_slow", 3.1)
    await trio.testing.wait_all_tasks_blocked()
    seen = []
    for patience in (0.5, 1.0, 2.0, 4.0):
        try:
            reply = await ask(lab.port, "v4_scpi_1", b"a", timeout=patience)
            break
        except AcquireTimeoutError as error:
            seen.append((error.held_by, error.held_for, lab.port.current_owner(), lab.port.is_available()))
    assert seen == [("v2_slow", after, "v2_slow", False) for after in (0.5, 1.5)]
    assert (reply, trio.current_time()) == (b"re a", 3.1)
    assert lab.port.is_available()


async def fail(guard: SerialGuard, scope: trio.CancelScope) -> None:
    raise RuntimeError("crashed")


async def be_cancelled(guard: SerialGuard, scope: trio.CancelScope) -> None:
    scope.cancel()
    await guard.query(b"never")


async def fail_in_flight(guard: SerialGuard, scope: trio.CancelScope) -> None:
    await guard.query(b"slow", timeout=0.5)


@pytest.mark.parametrize("crash", [fail, be_cancelled, fail_in_flight])
async def test_trouble_time_out_after_the_owner_crashed(
    autojump_clock: MockClock, lab: Lab, nursery: trio.Nursery, crash: Any
) -> None:
    """Troubleshooting, time-out while the port is acquired, its owner crashed: however its task ends, in the same
    instant the port is the next one's, who gets the right reply."""
    ended = trio.Event()

    async def crasher() -> None:
        with contextlib.suppress(RuntimeError, ExchangeTimeoutError), trio.CancelScope() as scope:
            async with lab.port.acquire("crasher") as guard:
                await trio.sleep(1)
                await crash(guard, scope)
        ended.set()

    nursery.start_soon(crasher)
    await trio.testing.wait_all_tasks_blocked()
    async with lab.port.acquire("next", timeout=10) as guard:
        assert lab.port.statistics().lease.longest_wait == (1.5 if crash is fail_in_flight else 1.0)
        assert ended.is_set()
        assert await guard.query(b"a") == b"re a"
    assert b"never" not in lab.instrument.asked


async def test_trouble_time_out_in_a_crowd(autojump_clock: MockClock, lab: Lab) -> None:
    """Troubleshooting, time-out while the port is acquired, too many want it: a hundred owners at once are all served,
    in the order in which they asked, and the statistics say how long they waited."""
    served: list[int] = []

    async def owner(number: int) -> None:
        async with lab.port.acquire(f"owner {number}", timeout=2.0):
            served.append(number)
            await trio.sleep(0.0078125)

    async with trio.open_nursery() as crowd:
        for number in range(100):
            crowd.start_soon(owner, number)
            await trio.testing.wait_all_tasks_blocked()
    assert served == list(range(100))
    lease = lab.port.statistics().lease
    assert (lease.timeouts, lease.longest_wait) == (0, 99 * 0.0078125)


# --- troubleshooting: "already in use by actor X" ----------------------------------------------------------------


async def test_trouble_in_use_at_once_only_if_asked_for(
    autojump_clock: MockClock, lab: Lab, nursery: trio.Nursery
) -> None:
    """Troubleshooting, the port is already in use by X, as it should be: only who asks not to wait is told so at once,
    with X and the time; all others wait for their turn."""
    nursery.start_soon(hold, lab.port, "X", 1.0)
    await trio.sleep(0.5)
    with pytest.raises(PortBusyError) as caught:
        await ask(lab.port, "hasty", b"a", timeout=0)
    assert (caught.value.held_by, caught.value.held_for, trio.current_time()) == ("X", 0.5, 0.5)
    assert "'X'" in str(caught.value)
    assert await ask(lab.port, "patient", b"a") == b"re a"


async def test_trouble_in_use_by_a_guard_that_was_kept(autojump_clock: MockClock, lab: Lab) -> None:
    """Troubleshooting, the port is already in use by X, who keeps the guard in a field: beyond its block the guard is
    dead and holds nothing."""
    fields: list[SerialGuard] = []
    async with lab.port.acquire("X") as guard:
        fields.append(guard)
    with pytest.raises(GuardReleasedError, match="X"):
        await fields[0].write_all(b"late\n")
    assert await ask(lab.port, "Y", b"a", timeout=0) == b"re a"
    assert lab.instrument.asked == [b"a"]


async def test_trouble_in_use_by_somebody_stuck(autojump_clock: MockClock, lab: Lab, nursery: trio.Nursery) -> None:
    """Troubleshooting, the port is already in use by X, who is stuck: it can be taken back, X is told when it goes on,
    and the next owner has it at once."""
    told = trio.Event()

    async def stuck() -> None:
        async with lab.port.acquire("X") as guard:
            await trio.sleep(100)
            with pytest.raises(LeaseRevokedError, match=r"X.*operator"):
                await guard.query(b"late")
        told.set()

    nursery.start_soon(stuck)
    await trio.testing.wait_all_tasks_blocked()
    assert lab.port.revoke("by the operator") == "X"
    assert await ask(lab.port, "Y", b"a", timeout=0) == b"re a"
    await told.wait()
    assert lab.instrument.asked == [b"a"]


# --- troubleshooting: "deadlock suspected" -----------------------------------------------------------------------


async def test_trouble_deadlock_is_no_matter_of_suspicion(
    autojump_clock: MockClock, lab: Lab, nursery: trio.Nursery
) -> None:
    """Troubleshooting, deadlock suspected: a program that stands still says at any moment who has which port, for how
    long, and who waits, and a circle is refused to the one who would close it, whatever their patience."""
    other = (await memory_lab(nursery, path="memory 2")).port
    waiting = trio.Event()

    async def crosswise() -> None:
        async with other.acquire("B"):
            waiting.set()
            await ask(lab.port, "B", b"b", timeout=60)

    async with lab.port.acquire("A"):
        nursery.start_soon(crosswise)
        await waiting.wait()
        await trio.sleep(1)
        lease = lab.port.statistics().lease
        assert (lease.holder, lease.held_for, lease.waiting) == ("A", 1.0, ("B",))
        with pytest.raises(DeadlockError) as caught:
            await ask(other, "A", b"a", timeout=60)
        assert trio.current_time() == 1.0
    assert caught.value.circle == (("memory 2", "B"), ("memory", "A"))


# --- defects -----------------------------------------------------------------------------------------------------


async def test_defect_1_acquire_waits_and_is_fair(autojump_clock: MockClock, lab: Lab) -> None:
    """Defect 1 of the origin, acquire does not wait, so the slowest poller starves: five contenders with 0.5 s of
    patience who hold for 10 ms all get it (there it was one), and a slow poller gets in among three hasty ones."""
    got: Counter[str] = Counter()

    async def contender(owner: str, times: int, pause: float) -> None:
        for _ in range(times):
            async with lab.port.acquire(owner, timeout=0.5):
                got[owner] += 1
                await trio.sleep(0.01)
            await trio.sleep(pause)

    async with trio.open_nursery() as contenders:
        for number in range(5):
            contenders.start_soon(contender, f"contender {number}", 1, 0.0)
    assert len(got) == 5
    async with trio.open_nursery() as pollers:
        for number in range(3):
            pollers.start_soon(contender, f"hasty {number}", 100, 0.0)
        pollers.start_soon(contender, "slow", 10, 0.1)
    assert got["slow"] == 10
    assert lab.port.statistics().lease.longest_wait < 0.05
    assert lab.port.statistics().lease.timeouts == 0


async def test_defect_2_no_observer_makes_a_port_stay_taken(nursery: trio.Nursery) -> None:
    """Defect 2 of the origin, an observer at the wrong moment leaves the port taken for ever: through 10 000 cycles of
    two owners, watched without pause by a task and by two threads, each release works."""
    port = (await memory_lab(nursery)).port
    stop, seen = threading.Event(), Counter[str | None]()
    wrong: list[BaseException] = []

    def watch() -> None:
        try:
            while not stop.is_set():
                seen[port.current_owner()] += 1
                port.is_available()
        except BaseException as error:
            wrong.append(error)

    async def watch_here() -> None:
        while True:
            lease = port.statistics().lease
            assert (lease.holder is None) == port.is_available() == (port.current_owner() is None)
            await trio.lowlevel.checkpoint()

    async def own(owner: str) -> None:
        for number in range(5000):
            async with port.acquire(owner):
                if number % 8 == 0:
                    await trio.lowlevel.checkpoint()  # so that the other waits, and the task looks

    threads = [threading.Thread(target=watch, daemon=True) for _ in range(2)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads change 500 times as often as usual
    try:
        for thread in threads:
            thread.start()
        with trio.fail_after(30):
            async with trio.open_nursery() as watching:
                watching.start_soon(watch_here)
                async with trio.open_nursery() as owners:
                    owners.start_soon(own, "a")
                    owners.start_soon(own, "b")
                watching.cancel_scope.cancel()
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.join(5)
    assert wrong == []
    assert set(seen) >= {"a", "b"}
    lease = port.statistics().lease
    assert (lease.holder, lease.waiting, lease.grants["a"], lease.grants["b"]) == (None, (), 5000, 5000)
    assert port.is_available()
    async with port.acquire("c", timeout=0):
        assert port.current_owner() == "c"


async def test_defect_3_observers_are_right_during_io(
    autojump_clock: MockClock, lab: Lab, nursery: trio.Nursery
) -> None:
    """Defect 3 of the origin, during I/O the port is neither free nor anybody's: in the middle of a query its owner,
    their time and the line behind them are right."""
    replies: list[bytes] = []

    async def owner(name: str, command: bytes) -> None:
        replies.append(await ask(lab.port, name, command, timeout=5))

    nursery.start_soon(owner, "a", b"slow")
    await trio.sleep(1)
    nursery.start_soon(owner, "b", b"x")
    await trio.sleep(1)
    lease = lab.port.statistics().lease
    assert not lab.port.is_available()
    assert lab.port.current_owner() == lease.holder == "a"
    assert (lease.held_for, lease.waiting) == (2.0, ("b",))
    await trio.sleep(2)
    assert replies == [b"re slow", b"re x"]
    assert (lab.port.is_available(), lab.port.current_owner()) == (True, None)


async def test_defect_4_an_owner_is_more_than_a_string(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """Defect 4 of the origin, an owner is any string, without bounds or checks: an empty name is refused, equal names
    do not share the port, asking twice is called what it is, and ``max_hold`` ends a hold."""
    port = (await memory_lab(nursery, max_hold=5.0)).port
    with pytest.raises(ValueError, match="owner needs a name"):
        port.acquire("  ")
    async with port.acquire("twin"):
        with pytest.raises(DeadlockError, match="twin"):
            await ask(port, "twin", b"a")
        with pytest.raises(PortBusyError):
            await ask(port, "twin", b"a", timeout=0)
    began = trio.current_time()
    with pytest.raises(LeaseRevokedError, match=r"hog.*more than 5 s"):
        await hold(port, "hog", math.inf)
    assert trio.current_time() - began == 5.0
    assert port.is_available()


async def test_defect_5_a_read_that_was_given_up_reads_no_more(pty_lab: PtyLab) -> None:
    """Defect 5 of the origin, a read that was given up goes on in a thread and eats the next reply: cancelled or out
    of time, the owner is out at once, no thread is left in a read, and the next owner gets their own reply."""
    pty_lab.instrument.script = lambda command: [0.2 if command == b"late" else 0.0, b"re " + command + b"\n"]
    threads = threading.active_count()
    for number in range(3):
        began = trio.current_time()
        with trio.move_on_after(0.05):
            await ask(pty_lab.port, "gives up", b"late")
        async with pty_lab.port.acquire("out of time") as guard:
            with pytest.raises(ExchangeTimeoutError):
                await guard.query(b"late", timeout=0.05)
        assert trio.current_time() - began < 1.5
        assert threading.active_count() <= threads
        assert await ask(pty_lab.port, "next", b"%d" % number) == b"re %d" % number


async def query(guard: SerialGuard) -> None:
    with contextlib.suppress(ExchangeTimeoutError):
        await guard.query(b"A", timeout=0.2)


async def only_write(guard: SerialGuard) -> None:
    await guard.write_all(b"A\n")


@pytest.mark.parametrize(
    ("leave", "script"),
    [
        (only_write, [0.05, b"OK\n"]),
        (query, [b"A\n", 0.05, b"re A\n"]),
        (query, [b"re A\n", b"line 2\n", 0.05, b"line 3\n"]),
        (query, [0.4, b"re A\n"]),
    ],
    ids=["OK", "echo", "lines", "late"],
)
async def test_defect_6_what_is_stale_reaches_nobody(
    pty_lab: PtyLab, leave: Callable[[SerialGuard], Awaitable[None]], script: list[bytes | float]
) -> None:
    """Defect 6 of the origin, old bytes answer new questions: after an OK that nobody read, an echo, a reply of
    several lines or a late one, the next owner's reply, and the one after that, are their own."""
    pty_lab.instrument.script = lambda command: script if command == b"A" else [b"re " + command + b"\n"]
    async with pty_lab.port.acquire("first") as guard:
        await leave(guard)
    for command in (b"B", b"C"):
        assert await ask(pty_lab.port, "next", command) == b"re " + command
    assert pty_lab.port.state is LineState.CLEAN


@pytest.mark.parametrize("terminator", [b"\n", b"\r\n", b"aab"], ids=repr)
async def test_defect_7_replies_end_where_they_end(
    nursery: trio.Nursery, autojump_clock: MockClock, terminator: bytes
) -> None:
    """Defect 7 of the origin, a chunk that does not end by the terminator is no reply, and one that holds two is one:
    however two replies are cut into chunks, in all the ways there are, two are read, byte for byte."""
    lab = await memory_lab(nursery, path=repr(terminator), read_terminator=terminator, sync_query=None, quiet_time=0.1)
    first, second = b"\xc3\xa9a" + terminator, b"\xffa" + terminator  # the middle of a letter, no letter at all
    both = first + second
    for cuts in itertools.product([False, True], repeat=len(both) - 1):
        ends = [index + 1 for index, cut in enumerate(cuts) if cut] + [len(both)]
        chunks = [both[begin:end] for begin, end in itertools.pairwise([0, *ends])]
        lab.instrument.script = lambda _, chunks=chunks: [step for chunk in chunks for step in (chunk, 0.001)]
        async with lab.port.acquire("reader") as guard:
            await guard.write_all(b"go\n")
            assert [await guard.read_until(), await guard.read_until()] == [first, second]
            await trio.sleep(0.02)
            assert guard.discard_input() == b""
    assert len(lab.instrument.asked) == 2 ** (len(both) - 1)


async def test_defect_8_no_second_handle_of_a_port(pty_lab: PtyLab, tmp_path: Path) -> None:
    """Defect 8 of the origin, two live handles of one port: a second port object, by the same path or by a link, is
    refused with who has it, and the first goes on; when that is closed, the second works."""
    link = tmp_path / "stage"
    link.symlink_to(pty_lab.path)
    for path in (pty_lab.path, str(link)):
        second = SharedSerialPort(SerialPortConfig(path=path, sync_query=SYNC))
        with pytest.raises(LineOpenError, match=r"this process .*has locked it"):
            await ask(second, "intruder", b"never")
        assert await ask(pty_lab.port, "owner", b"a") == b"re a"
    assert pty_lab.instrument.asked == [b"a", b"a"]
    await pty_lab.port.aclose()
    assert await ask(second, "heir", b"b") == b"re b"
    await second.aclose()


async def test_defect_8_looking_after_health_disturbs_nobody(pty_lab: PtyLab) -> None:
    """Defect 8 of the origin, the health check touches the port: a lab that is asked for its health a hundred times
    during a query takes nothing, sends nothing, and has one port object all the time."""
    await pty_lab.port.aclose()
    pty_lab.instrument.script = lambda command: [0.3, b"re " + command + b"\n"]
    stage = SerialPortConfig(path=pty_lab.path, sync_query=SYNC)
    config = DualConfig(serial={"stage": stage}, v2=SubsystemConfig(), recording=RecordingConfig(enabled=False))
    async with DualRuntimeManager(config) as manager:
        await manager.start()
        port = manager.serial["stage"]
        await port.recover("test")

        async def look() -> None:
            while lab_is_asked:
                assert (await manager.check_health()).healthy
                [line] = manager.snapshot().lines
                assert line.owner == "owner"
                assert manager.get_shared_serial_port(pty_lab.path) is port
                looks.append(line.held_for)
                await trio.sleep(0.002)

        lab_is_asked, looks = True, list[float]()
        grants = port.statistics().lease.grants
        async with port.acquire("owner") as guard, trio.open_nursery() as nursery:
            nursery.start_soon(look)
            assert await guard.query(b"a", timeout=2) == b"re a"
            lab_is_asked = False
        assert len(looks) > 20
        assert pty_lab.instrument.asked == [b"a"]
        after = port.statistics()
        assert Counter(after.lease.grants) - Counter(grants) == Counter({"owner": 1})
        assert (after.opens, after.stray_bytes, after.late_bytes) == (1, 0, 0)
        await manager.shutdown(5)
