"""The uses, troubles and old defects of VISA sessions that the system which this one follows knew, each by its name.

Its examples run here as they are used, its troubleshooting entries are provoked and cured, and the eight defects that
were found in its session manager by running it (numbers 9 to 16) have a test each. Many of the points have tests of
their own elsewhere; here it is shown that none was forgotten, and what our answer to it is.
"""

import itertools
import logging
import os
import tty
from collections.abc import AsyncIterator

import pytest
import trio
from visa_instrument import Instrument, wait_until

from trio_daq.errors import (
    CommandTimeoutError,
    DeadlockError,
    LineLostError,
    LineOpenError,
    LockOrderError,
    SessionClosedError,
)
from trio_daq.serialport import SerialPortConfig, SharedSerialPort
from trio_daq.sharing import acquire_all
from trio_daq.visa import VisaSessionConfig, VisaSessionManager
from trio_daq.wire import SyncQuery


@pytest.fixture
async def instrument(nursery: trio.Nursery) -> Instrument:
    """An instrument on loopback TCP."""
    instrument = Instrument()
    await nursery.start(instrument.serve)
    return instrument


@pytest.fixture
async def session(instrument: Instrument) -> AsyncIterator[VisaSessionManager]:
    """A session with it, with the default settings."""
    async with VisaSessionManager(instrument.resource, timeout=2.0) as session:
        yield session


# --- examples ----------------------------------------------------------------------------------------------------


async def test_example_identify_reset_configure_read(instrument: Instrument, session: VisaSessionManager) -> None:
    """Identify, reset, configure, read: queries give their replies, commands give "", in the order of the calls."""
    assert await session.enqueue_command("*IDN?", timeout=2.0, owner="v4_setup") == "ACME,METER,1,2.0"
    assert await session.enqueue_command("*RST", timeout=1.0, owner="v4_setup") == ""
    assert await session.enqueue_command("CONF:VOLT:DC", timeout=1.0, owner="v4_setup") == ""
    assert await session.enqueue_command("READ?", timeout=2.0, owner="v4_setup") == "+1.5E+00"
    assert instrument.commands == ["*IDN?", "*RST", "CONF:VOLT:DC", "READ?"]
    assert session.statistics().executed == {"v4_setup": 4}


async def test_example_concurrent_owners_are_served_in_queue_order(
    instrument: Instrument, session: VisaSessionManager
) -> None:
    """Old drivers and new actors at once: what was submitted first is carried out first, one at a time, and `submit`
    fixes that order, whoever waits for which reply first."""
    instrument.delay = 0.002
    owners = itertools.cycle(["v2_logger", "v4_meter", "v4_scan", "v2_panel"])
    pending = [session.submit(f"ECHO? {number}", owner=next(owners)) for number in range(40)]
    got: dict[int, str] = {}

    async def wait(number: int) -> None:
        got[number] = await pending[number].wait()

    async with trio.open_nursery() as nursery:
        for number in reversed(range(40)):
            nursery.start_soon(wait, number)
    assert got == {number: str(number) for number in range(40)}
    assert instrument.commands == [f"ECHO? {number}" for number in range(40)]
    assert all(before.until <= after.at for before, after in itertools.pairwise(instrument.diary))


async def test_example_commands_of_tasks_are_served_in_the_order_in_which_they_asked(
    instrument: Instrument, session: VisaSessionManager
) -> None:
    """The same for tasks that call `enqueue_command` one after the other while the instrument is busy."""
    replies: list[str] = []

    async def ask(owner: str, command: str) -> None:
        replies.append(await session.enqueue_command(command, timeout=2.0, owner=owner))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, "v4_scan", "WAIT? 0.05 first")
        await wait_until(lambda: instrument.diary)
        for depth, (owner, command) in enumerate(
            [("v2_logger", "CONF:VOLT:DC"), ("v4_scan", "*IDN?"), ("v2_panel", "READ?")]
        ):
            nursery.start_soon(ask, owner, command)
            await wait_until(lambda depth=depth: session.queue_depth() == depth + 1)  # type: ignore[misc]
    assert instrument.commands == ["WAIT? 0.05 first", "CONF:VOLT:DC", "*IDN?", "READ?"]
    assert replies == ["first", "", "ACME,METER,1,2.0", "+1.5E+00"]


