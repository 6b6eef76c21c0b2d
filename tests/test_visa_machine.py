"""A VISA session under everything at once, on the virtual clock: owners, transactions, faults, cancellations.

The oracles are the test's own: who asked when and how it ended, and what reached the instrument in which order.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trio_daq.errors import (
    CommandTimeoutError,
    DaqError,
    DeadlockError,
    LineLostError,
    SessionClosedError,
)
from trio_daq.sharing.wait_graph import _waiting
from trio_daq.sim import Answer, MemoryInstrument, Reply
from trio_daq.testing import CancelAtStep, TrioDriver
from trio_daq.visa import PendingReply, Transaction, VisaSessionConfig, VisaSessionManager
from trio_daq.wire import SyncQuery

MORE = int(os.environ.get("HYPOTHESIS", "1"))
"""How many times more examples than usual."""

RESOURCES = {
    "reopening": "TCPIP::memory::5025::SOCKET",
    "clearing": "TCPIP::memory::INSTR",
    "asking": "ASRL1::INSTR",
}
SOMEBODYS = re.compile(r"(Q\?|MUTE\?) \d+ [\d.]+|W \d+")
PRIORITIES = ["urgent", "normal", "background"]
MOST_BYPASSES = 8
LONGEST_TIMEOUT = 20.0


def config_for(kind: str) -> VisaSessionConfig:
    return VisaSessionConfig(
        resource=RESOURCES[kind],
        timeout=1.0,
        resync_timeout=1.0,
        queue_size=4,
        sync_query=SyncQuery("ECHO? {nonce}", "{nonce}") if kind == "asking" else None,
    )


class Mind:
    """It answers ``Q? N DELAY`` by ``re N`` after DELAY seconds, ``W N`` and ``MUTE? N`` not, ``ECHO? X`` by X."""

    name = "instrument"
    command_ends = reply_end = b"\n"

    def answer(self, command: bytes, now: float) -> Answer:
        if (asked := re.fullmatch(rb"Q\? (\d+) ([\d.]+)", command)) is not None:
            return Answer((Reply(b"re " + asked[1]),), float(asked[2]))
        if (echo := re.fullmatch(rb"ECHO\? (\w+)", command)) is not None:
            return Answer((Reply(echo[1]),))
        return Answer()  # also for half a command with another one behind it

    def overrun(self) -> Answer:
        return Answer()


Moment = tuple[float, int]
"""How many commands the instrument had received, and a number that tells moments apart between which none came."""


@attrs.define(eq=False)
class Order:
    """What somebody wanted, and what the test knows of it."""

    owner: str
    texts: list[str]
    expected: list[str]
    asked: Moment
    priority: str = "normal"
    number: int = 0
    inside: Hold | None = None
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    ends: list[str] = attrs.field(factory=list)
    """``reply``, ``cancelled``, or the name of an error: one of them, when it has ended."""
    sent: str = "yes"
    ended: Moment = (0, 0)
    left: float = math.inf
    """When it had ended, in Trio's time."""
    was_put: bool = False
    pending: PendingReply | None = None


@attrs.define(eq=False)
class Hold:
    """One transaction."""

    owner: str
    priority: str
    asked: Moment
    number: int
    session: VisaSessionManager
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    orders: Any = None
    to_holder: Any = None
    began: Moment | None = None
    ended: Moment = (0, 0)
    left: float = math.inf
    """When it had ended, in Trio's time."""
    left_at: int | None = None
    is_leaving: bool = False
    is_gone: bool = False
    end: str = ""


class VisaMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        _waiting.clear()  # what an example that failed has left is not this one's
        self.driver = TrioDriver()
        self.driver.__enter__()
        self.instrument = MemoryInstrument(Mind())
        self.driver.start(self.instrument.serve)
        self.sessions: list[tuple[VisaSessionManager, trio.Event]] = []
        self.orders: list[Order] = []
        self.holds: list[Hold] = []
        self.numbers = self.moment = 0
        self.errors: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.said: list[str] = []
        self.handler = logging.Handler(logging.ERROR)
        self.handler.emit = lambda record: self.said.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("trio_daq").addHandler(self.handler)

    @initialize(kind=st.sampled_from(sorted(RESOURCES)))
    def open_first(self, kind: str) -> None:
        self.config = config_for(kind)
        self.driver.start(self.live)
        self.driver.advance(0.1)
        assert len(self.sessions) == 1

    # --- what is known -----------------------------------------------------------------------------------------------

    def received(self) -> list[str]:
        """The commands that reached the instrument and were somebody's."""
        return [text for _, text in self.instrument.received if SOMEBODYS.fullmatch(text)]

    def now(self) -> Moment:
        self.moment += 1
        return len(self.received()), self.moment

    def make(self, kinds: list[str], delay: float, owner: str, **more: Any) -> Order:
        texts, expected = [], []
        for kind in kinds:
            self.numbers += 1
            texts.append(f"W {self.numbers}" if kind == "W" else f"{kind} {self.numbers} {delay:g}")
            expected.append("" if kind == "W" else f"re {self.numbers}")
        order = Order(owner, texts, expected, self.now(), number=self.numbers, **more)
        self.orders.append(order)
        return order

    def note_end(self, order: Order, how: str, sent: str = "yes") -> None:
        order.ends.append(how)
        order.sent = sent
        order.ended, order.left = self.now(), trio.current_time()

    def living(self) -> list[Order]:
        return [order for order in self.orders if not order.ends and order.inside is None]

    def inside(self) -> list[Hold]:
        return [hold for hold in self.holds if hold.began is not None and not hold.is_gone and not hold.is_leaving]

    def session(self, which: int) -> VisaSessionManager:
        return self.sessions[which % len(self.sessions)][0]

    # --- what tasks do -----------------------------------------------------------------------------------------------

    async def live(self) -> None:
        session, leave = VisaSessionManager(self.config, make_transport=self.instrument.connect), trio.Event()
        try:
            async with session:
                self.sessions.append((session, leave))
                await leave.wait()
                began = trio.current_time()
                await session.close(0.5)
                # Two seconds for what may hang; or the other session's command, which this one's worker finishes.
                if trio.current_time() - began > max(0.5 + 2, LONGEST_TIMEOUT) + 1e-6:
                    self.wrong.append(f"close(0.5) took {trio.current_time() - began} s")
        except DaqError as error:
            self.errors[type(error).__name__] += 1

    async def carry_out(
        self, order: Order, work: Callable[[], Awaitable[list[str]]], session: VisaSessionManager, timeout: float
    ) -> None:
        began = trio.current_time()
        try:
            with order.scope:
                replies = await work()
                self.note_end(order, "reply")
                if replies != order.expected:
                    self.wrong.append(f"{order.texts} was answered by {replies}")
        except DaqError as error:
            self.note_error(order, error)
            if isinstance(error, SessionClosedError) and session in [open_one for open_one, _ in self.sessions]:
                self.wrong.append(f"{order.texts}: {error}, and its session is open")
        if not order.ends:
            self.note_end(order, "cancelled", "unknown")
        if trio.current_time() - began > timeout + 1e-6:
            self.wrong.append(f"{order.texts} took {trio.current_time() - began} s of {timeout}")

    def note_error(self, order: Order, error: DaqError) -> None:
        name = type(error).__name__
        self.errors[name] += 1
        if isinstance(error, CommandTimeoutError) and error.phase == "place":
            everybody: list[Any] = [*self.orders, *self.holds]
            before = [
                other
                for other in everybody
                if other.priority == order.priority and getattr(other, "inside", None) is order.inside
            ]
            there = [other for other in before if other.asked < order.asked and other.left >= trio.current_time()]
            if len(there) < self.config.queue_size:
                self.wrong.append(f"{order.texts} waited for a place, and {len(there)} orders were there")
        self.note_end(order, name, getattr(error, "sent", "yes"))

    async def hold(self, hold: Hold, timeout: float, max_hold: float | None) -> None:
        try:
            with hold.scope:
                async with hold.session.transaction(hold.owner, timeout, max_hold) as transaction:
                    hold.began = self.now()
                    end = trio.current_time() + (max_hold or 1e9)
                    try:
                        async for work in hold.orders:
                            await work(transaction)
                    finally:
                        at_the_end = [
                            1 for time, text in self.instrument.received if time < end and SOMEBODYS.fullmatch(text)
                        ]
                        hold.left_at = len(at_the_end)
        except DaqError as error:
            self.errors[type(error).__name__] += 1
            hold.end = type(error).__name__
        hold.end = hold.end or "ended"
        hold.ended, hold.left = self.now(), trio.current_time()
        hold.is_gone = True

    async def ask_inside(self, order: Order, transaction: Transaction, timeout: float) -> None:
        async def work() -> list[str]:
            if len(order.texts) > 1:
                return await transaction.batch(order.texts, timeout)
            return [await transaction.enqueue_command(order.texts[0], timeout)]

        assert order.inside is not None
        await self.carry_out(order, work, order.inside.session, timeout)

    # --- rules: asking -----------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.living()) < 40)
    @rule(
        count=st.sampled_from([1, 1, 1, 2, 5, 12]),
        kind=st.sampled_from(["Q?", "Q?", "Q?", "W", "MUTE?"]),
        delay=st.sampled_from([0.0, 0.05, 0.3, 2.0]),
        timeout=st.sampled_from([0.0, 0.2, 1.0, 3.0, 20.0]),
        priority=st.sampled_from(PRIORITIES),
        which=st.integers(0, 1),
    )
    def ask(self, count: int, kind: str, delay: float, timeout: float, priority: str, which: int) -> None:
        session = self.session(which)
        for _ in range(count):
            self.numbers += 1
            order = self.make([kind], delay, f"owner {self.numbers % 3}", priority=priority)

            async def work(order: Order = order) -> list[str]:
                order.was_put = True
                return [await session.enqueue_command(order.texts[0], timeout, order.owner, priority)]  # type: ignore[arg-type]

            self.driver.start(self.carry_out, order, work, session, timeout)

    @rule(
        kinds=st.lists(st.sampled_from(["Q?", "W"]), min_size=2, max_size=3),
        delay=st.sampled_from([0.0, 0.1]),
        timeout=st.sampled_from([0.15, 3.0]),
        which=st.integers(0, 1),
    )
    def ask_a_batch(self, kinds: list[str], delay: float, timeout: float, which: int) -> None:
        session, order = self.session(which), self.make(kinds, delay, "batch")

        async def work() -> list[str]:
            order.was_put = True
            return await session.batch(order.texts, timeout, order.owner)

        self.driver.start(self.carry_out, order, work, session, timeout)

    @rule(
        delay=st.sampled_from([0.0, 0.3]),
        timeout=st.sampled_from([0.2, 3.0]),
        priority=st.sampled_from(PRIORITIES),
        which=st.integers(0, 1),
    )
    def submit(self, delay: float, timeout: float, priority: str, which: int) -> None:
        session, order = self.session(which), self.make(["Q?"], delay, "submitter", priority=priority)
        try:
            order.pending = self.driver.call(session.submit, order.texts[0], timeout, order.owner, priority)
        except DaqError as error:  # QueueFullError among them
            self.driver.call(self.note_error, order, error)
            return
        self.driver.settle()

    @precondition(lambda self: any(order.pending for order in self.living()))
    @rule(which=st.integers(0, 99), twice=st.booleans())
    def wait_for_submitted(self, which: int, twice: bool) -> None:
        orders = [order for order in self.living() if order.pending]
        order = orders[which % len(orders)]
        if not order.was_put:
            order.was_put = True
            self.driver.start(self.await_pending, order)
        elif twice and not order.pending.is_done():  # type: ignore[union-attr]
            with pytest.raises(trio.BusyResourceError):
                self.driver.run(order.pending.wait)  # type: ignore[union-attr]

    async def await_pending(self, order: Order) -> None:
        assert order.pending is not None
        pending = order.pending

        async def work() -> list[str]:
            try:
                return [await pending.wait()]
            except trio.Cancelled:
                order.was_put = False  # only the wait has ended
                raise

        with order.scope:
            try:
                replies = await work()
            except DaqError as error:
                self.note_error(order, error)
            else:
                self.note_end(order, "reply")
                if replies != order.expected:
                    self.wrong.append(f"{order.texts} was answered by {replies}")
        order.scope = trio.CancelScope()

    @precondition(lambda self: any(order.pending for order in self.living()))
    @rule(which=st.integers(0, 99))
    def cancel_submitted(self, which: int) -> None:
        orders = [order for order in self.living() if order.pending]
        order = orders[which % len(orders)]
        self.note_cancel(order)
        self.driver.call(order.pending.cancel)  # type: ignore[union-attr]
        self.driver.settle()

    @precondition(lambda self: self.living())
    @rule(which=st.integers(0, 99))
    def cancel(self, which: int) -> None:
        orders = self.living()
        order = orders[which % len(orders)]
        if order.pending is None:
            self.note_cancel(order)
        elif not order.was_put:  # nobody waits for it
            return
        self.driver.call(order.scope.cancel)
        self.driver.settle()

    never: set[str] = frozenset()  # type: ignore[assignment]
    writing_until = -1.0
    """When a write that was begun before the instrument's mood changed has ended."""

    def note_cancel(self, order: Order) -> None:
        """What the instrument has not begun to receive when its caller leaves must never come."""
        is_writing = self.driver.call(trio.current_time) <= self.writing_until or self.instrument.write_time
        if not is_writing and not set(order.texts) & set(self.received()):
            self.never = self.never | set(order.texts)

    # --- rules: transactions -----------------------------------------------------------------------------------------

    @precondition(lambda self: sum(not hold.is_gone for hold in self.holds) < 14)
    @rule(
        count=st.sampled_from([1, 1, 12]),
        timeout=st.sampled_from([0.3, 3.0, 20.0]),
        max_hold=st.sampled_from([None, None, 0.5]),
        which=st.integers(0, 1),
    )
    def begin(self, count: int, timeout: float, max_hold: float | None, which: int) -> None:
        for _ in range(count):
            self.numbers += 1
            hold = Hold(f"holder {self.numbers}", "normal", self.now(), self.numbers, self.session(which))
            hold.to_holder, hold.orders = trio.open_memory_channel[Any](100)
            self.holds.append(hold)
            if count > 1:  # one command each
                self.tell(hold, self.make(["Q?"], 0.0, hold.owner, inside=hold), 1.0)
                self.driver.call(hold.to_holder.close)
                hold.is_leaving = True
            self.driver.start(self.hold, hold, timeout, max_hold)

    @precondition(lambda self: self.inside())
    @rule(
        kinds=st.lists(st.sampled_from(["Q?", "W"]), min_size=1, max_size=2),
        delay=st.sampled_from([0.0, 0.2, 2.0]),
        timeout=st.sampled_from([0.1, 1.0, 5.0]),
    )
    def ask_in_transaction(self, kinds: list[str], delay: float, timeout: float) -> None:
        hold = self.inside()[0]
        self.tell(hold, self.make(kinds, delay, hold.owner, inside=hold), timeout)
        self.driver.settle()

    def tell(self, hold: Hold, order: Order, timeout: float) -> None:
        async def work(transaction: Transaction) -> None:
            order.was_put = True
            await self.ask_inside(order, transaction, timeout)

        self.driver.call(hold.to_holder.send_nowait, work)

    @precondition(lambda self: self.inside())
    @rule()
    def go_round_ones_own_transaction(self) -> None:
        hold, order = self.inside()[0], self.make(["Q?"], 0.0, "deadlock")

        async def work(_: Transaction) -> None:
            try:
                with order.scope:
                    await self.session(0).query(order.texts[0], 5)
            except (DeadlockError, SessionClosedError) as error:
                self.note_error(order, error)
            else:
                self.note_end(order, "cancelled", "no")

        self.driver.call(hold.to_holder.send_nowait, work)
        self.driver.settle()

    @precondition(lambda self: self.inside())
    @rule()
    def leave_transaction(self) -> None:
        self.inside()[0].is_leaving = True
        hold = next(hold for hold in self.holds if hold.is_leaving and not hold.is_gone)
        self.driver.call(self.holds[self.holds.index(hold)].to_holder.close)
        self.driver.settle()

    @precondition(lambda self: any(not hold.is_gone for hold in self.holds))
    @rule(which=st.integers(0, 99))
    def cancel_transaction(self, which: int) -> None:
        holds = [hold for hold in self.holds if not hold.is_gone]
        self.driver.call(holds[which % len(holds)].scope.cancel)
        self.driver.settle()

    # --- rules: the world --------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.01, 0.1, 0.6, 2.5]))
    def wait(self, seconds: float) -> None:
        self.driver.advance(seconds)

    @rule(silent=st.booleans(), slow_by=st.sampled_from([0.0, 0.0, 0.5]), write_time=st.sampled_from([0.0, 0.0, 0.3]))
    def change_mood(self, silent: bool, slow_by: float, write_time: float) -> None:
        self.instrument.is_silent, self.instrument.slow_by = silent and slow_by == 0, slow_by
        self.writing_until = self.driver.call(trio.current_time) + self.instrument.write_time
        self.instrument.write_time = write_time

    @rule(refusing=st.booleans())
    def hang_up(self, refusing: bool) -> None:
        self.instrument.is_refusing = refusing
        self.driver.call(self.instrument.hang_up)
        self.driver.settle()

    @rule()
    def accept(self) -> None:
        self.instrument.is_refusing = False

    @rule()
    def speak_unasked(self) -> None:
        # Not into an exchange: nothing in such a reply would tell that it is no reply.
        if self.driver.call(self.sessions[0][0].statistics).in_flight is None:
            self.driver.call(self.instrument.send_unasked, b"HELLO\n")

    @rule(timeout=st.sampled_from([0.0, 0.5, 3.0]), which=st.integers(0, 1))
    def reconnect(self, timeout: float, which: int) -> None:
        session = self.session(which)

        async def work() -> None:
            began = trio.current_time()
            try:
                await session.reconnect(timeout)
            except DaqError as error:
                self.errors[type(error).__name__] += 1
                if isinstance(error, SessionClosedError) and session in [open_one for open_one, _ in self.sessions]:
                    self.wrong.append(f"reconnect: {error}, and its session is open")
            if trio.current_time() - began > timeout + 1e-6:
                self.wrong.append(f"reconnect took {trio.current_time() - began} s of {timeout}")

        self.driver.start(work)

    @precondition(lambda self: len(self.sessions) < 2)
    @rule()
    def open_another(self) -> None:
        self.driver.start(self.live)

    @precondition(lambda self: len(self.sessions) == 2)
    @rule(which=st.integers(0, 1))
    def close_one(self, which: int) -> None:
        _, leave = self.sessions.pop(which)
        self.driver.call(leave.set)
        self.driver.settle()

    # --- what always holds -------------------------------------------------------------------------------------------

    @invariant()
    def nothing_went_wrong(self) -> None:
        assert not self.wrong, self.wrong
        assert not self.said, self.said

    @invariant()
    def each_command_comes_once_and_none_that_was_not_sent(self) -> None:
        received = self.received()
        assert len(set(received)) == len(received)
        came = set(received)
        assert not came & self.never
        for order in self.orders:
            assert len(order.ends) <= 1
            if order.ends and order.sent == "no":
                assert not came & set(order.texts), (order, "it was not to be sent")
            if order.ends == ["reply"]:
                assert came >= set(order.texts)

    @invariant()
    def what_belongs_together_is_not_cut_into(self) -> None:
        received = self.received()
        at = {text: index for index, text in enumerate(received)}
        for order in self.orders:
            places = [at[text] for text in order.texts if text in at]
            assert places == list(range(places[0], places[0] + len(places))) if places else True, (order, received)
        for hold in self.holds:
            if hold.began is not None:
                mine = {text for order in self.orders if order.inside is hold for text in order.texts}
                during = received[int(hold.began[0]) : hold.left_at]
                assert set(during) <= mine, (hold, received)

    def moments(self) -> dict[int, Moment]:
        """When each order came to the instrument, and when each transaction began."""
        at = {text: index for index, text in enumerate(self.received())}
        came = {order.number: (at[order.texts[0]] + 0.5, 0) for order in self.orders if order.texts[0] in at}
        return came | {hold.number: hold.began for hold in self.holds if hold.began is not None}

    def check_order_and_bypasses(self) -> None:
        moments = self.moments()
        queued: list[Any] = [order for order in self.orders if order.inside is None] + self.holds  # type: ignore[operator]
        queued.sort(key=lambda each: each.asked)
        for rank, priority in enumerate(PRIORITIES):
            became_first: Moment = (0, 0)
            last: Moment = (-1, 0)
            for each in (each for each in queued if each.priority == priority):
                moment = moments.get(each.number)
                if moment is None:
                    became_first = max(became_first, each.ended)
                    continue
                assert moment > last, (each, "it overtook one of its priority")
                since = max(became_first, each.asked)
                higher = [other for other in queued if PRIORITIES.index(other.priority) < rank]
                overtaking = [one for one in higher if since < moments.get(one.number, since) < moment]
                assert len(overtaking) <= MOST_BYPASSES + max(0, rank - 1), (each, overtaking)
                last = became_first = moment

    # --- the end -----------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            if self.sessions:
                self.finish()
        finally:
            logging.getLogger("trio_daq").removeHandler(self.handler)
            self.driver.close()

    def finish(self) -> None:
        self.instrument.is_refusing = self.instrument.is_silent = False
        self.instrument.slow_by = self.instrument.write_time = 0.0
        for hold in self.holds:
            self.driver.call(hold.to_holder.close)
        self.driver.advance(100)  # each has ended by its own deadline then
        for order in self.living():
            if order.pending is not None:
                assert order.pending.is_done()
                self.driver.start(self.await_pending, order)
        # Who was in a transaction that came to nothing was never asked.
        untold = [order for order in self.orders if not order.ends]
        assert all(order.inside is not None or order.owner == "deadlock" for order in untold), untold
        assert all(hold.is_gone for hold in self.holds)
        session = self.sessions[0][0]
        assert session.queue_depth() == 0
        assert session.current_owner() is None
        assert _waiting == {}
        self.driver.start(self.use_it_once, session)
        self.driver.advance(30)
        assert self.used == "re 0"
        self.nothing_went_wrong()
        self.each_command_comes_once_and_none_that_was_not_sent()
        self.what_belongs_together_is_not_cut_into()
        self.check_order_and_bypasses()
        self.check_statistics(session)
        for _, leave in self.sessions:
            self.driver.call(leave.set)
        self.sessions = []
        self.driver.advance(3)
        self.nothing_went_wrong()

    used = ""

    async def use_it_once(self, session: VisaSessionManager) -> None:
        try:
            self.used = await session.query("Q? 0 0", 25, "last")
        except LineLostError:  # the connection was closed while nobody used it
            self.used = await session.query("Q? 0 0", 25, "last")

    def check_statistics(self, session: VisaSessionManager) -> None:
        statistics = self.driver.call(session.statistics)
        came = Counter[str]()
        answered = Counter({"last": 1})
        received = set(self.received())
        for order in self.orders:
            came[order.owner] += len(received & set(order.texts))
            answered[order.owner] += len(order.texts) * (order.ends == ["reply"])
        came["last"] = 1
        late = 0
        for owner in came | answered:
            executed, unfinished = statistics.executed.get(owner, 0), statistics.unfinished.get(owner, 0)
            assert answered[owner] <= executed <= came[owner] <= executed + unfinished, (owner, executed, unfinished)
            late += executed - answered[owner]
        assert statistics.abandoned <= late
        assert statistics.timed_out == self.errors["CommandTimeoutError"]
        assert (statistics.waiting, statistics.in_flight, statistics.transaction) == ((), None, None)


