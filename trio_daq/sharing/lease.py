"""Exclusive use of one thing, by one owner at a time, in the order in which they asked.

A lease knows nothing of ports or instruments. It is handed out only as an ``async with`` block, so no task can end
while it holds one. It can be taken back from a holder, whose claim is dead from that moment.

Invariants: ``_held`` is the one claim on whose behalf the limiter's only token is borrowed, or None; ``_waiting`` holds
the claims in line, first come first, and is empty while nobody has the lease; a claim that is in neither has nothing
and will get nothing. While somebody waits, the alarm of the line rings no later than the next half time or deadline.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

import attrs
import outcome
import trio

from trio_daq.errors import AcquireTimeoutError, LeaseRevokedError, PortBusyError, Sent
from trio_daq.sharing.alarms import Alarm
from trio_daq.sharing.deadlines import checked_timeout
from trio_daq.sharing.histogram import Histogram
from trio_daq.sharing.interrupts import NOT_SWALLOWED, Done
from trio_daq.sharing.owner import current_agent, member_of, owner_name
from trio_daq.sharing.pulse import beat
from trio_daq.sharing.wait_graph import (
    Agent,
    LineKind,
    forget_granted,
    forget_waiting,
    note_granted,
    note_order,
    note_waiting,
)

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
        revocations: How often it was taken back.
        wait_times: How many successful waits were below each bound, in seconds, and not below the one before it.
        hold_times: The same of the times for which it was held.
    """

    holder: str | None
    held_for: float
    waiting: tuple[str, ...]
    grants: Mapping[str, int]
    hand_overs: int
    longest_wait: float
    timeouts: int
    revocations: int
    wait_times: Mapping[float, int]
    hold_times: Mapping[float, int]


