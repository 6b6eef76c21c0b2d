"""A serial line by pyserial's blocking calls: for its URL handlers, and for Windows.

Three threads a line: one reads in short slices, one writes, and the driver's own opens, controls and closes. What they
carry lies in two bounded buffers, so a read that was cancelled loses nothing, and a write that the driver holds keeps
nobody from reading.

Invariant: the driver closes the line after both threads have left it, never under them.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import trio

from trio_daq.errors import HungCallError
from trio_daq.serialport.device_path import find_device
from trio_daq.serialport.driver import SerialDriver, open_pyserial, wait_until_sent
from trio_daq.serialport.open_errors import explain_open_failure
from trio_daq.serialport.settings import SerialPortConfig
from trio_daq.sharing import Bell

if TYPE_CHECKING:
    import serial

    from trio_daq.serialport.byte_stream import ControlLines

_T = TypeVar("_T")

_SLICE = 0.05
"""Seconds for which a read waits for the first byte: how long a reader takes to see that it is to end."""

_MOST_INBOUND = 65536
"""Bytes kept for a task that does not read. Above it the reader pauses, and the driver's own buffer fills."""

_MOST_OUTBOUND = 4096
"""Bytes taken for a driver that does not write."""

_MOST_AT_ONCE = 256
"""Bytes given to the driver in one write: a few, so that an end is seen soon."""


