"""Old pyserial code beside async owners of the same port: who waits for whom, who gets which reply, and the stop.

A simulated stage on a pty, real threads, real time; the stage's own log is the judge.
"""

import contextlib
import gc
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import serial
import trio
from old_serial_lab import Lab, in_thread, open_lab

from trio_daq.config import DualConfig, RecordingConfig, SubsystemConfig
from trio_daq.errors import DoorInterruptedError, ExchangeTimeoutError, LineLostError
from trio_daq.legacy import BlockingSerial, SerialDoor
from trio_daq.lifecycle import DualRuntimeManager
from trio_daq.serialport import LineState, SerialPortConfig
from trio_daq.sim import NO_FAULTS, FaultPlan, open_simulated_lab, read_log, replies_by_tag

EXCHANGES = int(os.environ.get("TRIO_DAQ_LEGACY_EXCHANGES", "500"))


@contextlib.asynccontextmanager
async def own_lab(log: Path, faults: FaultPlan = NO_FAULTS, **settings: Any) -> AsyncIterator[Lab]:
    """Have a stage of one's own, and a lab on it."""
    async with open_simulated_lab(log, stage=faults, meter=None) as simulated:
        assert simulated.stage_path is not None
        async with open_lab(simulated.stage_path, simulated.log, **settings) as lab:
            yield lab


class StageDriver:
    """A driver as they are written for pyserial: it takes the port that it is given, and knows nothing of us."""

    def __init__(self, port: serial.SerialBase) -> None:
        self.port = port
        self.port.timeout = 1
        self.port.reset_input_buffer()
        self.identity = self.ask("*IDN?")
        if "STAGE" not in self.identity:
            raise serial.SerialException(f"not a stage: {self.identity!r}")

    def ask(self, command: str) -> str:
        self.port.write(command.encode("ascii") + b"\r\n")
        self.port.flush()
        line = self.port.readline()
        if not line.endswith(b"\r\n"):
            raise serial.SerialException(f"no reply to {command}: {line!r}")
        return line.decode("ascii").strip()

    def move_to(self, where: float) -> None:
        if self.ask(f"MOVE {where}") != "OK":
            raise serial.SerialException("it does not move")
        ends = time.monotonic() + 5
        while self.position != where and time.monotonic() < ends:
            time.sleep(0.01)

    @property
    def position(self) -> float:
        return float(self.ask("POS?"))

    def set_shutter(self, *, is_open: bool) -> None:
        self.port.write(b"SHUT %d\r\n" % is_open)
        time.sleep(0.05)
        assert self.port.in_waiting == 0


async def test_a_driver_that_was_written_for_pyserial(tmp_path: Path) -> None:
    """It runs as it is, beside two async owners, and everybody gets their own replies."""
    async with own_lab(tmp_path / "log.jsonl") as lab, trio.open_nursery() as nursery:
        done = trio.Event()
        asked = Counter[str]()

        async def owner(name: str) -> None:
            while not done.is_set():
                assert await lab.ask(f"ECHO {name}".encode()) == name.encode()
                asked[name] += 1
                await trio.sleep(0.002)

        def script() -> Any:
            with BlockingSerial(lab.door) as port:
                stage = StageDriver(port)
                stage.set_shutter(is_open=True)
                stage.move_to(13.0)
                return stage.identity, stage.position, stage.ask("SHUT?")

        nursery.start_soon(owner, "one")
        nursery.start_soon(owner, "two")
        assert await in_thread(script) == ("TRIO_DAQ,SIMULATED STAGE,1,0.1", 13.0, "1")
        done.set()
        assert min(asked.values()) > 5


def forgets(port: BlockingSerial) -> None:
    port.write(b"SLOW? old 5.3\r\n")


def dies(port: BlockingSerial) -> None:
    port.write(b"SLOW? old 5.3\r\n")
    raise OSError("out of luck")


async def leave_a_reply(folder: Path, old: Callable[[BlockingSerial], None]) -> None:
    async with own_lab(folder / f"{old.__name__}.jsonl") as lab:
        port = BlockingSerial(lab.door)
        with contextlib.suppress(OSError):
            await in_thread(old, port)
        await trio.sleep(0.1)
        began = trio.current_time()
        assert await lab.ask(b"POS? new") == b"new 12.500"
        # 5 s, and 0.3 s until the late reply.
        assert 4.5 < trio.current_time() - began < 7.5

        def goes_on() -> Any:
            port.timeout = 0.1
            return port.readline(), port.write(b"POS? again\r\n"), port.readline()

        assert await in_thread(goes_on) == (b"", 12, b"again 12.500\r\n")
        assert b"old 12.500" in lab.dropped()


