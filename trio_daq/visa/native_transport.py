"""Speak to the raw TCP socket of an instrument (``TCPIP::HOST::PORT::SOCKET``) from Trio itself, without a thread.

It cuts what comes into replies and knows nothing of what they mean. A raw socket has no END: a message ends at its
termination. So the indefinite block of IEEE 488.2 (``#0``), which only END can end, is refused: read up to a
termination that its bytes may contain, it would come out too short, and nobody would be told.

Invariants: bytes that came and were not taken are in ``_input``, or in the reader of the block that is under way; the
socket is not used any more once it was lost or `NativeTransport.aclose` began.
"""

from __future__ import annotations

import math
import select
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Sequence

import trio

from trio_daq.errors import LineOpenError, Sent
from trio_daq.sharing import Alarm
from trio_daq.visa.settings import VisaSessionConfig
from trio_daq.visa.tcp_connect import connect
from trio_daq.visa.transport import (
    AROUND_BLOCK,
    BlockError,
    ConnectionLostError,
    Progress,
    Request,
    TransportError,
    TransportTimeoutError,
    UnaskedInputError,
)
from trio_daq.wire import BlockFormatError, BlockReader, ReceiveBuffer, printable

_CHUNK = 65536
"""Bytes read at once."""

_MOST_CHUNKS = 16
"""Reads in a row after which all that had come was read: an instrument that floods us must not stop the loop."""

_DRAINED = 65536
"""Bytes that are kept of what is thrown away."""

_LONGEST_FAREWELL = 0.1
"""Seconds for an instrument to answer the end of our bytes by its own; some never do."""

_ENDED = "the instrument closed the connection"

_RESET_AT_CLOSE = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
"""SO_LINGER, on and 0 s: close throws unsent bytes away and resets the connection (socket(7))."""


