"""Sessions that share something: a bus, the right to be open, or the very instrument."""

import itertools
import os
import random
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import trio
import trio.testing
from visa_instrument import Instrument, wait_until

from trio_daq.errors import CommandTimeoutError, LineLostError, SessionClosedError
from trio_daq.visa import VisaSessionConfig, VisaSessionManager
from trio_daq.visa.native_transport import NativeTransport
from trio_daq.visa.registry import join, leave


@pytest.fixture
async def first(nursery: trio.Nursery) -> Instrument:
    """One instrument."""
    instrument = Instrument()
    await nursery.start(instrument.serve)
    return instrument


@pytest.fixture
async def second(nursery: trio.Nursery, first: Instrument) -> Instrument:
    """Another one, in the same census."""
    instrument = Instrument(first.census)
    await nursery.start(instrument.serve)
    return instrument


def config_of(instrument: Instrument, **settings: Any) -> VisaSessionConfig:
    return VisaSessionConfig(resource=instrument.resource, **settings)


# --- buses -------------------------------------------------------------------------------------------------------


async def test_sessions_of_one_bus_never_overlap(first: Instrument, second: Instrument) -> None:
    """Two instruments on one bus, 200 commands each: by their own diaries, no two were at work at the same time."""
    instruments = (first, second)

    async def ask(session: VisaSessionManager, owner: int) -> None:
        for number in range(50):
            assert await session.query(f"ECHO? {owner}.{number}", timeout=10) == f"{owner}.{number}"

    for instrument in instruments:
        instrument.delay = 0.001
    async with (
        VisaSessionManager(config_of(first, bus="rack")) as one,
        VisaSessionManager(config_of(second, bus="rack")) as other,
        trio.open_nursery() as nursery,
    ):
        for owner in range(4):
            nursery.start_soon(ask, one, owner)
            nursery.start_soon(ask, other, owner)
    assert [len(instrument.diary) for instrument in instruments] == [200, 200]
    diary = sorted((taken for instrument in instruments for taken in instrument.diary), key=lambda taken: taken.at)
    assert all(before.until <= after.at for before, after in itertools.pairwise(diary))
    assert first.diary[-1].at > second.diary[0].at  # they were at it during the same time, and took turns
    assert second.diary[-1].at > first.diary[0].at


