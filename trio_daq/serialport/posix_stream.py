"""A serial line on POSIX: pyserial opens and configures it, Trio waits for it. POSIX only.

pyserial knows baud rates, modem lines and locks; its reads and writes block, so none of them is used.

Invariant: after the line was lost or `aclose` began, nobody here touches the descriptor's number again, which may
belong to another file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import select
import termios
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import serial
import trio

from trio_daq.errors import HungCallError
from trio_daq.serialport.device_path import find_device
from trio_daq.serialport.driver import SerialDriver, call_driver, open_pyserial, wait_until_sent
from trio_daq.serialport.exclusive import keep_others_out, refused_if_in_use
from trio_daq.serialport.holders import port_holders
from trio_daq.serialport.open_errors import explain_open_failure
from trio_daq.serialport.settings import SerialPortConfig

if TYPE_CHECKING:
    from trio_daq.serialport.byte_stream import ControlLines

_T = TypeVar("_T")

_log = logging.getLogger("trio_daq.serialport")

_CHUNK = 4096
"""Bytes read at once: as much as a Linux tty buffers (N_TTY_BUF_SIZE)."""

_MOST_CHUNKS = 64
"""Reads in a row after which all that a driver had buffered was read: a line that floods us must not stop the loop."""


class PosixByteStream:
    """A `ByteStream` over the descriptor of a device. Made by `open_posix_stream`."""

    def __init__(self, line: serial.Serial, driver: SerialDriver) -> None:
        self._line = line
        self._driver = driver
        self._fd = line.fileno()
        self._input = select.poll()  # it also tells a hang-up; unlike select(2) it takes any descriptor
        self._input.register(self._fd, select.POLLIN)
        self._lost = ""
        self._closed = False

    def read_nowait(self) -> bytes:
        """Return bytes that have come, none if there are none."""
        fd = self._fd
        if fd < 0:
            raise self._over()
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise self._lose(_words(error)) from error
        if not data:  # with VMIN=1 an idle line is EAGAIN, so this is nothing but a hang-up
            raise self._lose("the device hung up")
        return data

    def read_all_nowait(self) -> bytes:
        """Return all that has come, or a good part of it from a line that never runs dry."""
        # Asked first, because there mostly is nothing, and a read that fails costs four times as much.
        if self._fd >= 0 and not self._input.poll(0):
            return b""
        data = bytearray()
        for _ in range(_MOST_CHUNKS):
            if not (chunk := self.read_nowait()):
                break
            data += chunk
        return bytes(data)

    def write_nowait(self, data: memoryview) -> int:
        """Write what the driver takes at once, and return how many bytes that was."""
        fd = self._fd
        if fd < 0:
            raise self._over()
        try:
            return os.write(fd, data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._lose(_words(error)) from error

    async def wait_readable(self) -> None:
        """Wait until bytes came or the device hung up."""
        if self._fd < 0:
            raise self._over()
        try:
            await trio.lowlevel.wait_readable(self._fd)
        except trio.ClosedResourceError:
            raise self._woken() from None

    async def wait_writable(self) -> None:
        """Wait until the driver takes bytes."""
        if self._fd < 0:
            raise self._over()
        try:
            await trio.lowlevel.wait_writable(self._fd)
        except trio.ClosedResourceError:
            raise self._woken() from None

    def wake(self) -> None:
        """Wake whoever waits here, with `trio.ClosedResourceError`. The line stays open, in spite of Trio's word."""
        if self._fd >= 0:
            trio.lowlevel.notify_closing(self._fd)

    async def control(self, work: Callable[[ControlLines], _T]) -> _T:
        """Return ``work(pyserial's object)``, called in the line's thread."""
        if self._fd < 0:
            raise self._over()
        try:
            return await self._driver.control(self._line, work)
        except HungCallError as error:
            self._lose(str(error))
            raise

    async def aclose(self, timeout: float) -> bool:
        """Close within *timeout* seconds, and return whether that was done."""
        self._closed = True
        self._let_go()
        return await self._driver.aclose(timeout)

    def _let_go(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            trio.lowlevel.notify_closing(fd)

    def _lose(self, reason: str) -> trio.BrokenResourceError:
        self._lost = reason
        self._let_go()
        return trio.BrokenResourceError(reason)

    def _over(self) -> Exception:
        if self._closed:
            return trio.ClosedResourceError("the line was closed")
        return trio.BrokenResourceError(self._lost)

    def _woken(self) -> Exception:
        return self._over() if self._fd < 0 else trio.ClosedResourceError("woken")


async def open_posix_stream(config: SerialPortConfig) -> PosixByteStream:
    """Open and configure a line, off the event loop. Cancelled, nothing stays open.

    Raises:
        LineOpenError: If it cannot be opened; it says why.
        HungCallError: If the driver did not answer in time.
    """
    driver = SerialDriver(config.path)
    line = await driver.begin(partial(_open, config), lambda line: _close(line, driver.linger))
    return PosixByteStream(line, driver)


def _open(config: SerialPortConfig) -> serial.Serial:
    device = find_device(config.path)
    try:
        if not config.exclusive:
            return _configured(config, device)
        with refused_if_in_use(device):
            line = _configured(config, device)
        try:
            keep_others_out(line.fileno(), device)
        except BaseException:
            line.close()
            raise
        for holder in port_holders(device, besides=line.fileno()):
            if holder.has_lock or holder.is_us:
                continue
            _log.warning("%s: %s has it open too, without a lock: it will take replies away", config.path, holder)
        return line
    except Exception as error:  # explained here, in the thread: it takes a look at what other processes have open
        raise explain_open_failure(config.path, error, device) from error


def _configured(config: SerialPortConfig, device: str) -> serial.Serial:
    # pyserial makes VMIN=1 VTIME=0 of inter_byte_timeout=0. With its default VMIN=0 an idle line reads as a hang-up.
    return open_pyserial(config, device, timeout=0, write_timeout=0, inter_byte_timeout=0)


def _close(line: serial.Serial, linger: float) -> None:
    with contextlib.suppress(OSError):  # a device that is gone has nothing left to send
        if not wait_until_sent(line, linger):
            call_driver(lambda: termios.tcflush(line.fileno(), termios.TCOFLUSH))
        # Exclusive mode belongs to the terminal, which may outlive this descriptor: a pty does.
        fcntl.ioctl(line.fileno(), termios.TIOCNXCL)
    line.close()


def _words(error: OSError) -> str:
    return "the device is gone" if error.errno in (errno.EIO, errno.ENXIO, errno.ENODEV) else str(error)