@pytest.mark.parametrize("reopen", [True, False])
async def test_example_timeout_then_retry_with_a_longer_one(instrument: Instrument, reopen: bool) -> None:
    """The impatient one gets `CommandTimeoutError` in time, the patient one the answer to the second question, not
    the late one to the first: although the text is the same, and also where the connection must not be reopened."""
    sync = None if reopen else SyncQuery("ECHO {nonce}", "{nonce}")
    config = VisaSessionConfig(resource=instrument.resource, reopen=reopen, sync_query=sync)
    async with VisaSessionManager(config) as session:
        began = trio.current_time()
        with pytest.raises(TimeoutError) as caught:
            await session.enqueue_command("COUNT? 0.3", timeout=0.1, owner="v4_hasty")
        assert 0.1 <= trio.current_time() - began < 0.25
        error = caught.value
        assert isinstance(error, CommandTimeoutError)
        assert (error.owner, error.phase, error.sent) == ("v4_hasty", "in_flight", "yes")
        assert await session.enqueue_command("COUNT? 0.3", timeout=5.0, owner="v4_calm") == "count 2"
        for number in range(3):
            assert await session.enqueue_command(f"WAIT? 0.05 {number}", timeout=5.0) == str(number)


async def test_example_late_reply_to_the_sync_query_itself(instrument: Instrument) -> None:
    """A late command that is one of the two sync queries, in the very same text, does not end the search for its
    answer early: the next owners get their own replies."""
    sync = SyncQuery("*ESE?", "0", other=("*OPC?", "1"))
    config = VisaSessionConfig(resource=instrument.resource, reopen=False, sync_query=sync)
    async with VisaSessionManager(config) as session:
        for marker in ("*ESE?", "*OPC?", "*OPC?", "*ESE?"):
            instrument.delay = 0.15
            with pytest.raises(CommandTimeoutError):
                await session.query(marker, timeout=0.05)
            instrument.delay = 0.0
            for number in range(3):
                assert await session.query(f"WAIT? 0.05 {number}", timeout=5) == str(number)
    assert instrument.census.total == 1


async def test_example_queue_depth(instrument: Instrument, session: VisaSessionManager) -> None:
    """`queue_depth` counts what waits: neither what is in flight nor what was given up."""
    busy = session.submit("WAIT? 0.1 x")
    await wait_until(lambda: instrument.diary)
    pending = [session.submit(f"ECHO? {number}") for number in range(5)]
    assert session.queue_depth() == 5
    pending[2].cancel()
    assert session.queue_depth() == 4
    assert await busy.wait() == "x"
    assert [await pending[number].wait() for number in (0, 1, 3, 4)] == ["0", "1", "3", "4"]
    assert session.queue_depth() == 0


async def test_example_reconnect_after_the_device_went_away(instrument: Instrument, nursery: trio.Nursery) -> None:
    """A test command fails in time, `reconnect` says why it does not help yet, and does once the device is back."""
    config = VisaSessionConfig(resource=instrument.resource, timeout=0.3, reconnect=False)
    async with VisaSessionManager(config) as session:
        assert await session.enqueue_command("*IDN?") == "ACME,METER,1,2.0"
        instrument.unplug()
        await wait_until(lambda: instrument.census.open == 0)
        with pytest.raises(LineLostError, match=r"reconnect\(\)|closed the connection"):
            await session.enqueue_command("*IDN?")
        with pytest.raises(LineLostError, match=r"call reconnect\(\)"):
            await session.enqueue_command("*IDN?")
        with pytest.raises(LineOpenError, match="refused"):
            await session.reconnect()
        await nursery.start(instrument.serve)
        await session.reconnect()
        assert await session.enqueue_command("*IDN?") == "ACME,METER,1,2.0"


# --- troubleshooting ---------------------------------------------------------------------------------------------


