"""What a VISA session asks of the connection under it, whatever carries it.

A transport knows nothing of queues, owners, dialects or recovery: it carries out one exchange after the other and says
truly how far it came. There are two: `pyvisa_transport` drives any PyVISA backend from a thread of its own, and
`native_transport` speaks to a raw TCP socket from Trio itself.

Promises that both keep: no wait outlasts the deadline it was given, whatever the instrument or the library does; a
failure, of whatever type the library chose, comes out as a `TransportError`; after any of them the next byte may belong
to an old command, so the connection is not to be used before it was cleared, drained or replaced.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import attrs

from trio_daq.errors import Sent

ReplyKind = Literal["nothing", "message", "block", "raw", "status"]
"""What comes back: nothing; a message up to its termination or END; an IEEE 488.2 block, counted byte by byte; whatever
comes, left as it came, up to END or as far as it is wanted; or the one byte of the status register, where the
connection has a way of its own for that (viReadSTB)."""

AROUND_BLOCK = 256
"""Bytes that a block may have before it, a response header, and after it, a termination."""

Progress = Callable[[int, int | None], object]
"""Told, in the Trio thread, how many bytes of a block have come, and of how many, None where the block does not say."""


@attrs.frozen
class Request:
    """One exchange.

    Attributes:
        data: The bytes to write, their termination included; empty to read one more reply without asking.
        reply: What comes back.
        behind: Whether replies to earlier requests may lie there, to be read later; else they are unasked input.
        enough: On a stream, where nothing marks the end of a raw reply, so many bytes of it are enough; what has come
            besides is returned with them.
        until: There these bytes are enough, too.
    """

    data: bytes
    reply: ReplyKind
    behind: bool = False
    enough: int = sys.maxsize
    until: bytes = b""


class TransportError(Exception):
    """The exchange failed; the message says how."""


class TransportTimeoutError(TransportError):
    """The instrument did not take or give all bytes by the deadline."""


class ConnectionLostError(TransportError):
    """The instrument closed or reset the connection, or it broke: this transport will not carry anything any more."""


class UnaskedInputError(TransportError):
    """Before anything was written, bytes lay there that nobody had asked for; they were taken out.

    Attributes:
        data: What they were.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(f"{len(data)} bytes had come unasked: {data[:60]!r}")
        self.data = data


class BlockError(TransportError):
    """The header of a block is none, or it tells of more bytes than are allowed: what follows cannot be told apart.

    Attributes:
        data: The bytes that came.
    """

    def __init__(self, message: str, data: bytes) -> None:
        super().__init__(message)
        self.data = data


class Transport(Protocol):
    """One connection to one resource, used for one exchange at a time. All is for the Trio thread.

    Attributes:
        sent: Whether the request in hand, or the last one, was written: ``"unknown"`` while that is under way. A thread
            may move it on at any moment.
        completed: How many requests of the exchange in hand, or the last one, were carried out.
    """

    sent: Sent
    completed: int

    async def open(self, timeout: float) -> None:
        """Connect. Cancelled, nothing stays open but what a hung thread holds.

        Raises:
            LineOpenError: If that fails.
        """

    async def exchange(
        self, requests: Sequence[Request], deadline: float, progress: Progress | None = None
    ) -> list[bytes]:
        """Carry out *requests*, one after the other, and return what came back to each, ``b""`` for nothing.

        A message is returned without its termination, a block without its header and what ends it, what is raw with
        all that it came with. Cancelled, the connection may be anywhere in the exchange: it is to be cleared or closed.

        Args:
            requests: At least one.
            deadline: Trio time by which all must be done.
            progress: Told of the bytes of a block as they come.

        Raises:
            UnaskedInputError: Before anything was written (``sent`` is ``"no"`` and ``completed`` 0).
            TransportTimeoutError: If time ran out.
            ConnectionLostError: If the connection is gone.
            BlockError: If what should be a block is none, or too large.
            TransportError: If anything else went wrong.
        """

    async def drain(self, quiet: float, timeout: float) -> bytes:
        """Read and drop bytes until none came for *quiet* seconds, and return the first 64 KiB of them.

        With a *quiet* of 0 only what lies there already is dropped.

        Raises:
            TransportTimeoutError: If they still came after *timeout* seconds.
            ConnectionLostError: If the connection is gone.
            TransportError: If anything else went wrong.
        """

    async def clear(self, timeout: float) -> None:
        """Do a device clear (viClear): the instrument forgets what it was asked, and nothing late will come.

        Raises:
            TransportError: If that fails, or this kind of connection has none.
        """

    async def aclose(self, timeout: float, *, abort: bool = False) -> bool:
        """Close within *timeout* seconds, always. Shielded from cancellation.

        Args:
            timeout: Seconds after which it returns in any case.
            abort: Whether what was written and is still under way may be thrown away: after an exchange that was left
                unfinished, so that the instrument does not carry out later what its caller was told had failed.

        Returns:
            Whether it is closed. If not, a hung thread holds it, and it is closed when that thread comes back.
        """
