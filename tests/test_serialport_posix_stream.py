"""The byte stream of an open line, where a pty cannot be made to show it."""

import os

import pytest
import serial
import trio

from trio_daq.serialport.driver import SerialDriver
from trio_daq.serialport.posix_stream import PosixByteStream

pytestmark = pytest.mark.skipif(os.name != "posix", reason="devices are those of POSIX")


class Zeros(serial.Serial):  # type: ignore[misc, unused-ignore]
    """A line that never runs dry."""

    def fileno(self) -> int:
        return self.descriptor

    descriptor = -1


async def test_taking_all_that_has_come_ends_on_a_line_that_never_runs_dry() -> None:
    """A device that writes faster than we read cannot keep the event loop in a read."""
    line = Zeros()
    line.descriptor = os.open("/dev/zero", os.O_RDONLY)
    stream = PosixByteStream(line, SerialDriver("zeros"))
    data = stream.read_all_nowait()
    assert len(data) >= 65536
    assert not any(data)
    assert await stream.aclose(timeout=1)
    with pytest.raises(trio.ClosedResourceError):
        stream.read_nowait()
    os.close(line.descriptor)
