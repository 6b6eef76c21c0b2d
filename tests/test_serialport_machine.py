"""A shared port under everything at once, on the virtual clock: owners, cancellations, revoking, a pulled cable.

The oracles are the test's own: who is inside a block, in which order they called, what the instrument answered.
"""

from __future__ import annotations

import re
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trio_daq.errors import DaqError, LeaseRevokedError
from trio_daq.serialport import LineState, SerialPortConfig, SharedSerialPort
from trio_daq.sharing.wait_graph import _waiting
from trio_daq.sim import MemoryLine
from trio_daq.testing import CancelAtStep, TrioDriver
from trio_daq.wire import SyncQuery

CONFIG = SerialPortConfig(
    path="memory", timeout=1.0, quiet_time=0.5, acquire_timeout=5.0, sync_query=SyncQuery("ECHO {nonce}", "{nonce}")
)


class Instrument:
    """It answers in order: ``ECHO X`` by X at once, ``N DELAY`` by ``re N`` after DELAY seconds.

    *pace*: seconds between the bytes of an answer; 0 sends it whole.
    """

    def __init__(self, line: MemoryLine, pace: float = 0.0) -> None:
        self.line = line
        self.pace = pace
        self.asked: list[bytes] = []

    async def serve(self) -> None:
        data = b""
        while True:
            data += await self.line.receive()
            while b"\n" in data:
                command, _, data = data.partition(b"\n")
                if command.startswith(b"ECHO "):
                    await self.say(command[5:])
                    continue
                understood = re.fullmatch(rb"(\d+) ([\d.]+)", command)
                if understood is None:
                    continue  # half a command from before the cable was pulled, with the next one behind it
                number, delay = understood.groups()
                self.asked.append(number)
                await trio.sleep(float(delay))
                await self.say(b"re " + number)

    async def say(self, words: bytes) -> None:
        whole = words + b"\n"
        for piece in [whole[i : i + 1] for i in range(len(whole))] if self.pace else [whole]:
            self.line.send(piece)
            if self.pace:
                await trio.sleep(self.pace)


@attrs.define(eq=False)
class Owner:
    """One task that wants the port, and what the test knows of it."""

    number: int
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    state: str = "waiting"
    """``waiting``, ``inside``, ``revoked``, or ``gone``."""
    leaving: bool = False
    orders: Any = None
    to_owner: Any = None


class PortMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.driver = TrioDriver()
        self.driver.__enter__()
        self.line = MemoryLine(capacity=16)  # so small that commands are written in parts
        self.plugged = True
        self.port = self.driver.call(lambda: SharedSerialPort(CONFIG, self.line.open_stream))
        self.instrument = Instrument(self.line)
        self.driver.start(self.instrument.serve)
        self.owners: list[Owner] = []
        self.numbers = 0
        self.queries = 0
        self.wrong: list[str] = []

    # --- what owners do ---------------------------------------------------------------------------------------------

    async def own(self, owner: Owner, timeout: float) -> None:
        try:
            with owner.scope:
                async with self.port.acquire(f"owner {owner.number}", timeout) as guard:
                    self.note_granted(owner)
                    async for order in owner.orders:
                        await order(guard)
        except (DaqError, KeyError):
            pass
        finally:
            owner.state = "gone"

    def note_granted(self, owner: Owner) -> None:
        earlier = [other.number for other in self.owners if other.state == "waiting" and other.number < owner.number]
        if earlier:
            self.wrong.append(f"owner {owner.number} was granted before {earlier}, who had called before")
        owner.state = "inside"

    async def query(self, guard: Any, nonce: int, delay: float, timeout: float) -> None:
        try:
            reply = await guard.query(b"%d %g" % (nonce, delay), timeout=timeout)
        except (TimeoutError, ConnectionError):
            return
        if reply != b"re %d" % nonce:
            self.wrong.append(f"query {nonce} got {reply!r}")

    def inside(self) -> list[Owner]:
        return [owner for owner in self.owners if owner.state == "inside"]

    # --- rules --------------------------------------------------------------------------------------------------------

    @precondition(lambda self: sum(owner.state != "gone" for owner in self.owners) < 6)
    @rule(timeout=st.sampled_from([0.0, 0.3, 2.0, 20.0]))
    def acquire(self, timeout: float) -> None:
        self.numbers += 1
        owner = Owner(self.numbers)
        owner.to_owner, owner.orders = trio.open_memory_channel[Any](100)
        self.owners.append(owner)
        self.driver.start(self.own, owner, timeout)

    @precondition(lambda self: self.inside())
    @rule(delay=st.sampled_from([0.0, 0.2, 0.9, 3.0]), timeout=st.sampled_from([0.1, 1.0, 5.0]))
    def ask(self, delay: float, timeout: float) -> None:
        self.queries += 1
        nonce = self.queries
        self.order(lambda guard: self.query(guard, nonce, delay, timeout))

    @precondition(lambda self: self.inside())
    @rule(delay=st.sampled_from([0.0, 0.4, 2.0]))
    def write_and_leave_unread(self, delay: float) -> None:
        self.queries += 1
        nonce = self.queries

        async def write(guard: Any) -> None:
            await guard.write_all(b"%d %g\n" % (nonce, delay))

        self.order(write)

    @precondition(lambda self: self.inside())
    @rule()
    def fail(self) -> None:
        async def fail(_: Any) -> None:
            raise KeyError

        self.order(fail)

    @precondition(lambda self: self.inside())
    @rule()
    def release(self) -> None:
        self.inside()[0].leaving = True  # as soon as it has done what it was told before
        self.driver.call(self.inside()[0].to_owner.close)
        self.driver.settle()

    @precondition(lambda self: any(owner.state != "gone" for owner in self.owners))
    @rule(which=st.integers(0, 99))
    def cancel(self, which: int) -> None:
        living = [owner for owner in self.owners if owner.state != "gone"]
        self.driver.call(living[which % len(living)].scope.cancel)
        self.driver.settle()

    @rule()
    def revoke(self) -> None:
        inside = self.inside()
        name = self.driver.call(self.port.revoke, "test")
        if inside:
            assert name == f"owner {inside[0].number}"
            inside[0].state = "revoked"
        self.driver.settle()

    @rule()
    def pull_or_plug(self) -> None:
        self.driver.call(self.line.unplug if self.plugged else self.line.plug)
        self.plugged = not self.plugged
        self.driver.settle()

    @rule(seconds=st.sampled_from([0.05, 0.3, 1.1, 4.0]))
    def wait(self, seconds: float) -> None:
        self.driver.advance(seconds)

    def order(self, what: Any) -> None:
        if not self.inside()[0].leaving:
            self.driver.call(self.inside()[0].to_owner.send_nowait, what)
            self.driver.settle()

    # --- what always holds -----------------------------------------------------------------------------------------

    @invariant()
    def nothing_went_wrong(self) -> None:
        assert self.wrong == []

    @invariant()
    def one_live_guard_at_most(self) -> None:
        assert len(self.inside()) <= 1
        owner = self.port.current_owner()
        if self.inside():
            assert owner == f"owner {self.inside()[0].number}"

    @invariant()
    def no_command_was_carried_out_twice(self) -> None:
        assert len(set(self.instrument.asked)) == len(self.instrument.asked)

    def teardown(self) -> None:
        try:
            for owner in self.owners:
                self.driver.call(owner.scope.cancel)
            self.driver.settle()
            assert [owner.number for owner in self.owners if owner.state != "gone"] == []
            statistics = self.driver.call(self.port.statistics).lease
            assert (statistics.holder, statistics.waiting) == (None, ())
            assert _waiting == {}
            if not self.plugged:
                self.driver.call(self.line.plug)
            self.driver.advance(60)  # what the instrument still has to say, and the port's pauses
            self.driver.start(self.use_it_once)
            self.driver.advance(30)
            assert self.used == b"re 0"
            assert self.wrong == []
        finally:
            self.driver.close()

    used: bytes | None = None

    async def use_it_once(self) -> None:
        async with self.port.acquire("the last", 25) as guard:
            self.used = await guard.query(b"0 0")


PortMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestPortMachine = PortMachine.TestCase


# --- cancelled anywhere -------------------------------------------------------------------------------------------