async def test_sessions_without_a_bus_do_not_wait_for_each_other(first: Instrument, second: Instrument) -> None:
    """Instruments that share nothing work at the same time."""
    async with (
        VisaSessionManager(config_of(first)) as one,
        VisaSessionManager(config_of(second)) as other,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(one.query, "WAIT? 0.2 x")
        nursery.start_soon(other.query, "WAIT? 0.2 x")
    assert first.diary[0].at < second.diary[0].until
    assert second.diary[0].at < first.diary[0].until


async def test_urgent_commands_go_first_on_the_whole_bus(first: Instrument, second: Instrument) -> None:
    """A priority counts among all sessions of a bus, as the order of asking does within one."""
    async with (
        VisaSessionManager(config_of(first, bus="rack")) as one,
        VisaSessionManager(config_of(second, bus="rack")) as other,
    ):
        busy = one.submit("WAIT? 0.05 x")
        await wait_until(lambda: first.diary)
        pending = [one.submit("ECHO? 1"), other.submit("ECHO? 2"), one.submit("ECHO? 3")]
        pending += [other.submit("ECHO? first", priority="urgent"), one.submit("ECHO? last", priority="background")]
        for each in (busy, *pending):
            await each.wait()
    diary = sorted(first.diary + second.diary, key=lambda taken: taken.at)
    assert [taken.command for taken in diary[1:]] == ["ECHO? first", "ECHO? 1", "ECHO? 2", "ECHO? 3", "ECHO? last"]


async def test_instruments_of_one_gpib_board_share_a_worker() -> None:
    """The board is the bus of a GPIB resource that names none, whatever its spelling; another board is another one."""

    def never(_: VisaSessionConfig) -> Any:
        raise AssertionError("nothing is opened here")

    lanes, links = [], []
    for resource in ("GPIB0::9::INSTR", "gpib::10::INSTR", "GPIB1::9::INSTR"):
        lane, link = join(VisaSessionConfig(resource=resource), never)
        lanes.append(lane)
        links.append(link)
    try:
        assert lanes[0] is lanes[1]
        assert lanes[2] is not lanes[0]
    finally:
        assert all(leave(link) for link in links)


async def test_sessions_of_one_bus_agree_on_max_open(first: Instrument, second: Instrument) -> None:
    """Another number in the second session is refused, and the first one goes on."""
    async with VisaSessionManager(config_of(first, bus="rack", max_open=1)) as session:
        with pytest.raises(ValueError, match="max_open is 2 here and 1 in another session of bus rack"):
            async with VisaSessionManager(config_of(second, bus="rack", max_open=2)):
                pytest.fail("entered")
        assert await session.query("ECHO? 1") == "1"


# --- the right to be open ----------------------------------------------------------------------------------------


async def test_only_so_many_sessions_of_a_bus_are_open(first: Instrument, second: Instrument) -> None:
    """With max_open=1 one connection is closed before the other opens, by the instruments' own count, and both work."""

    async def ask(session: VisaSessionManager) -> None:
        for number in range(20):
            assert await session.query(f"ECHO? {number}", timeout=10) == f"{number}"

    async with (
        VisaSessionManager(config_of(first, bus="rack", max_open=1)) as one,
        VisaSessionManager(config_of(second, bus="rack", max_open=1)) as other,
    ):
        assert (one.state, other.state) == ("parked", "open")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, one)
            nursery.start_soon(ask, other)
    assert first.census.most == 1
    assert first.census.total > 4
    assert (len(first.diary), len(second.diary)) == (20, 20)


async def test_a_transaction_keeps_its_connection(first: Instrument, second: Instrument) -> None:
    """With max_open=1 the other session waits until the transaction is over, also while that is idle."""
    async with (
        VisaSessionManager(config_of(first, bus="rack", max_open=1)) as one,
        VisaSessionManager(config_of(second, bus="rack", max_open=1)) as other,
    ):
        async with one.transaction("scan") as line:
            before = first.census.total
            waits = other.submit("ECHO? later")
            with pytest.raises(CommandTimeoutError) as caught:
                await other.query("ECHO? hasty", timeout=0.05)
            assert caught.value.sent == "no"
            assert await line.query("ECHO? 1") == "1"
        assert await waits.wait() == "later"
    assert first.diary[-1].connection == before
    assert second.commands == ["ECHO? later"]
    assert first.census.most == 1


async def test_opening_a_session_breaks_no_transaction(first: Instrument, second: Instrument) -> None:
    """A session that is opened in the middle of another one's transaction waits for the end of it."""
    opened = trio.Event()

    async def open_other() -> None:
        async with VisaSessionManager(config_of(second, bus="rack", max_open=1)) as other:
            opened.set()
            assert await other.query("ECHO? 2") == "2"

    async with (
        VisaSessionManager(config_of(first, bus="rack", max_open=1)) as one,
        trio.open_nursery() as nursery,
        one.transaction("scan") as line,
    ):
        nursery.start_soon(open_other)
        await trio.sleep(0.05)
        assert not opened.is_set()
        assert await line.query("ECHO? 1") == "1"
    assert opened.is_set()
    assert first.census.most == 1


async def test_a_lost_session_that_may_not_be_open_costs_nothing(first: Instrument, second: Instrument) -> None:
    """While another one's transaction keeps a lost session closed, the worker sleeps, and then it is opened again."""
    async with (
        VisaSessionManager(config_of(first, bus="rack", max_open=1)) as one,
        VisaSessionManager(config_of(second, bus="rack", max_open=1)) as other,
    ):
        second.unplug()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(CommandTimeoutError):
            await other.query("DROP?", timeout=0.1)
        async with one.transaction("scan"):
            await trio.sleep(0.3)  # the next try is due
            steps = Steps()
            trio.lowlevel.add_instrument(steps)
            await trio.sleep(0.2)
            trio.lowlevel.remove_instrument(steps)
        assert steps.count < 50


