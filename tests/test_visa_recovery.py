"""What a VISA session does when something goes wrong; nobody gets a wrong reply, nothing is executed twice."""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from visa_instrument import Instrument, wait_until

from trio_daq.errors import (
    CommandTimeoutError,
    InstrumentError,
    LeaseRevokedError,
    LineLostError,
    LineOpenError,
    LineUnusableError,
    ReplyError,
    TransactionBrokenError,
)
from trio_daq.sim import open_simulated_lab, read_log
from trio_daq.visa import Transport, VisaSessionConfig, VisaSessionManager
from trio_daq.visa.native_transport import NativeTransport
from trio_daq.visa.pyvisa_transport import PyvisaTransport
from trio_daq.wire import Command, Exchange, SyncQuery

ECHO = SyncQuery("ECHO {nonce}", "{nonce}")


@pytest.fixture(params=["native", "pyvisa"])
async def instrument(request: pytest.FixtureRequest, nursery: trio.Nursery) -> Instrument:
    """An instrument on loopback TCP, to be reached by the one transport and by the other."""
    instrument = Instrument()
    instrument.transport = request.param
    await nursery.start(instrument.serve)
    return instrument


def session_of(instrument: Instrument, **settings: Any) -> VisaSessionManager:
    config = VisaSessionConfig(resource=instrument.resource, transport=instrument.transport, **settings)
    return VisaSessionManager(config)


async def lose(session: VisaSessionManager, instrument: Instrument) -> None:
    """Let the instrument go away, and the session know it."""
    pending = session.submit("MUTE?")
    await wait_until(lambda: "MUTE?" in instrument.commands)
    instrument.unplug()
    with pytest.raises(LineLostError):
        await pending.wait()
    await wait_until(lambda: session.state == "lost")


# --- which instrument it is, and what it has to know -------------------------------------------------------------


async def test_another_instrument_is_refused_at_opening(instrument: Instrument) -> None:
    """An instrument that does not answer `identify` as expected gets nothing more, and the error says what it said."""
    config = {"identify": Exchange(query="*IDN?", expect="OTHER,.*")}
    with pytest.raises(LineOpenError, match=r"another instrument is there: it answers '\*IDN\?' by 'ACME,METER,1,2.0'"):
        async with session_of(instrument, **config):
            pytest.fail("entered")
    assert instrument.commands == ["*IDN?"]
    await wait_until(lambda: instrument.census.open == 0)


async def test_another_instrument_after_an_outage_gets_nothing(instrument: Instrument, nursery: trio.Nursery) -> None:
    """If another instrument has taken its place, commands fail unsent and say so; with the right one they go on."""
    async with session_of(instrument, identify=Exchange(query="*IDN?", expect="ACME,.*")) as session:
        await lose(session, instrument)
        right, instrument.answers["*IDN?"] = instrument.answers["*IDN?"], "OTHER,PUMP"
        await nursery.start(instrument.serve)
        await wait_until(lambda: instrument.commands[-1] == "*IDN?")
        with pytest.raises(CommandTimeoutError, match="another instrument is there") as caught:
            await session.write("OUTP ON", timeout=0.2)
        assert (caught.value.phase, caught.value.sent) == ("resync", "no")
        instrument.answers["*IDN?"] = right
        assert await session.query("ECHO? 1", timeout=5) == "1"
    assert "OUTP ON" not in instrument.commands


async def test_on_reconnect_is_done_on_every_connection_but_the_first(instrument: Instrument) -> None:
    """The steps are taken before anybody's command, whatever the reason for the new connection was."""
    steps = (Exchange(write="MODE 2"), Exchange(query="ECHO? ready", expect="ready"))
    async with session_of(instrument, on_reconnect=steps) as session:
        await session.query("ECHO? 1")
        with pytest.raises(CommandTimeoutError):
            await session.query("MUTE?", timeout=0.05)
        await session.query("ECHO? 2")
        with pytest.raises(LineLostError):
            await session.query("DROP?")
        await session.query("ECHO? 3")
        await session.reconnect()
        await session.query("ECHO? 4")
        assert session.statistics().reconnects == 3
    heard = [[taken.command for taken in instrument.diary if taken.connection == number] for number in (1, 2, 3, 4)]
    again = ["MODE 2", "ECHO? ready"]
    assert heard == [
        ["ECHO? 1", "MUTE?"],
        [*again, "ECHO? 2", "DROP?"],
        [*again, "ECHO? 3"],
        [*again, "ECHO? 4"],
    ]


