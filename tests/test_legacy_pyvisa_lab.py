"""Old PyVISA code as members of a lab: found by its resource names, stopped in order, with its clean-up done."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import pyvisa
import trio
from pyvisa.constants import StatusCode
from pyvisa.errors import VisaIOError

from trio_daq.config import DualConfig, RecordingConfig, SubsystemConfig
from trio_daq.lifecycle import DualRuntimeManager
from trio_daq.serialport import SerialPortConfig
from trio_daq.sim import open_simulated_lab, read_log
from trio_daq.visa import VisaSessionConfig

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the simulated stage needs a pty")


def lab_with(resource: str) -> DualRuntimeManager:
    return DualRuntimeManager(
        DualConfig(
            visa={"meter": VisaSessionConfig(resource=resource, timeout=1)},
            v2=SubsystemConfig(stop_timeout=5),
            v4=SubsystemConfig(),
            recording=RecordingConfig(enabled=False),
        )
    )


def commands(log: Path) -> list[str]:
    return [entry.text for entry in read_log(log) if entry.event == "command"]


@pytest.mark.parametrize("where", ["member", "thread of a member", "thread of nobody"])
async def test_stop_inside_a_read(tmp_path: Path, where: str) -> None:
    """The script gets an error that PyVISA users know, at once; what it does in its finally reaches the instrument, and
    the lab ends in time."""
    log = tmp_path / "log.jsonl"
    told: list[tuple[float, int, str]] = []
    async with open_simulated_lab(log) as simulated:
        resource = simulated.meter_resource

        def script() -> None:
            meter = pyvisa.ResourceManager("@trio_daq").open_resource(
                resource, read_termination="\n", write_termination="\n", timeout=20000
            )
            try:
                meter.write("OUTP ON")
                meter.query("SLOW? hung,30")
            except VisaIOError as error:
                told.append((time.monotonic(), error.error_code, " ".join(error.__notes__)))
                raise
            finally:
                meter.write("OUTP OFF")

        def parent() -> None:
            thread = threading.Thread(target=script)
            thread.start()
            thread.join()

        threading.excepthook, before = lambda _: None, threading.excepthook
        try:
            async with lab_with(resource) as manager, trio.open_nursery() as nursery:
                await manager.start()
                if where == "thread of nobody":
                    nursery.start_soon(trio.to_thread.run_sync, parent)
                else:
                    await manager.v2.spawn_thread(script if where == "member" else parent)
                with trio.fail_after(10):
                    while "SLOW? hung,30" not in commands(log):  # noqa: ASYNC110 - a file has no event
                        await trio.sleep(0.01)
                asked = time.monotonic()
                report = await manager.shutdown(10)
        finally:
            threading.excepthook = before
    [(at, code, note)] = told
    assert at - asked < 1  # 0.25 s, and room for a busy computer
    assert code == StatusCode.error_abort
    assert "is to stop" in note
    assert report.seconds < 9
    if where != "thread of nobody":  # there nothing waits for it, and the instrument may be closed before
        assert commands(log)[-1] == "OUTP OFF"
        assert not report.left_threads


async def test_member_is_the_owner(tmp_path: Path) -> None:
    """What a script opens belongs to its member: statistics and snapshots say so."""
    async with open_simulated_lab(tmp_path / "log.jsonl") as simulated:
        resource = simulated.meter_resource

        def script(context: Any) -> None:
            meter = pyvisa.ResourceManager("@trio_daq").open_resource(resource)
            meter.read_termination = meter.write_termination = "\n"
            assert meter.query("*OPC?") == "1"
            meter.write("*OPC?")
            context.wait_stopping(10)

        async with lab_with(resource) as manager:
            await manager.start()
            await manager.v2.spawn_thread(script, name="old")
            with trio.fail_after(10):
                while manager.visa["meter"].current_owner() != "old":  # noqa: ASYNC110 - it has no event
                    await trio.sleep(0.01)


LAB = """
[visa.meter]
resource = "{resource}"

