"""Connect to the raw TCP socket that a VISA resource name (``TCPIP[board]::HOST::PORT::SOCKET``) tells of.

It knows nothing of what is sent there.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import trio

from trio_daq.errors import LineOpenError

_NAME = re.compile(r"TCPIP[0-9]*::(?P<host>.+)::(?P<port>[0-9]+)::SOCKET", re.IGNORECASE)
"""VPP-4.3 (table 4.3.1). The host is a name, an IPv4 address, or an IPv6 address, in brackets or not."""

_KEEPALIVE = (("TCP_KEEPIDLE", 10), ("TCP_KEEPALIVE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 2))
"""Seconds of silence before the first probe and between two, and how many may stay unanswered: a host that was switched
off is noticed after 20 s, not after the two hours that are usual. ``TCP_KEEPALIVE`` is what macOS calls the first."""

_USER_TIMEOUT = 15_000
"""Milliseconds that sent bytes may stay unacknowledged (tcp(7)); it bounds the probes too. An instrument that takes
nothing of a long command for so long, whatever its deadline, counts as vanished as well."""


def host_and_port(resource: str) -> tuple[str, int]:
    """Return where *resource* is.

    Raises:
        ValueError: If it is no such name.

    Example:
        >>> host_and_port("TCPIP::192.168.1.100::5025::SOCKET"), host_and_port("tcpip0::[fe80::1]::5025::socket")
        (('192.168.1.100', 5025), ('fe80::1', 5025))
    """
    parts = _NAME.fullmatch(resource)
    if parts is None:
        raise ValueError("its name is not of the form TCPIP::HOST::PORT::SOCKET")
    host, port = parts["host"], int(parts["port"])
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not 1 <= port <= 65535:
        raise ValueError(f"port {port} is not between 1 and 65535")
    return host, port


async def connect(resource: str, timeout: float) -> socket.socket:
    """Return a connected socket that does not block and notices within seconds when its other end has vanished.

    All addresses of the host are tried, a new one every quarter of a second. Cancelled, nothing stays open.

    Args:
        resource: The VISA resource name.
        timeout: Seconds.

    Raises:
        LineOpenError: If that fails; it says why.
    """
    try:
        host, port = host_and_port(resource)
        with trio.fail_after(timeout):
            stream = await trio.open_tcp_stream(host, port)
    except (OSError, ValueError, trio.TooSlowError) as error:  # ValueError: a name that IDNA has no spelling for
        raise _explain(resource, error) from error
    # Trio has set TCP_NODELAY, without which a command could wait 40 ms for an acknowledgement; the socket keeps it.
    connection = socket.socket(fileno=stream.socket.detach())
    try:
        connection.setblocking(False)
        _notice_vanished_peer(connection)
    except OSError as error:  # some systems refuse options on a connection that was reset already
        connection.close()
        raise _explain(resource, error) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _notice_vanished_peer(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (*_KEEPALIVE, ("TCP_USER_TIMEOUT", _USER_TIMEOUT)):
        if (option := getattr(socket, name, None)) is not None:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _explain(resource: str, error: Exception) -> LineOpenError:
    causes = list(_leaves(error))
    first = next((each for each in causes if isinstance(each, ConnectionRefusedError)), causes[0])
    reason = " ".join(str(first).split()).rstrip(".") or type(first).__name__
    hint = ""
    if isinstance(first, (trio.TooSlowError, TimeoutError)):
        reason = "it did not answer in time"
        hint = "Is it on and on this network?"
    elif isinstance(first, ConnectionError):
        reason = f"the connection was refused ({reason})"
        hint = "Is the instrument on, is its address right, and is another program connected to it?"
    elif isinstance(first, (socket.gaierror, UnicodeError)):
        reason = f"there is no such host ({reason})"
        hint = "Is the name right? An IP address needs no name server."
    return LineOpenError(resource=resource, reason=reason, hint=hint)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield what went wrong: with *error*, or with each address of the host, of which Trio keeps a group."""
    group = error.__cause__ if isinstance(error.__cause__, BaseExceptionGroup) else error
    if isinstance(group, BaseExceptionGroup):
        for each in group.exceptions:
            yield from _leaves(each)
    else:
        yield error
