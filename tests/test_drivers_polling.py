"""The built-in drivers against simulated instruments: right numbers, and no fault of an instrument ends them."""

import functools
import itertools
import json
import logging
import math
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from trio_daq.data import DataDistributor, DataPublisher, Reading
from trio_daq.drivers import DriverContext, scpi_poll, serial_poll
from trio_daq.drivers.polling import _first_number
from trio_daq.errors import ReplyError
from trio_daq.serialport import SerialPortConfig, SharedSerialPort
from trio_daq.sim import LogEntry, read_log
from trio_daq.visa import VisaSessionManager


@attrs.frozen
class Lab:
    """Two simulated instruments of which some answers go wrong, and the lines to them."""

    port: SharedSerialPort
    session: VisaSessionManager
    log: Path
    old_entries: int

    def entries(self) -> list[LogEntry]:
        """Return what the instruments noted in this test."""
        return read_log(self.log)[self.old_entries :]


@pytest.fixture(scope="module")
def instruments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """One process for all tests here, whose tagged answers are every third time late or garbage, in turn."""
    log = tmp_path_factory.mktemp("sim") / "log.jsonl"
    faults = [f"--{name}-{fault}" for name in ("stage", "meter") for fault in ("late-every=6", "garbage-every=3")]
    delays = [f"--{name}-late-by=0.15" for name in ("stage", "meter")]
    command = [sys.executable, "-m", "trio_daq.sim", f"--log={log}", *faults, *delays]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield {**json.loads(process.stdout.readline()), "log": log}


@pytest.fixture
async def lab(instruments: dict[str, Any]) -> AsyncIterator[Lab]:
    """Lines with short timeouts to the instruments."""
    port = SharedSerialPort(
        SerialPortConfig(path=instruments["stage"], read_terminator=b"\r\n", timeout=0.05, quiet_time=0.15)
    )
    await port.recover()
    resource = f"TCPIP::127.0.0.1::{instruments['meter']}::SOCKET"
    async with VisaSessionManager(resource, timeout=0.05) as session:
        yield Lab(port, session, instruments["log"], len(read_log(instruments["log"])))
    await port.aclose()


Poll = Callable[[DriverContext], Awaitable[None]]


async def poll_until(enough: Callable[[list[Reading]], bool], poll: Poll) -> list[Reading]:
    """Run a driver until its readings are enough, ask it to stop, and return them."""
    distributor = DataDistributor()
    context = DriverContext(DataPublisher(distributor, "member"))
    readings: list[Reading] = []
    with distributor.subscribe("test") as subscription, trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(poll, context)
            while not enough(readings):
                readings += await subscription.receive()
            context.stopping.set()
    return readings


async def test_scpi_poll_publishes_the_right_numbers(lab: Lab) -> None:
    """Each channel gets the first number of its reply, with unit and time of asking, turn by turn."""
    commands = {"voltage": "MEAS:VOLT?", "done": "*OPC?", "error": "SYST:ERR?"}
    poll = functools.partial(scpi_poll, visa=lab.session, commands=commands, units={"voltage": "V"}, period=0.02)
    readings = await poll_until(lambda got: len(got) >= 9, lambda context: poll(context=context))
    assert [reading.channel for reading in readings[:6]] == ["voltage", "done", "error"] * 2
    assert [reading.seq for reading in readings] == list(range(len(readings)))
    assert {reading.unit for reading in readings} == {"V", ""}
    for reading in readings:
        assert reading.instrument == "member"
        assert reading.asked_ns < reading.monotonic_ns
        expected = {"voltage": pytest.approx(1.234567, abs=0.011), "done": 1.0, "error": 0.0}
        assert reading.value == expected[reading.channel]


async def test_serial_poll_publishes_the_right_numbers(lab: Lab) -> None:
    """The same over the serial port, which is free between two commands."""
    commands = {"position": "POS?", "shutter": "SHUT?"}
    poll = functools.partial(serial_poll, serial=lab.port, commands=commands, units={"position": "mm"}, period=0.02)
    readings = await poll_until(lambda got: len(got) >= 6, lambda context: poll(context=context))
    assert [(reading.channel, reading.value, reading.unit) for reading in readings[:4]] == [
        ("position", 12.5, "mm"),
        ("shutter", 0.0, ""),
    ] * 2
    assert lab.port.is_available()


