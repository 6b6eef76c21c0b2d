"""A serial port that many owners share: one at a time, in order, each on a clean line.

The port joins a lease (whose turn it is) and a line (its bytes and its state). It knows no protocol.

Invariant: between two owners the line's state says whether a reply of the first could still come, and the second gets
the line only when none can.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Self

import attrs
import trio

from trio_daq.errors import AcquireTimeoutError, LineLostError, LineOpenError, SessionClosedError
from trio_daq.serialport.emergency import SAFE_TIMEOUT, Emergency
from trio_daq.serialport.greeting import greet
from trio_daq.serialport.guard import SerialGuard
from trio_daq.serialport.keeper import keep_line
from trio_daq.serialport.line import OpenStream, SerialLine
from trio_daq.serialport.opening import open_byte_stream
from trio_daq.serialport.settings import SerialPortConfig
from trio_daq.serialport.state import LineState
from trio_daq.sharing import (
    NOT_SWALLOWED,
    Claim,
    Done,
    Lease,
    LeaseStatistics,
    LineKind,
    SafeStateResult,
    checked_timeout,
    to_the_end,
)
from trio_daq.wire import TraceEntry


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
        stray_bytes: Bytes that came unasked and were dropped.
        unmatched: Replies that did not fit their question and were dropped.
        unsolicited: Lines that went to the side channel.
    """

    lease: LeaseStatistics
    state: LineState
    exchanges: Mapping[str, int]
    opens: int
    recoveries: int
    late_bytes: int
    stray_bytes: int
    unmatched: int
    unsolicited: int


