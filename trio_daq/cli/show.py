"""``trio-daq show``."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from trio_daq.recording import open_run
from trio_daq.wire import printable


def show_run(path: Path) -> int:
    """Print what a run file holds, channel by channel, and whether the run ended well."""
    console = Console(highlight=False)
    with open_run(path) as run:
        channels = run.summary()
        started = datetime.fromtimestamp(run.started_ns / 1e9, UTC).astimezone()
        ended = "ended in order" if run.ended_well else "did not end in order, or is still being recorded"
        console.print(f"{path}: started {started:%Y-%m-%d %H:%M:%S %Z}, {ended}", markup=False, soft_wrap=True)
        table = Table("instrument", "channel", "rows", "readings", "last value", "unit")
        for channel in channels:
            last = channel.last_value
            table.add_row(
                printable(channel.instrument, 30),
                printable(channel.channel, 30),
                str(channel.rows),
                f"{channel.first_seq} to {channel.last_seq}",
                f"{last:.6g}" if isinstance(last, float) else f"{len(last)} values",
                printable(channel.unit, 12),
            )
        console.print(table)
        console.print(f"{sum(channel.rows for channel in channels)} rows", markup=False)
    return 0
