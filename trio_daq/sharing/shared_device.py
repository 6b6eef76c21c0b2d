"""Any object that several owners use one at a time: a camera, a motor controller, a data file.

It knows nothing of what the object is. What an owner may do with it ends with their block; nothing can keep them from
the object itself, so they must not keep it.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Generic, TypeVar

import trio

from trio_daq.sharing.interrupts import Done
from trio_daq.sharing.lease import Claim, Lease, LeaseStatistics
from trio_daq.sharing.wait_graph import LineKind

_T = TypeVar("_T")


class SharedDevice(Generic[_T]):
    """An object behind a lease.

    Args:
        name: What it is called in errors.
        device: The object.
        acquire_timeout: Seconds to wait for it where `acquire` names none.
        max_hold: Seconds after which it is taken back from whoever has it; None for never.

    Example:
        >>> async def main():
        ...     camera = SharedDevice("camera", [])
        ...     async with camera.acquire("logger", timeout=1) as frames:
        ...         frames.append("a frame")
        ...         print(camera.current_owner(), frames)
        >>> trio.run(main)
        logger ['a frame']
    """

    def __init__(self, name: str, device: _T, *, acquire_timeout: float = 2.0, max_hold: float | None = None) -> None:
        self.name = name
        self.acquire_timeout = acquire_timeout
        self._device = device
        self._lease = Lease(name, acquire_timeout, kind=LineKind.DEVICE, max_hold=max_hold)

    @property
    def order(self) -> tuple[LineKind, str]:
        """Its place in the order in which `acquire_all` takes lines: after serial ports, before VISA sessions."""
        return self._lease.kind, self.name

    def acquire(self, owner: str | None = None, timeout: float | None = None) -> AbstractAsyncContextManager[_T]:
        """Return an ``async with`` block in which *owner* has the object, and nobody else.

        If it is taken back from them, their block is cancelled and raises `LeaseRevokedError`. Cancellation while
        waiting leaves nothing behind; cancellation inside gives it back.

        Args:
            owner: Who wants it; the member's id or the task's name if omitted.
            timeout: Seconds to wait, None for its own ``acquire_timeout``; 0 does not wait.

        Raises:
            TypeError, ValueError: At once, if *owner* is empty or *timeout* no finite number of seconds.
            PortBusyError: On entering, if *timeout* is 0 and somebody has it.
            AcquireTimeoutError: On entering, if it was not granted in time.
            DeadlockError: On entering, if waiting for it would close a circle.
            LockOrderError: On entering, if the task has a VISA transaction.
            LeaseRevokedError: On leaving, if it was taken back; on entering, if it was right after it was granted.
        """
        return _Block(self._lease.hold(owner, timeout), self._device)

    def is_available(self) -> bool:
        """Return whether nobody has it."""
        return self._lease.holder is None

    def current_owner(self) -> str | None:
        """Return who has it, or None. For any thread."""
        return self._lease.holder

    def revoke(self, reason: str, member: str | None = None) -> str | None:
        """Take it back from whoever has it and give it to the next in line; return who had it.

        Args:
            reason: For the log and the owner's error.
            member: Only if a task of this member of the lab has it, under whatever name; None for whoever has it.
        """
        return self._lease.revoke(reason, member)

    def statistics(self) -> LeaseStatistics:
        """Return who has it, who waits, and how often and how long it was had. For the Trio thread."""
        return self._lease.statistics()


class _Block(AbstractAsyncContextManager[_T]):
    """The block in which somebody has it. No generator: Ctrl-C could come between its lines."""

    def __init__(self, claim: Claim, device: _T) -> None:
        self._claim = claim
        self._device = device
        self._scope = trio.CancelScope()

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> _T:
        await self._claim.__aenter__()
        self._scope.__enter__()
        self._claim.on_revoked = self._scope.cancel
        return self._device

    @trio.lowlevel.enable_ki_protection
    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Done[bool]:
        swallowed = self._scope.__exit__(kind, error, traceback)
        if swallowed:
            kind = error = traceback = None
        left = self._claim.__aexit__(kind, error, traceback)
        if self._claim.revoked is not None and error is None:
            raise self._claim.revocation("its block")
        return Done(True) if swallowed else left
