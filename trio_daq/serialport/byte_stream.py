"""What a shared port asks of the bytes under it, whatever carries them.

A byte stream knows nothing of owners, messages or deadlines. There are four: `posix_stream` drives the descriptor of a
device, `socket_stream` a TCP connection (``socket://``), `thread_stream` whatever else pyserial opens, and
`trio_daq.sim.MemoryLine` gives one without any device.

Promises that all keep: a cancelled wait loses no byte; a lost line is lost for good, and says so in one way; closing
takes no longer than it was given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

_T = TypeVar("_T")


class ControlLines(Protocol):
    """What of a line is no byte: the part of pyserial's object that `ByteStream.control` is about."""

    baudrate: int
    dtr: bool
    rts: bool
    break_condition: bool

    @property
    def cts(self) -> bool:
        """Clear To Send, from the other end."""

    @property
    def dsr(self) -> bool:
        """Data Set Ready, from the other end."""

    @property
    def ri(self) -> bool:
        """Ring Indicator, from the other end."""

    @property
    def cd(self) -> bool:
        """Carrier Detect, from the other end."""


class ByteStream(Protocol):
    """An open line. `trio.BrokenResourceError` means that it went away, `trio.ClosedResourceError` that we did.

    One task may wait to read while another waits to write; a second one in either place gets
    `trio.BusyResourceError`. All is for the Trio thread.
    """

    def read_nowait(self) -> bytes:
        """Return bytes that have come, none if there are none.

        Raises:
            trio.BrokenResourceError: If the line is lost, whatever the system called it.
            trio.ClosedResourceError: If it was closed.
        """

    def read_all_nowait(self) -> bytes:
        """Return all that has come, or a good part of it from a line that never runs dry. Raises as `read_nowait`."""

    def write_nowait(self, data: memoryview) -> int:
        """Hand over what is taken at once, and return how many bytes that was: 0 if none. Raises as `read_nowait`."""

    async def wait_readable(self) -> None:
        """Wait until `read_nowait` has bytes, or the loss, to tell.

        Raises:
            trio.ClosedResourceError: If it was closed, or woken by `wake`.
            trio.BrokenResourceError: If it is lost.
            trio.BusyResourceError: If another task waits for the same.
        """

    async def wait_writable(self) -> None:
        """Wait until `write_nowait` takes bytes, or has the loss to tell. Raises as `wait_readable`."""

    def wake(self) -> None:
        """Wake whoever waits, with `trio.ClosedResourceError`. The line stays open and as usable as before."""

    async def control(self, work: Callable[[ControlLines], _T]) -> _T:
        """Return ``work(lines)``, called where it may block: for break, modem lines, a change of the baud rate.

        Cancelled, it may go on for a moment; its result is dropped.

        Raises:
            OSError: If the driver refuses, whatever it called that.
            io.UnsupportedOperation: If this kind of line has no such thing. It is an OSError.
            HungCallError: If the driver did not come back within 10 s; the line is lost then. It is an OSError.
            trio.BrokenResourceError: If the line was lost before.
            trio.ClosedResourceError: If it was closed.
        """

    async def aclose(self, timeout: float) -> bool:
        """Close. Bytes that were taken get up to half of *timeout* to leave, then the rest is thrown away.

        Shielded from cancellation.

        Args:
            timeout: Seconds after which it returns in any case.

        Returns:
            Whether it was closed in time. If not, its thread closes it once the driver lets go.
        """