async def test_trouble_device_is_slow(instrument: Instrument, session: VisaSessionManager) -> None:
    """Troubleshooting, VISA command timeout, the device is slow: the error says that the instrument had not answered
    although it was asked, and a longer timeout cures it."""
    with pytest.raises(CommandTimeoutError, match="the instrument had not answered"):
        await session.enqueue_command("WAIT? 0.2 done", timeout=0.05)
    assert await session.enqueue_command("WAIT? 0.2 done", timeout=5.0) == "done"


async def test_trouble_too_many_commands_are_queued(
    instrument: Instrument, session: VisaSessionManager, caplog: pytest.LogCaptureFixture
) -> None:
    """Troubleshooting, VISA command timeout, too many are queued: `queue_depth` passes 10, the log says so once in each
    episode and names who is at the instrument, and the error of who waited in vain says that it was never sent."""

    def warnings() -> list[str]:
        return [record.getMessage() for record in caplog.records if "commands wait" in record.getMessage()]

    async def flood() -> None:
        instrument.diary.clear()
        pending = [session.submit("WAIT? 0.4 x", owner="slow one")]
        await wait_until(lambda: instrument.diary)
        pending += [session.submit(f"ECHO? {number}") for number in range(12)]
        assert session.queue_depth() > 10
        with pytest.raises(CommandTimeoutError, match=r"12 ahead of it|13 ahead of it") as caught:
            await session.query("ECHO? hasty", timeout=0.1)
        assert (caught.value.sent, caught.value.in_flight) == ("no", "slow one")
        for each in pending:
            await each.wait()

    caplog.set_level(logging.WARNING, "trio_daq.visa")
    await flood()
    assert len(warnings()) == 1
    assert "10 commands wait" in warnings()[0]
    assert "slow one" in warnings()[0]
    await flood()
    assert len(warnings()) == 2


async def test_trouble_priorities_are_the_cure(instrument: Instrument, session: VisaSessionManager) -> None:
    """Troubleshooting, add priority queuing: an urgent command passes all that wait, and those of lower priority are
    not starved by it: every eighth goes before."""
    busy = session.submit("WAIT? 0.05 x")
    await wait_until(lambda: instrument.diary)
    pending = [session.submit(f"ECHO? n{number}", owner="logger") for number in range(3)]
    pending += [session.submit(f"ECHO? u{number}", owner="panel", priority="urgent") for number in range(20)]
    for each in (busy, *pending):
        await each.wait()
    served = [command.removeprefix("ECHO? ") for command in instrument.commands[1:]]
    assert served[:9] == ["u0", "u1", "u2", "u3", "u4", "u5", "u6", "u7", "n0"]
    assert served[9:18] == ["u8", "u9", "u10", "u11", "u12", "u13", "u14", "u15", "n1"]


async def test_trouble_connection_lost(instrument: Instrument, session: VisaSessionManager) -> None:
    """Troubleshooting, VISA command timeout, connection lost: the test command fails at once, long before its timeout,
    and after `reconnect` it is answered over a new connection."""
    began = trio.current_time()
    with pytest.raises(LineLostError):
        await session.enqueue_command("DROP?", timeout=10)
    assert trio.current_time() - began < 1
    await session.reconnect()
    assert await session.enqueue_command("*IDN?") == "ACME,METER,1,2.0"
    assert instrument.diary[-1].connection > 1


@pytest.fixture
async def port() -> AsyncIterator[SharedSerialPort]:
    """A serial port with nobody at its other end."""
    master, client_end = os.openpty()
    tty.setraw(client_end)
    port = SharedSerialPort(SerialPortConfig(path=os.ttyname(client_end), quiet_time=0.02))
    yield port
    await port.aclose()
    os.close(master)
    os.close(client_end)


async def test_trouble_deadlock_ports_come_before_sessions(
    instrument: Instrument, session: VisaSessionManager, port: SharedSerialPort
) -> None:
    """Troubleshooting, deadlock suspected: ports first, then VISA. The order is kept by the library: a port inside a
    VISA transaction is refused at once, naming both; a command, or a transaction, inside a port's block is not."""
    async with session.transaction("B") as line:
        with pytest.raises(LockOrderError) as caught:
            async with port.acquire("B", timeout=60):
                pytest.fail("acquired")
        assert caught.value.resource == port.path
        assert session.resource in str(caught.value)
        assert await line.query("ECHO? 1") == "1"
    async with port.acquire("A", timeout=5):
        assert await session.query("ECHO? 2", owner="A") == "2"
        async with session.transaction("A") as line:
            assert await line.query("ECHO? 3") == "3"