async def test_step_of_on_reconnect_that_fails_keeps_commands_back(instrument: Instrument) -> None:
    """An instrument that does not take what it has to know is not used, and the error names the step."""
    async with session_of(instrument, on_reconnect=[Exchange(query="ECHO? ready", expect="READY")]) as session:
        with pytest.raises(LineOpenError, match=r"it answers 'ECHO\? ready' by 'ready'"):
            await session.reconnect()
        with pytest.raises(CommandTimeoutError) as caught:
            await session.query("ECHO? 1", timeout=0.1)
        assert caught.value.sent == "no"


# --- transactions ------------------------------------------------------------------------------------------------


async def test_transaction_does_not_go_on_over_another_connection(instrument: Instrument) -> None:
    """After a reopening inside it, each of its commands is refused unsent; the next transaction is as good as new."""
    async with session_of(instrument) as session:
        async with session.transaction("scan") as line:
            await line.write("CONF:VOLT")
            with pytest.raises(CommandTimeoutError):
                await line.query("MUTE?", timeout=0.05)
            for call in (line.query, line.write):
                with pytest.raises(TransactionBrokenError, match="an exchange was left unfinished") as caught:
                    await call("READ?")
                assert caught.value.sent == "no"
        async with session.transaction("scan") as line:
            assert await line.query("READ?") == "+1.5E+00"
    assert instrument.commands.count("READ?") == 1


async def test_transaction_is_broken_by_somebody_who_reconnects(instrument: Instrument) -> None:
    """`reconnect` does not wait for a transaction, so that an operator can always call it; the transaction is told."""
    async with session_of(instrument) as session, session.transaction("scan") as line:
        await line.write("CONF:VOLT")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.reconnect)
        with pytest.raises(TransactionBrokenError):
            await line.query("READ?")


@pytest.mark.parametrize("first", ["query", "write", "batch"])
async def test_transaction_begins_with_its_first_command(instrument: Instrument, first: str) -> None:
    """A connection that ended before anything of a transaction was sent is none of its business: it goes on over the
    next one, and is broken only by the end of that."""
    async with session_of(instrument, timeout=5) as session:
        assert await session.query("LAST? one") == "one"
        await wait_until(lambda: instrument.census.open == 0)
        async with session.transaction("scan") as line:
            if first == "query":
                assert await line.query("ECHO? 1") == "1"
            elif first == "write":
                await line.write("CONF:VOLT")
            else:
                assert await line.batch(["CONF:VOLT", "ECHO? 1"]) == ["", "1"]
            assert await line.query("LAST? two") == "two"
            await wait_until(lambda: instrument.census.open == 0)
            with pytest.raises(TransactionBrokenError) as caught:
                await line.query("ECHO? 2")
            assert caught.value.sent == "no"
        assert await session.query("ECHO? 3") == "3"
    assert "ECHO? 2" not in instrument.commands
    assert session.statistics().reconnects == 2


async def test_commands_of_a_transaction_stay_together(instrument: Instrument) -> None:
    """Those that waited behind its first one when the connection was opened again belong to it as well."""
    async with session_of(instrument, timeout=5) as session:
        assert await session.query("LAST? one") == "one"
        await wait_until(lambda: instrument.census.open == 0)
        async with session.transaction("scan") as line:
            pending = [line.submit(text) for text in ("ECHO? 1", "LAST? 2", "ECHO? 3", "ECHO? 4")]
            assert [await each.wait() for each in pending[:2]] == ["1", "2"]
            for each in pending[2:]:
                with pytest.raises((TransactionBrokenError, LineLostError)):
                    await each.wait()
            with pytest.raises(TransactionBrokenError):
                await line.query("ECHO? 5")
    assert instrument.commands[:3] == ["LAST? one", "ECHO? 1", "LAST? 2"]
    assert "ECHO? 5" not in instrument.commands


