"""IEEE 488.2 blocks: binary data that says how long it is.

A definite block is ``#``, one digit, that many digits that tell the number of bytes, the bytes (IEEE 488.2-1992
§8.7.9). Rohde & Schwarz write a length of ten digits or more as ``#(1000000000)``. An indefinite one is ``#0``, the
bytes, and a newline sent with END (§8.7.10): only the transport knows where it ends. The reader does no I/O, and
allocates what a block announces once it is known to be allowed.

Invariant: what a reader holds depends on the bytes that came, not on how they were chunked.
"""

from __future__ import annotations

import re
import string

from trio_daq.wire.text import printable

Buffer = bytes | bytearray | memoryview

_PREFIX_BYTES = frozenset((string.ascii_letters + string.digits + ":*_ ").encode())
"""What a response header and the space after it are made of (IEEE 488.2 §8.4): ``:CURVE ``, with HEADER ON."""
_LONGEST_PREFIX = 64
_DEFINITE = re.compile(rb"[A-Za-z0-9:*_ ,]{0,64}#([1-9])")
_LONGEST_NUMBER = 20
"""Digits in ``#(…)``; no instrument has a block of 10²⁰ bytes."""
_SCRATCH = 64 * 1024
_KEPT = 1024


class BlockFormatError(ValueError):
    """What came is no block, or not the block that it announced.

    Attributes:
        data: The first of the bytes that came, at most 1 KiB.
    """

    def __init__(self, message: str, data: bytes) -> None:
        super().__init__(message)
        self.data = data


def encode_block(data: Buffer) -> bytes:
    """Return *data* as a definite block.

    Raises:
        ValueError: If it has 10⁹ bytes or more, for which the standard has no form.

    Example:
        >>> encode_block(b"a;b?")
        b'#14a;b?'
    """
    view = memoryview(data)
    digits = str(view.nbytes).encode()
    if len(digits) > 9:
        raise ValueError(f"a block has at most 999999999 bytes, not {view.nbytes}")
    return b"".join((b"#%d" % len(digits), digits, view))


def definite_block_end(reply: Buffer) -> int:
    r"""Return how many bytes of *reply* belong to the definite block with which it begins: all that will come of it.

    0 if it begins with none, or if not all digits of its length have come yet.

    Example:
        >>> definite_block_end(b"CURVE #14a\nb?\n"), definite_block_end(b"+1.0E+00\n"), definite_block_end(b"#2")
        (13, 0, 0)
    """
    if (head := _DEFINITE.match(reply)) is None:
        return 0
    digits = bytes(reply[head.end() : head.end() + int(head[1])])
    if len(digits) < int(head[1]) or not digits.isdigit():
        return 0
    return head.end() + len(digits) + int(digits)