async def test_trouble_deadlock_crosswise_transactions_are_refused(
    instrument: Instrument, nursery: trio.Nursery
) -> None:
    """Troubleshooting, deadlock suspected: two owners who want two instruments in opposite order do not hang; the one
    who would close the circle is told so at once, with everybody in it, and the other one goes on."""
    other = Instrument()
    await nursery.start(other.serve)
    async with VisaSessionManager(instrument.resource) as one, VisaSessionManager(other.resource) as two:
        got: list[str] = []
        ready = trio.Event()

        async def crosswise() -> None:
            async with two.transaction("B"):
                ready.set()
                async with one.transaction("B", timeout=60) as line:
                    got.append(await line.query("ECHO? B"))

        async with trio.open_nursery() as tasks, one.transaction("A"):
            tasks.start_soon(crosswise)
            await ready.wait()
            await wait_until(one.queue_depth)
            began = trio.current_time()
            with pytest.raises(DeadlockError) as caught:
                async with two.transaction("A", timeout=60):
                    pytest.fail("acquired")
            assert trio.current_time() - began < 1
            with pytest.raises(DeadlockError):
                await two.query("ECHO? A", timeout=60)
        assert caught.value.circle == ((two.resource, "B"), (one.resource, "A"))
        assert got == ["B"]


async def test_trouble_deadlock_own_transaction_is_not_waited_for(session: VisaSessionManager) -> None:
    """The smallest circle: a command of the session inside one's own transaction in it."""
    async with session.transaction("A") as line:
        with pytest.raises(DeadlockError):
            await session.query("ECHO? 1", owner="A", timeout=60)
        assert await line.query("ECHO? 2") == "2"
    assert await session.query("ECHO? 3") == "3"


async def test_trouble_deadlock_acquire_all_takes_port_and_session(
    instrument: Instrument, session: VisaSessionManager, port: SharedSerialPort
) -> None:
    """Troubleshooting, deadlock suspected: `acquire_all` takes ports and sessions in the right order, whatever order
    they are named in, and many who do it at once all come through."""
    served: list[str] = []

    async def work(name: str, *lines: SharedSerialPort | VisaSessionManager) -> None:
        for _ in range(5):
            async with acquire_all(*lines, owner=name, timeout=10) as guards:
                line = guards[lines.index(session)]
                served.append(await line.query(f"ECHO? {name}"))  # type: ignore[union-attr]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work, "A", port, session)
        nursery.start_soon(work, "B", session, port)
        nursery.start_soon(work, "C", session)
    assert sorted(served) == ["A"] * 5 + ["B"] * 5 + ["C"] * 5


# --- defects -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stagger", [0.0, 0.001])
async def test_defect_9_no_command_is_executed_as_a_ghost(
    instrument: Instrument, session: VisaSessionManager, stagger: float
) -> None:
    """Defect 9 of the origin, timed-out commands stay queued and are executed: of 50 queries with a deadline of 15 ms
    on an instrument that takes 10 ms, none is begun after its caller was told, and only what was in flight at an expiry
    is ever executed without an answer. The next query does not wait for ghosts (there it waited for 560 ms)."""
    instrument.delay = 0.01
    told: dict[str, float] = {}
    failed: dict[str, CommandTimeoutError] = {}

    async def ask(command: str) -> None:
        try:
            await session.query(command, timeout=0.015)
        except CommandTimeoutError as error:
            failed[command] = error
        told[command] = trio.current_time()

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(ask, f"ECHO? {number}")
            if stagger:
                await trio.sleep(stagger)
    began = trio.current_time()
    assert await session.query("ECHO? next") == "next"
    assert trio.current_time() - began < 0.2
    await trio.sleep(0.1)  # a ghost would come now
    begun = {taken.command: taken.at for taken in instrument.diary[:-1]}
    assert all(at <= told[command] for command, at in begun.items())
    assert len(failed) > 20
    for command, error in failed.items():
        assert (command in begun) == (error.sent == "yes")
        assert error.phase == "in_flight" or error.sent == "no"
    ghosts = [command for command in failed if command in begun]
    seen = session.statistics()
    assert len(ghosts) <= seen.resyncs + seen.abandoned  # one in flight at each expiry; some answer just then


