"""What went wrong in a soak: the instrument's own log, joined with the notes of the owners, by nonce.

It asks the library nothing. Misrouted: what an owner got holds another's nonce, or the answer to a sync query. Doubled:
the instrument carried a command out twice. Lost: an exchange without a reply of its own, although it met no fault and
followed upon no garbage and no line that nobody asked for. Among the faults is that the instrument's process did not
run for a while, as its own log says, be it that somebody stopped it or that the computer was busy.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import attrs
from notes import NONCE_DIGITS, Note, Notebook

from trio_daq.sim import LogEntry

_NONCE = re.compile(rf"n\d{{{NONCE_DIGITS}}}")
_SYNC_ANSWER = re.compile(r"\bs\d+")
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
        excused: How many got no reply and met a fault, or followed upon one that stays on the line.
        fired: Faults by kind.
    """

    exchanges: int
    right: int
    odd: int
    misrouted: tuple[Note, ...]
    doubled: tuple[str, ...]
    lost: tuple[Note, ...]
    excused: int
    fired: Counter[str]

    @property
    def is_clean(self) -> bool:
        """Whether nothing went astray."""
        return not (self.misrouted or self.doubled or self.lost)


def judge(book: Notebook, entries: Iterable[LogEntry]) -> Verdict:
    """Return what the instrument's log says about the owners' notes."""
    entries = tuple(entries)
    faults = {entry.tag: entry.fault for entry in entries if entry.event == "fault" and entry.tag is not None}
    commands = [entry.tag for entry in entries if entry.event == "command" and entry.tag is not None]
    answered = {entry.tag: entry.text for entry in entries if entry.event == "reply" and entry.tag is not None}
    before = dict(zip(commands[1:], commands, strict=False))
    away = [*book.outages, *_stalls(entries)]

    def is_excused(note: Note) -> bool:
        return (
            note.fault is not None
            or note.nonce in faults
            or faults.get(before.get(note.nonce)) in _STAYS_ON_THE_LINE
            or any(note.asked < end and begin < note.ended for begin, end in away)
        )

    def is_own(note: Note) -> bool:
        return note.reply is not None and note.nonce in note.reply

    misrouted = tuple(note for note in book.notes if _is_foreign(note))
    without = [note for note in book.notes if not is_own(note) and not _is_foreign(note)]
    right = [note for note in book.notes if note.reply is not None and note.reply == answered.get(note.nonce)]
    return Verdict(
        exchanges=len(book.notes),
        right=len(right),
        odd=sum(note.reply is not None for note in book.notes) - len(right) - len(misrouted),
        misrouted=misrouted,
        doubled=tuple(tag for tag, times in Counter(commands).items() if times > 1),
        lost=tuple(note for note in without if not is_excused(note)),
        excused=sum(is_excused(note) for note in without),
        fired=_fired(book, entries),
    )


def report(title: str, verdict: Verdict, seconds: float) -> str:
    """Return the figures as lines of text."""
    faults = sum(verdict.fired.values())
    lines = [
        f"{title}: {verdict.exchanges} exchanges in {seconds:.1f} s, {verdict.exchanges / seconds:.0f}/s",
        f"  misrouted {len(verdict.misrouted)}, doubled {len(verdict.doubled)}, lost {len(verdict.lost)}",
        f"  right {verdict.right}, odd {verdict.odd}, none with an excuse {verdict.excused}",
        f"  {faults} faults of {len(verdict.fired)} kinds",
    ]
    for kind, count in sorted(verdict.fired.items()):
        lines.append(f"    {kind:<14}{count:6}  {100 * count / verdict.exchanges:5.2f} % of exchanges")
    for name in ("misrouted", "lost"):
        notes: Sequence[Note] = getattr(verdict, name)
        lines += [f"  {name}: {note}" for note in notes[:5]]
    return "\n".join(lines)


def _is_foreign(note: Note) -> bool:
    if note.reply is None:
        return False
    return any(nonce != note.nonce for nonce in _NONCE.findall(note.reply)) or bool(_SYNC_ANSWER.search(note.reply))


def _stalls(entries: Sequence[LogEntry]) -> list[tuple[int, int]]:
    lengths = [(entry.t, float(entry.text.removesuffix(" s"))) for entry in entries if entry.fault == "freeze"]
    return [(end - round(seconds * 1e9), end) for end, seconds in lengths]


def _fired(book: Notebook, entries: Sequence[LogEntry]) -> Counter[str]:
    return Counter(entry.fault for entry in entries if entry.event == "fault" and entry.fault) + Counter(
        note.fault for note in book.notes if note.fault is not None
    )
