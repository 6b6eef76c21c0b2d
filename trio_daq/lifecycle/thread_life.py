"""Run a program in a thread of its own as a member: its doors, its stop, and the threads that it leaves.

Asked to stop, it is told once, as it understands it: a blocking function by an error in each of its threads, an asyncio
program by cancellation. Its doors serve on until all its threads have ended or its time is up. Then the doors close,
and who is left after a moment is listed and left alone.

Invariant: each life has a host, a context and a thread of its own; what one life leaves behind reaches nothing of the
next.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

import trio

from trio_daq.data import DataPublisher
from trio_daq.legacy import DeviceDoor, DoorHost, SerialDoor, ThreadContext, VisaDoor, served_by, with_doors
from trio_daq.lifecycle.whereabouts import Frame, frames_of_thread, frames_of_waiting
from trio_daq.serialport import SharedSerialPort
from trio_daq.sharing import ServiceNursery, SharedDevice, WorkerThread
from trio_daq.visa import VisaSessionManager

_END_TIMEOUT = 0.5
"""Seconds that threads have to end after their doors were closed, before they are reported as left behind."""

_LOOK_EVERY = 0.01
"""Seconds. The end of a thread that somebody else started has no event."""


class Program(Protocol):
    """What is run in one life."""

    def run(self) -> None:
        """Run it to its end, in the thread that calls this."""

    def request_stop(self) -> None:
        """Tell it to stop. Called once, after `DoorHost.interrupt`."""

    def cut_off(self) -> None:
        """Tell it that its doors have closed."""

    def was_ended_by_stop(self, error: BaseException | None) -> bool:
        """Return whether it raised *error* because it was told to stop."""

    def waiting_frames(self) -> tuple[FrameType, ...]:
        """Return where it waits, innermost first, if its thread does not show that."""


class ThreadLives:
    """A program that is run in one life after another.

    Args:
        name: Id of the member.
        new_program: Makes what is run in one life.
    """

    def __init__(self, name: str, new_program: Callable[[DoorHost], Program]) -> None:
        self._name = name
        self._new_program = new_program
        self._worker = WorkerThread(name)
        self._abandoned: list[str] = []
        self._life = self._new_life()

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Run it once. That it ended by the interruption is no failure."""
        if self._life.has_begun:
            self._life = self._new_life()
        await self._life.serve(task_status)

    def request_stop(self) -> None:
        """Tell the threads of the current life to stop."""
        self._life.request_stop()

    def abandoned_threads(self) -> tuple[str, ...]:
        """Return the names of the threads that were left behind so far."""
        return tuple(dict.fromkeys((*self._worker.abandoned(), *self._abandoned)))

    def frames(self) -> tuple[Frame, ...]:
        """Return where the thread of the current life is, innermost first."""
        thread = self._worker.thread
        frames = () if thread is None else frames_of_thread(thread.ident)
        if frames and frames[0].module == "selectors":  # an event loop waits, and so does what it runs
            return frames_of_waiting(self._life.program.waiting_frames()) + frames
        return frames

    def _new_life(self) -> _Life:
        host = DoorHost(self._name)
        return _Life(host, self._new_program(host), self._worker, self._abandoned)


class _Life:
    def __init__(self, host: DoorHost, program: Program, worker: WorkerThread, abandoned: list[str]) -> None:
        self.has_begun = False
        self.program = program
        self._host = host
        self._abandoned = abandoned
        self._worker = worker

    def request_stop(self) -> None:
        if not self._host.interrupted:
            self._host.interrupt()  # first, so that a thread which sees the event is known not to need it
            self.program.request_stop()

    async def serve(self, task_status: trio.TaskStatus[None]) -> None:
        self.has_begun = True
        try:
            async with ServiceNursery() as nursery:
                await nursery.start(self._host.serve)
                task_status.started()
                if not self._host.interrupted:  # it may have been before there was a thread to tell
                    await self._run()
                nursery.cancel_scope.cancel()
        finally:
            await self._end_threads()

    async def _run(self) -> None:
        failure: Exception | None = None
        try:
            await self._worker.run(_run, self._host, self.program)
        except Exception as error:  # noqa: BLE001 - it is raised below
            failure = error
        if self._host.interrupted:
            self._worker.stop()
            while self._host.live_threads():  # noqa: ASYNC110 - they clean up, and need the doors for it
                await trio.sleep(_LOOK_EVERY)
        if failure is not None and not self.program.was_ended_by_stop(failure):
            raise failure

    async def _end_threads(self) -> None:
        with trio.CancelScope(shield=True):
            began = trio.current_time()
            self.program.cut_off()
            await self._worker.aclose(_END_TIMEOUT)
            with trio.move_on_at(began + _END_TIMEOUT):
                while self._host.live_threads():  # noqa: ASYNC110
                    await trio.sleep(_LOOK_EVERY)
        self._abandoned += (thread.name for thread in self._host.live_threads())


class BlockingProgram:
    """A blocking function that is run once.

    Args:
        host: Serves its doors.
        target: The function, called with doors in place of the ports and sessions among its arguments.
        args: Its arguments.
        kwargs: Its keyword arguments; it gets a `ThreadContext` besides if it has a parameter ``context``.
        publisher: By which its context publishes.
    """

    def __init__(
        self,
        host: DoorHost,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        publisher: DataPublisher,
    ) -> None:
        self._host = host
        as_door = functools.partial(_as_door, host)
        doors = dict(with_doors(kwargs, as_door))
        self._context: ThreadContext | None = None
        if "context" in inspect.signature(target).parameters and "context" not in kwargs:
            self._context = doors["context"] = ThreadContext(host, publisher)
        self._script = functools.partial(target, *with_doors(args, as_door), **doors)

    def run(self) -> None:
        """Call it."""
        self._script()

    def request_stop(self) -> None:
        """Set the event of its context."""
        if self._context is not None:
            self._context.stopping.set()

    def cut_off(self) -> None:
        """Do nothing: it learns it from its doors."""

    def was_ended_by_stop(self, error: BaseException | None) -> bool:
        """Return whether *error* is the interruption of one of its threads, or was raised from it."""
        return self._host.has_caused(error)

    def waiting_frames(self) -> tuple[FrameType, ...]:
        """Return nothing: its thread shows where it is."""
        return ()


def _run(host: DoorHost, program: Program) -> None:
    try:
        with served_by(host):
            program.run()
    except SystemExit as error:  # old programs end so; it is no reason to end the lab
        if error.code not in (None, 0):
            raise RuntimeError(f"it left by sys.exit({error.code!r})") from error


def _as_door(host: DoorHost, value: Any) -> Any:
    if isinstance(value, SharedSerialPort):
        return SerialDoor(host, value)
    if isinstance(value, VisaSessionManager):
        return VisaDoor(host, value)
    if isinstance(value, SharedDevice):
        return DeviceDoor(host, value)
    return value
