"""Drivers of PyMeasure run unmodified on a shared session, as they do on PyVISA alone, by the instrument's own log.

The conversations stand in `legacy_conversations`. Not in the default run, for PyMeasure brings NumPy and pandas with
it: ``nox -s legacy``.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.register_assert_rewrite("legacy_lab")

from legacy_lab import DriverBench, Exercise, open_driver_bench  # noqa: E402

pytest.importorskip("pymeasure.instruments", exc_type=ImportError)

from pymeasure.instruments.aja import DCXS  # noqa: E402
from pymeasure.instruments.ametek import Ametek7270  # noqa: E402
from pymeasure.instruments.andeenhagerling import AH2500A  # noqa: E402
from pymeasure.instruments.ipgphotonics.yar import YAR  # noqa: E402
from pymeasure.instruments.keithley import Keithley2000, Keithley2400, Keithley2600  # noqa: E402
from pymeasure.instruments.keysight import KeysightDSOX1102G  # noqa: E402
from pymeasure.instruments.lecroy import LeCroyT3DSO1204  # noqa: E402
from pymeasure.instruments.mksinst.mks937b import MKS937B, Unit  # noqa: E402
from pymeasure.instruments.oxfordinstruments import ITC503  # noqa: E402
from pymeasure.instruments.oxfordinstruments.base import OxfordVISAError  # noqa: E402
from pymeasure.instruments.pendulum import CNT91  # noqa: E402
from pymeasure.instruments.srs import SR830  # noqa: E402
from pymeasure.instruments.tdk import TDK_Gen40_38  # noqa: E402
from pymeasure.instruments.thyracont import SmartlineV1  # noqa: E402
from pymeasure.instruments.toptica import IBeamSmart  # noqa: E402
from pymeasure.instruments.velleman import VellemanK8090, VellemanK8090Switches  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:It is not known whether this device support SCPI:FutureWarning")

LINES = {"read_termination": "\n", "write_termination": "\n"}
"""What PyMeasure wants to be told where a driver was written for GPIB, which has END in place of a terminator."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DriverBench]:
    with open_driver_bench(tmp_path_factory.mktemp("pymeasure")) as bench:
        yield bench


def exercise(driver: Callable[..., Any], **settings: Any) -> Callable[[Callable[[Any], None]], Exercise]:
    """Make an exercise of what is to be done with a driver."""

    def decorate(use: Callable[[Any], None]) -> Exercise:
        def run(resource: str, library: str) -> None:
            instrument = driver(resource, visa_library=library, **settings)
            try:
                use(instrument)
            finally:
                instrument.adapter.connection.close()

        EXERCISES[driver.__name__] = run
        return run

    return decorate


EXERCISES: dict[str, Exercise] = {}


@exercise(Keithley2000, **LINES)
def keithley2000(meter: Any) -> None:
    """Plain SCPI, compound commands, an error queue that is read until it is empty."""
    assert meter.id == "KEITHLEY INSTRUMENTS INC.,MODEL 2000,1234567,A20 /A02"
    assert meter.mode == "voltage ac"
    meter.mode = "voltage"
    meter.voltage_range = 234
    assert meter.voltage_range == 234
    assert meter.voltage == 3.1415
    assert [code for code, _ in meter.check_errors()] == [-113, -222]
    assert meter.complete


@exercise(Keithley2400, **LINES)
def keithley2400(source: Any) -> None:
    """Several values in a reply."""
    source.enable_source()
    assert source.measure_all()["resistance"] == 10002.36
    assert source.current == 1.5e-4
    assert source.next_error == [-113, ' "Undefined header"']
    assert source.source_enabled is True


@exercise(Keithley2600, **LINES)
def keithley2600(source: Any) -> None:
    """TSP, whose queries are calls of print."""
    source.ChA.source_mode = "voltage"
    source.ChA.source_voltage = 0.5
    source.ChA.source_output = "ON"
    assert source.ChA.current == 1.23457e-6
    assert source.ChB.voltage == -0.5
    assert source.next_error == (-286, "TSP Runtime error")
    assert source.next_error[0] == 0


@exercise(KeysightDSOX1102G, **LINES)
def keysight_dsox1102g(scope: Any) -> None:
    """A block of text, and one of bytes that is read one by one until the timeout."""
    assert scope.timebase == {"MODE": "MAIN", "REF": "CENT", "MAIN:RANG": 1e-3, "POS": 0.0}
    data, preamble = scope.download_data("channel1", 100)
    assert list(data) == [1.0, 2.5, -3.0, 4.0]
    assert (preamble["points"], preamble["xincrement"]) == (4, 5e-6)
    scope.adapter.connection.timeout = 300
    image = scope.download_image()
    assert image[:256] == bytes(range(256))
    assert scope.complete


@exercise(LeCroyT3DSO1204, **LINES, timeout=300)
def lecroy_t3dso1204(scope: Any) -> None:
    """A waveform with a header of its own and two terminators, and a driver that sets chunk sizes."""
    scope.ch_1.scale = 0.05
    volts, times, preamble = scope.download_waveform("C1", requested_points=10, sparsing=1)
    assert volts[0] == pytest.approx(1 * 0.05 / 25 - 1)
    assert volts[2] == pytest.approx(10 * 0.05 / 25 - 1)
    assert volts[7] == pytest.approx(-1 * 0.05 / 25 - 1)
    assert len(times) == 10
    assert preamble["transmitted_points"] == 10


@exercise(SR830, **LINES)
def sr830(lockin: Any) -> None:
    """Queries with parameters, and binary values without any frame."""
    assert lockin.id.startswith("Stanford_Research_Systems,SR830")
    assert lockin.frequency == 121.98
    lockin.sensitivity = 100e-6
    assert lockin.sensitivity == pytest.approx(100e-6)
    assert lockin.xy == [-4.17234e-7, -5.9605e-7]
    assert lockin.get_scaling("X") == (9.7, 10)
    lockin.adapter.connection.timeout = 300
    lockin.write("TRCB?1,0,4")
    assert list(lockin.read_binary_values(termination_bytes=-1)) == [1.0, -2.5, 8.0, 1024.0]


@exercise(ITC503, write_termination="\r")
def itc503(oven: Any) -> None:
    """No question mark, a carriage return, an answer to every command, and a clear at the start."""
    assert oven.version.startswith("ITC503")
    oven.control_mode = "RU"
    assert oven.control_mode == "RU"
    assert oven.temperature_1 == 4.213
    oven.temperature_setpoint = 10
    assert oven.temperature_setpoint == 10
    with pytest.raises(OxfordVISAError, match="did not understand"):
        oven.write("Z5")


@exercise(AH2500A)
def ah2500a(bridge: Any) -> None:
    """Values with units, and a write whose answer is read later."""
    assert bridge.config == "SAMPLE HOLD OFF"
    assert bridge.vhighest == 1.0
    bridge.vhighest = 0.75
    assert bridge.caplossvolt == (1.234567, 0.000014, 0.75)
    bridge.trigger()
    assert bridge.triggered_caplossvolt() == (2.345678, 0.000015, 0.75)
    assert all(map(math.isnan, bridge.caplossvolt))


@exercise(Ametek7270)
def ametek7270(lockin: Any) -> None:
    """A null as terminator, and an empty answer to every setting."""
    assert lockin.id == "7270/2.06"
    lockin.sensitivity = 1.0
    assert lockin.sensitivity == 1.0
    lockin.time_constant = 0.1
    assert lockin.xy == [1.5e-3, -2e-6]
    assert lockin.mag == 1.5e-3
    lockin.set_reference_mode(0)
    lockin.voltage = 0.5


