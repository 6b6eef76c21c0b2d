"""The road by which a line is made safe whatever it is in the middle of.

It takes the line from whoever has it, says what the settings say, and leaves the line dirty, so that the next owner
finds it made clean as after any unfinished exchange. It waits for nobody longer than its time.

Invariant: while it is under way, nobody else reads from or writes to the line, and nobody in the queue is granted it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from trio_daq.errors import LineOpenError
from trio_daq.serialport.line import SerialLine
from trio_daq.serialport.state import LineEvent, LineState
from trio_daq.sharing import Lease, SafeStateResult, SafeTalk
from trio_daq.wire import Exchange

_log = logging.getLogger("trio_daq.serialport")

EMERGENCY = "safe state"
"""Its name as an owner."""

SAFE_TIMEOUT = 1.0
"""Seconds in which a line is made safe where nobody names another time."""

_TRIES = 2
"""How often it is begun: a line that went away unnoticed says so at the first byte."""


class Emergency:
    """The emergency road of one port.

    Args:
        lease: Whose turn it is.
        line: What is to be made safe.

    Attributes:
        result: What became of the last attempt, None if there was none.
    """

    def __init__(self, lease: Lease, line: SerialLine) -> None:
        self.result: SafeStateResult | None = None
        self._lease = lease
        self._line = line
        self._under_way: trio.Event | None = None
        self._preparation: trio.CancelScope | None = None
        self._prepared = trio.lowlevel.ParkingLot()
        self._is_due = False
        self._grants = 0

    def has_the_last_word(self) -> bool:
        """Return whether nobody has had the line since it was made safe."""
        return self.result is not None and self._grants == self._count_grants()

    @contextmanager
    def ends(self, preparation: trio.CancelScope) -> Iterator[None]:
        """Let an emergency cancel *preparation*, in which the line is opened or made clean for an owner."""
        self._preparation = preparation
        try:
            yield
        finally:
            self._preparation = None
            self._prepared.unpark_all()

    async def make_safe(self, timeout: float) -> SafeStateResult:
        """Take the line from whoever has it and make it safe within *timeout* seconds. To be done to the end.

        Where that is under way already, wait for it instead.
        """
        if self._under_way is None:
            await self._seize_and_talk(trio.current_time() + timeout)
        else:
            await self._under_way.wait()
        assert self.result is not None
        return self.result

    async def follow_loss(self) -> None:
        """Open the line; if it went away before, make it safe now that it is back. For whoever has the line.

        Cancelled, it is done again by the next one.
        """
        line = self._line
        if line.state is not LineState.LOST:
            return
        self._is_due = self._is_due or bool(line.opens and line.config.safe_state)
        await line.open()
        if self._is_due:
            await self._talk(trio.current_time() + SAFE_TIMEOUT)
            self._is_due = False

    async def _seize_and_talk(self, deadline: float) -> None:
        self._under_way = ended = trio.Event()
        claim = self._lease.seize(EMERGENCY, "the line is made safe")
        try:
            with trio.move_on_at(deadline):
                while self._preparation is not None:
                    self._preparation.cancel(reason="trio_daq: the line is made safe")
                    await self._prepared.park()
            if self._preparation is None:
                await self._talk(deadline)
            else:
                self.result = SafeStateResult("failed", "its driver does not come back from opening it")
        finally:
            self._under_way = None
            self._grants = self._count_grants()
            ended.set()
            claim.release()

    def _count_grants(self) -> int:
        return sum(self._lease.statistics().grants.values())

    async def _talk(self, deadline: float) -> None:
        line = self._line
        talk = SafeTalk(line.config.safe_state, deadline)
        road = _Road(line)
        with trio.CancelScope(shield=True, deadline=deadline):
            for _ in range(_TRIES if line.config.safe_state else 0):
                try:
                    # Half of the time, since an opening that is cancelled needs some to be undone.
                    with trio.move_on_after((deadline - trio.current_time()) / 2):
                        await line.open()
                    if line.state is not LineState.LOST:
                        await talk.run(road.write, road.read)
                    break
                except trio.BrokenResourceError as error:
                    talk.trouble = f"it went away: {error}"
                    await line.hang_up()
                except trio.ClosedResourceError:
                    talk.trouble = "it is closed"
                    break
                except LineOpenError as error:
                    talk.trouble = str(error)
                    break
        self.result = result = talk.result()
        if line.state is LineState.UNUSABLE:
            line.note(LineEvent.RETRIED)
        due = trio.current_time() + line.config.timeout if result.outcome == "failed" else -math.inf
        line.note(LineEvent.INTERRUPTED, unsent=road.unsent, due=due)
        level = logging.ERROR if result.outcome == "failed" else logging.INFO
        _log.log(level, "%s: made safe: %s", line.config.path, result)


class _Road:
    """Bytes to a line that is in any state, and lines back from it.

    Attributes:
        unsent: What would end a command that was half written.
    """

    def __init__(self, line: SerialLine) -> None:
        self.unsent = b""
        self._line = line

    async def write(self, step: Exchange) -> None:
        line, config, stream = self._line, self._line.config, self._line.stream
        # Half a command would swallow ours. It is ended, not finished: the rest of it may be what must not happen.
        ending = line.cut_short() or self.unsent
        self.unsent = b""
        if config.min_gap:
            await trio.sleep_until(line.last_byte_at + config.min_gap)
        line.discard_input()
        data = ending + (step.write or step.query) + config.write_terminator
        line.trace.note(EMERGENCY, "write", data)
        rest = memoryview(data)
        while rest:
            if count := stream.write_nowait(rest[:1] if config.char_delay else rest):
                rest = rest[count:]
                self.unsent = config.write_terminator if rest else b""
            if count and config.char_delay:
                await trio.sleep(config.char_delay)
            elif rest:
                await stream.wait_writable()
        line.last_byte_at = trio.current_time()

    async def read(self, deadline: float) -> bytes | None:
        line, end = self._line, self._line.config.read_terminator
        while True:
            while (message := line.buffer.take_until(end)) is not None:
                if not line.unsolicited.claims(message):
                    line.trace.note(EMERGENCY, "read", message)
                    line.last_byte_at = trio.current_time()
                    return message[: -len(end)]
            if trio.current_time() >= deadline:
                return None
            with trio.move_on_at(deadline):
                await line.stream.wait_readable()
            line.buffer.feed(line.stream.read_nowait())