async def use_two(folder: Path) -> None:
    async with own_lab(folder / "dmm.jsonl") as dmm, own_lab(folder / "stage.jsonl") as stage:
        both_asked = threading.Barrier(2, timeout=5)

        def script(first: SerialDoor, second: SerialDoor, name: bytes, meet: Callable[[], object]) -> bytes:
            one, other = BlockingSerial(first, timeout=0.5), BlockingSerial(second, timeout=0.5)
            one.write(b"POS? %s\r\n" % name)
            meet()
            other.write(b"MOVE 12.5\r\n")
            assert other.readline() == b"OK\r\n"
            return one.readline()

        assert await in_thread(script, dmm.door, stage.door, b"alone", int) == b"alone 12.500\r\n"
        replies: list[bytes] = []

        async def run(first: Lab, second: Lab, name: bytes) -> None:
            replies.append(await in_thread(script, first.door, second.door, name, both_asked.wait))

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, dmm, stage, b"b")
            nursery.start_soon(run, stage, dmm, b"c")
        assert trio.current_time() - began < 10
        # Where two wait for each other both gave way, and their replies with it.
        assert set(replies) <= {b"b 12.500\r\n", b"c 12.500\r\n", b""}


async def test_what_is_left_unread_delays_others_by_the_lease_and_costs_no_reply(tmp_path: Path) -> None:
    """One program forgets its reply, and one dies before reading it. Each reply comes just after the lease ended: the
    next owner waits for no more than 5 s and the time that it takes to make the line clean, and gets its own reply;
    the program goes on. And ``dmm.write("READ?"); stage.move(); dmm.read()`` neither raises nor deadlocks, in one
    thread or in two that do it the other way round. (All at once, since it takes long.)"""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(leave_a_reply, tmp_path, forgets)
        nursery.start_soon(leave_a_reply, tmp_path, dies)
        nursery.start_soon(use_two, tmp_path)


async def test_a_sequence_that_nobody_cuts_into(tmp_path: Path) -> None:
    """Inside ``exclusive`` the calls of the thread belong together, those of another one wait, and old calls go on
    after it; a block that fails leaves a clean line to the next."""
    async with own_lab(tmp_path / "log.jsonl") as lab:
        port = BlockingSerial(lab.door)
        inside, go_on = threading.Event(), threading.Event()

        def sequence() -> list[bytes]:
            with port.exclusive("scan", timeout=2) as same:
                assert same is port
                assert lab.port.current_owner() == "scan"
                port.write(b"SHUT 1\r\n")
                inside.set()
                go_on.wait(5)
                port.write(b"SHUT?\r\nPOS? a\r\n")
                replies = [port.readline(), port.readline()]
                port.reset_input_buffer()
                assert port.in_waiting == 0
            port.write(b"POS? b\r\n")
            return [*replies, port.readline()]

        def other() -> bytes:
            inside.wait(5)
            port.write(b"POS? c\r\n")
            return port.readline()

        replies: dict[str, Any] = {}

        async def run(work: Callable[[], Any]) -> None:
            replies[work.__name__] = await in_thread(work)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, sequence)
            nursery.start_soon(run, other)
            await in_thread(inside.wait, 5)
            await trio.sleep(0.1)
            go_on.set()
        assert replies["sequence"][:2] == [b"1\r\n", b"a 12.500\r\n"]
        assert sorted([replies["other"], replies["sequence"][2]]) == [b"b 12.500\r\n", b"c 12.500\r\n"]
        assert lab.commands()[:3] == ["SHUT 1", "SHUT?", "POS? a"]

        def failing() -> None:
            with port.exclusive():
                port.write(b"SLOW? late 0.4\r\n")
                raise OSError("out of luck")

        with pytest.raises(OSError, match="out of luck"):
            await in_thread(failing)
        assert await lab.ask(b"POS? new") == b"new 12.500"


async def test_close_gives_up_the_line_and_leaves_the_port_open(tmp_path: Path) -> None:
    """So does the end of an object that nobody closed, in whatever thread Python ends it."""
    async with own_lab(tmp_path / "log.jsonl") as lab:

        def ask_and_close() -> None:
            with BlockingSerial(lab.door) as port:
                port.write(b"SLOW? late 0.3\r\n")

        def ask_and_vanish() -> None:
            BlockingSerial(lab.door).write(b"SLOW? late 0.3\r\n")
            gc.collect()

        for old in (ask_and_close, ask_and_vanish):
            await in_thread(old)
            began = trio.current_time()
            assert await lab.ask(b"POS? new") == b"new 12.500"
            assert trio.current_time() - began < 2.5
        assert lab.port.statistics().opens == 1
        assert lab.port.state is LineState.CLEAN


