"""A whole lab on simulated instruments: a real pty, real PyVISA over TCP, a real run file, real time."""

import contextlib
import itertools
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_daq.actors import Actor, Message, handles
from trio_daq.config import DualConfig, MemberConfig, RecordingConfig, SubsystemConfig
from trio_daq.drivers import DriverContext
from trio_daq.errors import ConfigError, LineOpenError, RecordingError, SessionClosedError, StartError, UnknownNameError
from trio_daq.lifecycle import DualRuntimeManager
from trio_daq.recording import open_run
from trio_daq.serialport import SerialPortConfig, SharedSerialPort
from trio_daq.sharing import Wait
from trio_daq.sim import SimulatedLab, open_simulated_lab, read_log
from trio_daq.visa import VisaSessionConfig, VisaSessionManager


def config_for(simulated: SimulatedLab, folder: Path, stage_path: str | None = None) -> DualConfig:
    return DualConfig(
        serial={
            "stage": SerialPortConfig(
                path=stage_path or simulated.stage_path,
                write_terminator="\r\n",
                read_terminator="\r\n",
                quiet_time=0.05,
            )
        },
        visa={"meter": VisaSessionConfig(resource=simulated.meter_resource)},
        v2=SubsystemConfig(),
        v4=SubsystemConfig(),
        recording=RecordingConfig(directory=folder / "runs"),
    )


@asynccontextmanager
async def running_lab(folder: Path) -> AsyncIterator[tuple[DualRuntimeManager, Path]]:
    """A running lab, and the log of its instruments. The stage is named by a link, as udev makes them."""
    log = folder / "instruments.jsonl"
    async with open_simulated_lab(log) as simulated:
        link = folder / "usb-stage"
        link.symlink_to(simulated.stage_path)
        async with DualRuntimeManager(config_for(simulated, folder, str(link))) as manager:
            await manager.start()
            yield manager, log


@attrs.frozen
class Tick(Message[None]):
    """Read once."""


class Reader(Actor):
    """Reads the meter; says goodbye to the stage."""

    def __init__(self, port: SharedSerialPort, session: VisaSessionManager, context: DriverContext) -> None:
        self._port, self._session, self._context = port, session, context
        self._tags = itertools.count()

    async def on_start(self) -> None:
        self.every(0.02, Tick())

    @handles(Tick)
    async def tick(self, _: Tick) -> None:
        reply = await self._session.query(f"MEAS:VOLT? v4-{next(self._tags)}")
        await self._context.publish("voltage", float(reply.split(",")[1]), "V")

    async def on_stop(self) -> None:
        async with self._port.acquire() as guard:
            await guard.query(b"POS? v4-last")


async def read_stage(port: SharedSerialPort, session: VisaSessionManager, context: DriverContext) -> None:
    """Read the stage; say goodbye to the meter."""
    for number in itertools.count():
        async with port.acquire() as guard:
            reply = await guard.query(f"POS? v2-{number}".encode())
        await context.publish("position", float(reply.split()[1]), "mm")
        if await context.wait_stopping(0.02):
            break
    await session.query("MEAS:VOLT? v2-last")
    await context.publish("done", 1.0)


async def test_v4_stops_before_v2_before_hardware_before_recording(tmp_path):
    """By the instruments' own log, the last word of V4 is answered before that of V2; both still find their lines and
    the recorder, which has every reading; the report and the log tell the same story."""
    async with running_lab(tmp_path) as (manager, log):
        port, session = manager.serial["stage"], manager.visa["meter"]
        await manager.v2.spawn(read_stage, port, session, name="v2_reader")
        await manager.v4.spawn(Reader, port, session, name="v4_reader")
        await trio.sleep(0.4)
        with manager.distributor.subscribe("count") as subscription:
            report = await manager.shutdown(10)
            missed = subscription.receive_nowait()
        replies = [entry for entry in read_log(log) if entry.event == "reply" and entry.tag]
        tags = [entry.tag for entry in replies]
        assert [stage.name for stage in report.stages] == ["v4", "v2", "hardware", "recording"]
        assert {one.outcome for stage in report.stages for one in stage.members} == {"drained"}
        assert tags.index("v4-last") < tags.index("v2-last")
        assert max(index for index, tag in enumerate(tags) if tag.startswith("v4")) == tags.index("v4-last")
        assert tags[-1] == "v2-last"
        assert missed[-1].channel == "done"
        with open_run(manager.recorder.path) as run:
            assert run.ended_well
            rows = list(run.readings())
        assert rows[-1].channel == "done"  # V2's last reading, after all of V4's
        published = manager.distributor.statistics().published
        assert len(rows) == manager.recorder.statistics().rows == published
        assert len(rows) == len(tags) - 1 - 1 + 1  # every reply but the two last words is a reading; and "done"
        with pytest.raises(SessionClosedError):
            async with port.acquire():
                pass


