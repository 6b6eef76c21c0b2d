"""Where code is: the one line that its author has to look at, out of all the frames that lie above and below it.

Works for tasks that wait, for threads, and from a thread for a task that runs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from types import FrameType

import attrs
import trio

_OUR_OWN = "trio_daq"
_DRIVERS = ("trio_daq.drivers", "trio_daq.cli")
"""Rooms of ours that hold drivers, which are somebody's code like any other."""


@attrs.frozen
class Frame:
    """One function on a stack.

    Attributes:
        module: Where it is defined.
        function: Its name.
        file: Its file.
        line: The line that it is at.
    """

    module: str
    function: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.function} ({self.file}:{self.line})"


def frames_of_task(task: trio.lowlevel.Task) -> tuple[Frame, ...]:
    """Return the frames of a task that waits, innermost first."""
    return tuple(reversed([_frame(frame, line) for frame, line in task.iter_await_frames()]))


def frames_of_thread(ident: int | None, until: FrameType | None = None) -> tuple[Frame, ...]:
    """Return the frames of a thread, innermost first, up to *until*; none if it does not run."""
    return tuple(_up(sys._current_frames().get(ident or 0), until))


def frames_of_waiting(frames: Iterable[FrameType]) -> tuple[Frame, ...]:
    """Return the frames of something that waits, as they are."""
    return tuple(_frame(frame, frame.f_lineno) for frame in frames)


def tell_place(frames: Sequence[Frame]) -> str:
    """Return the innermost place that is neither Python's nor Trio's nor ours, and what of ours it has called."""
    own = next((at for at, frame in enumerate(frames) if not _is_library(frame)), None)
    if own is not None:
        called = frames[own - 1] if own > 0 and _top(frames[own - 1]) == _OUR_OWN else None
        return f"{frames[own]}, in {called}" if called is not None else str(frames[own])
    ours = next((frame for frame in frames if _top(frame) == _OUR_OWN), None)
    return str(ours or (frames[0] if frames else "an unknown place"))


def _up(frame: FrameType | None, until: FrameType | None) -> Iterator[Frame]:
    while frame is not None:
        yield _frame(frame, frame.f_lineno)
        frame = None if frame is until else frame.f_back


def _frame(frame: FrameType, line: int) -> Frame:
    return Frame(frame.f_globals.get("__name__", ""), frame.f_code.co_name, frame.f_code.co_filename, line)


def _is_library(frame: Frame) -> bool:
    top = _top(frame)
    if top == _OUR_OWN:
        return not frame.module.startswith(_DRIVERS)
    return top == "trio" or top in sys.stdlib_module_names


def _top(frame: Frame) -> str:
    return frame.module.partition(".")[0]