class Lease:
    """One token, who has it, and who waits for it.

    Args:
        resource: What it stands for; it opens every message about it.
        timeout: Seconds to wait where `hold` names none.
        kind: Its place in the order in which one owner may take several.
        max_hold: Seconds after which it is taken back from whoever has it, and their block cancelled; None for never.

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

    def __init__(
        self, resource: str, timeout: float = 2.0, *, kind: LineKind = LineKind.SERIAL, max_hold: float | None = None
    ) -> None:
        self.resource = resource
        self.kind = kind
        self._timeout = checked_timeout(timeout)
        self._max_hold = None if max_hold is None else checked_timeout(max_hold, "max_hold", zero=False)
        # Borrowed on behalf of a claim, never of an owner's name: the limiter refuses an equal borrower.
        self._limiter = trio.CapacityLimiter(1)
        self._turned_away: Callable[[str], Exception] | None = None
        self._held: Claim | None = None
        self._waiting: dict[Claim, None] = {}
        self._alarm = Alarm(self._look_along_the_line)
        self._grants: dict[str, int] = {}
        self._last_owner: str | None = None
        self._hand_overs = 0
        self._longest_wait = 0.0
        self._timeouts = 0
        self._revocations = 0
        self._wait_times = Histogram()
        self._hold_times = Histogram()
        self._fast_grants = 0
        self._warned_of_timeout: set[str] = set()
        self._warned_of_name: set[str] = set()
        self._task_of_owner: dict[str, weakref.ref[trio.lowlevel.Task]] = {}

    @property
    def holder(self) -> str | None:
        """Who has it now, or None. Right at any moment, and for any thread."""
        held = self._held
        return held.owner if held is not None else None

    @property
    def claim(self) -> Claim | None:
        """The claim that holds it, if one does."""
        return self._held

    @property
    def held_for(self) -> float:
        """Seconds for which it has been held, 0 if it is free. For the Trio thread."""
        held = self._held
        return trio.current_time() - held.granted_at if held is not None else 0.0

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
            DeadlockError: On entering, if waiting for it would close a circle.
            LockOrderError: On entering, if the task has something of a higher kind.
            LeaseRevokedError: On entering, if it was taken back right after it was granted; on leaving, if it was taken
                back because of ``max_hold``.
        """
        name = owner_name(owner)
        seconds = self._timeout if timeout is None else checked_timeout(timeout)
        if seconds > _LONG_TIMEOUT and name not in self._warned_of_timeout:
            self._warned_of_timeout.add(name)
            _log.warning("%s: %s is ready to wait %g s for it; is that meant?", self.resource, name, seconds)
        return Claim(self, name, seconds)

    @property
    def is_revocable(self) -> bool:
        """Whether somebody has it who is told when it is taken back."""
        return self._held is not None and self._held.on_revoked is not None

    @trio.lowlevel.enable_ki_protection
    def revoke(self, reason: str, member: str | None = None) -> str | None:
        """Take the lease back from its holder and give it to the next in line; return who had it.

        What the holder does with its claim from now on raises `LeaseRevokedError`.

        Args:
            reason: For the log and the holder's error.
            member: Only if a task of this member of the lab has it, under whatever name; None for whoever has it.
        """
        claim = self._held
        if claim is None or member not in (None, claim.owner, member_of(claim.task)):
            return None
        self._take_back(claim, reason)
        return claim.owner

    @trio.lowlevel.enable_ki_protection
    def seize(self, owner: str, reason: str) -> Claim:
        """Take the lease back from its holder, whoever that is, and return a claim of *owner*, before all who wait.

        The claim is to be released. It is there at once, and cannot be told to its holder that it is taken back.
        """
        now = trio.current_time()
        claim = Claim(self, owner, 0.0)
        claim.task = task = trio.lowlevel.current_task()
        claim.agent = current_agent() or task
        claim.depth = len(task.child_nurseries)
        claim.asked_at = now
        if self._held is None:
            self._grant(claim, now)
        else:
            self._take_back(self._held, reason, claim)
        return claim

    @trio.lowlevel.enable_ki_protection
    def turn_away(self, error_for: Callable[[str], Exception]) -> None:
        """End every wait, now and later, by ``error_for(owner)``: the thing is gone for good."""
        self._turned_away = error_for
        for claim in tuple(self._waiting):
            self._take_out(claim)
            trio.lowlevel.reschedule(claim.task, outcome.Error(error_for(claim.owner)))

    def statistics(self) -> LeaseStatistics:
        """Return a snapshot for displays, health checks and tests. For the Trio thread."""
        return LeaseStatistics(
            holder=self.holder,
            held_for=self.held_for,
            waiting=tuple(claim.owner for claim in self._waiting),
            grants=dict(self._grants),
            hand_overs=self._hand_overs,
            longest_wait=self._longest_wait,
            timeouts=self._timeouts,
            revocations=self._revocations,
            wait_times=self._wait_times.counts(instant=self._fast_grants),
            hold_times=self._hold_times.counts(),
        )

    def _grant(self, claim: Claim, now: float) -> None:
        self._limiter.acquire_on_behalf_of_nowait(claim)
        self._held = claim
        claim.granted_at = now
        owner = claim.owner
        self._grants[owner] = self._grants.get(owner, 0) + 1
        if owner != self._last_owner:
            self._hand_overs += self._last_owner is not None
            self._last_owner = owner
        if self.kind is not LineKind.SERIAL:
            note_granted(claim)
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("%s: granted to %s after %.6f s", self.resource, owner, now - claim.asked_at)

    def _take_back(self, claim: Claim, reason: str, successor: Claim | None = None) -> None:
        claim.revoked = reason
        self._revocations += 1
        _log.warning("%s: taken back from %s after %.3f s: %s", self.resource, claim.owner, self.held_for, reason)
        if claim.on_revoked is not None:
            claim.on_revoked()
        self._release(claim, successor)

    def _release(self, claim: Claim, successor: Claim | None = None) -> None:
        now = trio.current_time()
        self._hold_times.add(now - claim.granted_at)
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("%s: released by %s after %.6f s", self.resource, claim.owner, now - claim.granted_at)
        self._held = None
        self._limiter.release_on_behalf_of(claim)
        claim._let_go()
        if self.kind is not LineKind.SERIAL:
            forget_granted(claim)
        if successor is not None:
            self._grant(successor, now)
        elif self._waiting:
            # Handed over at once, before the successor runs: nobody who asks in between can overtake.
            successor = next(iter(self._waiting))
            self._take_out(successor)
            waited = now - successor.asked_at
            self._wait_times.add(waited)
            if waited > self._longest_wait:
                self._longest_wait = waited
            self._grant(successor, now)
            trio.lowlevel.reschedule(successor.task)

    def _take_out(self, claim: Claim) -> None:
        del self._waiting[claim]
        forget_waiting(claim)

    def _look_along_the_line(self) -> None:
        """Warn of those who have waited for half of their time, and end the waits whose deadline has come."""
        now, next_look = trio.current_time(), math.inf
        for position, claim in enumerate(tuple(self._waiting), 1):
            if not claim.warned and claim.half_time <= now:
                claim.warned = True
                _log.warning(
                    "%s: %s has waited for half of its %g s; %s has held it for %.3f s",
                    self.resource,
                    claim.owner,
                    claim.timeout,
                    self.holder,
                    self.held_for,
                )
            if claim.deadline <= now:
                self._end_wait(claim, position, now - claim.asked_at)
            else:
                next_look = min(next_look, claim.deadline if claim.warned else claim.half_time)
        if next_look < math.inf:
            self._alarm.set(next_look)

    def _end_wait(self, claim: Claim, position: int, waited: float) -> None:
        self._take_out(claim)
        self._timeouts += 1
        _log.debug(
            "%s: %s waited in vain for %.6f s; %s has held it for %.6f s",
            self.resource,
            claim.owner,
            waited,
            self.holder,
            self.held_for,
        )
        error = AcquireTimeoutError(
            resource=self.resource,
            wanted_by=claim.owner,
            held_by=self.holder,
            held_for=self.held_for,
            waited=waited,
            position=position,
            phase="queue",
        )
        trio.lowlevel.reschedule(claim.task, outcome.Error(error))

    def _note_name(self, claim: Claim) -> None:
        """Say it once when two living tasks own this under one name: their errors could not be told apart."""
        known = self._task_of_owner.get(claim.owner)
        before = known() if known is not None else None
        self._task_of_owner[claim.owner] = weakref.ref(claim.task)
        if before is not None and before.coro.cr_frame is not None and claim.owner not in self._warned_of_name:
            self._warned_of_name.add(claim.owner)
            _log.warning("%s: two tasks own it as %r; give each a name of its own", self.resource, claim.owner)


