"""Cure the faults of pyvisa-py 0.8.1 with TCP sockets; other backends and links have no such socket.

It calls a refused connection open, leaves Nagle's algorithm on, takes the end of the stream for silence, and hands a
line that nobody asked for to whoever reads next. All functions here run in the worker thread of the connection.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyvisa.resources import MessageBasedResource

_log = logging.getLogger("trio_daq.visa")

_CHUNK = 1 << 16
_MOST_CHUNKS = 64
"""Reads in a row after which what had come unasked was read; an instrument that floods us must not hold up a call."""


class _Link(socket.socket):
    """A connected socket whose `recv` raises at the end of the stream, where pyvisa-py would spin until its timeout."""

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        data = super().recv(bufsize, flags)
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "the instrument closed the connection")
        return data


def tune_tcp(resource: MessageBasedResource) -> None:
    """Prepare a resource that was just opened.

    Raises:
        ConnectionError: If it is not connected in truth.
    """
    session = _session(resource)
    link = getattr(session, "interface", None)
    if not isinstance(link, socket.socket):
        return
    if code := link.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise ConnectionError(code, os.strerror(code))
    # With Nagle's algorithm a write before a query costs 40 ms.
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    session.interface = _Link(fileno=link.detach())


def discard_stale_input(resource: MessageBasedResource) -> None:
    """Throw away what came unasked, such as the reply to a command of which none was expected.

    Raises:
        ConnectionError: If the instrument has closed the connection.
    """
    session = _session(resource)
    link = getattr(session, "interface", None)
    if not isinstance(link, _Link):
        return
    stale = bytearray(session._pending_buffer)
    session._pending_buffer.clear()
    for _ in range(_MOST_CHUNKS):
        if not select.select([link], [], [], 0)[0]:
            break
        stale += link.recv(_CHUNK)
    if stale:
        _log.warning("%s: dropped %d bytes that came unasked: %r", resource.resource_name, len(stale), stale[:80])


def _session(resource: MessageBasedResource) -> Any:
    """Return pyvisa-py's object behind *resource*, or None with another backend."""
    sessions: Any = getattr(resource.visalib, "sessions", None)
    return sessions.get(resource.session) if isinstance(sessions, dict) else None
