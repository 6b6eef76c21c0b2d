"""What a thread has, waits for, gives up and loses, through doors to ports on real ptys."""

import os
import random
import signal
import threading
import time
import tty
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio

from trio_daq.errors import (
    AcquireTimeoutError,
    DeadlockError,
    DoorClosedError,
    ExchangeTimeoutError,
    GuardReleasedError,
    LeaseRevokedError,
    LineFeatureError,
    LockOrderError,
)
from trio_daq.legacy import DoorHost, SerialDoor
from trio_daq.legacy import host as host_module
from trio_daq.serialport import SerialPortConfig, SharedSerialPort
from trio_daq.sharing import Lease, LineKind
from trio_daq.wire import SyncQuery

pytestmark = pytest.mark.skipif(os.name != "posix", reason="ptys are POSIX")


class Instrument:
    """It answers each line with that line, and one that begins with MUTE not at all."""

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        tty.setraw(self.slave)
        os.set_blocking(self.master, False)
        self.path = os.ttyname(self.slave)
        self.lines: list[bytes] = []

    async def serve(self) -> None:
        data = b""
        while True:
            await trio.lowlevel.wait_readable(self.master)
            *lines, data = (data + os.read(self.master, 65536)).split(b"\n")
            self.lines += lines
            for line in lines:
                if not line.startswith(b"MUTE"):
                    os.write(self.master, line + b"\n")

    def close(self) -> None:
        os.close(self.master)
        os.close(self.slave)


@attrs.frozen
class Bench:
    """Two ports, and a member's doors to them."""

    host: DoorHost
    instruments: tuple[Instrument, Instrument]
    ports: tuple[SharedSerialPort, SharedSerialPort]
    doors: tuple[SerialDoor, SerialDoor]
    threads: ThreadPoolExecutor

    async def finish(self, *futures: "Future[Any]") -> list[Any]:
        """Wait for threads, and return what each returned or raised."""
        with trio.fail_after(10):
            while not all(future.done() for future in futures):  # noqa: ASYNC110 - a thread's future has no event here
                await trio.sleep(0.005)
        return [future.exception() or future.result() for future in futures]


def config(path: str, **settings: Any) -> SerialPortConfig:
    return SerialPortConfig(path=path, quiet_time=0.05, timeout=0.5, acquire_timeout=5, **settings)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    """Ports without special settings."""
    async with open_bench() as opened:
        yield opened


@pytest.fixture
async def short_bench() -> AsyncIterator[Bench]:
    """Ports that nobody may hold for more than 0.2 s."""
    async with open_bench(max_hold=0.2) as opened:
        yield opened


@asynccontextmanager
async def open_bench(**settings: Any) -> AsyncIterator[Bench]:
    instruments = Instrument(), Instrument()
    first, second = (SharedSerialPort(config(instrument.path, **settings)) for instrument in instruments)
    host = DoorHost("old")
    with ThreadPoolExecutor(4) as threads:
        async with trio.open_nursery() as nursery:
            for instrument in instruments:
                nursery.start_soon(instrument.serve)
            for port in (first, second):
                await port.recover()
            await nursery.start(host.serve)
            doors = SerialDoor(host, first), SerialDoor(host, second)
            yield Bench(host, instruments, (first, second), doors, threads)
            nursery.cancel_scope.cancel()
        for port in (first, second):
            await port.aclose()
    for instrument in instruments:
        instrument.close()


async def wait_until(condition: Callable[[], object]) -> None:
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await trio.sleep(0.005)


def grants(bench: Bench) -> list[int]:
    return [sum(port.statistics().lease.grants.values()) for port in bench.ports]


# --- whose a claim is --------------------------------------------------------------------------------------------


