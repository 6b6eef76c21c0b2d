"""What went wrong in a soak: the instrument's own log, joined with the notes of the owners, by nonce.

It asks the library nothing. Misrouted: what an owner got holds another's nonce, or the answer to a sync query. Doubled:
the instrument carried a command out twice. Lost: an exchange without a reply of its own, or a write that went well by
its owner's account and was not carried out, although it met no fault and followed upon no garbage and no line that
nobody asked for. Expired on the wire: the instrument saw a command of which its owner was told that it was not sent.

Among the faults is that the instrument's process did not run for a while, as its own log says, be it that somebody
stopped it or that the computer was busy. A deadline that covers the queue too may pass behind another's fault; that is
no loss, if it was waited out and the instrument had not answered by then.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence

import attrs
from notes import NONCE_DIGITS, Note, Notebook

from trio_daq.sim import LogEntry

_NONCE = re.compile(rf"n\d{{{NONCE_DIGITS}}}")
_SYNC_ANSWER = re.compile(r"\bs\d+")
_ON_ITS_WAY = 50_000_000
"""Nanoseconds in which a reply or an order reaches a process on a busy computer."""
_TIMER = 2_000_000
"""Nanoseconds by which clocks may differ about a deadline."""
_AFTERMATH = 1_000_000_000
"""Nanoseconds for which a fault may hold up those who ask after it: the connection is made anew."""
_TAKES_TIME = {"freeze", "restart", "deaf"}
_STAYS_ON_THE_LINE = {"garbage", "garbage_after", "unsolicited"}


@attrs.frozen
class Verdict:
    """The figures of one run.

    Attributes:
        exchanges: How many were begun.
        right: Of these, how many got exactly what the instrument answered to them.
        odd: Replies that name nobody else and yet are not what the instrument answered: a command sent back, garbage.
        misrouted: Exchanges that got another's reply.
        doubled: Nonces that the instrument saw more than once.
        lost: Exchanges without a reply, without an excuse.
        expired: Exchanges whose owner was told that they were not sent, and that the instrument saw all the same.
        excused: How many got no reply and met a fault, or followed upon one that stays on the line, or waited out
            their deadline behind one.
        unsent: How many were told that they were not sent.
        fired: Faults by kind.
    """

    exchanges: int
    right: int
    odd: int
    misrouted: tuple[Note, ...]
    doubled: tuple[str, ...]
    lost: tuple[Note, ...]
    expired: tuple[Note, ...]
    excused: int
    unsent: int
    fired: Counter[str]

    @property
    def is_clean(self) -> bool:
        """Whether nothing went astray."""
        return not (self.misrouted or self.doubled or self.lost or self.expired)


def judge(book: Notebook, entries: Iterable[LogEntry]) -> Verdict:
    """Return what the instrument's log says about the owners' notes."""
    log = _Log.read(book, entries)
    misrouted = tuple(note for note in book.notes if _is_foreign(note))
    without = [note for note in book.notes if not log.is_served(note) and not _is_foreign(note)]
    met = {note.group for note in book.notes if log.has_met_a_fault(note)}
    lost = tuple(note for note in without if note.group not in met and not log.had_no_chance(note))
    right = [note for note in book.notes if log.is_right(note)]
    times = Counter(log.commands)
    return Verdict(
        exchanges=len(book.notes),
        right=len(right),
        odd=sum(note.reply is not None for note in book.notes) - len(right) - len(misrouted),
        misrouted=misrouted,
        doubled=tuple(nonce for nonce, count in times.items() if count > 1),
        lost=lost,
        expired=tuple(note for note in book.notes if note.sent == "no" and note.nonce in times),
        excused=len(without) - len(lost),
        unsent=sum(note.sent == "no" for note in book.notes),
        fired=log.fired + book.seen + Counter(note.fault for note in book.notes if note.fault is not None),
    )


@attrs.frozen
class _Log:
    """The instrument's log, as questions are asked of it.

    Attributes:
        commands: Nonces of the commands that were carried out, in order.
        replies: What was answered in full to each nonce, and when.
        faults: What befell the answer to each nonce.
        when: When any fault fired.
        away: When the instrument did not work, or its owners did not: from, to.
        before: The nonce in front of each nonce.
        fired: Faults by kind.
    """

    commands: list[str]
    replies: dict[str, tuple[int, str]]
    faults: dict[str, str | None]
    when: list[int]
    away: list[tuple[int, int]]
    before: dict[str, str]
    fired: Counter[str]

    @classmethod
    def read(cls, book: Notebook, entries: Iterable[LogEntry]) -> _Log:
        entries = tuple(entries)
        commands = [nonce for entry in entries if entry.event == "command" for nonce in _NONCE.findall(entry.text)]
        faults = [entry for entry in entries if entry.event == "fault"]
        away = [*book.outages, *(_outage(entry) for entry in faults if entry.fault in _TAKES_TIME)]
        return cls(
            commands=commands,
            replies={entry.tag: (entry.t, entry.text) for entry in entries if entry.event == "reply" and entry.tag},
            faults={entry.tag: entry.fault for entry in faults if entry.tag is not None},
            when=sorted([entry.t for entry in faults] + [moment for outage in away for moment in outage]),
            away=away,
            before=dict(zip(commands[1:], commands, strict=False)),
            fired=Counter(entry.fault for entry in faults if entry.fault),
        )

    def is_served(self, note: Note) -> bool:
        """Whether a query got a reply of its own, or a write was carried out."""
        if note.reply == "":
            return note.nonce in self.before or note.nonce in self.commands[:1]
        return note.reply is not None and note.nonce in note.reply

    def is_right(self, note: Note) -> bool:
        """Whether what came back is exactly what the instrument answered."""
        if note.reply == "":
            return self.is_served(note)
        _, reply = self.replies.get(note.nonce, (0, None))
        return reply is not None and note.reply == (_payload(reply) if note.verb == "query_block" else reply)

    def has_met_a_fault(self, note: Note) -> bool:
        """Whether something befell just this exchange."""
        return (
            note.fault is not None
            or note.nonce in self.faults
            or self.faults.get(self.before.get(note.nonce, "")) in _STAYS_ON_THE_LINE
            or any(note.asked < end and begin < note.ended for begin, end in self.away)
        )

    def had_no_chance(self, note: Note) -> bool:
        """Whether its deadline passed while a fault of another held it up, before the instrument could answer it."""
        if note.error != "CommandTimeoutError" or note.timeout is None:
            return False
        answered_at, _ = self.replies.get(note.nonce, (note.ended, ""))
        return (
            note.ended - note.asked >= 1e9 * note.timeout - _TIMER
            and answered_at > note.ended - _ON_ITS_WAY
            and bisect_left(self.when, note.ended) > bisect_left(self.when, note.asked - _AFTERMATH)
        )


def report(title: str, verdict: Verdict, seconds: float) -> str:
    """Return the figures as lines of text."""
    faults = sum(verdict.fired.values())
    lines = [
        f"{title}: {verdict.exchanges} exchanges in {seconds:.1f} s, {verdict.exchanges / seconds:.0f}/s",
        f"  misrouted {len(verdict.misrouted)}, doubled {len(verdict.doubled)}, lost {len(verdict.lost)}",
        f"  told not sent {verdict.unsent}, of these on the wire {len(verdict.expired)}",
        f"  right {verdict.right}, odd {verdict.odd}, none with an excuse {verdict.excused}",
        f"  {faults} faults of {len(verdict.fired)} kinds",
    ]
    for kind, count in sorted(verdict.fired.items()):
        lines.append(f"    {kind:<14}{count:6}  {100 * count / verdict.exchanges:5.2f} % of exchanges")
    for name in ("misrouted", "lost", "expired"):
        notes: Sequence[Note] = getattr(verdict, name)
        lines += [f"  {name}: {note}" for note in notes[:5]]
    return "\n".join(lines)


def _is_foreign(note: Note) -> bool:
    if note.reply is None:
        return False
    return any(nonce != note.nonce for nonce in _NONCE.findall(note.reply)) or bool(_SYNC_ANSWER.search(note.reply))


def _payload(block: str) -> str:
    """Return the bytes of a definite block (IEEE 488.2-1992, 8.7.9)."""
    return block[2 + int(block[1]) :]


def _outage(fault: LogEntry) -> tuple[int, int]:
    """Return from when to when the instrument was away by this fault."""
    length = round(1e9 * float(fault.text.removesuffix(" s")))
    if fault.fault == "freeze":  # noted when it is over
        return fault.t - length, fault.t
    return fault.t - _ON_ITS_WAY, fault.t + length + _ON_ITS_WAY
