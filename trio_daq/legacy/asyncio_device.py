"""A shared device, for asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from trio_daq.legacy.asyncio_hold import AsyncioHold
from trio_daq.legacy.asyncio_host import AsyncioHost
from trio_daq.legacy.host import Verbs
from trio_daq.sharing import SharedDevice, checked_timeout

_T = TypeVar("_T")


class AsyncioDeviceDoor(Generic[_T]):
    """What an asyncio program gets for a shared device.

    Args:
        host: Serves it.
        shared: The device behind it.
    """

    def __init__(self, host: AsyncioHost, shared: SharedDevice[_T]) -> None:
        self._host = host
        self._shared = shared

    @property
    def name(self) -> str:
        """What the device is called."""
        return self._shared.name

    def is_available(self) -> bool:
        """Return whether nobody has it."""
        return self.current_owner() is None

    def current_owner(self) -> str | None:
        """Return who has it, or None."""
        return self._shared.current_owner()

    @asynccontextmanager
    async def acquire(self, owner: str | None = None, timeout: float | None = None) -> AsyncIterator[_T]:
        """Have the device for the length of an ``async with`` block, which gets the object itself.

        What the block does with the object is its own affair. If the device is taken back, it learns so on leaving.

        Args:
            owner: Who wants it; the member's id if omitted.
            timeout: Seconds to wait for it; its ``acquire_timeout`` if omitted.

        Raises:
            DaqError: As `SharedDevice.acquire` raises it.
            LeaseRevokedError: On leaving, if it was taken back.
            DoorClosedError: If the member has stopped.
        """
        name = self._host.owner if owner is None else owner
        patience = self._shared.acquire_timeout if timeout is None else checked_timeout(timeout)
        hold = AsyncioHold(self._host, self._shared.name)
        devices: list[_T] = []

        def note(device: _T) -> Verbs:
            devices.append(device)
            return {}

        await hold.enter(lambda: self._shared.acquire(name, timeout), note, patience)
        failed = True
        try:
            yield devices[0]
            failed = False
        finally:
            await hold.leave(failed=failed)
