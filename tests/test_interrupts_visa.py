"""Ctrl-C at every executed line of a VISA session: its queue, its worker, its link, transactions and the registry."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from functools import partial

import pytest
import trio
from interrupt_everywhere import Virtual, interrupt_everywhere, surviving

from trio_daq.errors import DaqError
from trio_daq.sim import Answer, MemoryInstrument, Reply
from trio_daq.visa import VisaSessionConfig, VisaSessionManager
from trio_daq.wire import Exchange, SyncQuery

MODULES = [
    f"visa/{name}.py"
    for name in (
        *("queue", "lane", "order", "link", "session", "verbs", "pending", "transaction", "registry", "statistics"),
        *("emergency", "resync", "own_talk"),
    )
] + [f"sharing/{name}.py" for name in ("interrupts", "lease", "service_nursery", "wait_graph", "alarms")]


class Mind:
    """It answers ``Q? N DELAY`` by ``re N`` after DELAY seconds, and ``ECHO? X`` by X."""

    name = "instrument"
    command_ends = reply_end = b"\n"

    def answer(self, command: bytes, now: float) -> Answer:
        if (asked := re.fullmatch(rb"Q\? (\d+) ([\d.]+)", command)) is not None:
            return Answer((Reply(b"re " + asked[1]),), float(asked[2]))
        if (echo := re.fullmatch(rb"ECHO\? (\w+)", command)) is not None:
            return Answer((Reply(echo[1]),))
        return Answer()

    def overrun(self) -> Answer:
        return Answer()


class SessionWorld(Virtual):
    """Two sessions of one instrument: commands that wait, time out and are cancelled, transactions, a reconnect."""

    resource = "TCPIP::memory::5025::SOCKET"
    resting_alarms = 1

    def __init__(self) -> None:
        super().__init__()
        self.instrument = MemoryInstrument(Mind())
        self.config = VisaSessionConfig(
            resource=self.resource,
            timeout=1.0,
            resync_timeout=0.5,
            queue_size=2,
            sync_query=SyncQuery("ECHO? {nonce}", "{nonce}") if "ASRL" in self.resource else None,
            safe_state=(Exchange(write=b"W 0"),),
        )
        self.numbers = 0
        self.sessions: list[VisaSessionManager] = []
        self.done = 0

    def new_session(self) -> VisaSessionManager:
        self.sessions.append(VisaSessionManager(self.config, make_transport=self.instrument.connect))
        return self.sessions[-1]

    async def ask(self, place, delay=0.05, **how):
        self.numbers += 1
        number = self.numbers
        reply = await place.query(f"Q? {number} {delay:g}", **how)
        if reply != f"re {number}":
            self.wrong.append(f"the reply to {number} was {reply!r}")

    # --- what tasks do ------------------------------------------------------------------------------------------------

    async def keep_asking(self, session, at, count, delay=0.05, cancel=float("inf"), **how):
        await trio.sleep(at)
        with trio.move_on_after(cancel):
            for _ in range(count):
                with contextlib.suppress(DaqError):
                    await self.ask(session, delay, **how)
        self.done += 1

    async def transact(self, session, at, hold, max_hold=None, cancel=float("inf")):
        await trio.sleep(at)
        with trio.move_on_after(cancel):
            try:
                async with session.transaction(max_hold=max_hold, timeout=5) as alone:
                    await self.ask(alone)
                    await trio.sleep(hold)
                    await self.ask(alone)
            except DaqError:
                pass
        self.done += 1

    async def submit(self, session):
        await trio.sleep(0.1)
        try:
            self.numbers += 2
            first, number = session.submit(f"W {self.numbers - 1}"), self.numbers
            await self.ask(session)
            second = session.submit(f"Q? {number} 0.1")
            first.cancel()
            with trio.move_on_after(0.01):
                await second.wait()
            if await second.wait() != f"re {number}":
                self.wrong.append("a pending reply was another's")
            await session.batch([f"W {number + 1000}", f"Q? {number + 2000} 0"])
        except DaqError:
            pass
        self.done += 1

    async def disturb(self, session):
        try:
            await trio.sleep(0.35)
            await session.reconnect()
            await trio.sleep(0.1)
            self.instrument.hang_up()
            await trio.sleep(0.3)
            await session.make_safe(0.3)
        except DaqError:
            pass
        self.done += 1

    async def visit(self):
        await trio.sleep(0.02)
        try:
            async with self.new_session() as session:
                await self.keep_asking(session, 0, 3)
        except DaqError:
            pass

    def works(self, session):
        return [
            partial(self.keep_asking, session, 0.0, 4),
            partial(self.keep_asking, session, 0.01, 3, timeout=0.02),
            partial(self.keep_asking, session, 0.0, 3, cancel=0.03, priority="urgent"),
            partial(self.keep_asking, session, 0.6, 1, delay=0.4, cancel=0.1),
            partial(self.keep_asking, session, 0.01, 2, priority="background"),
            partial(self.transact, session, 0.05, 0.1),
            partial(self.transact, session, 0.2, 9.0, max_hold=0.3),
            partial(self.transact, session, 0.2, 0.1, cancel=0.1),
            partial(self.submit, session),
            partial(self.disturb, session),
            self.visit,
        ]

    def judge(self):
        asked = Counter(text for _, text in self.instrument.received if re.match(r"Q\? |W [1-9]", text))
        if doubled := [text for text, count in asked.items() if count > 1]:
            self.wrong.append(f"sent twice: {doubled}")
        if self.instrument._connections:
            self.wrong.append(f"{len(self.instrument._connections)} connections are left")
        for session in self.sessions:
            if (link := session._link) is None:
                continue
            left = [order.texts for order in (*link.queue, *(link.exclusive or ()))]
            if left or link.lease.holder is not None or link.in_flight is not None or link.is_busy:
                self.wrong.append(f"{link.resource} is not free: {left} {link.lease.holder} {link.in_flight}")
            if session.state != "closed" or link.transport is not None:
                self.wrong.append(f"a session is still {session.state}")


class Dying(SessionWorld):
    """The session's block is in the main task, and nobody catches anything."""

    async def main(self):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.instrument.serve)
            async with self.new_session() as session, trio.open_nursery() as clients:
                for number, work in enumerate(self.works(session)):
                    clients.start_soon(work, name=f"task {number}")
                await self.keep_asking(session, 0, 2)
            nursery.cancel_scope.cancel()


class Asking(Dying):
    """The same over a line that is made clean by asking."""

    resource = "ASRL1::INSTR"


class Surviving(SessionWorld):
    """The session is served by a task of its own; the interrupt ends one task, and the others go on."""

    async def main(self):
        session = self.new_session()
        opened = trio.Event()

        class Started:
            def started(self, _):
                opened.set()

        async def serve():
            try:
                await session.serve(task_status=Started())
            finally:
                opened.set()

        async def use(work):
            await opened.wait()
            await work()

        async def end():
            await opened.wait()
            await trio.sleep(3)
            await session.close(0.5)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.instrument.serve)
            works = self.works(session)
            await surviving(self, serve, *(partial(use, work) for work in works), end)
            if self.caught and not self.ended_by_it and self.done < len(works):
                self.wrong.append(f"{len(works) - self.done} tasks did not end, though none was interrupted")
            async with self.new_session() as afterwards:
                await self.ask(afterwards)
                async with afterwards.transaction() as alone:
                    await self.ask(alone)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("world", [Dying, Asking, Surviving])
def test_session(world):
    """No command is sent twice or answered by another's reply, nothing hangs, and nothing is left."""
    interrupt_everywhere(world, MODULES, budget=50)
