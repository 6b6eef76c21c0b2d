"""The Trio side of all doors of one thread member: it does what threads ask, in tasks of the member's own nursery.

A thread posts a job and blocks until its result is there. When its member is to stop, each thread is told once, by an
error of the kind that its door says, and served on. What it writes just then is written first, since that may be what
makes its instrument safe. The host ends with its member, and with it every job: a thread that
was given up gets `DoorClosedError`, never `trio.Cancelled`, and can take nothing more. What a thread gave up itself is
never begun, or cancelled if it was. A job acts on behalf of the thread that posted it: what one thread has and what it
waits for belong together, whichever tasks do it.

Invariants: every job that was posted gets exactly one result or one error; no thread is interrupted twice.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, Literal, Protocol

import attrs
import trio

from trio_daq.errors import DoorClosedError, DoorInterruptedError, Sent, StateError
from trio_daq.legacy.origin import came_of
from trio_daq.sharing import Pulse, acting_as, current_pulse, living_by, on_behalf_of
from trio_daq.wire import Command

MARGIN = 10.0
"""Seconds that a thread waits beyond the deadline of its job before it takes the event loop for dead."""

Verbs = Mapping[str, Callable[..., Awaitable[Any]]]
"""What can be asked for, by name."""

Heed = Literal["at once", "when done", "while waiting"]
"""When a job gives way to the stop of its member: at once, begun or not; when it has been done; or only if it is under
way, as for what leads to more, such as the wait for a line."""

_WRITES = frozenset({"write", "write_all", "write_only"})

Serve = Callable[["Future[Any]"], Awaitable[None]]
"""Does a job in the Trio thread and fills its future, or raises the job's error before it has."""


class Interruption(Protocol):
    """Makes the error by which a thread is told to stop; for most doors that is `DoorInterruptedError`."""

    def __call__(self, *, resource: str, owner: str, sent: Sent) -> Exception:
        """Return it."""