async def test_a_lost_session_that_nobody_wants_closes_no_other(
    first: Instrument, second: Instrument, nursery: trio.Nursery
) -> None:
    """With max_open=1 it is opened again when it is wanted, and not tried in place of one that works."""
    async with (
        VisaSessionManager(config_of(first, bus="rack", max_open=1)) as one,
        VisaSessionManager(config_of(second, bus="rack", max_open=1)) as other,
    ):
        pending = other.submit("MUTE?")
        await wait_until(lambda: second.diary)
        second.unplug()
        with pytest.raises(LineLostError):
            await pending.wait()
        for number in range(10):
            assert await one.query(f"ECHO? {number}") == str(number)
            await trio.sleep(0.05)
        assert len({taken.connection for taken in first.diary}) == 1
        await nursery.start(second.serve)
        assert await other.query("ECHO? back", timeout=5) == "back"


class Steps(trio.abc.Instrument):
    """Count the steps of all tasks."""

    count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


# --- two managers of one instrument ------------------------------------------------------------------------------


async def test_two_managers_of_one_instrument_share_its_worker(first: Instrument) -> None:
    """Under another spelling too: one connection, by the instrument's count, and one order of asking for both."""
    async with (
        VisaSessionManager(first.resource) as one,
        VisaSessionManager(first.resource.replace("TCPIP::", "tcpip0::")) as other,
    ):
        busy = one.submit("WAIT? 0.05 x")
        await wait_until(lambda: first.diary)
        pending = [(one, other)[number % 2].submit(f"ECHO? {number}") for number in range(10)]
        assert one.queue_depth() == other.queue_depth() == 10
        assert [await each.wait() for each in (busy, *pending)] == ["x", *map(str, range(10))]
    assert first.commands[1:] == [f"ECHO? {number}" for number in range(10)]
    assert first.census.total == 1


async def test_settings_that_differ_are_refused(first: Instrument) -> None:
    """The error names the setting and both values; what concerns one session alone may differ."""
    async with VisaSessionManager(config_of(first)) as one:
        with pytest.raises(ValueError, match=r"dialect = 'scpi', and here dialect = 'echo'"):
            async with VisaSessionManager(config_of(first, dialect="echo")):
                pytest.fail("entered")
        own = config_of(first, timeout=0.1, queue_warning=3, max_hold=1.0)
        async with VisaSessionManager(own) as other:
            with pytest.raises(CommandTimeoutError):
                await other.query("WAIT? 0.2 x")
            assert await one.query("WAIT? 0.2 y") == "y"


@pytest.mark.parametrize("is_first", [True, False])
async def test_closing_one_manager_leaves_the_other_working(first: Instrument, is_first: bool) -> None:
    """Whichever of the two is closed, also with its command in flight, the other one's commands go on."""
    sessions = [VisaSessionManager(first.resource), VisaSessionManager(first.resource)]
    async with sessions[0], sessions[1], trio.open_nursery() as nursery:
        closed, kept = sessions if is_first else reversed(sessions)
        told: list[object] = []

        async def ask(session: VisaSessionManager, command: str) -> None:
            try:
                told.append(await session.query(command))
            except SessionClosedError as error:
                told.append((error.sent, command))

        nursery.start_soon(ask, closed, "WAIT? 0.1 mine")
        await wait_until(lambda: first.diary)
        nursery.start_soon(ask, closed, "ECHO? refused")
        nursery.start_soon(ask, kept, "ECHO? kept")
        await wait_until(lambda: kept.queue_depth() == 2)
        await closed.close()
        assert closed.state == "closed"
        assert await kept.query("ECHO? after") == "after"
        assert told == [("no", "ECHO? refused"), "mine", "kept"]
        with pytest.raises(SessionClosedError):
            await closed.query("ECHO? late")
        assert kept.state == "open"
    assert first.census.total == 1


