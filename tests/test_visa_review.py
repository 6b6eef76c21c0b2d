"""What a close reading of the VISA room found: each of these was wrong once."""

from collections.abc import Sequence
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from visa_instrument import Instrument

from trio_daq.errors import (
    CommandCancelledError,
    CommandTimeoutError,
    LeaseRevokedError,
    LineOpenError,
    QueueFullError,
    Sent,
    SessionClosedError,
)
from trio_daq.sim import MemoryInstrument, SimulatedMeter
from trio_daq.visa import Progress, Request, VisaSessionConfig, VisaSessionManager
from trio_daq.wire import Exchange

METER = "TCPIP::meter::5025::SOCKET"


@pytest.fixture
async def meter(nursery: trio.Nursery) -> MemoryInstrument:
    meter = MemoryInstrument(SimulatedMeter())
    nursery.start_soon(meter.serve)
    return meter


def session_of(meter: MemoryInstrument, resource: str = METER, **settings: Any) -> VisaSessionManager:
    return VisaSessionManager(VisaSessionConfig(resource=resource, **settings), make_transport=meter.connect)


class SlowLine:
    """A connection to the instrument in memory that takes its time before it writes, and to close."""

    def __init__(self, meter: MemoryInstrument, config: VisaSessionConfig, to_write: float, to_close: float) -> None:
        self._line = meter.connect(config)
        self._to_write, self._to_close = to_write, to_close
        self.sent: Sent = "no"
        self.open, self.drain, self.clear = self._line.open, self._line.drain, self._line.clear

    @property
    def completed(self) -> int:
        return self._line.completed

    async def exchange(
        self, requests: Sequence[Request], deadline: float, progress: Progress | None = None
    ) -> list[bytes]:
        self.sent = "no"
        await trio.sleep(self._to_write)
        try:
            return await self._line.exchange(requests, deadline, progress)
        finally:
            self.sent = self._line.sent

    async def aclose(self, timeout: float, *, abort: bool = False) -> bool:
        with trio.CancelScope(shield=True):
            await trio.sleep(self._to_close)
        return await self._line.aclose(timeout, abort=abort)


