"""Serve a simulated instrument over HiSLIP on loopback TCP, to any number of clients at once.

HiSLIP 1.0 in synchronized mode (IVI-6.1, section 3.1): of the transactions of its section 6 those are here that a
client needs to talk, to clear and to poll: initialization, data, maximum message size, device clear, status query,
errors; a lock is never granted. Left out: overlapped mode, service requests, the interrupted error (an answer goes out
also if the client has asked for something else meanwhile, under the id of its own question), and all of HiSLIP 2.0.

Invariants: each message of ours is sent whole or not at all, whatever is cleared meanwhile; after a device clear
nothing goes out that was asked before.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import itertools
import struct
from collections.abc import Iterator

import attrs
import trio

from trio_daq.sim.dialogue import Bench, Dialogue
from trio_daq.sim.message_framing import receive_exactly, split_at_end, with_end
from trio_daq.sim.tcp_line import LOOPBACK, hang_up

MAXIMUM_MESSAGE = 16 * 1024
"""Bytes of payload in one message, either way; small, so that clients have to cut and to join."""

SUB_ADDRESS = b"hislip0"
"""The one device here; IVI-6.1 (initialization) gives it as the default."""

_HEADER = struct.Struct("!2sBBIQ")
"""Prologue, message type, control code, message parameter, payload length (IVI-6.1, 2.2)."""
_PROLOGUE = b"HS"
_VERSION = 0x0100
"""1.0; the lower one of the client's and ours counts, and every version includes it."""
_VENDOR = int.from_bytes(b"TD", "big")
_RMT_DELIVERED = 0x01
"""Control code of what a client sends: it has read the whole last reply (IVI-6.1, 3.1.2)."""
_MESSAGE_AVAILABLE = 0x10
"""The MAV bit of the status byte (IEEE 488.2-1992, 11.2.1.2)."""
_FIRST_VENDOR_TYPE = 128


class Type(enum.IntEnum):
    """Message types (IVI-6.1, 2.4, "Numeric Values of Message Type codes"), those in use here."""

    INITIALIZE = 0
    INITIALIZE_RESPONSE = 1
    FATAL_ERROR = 2
    ERROR = 3
    ASYNC_LOCK = 4
    ASYNC_LOCK_RESPONSE = 5
    DATA = 6
    DATA_END = 7
    DEVICE_CLEAR_COMPLETE = 8
    DEVICE_CLEAR_ACKNOWLEDGE = 9
    ASYNC_REMOTE_LOCAL_CONTROL = 10
    ASYNC_REMOTE_LOCAL_RESPONSE = 11
    TRIGGER = 12
    ASYNC_MAXIMUM_MESSAGE_SIZE = 15
    ASYNC_MAXIMUM_MESSAGE_SIZE_RESPONSE = 16
    ASYNC_INITIALIZE = 17
    ASYNC_INITIALIZE_RESPONSE = 18
    ASYNC_DEVICE_CLEAR = 19
    ASYNC_STATUS_QUERY = 21
    ASYNC_STATUS_RESPONSE = 22
    ASYNC_DEVICE_CLEAR_ACKNOWLEDGE = 23
    ASYNC_LOCK_INFO = 24
    ASYNC_LOCK_INFO_RESPONSE = 25


class _Fatal(enum.IntEnum):
    """Codes after which the session ends (IVI-6.1, "Fatal Error Detection and Synchronization Recovery")."""

    UNIDENTIFIED = 0
    BAD_HEADER = 1
    ONE_CHANNEL_ONLY = 2
    BAD_INITIALIZATION = 3


class _Slip(enum.IntEnum):
    """Codes after which it goes on (IVI-6.1, "Error Notification Transaction")."""

    UNKNOWN_TYPE = 1
    UNKNOWN_VENDOR_MESSAGE = 3
    TOO_LARGE = 4


class _FatalError(Exception):
    def __init__(self, code: _Fatal, text: str) -> None:
        super().__init__(text)
        self.code = code


@attrs.frozen
class _Message:
    type: int
    control: int
    parameter: int
    payload: bytes
    """Empty if it was longer than `MAXIMUM_MESSAGE`."""
    length: int