async def test_two_threads_in_opposite_order(bench: Bench) -> None:
    """Two threads that take two ports nested in opposite order: exactly one is refused, at once, the other served."""
    both_have_one = threading.Barrier(2, timeout=5)

    def take(first: SerialDoor, second: SerialDoor) -> bytes:
        with first.exclusive():
            both_have_one.wait()
            with second.exclusive() as sequence:
                return sequence.query(b"HELLO")

    a, b = bench.doors
    started = time.monotonic()
    results = await bench.finish(bench.threads.submit(take, a, b), bench.threads.submit(take, b, a))
    assert time.monotonic() - started < 4
    assert [type(result) for result in results].count(DeadlockError) == 1
    assert b"HELLO" in results
    (error,) = [result for result in results if isinstance(result, DeadlockError)]
    assert {resource for resource, _ in error.circle} == {a.path, b.path}


async def test_a_thread_that_asks_for_what_it_has(bench: Bench) -> None:
    """Asked for again inside its block, by the same door or by another, a port is refused to the thread at once."""

    def ask_again(door: SerialDoor) -> float:
        with bench.doors[0].exclusive():
            started = time.monotonic()
            with pytest.raises(DeadlockError, match="acquire_all"):
                door.query(b"NEVER")
            return time.monotonic() - started

    other_door = SerialDoor(bench.host, bench.ports[0])
    for door in (bench.doors[0], other_door):
        (seconds,) = await bench.finish(bench.threads.submit(ask_again, door))
        assert seconds < 2
    assert bench.instruments[0].lines == []
    assert bench.ports[0].is_available()


async def test_a_circle_of_a_thread_and_a_task(bench: Bench) -> None:
    """A task that waits for a thread's port while it has what the thread asks for: the thread is refused."""
    has_first = threading.Event()
    go_on = threading.Event()

    def old() -> bytes:
        with bench.doors[0].exclusive():
            has_first.set()
            go_on.wait(5)
            return bench.doors[1].query(b"NEVER")

    async def new() -> None:
        async with bench.ports[1].acquire("new"), bench.ports[0].acquire("new", 5):
            served.append("new")

    served: list[str] = []
    future = bench.threads.submit(old)
    await wait_until(has_first.is_set)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(new)
        await wait_until(lambda: bench.ports[0].statistics().lease.waiting)
        go_on.set()
        (error,) = await bench.finish(future)
    assert isinstance(error, DeadlockError)
    assert error.circle == ((bench.ports[1].path, "new"), (bench.ports[0].path, "old"))
    assert served == ["new"]


async def test_threads_of_one_member_are_strangers(bench: Bench) -> None:
    """That another thread of the same member has a port, or waits for one, is no circle: all wait and are served."""

    def take(*doors: SerialDoor) -> int:
        for _ in range(10):
            with doors[0].exclusive():
                if doors[1:]:
                    with doors[1].exclusive() as sequence:
                        assert sequence.query(b"HELLO") == b"HELLO"
        return 10

    a, b = bench.doors
    before = grants(bench)
    futures = [bench.threads.submit(take, *doors) for doors in [(a, b), (a, b), (b,), (a,)]]
    assert await bench.finish(*futures) == [10] * 4
    assert [after - earlier for after, earlier in zip(grants(bench), before, strict=True)] == [30, 30]


async def test_the_order_of_kinds_holds_for_a_thread(bench: Bench) -> None:
    """A thread that has a device of a higher kind is refused a serial port; another thread of the member is not."""
    camera = Lease("camera", kind=LineKind.DEVICE)
    done = trio.Event()

    async def hold_camera(granted: "Future[Any]") -> None:
        async with camera.hold("old"):
            granted.set_result(None)
            await done.wait()

    def old() -> None:
        bench.host.post("camera", hold_camera, 5)
        with pytest.raises(LockOrderError, match="camera"):
            bench.doors[0].query(b"NEVER")

    try:
        assert await bench.finish(bench.threads.submit(old)) == [None]
        thread_result: list[bytes] = []
        thread = threading.Thread(target=lambda: thread_result.append(bench.doors[0].query(b"HELLO")))
        thread.start()
        await wait_until(lambda: not thread.is_alive())
        assert thread_result == [b"HELLO"]
    finally:
        done.set()


