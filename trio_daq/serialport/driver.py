"""pyserial's object for one line, and the one thread that it may block.

Opening, control and closing happen in that thread, because any of them can hang in a driver; Linux holds a close for up
to 30 s (``closing_wait``, setserial(8)). Reading and writing are not done here.

Invariant: the thread that opened a line is the one that closes it, however late, so that nobody who is still inside a
call on it finds another file under its number.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import trio

from trio_daq.serialport.settings import SerialPortConfig
from trio_daq.sharing import WorkerThread

if TYPE_CHECKING:
    import serial

    from trio_daq.serialport.byte_stream import ControlLines

_T = TypeVar("_T")

_TERMIOS_ERRORS: tuple[type[Exception], ...]
try:
    import termios
except ImportError:  # where there is no POSIX, nobody raises it
    _TERMIOS_ERRORS = ()
else:
    _TERMIOS_ERRORS = (termios.error,)  # neither an OSError nor a SerialException

PATIENCE = 10.0
"""Seconds for a driver to open a line or to change one. rfc2217:// alone may take 3 s (RFC 2217 is many messages)."""

_UNDOING = 0.5
"""Seconds by which an opening that was cancelled may be held up until its thread has closed what it opened."""

_LOOK_EVERY = 0.005
"""Seconds between looks at what a driver has still to send: five characters at 9600 baud."""


class SerialDriver:
    """The thread of one line and what it opened.

    Attributes:
        linger: Seconds that its closing may wait for bytes to leave. None of them when the line was given up.
    """

    def __init__(self, path: str) -> None:
        self.linger = 0.0
        self._worker = WorkerThread(f"serial {path}")

    async def begin(self, work: Callable[[], _T], ending: Callable[[_T], object]) -> _T:
        """Return ``work()``, which the thread ends with ``ending(result)`` at the close, the last begun first.

        Cancelled or failed, all that was begun is ended: at once, unless the driver still holds the thread.

        Raises:
            OSError: If the driver refuses.
            HungCallError: If it did not come back.
        """
        try:
            return await self._worker.run(call_driver, work, timeout=PATIENCE, closing=ending)
        except BaseException:
            # A moment for the thread to close it, or the next to open it would find it locked, by nobody.
            await self._worker.aclose(_UNDOING)
            raise

    async def control(self, line: serial.Serial, work: Callable[[ControlLines], _T]) -> _T:
        """Return ``work(line)``.

        Raises:
            OSError: If the driver refuses.
            HungCallError: If it did not come back. The line must not be used any more: its thread will close it.
        """
        return await self._worker.run(call_driver, lambda: work(cast("ControlLines", line)), timeout=PATIENCE)

    async def aclose(self, timeout: float) -> bool:
        """End all that was begun; return whether that was done in time. Shielded from cancellation."""
        self.linger = timeout / 2
        ended = await self._worker.aclose(timeout)
        await trio.lowlevel.cancel_shielded_checkpoint()
        return ended and not self._worker.abandoned()


def open_pyserial(config: SerialPortConfig, device: str, **settings: Any) -> serial.Serial:
    """Open *device*, or a URL of pyserial, with *config*, and with *settings* that are the stream's own. Blocks.

    What a handler returns has the methods of `serial.Serial`, or most of them, but need not be one.
    """
    import serial

    return serial.serial_for_url(
        device,
        baudrate=config.baud_rate,
        bytesize=config.data_bits,
        stopbits=config.stop_bits,
        parity=config.parity.value,
        rtscts=config.flow_control == "rtscts",
        dsrdtr=config.flow_control == "dsrdtr",
        xonxoff=config.flow_control == "xonxoff",
        # flock(2) on POSIX: keeps out those who ask for it too, between processes. Windows knows nothing else.
        exclusive=True if config.exclusive else None,
        **settings,
    )


def wait_until_sent(line: serial.Serial, seconds: float) -> bool:
    """Block until *line* has sent what it took, at most *seconds*, and return whether it has.

    Not by tcdrain(3), which has no deadline.

    Raises:
        OSError: If it is gone.
    """
    until = time.monotonic() + seconds
    while getattr(line, "out_waiting", 0):  # rfc2217:// cannot say, but has sent what it took
        if time.monotonic() >= until:
            return False
        time.sleep(_LOOK_EVERY)
    return True


def call_driver(work: Callable[[], _T]) -> _T:
    """Return ``work()``, with a refusal of termios(3) as the OSError that it is."""
    try:
        return work()
    except _TERMIOS_ERRORS as error:
        raise OSError(*error.args) from error