VisaMachine.TestCase.settings = settings(max_examples=70 * MORE, stateful_step_count=40, deadline=None)
TestVisaMachine = VisaMachine.TestCase


# --- cancelled anywhere -------------------------------------------------------------------------------------------


async def wait_behind_another(session: VisaSessionManager, nursery: trio.Nursery) -> None:
    nursery.start_soon(session.query, "Q? 1 0.2", None, "another")
    await trio.testing.wait_all_tasks_blocked()
    assert await session.query("Q? 2 0.1") == "re 2"


async def be_in_flight(session: VisaSessionManager, _: trio.Nursery) -> None:
    assert await session.query("Q? 1 0.2") == "re 1"
    await session.write("W 2")
    assert await session.enqueue_command("Q? 3 0.1") == "re 3"


async def wait_for_a_place(session: VisaSessionManager, nursery: trio.Nursery) -> None:
    for number in range(5):
        nursery.start_soon(session.query, f"Q? {number} 0.05", None, "another")
        await trio.testing.wait_all_tasks_blocked()
    assert await session.query("Q? 9 0.05") == "re 9"


async def have_a_transaction(session: VisaSessionManager, nursery: trio.Nursery) -> None:
    nursery.start_soon(session.query, "Q? 1 0.1", None, "another")
    await trio.testing.wait_all_tasks_blocked()
    async with session.transaction("holder", timeout=2) as transaction:
        nursery.start_soon(session.query, "Q? 2 0", None, "another")
        assert await transaction.query("Q? 3 0.1") == "re 3"
        await transaction.write("W 4")
        assert await transaction.batch(["W 5", "Q? 6 0.1"]) == ["", "re 6"]
        assert await transaction.submit("Q? 7 0.1").wait() == "re 7"


