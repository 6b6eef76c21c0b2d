"""Circles through real ports, by tasks and by threads of a running lab: refused with both names, and never falsely.

That the graph is right for all programs is shown on the virtual clock, with leases alone. Here are the ports, the doors
of threads, and members that fail and are started again.
"""

import contextlib
import logging
import os
import threading
import time
import tty
from collections.abc import AsyncIterator, Callable
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from trio_daq.config import DualConfig, RecordingConfig, SubsystemConfig
from trio_daq.errors import DeadlockError, LockOrderError
from trio_daq.legacy import SerialDoor
from trio_daq.lifecycle import DualRuntimeManager
from trio_daq.serialport import SerialPortConfig, SharedSerialPort
from trio_daq.sharing import Lease, LineKind
from trio_daq.wire import SyncQuery

pytestmark = pytest.mark.skipif(os.name != "posix", reason="ptys are POSIX")

PATIENCE = 8.0
"""Seconds for which everybody here is ready to wait: whoever is refused in less than one did not time out."""


class Device:
    """An instrument on a pty: ``ECHO X`` gives X, any other X ``re X``."""

    def __init__(self) -> None:
        self.master, self.client_end = os.openpty()
        tty.setraw(self.client_end)
        os.set_blocking(self.master, False)
        self.path = os.ttyname(self.client_end)
        self.asked: list[bytes] = []

    async def serve(self) -> None:
        data = b""
        while True:
            await trio.lowlevel.wait_readable(self.master)
            data += os.read(self.master, 65536)
            while b"\n" in data:
                line, _, data = data.partition(b"\n")
                if line.startswith(b"ECHO "):
                    os.write(self.master, line[5:] + b"\n")
                    continue
                self.asked.append(line)
                os.write(self.master, b"re " + line + b"\n")

    def close(self) -> None:
        os.close(self.master)
        os.close(self.client_end)


@attrs.frozen
class Lab:
    """A running lab with two ports, ``x`` and ``y``, and the instruments at their other ends."""

    manager: DualRuntimeManager
    x: SharedSerialPort
    y: SharedSerialPort
    devices: tuple[Device, Device]

    def asked(self) -> list[bytes]:
        return [command for device in self.devices for command in device.asked]


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    devices = Device(), Device()
    serial = {
        name: SerialPortConfig(path=device.path, sync_query=SyncQuery("ECHO {nonce}", "{nonce}"))
        for name, device in zip("xy", devices, strict=True)
    }
    config = DualConfig(serial=serial, v2=SubsystemConfig(), recording=RecordingConfig(enabled=False))
    async with trio.open_nursery() as nursery:
        for device in devices:
            nursery.start_soon(device.serve)
        async with DualRuntimeManager(config) as manager:
            await manager.start()
            x, y = manager.serial["x"], manager.serial["y"]
            await x.recover()
            await y.recover()
            yield Lab(manager, x, y, devices)
            await manager.shutdown(5)
        nursery.cancel_scope.cancel()
    for device in devices:
        device.close()


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for is outside of Trio
            await trio.sleep(0.005)


# --- who takes them ----------------------------------------------------------------------------------------------


@attrs.define
class Crossing:
    """Two members who each take a port, and when both have one, the other's."""

    first_taken: threading.Barrier = attrs.field(factory=lambda: threading.Barrier(2))
    refused: dict[str, DeadlockError] = attrs.field(factory=dict)
    served: list[str] = attrs.field(factory=list)

    async def task(self, name: str, mine: SharedSerialPort, other: SharedSerialPort) -> None:
        async with mine.acquire(timeout=PATIENCE) as guard:
            await trio.to_thread.run_sync(self.first_taken.wait, 5)
            try:
                async with other.acquire(timeout=PATIENCE) as guard_of_other:
                    await guard_of_other.query(name.encode())
                self.served.append(name)
            except DeadlockError as error:
                self.refused[name] = error
            await guard.query(name.encode())

    def thread(self, name: str, mine: SerialDoor, other: SerialDoor) -> None:
        with mine.exclusive(timeout=PATIENCE) as sequence:
            self.first_taken.wait(5)
            try:
                with other.exclusive(timeout=PATIENCE) as sequence_of_other:
                    sequence_of_other.query(name.encode())
                self.served.append(name)
            except DeadlockError as error:
                self.refused[name] = error
            sequence.query(name.encode())

    async def start(self, lab: Lab, kind: str, name: str, mine: SharedSerialPort, other: SharedSerialPort) -> None:
        if kind == "task":
            await lab.manager.v2.spawn(self.task, name, mine, other, name=name)
        else:
            await lab.manager.v2.spawn_thread(self.thread, name, mine, other, name=name)


