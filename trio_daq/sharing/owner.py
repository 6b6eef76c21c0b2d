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


def member_of(task: trio.lowlevel.Task) -> str | None:
    """Return the member of a lab that *task* acts as, None if it acts as none. For any thread."""
    return task.context.get(_member)


def owner_name(given: str | None) -> str:
    """Return *given*, else the id of the member that runs, else the name of the task.

    Raises:
        TypeError: If *given* is no text.
        ValueError: If it is empty.
    """
    if given is None:
        return _member.get() or trio.lowlevel.current_task().name
    name: object = given
    if not isinstance(name, str):
        hint = f"; did you mean timeout={name!r}?" if isinstance(name, (int, float)) else ""
        raise TypeError(f"an owner is a name, not {name!r}{hint}")
    if not given.strip():
        raise ValueError("an owner needs a name; leave it out to use the name of the task")
    return given


_agent: ContextVar[object | None] = ContextVar("trio_daq_agent", default=None)


@contextmanager
def on_behalf_of(agent: object) -> Iterator[None]:
    """Let the current task own lines on behalf of *agent*, for example a thread, which waits in its stead."""
    token = _agent.set(agent)
    try:
        yield
    finally:
        _agent.reset(token)


def current_agent() -> object | None:
    """Return on whose behalf the current task acts, None for its own."""
    return _agent.get()