async def send_a_batch(session: VisaSessionManager, _: trio.Nursery) -> None:
    assert await session.batch(["W 1", "Q? 2 0.1", "Q? 3 0.1"]) == ["", "re 2", "re 3"]


async def submit_and_wait(session: VisaSessionManager, _: trio.Nursery) -> None:
    pending = [session.submit("Q? 1 0.1"), session.submit("Q? 2 0.1")]
    assert [await each.wait() for each in pending] == ["re 1", "re 2"]


async def open_again(session: VisaSessionManager, nursery: trio.Nursery) -> None:
    nursery.start_soon(session.query, "Q? 1 0.1", None, "another")
    await trio.testing.wait_all_tasks_blocked()
    await session.reconnect()
    assert await session.query("Q? 2 0") == "re 2"
    await session.reconnect()


SCENES = [
    wait_behind_another,
    be_in_flight,
    wait_for_a_place,
    have_a_transaction,
    send_a_batch,
    submit_and_wait,
    open_again,
]


class CancelAtAnyStep(CancelAtStep):
    """It counts the steps of all tasks: while the caller waits, the worker and the instrument go on."""

    def _look(self, _: trio.lowlevel.Task, when: str) -> None:
        assert self._task is not None
        super()._look(self._task, when)


async def play(scene: Any, kind: str, at: int, when: Any, write_time: float) -> tuple[bool, list[str], list[str]]:
    """Play *scene*, cancelled at a step; return whether it has so many, and what came up to then and after it."""
    _waiting.clear()
    instrument = MemoryInstrument(Mind())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(instrument.serve)
        async with VisaSessionManager(config_for(kind), make_transport=instrument.connect) as session:
            instrument.write_time = write_time
            async with trio.open_nursery() as others:
                with trio.CancelScope() as scope, CancelAtAnyStep(scope, at, when) as cancelling:
                    await scene(session, others)
                came = [text for _, text in instrument.received]
                assert await session.query("Q? 99 0", 5, "next") == "re 99"
            await trio.sleep(1)
            assert session.current_owner() is None
            assert session.queue_depth() == 0
            assert session.statistics().transaction is None
            assert _waiting == {}
            async with session.transaction("the last", 0.1) as transaction:
                assert await transaction.query("Q? 100 0") == "re 100"
        nursery.cancel_scope.cancel()
    later = [text for _, text in instrument.received[len(came) :]]
    return cancelling.reached, came, later


@pytest.mark.parametrize("kind", ["reopening", "clearing"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_cancelled_at_every_step_the_session_is_right(kind: str, when: Any) -> None:
    """Cancelled at each step of any task: nothing is left held, nothing comes later, the next is served."""
    steps = Counter[str]()
    for scene in SCENES:
        for write_time in (0.0, 0.03):
            at = 1
            while True:
                reached, came, later = trio.run(
                    play, scene, kind, at, when, write_time, clock=trio.testing.MockClock(autojump_threshold=0)
                )
                everything = [text for text in came + later if SOMEBODYS.fullmatch(text)]
                assert len(set(everything)) == len(everything), (scene, at)
                if not reached:
                    break
                steps[scene.__name__] += 1
                at += 1
                if write_time == 0 and scene in (wait_behind_another, be_in_flight, wait_for_a_place):
                    mine = {"Q? 2 0.1", "Q? 9 0.05", "W 2", "Q? 3 0.1"}
                    assert not mine & set(later), (scene, at)
                assert at < 400
    assert set(steps) == {scene.__name__ for scene in SCENES}
    assert 300 <= steps.total() <= 1000, steps