[v2]
[[v2.instruments]]
id = "old"
driver = "old_script:main"

[recording]
enabled = false
"""

SCRIPT = """
import pyvisa
from old_settings import RESOURCE

manager = pyvisa.ResourceManager()  # as many have it: when the script is imported, before there is a lab

def main():
    meter = manager.open_resource(RESOURCE, read_termination="\\n", write_termination="\\n")
    print(meter.query("*IDN?"), meter.visalib.library_path, flush=True)
    try:
        while True:
            meter.query("MEAS:VOLT?")
    finally:
        meter.write("OUTP OFF")
"""


async def test_script_that_names_no_library(tmp_path: Path) -> None:
    """Under `trio-daq run` a script that just makes a ResourceManager, be it at its import, shares; and it turns its
    output off at a Ctrl-C."""
    log = tmp_path / "log.jsonl"
    async with open_simulated_lab(log) as simulated:
        (tmp_path / "old_script.py").write_text(SCRIPT)
        (tmp_path / "old_settings.py").write_text(f"RESOURCE = {simulated.meter_resource!r}\n")
        file = tmp_path / "lab.toml"
        file.write_text(LAB.format(resource=simulated.meter_resource))
        command = [sys.executable, "-P", "-m", "trio_daq", "run", str(file)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220 - it starts at once
        try:
            with trio.fail_after(20):
                while commands(log).count("MEAS:VOLT?") < 10:  # noqa: ASYNC110 - a file has no event
                    await trio.sleep(0.01)
            process.send_signal(signal.SIGINT)
            said, _ = await trio.to_thread.run_sync(lambda: process.communicate(timeout=20))
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 130
    assert "SIMULATED METER" in said
    assert "trio_daq" in said
    assert commands(log)[-1] == "OUTP OFF"


async def test_serial_port_of_the_lab(tmp_path: Path) -> None:
    """``ASRL`` and the path of a configured port is that port, shared with whoever uses it as such."""
    async with open_simulated_lab(tmp_path / "log.jsonl") as simulated:
        assert simulated.stage_path is not None
        ports = {
            "stage": SerialPortConfig(path=simulated.stage_path, write_terminator=b"\r\n", read_terminator=b"\r\n")
        }
        config = DualConfig(serial=ports, v2=SubsystemConfig(), recording=RecordingConfig(enabled=False))
        resource = f"ASRL{simulated.stage_path}::INSTR"
        replies: list[str] = []

        def script() -> None:
            manager = pyvisa.ResourceManager("@trio_daq")
            assert manager.list_resources()[0] == resource  # others that this computer has come behind it
            stage = manager.open_resource(resource, baud_rate=9600, timeout=500)
            stage.read_termination = stage.write_termination = "\r\n"
            replies.extend(stage.query(f"POS? old{number}") for number in range(20))
            with stage.lock_context():
                assert stage.query("POS? locked").startswith("locked ")
            stage.clear()
            assert stage.query_ascii_values("POS?") == [12.5]
            stage.timeout = 100
            with pytest.raises(VisaIOError, match="VI_ERROR_TMO"):
                stage.read()
            stage.close()
            with pytest.raises(VisaIOError, match="VI_ERROR_RSRC_NFOUND"):
                manager.open_resource("ASRL/dev/not/there::INSTR")

        async with DualRuntimeManager(config) as manager:
            await manager.start()
            member = await manager.v2.spawn_thread(script)
            port = manager.get_shared_serial_port("stage")
            for number in range(20):
                async with port.acquire("new", timeout=10) as guard:
                    assert (await guard.query(f"POS? new{number}".encode())).startswith(f"new{number} ".encode())
            with trio.fail_after(20):
                await manager.wait_all_ended()
            assert manager.is_v2_healthy(), member
        assert [reply.split()[0] for reply in replies] == [f"old{number}" for number in range(20)]
