"""Reach what pyvisa-py keeps under a resource, and cure its faults; all that is private to pyvisa-py is in this file.

Version 0.8.1 calls a refused connection open, leaves Nagle's algorithm on, takes the end of a stream for silence, waits
for ever for an instrument that does not read, hands a line that nobody asked for to whoever reads next, waits twice
its timeout for a serial byte, goes on for ever while bytes trickle in, leaves sockets open when opening fails, and
keeps every closed session. With other backends nothing can be reached, and nothing is cured.

All is for the worker thread of the connection, but `Inside.abort` and `Inside.shutdown`, which are there to free it.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
import struct
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer
    from pyvisa.resources import MessageBasedResource

_Received = TypeVar("_Received", bytes, int)

_CHUNK = 65536
"""Bytes read at once."""

_MOST_CHUNKS = 16
"""Reads in a row after which what had come unasked was read; an instrument that floods us must not hold up a call."""

_GIVE_UP_AFTER = 15_000
"""Milliseconds after which the system gives up a peer that does not acknowledge what was sent (TCP_USER_TIMEOUT)."""

_LATE_ANSWER = 0.3
"""Seconds that a VXI-11 instrument has for telling a timeout; less than the grace of a call that hangs."""

_RESET_AT_CLOSE = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
"""SO_LINGER, on and 0 s: close throws unsent bytes away and resets the connection (socket(7))."""


class _Link(socket.socket):
    """A connected socket that no call waits at for longer than until its deadline, and that tells its end.

    Attributes:
        deadline: ``time.monotonic()`` of it. It replaces whatever timeout pyvisa-py sets: that starts anew with each
            piece of a message, so that an instrument which sends a byte now and then would be waited for without end.
    """

    def __init__(self, fileno: int) -> None:
        super().__init__(fileno=fileno)
        self.deadline = math.inf
        self._closing = threading.Lock()

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        self._arm()
        return _checked(super().recv(bufsize, flags))

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        self._arm()
        return _checked(super().recv_into(buffer, nbytes, flags))

    def send(self, data: ReadableBuffer, flags: int = 0, /) -> int:
        self._arm()
        return super().send(data, flags)

    def sendall(self, data: ReadableBuffer, flags: int = 0, /) -> None:
        self._arm()
        super().sendall(data, flags)

    def take(self, wait: float, flags: int = 0) -> bytes:
        """Return some bytes as soon as there are any, nothing if there are none within *wait* seconds."""
        self.settimeout(wait)
        try:
            return _checked(super().recv(_CHUNK, flags))
        except BlockingIOError:
            return b""
        except TimeoutError as error:
            if error.errno is not None:  # the system's: the peer does not acknowledge anything any more
                raise
            return b""

    def free(self) -> None:
        """Make whatever call is under way in another thread end."""
        with self._closing, contextlib.suppress(OSError):
            self.shutdown(socket.SHUT_RDWR)

    def reset_at_close(self) -> None:
        with self._closing, contextlib.suppress(OSError):
            self.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)

    def close(self) -> None:
        with self._closing:  # so that `free` cannot meet a file descriptor that is somebody else's by now
            super().close()

    def _arm(self) -> None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            # pyvisa-py looks at its own clock only when nothing comes, so that a trickle would go on for ever.
            raise TimeoutError("timed out")
        self.settimeout(None if left == math.inf else left)


class Inside:
    """What lies under a resource, as far as it can be reached: here, not at all."""

    def set_deadline(self, deadline: float) -> None:
        """Let no call on a socket wait for longer than until *deadline*, ``time.monotonic()``."""

    def unasked(self) -> bytes:
        """Return what has come without being asked for.

        Raises:
            OSError: If the instrument has closed the connection.
        """
        return b""

    def take(self, wait: float) -> bytes | None:  # noqa: ARG002 - for those below
        """Return some bytes, none if none came within *wait* seconds, None if only VISA itself can read here."""
        return None

    def write(self, data: bytes) -> bool:  # noqa: ARG002 - for those below
        """Write *data* by the deadline, or return false if VISA itself is to do it."""
        return False

    def receive(self, room: memoryview) -> int:  # noqa: ARG002 - for those below
        """Receive some bytes into *room* by the deadline and return how many, 0 if only VISA itself can read here."""
        return 0

    def count_to_ask(self, chunk_size: int, most: int) -> int:
        """Return how many bytes, of *most* that may come, one viRead should ask for; *chunk_size* is a good number."""
        return min(chunk_size, most)

    def abort(self) -> None:
        """Let the next close throw away what was written and not sent, and end the calls under way."""

    def shutdown(self) -> None:
        """End the calls that are under way in the worker thread, by ending the connection."""


class _TcpInside(Inside):
    """One or two TCP connections, over which another protocol than the instrument's runs: HiSLIP, VXI-11."""

    def __init__(self, *links: _Link) -> None:
        self._links = links

    def set_deadline(self, deadline: float) -> None:
        for link in self._links:
            link.deadline = deadline

    def unasked(self) -> bytes:
        for link in self._links:
            link.take(0, socket.MSG_PEEK)  # what lies there is the protocol's to sort out; this is about the end
        return b""

    def abort(self) -> None:
        for link in self._links:
            link.reset_at_close()
        self.shutdown()

    def shutdown(self) -> None:
        for link in self._links:
            link.free()