class NativeTransport:
    """A `Transport` over one TCP connection.

    `clear` is not there for it: after an unfinished exchange it is closed, and another one opened.

    Attributes:
        sent: Whether the request in hand, or the last one, was written: ``"no"`` until the system took its first byte,
            ``"yes"`` when it took all of them. A request without bytes leaves it as it is.
        completed: How many requests of the exchange in hand, or the last one, were carried out.
    """

    def __init__(self, config: VisaSessionConfig) -> None:
        self.sent: Sent = "no"
        self.completed = 0
        self._config = config
        self._termination = config.read_termination.encode("latin-1")
        self._socket: socket.socket | None = None
        self._gone = "it is not open"
        self._used = self._closed = False
        self._has_input: Callable[[], object] = bool
        self._input = ReceiveBuffer()
        self._alarm = Alarm(self._expire)
        self._expired = False
        self._waited = False

    async def open(self, timeout: float) -> None:
        """Connect. Cancelled, nothing stays open.

        Raises:
            LineOpenError: If that fails.
        """
        if self._used:
            raise LineOpenError(
                resource=self._config.resource, reason="this transport was used for a connection before"
            )
        self._used = True
        connection = await connect(self._config.resource, timeout)
        if self._closed:
            connection.close()
            raise LineOpenError(resource=self._config.resource, reason="it was closed while it was being opened")
        self._socket, self._gone = connection, ""
        self._has_input = _looker_at(connection)

    async def exchange(
        self, requests: Sequence[Request], deadline: float, progress: Progress | None = None
    ) -> list[bytes]:
        """Carry out *requests*, one after the other, and return what came back to each; see `Transport.exchange`."""
        self.sent, self.completed = "no", 0
        await trio.lowlevel.checkpoint_if_cancelled()
        if deadline <= trio.current_time():
            raise TransportTimeoutError("no time was left for it")
        self._expired = self._waited = False
        # An alarm, not a cancel scope: that would cost as much as the rest of the exchange.
        if deadline < math.inf:
            self._alarm.set(deadline)
        replies = []
        try:
            for request in requests:
                if request.data:
                    self.sent = "no"
                    if not request.behind:
                        self._refuse_unasked()
                    await self._write(request.data)
                if request.reply == "message":
                    replies.append(await self._read_message())
                elif request.reply == "block":
                    replies.append(await self._read_block(progress))
                elif request.reply == "raw":
                    replies.append(await self._read_raw(request))
                else:
                    replies.append(b"")
                self.completed += 1
        finally:
            self._alarm.clear()
        if not self._waited:
            await trio.lowlevel.cancel_shielded_checkpoint()
        return replies

    async def drain(self, quiet: float, timeout: float) -> bytes:
        """Read and drop bytes until none came for *quiet* seconds; see `Transport.drain`."""
        now = trio.current_time()
        quiet_at, end = now + quiet, now + timeout
        drained = bytearray(self._input.clear()[:_DRAINED])
        self._expired = False
        while True:
            await trio.lowlevel.checkpoint()
            data = self._receive_nowait()
            now = trio.current_time()
            if data:
                drained += data[: _DRAINED - len(drained)]
                quiet_at = now + quiet
            elif now >= quiet_at:
                return bytes(drained)
            if now >= end:
                raise TransportTimeoutError(f"it was not quiet for {quiet:g} s within {timeout:g} s")
            if not data:
                with trio.move_on_at(min(quiet_at, end)):
                    await self._wait(trio.lowlevel.wait_readable)

    async def clear(self, timeout: float) -> None:  # noqa: ARG002 - there is nothing to wait for
        """Refuse: what a device clear needs beside the bytes, a raw TCP connection does not have.

        Raises:
            TransportError: Always.
        """
        await trio.lowlevel.checkpoint()
        raise TransportError("a raw TCP connection has no device clear")

    async def aclose(self, timeout: float, *, abort: bool = False) -> bool:
        """Close within *timeout* seconds, always, and return true; see `Transport.aclose`.

        With *abort* the connection is reset, and what was not sent yet never will be. Without, the system goes on
        sending it, and the instrument gets a moment to read it and close its end.
        """
        self._closed, self._gone = True, "it was closed"
        connection, self._socket = self._socket, None
        self._input.clear()
        if connection is not None:
            trio.lowlevel.notify_closing(connection)
            try:
                if abort:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
                else:
                    with trio.CancelScope(shield=True), trio.move_on_after(min(timeout / 2, _LONGEST_FAREWELL)):
                        await _say_farewell(connection)
            except OSError:
                pass  # it is gone already: nobody is left to be told
            finally:
                connection.close()
        await trio.lowlevel.cancel_shielded_checkpoint()
        return True

    # --- one exchange ------------------------------------------------------------------------------------------------

    def _refuse_unasked(self) -> None:
        """Look, without waiting, whether bytes lie there that nobody has asked for."""
        self._connection()
        if not len(self._input) and not self._has_input():
            return
        for _ in range(_MOST_CHUNKS):
            if not (data := self._receive_nowait()):
                break
            self._input.feed(data)
        if len(self._input):
            unasked = UnaskedInputError(self._input.clear())
            if self.completed:  # an UnaskedInputError would say that nothing was written yet
                raise TransportError(f"after {self.completed} requests, {unasked}")
            raise unasked

    async def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while (taken := self._send_nowait(rest)) < len(rest):
            if taken:
                self.sent = "unknown"
                rest = rest[taken:]
            late = "the instrument did not take the command in time"
            await self._wait(trio.lowlevel.wait_writable, late)
            if self._expired:  # its caller has been told by now, perhaps that nothing was sent
                raise TransportTimeoutError(late)
        self.sent = "yes"

    async def _read_message(self) -> bytes:
        termination, most = self._termination, self._config.max_block
        while (message := self._input.take_until(termination)) is None:
            if len(self._input) >= most + len(termination):
                raise TransportError(f"{len(self._input)} bytes came without {termination!r}, which is to end a reply")
            self._input.feed(await self._receive())
        return message[: -len(termination)]

    async def _read_raw(self, request: Request) -> bytes:
        came, most = bytearray(self._input.clear()), self._config.max_block + AROUND_BLOCK
        try:
            while len(came) < request.enough and not (request.until and request.until in came):
                if len(came) > most:
                    raise TransportError(f"{len(came)} bytes came, and not what was waited for")
                came += await self._receive()
        except BaseException:
            self._input.feed(bytes(came))  # so that it is known what has come
            raise
        return bytes(came)

    async def _read_block(self, progress: Progress | None) -> bytes:
        reader = BlockReader(self._config.max_block)
        try:
            reader.feed(self._input.clear())
            while True:
                if reader.wanted is None:
                    raise BlockError("an indefinite block (#0) has no end on a raw socket", reader.prefix + b"#0")
                if progress is not None and reader.size is not None:
                    progress(reader.received, reader.size)
                if reader.is_complete:
                    break
                await self._wait(trio.lowlevel.wait_readable)
                if reader.size is None:
                    reader.feed(self._receive_nowait())
                else:
                    reader.advance(self._receive_into(reader.writable()))
            self._input.feed(reader.surplus)
            end = await self._read_message()
        except BlockFormatError as error:
            raise BlockError(str(error), error.data) from error
        except TransportTimeoutError:
            if reader.size is None:
                raise TransportTimeoutError("no header of a block came in time, or not all of it") from None
            came = f"{reader.received} of {reader.size} bytes of the block"
            raise TransportTimeoutError(f"{came} came in time, and not the termination after them") from None
        if end.strip():
            raise BlockError(f"{len(end)} bytes followed the block: {printable(end, 60)!r}", end)
        return bytes(reader.payload)

    async def _receive(self) -> bytes:
        """Return what came after a wait for it, mostly something."""
        await self._wait(trio.lowlevel.wait_readable)
        return self._receive_nowait()

    async def _wait(self, wait: Callable[[socket.socket], Awaitable[None]], late: str = "") -> None:
        """Return when the socket is ready, and once more at the deadline: what has come by then still counts."""
        if self._expired:
            if not late:
                late = f"only {printable(self._input.peek()[:64], 60)!r} came" if len(self._input) else "no answer came"
                late += f", and no {self._termination!r}, in time"
            raise TransportTimeoutError(late)
        self._waited = True
        try:
            await wait(self._connection())
        except trio.ClosedResourceError:
            self._connection()  # it is gone if `aclose` woke us, not the alarm

    def _expire(self) -> None:
        self._expired = True
        if self._socket is not None:
            trio.lowlevel.notify_closing(self._socket)

    # --- the socket --------------------------------------------------------------------------------------------------

    def _connection(self) -> socket.socket:
        if self._gone or self._socket is None:
            raise ConnectionLostError(self._gone)
        return self._socket

    def _receive_nowait(self) -> bytes:
        try:
            data = self._connection().recv(_CHUNK)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise self._lose(str(error)) from error
        if not data:
            raise self._lose(_ENDED)
        return data

    def _receive_into(self, room: memoryview) -> int:
        try:
            count = self._connection().recv_into(room)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._lose(str(error)) from error
        if not count:
            raise self._lose(_ENDED)
        return count

    def _send_nowait(self, data: memoryview) -> int:
        try:
            return self._connection().send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._lose(str(error)) from error

    def _lose(self, reason: str) -> ConnectionLostError:
        self._gone = reason
        return ConnectionLostError(reason)


def _looker_at(connection: socket.socket) -> Callable[[], object]:
    """Return a function whose result is true if bytes, or the end, lie in *connection*."""
    # Asked before a read, since there mostly is nothing, and a read that fails costs three times as much. Windows has
    # no poll(2); the select(2) of others takes no descriptor above 1023.
    if sys.platform == "win32":
        return lambda: select.select([connection], [], [], 0)[0]
    input_ = select.poll()
    input_.register(connection, select.POLLIN)
    return lambda: input_.poll(0)


async def _say_farewell(connection: socket.socket) -> None:
    # A socket that is closed with unread bytes resets the connection, and that can destroy bytes which the other end
    # has not read yet (RFC 2525, section 2.17). So what still comes is read away, up to the instrument's end.
    connection.shutdown(socket.SHUT_WR)
    while True:
        await trio.lowlevel.wait_readable(connection)
        if not connection.recv(_CHUNK):
            return
