"""Say what a lab is at: who has which line and who waits for it, where each member is, where each thread is.

It only looks, so it may be called at any moment, from a signal handler or another thread too; what changes meanwhile
may then be told half.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import trio

from trio_daq.lifecycle.dual import DualRuntimeManager
from trio_daq.lifecycle.leaving import stderr_number

_DEEPEST = 12
"""Frames of a task or thread that are told, the innermost ones."""


def describe_lab(manager: DualRuntimeManager) -> str:
    """Return what *manager* and all threads are at, over many lines.

    Outside of the Trio thread, the lines are left out.
    """
    told = [f"the lab is {manager.state.value}"]
    with suppress(RuntimeError):  # there is no Trio in this thread
        told += ["lines", *_lines(manager)]
    for stage in manager.stages:
        for member in stage.members.values():
            told.append(f"{stage.name}.{member.name} {member.outcome}")
            if member.task is not None and not member.done.is_set():
                told += _frames_of(member.task, "  ")
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        told.append(f"thread {names.get(ident, ident)}")
        stack = traceback.extract_stack(frame)[: -_DEEPEST - 1 : -1]
        told += [f"    at {one.name} ({one.filename}:{one.lineno})" for one in stack]
    return "\n".join(told) + "\n"


@contextmanager
def described_on_sigquit(manager: DualRuntimeManager) -> Iterator[None]:
    """Have SIGQUIT write `describe_lab` to stderr, for the length of a ``with`` block; the program goes on.

    `faulthandler` writes all threads before that, which it can also while none of them runs Python. POSIX only, in the
    main thread only; elsewhere it does nothing.
    """
    if not hasattr(signal, "SIGQUIT") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def tell(_: int, __: FrameType | None) -> None:
        _write(lambda: describe_lab(manager))

    before = signal.signal(signal.SIGQUIT, tell)
    faulthandler.register(signal.SIGQUIT, file=stderr_number(), all_threads=True, chain=True)
    try:
        yield
    finally:
        faulthandler.unregister(signal.SIGQUIT)
        signal.signal(signal.SIGQUIT, before)


def _write(describe: Callable[[], str]) -> None:
    try:
        text = describe()
    except Exception as error:  # noqa: BLE001 - it was looked at while it changed
        text = f"it changed while it was looked at: {error!r}\n"
    with suppress(OSError):  # the terminal is gone
        os.write(stderr_number(), f"trio-daq: {text}".encode(errors="backslashreplace"))


def _lines(manager: DualRuntimeManager) -> Iterator[str]:
    for line in manager.snapshot().lines:
        owner = "nobody has it" if line.owner is None else f"{line.owner} has it for {line.held_for:.3f} s"
        waiting = f"; {', '.join(line.waiting)} wait" if line.waiting else ""
        yield f"  {line.kind}.{line.name} {line.state}: {owner}{waiting}"


def _frames_of(task: trio.lowlevel.Task, indent: str) -> Iterator[str]:
    yield f"{indent}task {task.name}"
    frames = [
        f"{indent}  at {frame.f_code.co_name} ({frame.f_code.co_filename}:{line})"
        for frame, line in task.iter_await_frames()
        if frame.f_globals.get("__name__", "").partition(".")[0] != "trio"
    ]
    yield from reversed(frames[-_DEEPEST:])
    for nursery in task.child_nurseries:
        for child in tuple(nursery.child_tasks):
            yield from _frames_of(child, indent + "  ")