@pytest.mark.parametrize("is_first", [True, False])
async def test_closing_one_manager_does_not_end_the_command_of_the_other(first: Instrument, is_first: bool) -> None:
    """The other one's command in flight gets its reply, although it lasts longer than the close may."""
    sessions = [VisaSessionManager(first.resource), VisaSessionManager(first.resource)]
    async with sessions[0], sessions[1]:
        closed, kept = sessions if is_first else reversed(sessions)
        pending = kept.submit("WAIT? 0.4 kept", timeout=5)
        await wait_until(lambda: first.diary)
        await closed.close(timeout=0.05)
        assert await pending.wait() == "kept"
        assert await kept.query("ECHO? after") == "after"
    assert first.census.total == 1


async def test_command_that_is_given_up_at_closing_leaves_the_other_manager_a_clean_connection(
    first: Instrument,
) -> None:
    """The late reply of a closed session's command reaches nobody."""
    async with VisaSessionManager(first.resource) as kept, VisaSessionManager(first.resource) as closed:
        pending = closed.submit("WAIT? 0.3 late")
        await wait_until(lambda: first.diary)
        await closed.close(timeout=0.05)
        with pytest.raises(SessionClosedError) as caught:
            await pending.wait()
        assert caught.value.sent == "yes"
        for number in range(3):
            assert await kept.query(f"WAIT? 0.15 {number}") == str(number)
    assert first.census.total == 2


async def test_reply_that_comes_just_when_it_is_given_up_harms_no_other(first: Instrument, second: Instrument) -> None:
    """A close runs out of time when the reply is there already: the next command, of another session of the bus, which
    the same worker takes up then, is carried out as if nothing had been."""

    class GivenUp(NativeTransport):
        async def exchange(self, requests: Any, deadline: float, progress: Any = None) -> list[bytes]:
            replies = await super().exchange(requests, deadline, progress)
            assert closed._link is not None
            closed._link.give_up()  # what close does in the same step of the event loop
            return replies

    async with (
        VisaSessionManager(config_of(first, bus="rack")) as kept,
        VisaSessionManager(config_of(second, bus="rack"), make_transport=GivenUp) as closed,
    ):
        pending = [closed.submit("ECHO? a"), kept.submit("ECHO? b"), kept.submit("ECHO? c")]
        assert [await each.wait() for each in pending] == ["a", "b", "c"]


async def test_opening_that_is_given_up_opens_nothing_later(first: Instrument, second: Instrument) -> None:
    """A session whose opening was cancelled while the bus was busy does not connect when it is free."""
    async with VisaSessionManager(config_of(first, bus="rack")) as one, trio.open_nursery() as nursery:
        nursery.start_soon(one.query, "WAIT? 0.2 x")
        await wait_until(lambda: first.diary)
        with trio.move_on_after(0.05) as scope:
            async with VisaSessionManager(config_of(second, bus="rack")):
                pytest.fail("entered")
        assert scope.cancelled_caught
        assert await one.query("ECHO? 1") == "1"
        await trio.sleep(0.05)
        assert first.census.total == 1


async def test_session_that_is_closed_while_room_is_made_for_it_opens_nothing(
    first: Instrument, second: Instrument
) -> None:
    """With max_open=1, a session that leaves while the other connection is being closed for it does not connect."""
    async with (
        VisaSessionManager(config_of(second, bus="rack", max_open=1)) as leaves,
        VisaSessionManager(config_of(first, bus="rack", max_open=1)) as one,
    ):
        assert (leaves.state, one.state) == ("parked", "open")
        first.farewell = 0.3  # it takes its time to close its end; we wait 0.1 s for it
        total = first.census.total
        pending = leaves.submit("ECHO? never")
        await wait_until(lambda: one.state == "parked")
        await leaves.close()
        with pytest.raises(SessionClosedError):
            await pending.wait()
        await trio.sleep(0.2)
        assert first.census.total == total
        assert await one.query("ECHO? 1") == "1"