class Claim:
    """One wish for a lease, and the lease itself while it is held. Made by `Lease.hold`; entered once.

    Attributes:
        owner: Who wants it.
        timeout: Seconds they are ready to wait.
        asked_at: Trio time at which they asked.
        granted_at: Trio time at which they got it.
        task: The task that asked.
        agent: That task, or the thread for which it asked.
        depth: How many nurseries the task had open when it asked.
        warned: Whether it was said that half of the time has passed.
        revoked: Why it was taken back, if it was.
        sent: What its holder had sent when it was taken back, as far as the holder said so.
        on_revoked: Called when it is taken back, before anybody else gets the lease.
    """

    __slots__ = (
        "_hold_alarm",
        "_lease",
        "_scope",
        "agent",
        "asked_at",
        "depth",
        "granted_at",
        "on_revoked",
        "owner",
        "revoked",
        "sent",
        "task",
        "timeout",
        "warned",
    )

    task: trio.lowlevel.Task
    agent: Agent
    depth: int

    def __init__(self, lease: Lease, owner: str, timeout: float) -> None:
        self._lease = lease
        self.owner = owner
        self.timeout = timeout
        self.asked_at = self.granted_at = 0.0
        self.warned = False
        self.revoked: str | None = None
        self.sent: Sent = "unknown"
        self.on_revoked: Callable[[], object] | None = None
        self._hold_alarm: Alarm | None = None
        self._scope: trio.CancelScope | None = None

    @property
    def resource(self) -> str:
        """What is wanted."""
        return self._lease.resource

    @property
    def kind(self) -> LineKind:
        """Of which kind it is."""
        return self._lease.kind

    @property
    def alive(self) -> bool:
        """Whether this claim holds the lease now."""
        return self._lease._held is self

    @property
    def is_limited(self) -> bool:
        """Whether it may be held for a limited time only."""
        return self._scope is not None

    @property
    def deadline(self) -> float:
        """Trio time at which the wait ends."""
        return self.asked_at + self.timeout

    @property
    def half_time(self) -> float:
        """Trio time at which the wait has lasted for half of its time."""
        return self.asked_at + self.timeout / 2

    def held_by(self) -> Claim | None:
        """Return the claim that holds what this one wants."""
        return self._lease._held

    @trio.lowlevel.enable_ki_protection
    def release(self) -> None:
        """Give the lease to the next in line. Calling it again does nothing."""
        if self._lease._held is self:
            self._lease._release(self)

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Self:
        # Without this look a task that is already cancelled would get the line and send.
        await trio.lowlevel.checkpoint_if_cancelled()
        lease = self._lease
        if lease._turned_away is not None:
            raise lease._turned_away(self.owner)
        self.task = task = trio.lowlevel.current_task()
        self.agent = current_agent() or task
        self.depth = len(task.child_nurseries)
        self.asked_at = trio.current_time()
        beat()
        note_order(self)
        known = lease._task_of_owner.get(self.owner)
        if known is None or known() is not task:
            lease._note_name(self)
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug(
                "%s: %s asks for it; held by %s for %.6f s", lease.resource, self.owner, lease.holder, lease.held_for
            )
        if lease._held is None:
            lease._grant(self, self.asked_at)
            lease._fast_grants += 1
            if lease._fast_grants % _FAST_GRANTS_PER_YIELD == 0:
                await trio.lowlevel.cancel_shielded_checkpoint()
        else:
            await self._wait_in_line()
            beat()
        if self.revoked is not None:  # between the grant and this step of the task, which knows nothing of either yet
            raise self.revocation("entering its block", "no")
        if lease._max_hold is not None:
            self.limit_hold(lease._max_hold)
        return self

    def _let_go(self) -> None:
        # What is called back would keep this claim, and whoever it belongs to, until the garbage collector comes.
        self.on_revoked = None
        if self._hold_alarm is not None:
            self._hold_alarm.clear()
            self._hold_alarm = None

    @trio.lowlevel.enable_ki_protection
    def limit_hold(self, seconds: float) -> None:
        """Take the lease back after *seconds* from now, and cancel what is left of the block then."""
        self._scope = trio.CancelScope()
        self._scope.__enter__()
        self._hold_alarm = Alarm(lambda: self._held_too_long(seconds))
        self._hold_alarm.set(trio.current_time() + seconds)

    @trio.lowlevel.enable_ki_protection
    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Done[bool]:
        self.release()
        if self._scope is None:
            return NOT_SWALLOWED
        swallowed = self._scope.__exit__(kind, error, traceback)
        if self.revoked is not None and (swallowed or error is None):
            raise self.revocation("its block")
        return Done(swallowed)

    def revocation(self, action: str, sent: Sent | None = None) -> LeaseRevokedError:
        """Return the error of a holder that goes on after the lease was taken back."""
        return LeaseRevokedError(
            resource=self.resource,
            owner=self.owner,
            action=action,
            reason=self.revoked or "it was taken back",
            sent=sent or self.sent,
        )

    def _held_too_long(self, seconds: float) -> None:
        if self._lease._held is self and self._scope is not None:
            self._lease.revoke(f"it was held for more than {seconds:g} s")
            self._scope.cancel(reason="trio_daq: max_hold")

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
        note_waiting(self)
        half_time = self.half_time
        if not lease._waiting or half_time < lease._alarm.time:
            lease._alarm.set(half_time)
        lease._waiting[self] = None
        await trio.lowlevel.wait_task_rescheduled(self._leave)

    def _leave(self, _: object) -> trio.lowlevel.Abort:
        # Here, not when the task runs again: who asks in between must not be refused for a wait that is over.
        self._lease._take_out(self)
        if _log.isEnabledFor(logging.DEBUG):
            waited = trio.current_time() - self.asked_at
            _log.debug("%s: %s was cancelled after waiting for %.6f s", self.resource, self.owner, waited)
        return trio.lowlevel.Abort.SUCCEEDED