class _SocketInside(_TcpInside):
    """A raw TCP connection."""

    def __init__(self, session: Any, link: _Link) -> None:
        super().__init__(link)
        self._session = session
        self._link = link

    def unasked(self) -> bytes:
        data = bytearray()
        for _ in range(_MOST_CHUNKS):
            if not (some := self.take(0)):
                break
            data += some
        return bytes(data)

    def take(self, wait: float) -> bytes:
        if pending := bytes(self._session._pending_buffer):
            self._session._pending_buffer.clear()
            return pending
        return self._link.take(wait)

    def receive(self, room: memoryview) -> int:
        if count := min(len(pending := self._session._pending_buffer), len(room)):
            room[:count] = pending[:count]
            del pending[:count]
            return count
        return self._link.recv_into(room)  # viRead of pyvisa-py copies each byte four times

    def write(self, data: bytes) -> bool:
        self._link.sendall(data)  # viWrite of pyvisa-py has no timeout
        return True


class _RpcInside(_TcpInside):
    """The connection of VXI-11."""

    def set_deadline(self, deadline: float) -> None:
        # The instrument itself tells that its time is over, a little later; unread, that would meet the next call.
        super().set_deadline(deadline + _LATE_ANSWER)

    def count_to_ask(self, chunk_size: int, most: int) -> int:  # noqa: ARG002 - chunks are the protocol's own
        # pyvisa-py does not tell the end of a message whose last byte is the last one that it was asked for.
        return most


class _SerialInside(Inside):
    """A serial port of pyserial."""

    def __init__(self, port: Any) -> None:
        self._port = port

    def unasked(self) -> bytes:
        return self.take(0)

    def take(self, wait: float) -> bytes:
        first = b""
        if wait:
            self._port.timeout = wait
            first = self._port.read(1)
        return bytes(first + self._port.read(self._port.in_waiting))

    def count_to_ask(self, chunk_size: int, most: int) -> int:
        # Each byte would have the whole timeout to itself: so ask for those that are there, or for one.
        return min(chunk_size, most, max(1, int(self._port.in_waiting)))


def look_inside(resource: MessageBasedResource) -> Inside:
    """Prepare a resource that was just opened.

    Raises:
        OSError: If it is not connected in truth.
    """
    session = _session(resource)
    interface: Any = getattr(session, "interface", None)
    if isinstance(interface, socket.socket) and hasattr(session, "_pending_buffer"):
        session.interface = _tuned(interface)
        return _SocketInside(session, session.interface)
    if isinstance(getattr(interface, "_sync", None), socket.socket):
        interface._sync, interface._async = _tuned(interface._sync), _tuned(interface._async)
        return _TcpInside(interface._sync, interface._async)
    if isinstance(getattr(interface, "sock", None), socket.socket):
        interface.sock = _tuned(interface.sock)
        return _RpcInside(interface.sock)
    if hasattr(interface, "in_waiting"):
        return _SerialInside(interface)
    return Inside()


def close_left_open(error: BaseException) -> None:
    """Close what pyvisa-py left open in the calls through which *error* came, when it failed to open a resource."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if not type(owner).__module__.startswith("pyvisa_py."):
            continue
        for holder in (owner, getattr(owner, "interface", None)):
            for name in ("_sync", "_async", "sock"):
                if isinstance(left := getattr(holder, name, None), socket.socket):
                    left.close()
    if (cause := error.__cause__ or error.__context__) is not None:
        close_left_open(cause)


def forget(library: Any, session: int) -> None:
    """Let pyvisa-py drop its object for a session that was closed."""
    if isinstance(sessions := getattr(library, "sessions", None), dict):
        sessions.pop(session, None)


def _session(resource: MessageBasedResource) -> Any:
    """Return pyvisa-py's object behind *resource*, or None with another backend."""
    sessions: Any = getattr(resource.visalib, "sessions", None)
    return sessions.get(resource.session) if isinstance(sessions, dict) else None


def _tuned(plain: socket.socket) -> _Link:
    if code := plain.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(code, os.strerror(code))
    # With Nagle's algorithm a write before a query costs 40 ms.
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if (user_timeout := getattr(socket, "TCP_USER_TIMEOUT", None)) is not None:
        plain.setsockopt(socket.IPPROTO_TCP, user_timeout, _GIVE_UP_AFTER)
    return _Link(plain.detach())


def _checked(received: _Received) -> _Received:
    """Refuse nothing, the end of the stream, where pyvisa-py would spin until its timeout."""
    if not received:
        raise ConnectionResetError(errno.ECONNRESET, "the instrument closed the connection")
    return received
