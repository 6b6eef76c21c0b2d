"""What the guardian does before anything has happened."""

import sys

import pytest
import trio

from trio_daq.sim import open_simulated_lab

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the guardian is for POSIX")

PROGRAM = """
import sys
import trio
from trio_daq.lifecycle.guardian import make_safe_from_cold, rehearse
from trio_daq.serialport import SerialPortConfig
from trio_daq.visa import VisaSessionConfig
from trio_daq.wire import Exchange

path, *resources = sys.argv[1:]
steps = [Exchange(query="*IDN?", expect="TRIO_DAQ.*")]
ends = {"write_terminator": "\\r\\n", "read_terminator": "\\r\\n"}
serial = {"stage": SerialPortConfig(path=path, safe_state=steps, **ends)}
ends = {"write_termination": "\\r\\n", "read_termination": "\\r\\n"}
visa = {
    name: VisaSessionConfig(resource=name, safe_state=steps, **(ends if name.startswith("ASRL") else {}))
    for name in resources
}

rehearse(serial, visa)
before = {*sys.modules}
for lines in ((serial, {}), *(({}, {name: session}) for name, session in visa.items())):
    print(*trio.run(make_safe_from_cold, *lines))
print({*sys.modules} - before)
"""


async def test_nothing_is_left_to_be_imported(tmp_path) -> None:
    """When a lab was killed its lines are made safe at once; to import PyVISA would take longer than all the rest."""
    async with open_simulated_lab(tmp_path / "log") as lab:
        program = [sys.executable, "-c", PROGRAM, lab.stage_path, lab.meter_resource, f"ASRL{lab.stage_path}::INSTR"]
        with trio.fail_after(30):
            ended = await trio.run_process(program, capture_stdout=True, capture_stderr=True)
    *told, imported = ended.stdout.decode().splitlines()
    assert [line.split()[-1] for line in told] == ["confirmed"] * 3
    assert imported == "set()"
    assert "failed" not in ended.stderr.decode()  # of the rehearsal nobody hears
