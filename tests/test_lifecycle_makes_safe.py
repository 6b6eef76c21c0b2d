"""Which lines are made safe when a member ends, by the instrument's own diary."""

import sys

import pytest
import trio

from trio_daq import DualRuntimeManager
from trio_daq.config import DualConfig, MemberConfig, RecordingConfig, SubsystemConfig
from trio_daq.errors import ConfigError
from trio_daq.serialport import SerialPortConfig
from trio_daq.sim import open_simulated_lab, read_log
from trio_daq.visa import VisaSessionConfig
from trio_daq.wire import Exchange

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the simulated stage needs a pty")

DRIVERS = """
import trio

async def opening(serial, again=False):
    async with serial.acquire(timeout=5) as guard:
        await guard.write_only(b"SHUT 1\\r\\n")
        await guard.query(b"POS? opened")
    if again:
        raise OSError("unplugged")

async def ending():
    pass

async def reading(serial):
    while True:
        async with serial.acquire(timeout=5) as guard:
            await guard.query(b"POS?")
        await trio.sleep(0.02)
"""


def opener(**settings) -> MemberConfig:
    return MemberConfig(id="opener", driver="shutter_drivers:opening", serial="stage", restart="on_failure", **settings)


READER = MemberConfig(id="reader", driver="shutter_drivers:reading", serial="stage")


@pytest.fixture
def config_of(tmp_path, monkeypatch):
    (tmp_path / "shutter_drivers.py").write_text(DRIVERS)
    monkeypatch.delitem(sys.modules, "shutter_drivers", raising=False)

    def make(lab, *members) -> DualConfig:
        port = SerialPortConfig(
            path=lab.stage_path,
            write_terminator="\r\n",
            read_terminator="\r\n",
            quiet_time=0.05,
            safe_state=[Exchange(write="SHUT 0"), Exchange(query="SHUT?", expect="0")],
        )
        meter = VisaSessionConfig(resource=lab.meter_resource, safe_state=[Exchange(write="*RST")])
        return DualConfig(
            serial={"stage": port},
            visa={"meter": meter},
            v2=SubsystemConfig(instruments=members),
            recording=RecordingConfig(enabled=False),
            folder=tmp_path,
        )

    return make


async def said_until_ended(config: DualConfig, log, member: str, count: int) -> list[str]:
    """Run the lab until *member* has ended for good, and return what was said from when it was safe at first, waiting
    for *count* commands: one that is not answered is sent a moment before it is in the log."""
    said: list[str] = []
    async with DualRuntimeManager(config) as manager:
        await manager.start()
        await manager.v2.stage.members[member].done.wait()
        with trio.move_on_after(2):
            while len(said) < count:
                await trio.sleep(0.01)
                texts = [entry.text for entry in read_log(log) if entry.event == "command"]
                said = [text for text in texts if text in ("SHUT 0", "SHUT 1", "*RST")][2:]
        await manager.shutdown()
    return said


@pytest.mark.parametrize(
    ("settings", "shared", "shutter"),
    [
        ({}, False, ["SHUT 1", "SHUT 0"]),
        ({}, True, ["SHUT 1"]),
        ({"makes_safe": ["serial.stage"]}, True, ["SHUT 1", "SHUT 0"]),
        ({"makes_safe": "serial.stage"}, True, ["SHUT 1", "SHUT 0"]),
        ({"makes_safe": []}, False, ["SHUT 1"]),
        ({"makes_safe": ["visa.meter", "serial.stage"]}, True, ["SHUT 1", "*RST", "SHUT 0"]),
    ],
)
async def test_whose_end_makes_it_safe(tmp_path, config_of, settings, shared, shutter) -> None:
    """That of its only user, of whoever names it, and of nobody who names others."""
    log = tmp_path / "log"
    async with open_simulated_lab(log) as lab:
        config = config_of(lab, opener(**settings), *([READER] if shared else []))
        assert sorted(await said_until_ended(config, log, "opener", len(shutter))) == sorted(shutter)


async def test_each_life_ends_safe(tmp_path, config_of) -> None:
    """Also one that is followed by another: the line is safe before that begins."""
    log = tmp_path / "log"
    async with open_simulated_lab(log) as lab:
        member = opener(makes_safe=["serial.stage"], options={"again": True})
        async with DualRuntimeManager(config_of(lab, member, READER)) as manager:
            await manager.start()
            with trio.fail_after(10):
                while manager.v2.stage.members["opener"].restarts < 2:  # noqa: ASYNC110
                    await trio.sleep(0.01)
        shutter = [entry.text for entry in read_log(log) if entry.text in ("SHUT 0", "SHUT 1")][1:]
    assert shutter[:4] == ["SHUT 1", "SHUT 0"] * 2


def test_what_is_wrong_is_said_without_a_file(tmp_path) -> None:
    """Settings that are made in Python are checked too."""
    stage = SerialPortConfig(path="/dev/ttyS0")
    for serial, problem in (({"stage": stage}, "has no safe_state"), ({}, "unknown line 'serial.stage'")):
        side = SubsystemConfig(instruments=[MemberConfig(id="a", driver="m:f", makes_safe="serial.stage")])
        with pytest.raises(ConfigError, match=rf"v2.instruments\[0\].makes_safe: .*{problem}"):
            DualConfig(serial=serial, v2=side)