class ThreadByteStream:
    """A `ByteStream` over pyserial's blocking object. Made by `open_thread_stream`."""

    def __init__(self, line: serial.Serial, driver: SerialDriver) -> None:
        self._line = line
        self._driver = driver
        self._trio = trio.lowlevel.current_trio_token()
        self._readable, self._writable = Bell(), Bell()
        self._wakes = 0
        self._changed = threading.Condition()  # for all that follows, which the threads share with Trio's
        self._inbound, self._outbound = bytearray(), bytearray()
        self._lost = ""
        self._closed = False
        self._writer_ends = self._reader_ends = False

    def read_nowait(self) -> bytes:
        """Return all bytes that have come, none if there are none. Those from before a loss come before its news."""
        with self._changed:
            if self._closed or not self._inbound:
                self._refuse_if_over()
            data = bytes(self._inbound)
            self._inbound.clear()
            self._changed.notify_all()
        return data

    read_all_nowait = read_nowait

    def write_nowait(self, data: memoryview) -> int:
        """Take as many bytes as there is room for, and return how many that was."""
        with self._changed:
            self._refuse_if_over()
            taken = data[: _MOST_OUTBOUND - len(self._outbound)]
            self._outbound += taken
            self._changed.notify_all()
        return len(taken)

    async def wait_readable(self) -> None:
        """Wait until bytes came or the line is lost."""
        await self._wait(self._readable, lambda: bool(self._inbound))

    async def wait_writable(self) -> None:
        """Wait until there is room for bytes."""
        await self._wait(self._writable, lambda: len(self._outbound) < _MOST_OUTBOUND)

    def wake(self) -> None:
        """Wake whoever waits here, with `trio.ClosedResourceError`. The line stays open."""
        self._wakes += 1
        for bell in (self._readable, self._writable):
            bell.refuse(trio.ClosedResourceError("woken"))

    async def control(self, work: Callable[[ControlLines], _T]) -> _T:
        """Return ``work(pyserial's object)``, called in the driver's thread."""
        self._refuse_if_over()
        try:
            return await self._driver.control(self._line, work)
        except HungCallError as error:
            self._lose(str(error))
            raise

    async def aclose(self, timeout: float) -> bool:
        """Close within *timeout* seconds, and return whether that was done."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()  # a reader that paused goes on, and drops what it reads
        self.wake()
        return await self._driver.aclose(timeout)

    async def _wait(self, bell: Bell, ready: Callable[[], bool]) -> None:
        if self._over() or ready():
            await trio.lowlevel.checkpoint()
        # A ring comes through Trio's queue, so it can be for bytes that were read meanwhile.
        wakes = self._wakes
        while not (self._over() or ready()):
            await bell.wait()
            if self._wakes != wakes:  # it came in the turn of a ring, when nobody seemed to wait
                raise trio.ClosedResourceError("woken")
        if self._closed or not ready():
            self._refuse_if_over()

    def _over(self) -> bool:
        return self._closed or bool(self._lost)

    def _refuse_if_over(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the line was closed")
        if self._lost:
            raise trio.BrokenResourceError(self._lost)

    # --- in the threads ---

    def _start(self) -> list[threading.Thread]:
        threads = [
            threading.Thread(target=work, name=f"serial {self._line.port} {what}", daemon=True)
            for what, work in (("writer", self._write), ("reader", self._read))
        ]
        for thread in threads:
            thread.start()
        return threads

    def _stop(self, threads: list[threading.Thread]) -> None:
        """Let what was taken leave, then end both threads, however long the driver holds them."""
        writer, reader = threads
        until = time.monotonic() + self._driver.linger
        with self._changed:
            self._changed.wait_for(lambda: not self._outbound or self._lost, self._driver.linger)
        with contextlib.suppress(Exception):  # whatever a driver says here, the threads must end before the line
            if not self._lost and not wait_until_sent(self._line, until - time.monotonic()):
                self._line.reset_output_buffer()
        with self._changed:
            self._writer_ends = True
            self._changed.notify_all()
        with contextlib.suppress(Exception):  # not every handler has it
            self._line.cancel_write()
        writer.join()
        # Only now the reader: what loop:// writes is taken by nobody but its reader.
        with self._changed:
            self._reader_ends = True
            self._changed.notify_all()
        reader.join()

    def _read(self) -> None:
        with self._losing_by_any_exception():
            while not self._reader_ends:
                data = self._line.read(self._line.in_waiting or 1)
                with self._changed:
                    if data and not self._closed:
                        self._inbound += data
                        self._tell(self._readable)
                    self._changed.wait_for(lambda: len(self._inbound) < _MOST_INBOUND or self._closed)

    def _write(self) -> None:
        with self._losing_by_any_exception():
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._outbound or self._writer_ends)
                    if self._writer_ends:
                        return
                    data = bytes(self._outbound[:_MOST_AT_ONCE])
                self._line.write(data)
                with self._changed:
                    del self._outbound[: len(data)]
                    self._changed.notify_all()
                    self._tell(self._writable)

    @contextlib.contextmanager
    def _losing_by_any_exception(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - drivers say it by OSError, termios.error, TypeError, queue.Full...
            self._lose(str(error) or repr(error))

    def _lose(self, reason: str) -> None:
        with self._changed:
            self._lost = self._lost or reason
            self._changed.notify_all()
            self._tell(self._readable)
            self._tell(self._writable)

    def _tell(self, bell: Bell) -> None:
        with contextlib.suppress(trio.RunFinishedError):  # the program ended meanwhile: nobody is left to tell
            self._trio.run_sync_soon(bell.ring, idempotent=True)


async def open_thread_stream(config: SerialPortConfig) -> ThreadByteStream:
    """Open and configure a line, off the event loop. Cancelled, nothing stays open.

    Raises:
        LineOpenError: If a device cannot be opened; it says why.
        OSError: As pyserial raises it, if a URL cannot be opened. `HungCallError` is one.
        ValueError: If the URL is unknown.
    """
    driver = SerialDriver(config.path)
    line = await driver.begin(partial(_open, config), lambda line: line.close())
    stream = ThreadByteStream(line, driver)
    await driver.begin(stream._start, stream._stop)
    return stream


def _open(config: SerialPortConfig) -> serial.Serial:
    if "://" in config.path:
        return open_pyserial(config, config.path, timeout=_SLICE)
    device = find_device(config.path)
    try:
        return open_pyserial(config, device, timeout=_SLICE)
    except Exception as error:  # explained here, in the thread: it looks for what there is
        raise explain_open_failure(config.path, error, device) from error