async def test_transaction_that_is_held_for_too_long_is_taken_back(instrument: Instrument) -> None:
    """After max_hold its block is cancelled and raises `LeaseRevokedError`, its guard is dead, and who waits is next:
    with the right reply, although one was still owed to it."""
    replies: list[str] = []
    async with session_of(instrument, timeout=5) as session, trio.open_nursery() as nursery:

        async def next_one() -> None:
            replies.append(await session.query("ECHO? next", owner="next"))

        began = trio.current_time()
        with pytest.raises(LeaseRevokedError) as caught:  # noqa: PT012 - the block is what is tested
            async with session.transaction("scan", max_hold=0.1) as line:
                nursery.start_soon(next_one)
                pending = [line.submit("WAIT? 0.4 late"), line.submit("OUTP ON")]
                await trio.sleep(2)
                pytest.fail("its block went on")
        assert 0.1 <= trio.current_time() - began < 0.3
        assert caught.value.owner == "scan"
        for each, sent in zip(pending, ("yes", "no"), strict=True):
            with pytest.raises(LeaseRevokedError) as refused:
                await each.wait()
            assert refused.value.sent == sent
        with pytest.raises(LeaseRevokedError):
            await line.write("OUTP ON")
    assert replies == ["next"]
    assert "OUTP ON" not in instrument.commands


async def test_transaction_leaves_no_command_behind(instrument: Instrument) -> None:
    """What was submitted in it and was not carried out when it ends is not carried out later."""
    async with session_of(instrument) as session:
        async with session.transaction("scan") as line:
            first = line.submit("WAIT? 0.05 x")
            await wait_until(lambda: instrument.diary)
            second = line.submit("OUTP ON")
        with pytest.raises(ValueError, match="after its guard was released"):
            await second.wait()
        assert await first.wait() == "x"
        assert await session.query("ECHO? 1") == "1"
    assert "OUTP ON" not in instrument.commands


# --- the error queue of the instrument ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "after_write", "after_batch"),
    [("never", False, False), ("after_write", True, True), ("after_batch", False, True), ("on_timeout", False, False)],
)
async def test_error_queue_is_read_when_the_settings_say_so(
    tmp_path: Path, mode: str, after_write: bool, after_batch: bool
) -> None:
    """By the log of a simulated meter: after what the error queue is read, and who gets an `InstrumentError`."""
    refused = []
    async with open_simulated_lab(tmp_path / "log", stage=None) as lab:
        config: Any = {"resource": lab.meter_resource, "check_errors": mode}
        async with VisaSessionManager(VisaSessionConfig(**config)) as session:
            for work in (session.write("BOGUS"), session.batch(["*CLS", "BOGUS", "MEAS:VOLT? n1"])):
                try:
                    await work
                except InstrumentError as error:
                    refused.append((error.command, error.errors, error.sent))
            assert (await session.query("MEAS:VOLT? n2")).startswith("n2,")
            seen = {entry.text for entry in read_log(lab.log) if entry.event == "command"}
            assert session.state == "open"
    bogus = [(-113, "Undefined header")]
    expected = [("BOGUS", bogus, "yes")] if after_write else []
    if after_batch:
        expected += [("*CLS; BOGUS; MEAS:VOLT? n1", bogus, "yes")]
    assert refused == expected
    assert ("SYST:ERR?" in seen) == (mode != "never")


async def test_error_queue_is_read_after_a_timeout(instrument: Instrument, caplog: pytest.LogCaptureFixture) -> None:
    """With on_timeout, what the instrument had against the command that was not answered is in the log."""
    async with session_of(instrument, check_errors="on_timeout") as session:
        with pytest.raises(CommandTimeoutError):
            await session.query("BOGUS?", timeout=0.05)
        assert await session.query("ECHO? 1") == "1"
    assert "-113 Undefined header" in caplog.text


async def test_instrument_error_names_the_command_and_all_errors(instrument: Instrument) -> None:
    """Its text says who sent what, and each error, oldest first."""
    async with session_of(instrument, check_errors="after_write") as session:
        instrument.errors.append('-350,"Queue overflow"')
        with pytest.raises(InstrumentError, match=r"-350 Queue overflow; -113 Undefined header") as caught:
            await session.write("BOGUS", owner="alice")
        assert (caught.value.command, caught.value.owner) == ("BOGUS", "alice")
        assert caught.value.errors == [(-350, "Queue overflow"), (-113, "Undefined header")]
        await session.write("CONF:VOLT", owner="bob")


async def test_errors_that_lay_there_at_opening_are_nobodys(
    instrument: Instrument, caplog: pytest.LogCaptureFixture
) -> None:
    """What somebody else had done wrong before is logged, and the first command is not blamed for it."""
    instrument.errors.append('-222,"Data out of range"')
    async with session_of(instrument, check_errors="after_write") as session:
        await session.write("CONF:VOLT")
    assert "in the error queue after opening: -222 Data out of range" in caplog.text