async def serve_on_hislip(
    bench: Bench, port: int = 0, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve *bench* on *port* of loopback until cancelled; `started` with the port.

    Its VISA resource name is ``TCPIP::127.0.0.1::hislip0,PORT::INSTR``.

    Args:
        bench: What answers.
        port: 0 for any free one.
        task_status: Of `trio.Nursery.start`.

    Raises:
        OSError: If the port is taken.
    """
    listeners = await trio.open_tcp_listeners(port, host=LOOPBACK)
    task_status.started(listeners[0].socket.getsockname()[1])
    server = _Server(bench, {}, itertools.cycle(range(1, 0x10000)))
    await trio.serve_listeners(functools.partial(_serve_connection, server), listeners)


@attrs.define
class _Server:
    bench: Bench
    sessions: dict[int, _Session]
    ids: Iterator[int]

    def free_id(self) -> int:
        return next(number for number in self.ids if number not in self.sessions)


async def _serve_connection(server: _Server, stream: trio.SocketStream) -> None:
    """Serve one of the two connections of a client; which one, its first message says."""
    # Either connection ends with the other, and a client may go away without a word: an instrument survives both.
    with contextlib.suppress(EOFError, trio.BrokenResourceError, trio.ClosedResourceError):
        try:
            first = await _receive(stream)
            match first.type:
                case Type.INITIALIZE if first.payload.lower() in (SUB_ADDRESS, b""):
                    await _serve_synchronous(server, stream)
                case Type.ASYNC_INITIALIZE if first.parameter in server.sessions:
                    await _serve_asynchronous(server.sessions[first.parameter], stream)
                case _:
                    raise _FatalError(_Fatal.BAD_INITIALIZATION, f"message {first.type} begins no session here")
        except _FatalError as error:
            await _send(stream, Type.FATAL_ERROR, error.code, payload=str(error).encode("ascii"))


async def _serve_synchronous(server: _Server, stream: trio.SocketStream) -> None:
    number = server.free_id()
    session = server.sessions[number] = _Session(server.bench, stream)
    try:
        await _send(stream, Type.INITIALIZE_RESPONSE, parameter=_VERSION << 16 | number)
        await session.run()
    finally:
        del server.sessions[number]
        if session.asynchronous is not None:
            await trio.aclose_forcefully(session.asynchronous)


async def _serve_asynchronous(session: _Session, stream: trio.SocketStream) -> None:
    session.asynchronous = stream
    try:
        await _send(stream, Type.ASYNC_INITIALIZE_RESPONSE, parameter=_VENDOR)
        while True:
            await session.answer_asynchronous(await _receive(stream), stream)
    finally:
        await trio.aclose_forcefully(session.synchronous)


class _Session:
    """One client: its two connections, its talk, and what is under way."""

    def __init__(self, bench: Bench, synchronous: trio.SocketStream) -> None:
        self.synchronous = synchronous
        self.asynchronous: trio.SocketStream | None = None
        self._bench = bench
        self._client_maximum = MAXIMUM_MESSAGE
        self._work = trio.CancelScope()
        self._sending = self._clearing = self._has_unread = False
        self._question = 0

    async def run(self) -> None:
        """Serve the synchronous connection until the client goes away."""
        dialogue = self._open_dialogue()
        while True:
            message = await _receive(self.synchronous)
            if self.asynchronous is None:
                raise _FatalError(_Fatal.ONE_CHANNEL_ONLY, "the asynchronous connection comes first")
            if message.type == Type.DEVICE_CLEAR_COMPLETE:
                self._clearing = False
                dialogue = self._open_dialogue()
                await _send(self.synchronous, Type.DEVICE_CLEAR_ACKNOWLEDGE)
            elif not self._clearing:  # else the client wrote it before it knew (IVI-6.1, "Device Clear Transaction")
                self._note_delivery(message)
                await self._take(message, dialogue)

    async def answer_asynchronous(self, message: _Message, stream: trio.SocketStream) -> None:
        """Answer one message of the asynchronous connection, also while an answer is under way on the other."""
        match message.type:
            case Type.ASYNC_MAXIMUM_MESSAGE_SIZE if len(message.payload) == 8:
                size = int.from_bytes(message.payload, "big")
                self._client_maximum = max(1, min(MAXIMUM_MESSAGE, size - _HEADER.size))
                # Clients differ in whether they count the header; the room for it is given to all.
                ours = (MAXIMUM_MESSAGE + _HEADER.size).to_bytes(8, "big")
                await _send(stream, Type.ASYNC_MAXIMUM_MESSAGE_SIZE_RESPONSE, payload=ours)
            case Type.ASYNC_DEVICE_CLEAR:
                self._clear()
                await _send(stream, Type.ASYNC_DEVICE_CLEAR_ACKNOWLEDGE)
            case Type.ASYNC_STATUS_QUERY:
                self._note_delivery(message)
                await _send(stream, Type.ASYNC_STATUS_RESPONSE, _MESSAGE_AVAILABLE if self._has_unread else 0)
            case Type.ASYNC_LOCK:
                await _send(stream, Type.ASYNC_LOCK_RESPONSE, 0)  # 0: failure
            case Type.ASYNC_LOCK_INFO:
                await _send(stream, Type.ASYNC_LOCK_INFO_RESPONSE)
            case Type.ASYNC_REMOTE_LOCAL_CONTROL:
                await _send(stream, Type.ASYNC_REMOTE_LOCAL_RESPONSE)
            case _:
                await _refuse(stream, message)

    def _open_dialogue(self) -> Dialogue:
        return self._bench.open_dialogue(self._reply, functools.partial(hang_up, self.synchronous))

    def _clear(self) -> None:
        self._clearing, self._has_unread = True, False
        if not self._sending:
            self._work.cancel()

    def _note_delivery(self, message: _Message) -> None:
        if message.control & _RMT_DELIVERED:
            self._has_unread = False

    async def _take(self, message: _Message, dialogue: Dialogue) -> None:
        match message.type:
            case Type.DATA | Type.DATA_END if message.length == len(message.payload):
                self._question = message.parameter
                data = message.payload
                with trio.CancelScope() as self._work:
                    await dialogue.take(
                        with_end(self._bench.instrument, data) if message.type == Type.DATA_END else data
                    )
            case Type.TRIGGER:
                pass  # nothing here can be triggered
            case _:
                await _refuse(self.synchronous, message)

    async def _reply(self, data: bytes) -> None:
        for part, has_end in split_at_end(self._bench.instrument, data):
            for at in range(0, len(part), self._client_maximum):
                if self._clearing:
                    self._work.cancel()
                    await trio.lowlevel.checkpoint()
                chunk = part[at : at + self._client_maximum]
                is_last = has_end and at + len(chunk) == len(part)
                self._has_unread = self._has_unread or is_last
                self._sending = True  # a message that was cut off would be the end of the connection
                await _send(self.synchronous, Type.DATA_END if is_last else Type.DATA, 0, self._question, payload=chunk)
                self._sending = False


async def _receive(stream: trio.SocketStream) -> _Message:
    prologue, kind, control, parameter, length = _HEADER.unpack(await receive_exactly(stream, _HEADER.size))
    if prologue != _PROLOGUE:
        raise _FatalError(_Fatal.BAD_HEADER, "a message begins with HS")
    if length > MAXIMUM_MESSAGE:
        for at in range(0, length, MAXIMUM_MESSAGE):
            await receive_exactly(stream, min(MAXIMUM_MESSAGE, length - at))
        return _Message(kind, control, parameter, b"", length)
    return _Message(kind, control, parameter, await receive_exactly(stream, length), length)


async def _send(
    stream: trio.SocketStream, kind: Type, control: int = 0, parameter: int = 0, *, payload: bytes = b""
) -> None:
    await stream.send_all(_HEADER.pack(_PROLOGUE, kind, control, parameter, len(payload)) + payload)


async def _refuse(stream: trio.SocketStream, message: _Message) -> None:
    if message.length > MAXIMUM_MESSAGE:
        code = _Slip.TOO_LARGE
    elif message.type >= _FIRST_VENDOR_TYPE:
        code = _Slip.UNKNOWN_VENDOR_MESSAGE
    else:
        code = _Slip.UNKNOWN_TYPE
    await _send(stream, Type.ERROR, code, payload=code.name.encode("ascii"))