async def test_close_ends_an_opening(first: Instrument, second: Instrument) -> None:
    """A session that is closed by another task while it waits to be opened is told so at once."""
    async with VisaSessionManager(config_of(first, bus="rack")) as one, trio.open_nursery() as nursery:
        busy = one.submit("WAIT? 0.5 x")
        await wait_until(lambda: first.diary)
        session = VisaSessionManager(config_of(second, bus="rack"))

        async def serve() -> None:
            with pytest.raises(SessionClosedError):
                await session.serve()

        began = trio.current_time()
        async with trio.open_nursery() as serving:
            serving.start_soon(serve)
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.start_soon(session.close)
        assert trio.current_time() - began < 0.4
        assert await busy.wait() == "x"
    assert second.diary == []


# --- nothing is left behind --------------------------------------------------------------------------------------


async def test_sessions_that_come_and_go_disturb_nobody(first: Instrument, second: Instrument) -> None:
    """Ten tasks open, use and close sessions of two instruments on one bus, some of them cancelled in the middle: each
    reply is its asker's, nobody's command ends because of another one's close, and no more is open than may be."""
    instruments = (first, second)
    draw = random.Random(32282)

    async def come_and_go(name: str) -> None:
        for number in range(12):
            instrument = draw.choice(instruments)
            with trio.move_on_after(draw.choice([0.005, 0.02, 60, 60])):
                async with VisaSessionManager(config_of(instrument, bus="rack", max_open=1, timeout=20)) as session:
                    await trio.sleep(draw.random() / 200)
                    for count in range(3):
                        text = f"{name}.{number}.{count}"
                        if draw.random() < 0.3:
                            async with session.transaction() as line:
                                assert await line.query(f"WAIT? 0.002 {text}") == text
                        else:
                            assert await session.query(f"WAIT? 0.002 {text}") == text

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(come_and_go, f"task{number}")
    await wait_until(lambda: first.census.open == 0)
    assert len(first.diary) + len(second.diary) > 100


async def test_a_thousand_lives_leave_nothing_behind(first: Instrument, second: Instrument) -> None:
    """1002 sessions that are opened, used and closed, alone, in pairs, on a bus, with a timeout in between: no file, no
    thread, no task, and nothing in the registry is left."""

    async def live(number: int) -> None:
        settings = {"bus": "rack", "max_open": 1} if number % 2 else {}
        async with VisaSessionManager(config_of(first, **settings)) as one:
            if number % 5 == 0:
                with pytest.raises(CommandTimeoutError):
                    await one.query("MUTE?", timeout=0.001)
            async with VisaSessionManager(config_of(second, **settings)) as other:
                assert await other.query(f"ECHO? {number}") == str(number)
            async with VisaSessionManager(config_of(first, **settings)) as twin:
                assert await twin.query(f"ECHO? {number}") == str(number)

    async def settled() -> Sequence[int]:
        await wait_until(lambda: first.census.open == 0)
        await trio.testing.wait_all_tasks_blocked(0.01)
        return open_files(), threading.active_count(), trio.lowlevel.current_statistics().tasks_living

    await live(0)
    before = await settled()
    for number in range(334):
        await live(number)
    now = await settled()
    assert all(count <= was for count, was in zip(now, before, strict=True)), (before, now)  # fewer: a test before us
    root = trio.lowlevel.current_root_task()
    assert root is not None
    assert "_work" not in _names(root)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def _names(task: trio.lowlevel.Task) -> str:
    return " ".join([task.name, *(_names(child) for nursery in task.child_nurseries for child in nursery.child_tasks)])
