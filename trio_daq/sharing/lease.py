"""Exclusive use of one thing, by one owner at a time, in the order in which they asked.

A lease knows nothing of ports or instruments. It is handed out only as an ``async with`` block, so no task can end
while it holds one.

Invariants: ``_held`` is the claim that has the limiter's only token, or None; ``_waiting`` holds the claims in line,
first come first; a claim is in one of them at most, and one that is in neither will get nothing.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import attrs
import trio

from trio_daq.errors import AcquireTimeoutError, PortBusyError
from trio_daq.sharing.deadlines import checked_timeout
from trio_daq.sharing.owner import owner_name

_log = logging.getLogger("trio_daq.sharing")

_LONG_TIMEOUT = 60.0
"""Seconds above which a timeout is probably a mistake: worth a warning to its owner, once."""

_FAST_GRANTS_PER_YIELD = 64
"""Grants without waiting after which the granted task lets others run (a schedule point costs more than the grant)."""


@attrs.frozen
class LeaseStatistics:
    """What a `Lease` looked like at one moment.

    Attributes:
        holder: Who has it, or None.
        held_for: Seconds for which they have had it, 0 if nobody has.
        waiting: Who waits, first in line first.
        grants: How often each owner was granted it.
        hand_overs: Grants to another owner than the one before.
        longest_wait: Seconds that the longest successful wait took.
        timeouts: Waits that reached their deadline without a grant.
    """

    holder: str | None
    held_for: float
    waiting: tuple[str, ...]
    grants: Mapping[str, int]
    hand_overs: int
    longest_wait: float
    timeouts: int


class Lease:
    """One token, who has it, and who waits for it.

    Args:
        resource: What it stands for; it opens every message about it.
        timeout: Seconds to wait where `hold` names none.

    Example:
        >>> async def main():
        ...     lease = Lease("/dev/ttyUSB0")
        ...     async with lease.hold("logger", timeout=1):
        ...         print(lease.holder)
        ...     print(lease.holder)
        >>> trio.run(main)
        logger
        None
    """

    def __init__(self, resource: str, timeout: float = 2.0) -> None:
        self.resource = resource
        self._timeout = checked_timeout(timeout)
        # Borrowed on behalf of a claim, never of an owner's name: the limiter refuses an equal borrower.
        self._limiter = trio.CapacityLimiter(1)
        self._held: Claim | None = None
        self._waiting: dict[Claim, None] = {}
        self._grants: Counter[str] = Counter()
        self._last_owner: str | None = None
        self._hand_overs = 0
        self._longest_wait = 0.0
        self._timeouts = 0
        self._fast_grants = 0
        self._warned: set[str] = set()

    @property
    def holder(self) -> str | None:
        """Who has it now, or None."""
        return self._held.owner if self._held is not None else None

    @property
    def held_for(self) -> float:
        """Seconds for which it has been held, 0 if it is free."""
        return trio.current_time() - self._held.granted_at if self._held is not None else 0.0

    def hold(self, owner: str | None = None, timeout: float | None = None) -> Claim:
        """Return an ``async with`` block in which *owner* has the lease.

        Entering waits in line. Cancellation while waiting leaves nothing behind; cancellation inside releases it.

        Args:
            owner: Who wants it; the member's id or the task's name if omitted.
            timeout: Seconds to wait, None for the lease's own; 0 does not wait.

        Raises:
            TypeError, ValueError: At once, if *owner* is empty or *timeout* no finite number of seconds.
            PortBusyError: On entering, if *timeout* is 0 and somebody has it.
            AcquireTimeoutError: On entering, if it was not granted in time.
        """
        name = owner_name(owner)
        seconds = self._timeout if timeout is None else checked_timeout(timeout)
        if seconds > _LONG_TIMEOUT and name not in self._warned:
            self._warned.add(name)
            _log.warning("%s: %s is ready to wait %g s for it; is that meant?", self.resource, name, seconds)
        return Claim(self, name, seconds)

    def statistics(self) -> LeaseStatistics:
        """Return a snapshot for displays, health checks and tests."""
        return LeaseStatistics(
            holder=self.holder,
            held_for=self.held_for,
            waiting=tuple(claim.owner for claim in self._waiting),
            grants=dict(self._grants),
            hand_overs=self._hand_overs,
            longest_wait=self._longest_wait,
            timeouts=self._timeouts,
        )

    def _granted(self, claim: Claim) -> None:
        now = trio.current_time()
        self._waiting.pop(claim, None)
        self._held, claim.granted_at = claim, now
        self._grants[claim.owner] += 1
        self._hand_overs += self._last_owner not in (None, claim.owner)
        self._last_owner = claim.owner
        self._longest_wait = max(self._longest_wait, now - claim.asked_at)
        _log.debug("%s: granted to %s after %.6f s", self.resource, claim.owner, now - claim.asked_at)

    def _released(self, claim: Claim) -> None:
        _log.debug("%s: released by %s after %.6f s", self.resource, claim.owner, self.held_for)
        self._held = None
        self._limiter.release_on_behalf_of(claim)
        if self._waiting:
            # The limiter has handed the token on already; the new holder's task just has not run yet.
            for successor in self._limiter.statistics().borrowers:
                if isinstance(successor, Claim):
                    self._granted(successor)


class Claim:
    """One wish for a lease, and the lease itself while it is held. Made by `Lease.hold`; entered once.

    Attributes:
        owner: Who wants it.
        timeout: Seconds they are ready to wait.
        asked_at: Trio time at which they asked.
        granted_at: Trio time at which they got it.
    """

    __slots__ = ("_lease", "asked_at", "granted_at", "owner", "timeout")

    def __init__(self, lease: Lease, owner: str, timeout: float) -> None:
        self._lease = lease
        self.owner = owner
        self.timeout = timeout
        self.asked_at = self.granted_at = 0.0

    @property
    def alive(self) -> bool:
        """Whether this claim holds the lease now."""
        return self._lease._held is self

    @property
    def deadline(self) -> float:
        """Trio time at which the wait ends."""
        return self.asked_at + self.timeout

    def release(self) -> None:
        """Give the lease to the next in line. Calling it again does nothing."""
        if self.alive:
            self._lease._released(self)

    async def __aenter__(self) -> Self:
        # Without this look a task that is already cancelled would get the line and send.
        await trio.lowlevel.checkpoint_if_cancelled()
        lease = self._lease
        self.asked_at = trio.current_time()
        try:
            lease._limiter.acquire_on_behalf_of_nowait(self)
        except trio.WouldBlock:
            await self._wait_in_line()
        else:
            lease._granted(self)
            lease._fast_grants += 1
            if lease._fast_grants % _FAST_GRANTS_PER_YIELD == 0:
                await trio.lowlevel.cancel_shielded_checkpoint()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    async def _wait_in_line(self) -> None:
        lease = self._lease
        if self.timeout == 0:
            raise PortBusyError(
                resource=lease.resource,
                wanted_by=self.owner,
                held_by=lease.holder,
                held_for=lease.held_for,
                waiting=len(lease._waiting),
            )
        _log.debug("%s: %s waits behind %s", lease.resource, self.owner, lease.holder)
        lease._waiting[self] = None
        position = 0
        try:
            with trio.move_on_after(self.timeout):
                await lease._limiter.acquire_on_behalf_of(self)
        finally:
            if self in lease._waiting:
                position = list(lease._waiting).index(self) + 1
                del lease._waiting[self]
        # Not `cancelled_caught`: a grant and the deadline can fall into the same turn, and then the grant counts.
        if not self.alive:
            lease._timeouts += 1
            raise AcquireTimeoutError(
                resource=lease.resource,
                wanted_by=self.owner,
                held_by=lease.holder,
                held_for=lease.held_for,
                waited=trio.current_time() - self.asked_at,
                position=position,
                phase="queue",
            )
