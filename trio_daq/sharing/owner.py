"""Who asks: the name under which a task wants a line.

A member of a lab carries its id in a context variable, set inside its own task, so that a task which it did not start
never inherits it by accident. The name is for people; it grants nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import trio

_member: ContextVar[str | None] = ContextVar("trio_daq_member", default=None)


@contextmanager
def acting_as(member: str) -> Iterator[None]:
    """Let the current task, and tasks started in this block, own lines as *member* where they give no name."""
    token = _member.set(member)
    try:
        yield
    finally:
        _member.reset(token)


def owner_name(given: str | None) -> str:
    """Return *given*, else the id of the member that runs, else the name of the task.

    Raises:
        ValueError: If *given* is empty.
    """
    if given is None:
        return _member.get() or trio.lowlevel.current_task().name
    if not given.strip():
        raise ValueError("an owner needs a name; leave it out to use the name of the task")
    return given