async def test_reply_that_came_and_was_thrown_away_is_not_waited_for(tmp_path: Path) -> None:
    """Who clears the input after the reply has come leaves a clean line, which the next owner gets at once."""
    async with own_lab(tmp_path / "log.jsonl", quiet_time=1.0, sync_query=None) as lab:

        def script() -> None:
            port = BlockingSerial(lab.door)
            port.write(b"POS? a\r\n")
            while port.in_waiting < len(b"a 12.500\r\n"):
                time.sleep(0.001)
            port.reset_input_buffer()

        await in_thread(script)
        with trio.fail_after(0.8):
            assert await lab.ask(b"POS? b") == b"b 12.500"


async def test_nobody_writes_into_half_a_command(tmp_path: Path) -> None:
    """A command that is written in pieces, with a pause in between, is whole when it reaches the instrument."""
    async with own_lab(tmp_path / "log.jsonl") as lab:

        def script() -> bytes:
            port = BlockingSerial(lab.door)
            port.write(b"MOVE 12.5")
            time.sleep(0.2)
            port.write(b" a\r\n")
            return port.readline()

        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def other() -> None:
                await lab.wait_for_owner("old")
                assert await lab.ask(b"POS? b") == b"b 12.500"

            assert await in_thread(script) == b"a OK\r\n"
        assert lab.commands() == ["MOVE 12.5 a", "POS? b"]


async def test_who_only_listens_lets_others_in(tmp_path: Path) -> None:
    """A thread that reads again and again what an instrument sends unasked delays an owner by one line of it."""
    async with own_lab(tmp_path / "log.jsonl", on_acquire="keep") as lab:
        ended = threading.Event()

        def script() -> int:
            port, heard = BlockingSerial(lab.door, timeout=0.1), 0
            while not ended.is_set():
                heard += port.readline() == b""
            return heard

        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, script)
            for number in range(10):
                with trio.fail_after(2):
                    assert await lab.ask(b"POS? %d" % number) == b"%d 12.500" % number
            ended.set()


async def test_unplugged_and_back_again(tmp_path: Path) -> None:
    """A device that goes away under a read is a SerialException, and the same object works when it is back."""
    link = tmp_path / "stage"
    opened = open_simulated_lab(tmp_path / "log.jsonl", meter=None, stage_link=link)
    async with opened as simulated, open_lab(str(link), simulated.log) as lab:
        port = BlockingSerial(lab.door, timeout=5)

        def ask() -> bytes:
            port.write(b"SLOW? a 0.2\r\n")
            return port.readline()

        async def unplug() -> None:
            await lab.wait_for_commands(lambda commands: commands != [])
            await simulated.unplug_stage()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(unplug)
            began = time.monotonic()
            with pytest.raises(serial.SerialException) as caught:
                await in_thread(ask)
        assert isinstance(caught.value.__cause__, LineLostError)
        assert time.monotonic() - began < 2
        await simulated.replug_stage()
        assert await in_thread(ask) == b"a 12.500\r\n"


# --- the stop --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["readline", "read", "no time limit", "sequence", "silent"])
async def test_stop_inside_a_read(tmp_path: Path, way: str) -> None:
    """Within 250 ms the thread has a SerialException with our error as its cause; what it sends after that reaches the
    instrument; and for the lab the member has ended well."""
    notes: list[Any] = []
    asked = "SHUT 1?" if way == "silent" else "SLOW? a 0.4"

    def script(door: SerialDoor) -> None:
        port = BlockingSerial(door, timeout=None if way == "no time limit" else 30)
        try:
            with port.exclusive() if way == "sequence" else contextlib.nullcontext():
                port.write(asked.encode() + b"\r\n")
                notes.append(port.read(100) if way in ("read", "silent") else port.readline())
        except serial.SerialException as error:
            notes.extend([time.monotonic(), error])
            raise
        finally:
            port.write(b"SHUT 0\r\n")

    async with open_simulated_lab(tmp_path / "log.jsonl", meter=None) as simulated:
        assert simulated.stage_path is not None
        config = SerialPortConfig(path=simulated.stage_path, read_terminator=b"\r\n", quiet_time=0.05)
        lab = DualConfig(
            serial={"stage": config}, v2=SubsystemConfig(stop_timeout=2.0), recording=RecordingConfig(enabled=False)
        )

        def commands() -> list[str]:
            return [entry.text for entry in read_log(simulated.log) if entry.event == "command"]

        async with DualRuntimeManager(lab) as manager:
            await manager.start()
            await manager.v2.spawn_thread(script, door=manager.serial["stage"], name="old")
            with trio.fail_after(5):
                while asked not in commands():  # noqa: ASYNC110 - the log is another process's
                    await trio.sleep(0.005)
            await trio.sleep(0.05)
            asked_at = time.monotonic()
            [report] = (await manager.stop_v2()).members
            told_at, error = notes
            assert told_at - asked_at < 0.25
            assert isinstance(error, serial.SerialException)
            assert isinstance(error.__cause__, DoorInterruptedError)
            assert "old" in str(error)
            assert (report.outcome, report.error, report.abandoned_threads) == ("drained", None, ())
            with trio.fail_after(2):
                while commands()[-1] != "SHUT 0":  # noqa: ASYNC110
                    await trio.sleep(0.005)