# --- what a thread gives up --------------------------------------------------------------------------------------


def block_the_event_loop(seconds: float) -> None:
    time.sleep(seconds)


async def test_a_job_given_up_before_it_began_never_begins(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event loop that was blocked for too long does not do afterwards what a thread no longer waits for."""
    monkeypatch.setattr(host_module, "MARGIN", 0.1)
    before, go = grants(bench), threading.Event()

    def old() -> None:
        go.wait(5)
        with bench.doors[0].exclusive(timeout=0.05) as sequence:
            sequence.query(b"GHOST")

    future = bench.threads.submit(old)
    go.set()
    block_the_event_loop(0.5)
    (error,) = await bench.finish(future)
    assert isinstance(error, DoorClosedError)
    assert error.sent == "no"
    assert "its event loop has not answered for 0.15 s" in str(error)
    await trio.sleep(0.05)
    assert grants(bench) == before
    assert bench.instruments[0].lines == []
    assert bench.ports[0].is_available()


async def test_a_job_given_up_in_flight_is_cancelled(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What had begun is cancelled, the error says that the command may have arrived, and the port is let go."""
    monkeypatch.setattr(host_module, "MARGIN", 0.1)
    future = bench.threads.submit(bench.doors[0].query, b"MUTE", 0.3)
    await wait_until(lambda: bench.instruments[0].lines)
    block_the_event_loop(1.0)
    (error,) = await bench.finish(future)
    assert isinstance(error, DoorClosedError)
    assert error.sent == "unknown"
    await wait_until(bench.ports[0].is_available)
    async with bench.ports[0].acquire("new", 5) as guard:
        assert await guard.query(b"HELLO") == b"HELLO"
    assert await bench.finish(bench.threads.submit(bench.doors[0].query, b"AGAIN")) == [b"AGAIN"]


async def test_a_wait_for_the_port_that_was_given_up_is_over(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that gave up waiting for a port leaves the line, and is not granted it when it becomes free."""
    monkeypatch.setattr(host_module, "MARGIN", -29.8)
    before = grants(bench)
    async with bench.ports[0].acquire("new"):
        future = bench.threads.submit(lambda: bench.doors[0].exclusive(timeout=30).__enter__())
        await wait_until(lambda: bench.ports[0].statistics().lease.waiting == ("old",))
        (error,) = await bench.finish(future)
        assert isinstance(error, DoorClosedError)
        assert error.sent == "no"
        await wait_until(lambda: not bench.ports[0].statistics().lease.waiting)
    assert grants(bench) == [before[0] + 1, before[1]]


async def test_a_time_out_of_the_job_itself_is_told_as_such(bench: Bench) -> None:
    """Time-outs of the line and of the exchange come out as they are, not as a door that does not answer."""
    assert isinstance((await bench.finish(bench.threads.submit(bench.doors[0].query, b"MUTE", 0.05)))[0], TimeoutError)
    async with bench.ports[0].acquire("new"):
        enter = bench.doors[0].exclusive(timeout=0.05).__enter__
        (error,) = await bench.finish(bench.threads.submit(enter))
    assert isinstance(error, AcquireTimeoutError)


def test_a_thread_that_is_interrupted_gives_its_job_up() -> None:
    """Ctrl-C in a thread that waits at a door cancels what it waits for, and the port is free again."""
    ready, leave = threading.Event(), threading.Event()
    benches: list[Bench] = []

    async def main() -> None:
        async with open_bench() as opened:
            benches.append(opened)
            ready.set()
            await wait_until(lambda: opened.instruments[0].lines == [b"MUTE"])
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)  # type: ignore[arg-type]
            await wait_until(opened.ports[0].is_available)
            await trio.to_thread.run_sync(leave.wait, 5)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    other = threading.Thread(target=trio.run, args=(main,))
    try:
        other.start()
        assert ready.wait(5)
        with pytest.raises(KeyboardInterrupt):
            benches[0].doors[0].query(b"MUTE", 60)
        leave.set()
    finally:
        signal.signal(signal.SIGUSR1, before)
        other.join(10)
    assert not other.is_alive()


# --- what a thread loses -----------------------------------------------------------------------------------------


async def test_revoked_in_the_middle_of_an_exchange(bench: Bench) -> None:
    """A thread that waits for a reply when its port is taken back gets LeaseRevokedError; the next has the port."""
    future = bench.threads.submit(bench.doors[0].query, b"MUTE")
    await wait_until(lambda: bench.instruments[0].lines)
    assert bench.ports[0].revoke("test") == "old"
    async with bench.ports[0].acquire("new", 5) as guard:
        assert await guard.query(b"HELLO") == b"HELLO"
        (error,) = await bench.finish(future)
    assert isinstance(error, LeaseRevokedError)
    assert (error.owner, error.reason, error.sent) == ("old", "test", "yes")
    assert await bench.finish(bench.threads.submit(bench.doors[0].query, b"AGAIN")) == [b"AGAIN"]


async def test_revoked_between_two_calls(bench: Bench) -> None:
    """A thread that does nothing when its port is taken back learns it from its next call, which sends nothing."""
    entered, go_on = threading.Event(), threading.Event()

    def old() -> None:
        with bench.doors[0].exclusive() as sequence:
            entered.set()
            go_on.wait(5)
            for _ in range(2):
                with pytest.raises(LeaseRevokedError, match="test"):
                    sequence.query(b"NEVER")

    future = bench.threads.submit(old)
    await wait_until(entered.is_set)
    bench.ports[0].revoke("test")
    assert bench.ports[0].is_available()
    go_on.set()
    assert await bench.finish(future) == [None]
    assert bench.instruments[0].lines == []


async def test_held_for_too_long(short_bench: Bench) -> None:
    """After max_hold the port is another's; the thread learns it at its next call, or where it leaves its block."""

    def at_the_end() -> None:
        with short_bench.doors[0].exclusive():
            time.sleep(0.5)

    def in_a_call() -> None:
        with short_bench.doors[0].exclusive() as sequence:
            sequence.query(b"MUTE")

    def in_the_next_call() -> None:
        with short_bench.doors[0].exclusive() as sequence:
            time.sleep(0.5)
            sequence.query(b"NEVER")

    def with_a_failure_of_its_own() -> None:
        with short_bench.doors[0].exclusive():
            time.sleep(0.5)
            raise KeyError("mine")

    for work in (at_the_end, in_a_call, in_the_next_call):
        (error,) = await short_bench.finish(short_bench.threads.submit(work))
        assert isinstance(error, LeaseRevokedError), work
        assert "more than 0.2 s" in error.reason
    (error,) = await short_bench.finish(short_bench.threads.submit(with_a_failure_of_its_own))
    assert isinstance(error, KeyError)
    assert short_bench.ports[0].is_available()
    assert short_bench.instruments[0].lines == [b"MUTE"]
    (reply,) = await short_bench.finish(short_bench.threads.submit(short_bench.doors[1].query, b"HELLO"))
    assert reply == b"HELLO"


async def test_another_gets_the_port_while_its_old_holder_sleeps(short_bench: Bench) -> None:
    """The thread need not call, or end, for the port to go to the next in line after max_hold."""
    entered, go_on = threading.Event(), threading.Event()

    def old() -> None:
        with short_bench.doors[0].exclusive():
            entered.set()
            go_on.wait(5)

    future = short_bench.threads.submit(old)
    await wait_until(entered.is_set)
    async with short_bench.ports[0].acquire("new", 2) as guard:
        assert await guard.query(b"HELLO") == b"HELLO"
    go_on.set()
    assert isinstance((await short_bench.finish(future))[0], LeaseRevokedError)


# --- what else a guard can do ------------------------------------------------------------------------------------


async def test_stations_and_matching_replies_through_a_door() -> None:
    """A door hands the station on to `acquire`, which refuses an unknown one, and the pattern to `query`."""
    stations = {name: SyncQuery(f"{name} {{nonce}}", f"{name} {{nonce}}") for name in ("1", "2")}
    async with open_bench(stations=stations) as bench:

        def old() -> tuple[bytes, bytes]:
            with bench.doors[0].exclusive(station="1") as sequence:
                sequence.write_all(b"1 stray\n")
                first = sequence.query(b"1 wanted", match=rb"want")
            return first, bench.doors[0].query(b"2 HELLO", station="2", match=rb"^2 ")

        assert await bench.finish(bench.threads.submit(old)) == [(b"1 wanted", b"2 HELLO")]
        (error,) = await bench.finish(bench.threads.submit(bench.doors[0].query, b"3 HELLO"))
        assert isinstance(error, ValueError)
        assert "station" in str(error)


async def test_control_lines_through_a_door(bench: Bench) -> None:
    """Break, speed, and input to be discarded, work from a thread; modem lines are refused where a pty has none."""

    def old() -> bytes:
        with bench.doors[0].exclusive() as sequence:
            sequence.send_break(0.01)
            sequence.set_baud_rate(19200)
            sequence.write_all(b"HELLO\n")
            time.sleep(0.2)
            for call in (sequence.modem_lines, lambda: sequence.set_modem_lines(dtr=True)):
                with pytest.raises(LineFeatureError):
                    call()
            return sequence.discard_input()

    assert await bench.finish(bench.threads.submit(old)) == [b"HELLO\n"]
    assert bench.ports[0].baud_rate == 19200


async def test_two_threads_in_one_sequence(bench: Bench) -> None:
    """Calls of two threads in one sequence go one after another, each with its own reply."""

    def ask(sequence: Any, name: str) -> bool:
        return all(sequence.query(text) == text for text in (f"{name}{n}".encode() for n in range(20)))

    def old() -> list[bool]:
        with bench.doors[0].exclusive() as sequence:
            futures = [bench.threads.submit(ask, sequence, name) for name in "ab"]
            results = [future.result(10) for future in futures]
        with pytest.raises(GuardReleasedError):
            sequence.discard_input()
        return results

    assert await bench.finish(bench.threads.submit(old)) == [[True, True]]


async def test_a_reply_too_late_for_a_thread_is_nobodys(bench: Bench) -> None:
    """An exchange that a thread's short time-out cut off leaves the next owner a clean line."""

    def old() -> bytes:
        with bench.doors[0].exclusive() as sequence:
            with pytest.raises(ExchangeTimeoutError):
                sequence.query(b"MUTE", 0.05)
            return sequence.query(b"HELLO", 2)

    assert await bench.finish(bench.threads.submit(old)) == [b"HELLO"]


async def test_call_that_meets_the_end_of_its_member_finds_its_door_closed(bench: Bench) -> None:
    """At whatever step of a call the member ends, the thread gets DoorClosedError, and nothing that the end caused."""
    ends: list[type[BaseException]] = []
    chance = random.Random(1)

    def script(door: SerialDoor) -> None:
        while True:
            door.query(b"x")

    for _ in range(400):
        host = DoorHost("brief")
        async with trio.open_nursery() as nursery:
            await nursery.start(host.serve)
            thread = bench.threads.submit(script, SerialDoor(host, bench.ports[0]))
            await trio.sleep(chance.uniform(0.001, 0.004))
            nursery.cancel_scope.cancel()
        ends += map(type, await bench.finish(thread))
    assert set(ends) == {DoorClosedError}
