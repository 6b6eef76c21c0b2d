"""``trio-daq demo``: a whole lab on simulated instruments, which live in a process of their own."""

from __future__ import annotations

import functools
from importlib import resources
from pathlib import Path

import attrs
import trio
from rich.console import Console

from trio_daq.cli.demo_summary import DemoSummary, print_summary
from trio_daq.cli.evidence import read_evidence
from trio_daq.cli.live_table import watch
from trio_daq.config import DualConfig, SubsystemConfig
from trio_daq.errors import ConfigError
from trio_daq.lifecycle import DualRuntimeManager, run_lab
from trio_daq.sim import FaultPlan, SimulatedLab, open_simulated_lab, read_log

_STAGE_FAULTS = FaultPlan(late_every=40, late_by=0.08)
_METER_FAULTS = FaultPlan(late_every=45, late_by=0.08)
"""Now and then an answer comes 30 ms after its asker has given up."""


def run_demo(seconds: float, directory: Path) -> int:
    """Run the demo, print its summary, and return its exit code: 1 if a reply reached the wrong asker."""
    return trio.run(_demo, seconds, directory, restrict_keyboard_interrupt_to_checkpoints=True)


async def _demo(seconds: float, directory: Path) -> int:
    console = Console(highlight=False)
    folder = _new_folder(directory)
    managers: list[DualRuntimeManager] = []
    reports: list[str] = []
    console.print("trio-daq demo: a simulated stage on a pty and a simulated SCPI meter on TCP, with late answers;")
    console.print("an old blocking driver, plain tasks and actors share them. Ctrl-C stops it in order.")

    async def body(manager: DualRuntimeManager) -> None:
        managers.append(manager)
        with trio.move_on_after(seconds):
            await watch(manager, console)

    async with open_simulated_lab(folder / "instruments.jsonl", stage=_STAGE_FAULTS, meter=_METER_FAULTS) as simulated:
        config = demo_config(simulated, folder)
        code = await run_lab(config, body, on_report=lambda report: reports.append(str(report)))
    if not managers:
        return code
    summary = DemoSummary.gather(
        managers[0], read_evidence(folder / "evidence.jsonl"), read_log(folder / "instruments.jsonl")
    )
    print_summary(console, summary, reports[-1] if reports else "")
    return code or (0 if summary.is_right else 1)


def demo_config(simulated: SimulatedLab, folder: Path) -> DualConfig:
    """Return the demo's own settings, with the simulated instruments and *folder* put in."""
    with resources.as_file(resources.files("trio_daq.cli") / "demo.toml") as path:
        config = DualConfig.load_from_file(path)
    assert simulated.stage_path is not None
    assert simulated.meter_resource is not None
    with_notes = functools.partial(_with_notes, evidence=str(folder / "evidence.jsonl"))
    return attrs.evolve(
        config,
        serial={"stage": attrs.evolve(config.serial["stage"], path=simulated.stage_path)},
        visa={"meter": attrs.evolve(config.visa["meter"], resource=simulated.meter_resource)},
        v2=with_notes(config.v2),
        v4=with_notes(config.v4),
        recording=attrs.evolve(config.recording, directory=folder),
    )


def _with_notes(side: SubsystemConfig, evidence: str) -> SubsystemConfig:
    members = [attrs.evolve(one, options={**one.options, "evidence": evidence}) for one in side.instruments]
    return attrs.evolve(side, instruments=members)


def _new_folder(directory: Path) -> Path:
    """Make a folder of its own for this run, so that no two share their notes."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for number in range(1, 10_000):
            folder = directory / f"demo-{number}"
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        raise ConfigError(problems=[f"{directory}: cannot be used for runs: {error.strerror}"]) from error
    raise ConfigError(problems=[f"{directory}: holds too many demos; name another directory"])