async def test_instrument_that_never_says_that_its_queue_is_empty(instrument: Instrument) -> None:
    """Thirty-two errors are read, not more, and the session goes on."""
    async with session_of(instrument, check_errors="after_write") as session:
        instrument.errors.extend(['-350,"Queue overflow"'] * 1000)
        with pytest.raises(InstrumentError) as caught:
            await session.write("CONF:VOLT")
        assert len(caught.value.errors) == 32
        assert await session.query("ECHO? 1") == "1"


async def test_error_queue_that_cannot_be_read_is_a_reply_error(instrument: Instrument) -> None:
    """An answer that is no error code says so; the command itself was sent."""
    instrument.answers["*ERR?"] = "0"
    async with session_of(instrument, check_errors="after_write", error_query="*ERR?") as session:
        instrument.answers["*ERR?"] = "what?"
        with pytest.raises(ReplyError) as caught:
            await session.write("CONF:VOLT")
        assert (caught.value.reply, caught.value.sent) == (b"what?", "yes")
        instrument.answers["*ERR?"] = "0"
        assert await session.query("ECHO? 1") == "1"


async def test_command_is_not_sent_again_when_its_check_meets_surplus_bytes(instrument: Instrument) -> None:
    """Bytes that come unasked between a command and the check of it fail the command as sent: it is executed once."""
    async with session_of(instrument, check_errors="after_batch") as session:
        with pytest.raises(LineLostError) as caught:
            await session.batch(["OUTP ON", "TWICE? x"])
        assert caught.value.sent == "yes"
        assert await session.query("ECHO? 1") == "1"
    assert Counter(instrument.commands)["OUTP ON"] == 1


# --- bytes that nobody asked for ---------------------------------------------------------------------------------


async def test_greeting_is_no_reply(instrument: Instrument) -> None:
    """With a sync query an instrument that greets each connection is no trouble, also when it is opened again."""
    instrument.greeting = "WELCOME"
    async with session_of(instrument, sync_query=ECHO) as session:
        assert await session.query("ECHO? 1") == "1"
        with pytest.raises(CommandTimeoutError):
            await session.query("MUTE?", timeout=0.05)
        assert await session.query("ECHO? 2") == "2"
    assert instrument.census.total == 2


@pytest.mark.parametrize("sync", [ECHO, None])
async def test_late_reply_is_dropped_where_reopening_is_not_allowed(
    instrument: Instrument, sync: SyncQuery | None
) -> None:
    """With reopen=False the connection stays, and the late reply reaches nobody: a sync query finds its end, or a
    silence that is longer than it is late."""
    async with session_of(instrument, reopen=False, sync_query=sync, quiet_time=0.3) as session:
        for number in range(3):
            with pytest.raises(CommandTimeoutError):
                await session.query("WAIT? 0.2 late", timeout=0.05)
            assert await session.query(f"ECHO? {number}", timeout=5) == str(number)
        assert session.statistics().resyncs == 3
    assert instrument.census.total == 1


async def test_flood_is_cut_off_by_a_new_connection(instrument: Instrument, nursery: trio.Nursery) -> None:
    """An instrument that sends without an end holds up neither the loop nor the next command for long."""
    async with session_of(instrument) as session:
        await session.write("FLOOD")
        await wait_until(lambda: instrument.diary)
        await trio.sleep(0.05)
        longest, last, ends = 0.0, time.perf_counter(), trio.Event()

        async def watch() -> None:
            nonlocal longest, last
            while not ends.is_set():
                await trio.lowlevel.checkpoint()
                now = time.perf_counter()
                longest, last = max(longest, now - last), now

        nursery.start_soon(watch)
        began = trio.current_time()
        assert await session.query("ECHO? 1") == "1"
        ends.set()
        assert trio.current_time() - began < 1
        assert longest < 0.5


async def test_flood_without_a_new_connection_is_refused(instrument: Instrument) -> None:
    """Where reopening is not allowed, the session refuses to go on, within its resync_timeout, and says why."""
    async with session_of(instrument, reopen=False, resync_timeout=0.2, quiet_time=0.1) as session:
        await session.write("FLOOD")
        await wait_until(lambda: instrument.diary)
        await trio.sleep(0.05)
        began = trio.current_time()
        with pytest.raises((LineUnusableError, LineLostError, CommandTimeoutError)) as caught:
            await session.write("OUTP ON")
        assert caught.value.sent == "no"
        assert trio.current_time() - began < 2.5
    assert "OUTP ON" not in instrument.commands


