"""Have a line for a thread over several calls of it, though the thread does not say so.

Old code writes in one call and reads the reply in the next, and in between nobody else may write. It knows neither
ports nor sessions, only what a call meant: it wrote, it read, it looked, or it did something else.

The rule: whoever has written something that asks has the line until its reply is read, until it clears or closes, or
for `linger` seconds after its last write or read. If a reply is still due then, the block fails, and so the line is
made clean before its next owner. A read tells that what was written before it is answered, whatever it looked like:
from then on the line is kept after every write. (After a question it tells nothing: it is in vain, or too late.) What
is not kept is given back a moment later rather than at once, since only the next call of the thread says whether a
reply, or one more line of it, was expected. A write after a reply begins an exchange of its own, before which others
have their turn, and so does one after a write that raised: that may have been sent all the same.

A lease belongs to no thread for the lock order and for circles of waits: old code that asks one instrument and then
another must not be refused, and who waits in a circle waits for `linger` seconds at most.

Invariants: everything but the start of a call happens in the Trio thread; ``_term`` is the time for which it has the
line now, or None, and a term that was ended is never used again; while no call is at work, a term has a deadline.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import outcome
import trio

from trio_daq.errors import DoorInterruptedError
from trio_daq.legacy.host import DoorHost, Interruption, Job, Verbs

_T = TypeVar("_T")

_log = logging.getLogger("trio_daq.legacy")

_MOMENT = 0.02
"""Seconds. A thread makes its next call within microseconds, or some milliseconds where others compute."""

Reply: TypeAlias = Literal["whole", "enough", "part", "nothing"]
"""What a read has brought: a reply to its end, all that it asked for and perhaps all that there is, some, or none."""

_Kind: TypeAlias = Literal["write", "beside", "read", "clear", "other"]
_Settle: TypeAlias = Callable[["_Term", Any], None]
"""Told the result of a call, decides how long its term goes on."""


class ImplicitLease(Generic[_T]):
    """A line that a legacy object has whenever the rule above says so.

    It may be used by several threads, one call at a time, as the library's own object may.

    Args:
        host: Serves it.
        resource: What it is, for errors.
        acquire: Called in the Trio thread; makes the block that has the line. A block that fails leaves it dirty.
        verbs: Told what that block gives; returns what can be asked for.
        patience: Seconds that entering the block takes at most.
        linger: Seconds after the last write or read at which a line that was kept is given back.
        moment: Seconds for which it is kept after a write that is not answered, and after a whole reply; 0 where a
            reply tells its end.
        interruption: Makes the error by which a thread is told to stop.

    Attributes:
        linger: As above; it may be changed at any time.

    All calls raise what the job raises, what entering the block raises, what *interruption* makes, and
    `DoorClosedError` when the member has stopped. They never raise because the line was given back in between.
    """

    def __init__(
        self,
        host: DoorHost,
        resource: str,
        acquire: Callable[[], AbstractAsyncContextManager[_T]],
        verbs: Callable[[_T], Verbs],
        *,
        patience: float,
        linger: float,
        moment: float = _MOMENT,
        interruption: Interruption = DoorInterruptedError,
    ) -> None:
        self.linger = linger
        self._moment = moment
        self._host = host
        self._resource = resource
        self._acquire = acquire
        self._verbs = verbs
        self._patience = patience
        self._interruption = interruption
        self._is_answered = False
        self._is_telling = moment > 0  # where a reply does not tell its end, what listens at first means to go on so
        self._exchange = 0  # counted by the threads; what is written in one is not answered in another
        self._longest = 0.0
        self._term: _Term | None = None
        self._taking = trio.Lock()

    def write(self, job: Job, *, asks: int, goes_on: bool = False, beside: bool = False) -> Any:
        """Have *job* write, and keep the line if it is answered.

        Args:
            job: What to do.
            asks: How many questions it looks like, each of which has a reply; 0 for none.
            goes_on: It was a piece of a message, and the rest is to follow.
            beside: It can be written while a reply is due, and leaves that due, as the command that turns an output
                off after a read that was in vain or interrupted. If not, the line is made clean first.
        """
        is_beside = beside and not asks and not goes_on and not self._is_answered
        settle = self._after_beside if is_beside else functools.partial(self._after_write, asks, goes_on)
        try:
            return self._call(job, "beside" if is_beside else "write", settle)
        except BaseException:
            self._exchange += 1  # it may have been sent, and no reply to it is to be read after the next write
            raise

    def read(self, job: Job, brought: Callable[[Any], Reply]) -> Any:
        """Have *job* read, and give the line back if it has brought a whole reply.

        Args:
            job: What to do.
            brought: Told the result, says how much of a reply it is. After none, the next write finds a clean line.
        """
        return self._call(job, "read", functools.partial(self._after_read, brought))

    def look(self, job: Job) -> int:
        """Have *job* say how much there is to read: who looks expects a reply, but does not keep the line by that."""
        return int(self._call(job, "read", self._after_look))

    def do(self, job: Job) -> Any:
        """Have something done that is neither read nor written, on the line that there is or on one for the moment."""
        return self._call(job, "other", self._after_other)

    def clear(self, job: Job) -> None:
        """Have *job* throw away what has come, if it has the line, and give that back; dirty, if a reply is due."""
        if self._term is not None:
            self._call(job, "clear", lambda term, _: self._end(term))

    def give_back(self) -> None:
        """Give the line back, if there is one; dirty, if a reply is due. It does not wait, and any thread may call."""
        self._exchange += 1  # what was posted and is not done yet belongs to a term of its own
        self._host.tell(lambda: self._end(self._term))

    def _call(self, job: Job, kind: _Kind, settle: _Settle) -> Any:
        self._longest = max(self._longest, job.patience)  # another thread's call may be before this one
        patience = self._patience + job.patience + self._longest
        step = functools.partial(self._step, job, kind, settle, self._exchange)
        return self._host.post(self._resource, step, patience, interruption=self._interruption, heed=job.heed)

    # --- in the Trio thread ------------------------------------------------------------------------------------------

    async def _step(self, job: Job, kind: _Kind, settle: _Settle, exchange: int, done: Future[Any]) -> None:
        while True:
            if self._term is None and kind == "clear":
                done.set_result(None)
                return
            term = self._term or await self._take()
            async with term.turn:
                is_apart = kind == "write" or (kind == "beside" and not term.is_due)
                if is_apart and not term.joins:  # others may come in between two exchanges
                    term.is_due = term.is_due and not term.is_heard
                    self._end(term)
                if term.is_new:
                    term.exchange = exchange
                elif term.exchange != exchange and kind in ("write", "read"):
                    self._end(term)
                if not term.is_over and not term.idle.cancel_called:
                    done.set_result(await self._work(term, job, kind, settle))
                    return
            if self._term is term:
                self._term = None

    async def _work(self, term: _Term, job: Job, kind: _Kind, settle: _Settle) -> Any:
        term.deadline, term.idle.deadline = term.idle.deadline, math.inf
        if kind == "read" and not term.has_asked and self._is_telling:
            self._is_answered = True
        try:
            result = await term.verbs[job.verb](*job.arguments, **job.options)
        except TimeoutError:
            self._after_failure(term, kind)
            raise
        except Exception:
            term.is_due = term.is_due or term.wrote
            self._end(term)
            raise
        except BaseException:  # the thread was interrupted, or does not wait any more
            self._after_failure(term, kind)
            raise
        settle(term, result)
        return result

    async def _take(self) -> _Term:
        async with self._taking:
            if self._term is None:
                taking = _Taking()
                self._host.spawn(functools.partial(self._have, taking))
                try:
                    await taking.ended.wait()
                except BaseException:  # who was interrupted must not have it
                    taking.scope.cancel()
                    raise
                self._term = taking.result.unwrap()
            return self._term

    async def _have(self, taking: _Taking) -> None:
        """Be inside the block of a term, from being granted to being given back."""
        try:
            with taking.scope:
                async with self._acquire() as got:
                    term = _Term(self._verbs(got))
                    taking.end(outcome.Value(term))
                    with term.idle:
                        term.idle.deadline = trio.current_time() + self.linger
                        try:
                            await trio.sleep_forever()
                        finally:
                            term.is_over = True
                            if self._term is term:
                                self._term = None
                    if term.is_due:
                        raise _ReplyDueError
        except _ReplyDueError:
            _log.debug("%s: given back by %s with a reply still due", self._resource, self._host.owner)
        except Exception as error:  # noqa: BLE001 - it is raised where it was to be taken
            # Or else it was taken back, or lost: the thread's next call tells, or has no need to know.
            _log.debug("%s: %s had it until %s", self._resource, self._host.owner, error)
            taking.end(outcome.Error(error))
        finally:
            taking.ended.set()  # the host ends, and so does who waits

    def _after_write(self, asks: int, goes_on: bool, term: _Term, _: Any) -> None:
        self._is_telling = asks == 0
        term.wrote, term.is_heard = True, False
        term.open_questions += asks
        term.has_asked |= asks > 0 or self._is_answered
        term.is_due |= term.has_asked or goes_on
        term.goes_on, term.joins = goes_on, term.is_due
        self._keep(term, self.linger if term.is_due else self._moment)

    def _after_beside(self, term: _Term, result: Any) -> None:
        if term.is_due:
            self._keep(term, self.linger)
        else:
            self._after_write(0, False, term, result)

    def _after_read(self, brought: Callable[[Any], Reply], term: _Term, result: Any) -> None:
        reply = brought(result)
        moment = _MOMENT if reply == "enough" else self._moment
        if reply == "enough":  # to who only listens the rest may come at any time
            reply = "whole" if term.wrote and term.open_questions <= 1 else "part"
        if reply == "whole" and term.open_questions:
            term.open_questions -= 1
            reply = "part" if term.open_questions else "whole"
        if reply != "nothing":
            term.is_due, term.is_heard = term.wrote and reply == "part", True
        term.joins = term.goes_on
        if term.is_due or reply == "part":
            self._keep(term, self.linger)
        elif term.wrote:
            self._keep(term, moment)
        else:  # it listens only, and gets what comes while it does
            self._end(term)

    def _after_look(self, term: _Term, count: Any) -> None:
        if term.wrote and (count or not term.is_heard):
            term.is_due |= not term.is_heard
            term.joins = term.goes_on
            term.idle.deadline = max(term.deadline, term.used_at + self.linger)
        elif count and term.is_new:
            self._keep(term, _MOMENT)
        else:
            self._after_other(term, count)

    def _after_other(self, term: _Term, _: Any) -> None:
        if term.is_new:
            self._end(term)
        else:
            term.idle.deadline = term.deadline

    def _after_failure(self, term: _Term, kind: _Kind) -> None:
        term.is_due, term.is_heard, term.joins = term.wrote or kind in ("write", "beside"), False, False
        if term.is_due:
            self._keep(term, self.linger)
        else:
            self._end(term)

    @staticmethod
    def _keep(term: _Term, seconds: float) -> None:
        term.used_at = trio.current_time()
        term.idle.deadline = term.used_at + seconds

    def _end(self, term: _Term | None) -> None:
        if term is not None:
            term.is_over = True
            term.idle.cancel(reason="the line is given back")
            if self._term is term:
                self._term = None


class _Term:
    """One time for which it has the line.

    Attributes:
        verbs: What can be asked for.
        turn: Of its calls one is at work at a time.
        idle: Ends it by its deadline.
        deadline: That deadline, as it was when the call that is at work began.
        used_at: Trio time of the last write or read.
        wrote: Something was written in it.
        has_asked: Something that is answered was.
        open_questions: How many questions have had no reply yet.
        is_due: A reply, or the rest of one, may still come.
        is_heard: Since the last write something was read.
        goes_on: What was written last was a piece, and the rest is to follow.
        joins: The next write goes on in it. Otherwise it begins an exchange of its own, in a new one.
        is_over: It has been ended.
        exchange: The exchange whose calls it serves.
    """

    def __init__(self, verbs: Verbs) -> None:
        self.verbs = verbs
        self.turn = trio.Lock()
        self.idle = trio.CancelScope()
        self.deadline = math.inf
        self.used_at = -math.inf
        self.wrote = self.has_asked = self.is_due = self.is_heard = self.goes_on = self.is_over = False
        self.joins = True
        self.open_questions = self.exchange = 0

    @property
    def is_new(self) -> bool:
        """Whether nothing was written or read in it."""
        return self.used_at == -math.inf


class _Taking:
    """The wait for a term."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self.result: outcome.Outcome[_Term] = outcome.Error(RuntimeError("its host has ended"))

    def end(self, result: outcome.Outcome[_Term]) -> None:
        """Let who waits have *result*, if it is the first."""
        if not self.ended.is_set():
            self.result = result
            self.ended.set()


class _ReplyDueError(Exception):
    """The line is given back though a reply is due."""