def _plain(value: Any) -> Any:
    """Return *value* without objects of ours in it."""
    if isinstance(value, Command):
        return value.text
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _all_plain(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(map(_plain, values))


@attrs.frozen
class Job:
    """One thing that a thread wants done, as plain data: numbers, text, bytes, lists of them, and arrays of numbers.

    So it could as well come from another process.

    Attributes:
        verb: What to do, for example ``"query"``.
        arguments: Positional arguments.
        options: Keyword arguments.
        patience: Seconds after which it must have ended by itself.
    """

    verb: str
    arguments: tuple[Any, ...] = attrs.field(default=(), converter=_all_plain)
    options: Mapping[str, Any] = attrs.field(factory=dict)
    patience: float = 0.0

    @property
    def heed(self) -> Heed:
        """When it gives way to a stop."""
        return "when done" if self.writes else "at once"

    @property
    def writes(self) -> bool:
        """Whether it sends something and expects nothing."""
        return self.verb in _WRITES


@attrs.define(eq=False)
class Call:
    """What is waited for. Once it was interrupted it may still end well, if that could not be helped any more."""

    resource: str
    thread: threading.Thread
    interruption: Interruption | None
    heed: Heed
    sent: Sent
    future: Future[Any] = attrs.field(factory=Future)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    is_interrupted: bool = False


class DoorHost:
    """Serves the doors of one member.

    Args:
        owner: The member's id, under which its doors own lines.

    Attributes:
        interrupted: Whether its threads were told to stop.
    """

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.interrupted = False
        self._nursery: trio.Nursery | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._trio_thread: int | None = None
        self._pulse: Pulse | None = None
        self._threads: set[threading.Thread] = set()
        self._untold: set[threading.Thread] = set()
        self._in_flight: set[Call] = set()
        self._interruptions: list[Exception] = []

    # Without this Trio may raise KeyboardInterrupt between any two lines, and leave a thread without an answer.
    @trio.lowlevel.enable_ki_protection
    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. After that every call through a door raises `DoorClosedError`."""
        self._token = trio.lowlevel.current_trio_token()
        self._trio_thread = threading.get_ident()
        self._pulse = current_pulse()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._pulse = None
                self._nursery = None  # before the nursery closes: to start a task in a closed one would be our bug

    def interrupt(self) -> None:
        """Tell each thread to stop: its call in flight, or else its next one, raises, once.

        The error is of the kind that the door of that call says. Threads that are started later are not told, since it
        is to clean up that they are started.
        """
        if not self.interrupted:
            self.interrupted = True
            self._untold = set(threading.enumerate())
            for call in self._in_flight:
                if call.thread in self._untold and call.heed != "when done" and not call.future.done():
                    call.is_interrupted = True
                    call.scope.cancel(reason=f"{self.owner} is to stop")

    def note_told(self) -> None:
        """Note that the thread which calls this knows that it is to stop, and so need not be interrupted any more."""
        self._untold.discard(threading.current_thread())

    def has_caused(self, error: BaseException | None) -> bool:
        """Return whether *error* is the interruption of a thread, or was raised from it."""
        return came_of(error, lambda origin: any(origin is one for one in self._interruptions))

    def live_threads(self) -> list[threading.Thread]:
        """Return the threads that used a door and have not ended."""
        return sorted((thread for thread in self._threads if thread.is_alive()), key=lambda thread: thread.name)

    def call(
        self, resource: str, verbs: Verbs, job: Job, *, interruption: Interruption | None = DoorInterruptedError
    ) -> Any:
        """Have *job* done and return its result. Called in any thread but Trio's; arguments as for `post`.

        Raises:
            DoorInterruptedError: If the member is to stop, and the thread did not know; or what *interruption* makes.
            DoorClosedError: If the member has stopped, or the event loop does not answer.
            Exception: Whatever the job raised.
        """
        serve = functools.partial(do_job, verbs, job)
        return self.post(resource, serve, job.patience, interruption=interruption, heed=job.heed)

    def post(
        self,
        resource: str,
        serve: Serve,
        patience: float,
        *,
        sent: Sent = "unknown",
        interruption: Interruption | None = DoorInterruptedError,
        heed: Heed = "at once",
    ) -> Any:
        """Have ``serve(future)`` run as a task, and wait for the future. Called in any thread but Trio's.

        Args:
            resource: What the job is for; it opens the message of an error.
            serve: The task. It may go on after it has filled the future.
            patience: Seconds after which the future must have been filled.
            sent: What a `DoorClosedError` says of the command if the job had begun.
            interruption: Makes the error if it is by this job that the thread is told to stop; None if it must not be.
            heed: When it is told so.
        """
        call = self.submit(resource, serve, sent=sent, interruption=interruption, heed=heed)
        future = call.future
        try:
            return future.result(patience + MARGIN)
        except FutureTimeoutError:
            if future.done():
                return future.result()  # or raise the job's own time-out
            raise self.unanswered(call, patience) from None
        except BaseException:  # the thread's own, a KeyboardInterrupt for one
            if not future.done():
                self.give_up(call)
            raise

    def submit(
        self,
        resource: str,
        serve: Serve,
        *,
        agent: object | None = None,
        sent: Sent = "unknown",
        interruption: Interruption | None = DoorInterruptedError,
        heed: Heed = "at once",
    ) -> Call:
        """Have ``serve(future)`` run as a task, and return what there is to wait for.

        Args:
            resource: As for `post`.
            serve: As for `post`.
            agent: On whose behalf it is done; the thread that calls this if omitted.
            sent: As for `post`.
            interruption: As for `post`.
            heed: As for `post`.

        Raises:
            DoorClosedError: If there is no event loop that could do it.
        """
        if threading.get_ident() == self._trio_thread:
            if self._nursery is None:  # and it may well be that the run has ended, and the thread is free to block
                raise self.closed(resource)
            raise StateError(
                action=f"a blocking call on {resource}",
                expected="in another thread than its event loop",
                actual="in that very thread",
                hint="In async code use the port or the session itself.",
            )
        token, thread = self._token, threading.current_thread()
        if token is None:
            raise self.closed(resource)
        call = Call(resource, thread, interruption, heed, sent)
        future = call.future

        @trio.lowlevel.enable_ki_protection
        async def run() -> None:
            try:
                with call.scope:
                    try:
                        if heed != "when done":
                            await serve(future)
                        else:
                            done: Future[Any] = Future()
                            await serve(done)
                            if thread in self._untold:
                                raise self._interrupt(call, "yes")
                            future.set_result(done.result())
                    except Exception:
                        # At the end of the member what the job uses may end before it: that is not its own error.
                        await trio.lowlevel.checkpoint_if_cancelled()
                        raise
            except Exception as error:
                if future.done():
                    raise
                future.set_exception(error)  # it is raised in the thread
            finally:
                self._in_flight.discard(call)
                if not future.done():
                    cut_by_host = call.is_interrupted and self._nursery is not None
                    future.set_exception(self._interrupt(call, sent) if cut_by_host else self.closed(resource, sent))

        def start_or_refuse() -> None:
            if not future.set_running_or_notify_cancel():
                return  # the thread gave it up before it began
            self._note(thread)
            if self._nursery is None:
                future.set_exception(self.closed(resource))
            elif interruption is not None and thread in self._untold and heed == "at once":
                future.set_exception(self._interrupt(call, "no"))
            else:
                if interruption is not None:
                    self._in_flight.add(call)
                self._beat()
                with on_behalf_of(thread if agent is None else agent), acting_as(self.owner), living_by(self._pulse):
                    self._nursery.start_soon(run, name=f"door of {self.owner} to {resource}")

        try:
            token.run_sync_soon(start_or_refuse)
        except trio.RunFinishedError:
            raise self.closed(resource) from None
        return call

    def give_up(self, call: Call) -> Sent:
        """See to it that a job which nobody waits for any more is not begun or does not go on; return what it has sent.

        Called in the thread that posted it.
        """
        if call.future.cancel():
            return "no"
        if self._token is not None:
            with contextlib.suppress(trio.RunFinishedError):  # then it ended with the run
                self._token.run_sync_soon(call.scope.cancel)
        return call.sent

    def unanswered(self, call: Call, patience: float) -> DoorClosedError:
        """Give up a job that the event loop has left without an answer, and return the error that says so."""
        reason = f"its event loop has not answered for {patience + MARGIN:g} s"
        return self.closed(call.resource, self.give_up(call), reason)

    def spawn(self, task: Callable[[], Awaitable[object]]) -> None:
        """Run *task* until it ends or the host does, on behalf of nobody. Called by a job."""
        assert self._nursery is not None
        with on_behalf_of(None), acting_as(self.owner), living_by(self._pulse):
            self._nursery.start_soon(task, name=f"lease of {self.owner}")

    def tell(self, note: Callable[[], object]) -> None:
        """Have ``note()`` called in the Trio thread, without waiting for it; unlike a job it is never given up."""
        if self._token is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(note)

    def beat(self) -> None:
        """Show a sign of life of the member. Called in any thread."""
        if self._token is not None and self._pulse is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._beat, idempotent=True)

    def closed(self, resource: str, sent: Sent = "no", reason: str | None = None) -> DoorClosedError:
        """Return the error of a call that comes too late, or that was cut off."""
        reason = reason or "its part of the lab is stopping"
        return DoorClosedError(resource=resource, owner=self.owner, reason=reason, sent=sent)

    def _beat(self) -> None:
        if self._pulse is not None:
            self._pulse.beat()

    def _interrupt(self, call: Call, sent: Sent) -> Exception:
        assert call.interruption is not None
        self._untold.discard(call.thread)
        error = call.interruption(resource=call.resource, owner=self.owner, sent=sent)
        self._interruptions.append(error)
        return error

    def _note(self, thread: threading.Thread) -> None:
        if thread not in self._threads:
            self._threads = {one for one in self._threads if one.is_alive()}  # a script may start thousands
            self._threads.add(thread)


async def do_job(verbs: Verbs, job: Job, future: Future[Any]) -> None:
    """Do *job* and fill *future*."""
    future.set_result(await verbs[job.verb](*job.arguments, **job.options))
