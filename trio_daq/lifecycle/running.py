"""Run a lab as a whole program: signals in, exit code out."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import trio

from trio_daq.config import DualConfig
from trio_daq.errors import StartError
from trio_daq.lifecycle.dual import DualRuntimeManager
from trio_daq.lifecycle.manager import Manager
from trio_daq.lifecycle.report import ShutdownReport

if TYPE_CHECKING:
    from trio_daq.lifecycle.guardian import Guardian

_ORDERLY = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name))


def run(
    config: DualConfig | str | os.PathLike[str],
    main: Callable[[DualRuntimeManager], Awaitable[object]] | None = None,
    *,
    on_report: Callable[[ShutdownReport], object] | None = None,
    guarded: bool = False,
) -> int:
    """Run a lab until *main* returns, all its members have ended, or a signal comes; stop it in order.

    The first SIGINT, SIGTERM or SIGHUP stops it in order, the second cuts its grace short, the third ends the process
    at once. A member that does not end is left behind: the process exits by `os._exit`.

    Args:
        config: The lab, or the path of its TOML file.
        main: What to do while it runs, called as ``await main(manager)``.
        on_report: Called with the report of the shutdown.
        guarded: Start a guardian, as ``trio-daq run`` does: a process that makes the lines safe that have a
            ``safe_state`` if this one is killed, or its event loop stands still for ``guard_after``, which ends it.
            POSIX only; elsewhere there is none.

    Returns:
        The exit code: 0 ended by itself, 1 a member failed, 3 a member was stuck, 4 a line was not made
            safe, 128 + n stopped by signal n.

    Raises:
        ConfigError: If the settings are wrong.
        StartError: If it did not start.
        Exception: Whatever *main* raised, or the bug that a member failed by, after the lab was stopped.
    """
    settings = config if isinstance(config, DualConfig) else DualConfig.load_from_file(config)
    return trio.run(run_lab, settings, main, on_report, guarded, restrict_keyboard_interrupt_to_checkpoints=True)


async def run_lab(
    config: DualConfig,
    main: Callable[[DualRuntimeManager], Awaitable[object]] | None = None,
    on_report: Callable[[ShutdownReport], object] | None = None,
    guarded: bool = False,
) -> int:
    """Do what `run` does, inside a Trio program."""
    guardians: list[Guardian] = []

    def report_end(report: ShutdownReport) -> None:
        if not report.unsafe:  # else it may succeed where this process, in whatever state it is, did not
            _dismiss(guardians)
        if on_report is not None:
            on_report(report)

    manager = DualRuntimeManager(config, on_stuck="exit", on_report=report_end)
    if guarded and os.name == "posix":
        from trio_daq.lifecycle.guardian import Guardian

        guardians.append(Guardian(config))
        trio.lowlevel.spawn_system_task(guardians[0].beat)
    with stop_on_signals(manager) as caught:
        try:
            async with manager:
                await manager.start()
                if main is None:
                    await manager.wait_all_ended()
                else:
                    await main(manager)
        except StartError:
            if not caught:
                raise
    report = manager.report
    if report is None:  # nothing was opened
        _dismiss(guardians)
    if caught and (report is None or not report.unsafe):
        return 128 + caught[0]
    return 0 if report is None else report.exit_code


def _dismiss(guardians: Iterable[Guardian]) -> None:
    for guardian in guardians:
        guardian.dismiss()


@contextmanager
def stop_on_signals(manager: Manager) -> Iterator[list[int]]:
    """Let signals stop *manager* for the length of a ``with`` block, and list those that came.

    Our own handlers, not Trio's receiver: that one merges signals which come while the event loop is blocked, so the
    third of a user who has lost patience would not be counted. Outside of the main thread it does nothing.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    token = trio.lowlevel.current_trio_token()

    def handle(number: int, _: FrameType | None) -> None:
        caught.append(number)
        name = signal.Signals(number).name
        if len(caught) == 1:
            token.run_sync_soon(manager.request_shutdown, f"{name} was received")
        elif len(caught) == 2:
            token.run_sync_soon(manager.hurry)
        else:
            os._exit(128 + number)

    before = {number: signal.signal(number, handle) for number in _ORDERLY if not _is_nohup(number)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_nohup(number: signal.Signals) -> bool:
    """Return whether the program was started by ``nohup``, which means it to outlive its terminal."""
    return number.name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN
