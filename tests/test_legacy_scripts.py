"""A raw PyVISA script and easy-scpi run unmodified on a shared session, by the instrument's own log.

The conversations stand in `legacy_conversations`. The script needs nothing but PyVISA and is in the default run; for
easy-scpi there is ``nox -s legacy``.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import pyvisa

pytest.register_assert_rewrite("legacy_lab")

from legacy_conversations import RAMP  # noqa: E402
from legacy_lab import DriverBench, Exercise, open_driver_bench  # noqa: E402


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DriverBench]:
    with open_driver_bench(tmp_path_factory.mktemp("scripts")) as bench:
        yield bench


def script(resource: str, library: str) -> None:
    """Use what PyVISA offers, as scripts do."""
    manager = pyvisa.ResourceManager(library)
    with manager.open_resource(resource) as scope:
        assert isinstance(scope, pyvisa.resources.MessageBasedResource)
        scope.read_termination = scope.write_termination = "\n"
        scope.timeout = 3000
        assert scope.query("*IDN?") == "ACME,SCOPE,1,2.0"
        assert bytes(scope.query_binary_values("CURV?", datatype="B")) == RAMP
        scope.chunk_size = 3
        assert scope.query_binary_values("CURV:WORD?", datatype="h", is_big_endian=True) == [2570, -1, 10]
        scope.chunk_size = 20 * 1024
        assert scope.query_ascii_values("CURV:ASC?") == [1.5, -2.5, 3500.0]
        assert scope.query_ascii_values("CURV:HEX?", converter="x") == [255, 10, 16]
        scope.write_ascii_values("LIST ", [1.5, 2.5])
        scope.write_binary_values("ARB ", [1, 2, 3, 10, 13, 255], datatype="B")
        assert scope.query("LIST?;*OPC?", delay=0.01) == "1.5,2.5;1"
        scope.write("STAT?")
        assert (scope.read_bytes(4), scope.read_bytes(7)) == (b"0123", b"456789\n")
        scope.write("STAT?")
        assert scope.read_raw() == b"0123456789\n"
        scope.timeout = 200
        with pytest.raises(pyvisa.VisaIOError) as raised:
            scope.query("NEVER?")
        assert raised.value.error_code == pyvisa.constants.StatusCode.error_timeout
        scope.clear()
        scope.timeout = 3000
        assert scope.query("*OPC?") == "1"


def easy_scpi_script(resource: str, library: str) -> None:
    """Use attributes as commands."""
    import easy_scpi  # it may be missing

    ends = {"read_termination": "\n", "write_termination": "\n", "timeout": 3000}
    source: Any = easy_scpi.Instrument(resource, port_match=False, backend=library, **ends)
    source.connect()
    try:
        source.source.voltage(1.5)
        assert float(source.source.voltage()) == 1.5
        assert float(source.measure.voltage(2, query=True)) == 1.4999
        assert float(source.value) == 1.5
        source.init()
        assert source.id == "ACME,SOURCE,1,2.0"
    finally:
        source.disconnect()


EXERCISES: dict[str, Exercise] = {"raw PyVISA script": script}
if find_spec("easy_scpi") is not None:
    EXERCISES["easy-scpi"] = easy_scpi_script


@pytest.mark.parametrize("name", EXERCISES)
def test_program_and_script_agree(bench: DriverBench, name: str) -> None:
    """On PyVISA alone it gets the values and says what stands in the conversation."""
    bench.run_plain(name, EXERCISES[name])


@pytest.mark.parametrize("name", EXERCISES)
async def test_program_runs_on_a_shared_session(bench: DriverBench, name: str) -> None:
    """Beside a task that asks all the time it gets the same, and the task gets its own replies."""
    await bench.run_shared(name, EXERCISES[name])
