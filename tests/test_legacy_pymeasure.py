"""An unmodified PyMeasure worker as a member: its shutdown procedure turns the output off, whenever the stop comes.

Not in the default run, for PyMeasure brings NumPy and pandas with it: ``nox -s legacy``.
"""

import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from trio_daq.config import DualConfig, RecordingConfig, SubsystemConfig
from trio_daq.legacy import VisaDoor
from trio_daq.lifecycle import DualRuntimeManager
from trio_daq.sim import open_simulated_lab, read_log
from trio_daq.visa import VisaSessionConfig

experiment = pytest.importorskip("pymeasure.experiment", exc_type=ImportError)

STOPS = int(os.environ.get("TRIO_DAQ_PYMEASURE_STOPS", "10"))


class Ramp(experiment.Procedure):  # type: ignore[misc]
    """Turn the output on, measure for ever, and turn it off at the end."""

    DATA_COLUMNS = ("number", "volts")

    def startup(self) -> None:
        self.meter.write("OUTP ON")

    def execute(self) -> None:
        number = 0
        while not self.should_stop():
            reply = self.meter.query("SLOW? v,0.02" if number % 3 == 0 else "MEAS:VOLT? v", 30.0)
            self.emit("results", {"number": number, "volts": float(reply.split(",")[-1])})
            number += 1

    def shutdown(self) -> None:
        self.meter.write("OUTP OFF")


def measure(meter: VisaDoor, results: Path) -> None:
    """Run the procedure in PyMeasure's own thread, as its manual has it."""
    procedure = Ramp()
    procedure.meter = meter
    worker = experiment.Worker(experiment.Results(procedure, str(results)))
    worker.start()
    while worker.is_alive():
        time.sleep(0.02)  # its join would tell it to stop when it has waited


async def test_procedure_turns_its_output_off_at_each_stop(tmp_path: Path) -> None:
    """The last command of each life is OUTP OFF, by the instrument's own log, at whatever moment it was stopped."""
    chance = random.Random(5)
    log = tmp_path / "log.jsonl"

    def commands() -> list[str]:
        return [entry.text for entry in read_log(log) if entry.event == "command"]

    async with open_simulated_lab(log, stage=None) as simulated:
        config = DualConfig(
            visa={"meter": VisaSessionConfig(resource=simulated.meter_resource)},
            v2=SubsystemConfig(stop_timeout=5.0),
            recording=RecordingConfig(enabled=False),
        )
        outcomes: list[Any] = []
        async with DualRuntimeManager(config) as manager:
            await manager.start()
            for number in range(STOPS):
                await manager.start_v2()
                before = len(commands())
                meter = manager.visa["meter"]
                await manager.v2.spawn_thread(measure, meter, tmp_path / f"{number}.csv", name="ramp")
                with trio.fail_after(10):
                    while "OUTP ON" not in commands()[before:]:  # noqa: ASYNC110 - the log is another process's
                        await trio.sleep(0.005)
                await trio.sleep(chance.uniform(0, 0.08))
                [report] = (await manager.stop_v2()).members
                outcomes.append((report.outcome, report.error, report.abandoned_threads))
                await meter.query("*OPC?")  # what was written has been taken in
                assert [one for one in commands()[before:] if one != "*OPC?"][-1] == "OUTP OFF", number
    assert outcomes == [("drained", None, ())] * STOPS
    assert commands().count("OUTP ON") == commands().count("OUTP OFF") == STOPS