# --- many ------------------------------------------------------------------------------------------------------------


def exchange(port: BlockingSerial, way: int, tag: str, chance: random.Random) -> bytes:
    """Ask for *tag* as old programs do it, and return what was read."""
    port.write(b"POS? %s\r\n" % tag.encode())
    match way % 4:
        case 0:
            return bytes(port.readline())
        case 1:
            return bytes(port.read_until(b"\r\n"))
        case 2:
            got = b""
            while not got.endswith(b"\n") and (more := port.read(1)):
                got += more
            return got
        case _:
            ends = time.monotonic() + chance.uniform(0.0, 0.1)
            while not port.in_waiting and time.monotonic() < ends:
                time.sleep(0.002)
            return bytes(port.read(port.in_waiting))


async def test_no_reply_reaches_the_wrong_reader(tmp_path: Path) -> None:
    """Three threads of old code and three async owners, with late and missing replies, replies that are left unread,
    and cancellations: each reply that anybody has is one that the stage gave to that very question."""
    faults = FaultPlan(late_every=19, late_by=0.1, silent_every=61, split_every=23)
    got: list[tuple[str, bytes]] = []
    counts = Counter[str]()
    each = max(1, EXCHANGES // 6)

    def old(lab: Lab, name: str, seed: int) -> None:
        chance = random.Random(seed)
        port = BlockingSerial(lab.door)
        for number in range(each):
            tag = f"{name}-{number}"
            counts[name] += 1
            if chance.random() < 0.05:  # it does not want the reply after all
                port.write(b"POS? %s\r\n" % tag.encode())
                port.reset_input_buffer() if chance.random() < 0.5 else port.__exit__()
                port.is_open or port.open()
            elif reply := exchange(port, number, tag, chance):
                got.append((tag, reply))
            if chance.random() < 0.1:
                time.sleep(0.03)

    async def new(lab: Lab, name: str, seed: int) -> None:
        chance = random.Random(seed)
        for number in range(each):
            tag = f"{name}-{number}"
            counts[name] += 1
            patience = chance.choice([5.0, 5.0, 0.002, 0.05])
            with trio.move_on_after(patience), contextlib.suppress(ExchangeTimeoutError):
                async with lab.port.acquire(name, timeout=20) as guard:
                    got.append((tag, await guard.query(f"POS? {tag}".encode()) + b"\r\n"))

    async with own_lab(tmp_path / "log.jsonl", faults, timeout=0.06) as lab:
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(in_thread, old, lab, f"old{number}", number)
                nursery.start_soon(new, lab, f"new{number}", 100 + number)
        answered = replies_by_tag(read_log(lab.log))
        wrong = [
            (tag, reply)
            for tag, reply in got
            if reply.endswith(b"\n") and answered.get(tag, "").encode() + b"\r\n" != reply
        ]
        cut = [(tag, reply) for tag, reply in got if not reply.endswith(b"\n")]
    assert wrong == []
    # What was cut off by its time is a beginning of the right reply.
    assert all(answered[tag].encode().startswith(reply.rstrip(b"\r")) for tag, reply in cut)
    assert sum(counts.values()) == 6 * each
    replies = Counter(re.sub(r"\d.*", "", tag) for tag, _ in got)
    assert min(replies["old"], replies["new"]) > each  # they did have replies
    print(f"{6 * each} exchanges, {dict(replies)} replies, {len(cut)} of them cut off by their time, 0 wrong")
