"""A serial line without a device: what one task writes, another reads. For tests on a virtual clock, and for users.

It has no descriptors and no threads, so Trio's `trio.testing.MockClock` sees all of its waiting. It has no pacing
either: an instrument that is slow sleeps. One program at a time can have it open, as with a device.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TypeVar, cast

import attrs
import trio

from trio_daq.serialport import ByteStream, ControlLines, SerialPortConfig
from trio_daq.sharing import Bell

_T = TypeVar("_T")


@attrs.define
class MemoryControls:
    """Modem lines, break and baud rate, by pyserial's names.

    Attributes:
        baudrate: Bits per second, as the program set it.
        dtr: Data Terminal Ready, set by the program.
        rts: Request To Send, set by the program.
        break_condition: Whether the program holds the line in break.
        cts: Clear To Send, set by the instrument.
        dsr: Data Set Ready, set by the instrument.
        ri: Ring Indicator, set by the instrument.
        cd: Carrier Detect, set by the instrument.
    """

    baudrate: int = 9600
    dtr: bool = True
    rts: bool = True
    break_condition: bool = False
    cts: bool = True
    dsr: bool = True
    ri: bool = False
    cd: bool = True


class MemoryLine:
    """One line, from the instrument's side. The program's side is what `open_stream` opens.

    Args:
        capacity: Bytes that the program can write ahead of what the instrument received.

    Attributes:
        controls: Its modem lines, break and baud rate.

    Example:
        >>> async def main():
        ...     line = MemoryLine()
        ...     stream = await line.open_stream(SerialPortConfig(path="memory"))
        ...     stream.write_nowait(memoryview(b"*IDN?"))
        ...     print(await line.receive())
        >>> trio.run(main)
        b'*IDN?'
    """

    def __init__(self, capacity: int = 4096) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be above 0, not {capacity!r}")
        self.controls = MemoryControls()
        self._capacity = capacity
        self._plugged = True
        self._stream: _MemoryByteStream | None = None
        self._to_instrument = bytearray()
        self._received = Bell()

    async def open_stream(self, config: SerialPortConfig) -> ByteStream:
        """Open the line, for `SharedSerialPort`. What the instrument sent before is not seen, as on a real one.

        Raises:
            OSError: If it is unplugged (``ENOENT``), or open already (``EBUSY``).
        """
        await trio.lowlevel.checkpoint()
        for refused, code in ((not self._plugged, errno.ENOENT), (self._stream is not None, errno.EBUSY)):
            if refused:
                raise OSError(code, os.strerror(code), config.path)
        self.controls.baudrate = config.baud_rate
        self._stream = _MemoryByteStream(self)
        return self._stream

    def unplug(self) -> None:
        """Lose the line as if its cable had been pulled: with all that was on its way, and until `plug`."""
        self._plugged = False
        self._to_instrument.clear()
        if self._stream is not None:
            self._stream.lose("the device is gone")
            self._stream = None

    def plug(self) -> None:
        """Make it possible to open the line again. What was opened before stays lost."""
        self._plugged = True

    def send(self, data: bytes) -> None:
        """Send *data* to the program. Nobody gets it if the line is not open."""
        if self._stream is not None:
            self._stream.feed(data)

    async def receive(self) -> bytes:
        """Wait for bytes of the program, and return all that have come.

        Raises:
            trio.BusyResourceError: If another task waits for them.
        """
        await trio.lowlevel.checkpoint()
        while not self._to_instrument:
            await self._received.wait()
        data = bytes(self._to_instrument)
        self._to_instrument.clear()
        if self._stream is not None:
            self._stream.tell_writer()
        return data

    def _room(self) -> int:
        return self._capacity - len(self._to_instrument)

    def _take(self, data: memoryview) -> None:
        self._to_instrument += data
        self._received.ring()

    def _let_go(self, stream: _MemoryByteStream) -> None:
        if self._stream is stream:
            self._stream = None


class _MemoryByteStream:
    """The program's side of a `MemoryLine`."""

    def __init__(self, line: MemoryLine) -> None:
        self._line = line
        self._inbound = bytearray()
        self._readable, self._writable = Bell(), Bell()
        self._lost = ""
        self._closed = False

    def read_nowait(self) -> bytes:
        self._refuse_if_over()
        data = bytes(self._inbound)
        self._inbound.clear()
        return data

    read_all_nowait = read_nowait

    def write_nowait(self, data: memoryview) -> int:
        self._refuse_if_over()
        taken = data[: self._line._room()]
        self._line._take(taken)
        return len(taken)

    async def wait_readable(self) -> None:
        await self._wait(self._readable, lambda: bool(self._inbound))

    async def wait_writable(self) -> None:
        await self._wait(self._writable, lambda: self._line._room() > 0)

    def wake(self) -> None:
        for bell in (self._readable, self._writable):
            bell.refuse(trio.ClosedResourceError("woken"))

    async def control(self, work: Callable[[ControlLines], _T]) -> _T:
        await trio.lowlevel.checkpoint()
        self._refuse_if_over()
        return work(cast("ControlLines", self._line.controls))

    async def aclose(self, timeout: float) -> bool:  # noqa: ARG002 - what was written is at the instrument already
        self._closed = True
        self.wake()
        self._line._let_go(self)
        await trio.lowlevel.cancel_shielded_checkpoint()
        return True

    def feed(self, data: bytes) -> None:
        self._inbound += data
        self._readable.ring()

    def tell_writer(self) -> None:
        self._writable.ring()

    def lose(self, reason: str) -> None:
        self._lost = reason
        self._readable.ring()
        self._writable.ring()

    async def _wait(self, bell: Bell, ready: Callable[[], bool]) -> None:
        self._refuse_if_over()
        if ready():
            await trio.lowlevel.checkpoint()
        else:
            await bell.wait()

    def _refuse_if_over(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the line was closed")
        if self._lost:
            raise trio.BrokenResourceError(self._lost)
