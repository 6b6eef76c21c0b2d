"""Ctrl-C at every executed line of a shared serial port."""

from __future__ import annotations

import contextlib
import re
from functools import partial

import pytest
import trio
from interrupt_everywhere import Virtual, interrupt_everywhere, surviving

from trio_daq.errors import DaqError
from trio_daq.serialport import SerialPortConfig, SharedSerialPort
from trio_daq.sharing import acquire_all
from trio_daq.sim import MemoryLine
from trio_daq.wire import Exchange, SyncQuery

MODULES = [
    f"serialport/{name}.py"
    for name in ("port", "line", "guard", "owned_line", "recovery", "emergency", "keeper", "greeting", "modem")
] + [f"sharing/{name}.py" for name in ("interrupts", "lease", "several", "alarms", "bell")]


class PortWorld(Virtual):
    """Tasks that query, time out, leave half way, lose the port and make it safe."""

    resting_alarms = 2

    def __init__(self) -> None:
        super().__init__()
        self.line = MemoryLine()
        self.asked: list[str] = []
        config = SerialPortConfig(
            path="memory",
            timeout=1.0,
            quiet_time=0.1,
            sync_query=SyncQuery("ECHO {nonce}", "{nonce}"),
            safe_state=(Exchange(write=b"SHUT"),),
            max_hold=2.0,
        )
        self.port = SharedSerialPort(config, self.line.open_stream)
        self.numbers = 0
        self.done = 0

    async def serve(self):
        """Be the instrument: it answers ``Q N DELAY`` by ``re N``."""
        data = b""
        while True:
            data += await self.line.receive()
            while b"\n" in data:
                command, _, data = data.partition(b"\n")
                text = command.decode()
                self.asked.append(text)
                if understood := re.fullmatch(r"(?:.*)Q (\d+) ([\d.]+)", text):
                    await trio.sleep(float(understood[2]))
                    self.line.send(f"re {understood[1]}\n".encode())
                elif text.startswith("ECHO "):
                    self.line.send(command[5:] + b"\n")

    async def ask(self, guard, delay=0.02, **how):
        self.numbers += 1
        number = self.numbers
        reply = await guard.query(f"Q {number} {delay:g}".encode(), **how)
        if reply != f"re {number}".encode():
            self.wrong.append(f"the reply to {number} was {reply!r}")

    async def use(self, at, count=2, delay=0.02, hold=0.0, cancel=float("inf"), **how):
        await trio.sleep(at)
        with trio.move_on_after(cancel), contextlib.suppress(DaqError):
            async with self.port.acquire(timeout=5) as guard:
                for _ in range(count):
                    await self.ask(guard, delay, **how)
                await trio.sleep(hold)
                guard.discard_input()
                await guard.set_modem_lines(dtr=True)
        self.done += 1

    async def use_all(self):
        await trio.sleep(0.3)
        with contextlib.suppress(DaqError):
            async with acquire_all(self.port, timeout=5) as (guard,):
                await self.ask(guard)
        self.done += 1

    async def disturb(self):
        with contextlib.suppress(DaqError):
            await trio.sleep(0.5)
            self.port.revoke("the test says so")
            await self.port.recover(timeout=3)
            await self.port.make_safe(0.5)
            self.line.unplug()
            try:
                await trio.sleep(0.1)
            finally:
                self.line.plug()
        self.done += 1

    def works(self):
        return [
            partial(self.use, 0.0),
            partial(self.use, 0.0, 1, 0.3, timeout=0.1),
            partial(self.use, 0.1, 1, 0.3, cancel=0.2),
            partial(self.use, 0.1, 1, hold=0.4),
            partial(self.use, 0.2, 1, hold=9.0),
            partial(self.use, 0.3, 1, cancel=0.01),
            partial(self.use, 0.9, 2),
            self.use_all,
            self.disturb,
        ]

    def judge(self):
        lease = self.port._lease
        if lease.holder is not None or lease._waiting or lease._limiter.borrowed_tokens:
            self.wrong.append(f"the port is not free: {lease.holder}, {[claim.owner for claim in lease._waiting]}")
        if self.line._stream is not None:
            self.wrong.append("the line is still open")
        asked = [text for text in self.asked if text.startswith("Q")]
        if len(asked) != len(set(asked)):
            self.wrong.append("a command was sent twice")
        if asked and "SHUT" not in self.asked[-1] and "SHUT" not in self.line._to_instrument.decode():
            self.wrong.append(f"the last words were {self.asked[-2:]}")


class Dying(PortWorld):
    """Nobody catches it."""

    async def main(self):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.serve)
            async with self.port, trio.open_nursery() as keeping, trio.open_nursery() as clients:
                keeping.start_soon(self.port.keep)
                for number, work in enumerate(self.works()):
                    clients.start_soon(work, name=f"task {number}")
                await self.use(0, 2)
                with trio.move_on_after(4):
                    await trio.sleep(5)
                keeping.cancel_scope.cancel()
            await trio.sleep(0.1)
            nursery.cancel_scope.cancel()


class Surviving(PortWorld):
    """It ends one task, and the others go on."""

    async def main(self):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.serve)
            await surviving(self, *self.works())
            if self.caught and not self.ended_by_it and self.done < len(self.works()):
                self.wrong.append("a task did not end, though none was interrupted")
            try:
                async with self.port, self.port.acquire(timeout=5) as guard:
                    await self.ask(guard)
            except KeyboardInterrupt:
                self.caught += 1
            await trio.sleep(0.1)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("world", [Dying, Surviving])
def test_port(world):
    """The port comes free, no reply reaches another, and the safe state is the last that the instrument hears."""
    interrupt_everywhere(world, MODULES, budget=50)
