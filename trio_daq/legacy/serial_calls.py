"""The calls of pyserial on a serial port that a thread has: in the Trio thread, but with pyserial's results.

A read that runs out of time returns what came and raises nothing. One that has no time limit is bounded all the same.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Awaitable
from typing import Protocol

import attrs
import trio

from trio_daq.errors import ExchangeTimeoutError
from trio_daq.legacy.host import Verbs
from trio_daq.legacy.implicit_lease import Reply
from trio_daq.serialport import SerialGuard

LONGEST = 60.0
"""Seconds after which a read ends that has no time limit of its own, and a line that goes on and on."""


class _Step(Protocol):
    """A read of the guard."""

    def __call__(self, *, timeout: float) -> Awaitable[bytes]:
        """Begin it."""


@attrs.frozen
class Came:
    """What a read has brought.

    Attributes:
        data: The bytes.
        reply: How much of a reply they are.
    """

    data: bytes
    reply: Reply


class SerialCalls:
    """What pyserial's object can do, on a guard.

    Args:
        guard: The port.
        terminator: What ends a reply.
        own_timeout: Seconds in which the instrument ought to answer.

    With a *timeout* of 0 a read takes what has come; with None it waits for `LONGEST`, and then raises
    `ExchangeTimeoutError`.
    """

    def __init__(self, guard: SerialGuard, terminator: bytes, own_timeout: float) -> None:
        self._guard = guard
        self._terminator = terminator
        self._own_timeout = own_timeout
        self._is_in_vain = False  # the last read, or it was given up

    def verbs(self) -> Verbs:
        """Return what can be asked for."""
        guard = self._guard
        return {
            "write": self.write,
            "read": self.read,
            "read_until": self.read_until,
            "read_line": self.read_line,
            "count": self.count,
            "clear": self.clear,
            "send_break": guard.send_break,
            "modem_lines": guard.modem_lines,
            "set_modem_lines": guard.set_modem_lines,
            "set_baud_rate": guard.set_baud_rate,
        }

    async def write(self, data: bytes, timeout: float | None) -> None:
        """Write all of *data*: each question in it by itself, since the port counts what is to be answered."""
        if b"?" not in data and self._is_in_vain:  # it need not wait until the line is clean
            await self._guard.write_only(data, timeout=timeout)
            return
        self._is_in_vain = False
        for piece in one_by_one(data):
            await self._guard.write_all(piece, timeout=timeout)

    async def read(self, size: int, timeout: float | None) -> Came:
        """Read *size* bytes."""
        if timeout == 0:
            return await self._take(size, size)
        return await self._in_time(functools.partial(self._guard.read_exactly, size), size, timeout)

    async def read_until(self, expected: bytes, size: int | None, timeout: float | None) -> Came:
        """Read up to and including *expected*, or *size* bytes."""
        if timeout == 0:
            return await self._take(1, size, expected)  # so pyserial has it
        step = functools.partial(self._guard.read_until, expected, most=size)
        return await self._in_time(step, size, timeout, expected)

    async def read_line(self, size: int | None, timeout: float | None) -> Came:
        """Read a line, or *size* bytes of it. As in pyserial, *timeout* is for each byte."""
        if timeout == 0:
            return await self._take(self._first_message(b"\n"), size, b"\n")
        step = functools.partial(self._guard.read_until, b"\n", most=size)
        return await self._in_time(step, size, timeout, b"\n", for_each_byte=True)

    async def count(self) -> int:
        """Return how many bytes have come and were not read."""
        return len(self._guard.peek())

    async def clear(self) -> None:
        """Throw away what has come. It counts as read: if a reply came, none is due any more."""
        await self._take(len(self._guard.peek()), None)

    async def _in_time(
        self,
        step: _Step,
        size: int | None,
        timeout: float | None,
        expected: bytes = b"",
        *,
        for_each_byte: bool = False,
    ) -> Came:
        """Take *step*, or what has come of it when its time is up.

        Without a time limit the instrument is not assumed to take long: so that a line which was left is clean again
        in time, each step has the time in which the instrument ought to answer.
        """
        self._is_in_vain = True
        began, before = trio.current_time(), 0
        deadline = began + (LONGEST if timeout is None else timeout)
        while True:
            left = max(0.0, deadline - trio.current_time())
            try:
                data = await step(timeout=min(left, self._own_timeout) if timeout is None else left)
            except ExchangeTimeoutError:
                now, count = trio.current_time(), len(self._guard.peek())
                if timeout is not None and for_each_byte and count > before and now < began + LONGEST:
                    deadline, before = now + timeout, count
                elif now >= deadline:
                    if timeout is None:
                        raise
                    return await self._take(count, size, expected)
            else:
                self._is_in_vain = False
                return self._came(data, size, expected)

    async def _take(self, count: int, size: int | None, expected: bytes = b"") -> Came:
        """Take what has come, *count* bytes at most, without waiting."""
        there = min(count, len(self._guard.peek()), math.inf if size is None else size)
        return self._came(await self._guard.read_exactly(int(there)) if there else b"", size, expected)

    def _first_message(self, expected: bytes) -> int:
        came = self._guard.peek()
        found = came.find(expected)
        return len(came) if found < 0 else found + len(expected)

    def _came(self, data: bytes, size: int | None, expected: bytes) -> Came:
        reply: Reply = "part"
        if not data:
            reply = "nothing"
        elif self._guard.peek():  # several lines, or two replies
            reply = "part"
        elif data.endswith(self._terminator) or (expected and data.endswith(expected)):
            reply = "whole"
        elif len(data) == size:
            reply = "enough"
        return Came(data, reply)


def one_by_one(data: bytes) -> list[bytes]:
    """Cut *data* into pieces with one question each; without any it is one piece."""
    pieces = [b""]
    for line in data.splitlines(keepends=True):
        if b"?" in line and b"?" in pieces[-1]:
            pieces.append(line)
        else:
            pieces[-1] += line
    return pieces
