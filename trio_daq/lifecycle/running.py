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
from trio_daq.lifecycle.inspection import describe_lab, described_on_sigquit
from trio_daq.lifecycle.leaving import exit_despite_threads
from trio_daq.lifecycle.manager import Manager
from trio_daq.lifecycle.report import EXIT_STUCK, EXIT_UNSAFE, ShutdownReport
from trio_daq.lifecycle.watchdog import Watchdog

if TYPE_CHECKING:
    from trio_daq.lifecycle.guardian import Guardian

_ORDERLY = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name))


def run(
    config: DualConfig | str | os.PathLike[str],
    main: Callable[[DualRuntimeManager], Awaitable[object]] | None = None,
    *,
    on_report: Callable[[ShutdownReport], object] | None = None,
    guarded: bool = False,
    exits: bool = False,
) -> int:
    """Run a lab until *main* returns, all its members have ended, or a signal comes; stop it in order.

    The first SIGINT, SIGTERM or SIGHUP stops it in order, the second cuts its grace short, the third ends the process
    at once. A member that does not end is left behind: the process exits by `os._exit`. It does so too if the program
    has not ended 2 s after the time of the shutdown, be the event loop blocked or *main* deaf to its cancellation;
    with the interpreter's lock held for ever it exits 2 s later, with code 1, if the shutdown had begun by then.
    SIGQUIT prints who has what and where every member and thread is, and ends nothing.

    Args:
        config: The lab, or the path of its TOML file.
        main: What to do while it runs, called as ``await main(manager)``.
        on_report: Called with the report of the shutdown.
        guarded: Start a guardian, as ``trio-daq run`` does: a process that makes the lines safe that have a
            ``safe_state`` if this one is killed, or its event loop stands still for ``guard_after``, which ends it.
            POSIX only; elsewhere there is none.
        exits: The process does nothing any more after this: from the end of the lab on, signals are ignored, so that
            one which comes while the interpreter is ending does not take the place of the exit code.

    Returns:
        The exit code: 0 ended by itself, 1 a member failed, 3 a member was stuck, 4 a line was not made
            safe, 128 + n stopped by signal n.

    Raises:
        ConfigError: If the settings are wrong.
        StartError: If it did not start.
        Exception: Whatever *main* raised, or the bug that a member failed by, after the lab was stopped.
    """
    settings = config if isinstance(config, DualConfig) else DualConfig.load_from_file(config)
    return trio.run(run_lab, settings, main, on_report, guarded, exits, restrict_keyboard_interrupt_to_checkpoints=True)


async def run_lab(
    config: DualConfig,
    main: Callable[[DualRuntimeManager], Awaitable[object]] | None = None,
    on_report: Callable[[ShutdownReport], object] | None = None,
    guarded: bool = False,
    exits: bool = False,
) -> int:
    """Do what `run` does, inside a Trio program."""
    guardians: list[Guardian] = []

    def report_end(report: ShutdownReport) -> None:
        if not caught:  # whoever sent a signal wants the program to end, else it may have more to do
            watchdog.stop()
        if not report.unsafe:  # else it may succeed where this process, in whatever state it is, did not
            _dismiss(guardians)
        if on_report is not None:
            on_report(report)

    def forced_code() -> int:
        safe_states = [port.safe_state for port in config.serial.values()]
        safe_states += [session.safe_state for session in config.visa.values()]
        is_unsafe = any(safe_states) if manager.report is None else bool(manager.report.unsafe)
        return EXIT_UNSAFE if is_unsafe else EXIT_STUCK

    watchdog = Watchdog(
        config.application.shutdown_timeout,
        _ORDERLY,
        lambda: describe_lab(manager),
        forced_code,
    )
    manager = DualRuntimeManager(config, on_stuck="exit", on_requested=watchdog.start, on_report=report_end)
    if guarded and os.name == "posix":
        from trio_daq.lifecycle.guardian import Guardian

        guardians.append(Guardian(config))
        trio.lowlevel.spawn_system_task(guardians[0].beat)
    with watchdog, described_on_sigquit(manager), stop_on_signals(manager, exits=exits) as caught:
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
    code = 0 if report is None else report.exit_code
    if caught and (report is None or not report.unsafe):
        code = 128 + caught[0]
    if report is not None and report.left_threads:
        exit_despite_threads(code)
    return code


def _dismiss(guardians: Iterable[Guardian]) -> None:
    for guardian in guardians:
        guardian.dismiss()


@contextmanager
def stop_on_signals(manager: Manager, *, exits: bool = False) -> Iterator[list[int]]:
    """Let signals stop *manager* for the length of a ``with`` block, and list those that came.

    Our own handlers, not Trio's receiver: that one merges signals which come while the event loop is blocked, so the
    third of a user who has lost patience would not be counted. If the process *exits* then, signals are ignored from
    the end of the block on. Outside of the main thread it does nothing.
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
            signal.signal(number, signal.SIG_IGN if exits else handler)


def _is_nohup(number: signal.Signals) -> bool:
    """Return whether the program was started by ``nohup``, which means it to outlive its terminal."""
    return number.name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN
