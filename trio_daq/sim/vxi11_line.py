"""Serve a simulated instrument over VXI-11 on loopback TCP, to any number of clients at once.

The core channel alone (VXI-11 revision 1.0, appendix B.6): links, writing, reading, the status byte, device clear.
Other procedures of it answer with error 8. There is no port mapper, no abort channel and no interrupt channel, so a
client has to know the port, and a call that waits ends only by its own timeout.

A link works as an instrument on GPIB does: it takes what is written and answers in its own time into an output queue,
where a reply stays until it is read or the device is cleared, however late it came.

Invariant: what was asked before a device clear goes to an output queue that nobody reads any more.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator

import attrs
import trio

from trio_daq.sim.dialogue import Bench
from trio_daq.sim.message_framing import split_at_end, with_end
from trio_daq.sim.onc_rpc import XdrReader, pack_opaque, pack_unsigned, serve_calls
from trio_daq.sim.spoiling import HangUp
from trio_daq.sim.tcp_line import LOOPBACK, hang_up

CORE_PROGRAM = 0x0607AF
CORE_VERSION = 1

MAXIMUM_WRITE = 16 * 1024
"""maxRecvSize of create_link (B.6.1; 1024 at least): bytes in one device_write; small, so that clients have to cut."""

INPUT_BUFFER = 16
"""Writes that a busy instrument takes before it makes a client wait."""

DEVICE = b"inst0"

_END = 0x08
"""Flag of device_write: END comes with the last byte (B.5.3)."""
_TERMCHAR_SET = 0x80
"""Flag of device_read: reading ends at a character, too (B.5.3)."""
_MESSAGE_AVAILABLE = 0x10
"""The MAV bit of the status byte (IEEE 488.2-1992, 11.2.1.2)."""


class Procedure(enum.IntEnum):
    """Numbers of the core channel (VXI-11, appendix C), those in use here."""

    CREATE_LINK = 10
    DEVICE_WRITE = 11
    DEVICE_READ = 12
    DEVICE_READSTB = 13
    DEVICE_TRIGGER = 14
    DEVICE_CLEAR = 15
    DEVICE_DOCMD = 22
    DESTROY_LINK = 23


_LEFT_OUT = frozenset({16, 17, 18, 19, 20, 25, 26})
"""device_remote, device_local, device_lock, device_unlock, device_enable_srq, create_ and destroy_intr_chan."""


class Error(enum.IntEnum):
    """Device_ErrorCode (B.5.2), those in use here."""

    NONE = 0
    DEVICE_NOT_ACCESSIBLE = 3
    INVALID_LINK = 4
    PARAMETER = 5
    NOT_SUPPORTED = 8
    IO_TIMEOUT = 15


class Reason(enum.IntFlag):
    """Why device_read has ended (B.6.4)."""

    REQUEST_COUNT = 1
    CHARACTER = 2
    END = 4


async def serve_on_vxi11(
    bench: Bench, port: int = 0, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve *bench* on *port* of loopback until cancelled; `started` with the port.

    Its VISA resource name is ``TCPIP::127.0.0.1,PORT::inst0::INSTR``, as pyvisa-py spells a port that is known.

    Args:
        bench: What answers.
        port: 0 for any free one.
        task_status: Of `trio.Nursery.start`.

    Raises:
        OSError: If the port is taken.
    """
    listeners = await trio.open_tcp_listeners(port, host=LOOPBACK)
    task_status.started(listeners[0].socket.getsockname()[1])
    await trio.serve_listeners(functools.partial(_serve_connection, bench, itertools.count(1)), listeners)


async def _serve_connection(bench: Bench, numbers: Iterator[int], stream: trio.SocketStream) -> None:
    async with trio.open_nursery() as nursery:
        core = _Core(bench, numbers, stream, nursery)
        # The client went away, with all its links, or the instrument has hung up.
        with contextlib.suppress(EOFError, trio.BrokenResourceError, trio.ClosedResourceError):
            await serve_calls(stream, CORE_PROGRAM, CORE_VERSION, core.call)
        nursery.cancel_scope.cancel()


@attrs.define
class _Core:
    """The core channel of one client."""

    _bench: Bench
    _numbers: Iterator[int]
    _stream: trio.SocketStream
    _nursery: trio.Nursery
    _links: dict[int, _Link] = attrs.field(factory=dict)

    async def call(self, procedure: int, arguments: XdrReader) -> bytes | None:
        """Carry out one procedure."""
        match procedure:
            case Procedure.CREATE_LINK:
                return self._create_link(arguments)
            case Procedure.DEVICE_WRITE:
                return await self._write(arguments)
            case Procedure.DEVICE_READ:
                return await self._read(arguments)
            case Procedure.DEVICE_READSTB:
                link = self._links.get(arguments.unsigned())
                return pack_unsigned(Error.INVALID_LINK, 0) if link is None else pack_unsigned(0, link.status())
            case Procedure.DEVICE_CLEAR:
                if (link := self._links.get(arguments.unsigned())) is None:
                    return pack_unsigned(Error.INVALID_LINK)
                link.clear()
                return pack_unsigned(Error.NONE)
            case Procedure.DEVICE_TRIGGER:  # nothing here can be triggered
                known = arguments.unsigned() in self._links
                return pack_unsigned(Error.NONE if known else Error.INVALID_LINK)
            case Procedure.DESTROY_LINK:
                if (link := self._links.pop(arguments.unsigned(), None)) is None:
                    return pack_unsigned(Error.INVALID_LINK)
                link.close()
                return pack_unsigned(Error.NONE)
            case Procedure.DEVICE_DOCMD:
                return pack_unsigned(Error.NOT_SUPPORTED) + pack_opaque(b"")
            case _ if procedure in _LEFT_OUT:
                return pack_unsigned(Error.NOT_SUPPORTED)
        return None

    def _create_link(self, arguments: XdrReader) -> bytes:
        _client, wants_lock, _lock_timeout, device = (
            arguments.unsigned(),
            arguments.unsigned(),
            arguments.unsigned(),
            arguments.opaque(),
        )
        if device.lower() != DEVICE:
            return pack_unsigned(Error.DEVICE_NOT_ACCESSIBLE, 0, 0, 0)
        if wants_lock:
            return pack_unsigned(Error.NOT_SUPPORTED, 0, 0, 0)
        number = next(self._numbers)
        self._links[number] = _Link(self._bench, functools.partial(hang_up, self._stream), self._nursery)
        return pack_unsigned(Error.NONE, number, 0, MAXIMUM_WRITE)  # 0: there is no abort channel

    async def _write(self, arguments: XdrReader) -> bytes:
        link, timeout = self._links.get(arguments.unsigned()), arguments.unsigned()
        _lock_timeout, flags, data = arguments.unsigned(), arguments.unsigned(), arguments.opaque()
        if link is None:
            return pack_unsigned(Error.INVALID_LINK, 0)
        if len(data) > MAXIMUM_WRITE:
            return pack_unsigned(Error.PARAMETER, 0)
        with trio.move_on_after(timeout / 1000):
            await link.write(data, has_end=bool(flags & _END))
            return pack_unsigned(Error.NONE, len(data))
        return pack_unsigned(Error.IO_TIMEOUT, 0)

    async def _read(self, arguments: XdrReader) -> bytes:
        link, size, timeout = self._links.get(arguments.unsigned()), arguments.unsigned(), arguments.unsigned()
        _lock_timeout, flags, character = arguments.unsigned(), arguments.unsigned(), arguments.unsigned()
        if link is None:
            return pack_unsigned(Error.INVALID_LINK, 0) + pack_opaque(b"")
        with trio.move_on_after(timeout / 1000):
            reason, data = await link.read(size, bytes((character & 0xFF,)) if flags & _TERMCHAR_SET else None)
            return pack_unsigned(Error.NONE, reason) + pack_opaque(data)
        return pack_unsigned(Error.IO_TIMEOUT, 0) + pack_opaque(b"")


class _Link:
    """One client's link to the instrument."""

    def __init__(self, bench: Bench, hang_up: Callable[[HangUp], None], nursery: trio.Nursery) -> None:
        self._bench = bench
        self._hang_up = hang_up
        self._nursery = nursery
        self._begin()

    def _begin(self) -> None:
        self._output = _OutputQueue(self._bench)
        self._input, inbox = trio.open_memory_channel[bytes](INPUT_BUFFER)
        self._scope = trio.CancelScope()
        self._nursery.start_soon(self._work, inbox, self._output, self._scope)

    async def _work(
        self, inbox: trio.MemoryReceiveChannel[bytes], output: _OutputQueue, scope: trio.CancelScope
    ) -> None:
        with scope:
            dialogue = self._bench.open_dialogue(output.put, self._hang_up)
            async for data in inbox:
                await dialogue.take(data)

    def clear(self) -> None:
        """Forget what was asked and what was answered (device clear, B.6.7)."""
        self.close()
        self._begin()

    def close(self) -> None:
        """Stop working."""
        self._scope.cancel()

    def status(self) -> int:
        """Return the status byte."""
        return _MESSAGE_AVAILABLE if self._output.is_available() else 0

    async def write(self, data: bytes, *, has_end: bool) -> None:
        """Take bytes, when there is room for them."""
        await self._input.send(with_end(self._bench.instrument, data) if has_end else data)

    async def read(self, size: int, character: bytes | None) -> tuple[Reason, bytes]:
        """Return bytes once there is a reason to. Cancelled, all of them stay."""
        while (taken := self._output.take(size, character)) is None:
            await self._output.wait_grown()
        return taken


@attrs.define
class _OutputQueue:
    """Replies that wait for being read (IEEE 488.2-1992, 6.1.10)."""

    _bench: Bench
    _messages: deque[tuple[bytearray, bool]] = attrs.field(factory=deque)
    """Each with whether it has its END; only the last one may lack it."""
    _grown: trio.Event = attrs.field(factory=trio.Event)

    async def put(self, data: bytes) -> None:
        """Add what the instrument sends."""
        for part, has_end in split_at_end(self._bench.instrument, data):
            if self._messages and not self._messages[-1][1]:
                begun, _ = self._messages.pop()
                self._messages.append((begun + part, has_end))
            else:
                self._messages.append((bytearray(part), has_end))
        self._grown.set()
        await trio.lowlevel.checkpoint()

    def is_available(self) -> bool:
        """Return whether there is anything."""
        return bool(self._messages)

    async def wait_grown(self) -> None:
        """Wait for the next `put`."""
        self._grown = trio.Event()
        await self._grown.wait()

    def take(self, size: int, character: bytes | None) -> tuple[Reason, bytes] | None:
        """Take up to *size* bytes, up to *character* or up to END, or return None while none of these is there."""
        if not self._messages:
            return None
        message, has_end = self._messages[0]
        count = min(size, len(message))
        reason = Reason(0)
        if character is not None and (found := message.find(character, 0, count)) >= 0:
            count, reason = found + 1, Reason.CHARACTER
        if count == size:
            reason |= Reason.REQUEST_COUNT
        if count == len(message) and has_end:
            reason |= Reason.END
        if not reason:
            return None
        data = bytes(message[:count])
        del message[:count]
        if not message:
            self._messages.popleft()
        return reason, data
