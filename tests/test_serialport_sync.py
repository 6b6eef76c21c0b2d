"""Late replies, however late, on a line whose instrument has a sync query."""

import attrs
import pytest
import trio

from trio_daq.config import DualConfig
from trio_daq.errors import ConfigError, LineUnusableError
from trio_daq.serialport import LineState, SerialPortConfig, SharedSerialPort
from trio_daq.sim import FaultPlan, open_simulated_lab, read_log, replies_by_tag
from trio_daq.wire import SyncQuery

ECHO = SyncQuery("ECHO {nonce}", "{nonce}")
PAIRS = SyncQuery("*IDN?", "TRIO_DAQ,SIMULATED STAGE,1,0.1", other=("ECHO ready", "ready"))


def config_of(path: str, **changes) -> SerialPortConfig:
    config = SerialPortConfig(
        path=path,
        write_terminator="\r\n",
        read_terminator="\r\n",
        timeout=0.05,
        acquire_timeout=5.0,
        quiet_time=0.06,
        sync_query=ECHO,
    )
    return attrs.evolve(config, **changes)


async def ask_in_turn(port: SharedSerialPort, questions: int) -> dict[str, str]:
    """Ask *questions* one after the other, each as another owner, and return the replies by their tags."""
    replies = {}
    for number in range(questions):
        with trio.fail_after(10):
            try:
                async with port.acquire(f"owner{number % 3}") as guard:
                    replies[f"t{number}"] = (await guard.query(b"POS? t%d" % number)).decode()
            except TimeoutError:
                pass
    return replies


@pytest.mark.parametrize("sync_query", [ECHO, PAIRS], ids=["nonce", "pairs"])
async def test_a_reply_that_is_later_than_the_quiet_time_reaches_nobody_else(tmp_path, sync_query) -> None:
    """Replies 0.3 s late on a line with 0.06 s of quiet time: with a sync query each owner still gets its own."""
    async with open_simulated_lab(tmp_path / "log", meter=None, stage=FaultPlan(late_every=4, late_by=0.3)) as lab:
        port = SharedSerialPort(config_of(lab.stage_path, sync_query=sync_query))
        replies = await ask_in_turn(port, 24)
        await port.aclose()
    log = read_log(tmp_path / "log")
    answered = replies_by_tag(log)
    assert sum(entry.fault == "late" for entry in log) >= 5
    assert len(replies) >= 15
    assert {tag: answered[tag] for tag in replies} == replies


async def test_without_a_sync_query_such_a_reply_does_reach_another(tmp_path) -> None:
    """Silence alone does misroute a reply that is later than the quiet time: this is what the sync query is for."""
    async with open_simulated_lab(tmp_path / "log", meter=None) as lab:
        port = SharedSerialPort(config_of(lab.stage_path, sync_query=None))
        with pytest.raises(TimeoutError):
            async with port.acquire("late") as guard:
                await guard.query(b"SLOW? late 0.5")
        async with port.acquire("next") as guard:
            reply = await guard.query(b"POS? next", timeout=2)
        await port.aclose()
    assert reply == b"late 12.500"


async def test_lost_and_half_replies_and_garbage_are_read_away(tmp_path) -> None:
    """Silence, half a reply and garbage in turn: what does arrive is the right reply."""
    faults = FaultPlan(silent_every=5, half_every=7)
    async with open_simulated_lab(tmp_path / "log", meter=None, stage=faults) as lab:
        port = SharedSerialPort(config_of(lab.stage_path))
        replies = await ask_in_turn(port, 40)
        await port.aclose()
    answered = replies_by_tag(read_log(tmp_path / "log"))
    assert len(replies) >= 25
    assert {tag: answered[tag] for tag in replies} == replies


async def test_short_deadlines_do_not_starve_a_line_that_owes_a_late_reply(tmp_path) -> None:
    """Acquirers with 0.1 s each bring a line back whose instrument is busy for 0.6 s: the question is asked once."""
    async with open_simulated_lab(tmp_path / "log", meter=None) as lab:
        port = SharedSerialPort(config_of(lab.stage_path, quiet_time=1.0))
        async with port.acquire("slow") as guard:
            with pytest.raises(TimeoutError):
                await guard.query(b"SLOW? t 0.6")
        failed = 0
        with trio.fail_after(5):
            while True:
                try:
                    async with port.acquire("hasty", timeout=0.1) as guard:
                        assert await guard.query(b"POS? x", timeout=1) == b"x 12.500"
                    break
                except TimeoutError:
                    failed += 1
        await port.aclose()
    assert failed >= 3
    asked = [entry for entry in read_log(tmp_path / "log") if entry.event == "command" and "ECHO" in entry.text]
    assert len(asked) == 2  # one at the open, one for the late reply


