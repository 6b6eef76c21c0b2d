"""Answer the remote procedure calls of one client: ONC RPC version 2 over TCP (RFC 5531), in XDR (RFC 4506).

It knows no procedure: those are given to it. Credentials are not looked at; there is no port mapper.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable

import trio

from trio_daq.sim.message_framing import receive_exactly

LONGEST_RECORD = 1024 * 1024
"""Bytes; who sends more is cut off."""

_UNSIGNED = struct.Struct("!I")
_LAST_FRAGMENT = 0x80000000
"""RFC 5531, section 11: the highest bit of a fragment's length."""
_CALL, _REPLY = 0, 1
_RPC_VERSION = 2
_ACCEPTED, _DENIED = 0, 1
_SUCCESS, _NO_PROGRAM, _NO_VERSION, _NO_PROCEDURE, _GARBAGE = range(5)
"""RFC 5531, section 9, accept_stat."""
_RPC_MISMATCH = 0


class GarbageArgumentsError(ValueError):
    """The arguments of a call are not those of its procedure."""


class XdrReader:
    r"""The values in XDR bytes, one after the other.

    Example:
        >>> reader = XdrReader(pack_unsigned(7) + pack_opaque(b"inst0"))
        >>> reader.unsigned(), reader.opaque()
        (7, b'inst0')
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def unsigned(self) -> int:
        """Take an unsigned integer (RFC 4506, 4.2); also good for an enumeration, a boolean and a character."""
        (value,) = _UNSIGNED.unpack(self._take(_UNSIGNED.size))
        return int(value)

    def opaque(self) -> bytes:
        """Take opaque data or a string of variable length (RFC 4506, 4.10 and 4.11)."""
        length = self.unsigned()
        data = self._take(length)
        self._take(-length % 4)
        return data

    def _take(self, count: int) -> bytes:
        data = self._data[self._at : self._at + count]
        if len(data) < count:
            raise GarbageArgumentsError(f"{count} bytes were expected, {len(data)} came")
        self._at += count
        return data


def pack_unsigned(*values: int) -> bytes:
    """Return unsigned integers in XDR."""
    return b"".join(_UNSIGNED.pack(value) for value in values)


def pack_opaque(data: bytes) -> bytes:
    """Return opaque data of variable length in XDR."""
    return _UNSIGNED.pack(len(data)) + data + bytes(-len(data) % 4)


async def serve_calls(
    stream: trio.SocketStream,
    program: int,
    version: int,
    procedure: Callable[[int, XdrReader], Awaitable[bytes | None]],
) -> None:
    """Answer calls, one after the other, until the client goes away.

    Args:
        stream: The connection.
        program: The one program that there is.
        version: Its one version.
        procedure: Given the number of a procedure and its arguments, returns the result, None for no such procedure;
            raises GarbageArgumentsError where arguments are missing.

    Raises:
        EOFError, trio.BrokenResourceError: When the client goes away, or talks something else.
    """
    while True:
        record = await _receive_record(stream)
        try:
            reply = await _answer(XdrReader(record), program, version, procedure)
        except GarbageArgumentsError:
            raise EOFError("this is no call") from None
        await stream.send_all(_UNSIGNED.pack(len(reply) | _LAST_FRAGMENT) + reply)


async def _receive_record(stream: trio.SocketStream) -> bytes:
    record = bytearray()
    is_last = False
    while not is_last:
        (mark,) = _UNSIGNED.unpack(await receive_exactly(stream, _UNSIGNED.size))
        is_last, length = bool(mark & _LAST_FRAGMENT), mark & ~_LAST_FRAGMENT
        if len(record) + length > LONGEST_RECORD:
            raise EOFError("a record is too long")
        record += await receive_exactly(stream, length)
    return bytes(record)


async def _answer(
    call: XdrReader, program: int, version: int, procedure: Callable[[int, XdrReader], Awaitable[bytes | None]]
) -> bytes:
    """Return the reply to one call, whole (RFC 5531, section 9)."""
    number, kind, rpc_version = call.unsigned(), call.unsigned(), call.unsigned()
    if kind != _CALL:
        raise GarbageArgumentsError(f"message type {kind}")
    if rpc_version != _RPC_VERSION:
        return pack_unsigned(number, _REPLY, _DENIED, _RPC_MISMATCH, _RPC_VERSION, _RPC_VERSION)
    wanted, wanted_version, wanted_procedure = call.unsigned(), call.unsigned(), call.unsigned()
    for _ in ("credential", "verifier"):
        call.unsigned(), call.opaque()
    accepted = pack_unsigned(number, _REPLY, _ACCEPTED, 0, 0)  # 0, 0: a verifier of no kind
    if wanted != program:
        return accepted + pack_unsigned(_NO_PROGRAM)
    if wanted_version != version:
        return accepted + pack_unsigned(_NO_VERSION, version, version)
    if wanted_procedure == 0:  # by convention every program has it, and it does nothing
        return accepted + pack_unsigned(_SUCCESS)
    try:
        result = await procedure(wanted_procedure, call)
    except GarbageArgumentsError:
        return accepted + pack_unsigned(_GARBAGE)
    return accepted + (pack_unsigned(_NO_PROCEDURE) if result is None else pack_unsigned(_SUCCESS) + result)