class SharedSerialPort:
    r"""One serial line and the queue of those who want it.

    It opens at the first `acquire` and stays open until `aclose`, or the end of an ``async with port`` block.

    Args:
        config: Its settings.
        open_stream: Opens the bytes under it; by default the device, or the URL, that ``config.path`` names.

    Example::

        async with SharedSerialPort(SerialPortConfig(path="/dev/ttyUSB0", baud_rate=115200)) as port:
            async with port.acquire("v4_scpi_1", timeout=5.0) as guard:
                reply = await guard.query(b"*IDN?")
    """

    def __init__(self, config: SerialPortConfig, open_stream: OpenStream = open_byte_stream) -> None:
        if not isinstance(config, SerialPortConfig):
            raise TypeError(f"a port is made of its settings, as SerialPortConfig(path={config!r})")
        self.config = config
        self._lease = Lease(config.path, config.acquire_timeout)
        self._line = SerialLine(config, open_stream)
        self._emergency = Emergency(self._lease, self._line)
        self._exchanges: Counter[str] = Counter()

    @property
    def path(self) -> str:
        """Path of the device, as configured."""
        return self.config.path

    @property
    def order(self) -> tuple[LineKind, str]:
        """Its place in the order in which `acquire_all` takes lines."""
        return LineKind.SERIAL, self.path if "://" in self.path else os.path.realpath(self.path)

    @property
    def baud_rate(self) -> int:
        """Bits per second, now."""
        return self._line.baud_rate

    @property
    def state(self) -> LineState:
        """How far the line can be trusted."""
        return self._line.state

    @property
    def trouble(self) -> str:
        """Why the line could not be opened, when that was last tried, or why it was lost; empty if it is open."""
        return self._line.trouble

    def on_change(self, listener: Callable[[], object]) -> None:
        """Have *listener* called, in the Trio thread, whenever `state` has changed. There is one; the last counts."""
        self._line.on_change = listener

    @property
    def last_safe_state(self) -> SafeStateResult | None:
        """What became of the last attempt to make it safe, by whomever; None if there was none."""
        return self._emergency.result

    def is_available(self) -> bool:
        """Return whether an `acquire` would be granted without waiting for another owner."""
        return not self._line.closed and self._lease.holder is None

    def current_owner(self) -> str | None:
        """Return who has the port, or None. Right at any moment, also during I/O, and in any thread."""
        return self._lease.holder

    def acquire(
        self, owner: str | None = None, timeout: float | None = None, station: str | None = None
    ) -> PortAcquisition:
        """Return an ``async with`` block that gives *owner* a `SerialGuard`.

        One deadline covers the wait in line, opening, and making the line clean after somebody's unfinished exchange.
        Cancellation leaves the port to the next in line.

        Args:
            owner: Who wants it; the member's id or the task's name if omitted.
            timeout: Seconds, None for the port's ``acquire_timeout``; 0 does not wait for another owner, and gives the
                line itself the port's ``acquire_timeout`` to be opened and made clean.
            station: Which of the port's stations is to be talked to, if it has any.

        Raises:
            TypeError, ValueError: At once, if *owner* is empty, *timeout* no finite number of seconds, or *station*
                none of the port's.
            PortBusyError: On entering, if *timeout* is 0 and somebody has it.
            AcquireTimeoutError: On entering, if it was not granted, open and clean in time.
            LineOpenError: On entering, if it cannot be opened.
            LineLostError: On entering, if the device went away while it was made clean, and is not to be waited for.
            LineUnusableError: On entering, if it cannot be made clean.
            DeadlockError: On entering, if waiting for it would close a circle.
            LockOrderError: On entering, if the task has something of a higher kind.
            LeaseRevokedError: On leaving, if it was taken back because of ``max_hold``.
            SessionClosedError: On entering, if the port is closed.
        """
        stations = self.config.stations
        if (station not in stations) if stations else station is not None:
            known = ", ".join(repr(name) for name in stations) or "none"
            raise ValueError(f"{self.path}: station must be one of its stations, not {station!r}; it has: {known}")
        return PortAcquisition(self, self._lease.hold(owner, timeout), station)

    @trio.lowlevel.enable_ki_protection
    def revoke(self, reason: str, member: str | None = None) -> str | None:
        """Take the port back from its owner and give it to the next in line; return who had it, None if nobody.

        Whatever the owner's guard is asked for from now on, and what it waits for now, raises `LeaseRevokedError`; the
        exchange counts as unfinished. An owner for whom the line is still being made ready has nothing yet that could
        be taken: their own deadline ends that.

        Args:
            reason: For the log and the owner's error.
            member: Only if a task of this member of the lab has it, under whatever name; None for whoever has it.
        """
        return self._lease.revoke(reason, member) if self._lease.is_revocable else None

    @trio.lowlevel.enable_ki_protection
    async def make_safe(self, timeout: float = SAFE_TIMEOUT) -> SafeStateResult:
        """Take the steps of ``safe_state`` now, whoever has the port and whatever state it is in, and say how it went.

        The port is taken back from its owner (`LeaseRevokedError`), the queue waits, half a command is ended first, and
        nothing is waited for before the first write. Replies that were not expected are dropped. The line is made
        clean before the next owner gets it. It is opened if it is not.

        Shielded: it ends after *timeout* seconds, whatever happens.
        """
        seconds = checked_timeout(timeout, zero=False)
        return await to_the_end(lambda: self._emergency.make_safe(seconds))

    @trio.lowlevel.enable_ki_protection
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

    @trio.lowlevel.enable_ki_protection
    async def recover(self, owner: str | None = None, timeout: float | None = None) -> None:
        """Take the port, open it and make it clean. Raises what `acquire` raises."""
        async with self._lease.hold(owner, timeout) as claim:
            with self._explaining(claim):
                await self._make_ready(claim, None)

    @trio.lowlevel.enable_ki_protection
    def assume_off(self, station: str) -> None:
        """Take it that *station* is switched off and owes nothing, so that the others can go on.

        It has to answer its sync query before it is talked to again.

        Raises:
            ValueError: If the port has no such station.
        """
        if station not in self.config.stations:
            raise ValueError(f"{self.path}: it has no station {station!r}")
        self._line.assume_off(station)

    @trio.lowlevel.enable_ki_protection
    async def keep(self) -> None:
        """Look after the port until it is closed: make it clean, or open it again, also while nobody wants it.

        A `DualRuntimeManager` runs this for each of its ports. Without it the first in line does that work, on their
        own deadline.
        """
        await keep_line(self._lease, self._line, self._make_ready_unless_ended)

    def unsolicited(self, room: int = 100) -> AbstractContextManager[trio.MemoryReceiveChannel[bytes]]:
        """Return a ``with`` block that gives the lines which the instrument sends by itself, without terminator.

        Which they are says ``SerialPortConfig.unsolicited``. They are noticed when somebody uses the port, or within a
        second where `keep` runs.

        Args:
            room: Lines that may wait to be read; more are lost.
        """
        return self._line.unsolicited.subscribe(room)

    def trace(self) -> tuple[TraceEntry, ...]:
        """Return the last 200 exchanges, oldest first."""
        return self._line.trace.entries()

    def statistics(self) -> PortStatistics:
        """Return a snapshot for displays, health checks and tests. For the Trio thread."""
        return PortStatistics(
            lease=self._lease.statistics(),
            state=self._line.state,
            exchanges=dict(self._exchanges),
            opens=self._line.opens,
            recoveries=self._line.recoveries,
            late_bytes=self._line.dropped,
            stray_bytes=self._line.stray,
            unmatched=self._line.unmatched,
            unsolicited=self._line.unsolicited.count,
        )

    async def __aenter__(self) -> Self:
        return self

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @trio.lowlevel.enable_ki_protection
    async def aclose(self, timeout: float = 2.0) -> None:
        """Close the port for good; whoever has it or waits for it gets `SessionClosedError`.

        A port that was opened and has a ``safe_state`` is made safe before, as by `make_safe`; nothing is said on the
        line after that. Bounded and shielded: a driver that holds the close longer than *timeout* seconds is left to a
        thread.
        """
        self._lease.turn_away(lambda owner: SessionClosedError(resource=self.path, owner=owner))
        await to_the_end(lambda: self._close(timeout))

    async def _close(self, timeout: float) -> None:
        is_safe = not self.config.safe_state or not self._line.opens or self._emergency.has_the_last_word()
        if not is_safe and not self._line.closed:
            await self.make_safe()
        await self._line.aclose(timeout)

    def _prepared_at_once(self, claim: Claim, station: str | None) -> SerialGuard | None:
        """Return a guard for the owner of *claim*, or None if the line needs something before."""
        line = self._line
        self._refuse_if_seized(claim)
        if not line.is_ready_for(station):
            return None
        try:
            line.catch_up(claim.granted_at)
            line.doubt_if_due(claim.granted_at, station)
        except trio.BrokenResourceError:  # it went away while nobody looked: it may be back already
            line.lose()
        if not line.is_ready_for(station):  # what came may have put it in doubt
            return None
        return SerialGuard(line, claim, self._exchanges, station)

    async def _prepare(self, claim: Claim, station: str | None) -> SerialGuard:
        """Make the line ready for the owner of *claim*, within their deadline."""
        line = self._line
        with self._explaining(claim):
            await self._make_ready(claim, station)
        if not line.greeted:
            host = SerialGuard(line, claim, Counter(), station)
            claim.on_revoked = None  # as long as the line is being made ready, there is nothing to take back
            try:
                with self._explaining(claim):
                    await self._in_time(claim, lambda: greet(host, line))
            except BaseException:
                if claim.alive:
                    host._release(failed=True)
                else:  # an emergency has the line now, and has to know of half a command
                    host._settle(failed=True)
                raise
            host._settle(failed=False)
            with self._explaining(claim):
                await self._make_ready(claim, station)
        return SerialGuard(line, claim, self._exchanges, station)

    async def _make_ready(self, claim: Claim, station: str | None) -> None:
        await self._in_time(claim, lambda: self._patiently(station))

    async def _patiently(self, station: str | None) -> None:
        """Make the line ready; where it went away, wait for it to come back."""
        while True:
            try:
                await self._make_ready_at_once(station)
            except (LineOpenError, trio.BrokenResourceError):
                if not (self.config.reconnect and self._line.opens):
                    raise
                await self._line.wait_next_try()
            else:
                return

    async def _make_ready_unless_ended(self) -> None:
        with trio.CancelScope() as preparation, self._emergency.ends(preparation):
            await self._make_ready_at_once()

    async def _make_ready_at_once(self, station: str | None = None) -> None:
        try:
            await self._emergency.follow_loss()
            await self._line.make_ready(station)
            self._line.catch_up(trio.current_time())
        except trio.BrokenResourceError:
            await self._line.hang_up()
            raise

    async def _in_time(self, claim: Claim, step: Callable[[], Awaitable[None]]) -> None:
        self._refuse_if_seized(claim)
        # Who does not want to wait for others still needs some time for the line itself.
        deadline = claim.deadline if claim.timeout else claim.granted_at + self.config.acquire_timeout
        with trio.move_on_at(deadline) as preparation, self._emergency.ends(preparation):
            await step()
            if claim.alive:
                return
        self._refuse_if_seized(claim)
        raise AcquireTimeoutError(
            resource=self.path,
            wanted_by=claim.owner,
            held_by=claim.owner,
            held_for=trio.current_time() - claim.granted_at,
            waited=trio.current_time() - claim.asked_at,
            position=0,
            phase=self._line.phase,
            reason=self._line.trouble,
        )

    @staticmethod
    def _refuse_if_seized(claim: Claim) -> None:
        if claim.revoked is not None:  # it may have been between the grant and its task's turn
            raise claim.revocation("acquire", "no")

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

    __slots__ = ("_claim", "_guard", "_port", "_station")

    def __init__(self, port: SharedSerialPort, claim: Claim, station: str | None) -> None:
        self._port = port
        self._claim = claim
        self._station = station

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> SerialGuard:
        await self._claim.__aenter__()
        try:
            self._guard = self._port._prepared_at_once(self._claim, self._station) or await self._port._prepare(
                self._claim, self._station
            )
        except BaseException:
            self._claim.release()
            raise
        if self._port.config.max_hold is not None:
            self._claim.limit_hold(self._port.config.max_hold)
        return self._guard

    @trio.lowlevel.enable_ki_protection
    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Done[bool]:
        self._guard._release(failed=error is not None)
        return self._claim.__aexit__(kind, error, traceback) if self._claim.is_limited else NOT_SWALLOWED
