"""A port that is made safe: whatever it is in the middle of, the instrument's own log says that it was done."""

import sys

import attrs
import pytest
import trio
import trio.testing

from trio_daq.errors import LeaseRevokedError, SessionClosedError
from trio_daq.serialport import LineState, SerialPortConfig, SharedSerialPort
from trio_daq.sim import open_simulated_lab, read_log
from trio_daq.wire import Exchange, SyncQuery

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the simulated stage needs a pty")

CLOSED = (Exchange(write="SHUT 0"), Exchange(query="SHUT?", expect="0"))


@pytest.fixture
async def lab(tmp_path):
    async with open_simulated_lab(tmp_path / "log", meter=None, stage_link=tmp_path / "stage") as lab:
        yield lab


def config_of(lab, **settings) -> SerialPortConfig:
    return SerialPortConfig(
        **{
            "path": lab.stage_path,
            "write_terminator": "\r\n",
            "read_terminator": "\r\n",
            "acquire_timeout": 3,
            "sync_query": SyncQuery("ECHO {nonce}", "{nonce}"),
            "safe_state": CLOSED,
            **settings,
        }
    )


@pytest.fixture
async def port(lab):
    async with SharedSerialPort(config_of(lab)) as port:
        yield port


def commands(lab) -> list[str]:
    return [entry.text for entry in read_log(lab.log) if entry.event == "command"]


def shutter_commands(lab) -> list[str]:
    return [text for text in commands(lab) if text.startswith("SHUT ")]


async def test_an_idle_port(port, lab) -> None:
    """It is opened if need be, said what the settings say, confirmed, and left dirty for the next owner to clean."""
    result = await port.make_safe()
    assert (result.outcome, str(result)) == ("confirmed", "confirmed")
    assert commands(lab) == ["SHUT 0", "SHUT?"]
    assert (port.state, port.current_owner(), port.last_safe_state) == (LineState.DIRTY, None, result)
    async with port.acquire("next") as guard:
        assert await guard.query(b"POS? next") == b"next 12.500"


async def test_an_owner_in_the_middle_of_a_query(port, lab) -> None:
    """The owner is told that it was taken back, who waits is served after the safe state, with its own reply."""
    async with trio.open_nursery() as nursery:

        async def stuck(task_status) -> None:
            async with port.acquire("stuck") as guard:
                await guard.write_only(b"SHUT 1\r\n")
                task_status.started()
                with pytest.raises(LeaseRevokedError, match="the line is made safe"):
                    await guard.query(b"SLOW? late 0.3", timeout=5)
                with pytest.raises(LeaseRevokedError):
                    await guard.write_only(b"SHUT 1\r\n")

        async def waiting() -> None:
            async with port.acquire("waiting") as guard:
                assert await guard.query(b"POS? waited") == b"waited 12.500"

        with trio.fail_after(5):
            await nursery.start(stuck)
            nursery.start_soon(waiting)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert (await port.make_safe()).outcome == "confirmed"
    assert shutter_commands(lab) == ["SHUT 1", "SHUT 0"]
    assert commands(lab).index("SHUT 0") < commands(lab).index("POS? waited")


async def test_half_a_command_is_ended_and_not_finished(lab) -> None:
    """A command that was cut in the middle does not swallow the safe state, and its rest is never sent."""
    async with SharedSerialPort(config_of(lab, char_delay=0.05)) as port, trio.open_nursery() as nursery:

        async def slow(task_status) -> None:
            async with port.acquire("slow") as guard:
                task_status.started()
                with pytest.raises(LeaseRevokedError):
                    await guard.write_only(b"SHUT 1\r\n", timeout=5)

        with trio.fail_after(5):
            await nursery.start(slow)
            await trio.sleep(0.12)
            assert (await port.make_safe(3)).outcome == "confirmed"
    assert "SHUT 1" not in commands(lab)
    assert shutter_commands(lab)[0] == "SHUT 0"


async def test_a_line_that_is_being_made_clean(lab) -> None:
    """Nothing is waited for before the write: a line that is never quiet, or that another makes clean, is made safe."""
    config = config_of(lab, sync_query=SyncQuery("MOVE {nonce} nothing", "never {nonce}"), quiet_time=0.3)
    async with SharedSerialPort(config) as port, trio.open_nursery() as nursery:

        async def hopeless() -> None:
            with pytest.raises(LeaseRevokedError):
                async with port.acquire("hopeless"):
                    pass

        nursery.start_soon(hopeless)
        await trio.sleep(0.1)
        assert port.current_owner() == "hopeless"
        with trio.fail_after(1):
            assert (await port.make_safe(0.5)).outcome == "confirmed"


