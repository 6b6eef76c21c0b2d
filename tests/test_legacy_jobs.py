"""What crosses from old code to the Trio side is plain data, whichever door it goes through."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import pyvisa
import trio

from trio_daq import DualConfig, DualRuntimeManager
from trio_daq.config import RecordingConfig, SubsystemConfig
from trio_daq.legacy import BlockingSerial, Job, with_doors
from trio_daq.serialport import SerialPortConfig
from trio_daq.sim import open_simulated_lab
from trio_daq.visa import VisaSessionConfig
from trio_daq.wire import Command


def as_json(value: Any) -> Any:
    return {"bytes": value.hex()} if isinstance(value, bytes) else {"options": dict(value)}


async def test_jobs_are_plain_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that the doors ask for can be written as JSON with bytes in it, and so be sent through a socket."""
    seen: list[Job] = []
    make = Job.__init__

    def make_and_note(job: Job, *args: Any, **kwargs: Any) -> None:
        make(job, *args, **kwargs)
        seen.append(job)

    monkeypatch.setattr(Job, "__init__", make_and_note)

    async with open_simulated_lab(tmp_path / "log.jsonl") as lab:
        assert lab.stage_path is not None

        def old(lines: dict[str, list[Any]], context: Any) -> None:
            [serial], [visa] = lines["serial"], lines["visa"]
            serial.query(b"POS?", 1.0, match=rb"\d")
            with serial.exclusive("me") as sequence:
                sequence.write_all(b"POS?\r\n")
                sequence.read_until()
                sequence.discard_input()
            with BlockingSerial(serial, timeout=1) as port:
                port.write(b"POS?\r\n")
                assert port.readline().endswith(b"\r\n")
            visa.query(Command("MEAS:VOLT? {}", "a"), 2.0, "me", "urgent")
            visa.batch([Command("CONF:VOLT"), "*OPC?"])
            visa.query_values("MEAS:VOLT?")
            with visa.transaction() as transaction:
                transaction.write("CONF:VOLT")
            meter = pyvisa.ResourceManager("@trio_daq").open_resource(visa.resource)
            meter.read_termination = meter.write_termination = "\n"
            meter.query("*IDN?")
            context.publish("voltage", 1.0, "V")

        async def new(lines: dict[str, list[Any]], context: Any) -> None:
            [serial], [visa] = lines["serial"], lines["visa"]
            await asyncio.sleep(0)
            async with serial.acquire() as guard:
                await guard.query(b"POS?")
            await visa.enqueue_command(Command("CONF:VOLT"))
            await visa.query("*OPC?")
            await context.publish("voltage", 2.0, "V")

        config = DualConfig(
            serial={"stage": SerialPortConfig(path=lab.stage_path, write_terminator="\r\n", read_terminator="\r\n")},
            visa={"meter": VisaSessionConfig(resource=lab.meter_resource)},
            v2=SubsystemConfig(),
            recording=RecordingConfig(enabled=False),
        )
        async with DualRuntimeManager(config) as manager:
            await manager.start()
            lines = {"serial": [manager.serial["stage"]], "visa": [manager.visa["meter"]]}  # doors stand in there, too
            with trio.fail_after(20):
                old_member = await manager.v2.spawn_thread(old, lines)
                new_member = await manager.v2.spawn_asyncio(new, lines)
                await manager.wait_all_ended()
            assert manager.is_v2_healthy(), (old_member, new_member)
    verbs = {job.verb for job in seen}
    assert verbs >= {"query", "batch", "write", "read", "read_line", "publish", "enqueue_command", "discard_input"}
    for job in seen:
        json.dumps([job.verb, job.arguments, dict(job.options), job.patience], default=as_json)


def test_doors_stand_in_the_place_of_lines_and_nothing_else_changes() -> None:
    """A list that holds no line is the program's own, to put results in."""
    results: list[int] = []
    given = (results, {"a": [1, results]}, [b"line"])
    got = with_doors(given, lambda value: "door" if value == b"line" else value)
    assert got == ([], {"a": [1, []]}, ["door"])
    assert got[0] is results
    assert got[1] is given[1]
    assert given[2] == [b"line"]