@pytest.mark.parametrize("kinds", [("task", "task"), ("thread", "thread"), ("task", "thread")], ids="-".join)
async def test_two_ports_taken_crosswise(lab: Lab, kinds: tuple[str, str]) -> None:
    """Of two members who take two ports in opposite orders, the second to ask is refused at once with both ports and
    both members by name, has sent nothing, and goes on with what it has; the first gets both."""
    crossing = Crossing()
    began = trio.current_time()
    await crossing.start(lab, kinds[0], "anna", lab.x, lab.y)
    await crossing.start(lab, kinds[1], "bert", lab.y, lab.x)
    await until(lambda: len(crossing.refused) == len(crossing.served) == 1 and lab.x.is_available())
    assert trio.current_time() - began < PATIENCE / 2
    [(name, error)] = crossing.refused.items()
    assert {name, *crossing.served} == {"anna", "bert"}
    for word in ("anna", "bert", lab.x.path, lab.y.path):
        assert word in str(error)
    assert (error.wanted_by, error.sent, len(error.circle)) == (name, "no", 2)
    await until(lambda: len(lab.asked()) == 3)
    assert lab.asked().count(crossing.served[0].encode()) == 2
    assert lab.asked().count(name.encode()) == 1


# --- ports and VISA ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("contended", [False, True], ids=["free", "taken"])
async def test_a_port_after_a_visa_line_is_refused(lab: Lab, nursery: trio.Nursery, contended: bool) -> None:
    """Who has a VISA line and asks for a port is refused at once, whether the port is free or not, with both by name;
    with the VISA line given back it may have it, and a VISA line after a port is legal."""
    meter = Lease("TCPIP::dmm::INSTR", kind=LineKind.VISA)
    leave = trio.Event()

    async def other() -> None:
        async with lab.x.acquire("other"):
            await leave.wait()

    if contended:
        nursery.start_soon(other)
        await trio.testing.wait_all_tasks_blocked()
    async with meter.hold("anna"):
        began = trio.current_time()
        with pytest.raises(LockOrderError) as caught:
            async with lab.x.acquire("anna", PATIENCE):
                pass
        assert trio.current_time() - began < 1
    for word in ("anna", lab.x.path, "SERIAL", "TCPIP::dmm::INSTR", "VISA"):
        assert word in str(caught.value)
    leave.set()
    async with lab.x.acquire("anna", PATIENCE) as guard, meter.hold("anna"):
        assert await guard.query(b"a") == b"re a"
    assert lab.asked() == [b"a"]


async def test_a_port_and_a_visa_line_taken_crosswise(lab: Lab, nursery: trio.Nursery) -> None:
    """One has the port and waits for the VISA line, the other has that and asks for the port: the one whose order is
    wrong is refused, and the other gets both."""
    meter = Lease("TCPIP::dmm::INSTR", kind=LineKind.VISA)
    both = trio.Event()

    async def in_order() -> None:
        async with lab.x.acquire("anna", PATIENCE) as guard, meter.hold("anna", PATIENCE):
            assert await guard.query(b"a") == b"re a"
            both.set()

    async with meter.hold("bert"):
        nursery.start_soon(in_order)
        await until(lambda: meter.statistics().waiting == ("anna",))
        with pytest.raises(LockOrderError, match="bert"):
            async with lab.x.acquire("bert", PATIENCE):
                pass
    with trio.fail_after(2):
        await both.wait()