@exercise(DCXS)
def dcxs(supply: Any) -> None:
    """Commands of one letter, replies of known length, no terminator at all."""
    assert supply.id == "DCXS750-4"
    supply.setpoint = 97
    assert supply.setpoint == 97
    supply.regulation_mode = "power"
    assert supply.regulation_mode == "power"
    supply.enabled = True
    assert supply.enabled is True
    assert supply.power == 95
    supply.material = "ALongNameWhichGetsTruncated"
    assert supply.material == "ALongNam"


@exercise(MKS937B)
def mks937b(gauge: Any) -> None:
    """A terminator of three bytes, of which PyVISA reads the first and the driver the rest."""
    assert gauge.ch_1.pressure == 1.1e-9
    assert gauge.ch_1.ion_gauge_status == "Good"
    gauge.unit = Unit.uHg
    assert gauge.unit == Unit.Torr
    assert gauge.relay_10.setpoint == 2.0
    with pytest.raises(ValueError, match="invalid reply"):
        gauge.relay_10.enabled = True


@exercise(SmartlineV1)
def smartline_v1(gauge: Any) -> None:
    """An address in front and a checksum behind."""
    assert gauge.device_type == "VSM207"
    assert gauge.pressure == pytest.approx(982.1)
    assert gauge.cathode_enabled is True
    with pytest.raises(ConnectionError, match="indicates an error"):
        gauge.cathode_enabled = False
    assert gauge.display_unit == "mbar"


@exercise(TDK_Gen40_38, read_termination="\r", write_termination="\r")
def tdk_gen40_38(supply: Any) -> None:
    """OK or an error code in answer to every setting."""
    supply.remote = "REM"
    supply.voltage_setpoint = 20
    assert supply.voltage_setpoint == 20
    assert supply.current == 1.2345
    assert supply.display == [5.9999, 6.0, 10.02, 10.0, 7.5, 0.0]
    supply.current_setpoint = 10


@exercise(IBeamSmart)
def ibeam_smart(laser: Any) -> None:
    """An answer is several lines, the last of which is [OK]."""
    assert laser.version == "iBPs-001A01-05"
    assert laser.power == 1
    laser.emission = True
    assert laser.emission is True
    laser.ch_3.enabled = True


@exercise(CNT91, write_termination="\n", timeout=3000)
def cnt91(counter: Any) -> None:
    """*OPC? until it is true, an array of text."""
    counter.buffer_frequency_time_series("A", 4, gate_time=0.01)
    assert counter.read_buffer(4) == [10000001.0, 10000002.0, 10000000.0, 9999999.0]
    assert counter.batch_size == 10000


@exercise(VellemanK8090, timeout=1000)
def velleman_k8090(relays: Any) -> None:
    """Packets of seven bytes with a checksum; the input is flushed before each."""
    assert relays.version == (10, 1)
    last_on, current, timers = relays.status
    switches = VellemanK8090Switches
    assert last_on == switches.CH1
    assert current == switches.CH1 | switches.CH3 | switches.CH5
    assert timers == switches.CH8
    relays.switch_on = switches.CH1 | switches.CH3
    with pytest.raises(ConnectionError, match="checksum"):
        _ = relays.version


@exercise(YAR)
def yar(laser: Any) -> None:
    """The command comes back in front of the value."""
    assert laser.status == YAR.Status.EMISSION
    laser.emission_enabled = True
    assert laser.power == 3.45
    assert laser.power == 0


@pytest.mark.parametrize("name", EXERCISES)
def test_driver_and_script_agree(bench: DriverBench, name: str) -> None:
    """On PyVISA alone the driver gives the values and says what stands in the script: the script is no fiction."""
    bench.run_plain(name, EXERCISES[name])


@pytest.mark.parametrize("name", EXERCISES)
async def test_driver_runs_on_a_shared_session(bench: DriverBench, name: str) -> None:
    """Beside a task that asks all the time the driver gives the same, and the task gets its own replies."""
    await bench.run_shared(name, EXERCISES[name])
