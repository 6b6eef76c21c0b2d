"""A lab with a session whose library call never comes back: its callers, the other session, the stop and the exit."""

import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

PROGRAM = """
import ctypes, json, os, sys, time
import pyvisa.highlevel, trio
sys.path.insert(0, {tests!r})
from test_visa_hung_calls import Library
import trio_daq
from trio_daq.config import DualConfig, SubsystemConfig
from trio_daq.visa import VisaSessionConfig

reader, writer = os.pipe()
libc = ctypes.CDLL(None)
pyvisa.highlevel._WRAPPERS["fake"] = Library

def hang():  # in C, where no signal and no exception of Python reaches it
    libc.read(reader, ctypes.create_string_buffer(1), 1)

async def main(manager):
    stuck, other = manager.visa["stuck"], manager.visa["other"]
    assert await stuck.query("A?") == "A?"
    Library.trouble["read"] = hang
    began, waited, sent, served = time.monotonic(), [], [], []

    async def ask(command, timeout):
        try:
            await stuck.query(command, timeout=timeout)
        except TimeoutError as error:
            sent.append([command, error.sent])
        waited.append(time.monotonic() - began)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, "B?", 0.3)
        await trio.sleep(0.05)  # one call is in the library now, and the next ones are not to hang
        del Library.trouble["read"]
        nursery.start_soon(ask, "C?", 0.2)
        for _ in range(3):
            served.append(await other.query("D?", timeout=0.2))
    print(json.dumps([waited, sorted(sent), served]), flush=True)
    if {by_signal!r}:
        await trio.sleep_forever()

config = DualConfig(v2=SubsystemConfig(), visa={{
    name: VisaSessionConfig(resource=f"GPIB{{board}}::1::INSTR", backend="@fake", timeout=1.0)
    for board, name in enumerate(("stuck", "other"))
}})
sys.exit(trio_daq.run(config, main))
"""


@pytest.mark.parametrize("by_signal", [False, True])
def test_a_call_that_never_returns_holds_up_nobody_and_no_exit(by_signal: bool) -> None:
    """Callers are free at their deadlines, the other session serves, and the lab ends in time with the right code."""
    program = textwrap.dedent(PROGRAM).format(tests=str(Path(__file__).parent), by_signal=by_signal)
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            began = time.monotonic()
            if by_signal:
                process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=15)
            took = time.monotonic() - began
        finally:
            process.kill()
    assert line, errors
    waited, sent, served = json.loads(line)
    assert process.returncode == (128 + signal.SIGTERM if by_signal else 0), errors
    assert took < 4
    assert sent == [["B?", "yes"], ["C?", "no"]]
    assert waited[0] == pytest.approx(0.25, abs=0.1)  # C?, which waited behind it for its own 0.2 s
    assert waited[1] == pytest.approx(0.3, abs=0.1)
    assert served == ["D?"] * 3