# --- no false alarm ----------------------------------------------------------------------------------------------


class FailedError(ConnectionError):
    """What ends a life: an operational failure, no bug, so the lab goes on."""


@attrs.frozen
class Life:
    """One life of a member: it takes `x`, then, with some patience, `y`, keeps what it got for a moment, and fails."""

    patience: float | None
    has_it: threading.Event = attrs.field(factory=threading.Event)

    async def as_task(self, x: SharedSerialPort, y: SharedSerialPort) -> None:
        second = contextlib.nullcontext() if self.patience is None else y.acquire(timeout=self.patience)
        with contextlib.suppress(TimeoutError):
            async with x.acquire(timeout=PATIENCE), second:
                self.has_it.set()
                await trio.sleep(0.05)
        raise FailedError

    def as_thread(self, x: SerialDoor, y: SerialDoor) -> None:
        second = contextlib.nullcontext() if self.patience is None else y.exclusive(timeout=self.patience)
        with contextlib.suppress(TimeoutError), x.exclusive(timeout=PATIENCE), second:
            self.has_it.set()
            time.sleep(0.05)
        raise FailedError

    async def start(self, lab: Lab, kind: str) -> Any:
        if kind == "task":
            return await lab.manager.v2.spawn(self.as_task, lab.x, lab.y, name="anna")
        return await lab.manager.v2.spawn_thread(self.as_thread, lab.x, lab.y, name="anna")


async def must_fail(member: Any) -> None:
    with trio.fail_after(5):
        await member.done.wait()
    assert isinstance(member.error, FailedError)


@pytest.mark.parametrize("kind", ["task", "thread"])
async def test_a_member_that_is_started_again_takes_its_ports_again(
    lab: Lab, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """Five times, a member has `x`, waits in vain for `y`, which bert has, and fails. Started again it has `x`, and
    bert waits for that: no circle, since its former life wants nothing any more. In its third life it gets both. It is
    never taken for two members either."""
    for _ in range(5):
        async with lab.y.acquire("bert", PATIENCE):
            in_vain = Life(patience=0.05)
            await must_fail(await in_vain.start(lab, kind))
            assert not in_vain.has_it.is_set()
            x_alone = Life(patience=None)
            member = await x_alone.start(lab, kind)
            await until(x_alone.has_it.is_set)
            assert lab.x.current_owner() == "anna"
            async with lab.x.acquire("bert", PATIENCE) as guard:
                assert await guard.query(b"b") == b"re b"
            await must_fail(member)
        both = Life(patience=PATIENCE)
        await must_fail(await both.start(lab, kind))
        assert both.has_it.is_set()
    assert lab.x.is_available()
    assert lab.y.is_available()
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [text for text in warnings if "two tasks" in text] == []


@pytest.mark.parametrize("kind", ["task", "thread"])
async def test_a_crowd_in_one_order_is_never_refused(lab: Lab, kind: str) -> None:
    """Six members who take both ports in the same order, 15 times each, all get them, however they meet."""
    finished: list[int] = []

    async def task(x: SharedSerialPort, y: SharedSerialPort, number: int) -> None:
        for _ in range(15):
            async with x.acquire(timeout=PATIENCE), y.acquire(timeout=PATIENCE) as guard:
                assert await guard.query(b"%d" % number) == b"re %d" % number
        finished.append(number)

    def thread(x: SerialDoor, y: SerialDoor, number: int) -> None:
        for _ in range(15):
            with x.exclusive(timeout=PATIENCE), y.exclusive(timeout=PATIENCE) as sequence:
                assert sequence.query(b"%d" % number) == b"re %d" % number
        finished.append(number)

    for number in range(6):
        if kind == "task":
            await lab.manager.v2.spawn(task, lab.x, lab.y, number, name=f"member {number}")
        else:
            await lab.manager.v2.spawn_thread(thread, lab.x, lab.y, number, name=f"member {number}")
    await until(lambda: len(finished) == 6, 15)
    assert await lab.manager.check_health()
