"""A port that cannot be opened says why, and what to do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trio_daq.errors import LineOpenError
from trio_daq.serialport import SerialPortConfig, SharedSerialPort
from trio_daq.serialport.open_errors import explain_open_failure

pytestmark = pytest.mark.skipif(os.name != "posix", reason="paths and permissions are those of POSIX")

OPEN_AS_NOBODY = """
import os, sys, trio
from trio_daq.serialport import SerialPortConfig, SharedSerialPort
import trio_daq.serialport.posix_stream

async def main():
    try:
        await SharedSerialPort(SerialPortConfig(path=sys.argv[1])).open()
    except OSError as error:
        print(type(error).__name__, error)

if os.getuid() == 0:  # root may open anything
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
trio.run(main)
"""


async def open_failure(path: str | Path) -> LineOpenError:
    port = SharedSerialPort(SerialPortConfig(path=str(path)))
    files = len(os.listdir("/proc/self/fd"))
    with pytest.raises(LineOpenError) as caught:
        await port.open()
    with pytest.raises(LineOpenError):
        async with port.acquire("alice"):
            pytest.fail("entered")
    assert port.is_available()
    assert len(os.listdir("/proc/self/fd")) == files
    return caught.value


async def test_missing_port() -> None:
    """A path that is not there: the sentence names it and what there is instead."""
    error = await open_failure("/dev/ttyNOPE7")
    assert str(error).startswith("/dev/ttyNOPE7: cannot be opened: there is no such serial port. ")
    assert (error.resource, error.sent) == ("/dev/ttyNOPE7", "no")
    assert error.hint


@pytest.mark.parametrize("kind", ["directory", "file", "null"])
async def test_things_that_are_no_serial_port(tmp_path: Path, kind: str) -> None:
    """A directory, a file and /dev/null are no serial ports."""
    (tmp_path / "file").write_bytes(b"")
    path = {"directory": tmp_path, "file": tmp_path / "file", "null": Path("/dev/null")}[kind]
    assert (await open_failure(path)).reason == "it is no serial port"


def test_permission_denied_names_the_group() -> None:
    """Who may not open the port is told which group to join."""
    master, slave = os.openpty()
    path = os.ttyname(slave)
    os.chmod(path, 0)
    done = subprocess.run(
        [sys.executable, "-c", OPEN_AS_NOBODY, path], capture_output=True, text=True, timeout=30, check=True
    )
    os.close(master)
    os.close(slave)
    said = f"LineOpenError {path}: cannot be opened: permission denied. Add yourself to the group that owns it"
    assert done.stdout.startswith(said)


def test_other_failures_keep_the_words_of_the_system() -> None:
    """An error that is not known here is passed on as it was said."""
    error = explain_open_failure("/dev/ttyUSB0", OSError(5, "Input/output error"))
    assert str(error) == "/dev/ttyUSB0: cannot be opened: [Errno 5] Input/output error."