class BlockReader:
    r"""One block, from the bytes of a reply as they come.

    Bytes are given to `feed`, or received into `writable` and then counted by `advance`, which copies nothing and never
    takes a byte too many. After an error the reader is of no more use.

    Args:
        max_size: Most bytes that the payload may have.

    Attributes:
        size: Bytes that the block announced; None until that is known, and for an indefinite one.
        received: Bytes of the payload that came; in an indefinite block until its end, with the newline.
        is_complete: Whether the whole payload came.
        surplus: What was fed after the block, mostly a newline.

    Raises:
        ValueError: If *max_size* is not at least 1.

    Example:
        >>> reader = BlockReader(max_size=1000)
        >>> reader.feed(b":CURVE #1"); reader.wanted
        1
        >>> reader.feed(b"4ab"); reader.size, reader.received, reader.wanted
        (4, 2, 2)
        >>> reader.feed(b"cd\n"); reader.is_complete, bytes(reader.payload), reader.surplus
        (True, b'abcd', b'\n')
    """

    def __init__(self, max_size: int) -> None:
        if max_size < 1:
            raise ValueError(f"a block has at least 1 byte to hold, so max_size cannot be {max_size!r}")
        self._max_size = max_size
        self._head = bytearray()
        self._in_head = True
        self._payload = bytearray()
        self._scratch = memoryview(b"")
        self.size: int | None = None
        self.received = 0
        self.is_complete = False
        self.surplus = b""

    @property
    def prefix(self) -> bytes:
        """What stood before the ``#``: nothing, or a response header with its space."""
        return bytes(self._head.partition(b"#")[0])

    @property
    def wanted(self) -> int | None:
        """How many more bytes are certain to be needed, at least; None in an indefinite block, 0 after the end."""
        if self._in_head:
            return self._wanted_in_head()
        if self.is_complete:
            return 0
        return None if self.size is None else self.size - self.received

    @property
    def payload(self) -> bytearray:
        """The bytes of the block, not copied.

        Raises:
            ValueError: If it is not complete.
        """
        if not self.is_complete:
            raise ValueError(f"the block is not complete: {self.received} bytes came")
        return self._payload

    def feed(self, data: Buffer) -> None:
        """Take bytes that came.

        Raises:
            BlockFormatError: If they make no block, or one that is larger than allowed.
        """
        view = memoryview(data).cast("B")
        at = 0
        while self._in_head and at < len(view):
            at += 1
            self._take_head(view[at - 1], view[at:])
        rest = view[at:]
        if self.is_complete:
            self.surplus += bytes(rest)
        elif self.size is not None:
            mine = rest[: self.size - self.received]
            self.writable()[: len(mine)] = mine
            self._count(len(mine))
            self.surplus += bytes(rest[len(mine) :])
        elif rest:
            self._payload += rest
            self._count(len(rest))

    def writable(self) -> memoryview:
        """Return where the next bytes may be received into; empty only if the block is complete.

        It is valid until the next call of `feed` or `advance`, and never reaches past the end of a definite block.
        """
        if self.size is not None:
            return memoryview(self._payload)[self.received :]
        if self.is_complete:
            return memoryview(b"")
        self._scratch = memoryview(bytearray(_SCRATCH if self.wanted is None else self.wanted))
        return self._scratch

    def advance(self, count: int) -> None:
        """Say that *count* bytes were received into `writable`.

        Raises:
            ValueError: If there was no room for them.
            BlockFormatError: As `feed`.
        """
        room = len(self._scratch) if self.size is None else self.size - self.received
        if not 0 <= count <= room:
            raise ValueError(f"{count} bytes cannot have been received into {room}")
        if self.size is not None:
            self._count(count)
        else:
            self.feed(self._scratch[:count])

    def finish(self) -> None:
        """Say that the transport told the end of the message. An indefinite block is complete then.

        Raises:
            BlockFormatError: If the block is not: its header lied, or there was none.
        """
        if self.is_complete:
            return
        if self._in_head:
            raise self._error("the message ended before a block began")
        if self.size is not None:
            raise self._error(f"the block announced {self.size} bytes, and the message ended after {self.received}")
        if self._payload.endswith(b"\n"):
            del self._payload[-1]
        self._check_size(len(self._payload))
        self.received = len(self._payload)
        self.is_complete = True

    def _take_head(self, byte: int, rest: memoryview) -> None:
        head = self._head
        head.append(byte)
        mark = head.find(b"#")
        if mark < 0:
            if byte not in _PREFIX_BYTES or len(head) > _LONGEST_PREFIX:
                raise self._error("what came is no block", rest)
        elif mark == len(head) - 1:
            return
        elif head[mark + 1] == ord("0"):
            self._in_head = False
        elif (number := self._number(head[mark + 1 :], rest)) is not None:
            self._in_head = False
            self._check_size(number, rest)
            self._payload = bytearray(number)
            self.size = number

    def _number(self, form: bytearray, rest: memoryview) -> int | None:
        """Return the size that *form*, which follows the ``#``, tells; None if more of it has to come."""
        in_brackets = form.startswith(b"(")
        closed = in_brackets and form.endswith(b")")
        digits = form[1:-1] if closed else form[1:]
        well_formed = digits.isdigit() or (not digits and not closed)
        if not (in_brackets or form[:1].isdigit()) or not well_formed or len(digits) > _LONGEST_NUMBER:
            raise self._error("what came is no block", rest)
        whole = closed if in_brackets else len(digits) == int(form[:1])
        return int(digits) if whole else None

    def _wanted_in_head(self) -> int:
        form = self._head.partition(b"#")[2]
        if form.startswith(b"("):
            return 2 if len(form) == 1 else 1
        if form:
            return int(form[:1]) - len(form) + 1
        return 1 if b"#" in self._head else 2

    def _count(self, count: int) -> None:
        self.received += count
        if self.size is None:
            self._check_size(self.received - 1)  # the last byte may be the newline after it
        self.is_complete = self.received == self.size

    def _check_size(self, size: int, rest: memoryview | None = None) -> None:
        if size > self._max_size:
            raise self._error(
                f"the block has {size} bytes, and {self._max_size} are allowed; max_block raises that", rest
            )

    def _error(self, message: str, rest: memoryview | None = None) -> BlockFormatError:
        data = bytes(self._head + self._payload[: min(self.received, _KEPT)] + bytes((rest or b"")[:_KEPT]))[:_KEPT]
        return BlockFormatError(f"{message}: {printable(data, 60)!r}", data)
