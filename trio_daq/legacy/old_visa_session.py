"""One VISA session as old code has it: it writes and reads bytes, and says neither that it asks nor when it is done.

So a write that asks takes the instrument, and the read of the whole reply gives it back. Where replies come to what
does not look like a question, which the first read without one shows, every write takes it from then on. What is never
read keeps the instrument for the time of a lease after the last call, no longer.

Invariants: what is read is the reply to the last question of this very session, in order and once; a reply that was not
read when the next question is asked is dropped, as an instrument drops it (IEEE 488.2-1992, 6.3.2.3).
"""

from __future__ import annotations

import random
import re
import threading

from trio_daq.legacy.hold import Hold
from trio_daq.legacy.host import DoorHost, Interruption, Job
from trio_daq.legacy.implicit_lease import ImplicitLease
from trio_daq.legacy.leased_instrument import LeasedInstrument, Piece, lease_instrument
from trio_daq.visa import VisaSessionManager, is_stream
from trio_daq.wire import definite_block_end, reply_rule

SHORTEST_LEASE = 5.0
"""Seconds for which an open question keeps the instrument at least, counted from the last call of the old code."""

_LONG = 4096
"""Who asks for so many bytes means as many as come, and does not know how many that will be."""
_MARK = re.compile(rb"[\r\n#]")
_LONGEST_HEAD = 11
"""Bytes: ``#``, a digit, and nine digits (IEEE 488.2-1992, 8.7.9)."""

_LEAST_TO_WRITE, _LEAST_TO_READ = 1.0, 0.05
"""Seconds that a call has, also where VISA means at once: here it goes through a queue."""

_SPREAD = 1.2
"""How many times longer a lease may be than it has to be."""


class OldVisaSession:
    """A session of old code on a shared session. Its calls block, and are for any thread but Trio's.

    All of them raise `DaqError`, and what *interruption* makes if the thread is to stop.

    Args:
        session: The shared session.
        host: Serves it.
        interruption: Makes the error by which a thread is told to stop.

    Attributes:
        timeout: Seconds that a call waits for the instrument.
    """

    def __init__(self, session: VisaSessionManager, host: DoorHost, interruption: Interruption) -> None:
        self.timeout = 2.0
        self._session = session
        self._host = host
        self._interruption = interruption
        self._is_answered = reply_rule(session.config.dialect)
        self._turn = threading.RLock()  # a script may use one session in two threads
        self._lease = ImplicitLease(
            host,
            session.resource,
            lambda: lease_instrument(session, host.owner, 2 * SHORTEST_LEASE),
            LeasedInstrument.verbs,
            patience=2 * SHORTEST_LEASE,  # whoever has it will have given it back by then
            linger=SHORTEST_LEASE,
            moment=0.0,
            interruption=interruption,
        )
        self._lock: Hold | None = None
        self._is_open = False  # a question, that is
        self._termination = session.config.read_termination.encode("latin-1")
        self._has_end = not is_stream(session.resource)
        self._came = bytearray()  # for this session alone, and not read yet

    def write(self, data: bytes) -> None:
        """Write *data*, and return when the instrument was given it."""
        with self._turn:
            asks = sum(self._is_answered(message.decode("latin-1")) for message in _messages(data))
            if not is_stream(self._session.resource):
                asks = min(asks, 1)  # one message is answered by one
            if asks:
                self.clear()
            timeout = max(self.timeout, _LEAST_TO_WRITE)
            job = Job("write", (data, timeout, asks), {}, timeout)
            self._is_open = self._is_open or asks > 0  # at once: it may be sent although this raises, as at a stop
            if self._lock is not None:
                self._lock.call(job)
            else:
                self._lease.linger = self._next_lease()
                self._lease.write(job, asks=min(asks, 1))

    def trigger(self) -> None:
        """Write ``*TRG``."""
        self.write(b"*TRG" + self._session.config.write_termination.encode("ascii"))

    def read_stb(self) -> int:
        """Return the status byte. A question that is open stays so."""
        with self._turn:
            job = Job("read_stb", (self.timeout,), {}, self.timeout)
            return int(self._lease.do(job) if self._lock is None else self._lock.call(job))

    def read(self, count: int, termination: bytes | None) -> tuple[bytes, bool]:
        """Return at most *count* bytes of a reply, and whether it was all.

        Args:
            count: Most bytes to return.
            termination: A byte behind which reading stops, if it is not None.
        """
        with self._turn:
            until = termination or (self._termination if count >= _LONG else b"")
            while True:
                if termination is not None and (at := self._came.find(termination, 0, count)) >= 0:
                    return self._take(at + 1), False
                if len(self._came) >= count:
                    return self._take(count), False
                if self._came and (self._has_end or (termination is None and until and self._came.endswith(until))):
                    return self._take(len(self._came)), True
                self._came += self._next_piece(count - len(self._came), until)

    def _take(self, count: int) -> bytes:
        data = bytes(self._came[:count])
        del self._came[:count]
        return data

    def clear(self) -> None:
        """Forget what was asked and what was answered. No command of anybody else is touched."""
        with self._turn:
            self._came.clear()
            if self._is_open:
                if self._lock is not None:
                    self._lock.call(Job("forget"))
                else:
                    self._lease.give_back()
            self._is_open = False  # last, as a KeyboardInterrupt may come anywhere

    def lock(self, timeout: float) -> None:
        """Have the instrument until `unlock`: nobody else's command comes between."""
        with self._turn:
            self.clear()
            hold = Hold(self._host, self._session.resource, self._interruption)
            owner = self._host.owner
            hold.enter(lambda: lease_instrument(self._session, owner, timeout), LeasedInstrument.verbs, timeout)
            self._lock = hold

    def unlock(self) -> None:
        """Give the instrument back, if it was locked."""
        with self._turn:
            lock, self._lock = self._lock, None
            failed, self._is_open = self._is_open, False
            if lock is not None:
                lock.leave(failed=failed)

    @property
    def is_locked(self) -> bool:
        """Whether it was locked."""
        return self._lock is not None

    def close(self) -> None:
        """Give up whatever it has."""
        self.unlock()
        self._lease.give_back()

    @property
    def _longest(self) -> float:
        return max(SHORTEST_LEASE, self.timeout)

    def _next_lease(self) -> float:
        # Two threads that wait for each other's instruments must not give them up at the same moment.
        return self._longest * random.uniform(1.0, _SPREAD)  # noqa: S311 - it keeps no secret

    def _next_piece(self, count: int, until: bytes) -> bytes:
        timeout = max(self.timeout, _LEAST_TO_READ)
        job = Job("read", (timeout, self._longest, count, until), {}, timeout)
        self._is_open = True
        piece: Piece
        if self._lock is not None:
            piece = self._lock.call(job)
        else:
            self._lease.linger = self._next_lease()
            piece = self._lease.read(job, lambda piece: piece.reply)
        self._is_open = piece.reply == "part"
        return piece.data


def _messages(data: bytes) -> list[bytes]:
    """Cut what is written at its line ends, but not at those inside a definite block."""
    messages, begin, at = [], 0, 0
    while (found := _MARK.search(data, at)) is not None:
        at = found.end()
        if found[0] == b"#":
            at = max(at, found.start() + definite_block_end(data[found.start() : found.start() + _LONGEST_HEAD]))
        else:
            messages.append(data[begin:at])
            begin = at
    messages.append(data[begin:])
    return [message for message in messages if message.strip()]