async def test_a_port_is_one_object_under_all_its_names(tmp_path):
    """Its name in the lab, the link, the device behind the link: always the same port, before the start as after."""
    async with open_simulated_lab(tmp_path / "log.jsonl", meter=None) as simulated:
        link, other = tmp_path / "usb-stage", tmp_path / "another"
        link.symlink_to(simulated.stage_path)
        other.symlink_to(link)
        stage = SerialPortConfig(path=str(link), write_terminator="\r\n", read_terminator="\r\n")
        config = DualConfig(serial={"stage": stage}, v2=SubsystemConfig(), recording=RecordingConfig(enabled=False))
        manager = DualRuntimeManager(config)
        before = manager.get_shared_serial_port("stage")
        async with manager:
            await manager.start()
            for name in ("stage", str(link), str(other), simulated.stage_path):
                assert manager.get_shared_serial_port(name) is manager.serial["stage"] is before
            await manager.shutdown(5)
            await manager.start()
            after = manager.get_shared_serial_port("stage")
            assert after is not before  # a closed port stays closed: a new start has a new one
            async with after.acquire() as guard:
                assert b"STAGE" in await guard.query(b"*IDN?")


async def test_a_session_is_found_by_any_spelling_of_its_resource(tmp_path):
    """Its name, its resource in other letters or with the board number, and nothing at all when it is the only one."""
    async with open_simulated_lab(tmp_path / "log.jsonl", stage=None) as simulated:
        config = DualConfig(
            visa={"meter": VisaSessionConfig(resource=simulated.meter_resource)},
            v2=SubsystemConfig(),
            recording=RecordingConfig(enabled=False),
        )
        async with DualRuntimeManager(config) as manager:
            await manager.start()
            session = manager.visa["meter"]
            port = simulated.meter_port
            for name in ("meter", f"tcpip::127.0.0.1::{port}::socket", f"TCPIP0::127.0.0.1::{port}::SOCKET", None):
                assert manager.get_visa_session(name) is session
            assert "METER" in await manager.enqueue_visa_command("*IDN?", timeout=2, owner="me")
            assert await manager.enqueue_visa_command("CONF:VOLT", session="meter") == ""
            assert session.statistics().executed["me"] == 1


async def test_unknown_names_are_answered_with_the_known_ones(tmp_path):
    """A near miss gets a suggestion; any other gets the list; two sessions cannot be meant by none."""
    sessions = {
        name: VisaSessionConfig(resource=f"TCPIP::10.0.0.{n}::5025::SOCKET") for n, name in enumerate(["dmm", "psu"])
    }
    ports = {"stage": SerialPortConfig(path="/dev/ttyUSB0")}
    manager = DualRuntimeManager(DualConfig(serial=ports, visa=sessions, v2=SubsystemConfig()))
    with pytest.raises(UnknownNameError, match="no serial port called 'stge' \\(did you mean 'stage'\\?\\)"):
        manager.get_shared_serial_port("stge")
    with pytest.raises(UnknownNameError, match="known: dmm, psu"):
        manager.get_visa_session("oscilloscope")
    with pytest.raises(UnknownNameError) as caught:
        manager.get_visa_session(None)
    assert caught.value.known == ["dmm", "psu"]
    with pytest.raises(UnknownNameError):
        await manager.enqueue_visa_command("*IDN?")


