"""Serve a simulated instrument on loopback TCP, to any number of clients at once.

Each connection is served on its own and in order; a slow answer to one holds up no other. What was read is carried out,
also when its client has gone meanwhile. From outside the instrument can be switched off and on, or made deaf.

Invariant: while it is switched off its port stays taken, and refuses who connects.
"""

from __future__ import annotations

import contextlib
import functools
import math
import socket
import struct
import sys

import trio

from trio_daq.sim.dialogue import CHUNK, Bench
from trio_daq.sim.spoiling import HangUp

LOOPBACK = "127.0.0.1"

RECEIVE_BUFFER = 64 * 1024
"""Bytes that the system takes for an instrument that does not read: an instrument has little memory."""

_RESET_ON_CLOSE = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
"""SO_LINGER, on and for no time: closing resets the connection and throws away what is still to be sent."""


class TcpLine:
    """The socket of an instrument.

    Args:
        bench: What answers.
        port: 0 for any free one.
    """

    def __init__(self, bench: Bench, port: int = 0) -> None:
        self._bench = bench
        self._port = port
        self._away_for = 0.0
        self._on = trio.CancelScope()
        self._deaf_until = -math.inf

    async def serve(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; `started` with the port.

        Raises:
            OSError: If the port is taken.
        """
        listener = await self._bind()
        self._port = listener.getsockname()[1]
        task_status.started(self._port)
        while True:
            listener.listen()
            with trio.CancelScope() as self._on:
                await trio.serve_listeners(self._serve_client, [trio.SocketListener(listener)])
            listener = await self._bind()
            await trio.sleep(self._away_for)

    def restart(self, away_for: float) -> None:
        """Close the port and all connections, and listen again after so many seconds."""
        self._away_for = away_for
        self._on.cancel()

    def deafen(self, seconds: float) -> None:
        """Read nothing of what clients send for so many seconds, but accept connections and answer what was read."""
        self._deaf_until = trio.current_time() + seconds

    async def _bind(self) -> trio.socket.SocketType:
        """Take the port without listening yet: a client that connects is refused, and no program gets the port."""
        bound = trio.socket.socket()
        try:
            if sys.platform != "win32":  # there it would let two programs have one port
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            await bound.bind((LOOPBACK, self._port))
        except BaseException:
            bound.close()
            raise
        return bound

    async def _serve_client(self, stream: trio.SocketStream) -> None:
        # trio.SocketStream has set TCP_NODELAY, without which a reply could wait 40 ms for an acknowledgement.

        async def send(data: bytes) -> None:
            with contextlib.suppress(trio.BrokenResourceError):  # nobody is there: what is said is lost
                await stream.send_all(data)

        dialogue = self._bench.open_dialogue(send, functools.partial(hang_up, stream))
        with contextlib.suppress(trio.BrokenResourceError):  # reset by the client
            while not dialogue.is_over and (data := await self._receive(stream)):
                await dialogue.take(data)

    async def _receive(self, stream: trio.SocketStream) -> bytes:
        await trio.lowlevel.wait_readable(stream.socket)
        while (left := self._deaf_until - trio.current_time()) > 0:  # noqa: ASYNC110 - it may be moved meanwhile
            await trio.sleep(left)
        return bytes(await stream.receive_some(CHUNK))


def hang_up(stream: trio.SocketStream, how: HangUp) -> None:
    """End a client's connection at once; what is sent or received on it after that raises ClosedResourceError."""
    if how == "reset":
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    stream.socket.close()
