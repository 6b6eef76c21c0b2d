"""Drivers of QCoDeS run unmodified on a shared session, as they do on PyVISA alone, by the instrument's own log.

The conversations stand in `legacy_conversations`. Not in the default run, for QCoDeS brings NumPy, pandas and more with
it: ``nox -s legacy``.
"""

import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.register_assert_rewrite("legacy_lab")

from legacy_lab import DriverBench, Exercise, open_driver_bench  # noqa: E402

pytest.importorskip("qcodes.instrument", exc_type=ImportError)

pytestmark = pytest.mark.filterwarnings("ignore:Parameter ch[12]_databuffer .* does not correctly pass kwargs")

from qcodes.dataset import LinSweep  # noqa: E402
from qcodes.instrument_drivers.agilent import Agilent34401A  # noqa: E402
from qcodes.instrument_drivers.AimTTi import AimTTiPL601  # noqa: E402
from qcodes.instrument_drivers.Keithley import Keithley2602B  # noqa: E402
from qcodes.instrument_drivers.Lakeshore import LakeshoreModel336  # noqa: E402
from qcodes.instrument_drivers.oxford import OxfordMercuryiPS  # noqa: E402
from qcodes.instrument_drivers.rigol import RigolDS1074Z  # noqa: E402
from qcodes.instrument_drivers.stanford_research import SR830  # noqa: E402
from qcodes.instrument_drivers.yokogawa import YokogawaGS200  # noqa: E402


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DriverBench]:
    with open_driver_bench(tmp_path_factory.mktemp("qcodes")) as bench:
        yield bench


EXERCISES: dict[str, Exercise] = {}


def exercise(
    driver: Callable[..., Any], script: str | None = None, **settings: Any
) -> Callable[[Callable[[Any], None]], Exercise]:
    """Make an exercise of what is to be done with a driver."""

    def decorate(use: Callable[[Any], None]) -> Exercise:
        def run(resource: str, library: str) -> None:
            instrument = driver("instrument", resource, visalib=library, **settings)
            try:
                use(instrument)
            finally:
                instrument.close()

        EXERCISES[script or driver.__name__] = run
        return run

    return decorate


@exercise(Agilent34401A)
def agilent_34401a(meter: Any) -> None:
    """Plain SCPI."""
    meter.NPLC(10)
    assert meter.volt() == 1.234567
    assert meter.range() == 10
    assert meter.display_text() == '"READY?"'


@exercise(AimTTiPL601)
def aim_tti_pl601(supply: Any) -> None:
    """The name of the quantity comes back in front of it."""
    supply.ch1.volt(12.5)
    assert supply.ch1.volt() == 12.5
    assert supply.ch1.curr() == 1.5
    supply.ch1.output(True)
    assert supply.ch1.output() is True
    assert supply.ch1.curr_range() == 2
    supply.ch1.increment_volt_by_step_size()
    assert supply.ch1.volt.get_latest() == 12.6


@exercise(Keithley2602B)
def keithley_2602b(source: Any) -> None:
    """TSP, and a sweep: a program as one command, whose binary answer is read in pieces."""
    source.smua.output("on")
    source.smua.volt(0.25)
    assert source.smua.volt() == 0.250012
    assert source.smub.curr() == -1e-9
    assert source.smua.output() is True
    source.smua.setup_fastsweep(LinSweep(source.smua.volt, 0, 1, 3))
    assert list(source.smua.fastsweep()) == pytest.approx([1.5, struct.unpack("<f", b"\n\n\nA")[0], -2.5e-6])
    assert source.smua.output() is False


@exercise(LakeshoreModel336)
def lakeshore_336(oven: Any) -> None:
    """Carriage return and line feed, both ways; some parameters come in groups."""
    assert oven.A.temperature() == 77.35
    assert oven.B.temperature() == 4.213
    assert oven.A.sensor_status() == "Temp Overrange"
    oven.output_1.setpoint(4.2)
    assert oven.output_1.setpoint() == 4.2


@exercise(OxfordMercuryiPS)
def oxford_mercury_ips(supply: Any) -> None:
    """Values with units and prefixes; every setting is answered; no question mark."""
    assert supply.GRPX.field() == 0.0
    supply.GRPZ.field_target(0.5)
    assert supply.GRPZ.field_target() == 0.5
    assert supply.GRPY.field() == 0.0125
    assert supply.GRPX.ramp_status() == "HOLD"


@exercise(RigolDS1074Z)
def rigol_ds1074z(scope: Any) -> None:
    """A waveform by query_binary_values, with line feeds in it and nothing behind it."""
    volts = scope.channels[0]._get_full_trace()  # what `trace` does, without its check of the shape
    assert list(volts) == pytest.approx([0.0, -1.8, 49.4, -2.26])
    assert scope.channels[0].vertical_scale() == 0.5
    scope.trigger_edge_source("ch2")
    assert scope.trigger_edge_source() == "ch2"


@exercise(SR830, "SR830 of QCoDeS", terminator="\n")
def sr830(lockin: Any) -> None:
    """Several values at one instant."""
    lockin.frequency(137.5)
    assert lockin.frequency() == 137.5
    lockin.time_constant(0.1)
    assert lockin.snap("x", "y", "r") == (1.5e-6, 2.5e-6, 2.915e-6)
    assert lockin.X() == 1.5e-6
    lockin.sensitivity(10e-3)


@exercise(YokogawaGS200)
def yokogawa_gs200(source: Any) -> None:
    """Parameters that depend on each other, and an error queue."""
    assert source.source_mode() == "VOLT"
    source.voltage_range(1)
    source.voltage(0.25)
    assert source.voltage() == 0.25
    source.on()
    assert source.output() == "on"
    assert source.measure.state() == 1
    assert source.line_freq() == 50
    assert source.system_errors() == '-222,"Data out of range"'
    assert source.system_errors() == '0,"No error"'


@pytest.mark.parametrize("name", EXERCISES)
def test_driver_and_script_agree(bench: DriverBench, name: str) -> None:
    """On PyVISA alone the driver gives the values and says what stands in the script: the script is no fiction."""
    bench.run_plain(name, EXERCISES[name])


@pytest.mark.parametrize("name", EXERCISES)
async def test_driver_runs_on_a_shared_session(bench: DriverBench, name: str) -> None:
    """Beside a task that asks all the time the driver gives the same, and the task gets its own replies."""
    await bench.run_shared(name, EXERCISES[name])