async def test_defect_9_abandoned_command_never_switches_anything_on(
    instrument: Instrument, session: VisaSessionManager
) -> None:
    """Defect 9 of the origin, the case in which it is dangerous: OUTP ON that expired, or whose caller was cancelled,
    while it waited is not sent when its turn comes."""
    busy = session.submit("WAIT? 0.1 x")
    await wait_until(lambda: instrument.diary)
    with pytest.raises(CommandTimeoutError) as caught:
        await session.write("OUTP ON", timeout=0.02)
    assert caught.value.sent == "no"
    with trio.move_on_after(0.02):
        await session.write("OUTP ON")
    taken_back = session.submit("OUTP ON")
    taken_back.cancel()
    assert await busy.wait() == "x"
    assert await session.query("ECHO? next") == "next"
    assert "OUTP ON" not in instrument.commands


async def test_defect_10_one_deadline_covers_the_wait_for_a_place(instrument: Instrument) -> None:
    """Defect 10 of the origin, a timeout of 100 ms returned after 671 ms on a full queue: here it returns in time, with
    the full queue as its reason."""
    config = VisaSessionConfig(resource=instrument.resource, queue_size=3)
    async with VisaSessionManager(config) as session:
        busy = session.submit("WAIT? 0.5 x")
        await wait_until(lambda: instrument.diary)
        waiting = [session.submit(f"ECHO? {number}") for number in range(3)]
        began = trio.current_time()
        with pytest.raises(CommandTimeoutError, match="the queue was full") as caught:
            await session.query("ECHO? late", timeout=0.1)
        assert 0.1 <= trio.current_time() - began < 0.3
        assert (caught.value.phase, caught.value.sent) == ("place", "no")
        for each in (busy, *waiting):
            await each.wait()
    assert "ECHO? late" not in instrument.commands


async def test_defect_11_write_says_when_it_is_done_and_whether(
    instrument: Instrument, session: VisaSessionManager, nursery: trio.Nursery
) -> None:
    """Defect 11 of the origin, write returns when it is queued and loses errors: here it returns when it was written,
    after what was queued before it, and raises what went wrong."""
    busy = session.submit("WAIT? 0.1 x")
    await session.write("CONF:VOLT:DC")
    assert busy.is_done()
    await wait_until(lambda: "CONF:VOLT:DC" in instrument.commands, within=0.05)
    instrument.unplug()
    await wait_until(lambda: instrument.census.open == 0)
    with pytest.raises(CommandTimeoutError, match="refused") as caught:
        await session.write("CONF:VOLT:DC", timeout=0.2)
    assert (caught.value.phase, caught.value.sent) == ("resync", "no")


async def test_defect_12_close_ends_the_worker_and_reopening_makes_no_second_one(instrument: Instrument) -> None:
    """Defect 12 of the origin, close fails after 1 s, the old handle goes on, and reopening gives a second worker
    beside it: here close is quick, the old handle refuses, what waits is told, and commands of two sessions of one
    instrument are carried out one after the other."""
    instrument.delay = 0.01
    async with VisaSessionManager(instrument.resource) as old:
        assert await old.query("ECHO? 1") == "1"
        busy, waiting = old.submit("ECHO? 2"), old.submit("ECHO? 3")
        await wait_until(lambda: len(instrument.diary) == 2)
        began = trio.current_time()
        await old.close()
        assert trio.current_time() - began < 0.3
        assert await busy.wait() == "2"
        with pytest.raises(SessionClosedError):
            await waiting.wait()
        with pytest.raises(SessionClosedError):
            await old.query("ECHO? 4")
        await wait_until(lambda: instrument.census.open == 0)
        instrument.diary.clear()
        async with (
            VisaSessionManager(instrument.resource) as new,
            VisaSessionManager(instrument.resource) as other,
            trio.open_nursery() as nursery,
        ):
            for session in (new, other):
                nursery.start_soon(session.query, "ECHO? 5")
        first, second = instrument.diary
        assert first.until <= second.at
    assert instrument.census.most == 1