async def test_closing_ends_also_the_commands_that_wait_for_a_place(
    meter: MemoryInstrument, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Stopping a session ends every command that waits at once, also those that have no place in the queue yet."""
    refused = []

    async def ask(number: int) -> None:
        try:
            await session.query(f"MEAS:VOLT? {number}")
        except SessionClosedError:
            refused.append(trio.current_time())

    async with session_of(meter, queue_size=2) as session:
        meter.slow_by = 1.0
        for number in range(7):
            nursery.start_soon(ask, number)
        await trio.sleep(0.1)
        stopped_at = trio.current_time()
        session.stop()
        await wait_all_tasks_blocked()
        assert refused == 6 * [stopped_at]


@pytest.mark.parametrize("command", ["", "VOLT\n1", "VOLT µ"])
async def test_query_values_refuses_what_query_refuses(
    meter: MemoryInstrument, command: str, autojump_clock: MockClock
) -> None:
    """A text that is no command is a ValueError in `query_values`, too."""
    async with session_of(meter) as session:
        with pytest.raises(ValueError, match="character"):
            await session.query_values(command)
        with pytest.raises(ValueError, match="timeout"):
            await session.query_values("READ?", timeout=-1)


async def test_a_pending_reply_can_be_waited_for_again(meter: MemoryInstrument, autojump_clock: MockClock) -> None:
    """Whoever waits for a pending reply once more gets the same reply, or the same error."""
    async with session_of(meter) as session:
        pending = session.submit("*IDN?")
        assert await pending.wait() == await pending.wait() != ""
        meter.is_silent = True
        late = session.submit("*IDN?")
        for _ in range(2):
            with pytest.raises(CommandTimeoutError):
                await late.wait()


async def test_what_was_sent_stays_so(meter: MemoryInstrument, autojump_clock: MockClock) -> None:
    """`PendingReply.sent` is about its own command, also when the connection is at another one."""
    async with session_of(meter) as session:
        pending = session.submit("*IDN?")
        await pending.wait()
        meter.write_time = 1.0
        following = session.submit("*IDN?")
        await trio.sleep(0.5)
        assert (pending.sent, following.sent) == ("yes", "unknown")


async def test_taken_back_on_its_way_is_not_said_to_be_unsent(
    meter: MemoryInstrument, autojump_clock: MockClock
) -> None:
    """A command that is cancelled in flight before its first byte may still be written, so it says "unknown"."""
    config = VisaSessionConfig(resource=METER)
    async with VisaSessionManager(config, make_transport=lambda config: SlowLine(meter, config, 0.2, 0)) as session:
        pending = session.submit("*IDN?")
        await trio.sleep(0.1)
        pending.cancel()
        with pytest.raises(CommandCancelledError) as caught:
            await pending.wait()
        assert caught.value.sent == pending.sent == "unknown"
        await trio.sleep(1)
        assert [text for _, text in meter.received] == ["*IDN?"]


async def test_a_refused_command_is_not_counted_as_timed_out(
    meter: MemoryInstrument, autojump_clock: MockClock
) -> None:
    """A command that was refused, since the queue was full, has no deadline that could be missed later."""
    async with session_of(meter, queue_size=1) as session:
        meter.slow_by = 0.2
        session.submit("*IDN?")
        await trio.sleep(0.1)
        session.submit("*IDN?")
        with pytest.raises(QueueFullError):
            session.submit("*IDN?")
        await trio.sleep(5)
        assert (session.statistics().timed_out, session.statistics().never_sent) == (0, 0)


async def test_what_is_given_up_when_it_is_done_costs_nobody_else(
    meter: MemoryInstrument, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Giving up what the worker does for one session ends no command of another one, also if it was just done."""
    other_meter = MemoryInstrument(SimulatedMeter())
    nursery.start_soon(other_meter.serve)
    config = VisaSessionConfig(resource=METER, bus="bench")
    slow = VisaSessionManager(config, make_transport=lambda config: SlowLine(meter, config, 0, 0.2))
    async with session_of(other_meter, "TCPIP::other::5025::SOCKET", bus="bench") as other:
        async with trio.open_nursery() as served:
            await served.start(slow.serve)
            meter.slow_by = 0.1
            slow.submit("*IDN?")
            await trio.sleep(0.05)
            meter.hang_up()  # the worker finds it, and is at closing that connection for 0.2 s
            await trio.sleep(0.05)
            following = other.submit("*IDN?")
            served.cancel_scope.cancel()
        assert await following.wait() != ""


async def test_a_callback_that_raises_harms_only_its_own_caller(nursery: trio.Nursery) -> None:
    """What ``progress`` raises comes out of its own call; the session and its neighbour go on, no reply is taken
    for another one.
    """
    instrument = Instrument()
    instrument.answers["CURV?"] = "#15abcde"
    await nursery.start(instrument.serve)

    def progress(done: int, size: int | None) -> None:
        raise KeyError("mine")

    config = VisaSessionConfig(resource=instrument.resource)
    async with VisaSessionManager(config) as one, VisaSessionManager(config) as other:
        with pytest.raises(KeyError, match="mine"):
            await other.query_block("CURV?", progress=progress)
        assert [await each.query("ECHO? fresh") for each in (one, other)] == ["fresh", "fresh"]
        assert one.statistics().resyncs == 1


async def test_nothing_is_reconnected_for_a_closed_session(
    meter: MemoryInstrument, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Reconnecting that waits for its turn ends with its session; no connection is opened that nobody would close."""
    other_meter = MemoryInstrument(SimulatedMeter())
    nursery.start_soon(other_meter.serve)
    refused = trio.Event()

    async def reconnect() -> None:
        with pytest.raises(SessionClosedError):
            await session.reconnect(5.0)
        refused.set()

    async with session_of(other_meter, "TCPIP::other::5025::SOCKET", bus="bench") as other:
        async with session_of(meter, bus="bench") as session:
            other_meter.slow_by = 1.0
            other.submit("*IDN?")
            await trio.sleep(0.1)
            nursery.start_soon(reconnect)
            await trio.sleep(0.1)
        await trio.sleep(2)
        assert refused.is_set()
        assert meter._connections == []


async def test_taking_back_a_transaction_leaves_reconnecting_alone(nursery: trio.Nursery) -> None:
    """A transaction that is held for too long ends its own command in flight, not somebody's reconnecting."""
    instrument = Instrument()
    await nursery.start(instrument.serve)
    done = trio.Event()

    async def reconnect() -> None:
        await session.reconnect(3.0)
        done.set()

    async def hold() -> None:
        async with session.transaction("slow", max_hold=0.15):
            nursery.start_soon(reconnect)
            await trio.sleep(3)

    config = VisaSessionConfig(resource=instrument.resource, identify=Exchange(query="*IDN?", expect="ACME.*"))
    async with VisaSessionManager(config) as session:
        instrument.delay = 0.3
        with pytest.raises(LeaseRevokedError):
            await hold()
        with trio.fail_after(3):
            await done.wait()


async def test_a_transaction_takes_no_command_once_its_session_is_closed(
    meter: MemoryInstrument, autojump_clock: MockClock
) -> None:
    """With its session a transaction is over too, also if another session keeps the connection open."""
    async with session_of(meter) as session, session_of(meter) as other:
        late = session.transaction("late")
        async with session.transaction("one") as transaction:
            await session.close()
            with pytest.raises(SessionClosedError):
                await transaction.query("*IDN?")
        with pytest.raises(SessionClosedError):
            await late.__aenter__()
        assert meter.received == []
        assert await other.query("*IDN?") != ""


async def test_a_session_that_opens_in_vain_leaves_the_other_one_reconnecting(
    meter: MemoryInstrument, autojump_clock: MockClock
) -> None:
    """A second session of a lost resource that cannot be opened does not end the tries to open it again."""
    async with session_of(meter, timeout=1.0) as session:
        meter.is_refusing = True
        meter.hang_up()
        with pytest.raises(CommandTimeoutError):
            await session.query("*IDN?")
        with pytest.raises(LineOpenError):
            await session_of(meter, timeout=1.0).__aenter__()
        assert session.state == "lost"
        meter.is_refusing = False
        await trio.sleep(5)
        assert session.state == "open"
