"""PyMeasure's SerialAdapter, unmodified, on a shared port beside async owners; by the instrument's own log.

Not in the default run, for PyMeasure brings NumPy and pandas with it: ``nox -s legacy``.
"""

import contextlib
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import serial
import trio
from old_serial_lab import Lab, in_thread, open_lab

from trio_daq.errors import ExchangeTimeoutError
from trio_daq.legacy import BlockingSerial
from trio_daq.sim import FaultPlan, open_simulated_lab, read_log, replies_by_tag

adapters = pytest.importorskip("pymeasure.adapters", exc_type=ImportError)
instruments = pytest.importorskip("pymeasure.instruments", exc_type=ImportError)

EXCHANGES = int(os.environ.get("TRIO_DAQ_LEGACY_EXCHANGES", "500"))


class Stage(instruments.Instrument):  # type: ignore[misc]
    """An instrument as PyMeasure's manual has it."""

    position = instruments.Instrument.measurement("POS?", """The position in mm.""")
    shutter = instruments.Instrument.control(
        "SHUT?", "SHUT %d", """Whether the shutter is open.""", values={True: 1, False: 0}, map_values=True
    )

    def __init__(self, adapter: Any) -> None:
        super().__init__(adapter, "simulated stage", includeSCPI=False)


def stage_on(lab: Lab, read_termination: str = "\r\n") -> Stage:
    port = BlockingSerial(lab.door)
    assert isinstance(port, serial.SerialBase)
    adapter = adapters.SerialAdapter(port, write_termination="\r\n", read_termination=read_termination)
    assert adapter.connection is port
    return Stage(adapter)


async def test_an_instrument_of_pymeasure(tmp_path: Path) -> None:
    """Properties are read and set, with and without a read termination, and its way to flush works."""
    async with open_simulated_lab(tmp_path / "log.jsonl", meter=None) as simulated:
        assert simulated.stage_path is not None
        async with open_lab(simulated.stage_path, simulated.log) as lab:

            def script(read_termination: str) -> Any:
                stage = stage_on(lab, read_termination)
                before, stage.shutter = stage.shutter, True
                stage.write("POS? left")
                stage.adapter.flush_read_buffer()
                return before, stage.shutter, stage.position, stage.ask("MOVE 12.5 m").rstrip(), stage.values("POS?")

            assert await in_thread(script, "\r\n") == (False, True, 12.5, "m OK", [12.5])
            await in_thread(close_shutter, lab)
            assert await in_thread(script, "") == (False, True, 12.5, "m OK", [12.5])


def close_shutter(lab: Lab) -> None:
    stage_on(lab).shutter = False


async def test_no_reply_reaches_the_wrong_reader(tmp_path: Path) -> None:
    """Two threads of PyMeasure and two async owners, late and missing replies, and cancellations: 0 wrong."""
    faults = FaultPlan(late_every=19, late_by=0.1, silent_every=61)
    got: list[tuple[str, str]] = []
    each = max(1, EXCHANGES // 4)

    def old(lab: Lab, name: str) -> None:
        stage = stage_on(lab)
        for number in range(each):
            tag = f"{name}-{number}"
            if reply := stage.ask(f"POS? {tag}"):
                got.append((tag, reply))

    async def new(lab: Lab, name: str) -> None:
        chance = random.Random(name)
        for number in range(each):
            tag = f"{name}-{number}"
            with trio.move_on_after(chance.choice([5.0, 5.0, 0.002, 0.05])), contextlib.suppress(ExchangeTimeoutError):
                async with lab.port.acquire(name, timeout=20) as guard:
                    got.append((tag, (await guard.query(f"POS? {tag}".encode())).decode()))

    async with open_simulated_lab(tmp_path / "log.jsonl", stage=faults, meter=None) as simulated:
        assert simulated.stage_path is not None
        opened = open_lab(simulated.stage_path, simulated.log, timeout=0.06)
        async with opened as lab, trio.open_nursery() as nursery:
            for number in range(2):
                nursery.start_soon(in_thread, old, lab, f"old{number}")
                nursery.start_soon(new, lab, f"new{number}")
    answered = replies_by_tag(read_log(tmp_path / "log.jsonl"))
    assert [(tag, reply) for tag, reply in got if answered.get(tag) != reply] == []
    replies = Counter(tag[:3] for tag, _ in got)
    assert replies["old"] > 1.7 * each
    assert replies["new"] > each / 2
    print(f"{4 * each} exchanges, {dict(replies)} replies, 0 wrong")
