"""``trio-daq run`` and ``trio-daq check``."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path

import trio
from rich.console import Console

from trio_daq.cli.live_table import watch
from trio_daq.config import DualConfig, check_drivers
from trio_daq.lifecycle import EXIT_UNSAFE, DualRuntimeManager, ShutdownReport, make_safe_from_cold, run


def run_config(path: Path, *, exits: bool = False) -> int:
    """Run the lab of a file, show it live, and print how it stopped and where the recording is.

    Args:
        path: The file.
        exits: As `run` has it.
    """
    config = DualConfig.load_from_file(path)
    os.environ.setdefault("PYVISA_LIBRARY", "@trio_daq")  # so scripts that name no library share too
    logging.getLogger("trio_daq").setLevel(config.application.log_level.upper())
    console = Console()
    recorded: list[Path] = []

    async def until_ended(manager: DualRuntimeManager) -> None:
        if manager.recorder is not None:
            recorded.append(manager.recorder.path)
        _say(console, f"{config.application.name} runs; Ctrl-C stops it in order.")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, manager, console)
            await manager.wait_all_ended()
            nursery.cancel_scope.cancel()

    def show(report: ShutdownReport) -> None:
        _say(console, str(report))
        for file in recorded:
            _say(console, f"recorded: {file}\nnext: trio-daq show {file}", soft_wrap=True)
        for line in report.unsafe if recorded else ():  # nothing that is printed may push this out of sight
            _say(console, str(line), soft_wrap=True)

    return run(config, until_ended, on_report=show, guarded=True, exits=exits)


def _say(console: Console, text: str, *, soft_wrap: bool = False) -> None:
    """Print *text*, or from now on nothing if the terminal was closed: that is no failure of the lab."""
    try:
        console.print(text, markup=False, soft_wrap=soft_wrap)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):  # what is in their buffers would fail again at the very end
            with contextlib.suppress(OSError, ValueError):
                os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def make_config_safe(path: Path) -> int:
    """Make the lines of a file safe from cold, and say how each went."""
    config = DualConfig.load_from_file(path)
    console = Console(soft_wrap=True, highlight=False)
    reports = trio.run(make_safe_from_cold, config.serial, config.visa)
    if not reports:
        console.print(f"{path}: no line has a safe_state.", markup=False)
    for report in sorted(reports, key=lambda report: report.result.outcome == "failed"):
        console.print(str(report), markup=False)
    return EXIT_UNSAFE if any(report.result.outcome == "failed" for report in reports) else 0


def check_config(path: Path) -> int:
    """Check a file and its drivers, and say what it describes."""
    config = DualConfig.load_from_file(path)
    drivers = check_drivers(config)
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{path}: fine.", markup=False)
    for name, port in config.serial.items():
        console.print(f"  serial.{name}: {port.path} at {port.baud_rate} baud", markup=False)
    for name, session in config.visa.items():
        console.print(f"  visa.{name}: {session.resource}", markup=False)
    for side, subsystem in (("v2", config.v2), ("v4", config.v4)):
        for member in subsystem.instruments:
            kind = drivers[member.id].kind if member.id in drivers else "off"
            console.print(f"  {side}.{member.id}: {kind} {member.driver}", markup=False)
    return 0
