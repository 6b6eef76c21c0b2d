"""Serve a simulated instrument on a pseudo-terminal. POSIX only; nothing else in this room needs POSIX.

What differs from a real serial line: there is no baud rate, and bytes are never lost. Where a client does not read,
the instrument stops until it does. The lock of a client that set TIOCEXCL outlives it here, since a pty forgets it
only with its last open end; flock locks go as they should.

Invariant: there are open descriptors, and the link if there is to be one, exactly while it is plugged in.
"""

from __future__ import annotations

import contextlib
import os
import tty
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from trio_daq.sim.dialogue import CHUNK


class Talk(Protocol):
    """What takes the bytes of a client."""

    async def take(self, data: bytes) -> None:
        """Take bytes that the client sent."""
        ...


class Served(Protocol):
    """What can be served: one bench, or a bus."""

    def open_dialogue(self, send: Callable[[bytes], Awaitable[None]]) -> Talk:
        """Return the talk with a client, which gets its bytes through *send*."""
        ...


class PtyLine:
    """A cable between an instrument and whoever opens its path; it can be pulled out and put in again.

    Args:
        link: A symbolic link to make, by which clients find the line under whatever name it comes back.
    """

    def __init__(self, link: str | None = None) -> None:
        self._link = link
        self._ends: tuple[int, int] | None = None
        self._plugged = trio.Event()

    def plug(self) -> str:
        """Put it in and return the path that a client opens. Once it is in, this does nothing."""
        if self._ends is None:
            # The client's end stays open here too: else the last client to close it hangs up, and reading gives EIO.
            master, client_end = self._ends = os.openpty()
            tty.setraw(master)  # on Linux this sets both ends; elsewhere each has its own settings
            tty.setraw(client_end)
            os.set_blocking(master, False)
            if self._link is not None:
                self._remove_link()
                os.symlink(os.ttyname(client_end), self._link)
            self._plugged.set()
        return os.ttyname(self._ends[1]) if self._link is None else self._link

    def unplug(self) -> None:
        """Pull it out: clients see a hang-up, and the link is gone. Once it is out, this does nothing."""
        if self._ends is not None:
            ends, self._ends = self._ends, None
            self._plugged = trio.Event()
            trio.lowlevel.notify_closing(ends[0])
            for end in ends:
                os.close(end)
            self._remove_link()

    async def serve(self, served: Served, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; `started` with the path that a client opens.

        All clients share one line, as on a real cable: who reads first gets the bytes. Being pulled out does not
        disturb the instrument: it goes on with the command that it is at.
        """
        dialogue = served.open_dialogue(self._send)
        try:
            task_status.started(self.plug())
            while True:
                await dialogue.take(await self._receive())
        finally:
            self.unplug()

    async def _receive(self) -> bytes:
        while True:
            await self._plugged.wait()
            with contextlib.suppress(trio.ClosedResourceError, BlockingIOError):
                if self._ends is not None:
                    await trio.lowlevel.wait_readable(self._ends[0])
                if self._ends is not None:  # it may have been pulled out since
                    return os.read(self._ends[0], CHUNK)

    async def _send(self, data: bytes) -> None:
        while data and self._ends is not None:  # what is sent without a cable is lost
            master = self._ends[0]
            try:
                data = data[os.write(master, data) :]
            except BlockingIOError:
                with contextlib.suppress(trio.ClosedResourceError):
                    await trio.lowlevel.wait_writable(master)

    def _remove_link(self) -> None:
        if self._link is not None and os.path.islink(self._link):
            os.unlink(self._link)
