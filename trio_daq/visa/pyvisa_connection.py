"""Read and write through one PyVISA resource: all that its worker thread does.

It says when a reply ends and keeps every wait within a deadline. It knows no Trio, and lets out whatever exception the
backend chose; what that means is the business of `pyvisa_transport`.

Two kinds of resource differ in how a reply ends. In a *stream* (raw sockets, serial ports) it ends with the read
termination; VISA stops at its last character only, so reading goes on until the whole is there. Elsewhere the
instrument marks the last byte (END), and a termination before it is stripped. Deadlines are of ``time.monotonic()``.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trio_daq.visa.pyvisa_inside import Inside, close_left_open, forget, look_inside
from trio_daq.visa.resource_managers import SharedManager, shared_manager
from trio_daq.visa.settings import VisaSessionConfig
from trio_daq.visa.transport import AROUND_BLOCK, BlockError, Request, TransportError, TransportTimeoutError
from trio_daq.wire import BlockFormatError, BlockReader

if TYPE_CHECKING:
    from pyvisa.resources import Resource

_log = logging.getLogger("trio_daq.visa")

_CHUNK = 65536
"""Bytes of a message asked for in one viRead."""

_BLOCK_CHUNK = 1 << 20
"""Bytes of a block asked for in one viRead; progress is told in these steps."""

_DRAINED = 65536
"""Bytes that are kept of what is thrown away."""

_LONGEST = 1_000_000.0
"""Seconds that a VISA timeout is at most; VISA counts milliseconds in 32 bits (VPP-4.3, VI_ATTR_TMO_VALUE)."""

Tell = Callable[[int, int | None], object]


class PyvisaConnection:
    """One resource, opened, used and closed in one thread.

    Args:
        config: Which, and how its messages end.
        when_closed: Called as the last thing, when nothing is open any more.

    Attributes:
        inside: What lies under the resource.
        has_clear: Whether there is a device clear, as far as the kind of resource tells.
        began: Whether `open` was called.
    """

    def __init__(self, config: VisaSessionConfig, when_closed: Callable[[], object]) -> None:
        self.inside = Inside()
        self.has_clear = True
        self.began = False
        self._config = config
        self._when_closed = when_closed
        self._termination = config.read_termination.encode("latin-1")
        self._resource: Resource | None = None
        self._library: Any = None
        self._session: Any = None
        self._stream = False
        self._milliseconds = 0

    def open(self, timeout: float) -> None:
        """Open the resource, or leave nothing open."""
        self.began = True
        try:
            manager = shared_manager(self._config.backend)
            resources = manager.take()
            try:
                self._resource = resources.open_resource(self._config.resource, open_timeout=_milliseconds(timeout))
                self._prepare(self._resource)
            except BaseException as error:
                close_left_open(error)
                self._close(manager)
                raise
        except BaseException:
            self._when_closed()
            raise

    def close(self) -> None:
        """Close the resource, and its manager if it was the last one. This may block as long as the library likes."""
        try:
            self._close(shared_manager(self._config.backend))
        finally:
            self._when_closed()

    def unasked(self) -> bytes:
        """Return what has come without being asked for, where that can be seen; raise if the connection is gone."""
        return self.inside.unasked()

    def write(self, data: bytes, deadline: float) -> None:
        """Write *data*."""
        self.inside.set_deadline(deadline)
        if self.inside.write(data):
            return
        self._set_timeout(_left(deadline))
        count, _ = self._library.write(self._session, data)
        if count != len(data):
            raise TransportError(f"only {count} of {len(data)} bytes were taken")

    def read_message(self, deadline: float) -> bytes:
        """Read one reply and return it without its termination."""
        termination, most = self._termination, self._config.max_block + len(self._termination)
        reply = bytearray()
        ended = False
        while not ended and len(reply) <= most:
            chunk, ended = self._read(_CHUNK, most + 1 - len(reply), deadline)
            reply += chunk
            if self._stream:
                ended = reply.endswith(termination)
        message = bytes(reply.removesuffix(termination))
        if len(message) > self._config.max_block:
            raise TransportError(f"a reply of more than {self._config.max_block} bytes came")
        return message

    def read_stb(self, deadline: float) -> bytes:
        """Read the status byte."""
        self._set_timeout(_left(deadline))
        status, _ = self._library.read_stb(self._session)
        return bytes([status & 0xFF])

    def read_raw(self, request: Request, deadline: float) -> bytes:
        """Read a reply as it comes, to its end, or on a stream as far as it is wanted."""
        came, most = bytearray(), self._config.max_block + AROUND_BLOCK
        enough, until = (request.enough, request.until) if self._stream else (most + 1, b"")
        self._stop_at_termination(bool(until), until)
        try:
            while True:
                chunk, ended = self._read(_CHUNK, enough - len(came), deadline)
                came += chunk
                if ended and not self._stream:
                    return bytes(came)
                if len(came) >= enough or (until and until in came):
                    break
        finally:
            self._stop_at_termination(self._stream)
        if len(came) > most:
            raise TransportError(f"a reply of more than {self._config.max_block} bytes came")
        if self._stream:
            with contextlib.suppress(OSError):  # what has come is good, and the next exchange will meet the end
                came += self.inside.unasked()
        return bytes(came)

    def read_block(self, deadline: float, tell: Tell) -> bytes:
        """Read one IEEE 488.2 block, and what ends it, and return what it holds."""
        reader = BlockReader(self._config.max_block)
        read = self._read_counted_block if self._stream else self._read_block_to_end
        try:
            rest = read(deadline, reader, tell)
        except BlockFormatError as error:
            raise BlockError(str(error), error.data) from error
        if rest.strip():
            raise BlockError(f"more bytes follow a block of {reader.received}: {rest[:60]!r}", rest)
        return bytes(reader.payload)

    def drain(self, quiet: float, deadline: float) -> bytes:
        """Read until nothing came for *quiet* seconds, and return the beginning of it."""
        dropped = bytearray()
        while (left := deadline - time.monotonic()) > 0:
            data = self._read_some(min(quiet, left))
            if not data and quiet <= left:
                return bytes(dropped)
            dropped += data[: _DRAINED - len(dropped)]
        raise TransportTimeoutError(f"bytes still came: {bytes(dropped[-60:])!r}")

    def clear(self, deadline: float) -> None:
        """Do a device clear."""
        self._set_timeout(_left(deadline))
        self._library.clear(self._session)

    # --- opening and closing -----------------------------------------------------------------------------------------

    def _prepare(self, resource: Resource) -> None:
        from pyvisa.resources import MessageBasedResource, SerialInstrument, TCPIPSocket

        if not isinstance(resource, MessageBasedResource):
            raise ValueError("it does not exchange messages")
        if not resource.session:  # VI_NULL (VPP-4.3, 3.3): pyvisa-sim "opens" what is not in its file
            raise ValueError("there is no such resource")
        self._library, self._session = resource.visalib, resource.session
        self._stream = isinstance(resource, (TCPIPSocket, SerialInstrument))
        self.has_clear = not isinstance(resource, TCPIPSocket)
        self.inside = look_inside(resource)
        self._stop_at_termination(self._stream)

    def _close(self, manager: SharedManager) -> None:
        resource, self._resource = self._resource, None
        self.inside.set_deadline(math.inf)
        try:
            if resource is not None:
                _close_resource(resource)
        finally:
            manager.give_back()

    # --- reading -----------------------------------------------------------------------------------------------------

    def _read_counted_block(self, deadline: float, reader: BlockReader, tell: Tell) -> bytes:
        """Read no byte too many, and then what ends the reply."""
        self._stop_at_termination(False)
        try:
            while not reader.is_complete:
                if reader.wanted is None:
                    raise BlockError("a block of unknown length (#0) ends by END, which this connection has not", b"#0")
                self.inside.set_deadline(deadline)
                if count := self.inside.receive(reader.writable()[:_BLOCK_CHUNK]):
                    reader.advance(count)
                else:
                    reader.feed(self._read(_BLOCK_CHUNK, reader.wanted, deadline)[0])
                _tell_of(reader, tell)
        finally:
            self._stop_at_termination(True)
        return self.read_message(deadline)

    def _read_block_to_end(self, deadline: float, reader: BlockReader, tell: Tell) -> bytes:
        most = self._config.max_block + AROUND_BLOCK
        ended = False
        while not ended and len(reader.surplus) <= AROUND_BLOCK:
            chunk, ended = self._read(_BLOCK_CHUNK, most, deadline)
            reader.feed(chunk)
            _tell_of(reader, tell)
        reader.finish()
        return reader.surplus.removesuffix(self._termination).rstrip(b"\n")

    def _read_some(self, wait: float) -> bytes:
        if (data := self.inside.take(wait)) is not None:
            self._milliseconds = 0  # the timeout may have been changed under us
            return data
        wait = max(wait, 0.001)
        if not self._stream:
            return self._read_or_nothing(_DRAINED, wait)
        # A read that times out does not say whether bytes came; only one that asks for a single byte does.
        first = self._read_or_nothing(1, wait)
        return first + self._read_or_nothing(_DRAINED, 0.001) if first else b""

    def _read_or_nothing(self, count: int, wait: float) -> bytes:
        from pyvisa.constants import StatusCode
        from pyvisa.errors import VisaIOError

        self._set_timeout(wait)
        try:
            return bytes(self._library.read(self._session, count)[0])
        except TimeoutError:
            return b""
        except VisaIOError as error:
            if error.error_code != StatusCode.error_timeout:
                raise
            return b""

    def _read(self, chunk_size: int, most: int, deadline: float) -> tuple[bytes, bool]:
        """Return some bytes, *most* at most, and whether VISA says that a message, or a line of it, ends with them."""
        from pyvisa.constants import StatusCode

        count = self.inside.count_to_ask(chunk_size, most)
        self._set_timeout(_left(deadline))
        chunk, status = self._library.read(self._session, count)
        return chunk, status != StatusCode.success_max_count_read

    def _set_timeout(self, seconds: float) -> None:
        """Give the next call all the time that is left, never a slice: pyvisa-py drops the bytes when time runs out."""
        from pyvisa.constants import ResourceAttribute

        self.inside.set_deadline(time.monotonic() + seconds)
        if (milliseconds := _milliseconds(seconds)) != self._milliseconds:
            self._library.set_attribute(self._session, ResourceAttribute.timeout_value, milliseconds)
            self._milliseconds = milliseconds

    def _stop_at_termination(self, stop: bool, termination: bytes = b"") -> None:
        from pyvisa.constants import ResourceAttribute

        library, session = self._library, self._session
        library.set_attribute(session, ResourceAttribute.termchar, (termination or self._termination)[-1])
        library.set_attribute(session, ResourceAttribute.termchar_enabled, stop)


def _tell_of(reader: BlockReader, tell: Tell) -> None:
    if reader.received:
        tell(reader.received, reader.size)


def _left(deadline: float) -> float:
    if (left := deadline - time.monotonic()) <= 0:
        raise TransportTimeoutError("no time was left for the rest of it")
    return left


def _milliseconds(seconds: float) -> int:
    # 0 would mean VI_TMO_IMMEDIATE (VPP-4.3 table 3.6.1)
    return max(1, math.ceil(1000 * min(seconds, _LONGEST)))


def _close_resource(resource: Resource) -> None:
    library, session = resource.visalib, resource.session
    try:
        resource.close()
    except Exception as error:  # noqa: BLE001 - whatever a library raises here, the session must not stay open
        _log.info("%s: could not be closed in order: %s", resource, error)
        with contextlib.suppress(Exception):
            library.close(session)
        resource.session = None
    finally:
        forget(library, session)
