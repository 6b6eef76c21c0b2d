"""Talk to one VISA resource through PyVISA, any backend of it, in a thread of its own.

The thread's work is in `pyvisa_connection`; this is the side of Trio: it hands an exchange over in one hop, bounds it,
says what its failure means, and gives up a thread that does not come back. What such a thread has open is touched by
nobody else; its TCP connection, where there is one, is ended, so that it comes back after all and closes it.

Invariant: only functions that run in the worker thread call PyVISA.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, TypeVarTuple

import attrs
import outcome
import trio

from trio_daq.errors import HungCallError, LineOpenError, Sent
from trio_daq.sharing import WorkerThread
from trio_daq.visa.pyvisa_connection import PyvisaConnection
from trio_daq.visa.settings import VisaSessionConfig
from trio_daq.visa.transport import (
    ConnectionLostError,
    Progress,
    Request,
    TransportError,
    TransportTimeoutError,
    UnaskedInputError,
)

_GRACE = 0.5
"""Seconds beyond its VISA timeout that a call may take before its thread is given up."""

_GRACE_TO_OPEN = 1.0
"""The same for opening, where pyvisa-py rounds up its timeouts."""

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


class PyvisaTransport:
    """A `Transport` over one PyVISA resource.

    Attributes:
        sent: Whether the request in hand, or the last one, was written: ``"unknown"`` while that is under way. A
            request without bytes leaves it as it is.
        completed: How many requests of the exchange in hand, or the last one, were carried out.
    """

    def __init__(self, config: VisaSessionConfig) -> None:
        self.sent: Sent = "no"
        self.completed = 0
        self._config = config
        self._worker = WorkerThread(f"visa {config.resource}")
        self._connection: PyvisaConnection | None = None
        self._closed = trio.Event()
        self._gone = "it is not open"

    async def open(self, timeout: float) -> None:
        """Connect. Cancelled, nothing stays open but what a hung thread holds.

        Raises:
            LineOpenError: If that fails.
        """
        resource = self._config.resource
        if self._connection is not None or self._closed.is_set():
            raise LineOpenError(resource=resource, reason="this connection has been opened or closed")
        token = trio.lowlevel.current_trio_token()
        connection = self._connection = PyvisaConnection(self._config, lambda: _post(token, self._closed.set))
        opened = False
        try:
            await self._worker.run(
                connection.open, timeout, timeout=timeout, grace=_GRACE_TO_OPEN, closing=lambda _: connection.close()
            )
            opened = True
        except HungCallError as error:
            raise LineOpenError(resource=resource, reason=str(error).rstrip(".")) from error
        except Exception as error:
            # Backends raise VisaIOError, OSError, ValueError, TypeError and more; all mean the same here.
            raise _explain_open_failure(resource, error) from error
        finally:
            if not opened:
                self._worker.stop()
        self._gone = ""

    async def exchange(
        self, requests: Sequence[Request], deadline: float, progress: Progress | None = None
    ) -> list[bytes]:
        """Carry out *requests*, one after the other, and return what came back to each; see `Transport.exchange`."""
        self.sent, self.completed = "no", 0
        seconds = deadline - trio.current_time()
        job = _Job(tuple(requests), time.monotonic() + seconds, progress)
        try:
            replies = await self._call(seconds, self._carry_out, job)
        finally:
            job.wanted = False
        job.told.unwrap()
        return replies

    async def drain(self, quiet: float, timeout: float) -> bytes:
        """Read and drop bytes until none came for *quiet* seconds; see `Transport.drain`."""
        return await self._call(timeout, self._open_connection().drain, quiet, time.monotonic() + timeout)

    async def clear(self, timeout: float) -> None:
        """Do a device clear (viClear); see `Transport.clear`. A raw socket has none: it would only drop input."""
        connection = self._open_connection()
        if not connection.has_clear:
            await trio.lowlevel.checkpoint()
            raise TransportError("a raw TCP connection has no device clear")
        await self._call(timeout, connection.clear, time.monotonic() + timeout)

    async def aclose(self, timeout: float, *, abort: bool = False) -> bool:
        """Close within *timeout* seconds, always, and return whether it is closed; see `Transport.aclose`."""
        self._gone = "it was closed"
        end = trio.current_time() + timeout
        await trio.lowlevel.cancel_shielded_checkpoint()
        connection = self._connection
        if connection is None:
            self._closed.set()
            return True
        if abort:
            connection.inside.abort()
        if not await self._worker.aclose(0.8 * timeout):
            connection.inside.shutdown()
        if connection.began:
            with trio.CancelScope(shield=True), trio.move_on_at(end):
                await self._closed.wait()
        return self._closed.is_set() or not connection.began

    async def _call(self, seconds: float, work: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
        connection = self._open_connection()
        if seconds <= 0:
            await trio.lowlevel.checkpoint()
            raise TransportTimeoutError("no time was left for it")
        end = trio.current_time() + seconds
        try:
            return await self._worker.run(work, *args, timeout=seconds, grace=_GRACE)
        except TransportError:
            raise
        except HungCallError as error:
            self._gone = "a call to its library hangs"
            connection.inside.shutdown()
            raise TransportTimeoutError(str(error)) from error
        except Exception as error:
            raise _explain_failure(error, late=trio.current_time() >= end) from error

    def _open_connection(self) -> PyvisaConnection:
        if self._gone or self._connection is None:
            raise ConnectionLostError(self._gone)
        return self._connection

    def _carry_out(self, job: _Job) -> list[bytes]:
        """Do one exchange, in the worker thread."""
        connection, deadline = self._open_connection(), job.deadline
        replies = []
        for request in job.requests:
            if request.data:
                self.sent = "no"
                if not request.behind:
                    self._refuse_unasked(connection)
                # Before the last look at the clock: whoever is told meanwhile must not be told that nothing is sent.
                self.sent = "unknown"
                if not job.is_wanted():
                    self.sent = "no"
                    raise TransportTimeoutError("no time was left for the rest of it")
                connection.write(request.data, deadline)
                self.sent = "yes"
            if request.reply == "message":
                replies.append(connection.read_message(deadline))
            elif request.reply == "block":
                replies.append(connection.read_block(deadline, job.tell))
            elif request.reply == "raw":
                replies.append(connection.read_raw(request, deadline))
            elif request.reply == "status":
                replies.append(connection.read_stb(deadline))
            else:
                replies.append(b"")
            self.completed += 1
        return replies

    def _refuse_unasked(self, connection: PyvisaConnection) -> None:
        if data := connection.unasked():
            unasked = UnaskedInputError(data)
            if self.completed:  # an UnaskedInputError would say that nothing was written yet
                raise TransportError(f"after {self.completed} requests, {unasked}")
            raise unasked


@attrs.define
class _Job:
    """One exchange on its way to the thread and back.

    Attributes:
        deadline: ``time.monotonic()`` of its end.
        wanted: Whether anybody still waits for it; if not, nothing more is written.
        told: What became of telling the progress.
    """

    requests: tuple[Request, ...]
    deadline: float
    progress: Progress | None
    wanted: bool = True
    told: outcome.Outcome[object] = attrs.field(factory=lambda: outcome.Value(None))
    _token: trio.lowlevel.TrioToken = attrs.field(factory=trio.lowlevel.current_trio_token)

    def is_wanted(self) -> bool:
        """Return whether somebody waits for it, and there is time."""
        return self.wanted and time.monotonic() < self.deadline

    def tell(self, done: int, size: int | None) -> None:
        """Tell the progress in the Trio thread."""
        if self.progress is not None:
            _post(self._token, self._tell, done, size)

    def _tell(self, done: int, size: int | None) -> None:
        # An exception here would end all of Trio, so it goes to the caller instead.
        if self.wanted and self.progress is not None and isinstance(self.told, outcome.Value):
            self.told = outcome.capture(self.progress, done, size)


def _post(token: trio.lowlevel.TrioToken, call: Callable[[*_Ts], object], *args: *_Ts) -> None:
    with contextlib.suppress(trio.RunFinishedError):  # the program ended meanwhile: nobody is left to tell
        token.run_sync_soon(call, *args)


def _explain_open_failure(resource: str, error: Exception) -> LineOpenError:
    causes = list(_causes(error))
    reasons = [" ".join(str(cause).split()) or type(cause).__name__ for cause in causes]
    for cause, reason in zip(causes, reasons, strict=True):
        if isinstance(cause, ConnectionError) or "refused" in reason.lower():
            hint = "Is the instrument on, is its address right, and is another program connected to it?"
            return LineOpenError(resource=resource, reason=f"the connection was refused ({reason})", hint=hint)
        if isinstance(cause, TimeoutError) or _is_timeout(cause) or _says_timeout(reason):
            hint = "Is it on and on this network?"
            return LineOpenError(resource=resource, reason="it did not answer in time", hint=hint)
    return LineOpenError(resource=resource, reason=reasons[0].rstrip("."))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield *error* and what led to it: pyvisa-py says "not found" for whatever HiSLIP met."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _explain_failure(error: Exception, *, late: bool) -> TransportError:
    reason = " ".join(str(error).split()) or type(error).__name__
    if _is_timeout(error):
        return TransportTimeoutError("the instrument did not answer in time")
    if _is_loss(error):
        return ConnectionLostError(reason)
    # Some backends have other names for a timeout: pyvisa-py calls it VI_ERROR_IO over VXI-11.
    return TransportTimeoutError(reason) if late else TransportError(reason)


def _says_timeout(reason: str) -> bool:
    from pyvisa.constants import StatusCode

    # pyvisa-py 0.8.1 puts the status of a TCP connection that is not answered into a bare Exception.
    return str(StatusCode.error_timeout.value) in reason


def _is_timeout(error: BaseException) -> bool:
    from pyvisa.constants import StatusCode
    from pyvisa.errors import VisaIOError

    if isinstance(error, VisaIOError):
        return bool(error.error_code == StatusCode.error_timeout)
    if isinstance(error, TimeoutError):
        return error.errno is None  # with a number it is the system's, which gave up the connection
    return type(error).__name__ == "USBTimeoutError"  # of pyusb, which need not be there


def _is_loss(error: Exception) -> bool:
    from pyvisa.constants import StatusCode
    from pyvisa.errors import InvalidSession, VisaIOError

    if isinstance(error, VisaIOError):
        return error.error_code in (StatusCode.error_connection_lost, StatusCode.error_invalid_object)
    # pyserial, pyusb and sockets all tell by an OSError that the other end is not there any more.
    return isinstance(error, (OSError, InvalidSession))