def run_with_virtual_time(main: Any, *arguments: Any) -> Any:
    return trio.run(main, *arguments, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("when", ["before", "after"])
def test_cancelled_at_every_step_of_a_query_the_port_is_right(when: Any) -> None:
    """Cancelled at each step of opening, resync, waiting, writing in parts and reading, the next owner is right."""

    async def life(at: int) -> tuple[bool, list[bytes]]:
        line = MemoryLine(capacity=4)
        port, instrument = SharedSerialPort(CONFIG, line.open_stream), Instrument(line, pace=0.01)

        async def holder(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            async with port.acquire("holder"):
                task_status.started()
                await trio.sleep(0.1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(instrument.serve)
            with trio.CancelScope() as scope, CancelAtStep(scope, at, when) as cancelling:
                async with port.acquire("first") as guard:
                    assert await guard.query(b"1 0.2") == b"re 1"
                    await guard.write_all(b"2 0.1\n")
                    assert await guard.read_until() == b"re 2\n"
            await nursery.start(holder)
            with trio.CancelScope() as scope, CancelAtStep(scope, at - cancelling.steps, when) as again:
                async with port.acquire("second") as guard:
                    await guard.write_all(b"3 0.4\n")
                async with port.acquire("second") as guard:
                    assert await guard.query(b"4 0.2") == b"re 4"
            assert port.current_owner() in (None, "holder")
            assert port.statistics().lease.waiting == ()
            async with port.acquire("next") as guard:
                assert await guard.query(b"9 0") == b"re 9"
            assert port.state is LineState.CLEAN
            nursery.cancel_scope.cancel()
        return cancelling.reached or again.reached, instrument.asked

    steps = 0
    while True:
        reached, asked = run_with_virtual_time(life, steps + 1)
        assert asked == sorted(set(asked))
        if not reached:
            break
        steps += 1
    assert 40 <= steps <= 400
    assert asked == [b"1", b"2", b"3", b"4", b"9"]


@given(delays=st.lists(st.sampled_from([0.0, 0.3, 0.99, 1.01, 2.5, 7.0]), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_late_replies_reach_nobody_however_late(delays: list[float]) -> None:
    """Whatever the row of delays, each owner gets its own reply or a time-out, never another's."""

    async def main() -> None:
        line = MemoryLine()
        port, instrument = SharedSerialPort(CONFIG, line.open_stream), Instrument(line)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(instrument.serve)
            for number, delay in enumerate(delays):
                note(f"{number}: {delay}")
                try:
                    async with port.acquire(f"owner {number}", timeout=30) as guard:
                        reply = await guard.query(b"%d %g" % (number, delay))
                except TimeoutError:
                    assert delay > 1
                else:
                    assert (reply, delay <= 1) == (b"re %d" % number, True)
            nursery.cancel_scope.cancel()

    run_with_virtual_time(main)


def test_short_deadlines_do_not_starve_a_dirty_port() -> None:
    """Owners who wait for 0.9 s at most, on a line that takes 2.5 s to become clean: it becomes clean, and serves."""

    async def main() -> None:
        line = MemoryLine()
        config = attrs.evolve(CONFIG, sync_query=None, timeout=1.0, quiet_time=2.5)
        port, instrument = SharedSerialPort(config, line.open_stream), Instrument(line)
        served: list[float] = []

        async def impatient(number: int) -> None:
            for attempt in range(100):
                try:
                    async with port.acquire(f"owner {number}", timeout=0.9) as guard:
                        assert await guard.query(b"%d 0.01" % (100 * number + attempt)) == b"re %d" % (
                            100 * number + attempt
                        )
                    served.append(trio.current_time())
                    return
                except TimeoutError:
                    assert attempt < 20

        async with trio.open_nursery() as nursery:
            nursery.start_soon(instrument.serve)
            async with trio.open_nursery() as owners:
                for number in range(4):
                    owners.start_soon(impatient, number)
            nursery.cancel_scope.cancel()
        assert len(served) == 4
        assert max(served) < 6

    run_with_virtual_time(main)


def test_a_keeper_makes_it_clean_though_nobody_waits_long_enough() -> None:
    """A chain of owners who leave each exchange unfinished, each with a short deadline: the keeper gets its turn."""

    async def main() -> None:
        line = MemoryLine()
        port, instrument = SharedSerialPort(CONFIG, line.open_stream), Instrument(line)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(instrument.serve)
            nursery.start_soon(port.keep)
            async with port.acquire("first") as guard:
                with trio.move_on_after(0.1):
                    await guard.query(b"1 3.0")
            for attempt in range(20):
                with trio.move_on_after(0.05):
                    async with port.acquire(f"hasty {attempt}", timeout=0.05) as guard:
                        pytest.fail("the late reply has not come yet")
                if trio.current_time() > 2.5:
                    break
                await trio.sleep(0.1)
            await trio.sleep(2)
            assert port.state is LineState.CLEAN
            async with port.acquire("next", timeout=0.05) as guard:
                assert await guard.query(b"2 0") == b"re 2"
            await port.aclose()
            nursery.cancel_scope.cancel()

    run_with_virtual_time(main)


def test_a_slip_ends_with_the_next_sync_query_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """An unasked line taken for a reply shifts what follows, for ``sync_every`` seconds of hard use and no longer."""

    async def main() -> list[bool]:
        line = MemoryLine()
        config = attrs.evolve(CONFIG, sync_every=1.0)
        port, instrument = SharedSerialPort(config, line.open_stream), Instrument(line)
        right = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(instrument.serve)
            for number in range(200):
                async with port.acquire("owner") as guard:
                    if number == 5:
                        nursery.start_soon(speak_unasked, line)
                    right.append(await guard.query(b"%d 0.02" % number) == b"re %d" % number)
            nursery.cancel_scope.cancel()
        return right

    async def speak_unasked(line: MemoryLine) -> None:
        await trio.sleep(0.01)
        line.send(b"HELLO\n")

    right = run_with_virtual_time(main)
    assert right[:5] == [True] * 5
    assert 10 < right.count(False) < 60
    assert right[-130:] == [True] * 130
    assert "replies had slipped" in caplog.text


def test_a_line_that_is_in_order_is_asked_now_and_then_and_nothing_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """With ``sync_every``, hard use costs one more question a second, and idleness none."""

    async def main() -> int:
        line = MemoryLine()
        port, instrument = SharedSerialPort(attrs.evolve(CONFIG, sync_every=1.0), line.open_stream), Instrument(line)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(instrument.serve)
            for number in range(200):
                async with port.acquire("owner") as guard:
                    assert await guard.query(b"%d 0.02" % number) == b"re %d" % number
            await trio.sleep(100)
            nursery.cancel_scope.cancel()
        return port.statistics().recoveries

    assert run_with_virtual_time(main) in (4, 5)
    assert "slipped" not in caplog.text


def test_a_task_that_is_cancelled_already_sends_nothing() -> None:
    """Neither through a free port, nor through a guard that it has: the instrument hears nothing."""

    async def main() -> None:
        line = MemoryLine()
        port, instrument = SharedSerialPort(CONFIG, line.open_stream), Instrument(line)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(instrument.serve)
            await port.recover()
            with trio.CancelScope() as scope:
                scope.cancel()
                async with port.acquire("dead") as guard:
                    await guard.query(b"1 0")
            with trio.CancelScope() as scope:
                async with port.acquire("dying") as guard:
                    scope.cancel()
                    for call in (guard.query, guard.write_all, guard.write_only):
                        try:
                            await call(b"2 0")
                        except trio.Cancelled:
                            continue
                        pytest.fail("a cancelled task got through")
                    await trio.lowlevel.checkpoint()
            await trio.sleep(1)
            assert instrument.asked == []
            nursery.cancel_scope.cancel()

    run_with_virtual_time(main)


def test_a_revoked_owner_cannot_touch_what_is_the_next_ones() -> None:
    """Revoked in the middle of a read, the old owner reads nothing of the next one's reply, however it goes on."""

    async def main() -> None:
        line = MemoryLine()
        port, instrument = SharedSerialPort(CONFIG, line.open_stream), Instrument(line)
        stolen: list[bytes] = []

        async def stubborn() -> None:
            async with port.acquire("stubborn") as guard:
                for _ in range(50):
                    try:
                        stolen.append(await guard.query(b"1 3", timeout=9))
                    except LeaseRevokedError:
                        await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(instrument.serve)
            nursery.start_soon(stubborn)
            await trio.sleep(0.5)
            port.revoke("test")
            for number in range(2, 7):
                async with port.acquire("next", timeout=30) as guard:
                    assert await guard.query(b"%d 0.1" % number) == b"re %d" % number
            nursery.cancel_scope.cancel()
        assert stolen == []

    run_with_virtual_time(main)


def test_revoked_in_the_turn_in_which_its_reply_came() -> None:
    """The reply is there and the port taken back before the owner runs: it gets LeaseRevokedError, nobody the reply."""

    async def main() -> None:
        line = MemoryLine()
        port, instrument = SharedSerialPort(CONFIG, line.open_stream), Instrument(line)
        caught: list[Exception] = []

        async def owner() -> None:
            async with port.acquire("owner") as guard:
                try:
                    await guard.query(b"1 3", timeout=9)
                except LeaseRevokedError as error:
                    caught.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(instrument.serve)
            nursery.start_soon(owner)
            await trio.sleep(0.5)
            line.send(b"re 1\n")
            port.revoke("test")
            async with port.acquire("next", timeout=30) as guard:
                assert await guard.query(b"2 0") == b"re 2"
            nursery.cancel_scope.cancel()
        assert len(caught) == 1

    run_with_virtual_time(main)