async def test_a_port_that_is_not_there_stops_the_start(tmp_path):
    """StartError names it; the recording that had begun is closed in order, and ends well."""
    config = DualConfig(
        serial={"stage": SerialPortConfig(path="/dev/does-not-exist")},
        v2=SubsystemConfig(),
        recording=RecordingConfig(directory=tmp_path),
    )
    async with DualRuntimeManager(config) as manager:
        with pytest.raises(StartError) as caught:
            await manager.start()
        assert caught.value.member == "hardware.serial.stage"
        assert isinstance(caught.value.cause, LineOpenError)
        assert [stage.name for stage in caught.value.report.stages] == ["recording"]
        with open_run(manager.recorder.path) as run:
            assert run.ended_well


async def measure_without_end(folder: Path) -> DualRuntimeManager:
    async with running_lab(folder) as (manager, _):
        await manager.v2.spawn(read_stage, manager.serial["stage"], manager.visa["meter"])
        await trio.sleep(0.1)
        # As a full disk or a bad block would: the database refuses the next block.
        with contextlib.closing(sqlite3.connect(manager.recorder.path, isolation_level=None)) as database:
            database.execute("CREATE TRIGGER no BEFORE INSERT ON block BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
        with trio.fail_after(5):
            await trio.sleep_forever()
    return manager


async def test_a_recorder_that_fails_stops_the_lab(tmp_path):
    """What is measured from then on would be lost: all is stopped, and the RecordingError comes out of the block."""
    with pytest.raises(RecordingError, match="disk is full"):
        await measure_without_end(tmp_path)


async def test_drivers_are_checked_before_anything_opens(tmp_path):
    """A driver that does not exist is found when the manager is made."""
    member = MemberConfig(id="x", driver="no_such_module:run")
    config = DualConfig(
        v2=SubsystemConfig(instruments=[member]), recording=RecordingConfig(directory=tmp_path / "runs")
    )
    with pytest.raises(ConfigError, match="no_such_module"):
        DualRuntimeManager(config)
    assert not (tmp_path / "runs").exists()


async def test_a_snapshot_shows_who_has_what(tmp_path):
    """While a line is held, the snapshot says by whom, how long, and who waits; afterwards it counts."""
    async with running_lab(tmp_path) as (manager, _):
        port = manager.serial["stage"]
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                async with port.acquire("second"):
                    pass

            async with port.acquire("first") as guard:
                nursery.start_soon(wait)
                await trio.sleep(0.05)
                await guard.query(b"POS?")
                [stage, meter] = manager.snapshot().lines
                assert (stage.name, stage.kind, stage.owner, stage.waiting) == ("stage", "serial", "first", ("second",))
                assert stage.held_for >= 0.05
                assert manager.snapshot().waits == (Wait("second", port.path, "first"),)
                assert (meter.name, meter.kind, meter.owner, meter.waiting) == ("meter", "visa", None, ())
        [stage, _] = manager.snapshot().lines
        assert (stage.owner, stage.exchanges["first"], stage.hand_overs) == (None, 1, 3)  # its keeper had it too
        assert stage.longest_wait > 0
        assert manager.snapshot().waits == ()


class Asked(Message[None]):
    pass


class Slow(Actor):
    @handles(Asked)
    async def handle(self, _: Asked) -> None:
        await trio.sleep(1)


async def test_a_snapshot_shows_the_circle_that_is_not_yet_closed(autojump_clock):
    """Who waits for an actor is in it by the name of their member, and so is the actor that they wait for."""
    config = DualConfig(v2=SubsystemConfig(), v4=SubsystemConfig(), recording=RecordingConfig(enabled=False))
    async with DualRuntimeManager(config) as manager:
        await manager.start()
        slow = await manager.v4.spawn(Slow, name="slow")

        async def ask() -> None:
            await slow.ask(Asked(), timeout=5)

        await manager.v2.spawn(ask, name="asker")
        await wait_all_tasks_blocked()
        [wait] = manager.snapshot().waits
        assert (wait.waiter, wait.holder) == ("asker", "slow")
        assert "slow" in wait.resource
