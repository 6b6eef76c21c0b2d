"""A serial port that many owners share: one at a time, in order, each on a clean line.

The port joins a lease (whose turn it is) and a line (its bytes and its state). It knows no protocol.

Invariant: between two owners the line's state says whether a reply of the first could still come, and the second gets
the line only when none can.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType

import attrs
import trio

from trio_daq.errors import AcquireTimeoutError, LineLostError, SessionClosedError
from trio_daq.serialport.guard import SerialGuard
from trio_daq.serialport.line import SerialLine
from trio_daq.serialport.settings import SerialPortConfig
from trio_daq.serialport.state import LineState
from trio_daq.sharing import Claim, Lease, LeaseStatistics, LineKind


@attrs.frozen
class PortStatistics:
    """What a `SharedSerialPort` looked like at one moment.

    Attributes:
        lease: Who has it, who waits, and how long waits have been.
        state: How far the line can be trusted.
        exchanges: Commands that were answered, by owner.
        opens: How often the line was opened.
        recoveries: How often it was made clean.
        late_bytes: Bytes of late replies that were dropped on the way.
    """

    lease: LeaseStatistics
    state: LineState
    exchanges: Mapping[str, int]
    opens: int
    recoveries: int
    late_bytes: int


class SharedSerialPort:
    r"""One serial line and the queue of those who want it.

    It opens at the first `acquire` and stays open until `aclose`.

    Args:
        config: Its settings.

    Example::

        port = SharedSerialPort(SerialPortConfig(path="/dev/ttyUSB0", baud_rate=115200))
        async with port.acquire("v4_scpi_1", timeout=5.0) as guard:
            reply = await guard.query(b"*IDN?")
    """

    def __init__(self, config: SerialPortConfig) -> None:
        self.config = config
        self._lease = Lease(config.path, config.acquire_timeout)
        self._line = SerialLine(config)
        self._exchanges: Counter[str] = Counter()

    @property
    def path(self) -> str:
        """Path of the device, as configured."""
        return self.config.path

    @property
    def order(self) -> tuple[LineKind, str]:
        """Its place in the order in which `acquire_all` takes lines."""
        return LineKind.SERIAL, os.path.realpath(self.path)

    @property
    def baud_rate(self) -> int:
        """Bits per second."""
        return self.config.baud_rate

    @property
    def state(self) -> LineState:
        """How far the line can be trusted."""
        return self._line.state

    def is_available(self) -> bool:
        """Return whether an `acquire` would be granted without waiting for another owner."""
        return not self._line.closed and self._lease.holder is None

    def current_owner(self) -> str | None:
        """Return who has the port, or None. Right at any moment, also during I/O."""
        return self._lease.holder

    def acquire(self, owner: str | None = None, timeout: float | None = None) -> PortAcquisition:
        """Return an ``async with`` block that gives *owner* a `SerialGuard`.

        One deadline covers the wait in line, opening, and making the line clean after somebody's unfinished exchange.
        Cancellation leaves the port to the next in line.

        Args:
            owner: Who wants it; the member's id or the task's name if omitted.
            timeout: Seconds, None for the port's ``acquire_timeout``; 0 does not wait for another owner.

        Raises:
            TypeError, ValueError: At once, if *owner* is empty or *timeout* no finite number of seconds.
            PortBusyError: On entering, if *timeout* is 0 and somebody has it.
            AcquireTimeoutError: On entering, if it was not granted, open and clean in time.
            LineOpenError: On entering, if it cannot be opened.
            LineLostError: On entering, if the device went away while it was made clean.
            LineUnusableError: On entering, if it cannot be made clean.
            DeadlockError: On entering, if waiting for it would close a circle.
            LockOrderError: On entering, if the task has something of a higher kind.
            LeaseRevokedError: On leaving, if it was taken back because of ``max_hold``.
            SessionClosedError: On entering, if the port is closed.
        """
        return PortAcquisition(self, self._lease.hold(owner, timeout))

    def revoke(self, reason: str) -> str | None:
        """Take the port back from its owner and give it to the next in line; return who had it, None if nobody.

        Whatever the owner's guard is asked for from now on, and what it waits for now, raises `LeaseRevokedError`; the
        exchange counts as unfinished. An owner for whom the line is still being made ready has nothing yet that could
        be taken: their own deadline ends that.
        """
        return self._lease.revoke(reason) if self._lease.is_revocable else None

    async def open(self, owner: str | None = None, timeout: float = 10.0) -> None:
        """Open the device now rather than at the first `acquire`, to find out early if that is not possible.

        Raises:
            AcquireTimeoutError: If somebody had the port, or it was not open, for *timeout* seconds.
            LineOpenError: If it cannot be opened.
            SessionClosedError: If the port is closed.
        """
        async with self._lease.hold(owner, timeout) as claim:
            with self._explaining(claim):
                await self._in_time(claim, self._line.open)

    async def recover(self, owner: str | None = None, timeout: float | None = None) -> None:
        """Take the port, open it and make it clean. Raises what `acquire` raises."""
        async with self.acquire(owner, timeout):
            pass

    def statistics(self) -> PortStatistics:
        """Return a snapshot for displays, health checks and tests."""
        return PortStatistics(
            lease=self._lease.statistics(),
            state=self._line.state,
            exchanges=dict(self._exchanges),
            opens=self._line.opens,
            recoveries=self._line.recoveries,
            late_bytes=self._line.dropped,
        )

    async def aclose(self, timeout: float = 2.0) -> None:
        """Close the port for good; whoever has it or waits for it gets `SessionClosedError`.

        Bounded and shielded: a driver that holds the close longer than *timeout* seconds is left to a thread.
        """
        await self._line.aclose(timeout)

    async def _prepare(self, claim: Claim) -> SerialGuard:
        """Make the line ready for the owner of *claim*, within their deadline."""
        with self._explaining(claim):
            if not await self._ready_at_once():
                try:
                    await self._in_time(claim, self._line.make_ready)
                except trio.BrokenResourceError:
                    await self._line.hang_up()
                    raise
        guard = SerialGuard(self._line, claim, self._exchanges)
        claim.on_revoked = guard._revoked
        return guard

    async def _ready_at_once(self) -> bool:
        if self._line.state not in (LineState.CLEAN, LineState.SUSPECT):
            return False
        try:
            self._line.catch_up()
        except trio.BrokenResourceError:  # it went away while nobody looked: it may be back already
            await self._line.hang_up()
            return False
        return True

    async def _in_time(self, claim: Claim, step: Callable[[], Awaitable[None]]) -> None:
        with trio.move_on_at(claim.deadline):
            await step()
            return
        raise AcquireTimeoutError(
            resource=self.path,
            wanted_by=claim.owner,
            held_by=claim.owner,
            held_for=trio.current_time() - claim.granted_at,
            waited=trio.current_time() - claim.asked_at,
            position=0,
            phase=self._line.phase,
        )

    @contextmanager
    def _explaining(self, claim: Claim) -> Iterator[None]:
        try:
            yield
        except trio.BrokenResourceError as error:
            raise LineLostError(resource=self.path, owner=claim.owner, reason=str(error), sent="no") from error
        except trio.ClosedResourceError as error:
            raise SessionClosedError(resource=self.path, owner=claim.owner) from error


class PortAcquisition:
    """The ``async with`` block of `SharedSerialPort.acquire`."""

    __slots__ = ("_claim", "_guard", "_port")

    def __init__(self, port: SharedSerialPort, claim: Claim) -> None:
        self._port = port
        self._claim = claim

    async def __aenter__(self) -> SerialGuard:
        await self._claim.__aenter__()
        try:
            self._guard = await self._port._prepare(self._claim)
        except BaseException:
            self._claim.release()
            raise
        if self._port.config.max_hold is not None:
            self._claim.limit_hold(self._port.config.max_hold)
        return self._guard

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._guard._release(failed=error is not None)
        return await self._claim.__aexit__(kind, error, traceback)
