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

import serial
import trio

from trio_daq.serialport.device_path import find_device
from trio_daq.serialport.exclusive import keep_others_out, refused_if_in_use
from trio_daq.serialport.open_errors import explain_open_failure
from trio_daq.serialport.settings import SerialPortConfig
from trio_daq.sharing import WorkerThread

_CHUNK = 4096
"""Bytes read at once: as much as a Linux tty buffers (N_TTY_BUF_SIZE)."""

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
        LineOpenError: If it cannot be opened; it says why.
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
        return line
    # Explained here, in the thread: it takes a look at what other processes have open.
    except (OSError, termios.error, ValueError, OverflowError, NotImplementedError) as error:
        raise explain_open_failure(config.path, error, device) from error


def _configured(config: SerialPortConfig, device: str) -> serial.Serial:
    return serial.Serial(
        device,
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
        # flock(2): keeps out those who ask for it too, between processes, and goes with its holder.
        exclusive=True if config.exclusive else None,
    )


def _close(line: serial.Serial) -> None:
    with contextlib.suppress(OSError, termios.error):  # a device that is gone has nothing left to flush
        termios.tcflush(line.fileno(), termios.TCOFLUSH)
        # Exclusive mode belongs to the terminal, which may outlive this descriptor: a pty does.
        fcntl.ioctl(line.fileno(), termios.TIOCNXCL)
    line.close()


def _words(error: OSError) -> str:
    return "the device is gone" if error.errno in (errno.EIO, errno.ENXIO, errno.ENODEV) else str(error)