async def test_an_unusable_line(lab) -> None:
    """A line that could not be made clean is made safe all the same."""
    config = config_of(lab, sync_query=SyncQuery("MOVE {nonce} nothing", "never {nonce}"), quiet_time=0.01)
    async with SharedSerialPort(config) as port:
        with pytest.raises(ConnectionError):
            await port.recover()
        assert port.state is LineState.UNUSABLE
        assert (await port.make_safe()).outcome == "confirmed"
        assert port.state is LineState.DIRTY


async def test_what_it_says_when_it_fails(lab) -> None:
    """A wrong answer, none, no steps and no device each have their reason, and no more time is taken than was given."""
    wrong = Exchange(query="SHUT?", expect="1")
    silent = Exchange(query="SHUT 0", expect="0")
    for steps, path, outcome, reason in (
        ((CLOSED[0],), lab.stage_path, "sent", ""),
        ((CLOSED[0], wrong), lab.stage_path, "failed", "it answers 'SHUT?' by '0', and not by '1'"),
        ((silent, wrong, CLOSED[0]), lab.stage_path, "failed", "it did not answer 'SHUT 0' in time"),
        ((), lab.stage_path, "failed", "it has no safe_state"),
        (CLOSED, "/dev/no_such_port", "failed", "no such"),
    ):
        port = SharedSerialPort(config_of(lab, safe_state=steps, path=path))
        before = len(commands(lab))
        with trio.fail_after(0.6):
            result = await port.make_safe(0.4)
        await SharedSerialPort.aclose(port)
        assert result.outcome == outcome
        assert reason in result.reason
        if steps == (silent, wrong, CLOSED[0]):  # what failed before kept nothing back
            with trio.move_on_after(2):  # the last one is not answered, so it is in the log a moment later
                while len(commands(lab)) < before + 3:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            assert commands(lab)[before:][:3] == ["SHUT 0", "SHUT?", "SHUT 0"]


async def test_it_is_bounded_with_an_instrument_that_reads_nothing(lab, port) -> None:
    """A frozen instrument costs the time that was given, cancelled or not, and the next attempt is a new one."""
    assert (await port.make_safe()).outcome == "confirmed"
    lab.freeze()
    with trio.fail_after(1), trio.CancelScope() as scope:
        scope.cancel()
        began = trio.current_time()
        result = await port.make_safe(0.3)
    assert result.outcome == "failed"
    assert 0.2 < trio.current_time() - began < 0.45
    lab.thaw()
    assert (await port.make_safe()).outcome == "confirmed"


async def test_two_at_once_are_one(port, lab) -> None:
    """Who asks while it is under way gets the result of that."""
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(port.make_safe)
    assert commands(lab) == ["SHUT 0", "SHUT?"]


async def test_it_is_the_last_that_is_said_before_the_port_closes(lab) -> None:
    """Whoever has the port or waits for it when it is closed cannot open the shutter after that."""
    port = SharedSerialPort(config_of(lab))

    async def opener(name: str) -> None:
        try:
            while True:
                async with port.acquire(name) as guard:
                    while True:
                        await guard.write_only(b"SHUT 1\r\n")
                        await trio.sleep(0.001)
        except (LeaseRevokedError, SessionClosedError):
            with pytest.raises(SessionClosedError):
                async with port.acquire(name):
                    pass

    async with trio.open_nursery() as nursery:
        for name in ("one", "two"):
            nursery.start_soon(opener, name)
        await trio.sleep(0.1)
        await port.aclose()
    assert port.last_safe_state.outcome == "confirmed"
    assert shutter_commands(lab)[-1] == "SHUT 0"
    assert commands(lab)[-1] == "SHUT?"
    said = len(commands(lab))
    await port.aclose()
    assert len(commands(lab)) == said


async def test_a_device_that_went_away_and_came_back(lab, tmp_path) -> None:
    """It is made safe before anything else is said, by the keeper if nobody wants it."""
    config = attrs.evolve(config_of(lab), path=tmp_path / "stage")
    async with SharedSerialPort(config) as port, trio.open_nursery() as nursery:
        nursery.start_soon(port.keep)
        async with port.acquire() as guard:
            await guard.write_only(b"SHUT 1\r\n")
            assert await guard.query(b"SHUT?") == b"1"
        await lab.unplug_stage()
        said = len(commands(lab))
        await lab.replug_stage()
        with trio.fail_after(5):
            while port.last_safe_state is None:  # noqa: ASYNC110 - the keeper tells nobody
                await trio.sleep(0.01)
        assert port.last_safe_state.outcome == "confirmed"
        assert commands(lab)[said:][:2] == ["SHUT 0", "SHUT?"]
        nursery.cancel_scope.cancel()
