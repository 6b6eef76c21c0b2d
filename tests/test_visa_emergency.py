"""A session that is made safe: whatever it is in the middle of, the instrument's own diary says that it was done."""

import pytest
import trio
import trio.testing
from visa_instrument import Instrument, wait_until

from trio_daq.errors import LeaseRevokedError
from trio_daq.visa import VisaSessionConfig, VisaSessionManager
from trio_daq.wire import Exchange

CLOSED = (Exchange(write="SHUT 0"), Exchange(query="SHUT?", expect="0"))
SAFE = ["SHUT 0", "SHUT?"]


@pytest.fixture(params=["native", "pyvisa"])
async def instrument(request, nursery):
    instrument = Instrument()
    instrument.transport = request.param
    instrument.answers["SHUT?"] = "0"
    await nursery.start(instrument.serve)
    return instrument


def session_of(instrument, **settings) -> VisaSessionManager:
    config = {"resource": instrument.resource, "transport": instrument.transport, "safe_state": CLOSED}
    return VisaSessionManager(VisaSessionConfig(**{**config, **settings}))


async def test_an_idle_session(instrument) -> None:
    """It says what the settings say over the connection that is there, and goes on over a trustworthy one."""
    async with session_of(instrument) as session:
        assert (await session.make_safe()).outcome == "confirmed"
        assert {taken.connection for taken in instrument.diary} == {1}
        assert await session.query("ECHO? a") == "a"
        assert instrument.commands == [*SAFE, "ECHO? a"]


async def test_a_command_in_flight_and_a_queue(instrument) -> None:
    """Whose command is in flight is told at once; the safe state goes over a fresh connection; then the queue."""
    async with session_of(instrument) as session, trio.open_nursery() as nursery:

        async def stuck() -> None:
            with pytest.raises(LeaseRevokedError, match="the line is made safe"):
                await session.query("WAIT? 2 late", timeout=5, owner="stuck")

        async def waiting() -> None:
            assert await session.query("ECHO? b", timeout=5) == "b"

        nursery.start_soon(stuck)
        await wait_until(lambda: instrument.commands == ["WAIT? 2 late"])
        nursery.start_soon(waiting)
        await trio.testing.wait_all_tasks_blocked(0.02)
        with trio.fail_after(1):
            assert (await session.make_safe()).outcome == "confirmed"
        assert instrument.commands == ["WAIT? 2 late", *SAFE]
    assert instrument.commands[3:4] == ["ECHO? b"] or instrument.commands[3:5] == [*SAFE]


async def test_an_open_transaction(instrument) -> None:
    """It is taken back, and cannot say anything after the safe state."""
    async with session_of(instrument) as session, session.transaction("holder") as own:
        await own.write("SHUT 1")
        assert (await session.make_safe()).outcome == "confirmed"
        with pytest.raises(LeaseRevokedError):
            await own.write("SHUT 1")
    assert instrument.commands[:3] == ["SHUT 1", *SAFE]
    assert "SHUT 1" not in instrument.commands[1:]


async def test_what_it_says_when_it_fails(instrument) -> None:
    """A wrong answer, none, and nobody there have their reasons, within the time; nothing is kept back by the first."""
    wrong, mute = Exchange(query="SHUT?", expect="1"), Exchange(query="MUTE?", expect="0")
    async with session_of(instrument, safe_state=(mute, wrong, CLOSED[0])) as session:
        with trio.fail_after(1.1):
            result = await session.make_safe(0.8)
        assert result.outcome == "failed"
        assert "did not answer 'MUTE?'" in result.reason
        assert instrument.commands == ["MUTE?", "SHUT?", "SHUT 0"]
        assert await session.query("ECHO? c") == "c"
    gone = VisaSessionConfig(resource="TCPIP::127.0.0.1::1::SOCKET", safe_state=CLOSED)
    result = await VisaSessionManager(gone).make_safe()
    assert result.outcome == "failed"
    assert "refused" in result.reason


async def test_from_cold(instrument) -> None:
    """A session that is not open connects for this alone, and lets go."""
    assert (await session_of(instrument).make_safe()).outcome == "confirmed"
    await wait_until(lambda: not instrument.census.open)
    assert instrument.commands == SAFE


async def test_it_is_the_last_that_is_said(instrument) -> None:
    """Whoever opens the shutter all the time cannot do so after the session was closed."""
    async with trio.open_nursery() as nursery:
        async with session_of(instrument) as session:

            async def opener() -> None:
                with pytest.raises(ConnectionError):  # noqa: PT012 - it is raised at some turn
                    while True:
                        await session.write("SHUT 1")

            nursery.start_soon(opener)
            await wait_until(lambda: len(instrument.commands) > 5)
        assert session.last_safe_state.outcome == "confirmed"
    await wait_until(lambda: not instrument.census.open)
    assert instrument.commands[-2:] == SAFE


async def test_an_instrument_that_was_lost_and_came_back(instrument, nursery) -> None:
    """It is made safe before anybody's command; one that was only late is not."""
    async with session_of(instrument, timeout=0.3) as session:
        with pytest.raises(TimeoutError):
            await session.query("MUTE?", timeout=0.05)
        assert await session.query("ECHO? d", timeout=2) == "d"
        assert "SHUT 0" not in instrument.commands
        instrument.unplug()
        with pytest.raises((ConnectionError, TimeoutError)):
            await session.query("ECHO? e", timeout=0.1)
        await nursery.start(instrument.serve)
        said = len(instrument.commands)
        assert await session.query("ECHO? f", timeout=5) == "f"
        assert instrument.commands[said:] == [*SAFE, "ECHO? f"]


async def test_a_served_session_that_is_closed(instrument) -> None:
    """`close` and the end of `serve` close it together: it is made safe once, and neither fails."""
    async with trio.open_nursery() as nursery:
        session = await nursery.start(session_of(instrument).serve)
        await session.query("ECHO? a")
        with trio.fail_after(5):
            await session.close(0)
        assert session.state == "closed"
    assert instrument.commands == ["ECHO? a", *SAFE]
