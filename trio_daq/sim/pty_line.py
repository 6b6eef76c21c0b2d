"""Serve a simulated instrument on a pseudo-terminal. POSIX only; nothing else in this room needs POSIX.

What differs from a real serial line: there is no baud rate, and bytes are never lost. Where a client does not read,
the instrument stops until it does. The lock of a client that set TIOCEXCL outlives it here, since a pty forgets it
only with its last open end; flock locks go as they should.
"""

from __future__ import annotations

import os
import tty

import trio

from trio_daq.sim.dialogue import CHUNK, Bench


async def serve_on_pty(bench: Bench, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
    """Serve *bench* on a new pty until cancelled; `started` with the path that a client opens.

    All clients share one line, as on a real cable: who reads first gets the bytes.
    """
    # The client's end stays open here too: else the last client to close it hangs up, and reading here gives EIO.
    master, client_end = os.openpty()
    try:
        tty.setraw(master)  # on Linux this sets both ends; elsewhere each has its own settings
        tty.setraw(client_end)
        os.set_blocking(master, False)

        async def send(data: bytes) -> None:
            while data:
                try:
                    data = data[os.write(master, data) :]
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(master)

        dialogue = bench.open_dialogue(send)
        task_status.started(os.ttyname(client_end))
        while True:
            await trio.lowlevel.wait_readable(master)
            try:
                data = os.read(master, CHUNK)
            except BlockingIOError:
                continue
            await dialogue.take(data)
    finally:
        os.close(client_end)
        os.close(master)