async def test_an_instrument_that_knows_no_such_question_makes_the_line_unusable(tmp_path) -> None:
    """A sync query that is never answered as it should be is refused with a reason, not trusted."""
    async with open_simulated_lab(tmp_path / "log", meter=None) as lab:
        port = SharedSerialPort(config_of(lab.stage_path, sync_query=SyncQuery("NOP {nonce}", "{nonce}")))
        with pytest.raises(LineUnusableError, match="has not answered its sync query"):
            async with port.acquire("anybody"):
                pytest.fail("entered")
        assert port.state is LineState.UNUSABLE
        await port.aclose()


def test_a_config_file_can_name_it(tmp_path) -> None:
    """A table with query and answer in TOML is a sync query."""
    file = tmp_path / "lab.toml"
    file.write_text(
        '[serial.stage]\npath = "/dev/ttyUSB0"\nsync_query = { query = "ECHO {nonce}", answer = "{nonce}" }\n'
        '[serial.other]\npath = "/dev/ttyUSB1"\n'
        'sync_query = { query = "*ESE?", answer = "0", other = ["*IDN?", "ACME"] }\n[v2]\n'
    )
    config = DualConfig.load_from_file(file)
    assert config.serial["stage"].sync_query == ECHO
    assert config.serial["other"].sync_query == SyncQuery("*ESE?", "0", other=("*IDN?", "ACME"))


def test_a_wrong_sync_query_in_a_file_is_named_with_its_key(tmp_path) -> None:
    """Each mistake in the inner table is one problem of the one ConfigError."""
    file = tmp_path / "lab.toml"
    file.write_text('[serial.stage]\npath = "/dev/ttyUSB0"\nsync_query = { qeury = "X?", answer = 3 }\n[v2]\n')
    with pytest.raises(ConfigError) as caught:
        DualConfig.load_from_file(file)
    text = str(caught.value)
    assert "serial.stage.sync_query.qeury: unknown key (did you mean 'query'?)" in text
    assert "serial.stage.sync_query.answer: expected text, got 3" in text
    file.write_text('[serial.stage]\npath = "/dev/ttyUSB0"\nsync_query = { query = "X?", answer = "3" }\n[v2]\n')
    with pytest.raises(ConfigError, match="needs a second question"):
        DualConfig.load_from_file(file)


async def test_a_late_reply_to_nobody_does_not_cost_the_next_owner_theirs(tmp_path) -> None:
    """Who comes after a command whose reply was not awaited waits for it within the time to acquire, not to query."""
    async with open_simulated_lab(tmp_path / "log", meter=None) as lab:
        port = SharedSerialPort(config_of(lab.stage_path))
        async with port.acquire("hasty") as guard:
            await guard.write_all(b"SLOW? unread 0.3\r\n")
        async with port.acquire("next") as guard:
            assert await guard.query(b"POS? next") == b"next 12.500"
        await port.aclose()


@pytest.mark.parametrize("leave", ["cancelled", "hasty"])
async def test_who_leaves_early_does_not_make_the_reply_late(tmp_path, leave) -> None:
    """Silence counts from the time by which the reply was due, not from when its asker lost patience."""
    async with open_simulated_lab(tmp_path / "log", meter=None) as lab:
        port = SharedSerialPort(config_of(lab.stage_path, sync_query=None, timeout=0.3, quiet_time=0.2))
        async with port.acquire("impatient") as guard:
            if leave == "cancelled":
                with trio.move_on_after(0.02):
                    await guard.query(b"SLOW? early 0.35")
            else:
                with pytest.raises(TimeoutError):
                    await guard.query(b"SLOW? early 0.35", timeout=0.02)
        async with port.acquire("next") as guard:
            assert await guard.query(b"POS? next", timeout=2) == b"next 12.500"
        await port.aclose()
