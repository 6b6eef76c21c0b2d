"""A shared device, for a thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Generic, TypeVar

from trio_daq.errors import DoorInterruptedError
from trio_daq.legacy.hold import Hold
from trio_daq.legacy.host import DoorHost, Interruption, Verbs
from trio_daq.sharing import SharedDevice, checked_timeout

_T = TypeVar("_T")


class DeviceDoor(Generic[_T]):
    """What a blocking function gets for a shared device.

    Args:
        host: Serves it.
        shared: The device behind it.

    Attributes:
        interruption: Makes the error by which a thread that is to stop is told so.
    """

    interruption: ClassVar[Interruption] = DoorInterruptedError

    def __init__(self, host: DoorHost, shared: SharedDevice[_T]) -> None:
        self._host = host
        self._shared = shared

    @property
    def name(self) -> str:
        """What the device is called."""
        return self._shared.name

    @contextmanager
    def exclusive(self, owner: str | None = None, timeout: float | None = None) -> Iterator[_T]:
        """Have the device for the length of a ``with`` block, which gets the object itself.

        The calls to the object are the thread's own: they are neither interrupted nor bounded, and if the device is
        taken back the thread learns so when it leaves the block.

        Args:
            owner: Who wants it; the member's id if omitted.
            timeout: Seconds to wait for it; its ``acquire_timeout`` if omitted.

        Raises:
            DaqError: As `SharedDevice.acquire` raises it.
            LeaseRevokedError: On leaving, if it was taken back.
            DoorInterruptedError: If the member is to stop, once in each thread.
            DoorClosedError: If the member has stopped.
        """
        name = self._host.owner if owner is None else owner
        patience = self._shared.acquire_timeout if timeout is None else checked_timeout(timeout)
        hold = Hold(self._host, self._shared.name, type(self).interruption)
        devices: list[_T] = []

        def note(device: _T) -> Verbs:
            devices.append(device)
            return {}

        hold.enter(lambda: self._shared.acquire(name, timeout), note, patience)
        failed = True
        try:
            yield devices[0]
            failed = False
        finally:
            hold.leave(failed=failed)
