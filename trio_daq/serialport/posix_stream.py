"""A serial line on POSIX: pyserial opens and configures it, Trio waits for it. POSIX only.

pyserial knows baud rates, modem lines and locks; its reads and writes block, so none of them is used. The line knows
nothing of owners or messages.

Invariant: after `aclose` began, nobody touches the descriptor's number again, which may belong to another file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import termios
from collections.abc import Callable
from typing import TypeVar

import serial
import trio

from trio_daq.serialport.settings import SerialPortConfig
from trio_daq.sharing import WorkerThread

_CHUNK = 4096
"""Bytes read at once: as much as a Linux tty buffers (N_TTY_BUF_SIZE)."""

_CONTROL_TIMEOUT = 5.0
"""Seconds for a break, or for setting or reading wires."""

_T = TypeVar("_T")

_MOST_CHUNKS = 64
"""Reads in a row after which all that a driver had buffered was read: a line that floods us must not stop the loop."""


class PosixByteStream:
    """An open serial line. `trio.BrokenResourceError` means that it went away, `trio.ClosedResourceError` that we did.

    Made by `open_posix_stream`.
    """

    def __init__(self, line: serial.Serial, worker: WorkerThread) -> None:
        self._line = line
        self._worker = worker
        self._fd = line.fileno()

    def read_nowait(self) -> bytes:
        """Return the bytes that have come, none if there are none.

        Raises:
            trio.BrokenResourceError: If the device hung up.
        """
        try:
            data = os.read(self._open_fd(), _CHUNK)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise trio.BrokenResourceError(_words(error)) from error
        if not data:  # with VMIN=1 an idle line is EAGAIN, so this is nothing but a hang-up
            raise trio.BrokenResourceError("the device hung up")
        return data

    def read_all_nowait(self) -> bytes:
        """Return all that has come so far, none if there is nothing.

        Raises:
            trio.BrokenResourceError: If the device hung up.
        """
        data = bytearray()
        for _ in range(_MOST_CHUNKS):
            if not (chunk := self.read_nowait()):
                break
            data += chunk
        return bytes(data)

    def write_nowait(self, data: memoryview) -> int:
        """Write what the driver takes at once and return how many bytes that was.

        Raises:
            trio.BrokenResourceError: If the device is gone.
        """
        try:
            return os.write(self._open_fd(), data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise trio.BrokenResourceError(_words(error)) from error

    async def wait_readable(self) -> None:
        """Wait until bytes came or the device hung up."""
        await trio.lowlevel.wait_readable(self._open_fd())

    async def wait_writable(self) -> None:
        """Wait until the driver takes bytes."""
        await trio.lowlevel.wait_writable(self._open_fd())

    def wake(self) -> None:
        """Wake whoever waits here, with `trio.ClosedResourceError`. The line stays open, in spite of Trio's word."""
        if self._fd >= 0:
            trio.lowlevel.notify_closing(self._fd)

    async def control(self, work: Callable[[serial.Serial], _T]) -> _T:
        """Call *work* with the pyserial object, in the thread of the line. Shielded: the thread goes on in any case.

        Raises:
            OSError: If the device or its driver refuses.
        """
        self._open_fd()
        with trio.CancelScope(shield=True):
            return await self._worker.run(_with_one_error, work, self._line, timeout=_CONTROL_TIMEOUT)
        raise AssertionError("a scope without a deadline swallows nothing")

    async def aclose(self, timeout: float) -> bool:
        """Close the line; unsent bytes are thrown away. Bounded by *timeout*, and shielded from cancellation.

        Returns:
            Whether it closed in time. If not, its thread goes on trying.
        """
        if self._fd >= 0:
            trio.lowlevel.notify_closing(self._fd)
            self._fd = -1
        # In the thread: a driver may hold a close for its closing_wait, 30 s by default (setserial(8)).
        return await self._worker.aclose(timeout)

    def _open_fd(self) -> int:
        if self._fd < 0:
            raise trio.ClosedResourceError("the line was closed")
        return self._fd


async def open_posix_stream(config: SerialPortConfig, timeout: float = 10.0) -> PosixByteStream:
    """Open and configure a line, off the event loop. Cancelled, nothing stays open.

    Raises:
        OSError: As pyserial raises it, if it cannot be opened. `serial.SerialException` is one.
        HungCallError: If the driver did not answer in time.
    """
    worker = WorkerThread(f"serial {config.path}")
    try:
        line = await worker.run(_open, config, timeout=timeout, closing=_close)
    except BaseException:
        worker.stop()
        raise
    return PosixByteStream(line, worker)


def _open(config: SerialPortConfig) -> serial.Serial:
    try:
        line = serial.Serial(
            config.path,
            baudrate=config.baud_rate,
            bytesize=config.data_bits,
            stopbits=config.stop_bits,
            parity=config.parity.value,
            rtscts=config.flow_control == "rtscts",
            dsrdtr=config.flow_control == "dsrdtr",
            xonxoff=config.flow_control == "xonxoff",
            timeout=0,
            write_timeout=0,
            # pyserial makes VMIN=1 VTIME=0 of this. With its default VMIN=0 an idle line reads as a hang-up.
            inter_byte_timeout=0,
            # flock(2): keeps out those who ask for it too, between processes.
            exclusive=True if config.exclusive else None,
        )
    except termios.error as error:  # neither an OSError nor a SerialException
        raise OSError(error.args[0], f"{error.args[1]}: is it a serial port?") from error
    if config.exclusive:
        # tty_ioctl(4): further opens fail with EBUSY, also of programs that never heard of flock (but not of root).
        fcntl.ioctl(line.fileno(), termios.TIOCEXCL)
    return line


def _close(line: serial.Serial) -> None:
    with contextlib.suppress(OSError, termios.error):  # a device that is gone has nothing left to flush
        termios.tcflush(line.fileno(), termios.TCOFLUSH)
        # Exclusive mode belongs to the terminal, which may outlive this descriptor: a pty does.
        fcntl.ioctl(line.fileno(), termios.TIOCNXCL)
    line.close()


def _words(error: OSError) -> str:
    return "the device is gone" if error.errno in (errno.EIO, errno.ENXIO, errno.ENODEV) else str(error)


def _with_one_error(work: Callable[[serial.Serial], _T], line: serial.Serial) -> _T:
    try:
        return work(line)
    except termios.error as error:  # neither an OSError nor a SerialException
        raise OSError(*error.args) from error
