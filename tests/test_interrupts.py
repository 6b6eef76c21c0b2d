"""What Ctrl-C does under a plain `trio.run`: to user code inside of this library, and at moments of its own choice."""

from __future__ import annotations

import os
import random
import signal

import attrs
import pytest
import trio
from trio.testing import MockClock

from trio_daq.actors import Actor, Message, handles
from trio_daq.config import DualConfig, RecordingConfig, SubsystemConfig
from trio_daq.lifecycle import DualRuntimeManager, ManagerState
from trio_daq.serialport import SerialPortConfig, SharedSerialPort
from trio_daq.sharing import Lease, acquire_all, to_the_end
from trio_daq.sim import MemoryLine

STORM = int(os.environ.get("TRIO_DAQ_INTERRUPTS_STORM", "50"))
"""How many programs are interrupted at a random moment."""


@attrs.frozen
class Go(Message[None]):
    """Do it."""


class Busy(Actor):
    """Interrupts itself in the middle of code that never waits."""

    def __init__(self, where, notes):
        self.where, self.notes = where, notes
        if where == "init":
            interrupted_at_once(notes)

    async def on_start(self):
        if self.where == "on_start":
            interrupted_at_once(self.notes)

    @handles(Go)
    async def go(self, _):
        interrupted_at_once(self.notes)

    async def on_stop(self):
        if self.where == "on_stop":
            interrupted_at_once(self.notes)
        self.notes.append("on_stop")


def interrupted_at_once(notes):
    try:
        signal.raise_signal(signal.SIGINT)
        notes.append("went on")
    except KeyboardInterrupt:
        notes.append("interrupted")
        raise


@pytest.mark.parametrize("where", ["task", "handler", "init", "on_start", "on_stop", "body"])
def test_user_code_is_interrupted_at_once(where):
    """A driver or handler that never waits is interrupted where it is; the lab stops in order, and what comes out is a
    KeyboardInterrupt and no group."""
    notes = []
    config = DualConfig(v2=SubsystemConfig(), v4=SubsystemConfig(), recording=RecordingConfig(enabled=False))
    manager = DualRuntimeManager(config)

    async def neighbour(context):
        await context.wait_stopping(60)
        notes.append("neighbour was asked to stop")

    async def driver():
        interrupted_at_once(notes)

    async def main():
        async with manager:
            await manager.start()
            await manager.v2.spawn(neighbour)
            if where == "task":
                await manager.v2.spawn(driver)
            elif where == "body":
                interrupted_at_once(notes)
            else:
                ref = await manager.v4.spawn(Busy, where, notes)
                await ref.tell(Go())
            await trio.sleep(60)

    with pytest.raises(KeyboardInterrupt):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert notes[0] == "interrupted"
    assert notes[-1] == "neighbour was asked to stop"
    assert manager.state is ManagerState.STOPPED
    assert manager.report is not None
    assert not manager.report.stuck


def test_what_is_done_to_the_end_outlives_interrupts_and_cancellation():
    """Of several interrupts one is raised, after the work; the work is told of each."""
    notes = []

    async def work():
        await trio.sleep(1)
        notes.append("done")

    async def main():
        with trio.CancelScope() as scope:
            scope.cancel()
            async with trio.open_nursery() as nursery:

                async def disturb():
                    for _ in range(2):
                        with trio.CancelScope(shield=True):
                            await trio.sleep(0.1)
                        signal.raise_signal(signal.SIGINT)

                nursery.start_soon(trio.lowlevel.enable_ki_protection(disturb))
                await to_the_end(work, lambda: notes.append("told"))

    with pytest.raises(BaseExceptionGroup) as raised:
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert raised.group_contains(KeyboardInterrupt)
    assert notes == ["told", "told", "done"]


def interrupted_at_any_moment(make):
    """Return what was wrong when programs were interrupted at a random moment. ``make()`` returns three functions: what
    to do first, what to do then in several tasks, and a check."""
    chance = random.Random(1)
    bad = []

    def interrupt(_, frame):
        handler = signal.getsignal(signal.SIGINT)
        if handler is not signal.default_int_handler:  # but Trio's own, which is told the frame that was hit
            handler(signal.SIGINT, frame)

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(STORM):
            prepare, use, check = make()

            async def main(prepare=prepare, use=use):
                await prepare()
                async with trio.open_nursery() as nursery:
                    for number in range(2):
                        nursery.start_soon(use, name=f"task {number}")
                    signal.setitimer(signal.ITIMER_REAL, 0.0002 + chance.random() * 0.001)
                    await use()

            try:
                trio.run(main)
            except BaseException as error:
                rest = error.split(KeyboardInterrupt)[1] if isinstance(error, BaseExceptionGroup) else None
                if rest is not None or not isinstance(error, (KeyboardInterrupt, BaseExceptionGroup)):
                    bad.append(repr(error))
            else:
                bad.append("no KeyboardInterrupt")
            if not check():
                bad.append("it is not free")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    print(f"{len(bad)} of {STORM}", bad[:3])
    return bad


def a_lease():
    lease = Lease("it")

    async def use():
        while True:
            async with lease.hold(timeout=60):
                pass

    return trio.lowlevel.checkpoint, use, lambda: lease.holder is None and not lease._waiting


def ports(*numbers):
    config = SerialPortConfig(path="memory", quiet_time=0.01, trace=False)
    return [
        SharedSerialPort(attrs.evolve(config, path=f"memory {number}"), MemoryLine(10**6).open_stream)
        for number in numbers
    ]


def a_port():
    (port,) = ports(1)

    async def use():
        while True:
            async with port.acquire(timeout=60) as guard:
                await guard.write_only(b"hello\n")

    return port.recover, use, lambda: port.current_owner() is None


def several_ports():
    both = ports(1, 2)

    async def recover():
        for port in both:
            await port.recover()

    async def use():
        while True:
            async with acquire_all(*both, timeout=60):
                pass

    return recover, use, lambda: all(port.current_owner() is None for port in both)


@pytest.mark.parametrize("make", [a_lease, a_port, several_ports])
def test_what_is_shared_comes_free_whenever_it_is(make):
    """Not at the beginning of lines but whenever the interpreter looks: also between a block and the way out of it."""
    assert not interrupted_at_any_moment(make)


def test_interrupt_of_a_handler_comes_out_though_its_asker_failed():
    """Whoever waits for the answer gets `ActorStoppedError`; what leaves the block of the lab is the interrupt."""
    notes = []
    config = DualConfig(v4=SubsystemConfig(), recording=RecordingConfig(enabled=False))

    async def main():
        async with DualRuntimeManager(config) as manager:
            await manager.start()
            ref = await manager.v4.spawn(Busy, "handler", notes)
            await ref.ask(Go())

    with pytest.raises(KeyboardInterrupt):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert notes == ["interrupted", "on_stop"]