@pytest.mark.parametrize("kind", ["serial", "visa"])
async def test_late_and_garbled_replies_are_logged_and_survived(
    lab: Lab, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A timeout and a reply that is no text give a warning each; every published number is the instrument's own."""
    caplog.set_level(logging.WARNING, "trio_daq.member.member")

    async def poll(context: DriverContext) -> None:
        if kind == "serial":
            # The tag is a word without digits, so that the first number is the position.
            await serial_poll(serial=lab.port, context=context, commands={"position": "POS? tag"}, period=0.01)
        else:
            await scpi_poll(visa=lab.session, context=context, commands={"voltage": "MEAS:VOLT? tag"}, period=0.01)

    readings = await poll_until(lambda got: len(got) >= 12, poll)
    value = 12.5 if kind == "serial" else pytest.approx(1.234567, abs=0.011)
    assert all(reading.value == value for reading in readings)
    faults = {entry.fault for entry in lab.entries() if entry.event == "fault"}
    assert faults == {"late", "garbage"}
    assert any("did not finish within" in message for message in caplog.messages)
    assert any("expected ASCII text" in message for message in caplog.messages)


async def test_reply_without_a_number_is_logged(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    """What holds no number is a ReplyError in the log, and other channels go on."""
    commands = {"name": "ECHO nothing", "shutter": "SHUT?"}
    poll = functools.partial(serial_poll, serial=lab.port, commands=commands, period=0.01)
    readings = await poll_until(lambda got: len(got) >= 3, lambda context: poll(context=context))
    assert {reading.channel for reading in readings} == {"shutter"}
    assert "the reply to 'ECHO nothing' of 'member' was 'nothing', expected a number." in caplog.text


@pytest.mark.parametrize("kind", ["serial", "visa"])
async def test_stops_promptly(lab: Lab, kind: str) -> None:
    """Asked to stop while it waits for the next turn or for a reply, it ends after that reply at the latest."""
    distributor = DataDistributor()
    context = DriverContext(DataPublisher(distributor, "member"))
    slow = {str(number): f"SLOW? {'x 0.1' if kind == 'serial' else 'x,0.1'}" for number in range(20)}
    for commands, period in ((slow, 0.01), ({"fast": "*IDN?"}, 30.0)):
        context.stopping = trio.Event()
        async with trio.open_nursery() as nursery:
            if kind == "serial":
                poll = functools.partial(serial_poll, serial=lab.port)
            else:
                poll = functools.partial(scpi_poll, visa=lab.session)
            nursery.start_soon(functools.partial(poll, context=context, commands=commands, period=period, timeout=2.0))
            await trio.sleep(0.15)
            began = time.monotonic()
            context.stopping.set()
        assert time.monotonic() - began < 0.8
    commands_sent = [entry.text for entry in lab.entries() if entry.event == "command"]
    assert 1 <= sum(text.startswith("SLOW?") for text in commands_sent) <= 5


async def test_turns_stay_on_the_grid_of_the_start(lab: Lab) -> None:
    """Turns begin at whole periods after the start, and those that are over already are left out."""
    poll = functools.partial(serial_poll, serial=lab.port, commands={"x": "SLOW? 0.05"}, period=0.04, timeout=2.0)
    readings = await poll_until(lambda got: len(got) >= 5, lambda context: poll(context=context))
    steps = [(later.asked_ns - first.asked_ns) / 1e9 for first, later in itertools.pairwise(readings)]
    assert all(step > 0.075 for step in steps)


@pytest.mark.parametrize(
    ("options", "match"),
    [({"commands": {}}, "names no channel"), ({"period": 0}, "period"), ({"period": math.inf}, "period")],
)
async def test_options_that_make_no_sense_are_refused(lab: Lab, options: dict[str, object], match: str) -> None:
    """No commands, or a period that is no time, is a ValueError before anything is sent."""
    context = DriverContext(DataPublisher(DataDistributor(), "member"))
    arguments = {"commands": {"x": "POS?"}, **options}
    with pytest.raises(ValueError, match=match):
        await serial_poll(serial=lab.port, context=context, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("12", 12.0),
        ("-7", -7.0),
        ("+0012", 12.0),
        ("12.", 12.0),
        ("-.5", -0.5),
        ("+1.234567E+00", 1.234567),
        ("1e-9", 1e-9),
        ("  3.5 mm", 3.5),
        ("VOLT 5.01,OK", 5.01),
        ("n,+2.5E-3", 2.5e-3),
        ('-113,"Undefined header"', -113.0),
        ("inf", math.inf),
        ("-INF", -math.inf),
        ("+Infinity", math.inf),
        ("9.9E37", 9.9e37),
        ("0x", 0.0),
    ],
)
def test_first_number_of_a_reply(reply: str, number: float) -> None:
    """NR1, NR2 and NR3 of IEEE 488.2, and infinities, wherever they stand in the reply."""
    assert _first_number("line", "owner", "Q?", reply) == number


@pytest.mark.parametrize("reply", ["nan", "NAN", "-nan", "V NaN"])
def test_not_a_number_is_a_number(reply: str) -> None:
    """The word for not-a-number is read as such."""
    assert math.isnan(_first_number("line", "owner", "Q?", reply))


@pytest.mark.parametrize("reply", ["", "OK", "-", ".", "E", "banana", "Finance", "info"])
def test_reply_without_number_names_everything(reply: str) -> None:
    """ReplyError says which line, who asked what, and what came."""
    with pytest.raises(ReplyError) as caught:
        _first_number("line", "owner", "Q?", reply)
    error = caught.value
    assert (error.resource, error.owner, error.command, error.reply) == ("line", "owner", "Q?", reply)
