"""A serial line behind a TCP server (``socket://HOST:PORT``): raw bytes over a socket that Trio waits for.

No thread is needed, and none of pyserial, whose handler for these URLs sleeps in its close. A server that speaks
RFC 2217 has modem lines and baud rates too: those are ``rfc2217://`` URLs.

Invariant: the socket is not used any more once the line was lost or `aclose` began.
"""

from __future__ import annotations

import io
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import trio

from trio_daq.serialport.settings import SerialPortConfig

if TYPE_CHECKING:
    from trio_daq.serialport.byte_stream import ControlLines

_T = TypeVar("_T")

_CHUNK = 65536
"""Bytes read at once."""

_MOST_CHUNKS = 16
"""Reads in a row after which all that had come was read: a server that floods us must not stop the loop."""

_LONGEST_FAREWELL = 0.5
"""Seconds for a server to answer the end of our bytes by its own; some never do."""


class SocketByteStream:
    """A `ByteStream` over a TCP connection. Made by `open_socket_stream`."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._lost = ""
        self._closed = False

    def read_nowait(self) -> bytes:
        """Return bytes that have come, none if there are none."""
        if self._lost or self._closed:
            raise self._over()
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise self._lose(str(error)) from error
        if not data:
            raise self._lose("the other end closed the connection")
        return data

    def read_all_nowait(self) -> bytes:
        """Return all that has come, or a good part of it from a server that never stops."""
        data = bytearray()
        for _ in range(_MOST_CHUNKS):
            if not (chunk := self.read_nowait()):
                break
            data += chunk
        return bytes(data)

    def write_nowait(self, data: memoryview) -> int:
        """Hand over what the system takes at once, and return how many bytes that was."""
        if self._lost or self._closed:
            raise self._over()
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._lose(str(error)) from error

    async def wait_readable(self) -> None:
        """Wait until bytes came or the connection is lost."""
        if self._lost or self._closed:
            raise self._over()
        try:
            await trio.lowlevel.wait_readable(self._socket)
        except trio.ClosedResourceError:
            raise self._woken() from None

    async def wait_writable(self) -> None:
        """Wait until the system takes bytes."""
        if self._lost or self._closed:
            raise self._over()
        try:
            await trio.lowlevel.wait_writable(self._socket)
        except trio.ClosedResourceError:
            raise self._woken() from None

    def wake(self) -> None:
        """Wake whoever waits here, with `trio.ClosedResourceError`. The line stays open, in spite of Trio's word."""
        if not self._closed:
            trio.lowlevel.notify_closing(self._socket)

    async def control(self, work: Callable[[ControlLines], _T]) -> _T:  # noqa: ARG002 - there is nothing to call it with
        """Refuse: a raw connection carries bytes and nothing else."""
        await trio.lowlevel.checkpoint()
        if self._lost or self._closed:
            raise self._over()
        raise io.UnsupportedOperation("a socket:// line has no break, modem lines or baud rate; an rfc2217:// one has")

    async def aclose(self, timeout: float) -> bool:
        """Close within *timeout* seconds, always.

        What was written before goes on being sent by the system; the server is told that no more comes, and gets a
        moment to say the same.
        """
        if not self._closed:
            self._closed = True
            trio.lowlevel.notify_closing(self._socket)
            if not self._lost:
                with trio.CancelScope(shield=True), trio.move_on_after(min(timeout / 2, _LONGEST_FAREWELL)):
                    await self._say_farewell()
            self._socket.close()
        await trio.lowlevel.cancel_shielded_checkpoint()
        return True

    async def _say_farewell(self) -> None:
        # A socket that is closed with unread bytes resets the connection, and that can destroy bytes which the other
        # end has not read yet (RFC 2525, section 2.17). So what still comes is read away, up to the server's end.
        try:
            self._socket.shutdown(socket.SHUT_WR)
            while True:
                await trio.lowlevel.wait_readable(self._socket)
                if not self._socket.recv(_CHUNK):
                    return
        except OSError:
            return  # it is gone: nothing left to be polite to

    def _lose(self, reason: str) -> trio.BrokenResourceError:
        self._lost = reason
        trio.lowlevel.notify_closing(self._socket)
        return trio.BrokenResourceError(reason)

    def _over(self) -> Exception:
        if self._closed:
            return trio.ClosedResourceError("the line was closed")
        return trio.BrokenResourceError(self._lost)

    def _woken(self) -> Exception:
        return self._over() if self._lost or self._closed else trio.ClosedResourceError("woken")


async def open_socket_stream(config: SerialPortConfig) -> SocketByteStream:
    """Connect to the server that ``config.path`` names. Bounded by nothing but the caller's cancellation.

    Raises:
        ValueError: If the URL is not ``socket://HOST:PORT``.
        OSError: If there is no such host, or it refuses.
    """
    url = urlsplit(config.path)
    if not url.hostname or not url.port:  # `port` raises ValueError itself above 65535
        raise ValueError(f"expected socket://HOST:PORT, not {config.path!r}")
    try:
        stream = await trio.open_tcp_stream(url.hostname, url.port)
    except OSError as error:
        attempts = error.__cause__  # a group with one failure for each address
        if isinstance(attempts, ExceptionGroup) and isinstance(first := attempts.exceptions[0], OSError):
            raise OSError(first.errno, first.strerror) from error
        raise
    # Trio has set TCP_NODELAY, without which a command could wait 40 ms for an acknowledgement; the socket keeps it.
    connection = socket.socket(fileno=stream.socket.detach())
    connection.setblocking(False)
    return SocketByteStream(connection)
