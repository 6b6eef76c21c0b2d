"""A lab on the terminal while it runs: who has which line, who waits, how fast, and the last values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import trio
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from trio_daq.data import Reading, Value
from trio_daq.lifecycle import DualRuntimeManager, LineSnapshot
from trio_daq.wire import printable

_PERIOD = 0.25
"""Seconds between two pictures: as fast as a person can read, and far below what the lab does."""


async def watch(manager: DualRuntimeManager, console: Console) -> None:
    """Draw *manager* until cancelled. Draws nothing where there is no terminal, or no more."""
    if console.is_terminal:
        with contextlib.suppress(OSError):  # it was closed
            await _draw(manager, console)
    await trio.sleep_forever()


async def _draw(manager: DualRuntimeManager, console: Console) -> None:
    last: dict[tuple[str, str], Reading] = {}
    exchanges: dict[str, int] = {}
    with (
        manager.distributor.subscribe("table", policy="latest") as newest,
        # Our own refresh: a thread of Rich's would write while we do.
        Live(console=console, auto_refresh=False, transient=True) as live,
    ):
        while True:
            for reading in newest.receive_nowait():
                last[reading.instrument, reading.channel] = reading
            lines = manager.snapshot().lines
            live.update(Group(_lines_table(lines, exchanges), _values_table(last.values())), refresh=True)
            exchanges = {line.name: sum(line.exchanges.values()) for line in lines}
            await trio.sleep(_PERIOD)


def _lines_table(lines: Iterable[LineSnapshot], before: dict[str, int]) -> Table:
    table = Table(
        "line", "owner", "held", "waiting", "state", "exchanges", "per s", title="lines", title_justify="left"
    )
    for line in lines:
        total = sum(line.exchanges.values())
        table.add_row(
            printable(line.name, 20),
            printable(line.owner, 20) if line.owner is not None else "-",
            f"{line.held_for * 1000:.0f} ms",
            printable(f"{len(line.waiting)}: {', '.join(line.waiting)}" if line.waiting else "-", 40),
            line.state,
            str(total),
            f"{(total - before.get(line.name, total)) / _PERIOD:.0f}",
        )
    return table


def _values_table(readings: Iterable[Reading]) -> Table:
    table = Table("instrument", "channel", "value", "reading", title="last values", title_justify="left")
    for reading in sorted(readings, key=lambda one: (one.instrument, one.channel)):
        table.add_row(
            printable(reading.instrument, 24),
            printable(reading.channel, 24),
            f"{_short(reading.value)} {printable(reading.unit, 12)}",
            str(reading.seq),
        )
    return table


def _short(value: Value) -> str:
    return f"{value:.6g}" if isinstance(value, float) else f"{len(value)} values"