async def test_defect_13_a_transaction_keeps_configure_and_read_together(
    instrument: Instrument, session: VisaSessionManager
) -> None:
    """Defect 13 of the origin, CONF of one caller and READ of the next interleave: inside a transaction, and inside a
    batch, nobody's command comes in between."""
    instrument.delay = 0.001

    async def transact(name: str) -> None:
        for _ in range(10):
            async with session.transaction(name, timeout=10) as line:
                await line.write(f"CONF {name}")
                await line.query(f"ECHO? {name}")

    async def batch(name: str) -> None:
        for _ in range(10):
            assert await session.batch([f"CONF {name}", f"ECHO? {name}"], owner=name, timeout=10) == ["", name]

    async with trio.open_nursery() as nursery:
        for name in ("A", "B"):
            nursery.start_soon(transact, name)
        for name in ("C", "D"):
            nursery.start_soon(batch, name)
    pairs = list(zip(instrument.commands[::2], instrument.commands[1::2], strict=True))
    assert len(pairs) == 40
    assert all(read == conf.replace("CONF", "ECHO?") for conf, read in pairs)


async def test_defect_14_instruments_do_not_wait_for_each_other(instrument: Instrument, nursery: trio.Nursery) -> None:
    """Defect 14 of the origin, one slow command blocks all others, and nothing tells: each instrument has a worker of
    its own, a command can be urgent, and depth, owner and times are there to be read."""
    other = Instrument()
    await nursery.start(other.serve)
    async with VisaSessionManager(instrument.resource) as slow, VisaSessionManager(other.resource) as quick:
        busy = slow.submit("WAIT? 0.3 x", owner="scan")
        await wait_until(lambda: instrument.diary)
        assert await quick.query("ECHO? 1", timeout=0.2) == "1"
        waiting, urgent = slow.submit("ECHO? 2"), slow.submit("ECHO? 3", priority="urgent")
        seen = slow.statistics()
        assert (slow.queue_depth(), slow.current_owner(), seen.in_flight) == (2, "scan", "scan")
        for each in (busy, waiting, urgent):
            await each.wait()
        assert instrument.commands[1:] == ["ECHO? 3", "ECHO? 2"]
        assert slow.statistics().longest_wait > 0.1


async def test_defect_15_long_replies_are_whole_and_timeouts_are_their_own(
    instrument: Instrument, session: VisaSessionManager
) -> None:
    """Defect 15 of the origin, calls block the runtime, one read of 4096 bytes cuts replies, and a timeout outlives the
    query that set it: here other tasks go on meanwhile, the reply is whole, and the next query has the session's own
    timeout again."""
    instrument.answers["CURVE?"] = "0123456789" * 10_000
    with pytest.raises(CommandTimeoutError):
        await session.query("WAIT? 0.1 x", timeout=0.02)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await trio.sleep(0.01)
            ticks += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        assert await session.query("WAIT? 0.2 y") == "y"
        nursery.cancel_scope.cancel()
    assert ticks > 5
    assert await session.query("CURVE?") == "0123456789" * 10_000


@pytest.mark.parametrize(
    ("command", "reply"),
    [("MEAS? (@1)", "1.5"), ("*IDN?;", "ACME"), ("DISP:TEXT 'ready?'", ""), ("*RST;*IDN?", "ACME"), ("CONF:VOLT", "")],
)
async def test_defect_16_a_query_is_known_by_its_header(
    instrument: Instrument, session: VisaSessionManager, command: str, reply: str
) -> None:
    """Defect 16 of the origin, a query is known by a question mark at its end: here by its header, wherever that is,
    and text in quotes does not count."""
    if reply:
        instrument.answers[command] = reply
    assert await session.enqueue_command(command, timeout=1.0) == reply
