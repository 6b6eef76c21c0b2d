"""Corners of the VISA session that the state machine found, or that only two sessions show."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from trio_daq.errors import (
    LineLostError,
    PortBusyError,
    QueueFullError,
    SessionClosedError,
    TransactionBrokenError,
)
from trio_daq.sharing.wait_graph import _waiting
from trio_daq.sim import MemoryInstrument, SimulatedMeter
from trio_daq.visa import VisaSessionConfig, VisaSessionManager

Open = Callable[..., Awaitable[VisaSessionManager]]


def config(name: str = "meter", **settings: object) -> VisaSessionConfig:
    return VisaSessionConfig(resource=f"TCPIP::{name}::5025::SOCKET", **settings)  # type: ignore[arg-type]


@pytest.fixture
def meter() -> MemoryInstrument:
    return MemoryInstrument(SimulatedMeter())


def session_of(meter: MemoryInstrument, settings: VisaSessionConfig | None = None) -> VisaSessionManager:
    return VisaSessionManager(settings or config(), make_transport=meter.connect)


async def test_an_order_without_a_place_is_not_counted_as_timed_out(meter, nursery, autojump_clock):
    """What was refused by QueueFullError has ended: when its deadline would have come, nothing is counted."""
    nursery.start_soon(meter.serve)
    async with session_of(meter, config(queue_size=1)) as session:
        pending = [session.submit("SLOW? a,0.5")]
        await trio.testing.wait_all_tasks_blocked()
        pending.append(session.submit("SLOW? b,0.1"))
        with pytest.raises(QueueFullError):
            session.submit("*IDN?")
        for each in pending:
            await each.wait()
        await trio.sleep(5)
        assert (session.statistics().timed_out, session.statistics().never_sent) == (0, 0)


async def test_a_second_waiter_is_refused_and_leaves_no_trace(meter, nursery, autojump_clock):
    """Who waits for a reply that another task waits for gets BusyResourceError, and nobody is left in the graph."""
    _waiting.clear()
    nursery.start_soon(meter.serve)
    async with session_of(meter) as session:
        pending = session.submit("SLOW? a,0.5")
        nursery.start_soon(pending.wait)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await pending.wait()
        await trio.sleep(1)
        assert _waiting == {}


async def test_transactions_do_not_starve_a_background_command(meter, nursery, autojump_clock):
    """However many owners take one transaction after the other, a background command goes after eight of them."""
    nursery.start_soon(meter.serve)
    begun = 0

    async def measure(session: VisaSessionManager) -> None:
        nonlocal begun
        while True:
            async with session.transaction() as transaction:
                begun += 1
                await transaction.query("SLOW? t,0.01")

    async with session_of(meter) as session, trio.open_nursery() as owners:
        for _ in range(3):
            owners.start_soon(measure, session)
        await trio.sleep(1)
        before = begun
        await session.query("*IDN?", 2, priority="background")
        assert begun - before <= 9
        owners.cancel_scope.cancel()


async def test_a_reconnect_that_waits_ends_with_its_session(meter, nursery, autojump_clock):
    """Closing a session ends a reconnect that waits for the command in flight at once, and opens nothing."""
    nursery.start_soon(meter.serve)
    caught: list[float] = []

    async def reconnect(session: VisaSessionManager) -> None:
        with pytest.raises(SessionClosedError):
            await session.reconnect(60)
        caught.append(trio.current_time())

    async with session_of(meter) as session:
        pending = session.submit("SLOW? a,1", 5)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(reconnect, session)
        await trio.testing.wait_all_tasks_blocked()
        now = trio.current_time()
        await session.close()
        assert caught == [now]
        assert await pending.wait() == "a," + meter.log[-1].text.partition(",")[2]
        assert meter._connections == []


async def test_a_transaction_of_a_closed_session_is_told_so_at_once(meter, nursery, autojump_clock):
    """A command in a transaction whose session was closed raises SessionClosedError, also if another session lives."""
    nursery.start_soon(meter.serve)
    async with session_of(meter) as session, session_of(meter) as other:
        async with session.transaction() as transaction:
            await session.close()
            now = trio.current_time()
            with pytest.raises(SessionClosedError):
                await transaction.query("*IDN?")
            assert trio.current_time() == now
        assert (await other.query("*IDN?")).startswith("TRIO_DAQ")
        assert len([entry for entry in meter.log if entry.event == "command"]) == 1


async def test_closing_one_session_does_not_close_another(meter, nursery, autojump_clock):
    """An exchange that the worker of a session is at for another session is finished before that worker ends."""
    nursery.start_soon(meter.serve)
    first = session_of(meter)
    async with first, session_of(meter) as second:
        pending = second.submit("SLOW? a,9", 20)
        await trio.testing.wait_all_tasks_blocked()
        await first.close(0.5)
        assert (await pending.wait()).startswith("a,")
        assert (await second.query("*IDN?", 20)).startswith("TRIO_DAQ")


async def test_close_does_not_wait_longer_than_it_was_told(meter, nursery, autojump_clock):
    """A command that is never answered, with a minute to go, holds up no close; its owner is told that it was sent."""
    nursery.start_soon(meter.serve)
    meter.is_silent = True
    async with session_of(meter) as session:
        pending = session.submit("*IDN?", 60)
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        await session.close(0.5)
        assert trio.current_time() - began <= 0.6
        with pytest.raises(SessionClosedError, match="command sent: yes"):
            await pending.wait()


async def test_a_transaction_does_not_go_on_over_another_connection(meter, nursery, autojump_clock):
    """After a reconnect in its middle, the rest of a transaction is refused, and the instrument hears none of it."""
    nursery.start_soon(meter.serve)
    async with session_of(meter) as session:
        async with session.transaction() as transaction:
            await transaction.write("CONF:VOLT")
            nursery.start_soon(session.reconnect)
            await trio.sleep(0.1)
            with pytest.raises(TransactionBrokenError):
                await transaction.query("MEAS:VOLT? a")
        await session.query("MEAS:VOLT? b")
    assert [text for _, text in meter.received] == ["CONF:VOLT", "MEAS:VOLT? b"]


class _Steps(trio.abc.Instrument):
    count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


async def test_a_lost_link_without_room_waits_for_room(meter, nursery):
    """On a bus with room for one, a lost session waits for another one's transaction to end, and spends no time."""
    other_meter = MemoryInstrument(SimulatedMeter())
    nursery.start_soon(meter.serve)
    nursery.start_soon(other_meter.serve)
    bus = {"bus": "rack", "max_open": 1}
    async with (
        session_of(other_meter, config("other", **bus)) as other,
        session_of(meter, config(**bus)) as session,
    ):
        pending = session.submit("SLOW? a,0.5")
        await trio.testing.wait_all_tasks_blocked(0.01)
        meter.is_refusing = True
        meter.hang_up()
        async with other.transaction() as transaction:
            with pytest.raises(LineLostError):
                await pending.wait()
            await trio.sleep(0.3)  # until it is to be opened again
            steps = _Steps()
            trio.lowlevel.add_instrument(steps)
            await trio.sleep(0.2)
            trio.lowlevel.remove_instrument(steps)
            assert steps.count < 50
            await transaction.query("*IDN?")
        meter.is_refusing = False
        assert (await session.query("*IDN?", 5)).startswith("TRIO_DAQ")


async def test_a_transaction_that_does_not_wait(meter, nursery, autojump_clock):
    """With timeout=0 it begins on a free instrument, and is refused beside a command, a queue, another one."""
    nursery.start_soon(meter.serve)
    async with session_of(meter) as session:
        async with session.transaction("first", timeout=0) as transaction:
            assert await transaction.query("MEAS:VOLT? a") != ""
            began = trio.current_time()

            async def intrude() -> None:
                with pytest.raises(PortBusyError, match=r"'second' .*'first' has held it"):
                    async with session.transaction("second", timeout=0):
                        pass

            nursery.start_soon(intrude)
            await trio.testing.wait_all_tasks_blocked()
            assert trio.current_time() == began
        slow = session.submit("SLOW? b,0.5", owner="slow")
        await trio.testing.wait_all_tasks_blocked()
        waiting = session.submit("MEAS:VOLT? c", owner="next")
        with pytest.raises(PortBusyError, match=r"'slow' has held it .*1 waiting"):
            async with session.transaction("second", timeout=0):
                pass
        await slow.wait()
        await waiting.wait()
        async with session.transaction("second", timeout=0):
            pass