# --- outages -----------------------------------------------------------------------------------------------------


class Connects:
    """Make transports, and count how often and how many at once they try to connect."""

    def __init__(self) -> None:
        self.tries = self.now = self.most = 0

    def __call__(self, config: VisaSessionConfig) -> Transport:
        count = self

        class Counted(NativeTransport if config.is_native else PyvisaTransport):  # type: ignore[misc]
            async def open(self, timeout: float) -> None:
                count.tries += 1
                count.now += 1
                count.most = max(count.most, count.now)
                try:
                    await super().open(timeout)
                finally:
                    count.now -= 1

        return Counted(config)


async def test_queued_commands_wait_through_an_outage_and_are_executed_once(
    instrument: Instrument, nursery: trio.Nursery
) -> None:
    """Those whose deadline allows it are carried out in their order when the instrument is back, each once; the other
    ones fail in time and are never sent; and it is tried again with pauses, one connection at a time."""
    connects = Connects()
    config = VisaSessionConfig(resource=instrument.resource, transport=instrument.transport)
    async with VisaSessionManager(config, make_transport=connects) as session:
        await lose(session, instrument)
        began = trio.current_time()
        patient = [session.submit(f"ECHO? {number}", timeout=5) for number in range(5)]
        hasty = [session.submit(f"OUTP {number}", timeout=0.1) for number in range(5)]
        for each in hasty:
            with pytest.raises(CommandTimeoutError, match=r"refused|closed the connection") as caught:
                await each.wait()
            assert (caught.value.phase, caught.value.sent) == ("resync", "no")
        assert trio.current_time() - began < 0.3
        await trio.sleep(0.9)
        assert 3 <= connects.tries <= 8  # the first one, and then after 0.1, 0.2, 0.4 s, a quarter more or less
        assert connects.most == 1
        await nursery.start(instrument.serve)
        assert [await each.wait() for each in patient] == [str(number) for number in range(5)]
    assert [command for command in instrument.commands if command != "MUTE?"] == [f"ECHO? {n}" for n in range(5)]


async def test_a_lost_session_comes_back_by_itself(instrument: Instrument, nursery: trio.Nursery) -> None:
    """Nobody has to ask: it is open again a while after the instrument is."""
    async with session_of(instrument) as session:
        await lose(session, instrument)
        await nursery.start(instrument.serve)
        await wait_until(lambda: session.state == "open")
        assert session.statistics().reconnects == 1


async def test_without_reconnect_a_lost_session_stays_lost(instrument: Instrument, nursery: trio.Nursery) -> None:
    """With reconnect=False what waits fails at once, unsent, and nothing is opened until somebody says `reconnect`."""
    async with session_of(instrument, reconnect=False, timeout=10) as session:
        pending = [session.submit("DROP?"), *(session.submit(f"ECHO? {number}") for number in range(3))]
        began = trio.current_time()
        sent = []
        for each in pending:
            with pytest.raises(LineLostError) as caught:
                await each.wait()
            sent.append(caught.value.sent)
        assert sent == ["yes", "no", "no", "no"]
        assert trio.current_time() - began < 1
        await trio.sleep(0.3)
        assert instrument.census.total == 1
        await session.reconnect()
        assert await session.query("ECHO? 1") == "1"


async def test_what_was_in_flight_is_never_sent_again(instrument: Instrument) -> None:
    """A command that met the end of the connection is told to its caller, not repeated."""
    async with session_of(instrument) as session:
        with pytest.raises(LineLostError) as caught:
            await session.query("DROP?")
        assert caught.value.sent == "yes"
        assert await session.query("ECHO? 1") == "1"
    assert instrument.commands == ["DROP?", "ECHO? 1"]


async def test_unusable_session_says_when_it_is_tried_again(instrument: Instrument) -> None:
    """While it cannot be made trustworthy, commands are refused at once, with the time of the next try; after that time
    the next command is answered."""
    async with session_of(instrument, reopen=False, sync_query=ECHO, resync_timeout=0.1) as session:
        instrument.delay = 60
        with pytest.raises(CommandTimeoutError):
            await session.query("ECHO? late", timeout=0.05)
        await wait_until(lambda: session.state == "unusable")
        with pytest.raises(LineUnusableError, match="The next try is in") as caught:
            await session.query("ECHO? 1")
        assert caught.value.retry_in is not None
        assert 0 < caught.value.retry_in <= 0.125
        assert caught.value.sent == "no"
        instrument.delay = 0
        await trio.sleep(caught.value.retry_in + 0.01)
        assert await session.query("ECHO? 2") == "2"


