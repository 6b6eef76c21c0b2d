"""Serve a simulated instrument on loopback TCP, to any number of clients at once.

Each connection is served on its own and in order; a slow answer to one holds up no other.
"""

from __future__ import annotations

import functools

import trio

from trio_daq.sim.dialogue import CHUNK, Bench

LOOPBACK = "127.0.0.1"


async def serve_on_tcp(
    bench: Bench, port: int = 0, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve *bench* on *port* of loopback until cancelled; `started` with the port.

    Args:
        bench: What answers.
        port: 0 for any free one.
        task_status: Of `trio.Nursery.start`.

    Raises:
        OSError: If the port is taken.
    """
    listeners = await trio.open_tcp_listeners(port, host=LOOPBACK)
    task_status.started(listeners[0].socket.getsockname()[1])
    await trio.serve_listeners(functools.partial(_serve_client, bench), listeners)


async def _serve_client(bench: Bench, stream: trio.SocketStream) -> None:
    # trio.SocketStream has set TCP_NODELAY, without which a reply could wait 40 ms for an acknowledgement.
    dialogue = bench.open_dialogue(stream.send_all)
    try:
        while data := await stream.receive_some(CHUNK):
            await dialogue.take(data)
    except trio.BrokenResourceError:
        return  # the client went away without a word, which an instrument survives
