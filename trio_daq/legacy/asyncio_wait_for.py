"""Drive a coroutine so that a cancellation of it is not lost in `asyncio.wait_for`.

Up to Python 3.11 that function drops a cancellation which comes just as what it waits for is done, and returns the
result (python/cpython#86296, mended in 3.12 by building it on `asyncio.timeout`). Its caller then never learns that it
is to stop. It is seen by how far the exception got: to the frame of ``wait_for``, which has returned since.

Invariant: all else that goes in or comes out is left as it is.
"""

from __future__ import annotations

import asyncio
import functools
import types
from collections.abc import Callable, Coroutine, Generator, Iterator
from types import FrameType
from typing import Any


@types.coroutine
def without_loss(program: Coroutine[Any, Any, None], message: str) -> Generator[Any, Any, None]:
    """Await *program*; if a cancellation with *message* was dropped, cancel its task again, one loop iteration later.

    Other cancellations are left alone: that of an `asyncio.timeout` may come too late, when its block has been left.
    """
    step: Callable[[], Any] = functools.partial(program.send, None)
    thrown: BaseException | None = None
    while True:
        try:
            awaited = step()
        except StopIteration:
            return
        if isinstance(thrown, asyncio.CancelledError) and thrown.args == (message,) and _was_dropped(thrown, program):
            _cancel_again(message)
        try:
            step, thrown = functools.partial(program.send, (yield awaited)), None
        except BaseException as error:  # noqa: BLE001 - the program gets it
            step, thrown = functools.partial(program.throw, error), error


def waiting_frames(awaitable: object) -> Iterator[FrameType]:
    """Return the frames of a coroutine that waits, and of what it waits for, outermost first."""
    while awaitable is not None:
        for prefix, waits_for in (("cr", "cr_await"), ("gi", "gi_yieldfrom"), ("ag", "ag_await")):
            frame = getattr(awaitable, f"{prefix}_frame", None)
            if frame is not None:
                yield frame
                awaitable = getattr(awaitable, waits_for)
                break
        else:
            return


def _was_dropped(error: BaseException, program: object) -> bool:
    reached = error.__traceback__
    if reached is None or reached.tb_frame.f_code is not asyncio.wait_for.__code__:
        return False
    # While it still waits for the end of what it has cancelled, it is about to raise the error.
    return all(frame is not reached.tb_frame for frame in waiting_frames(program))


def _cancel_again(message: str) -> None:
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()  # or it would count as two
        asyncio.get_running_loop().call_soon(task.cancel, message)
