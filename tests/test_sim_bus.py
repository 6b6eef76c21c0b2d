"""Several simulated stages on one line, in virtual time."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from trio_daq.sim import FaultPlan, SimulatedBus, SimulatedStage, SimulatedStation, read_log
from trio_daq.sim.dialogue import Bench
from trio_daq.sim.log import InstrumentLog


@pytest.fixture
def log(tmp_path: Path) -> Iterator[InstrumentLog]:
    with InstrumentLog(tmp_path / "log") as log:
        yield log


async def talk(log: InstrumentLog, plans: dict[bytes, FaultPlan], said: bytes) -> list[tuple[float, bytes]]:
    """Say something to stations with these plans; return what came, and when."""
    got: list[tuple[float, bytes]] = []

    async def send(data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        got.append((trio.current_time() - began, data))

    async with trio.open_nursery() as nursery:
        benches = {
            address: Bench(SimulatedStation(address, SimulatedStage()), plan, log) for address, plan in plans.items()
        }
        began = trio.current_time()
        await SimulatedBus(benches, nursery).open_dialogue(send).take(said)
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    return got


async def test_late_reply_comes_into_the_exchange_with_another(
    log: InstrumentLog, autojump_clock: trio.testing.MockClock
) -> None:
    """A late station keeps its own order and holds up no other."""
    plans = {b"1": FaultPlan(late_every=1, late_by=0.5), b"2": FaultPlan()}
    got = await talk(log, plans, b"1 POS? a\r\n1 ECHO x\r\n2 SLOW? b 0.2\r\n2 SLOW? c 0.7\r\n")
    assert got == [
        (pytest.approx(0.2), b"2 b 12.500\r\n"),
        (pytest.approx(0.5), b"1 a 12.500\r\n"),
        (pytest.approx(0.5), b"1 x\r\n"),
        (pytest.approx(0.9), b"2 c 12.500\r\n"),
    ]


async def test_each_station_has_its_own_faults_and_its_own_name(
    log: InstrumentLog, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Stations count their answers apart, and the log says which of them it was."""
    plans = {b"1": FaultPlan(silent_every=2), b"2": FaultPlan(silent_every=2)}
    got = await talk(log, plans, b"1 POS? a\n2 POS? b\n1 POS? c\n2 POS? d\n")
    assert sorted(data for _, data in got) == [b"1 a 12.500\r\n", b"2 b 12.500\r\n"]
    faults = {(entry.instrument, entry.tag) for entry in read_log(tmp_path / "log") if entry.fault == "silent"}
    assert faults == {("bus 1", "c"), ("bus 2", "d")}


async def test_what_names_no_station_is_heard_by_none(
    log: InstrumentLog, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """An unknown address, an address alone and a line that is too long get no answer, and the bus goes on."""
    got = await talk(log, {b"1": FaultPlan()}, b"9 POS? a\nPOS? b\n1\n" + b"x" * 100_000 + b"\n1 POS? c\n")
    assert [data for _, data in got] == [b"1 c 12.500\r\n"]
    assert {entry.tag for entry in read_log(tmp_path / "log") if entry.event == "reply"} == {"c"}