# --- what commands are -------------------------------------------------------------------------------------------


def asks(command: str) -> bool:
    return command.startswith(("ECHO?", "SAY"))


@pytest.mark.parametrize(
    ("dialect", "commands"),
    [
        ("scpi", {"ECHO? 1": "1", "CONF:VOLT": ""}),
        ("tsp", {"print(smua.source.levelv)": "smua.source.levelv", "smua.source.levelv = 1": "", "*IDN?": "ACME"}),
        ("echo", {"SAY ok": "ok", "ECHO? 1": "1"}),
        (asks, {"SAY ok": "ok", "WAIT": "", "ECHO? 1": "1"}),
    ],
)
async def test_dialect_says_which_commands_are_answered(
    instrument: Instrument, dialect: str | Callable[[str], bool], commands: dict[str, str]
) -> None:
    """`enqueue_command`, `batch` and `submit` go by the dialect, and each gets its own reply."""
    instrument.answers["*IDN?"] = "ACME"
    async with session_of(instrument, dialect=dialect, timeout=1) as session:
        assert {command: await session.enqueue_command(command) for command in commands} == commands
        assert await session.batch(commands) == list(commands.values())
        pending = {command: session.submit(command) for command in commands}
        assert {command: await each.wait() for command, each in pending.items()} == commands


async def test_command_with_values(instrument: Instrument) -> None:
    """A `Command` is sent with its values written into it, and one that would become two never reaches the queue."""
    async with session_of(instrument) as session:
        await session.write(Command("VOLT {}, (@{})", 1.5, 101))
        assert await session.query(Command("ECHO? {}", 0.1)) == "0.1"
        assert await session.batch([Command("OUTP {}", True), Command("ECHO? {}", "MAX")]) == ["", "MAX"]
        with pytest.raises(ValueError, match="no single word"):
            await session.write(Command("OUTP {}", "1;*RST"))
    assert instrument.commands == ["VOLT 1.5, (@101)", "ECHO? 0.1", "OUTP 1", "ECHO? MAX"]


async def test_batch_names_the_command_at_which_it_ended(instrument: Instrument) -> None:
    """Those before it were carried out, those after it never will be."""
    async with session_of(instrument) as session:
        with pytest.raises(CommandTimeoutError) as caught:
            await session.batch(["ECHO? 1", "MUTE?", "OUTP ON"], timeout=0.5)
        assert (caught.value.command, caught.value.sent) == ("MUTE?", "yes")
        assert await session.query("ECHO? 2") == "2"
    assert instrument.commands == ["ECHO? 1", "MUTE?", "ECHO? 2"]


@pytest.mark.parametrize("how", ["poll_until", "wait_complete"])
async def test_waiting_for_the_instrument_lets_others_in_between(instrument: Instrument, how: str) -> None:
    """While one owner waits for an operation to end, another one's commands are answered; then the wait is over."""
    instrument.busy_for = 0.3
    answered = 0
    async with session_of(instrument, timeout=5) as session, trio.open_nursery() as nursery:

        async def other() -> None:
            nonlocal answered
            while True:
                await session.query("ECHO? other", owner="other", timeout=0.2)
                answered += 1
                await trio.sleep(0.01)

        nursery.start_soon(other)
        began = trio.current_time()
        if how == "poll_until":
            await session.write("*OPC")
            assert await session.poll_until("*ESR?", lambda reply: reply == "1", every=0.02, timeout=5) == "1"
        else:
            await session.wait_complete(timeout=5)
        assert 0.3 <= trio.current_time() - began < 1
        nursery.cancel_scope.cancel()
    assert answered > 5
    assert 3 < Counter(instrument.commands)["*ESR?"] < 40


async def test_waiting_for_the_instrument_ends_in_time(instrument: Instrument) -> None:
    """An operation that does not end gives `CommandTimeoutError` by the given time, with the last reply."""
    instrument.busy_for = 60
    async with session_of(instrument) as session:
        began = trio.current_time()
        with pytest.raises(CommandTimeoutError, match="its last reply was '0'") as caught:
            await session.wait_complete(timeout=0.2)
        assert trio.current_time() - began < 0.5
        assert caught.value.sent == "yes"
        assert await session.query("ECHO? 1") == "1"
