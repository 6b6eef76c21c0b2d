"""One life of a program that is written for asyncio: its event loop, its doors, and how it is told to stop.

It is run in a thread of its own, where asyncio leaves signals alone. Told to stop, its main task is cancelled once; its
doors serve on. When they have closed, all of its tasks are cancelled once more, and who ignores that too is nobody's.

Invariants: nothing of asyncio leaves it, `asyncio.CancelledError` least of all; no exception of Trio enters it.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Awaitable, Callable, Coroutine
from types import FrameType
from typing import Any

from trio_daq.data import DataPublisher
from trio_daq.legacy.arguments import with_doors
from trio_daq.legacy.asyncio_context import AsyncioContext
from trio_daq.legacy.asyncio_device import AsyncioDeviceDoor
from trio_daq.legacy.asyncio_host import AsyncioHost
from trio_daq.legacy.asyncio_serial import AsyncioSerialDoor
from trio_daq.legacy.asyncio_visa import AsyncioVisaDoor
from trio_daq.legacy.asyncio_wait_for import waiting_frames, without_loss
from trio_daq.legacy.host import DoorHost
from trio_daq.legacy.origin import came_of
from trio_daq.serialport import SharedSerialPort
from trio_daq.sharing import SharedDevice
from trio_daq.visa import VisaSessionManager

_FAREWELL = 0.1
"""Seconds from the end of the doors to the cancellation of all that still runs."""


class AsyncioProgram:
    """A coroutine function that is run once, with awaitable doors in place of the ports and sessions that it is given.

    Args:
        host: Serves its doors.
        target: The function.
        args: Its arguments.
        kwargs: Its keyword arguments; it gets an `AsyncioContext` besides if it has a parameter ``context``.
        publisher: By which its context publishes.
    """

    def __init__(
        self,
        host: DoorHost,
        target: Callable[..., Awaitable[Any]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        publisher: DataPublisher,
    ) -> None:
        self._doors = host
        self._host = AsyncioHost(host)
        self._target = target
        self._told = f"{self._host.owner} is to stop"
        self._args = with_doors(args, self._as_door)
        self._kwargs = dict(with_doors(kwargs, self._as_door))
        self._context: AsyncioContext | None = None
        if "context" in inspect.signature(target).parameters and "context" not in kwargs:
            self._context = self._kwargs["context"] = AsyncioContext(self._host, publisher)
        self._lock = threading.Lock()  # between a request to stop and the begin of the loop
        self._is_to_stop = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[Any] | None = None
        self._called: Coroutine[Any, Any, None] | None = None

    def run(self) -> None:
        """Run it to its end, in the thread that calls this.

        Raises:
            RuntimeError: If it ended by a cancellation that nobody had asked for.
            BaseException: Whatever it raised.
        """
        try:
            with asyncio.Runner() as runner:
                runner.run(self._live())
        except asyncio.CancelledError as error:
            if not self._host.is_stopping:
                raise RuntimeError("its main task was cancelled, and not because it was to stop") from error

    def request_stop(self) -> None:
        """Set its ``stopping`` and cancel its main task, unless that waits for it. Called in any thread."""
        with self._lock:
            self._is_to_stop = True
        self._have_called(self._stop)

    def cut_off(self) -> None:
        """Cancel all of its tasks in a moment, since its doors have closed. Called in any thread."""
        self._have_called(self._cancel_all_soon)

    def was_ended_by_stop(self, error: BaseException | None) -> bool:
        """Return whether *error*, which it raised, was raised from that by which it was told to stop."""
        if self._doors.has_caused(error):  # in a blocking call, which a door of another kind has interrupted
            return True
        return self._host.is_stopping and came_of(error, lambda origin: isinstance(origin, asyncio.CancelledError))

    def waiting_frames(self) -> tuple[FrameType, ...]:
        """Return where its main task waits, innermost first; nothing if it does not wait. For any thread."""
        main = self._main
        return () if main is None or main.done() else tuple(reversed(list(waiting_frames(self._called))))

    async def _live(self) -> None:
        with self._lock:
            if self._is_to_stop:
                return
            self._main = asyncio.current_task()
            self._loop = asyncio.get_running_loop()
        self._called = self._call()
        await without_loss(self._called, self._told)

    async def _call(self) -> None:
        await self._target(*self._args, **self._kwargs)

    def _stop(self) -> None:
        self._host.is_stopping = True
        self._doors.note_told()  # no blocking call of this thread need be interrupted to tell it
        knows = self._context is not None and self._main in self._context.stopping.waiting
        if self._context is not None:
            self._context.stopping.set()
        if not knows and self._main is not None:
            self._main.cancel(self._told)

    def _cancel_all_soon(self) -> None:
        # Not at once: the cancellation would come before the DoorClosedError of the calls that have just been cut off.
        asyncio.get_running_loop().call_later(_FAREWELL, self._cancel_all)

    def _cancel_all(self) -> None:
        for task in asyncio.all_tasks():
            task.cancel("its doors have closed")

    def _have_called(self, work: Callable[[], object]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(work)

    def _as_door(self, value: Any) -> Any:
        if isinstance(value, SharedSerialPort):
            return AsyncioSerialDoor(self._host, value)
        if isinstance(value, VisaSessionManager):
            return AsyncioVisaDoor(self._host, value)
        if isinstance(value, SharedDevice):
            return AsyncioDeviceDoor(self._host, value)
        return value
