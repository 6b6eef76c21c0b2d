"""What happened in the demo, each figure counted by somebody who was not the one to be checked.

Replies are counted by the instruments' log, rows by the file, publications by the drivers that made them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import attrs
from rich.console import Console
from rich.table import Table

from trio_daq.cli.evidence import Event
from trio_daq.lifecycle import DualRuntimeManager
from trio_daq.recording import open_run
from trio_daq.sim import LogEntry, replies_by_tag


@attrs.frozen(kw_only=True)
class LineSummary:
    """One instrument's share.

    Attributes:
        name: ``"stage"`` or ``"meter"``.
        exchanges: Questions that the instrument answered, by owner.
        late: Answers that the instrument gave late on purpose.
        cancelled: Askers who left before the answer.
        wrong: Replies that reached a driver and are not what the instrument answered to its question.
        hand_overs: How often the line went from one owner to another.
        longest_wait: Seconds.
    """

    name: str
    exchanges: dict[str, int]
    late: int
    cancelled: int
    wrong: int
    hand_overs: int
    longest_wait: float


@attrs.frozen(kw_only=True)
class DemoSummary:
    """The whole demo.

    Attributes:
        lines: Each instrument's share.
        published: Readings that the drivers say they published.
        acknowledged: Readings that the recorder acknowledged.
        rows: Rows that the run file holds.
        run_file: The run file.
    """

    lines: tuple[LineSummary, ...]
    published: int
    acknowledged: int
    rows: int
    run_file: Path

    @property
    def is_right(self) -> bool:
        """Whether no reply went astray and no reading was lost."""
        return not any(line.wrong for line in self.lines) and self.published == self.acknowledged == self.rows

    @classmethod
    def gather(cls, manager: DualRuntimeManager, evidence: list[Event], log: list[LogEntry]) -> Self:
        """Count everything after the lab has stopped."""
        assert manager.recorder is not None
        with open_run(manager.recorder.path) as run:
            rows = sum(1 for _ in run.readings())
        waits = {line.name: line for line in manager.snapshot().lines}
        return cls(
            lines=tuple(
                _line(name, evidence, log, waits[name].hand_overs, waits[name].longest_wait)
                for name in ("stage", "meter")
            ),
            published=sum(event.outcome == "published" for event in evidence),
            acknowledged=manager.recorder.statistics().rows,
            rows=rows,
            run_file=manager.recorder.path,
        )


def _line(
    name: str, evidence: Iterable[Event], log: Iterable[LogEntry], hand_overs: int, longest_wait: float
) -> LineSummary:
    entries = [entry for entry in log if entry.instrument == name]
    answered = replies_by_tag(entries)
    seen = [event for event in evidence if event.line == name]
    return LineSummary(
        name=name,
        exchanges=dict(Counter(tag.rpartition("-")[0] for tag in answered)),
        late=sum(entry.fault == "late" for entry in entries),
        cancelled=sum(event.outcome == "cancelled" for event in seen),
        wrong=sum(event.outcome == "reply" and answered.get(event.tag) != event.reply for event in seen),
        hand_overs=hand_overs,
        longest_wait=longest_wait,
    )


def print_summary(console: Console, summary: DemoSummary, report: str) -> None:
    """Print it for a person."""
    table = Table("", *(line.name for line in summary.lines), title="what happened", title_justify="left")
    owners = sorted({owner for line in summary.lines for owner in line.exchanges})
    for owner in owners:
        table.add_row(f"exchanges of {owner}", *(str(line.exchanges.get(owner, 0)) for line in summary.lines))
    table.add_row("exchanges in all", *(str(sum(line.exchanges.values())) for line in summary.lines))
    table.add_row("hand-overs", *(str(line.hand_overs) for line in summary.lines))
    table.add_row("longest wait", *(f"{line.longest_wait * 1000:.0f} ms" for line in summary.lines))
    table.add_row("late replies met", *(str(line.late) for line in summary.lines))
    table.add_row("cancelled callers met", *(str(line.cancelled) for line in summary.lines))
    table.add_row("wrong replies", *(str(line.wrong) for line in summary.lines))
    console.print(table)
    console.print(
        f"readings: {summary.published} published by the drivers, {summary.acknowledged} acknowledged by the "
        f"recorder, {summary.rows} rows in the file",
        soft_wrap=True,
    )
    console.print(report, markup=False, soft_wrap=True)
    console.print(f"next: trio-daq show {summary.run_file}", markup=False, soft_wrap=True)
