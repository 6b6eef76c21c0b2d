"""Who waits for whom: refuse the wait that would close a circle, and the order of kinds that invites one.

A claim belongs to the task that acquired it, or to the thread on whose behalf a task did; a mailbox belongs to the task
that handles its messages. A waiter waits for the holder of what it wants; a holder waits for what it has asked for in
turn, and for every task that sits in a nursery which the holder opened inside its own block or handler, since that
cannot end before the task has. So there is a circle exactly when, from the holder of what is wanted, one comes back to
the one who asks.

The graph is walked only by somebody who has to wait. It knows neither hardware nor actors.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol, TypeAlias

import attrs
import trio

from trio_daq.errors import DeadlockError, LockOrderError

if TYPE_CHECKING:
    from trio_daq.sharing.lease import Claim

Agent: TypeAlias = object
"""Who waits: a task, or what stands for a thread."""


class Holder(Protocol):
    """What stands in the way of somebody who waits: a claim, or an actor at work.

    Attributes:
        owner: Who it is.
        task: Their task.
        agent: That task, or the thread on whose behalf it acts.
        depth: How many nurseries the task had open before its block or handler began.
    """

    owner: str
    task: trio.lowlevel.Task
    agent: Agent
    depth: int

    @property
    def resource(self) -> str:
        """What they have."""


class Waiting(Protocol):
    """What somebody waits for: a claim for a lease, a command in the queue of a session, an answer of an actor.

    Attributes:
        task: The task that waits.
        agent: That task, or the thread for which it waits.
    """

    task: trio.lowlevel.Task
    agent: Agent

    @property
    def owner(self) -> str:
        """Who wants it."""

    @property
    def resource(self) -> str:
        """What is wanted."""

    def held_by(self) -> Holder | None:
        """Return who stands in the way, None if nothing but time does."""


@attrs.frozen
class Wait:
    """One edge of the graph.

    Attributes:
        waiter: Who waits.
        resource: For what.
        holder: Who stands in the way; None if nothing but time does.
    """

    waiter: str
    resource: str
    holder: str | None


class LineKind(enum.IntEnum):
    """Kinds of lines, in the order in which one owner may take them."""

    SERIAL = 1
    DEVICE = 2
    VISA = 3


_waiting: dict[Agent, Waiting] = {}
_higher_kinds: dict[Agent, list[Claim]] = {}
# Both belong to no run: tasks and threads are keys that no two runs share, and to look a variable of the run up would
# cost more than all the rest of an acquire that need not wait.


def note_waiting(wanted: Waiting) -> None:
    """Note that the owner of *wanted* waits for it, unless that would close a circle.

    Raises:
        DeadlockError: If it would.
    """
    held = wanted.held_by()
    if held is not None and not _surely_goes_on(held, wanted):
        circle = _find_circle(wanted)
        if circle is not None:
            raise DeadlockError(resource=wanted.resource, wanted_by=wanted.owner, circle=circle)
    _waiting[wanted.agent] = wanted


def all_waits() -> tuple[Wait, ...]:
    """Return who waits for whom, in the whole program, those who have waited longest first."""
    return tuple(
        Wait(waiting.owner, waiting.resource, held.owner if (held := waiting.held_by()) is not None else None)
        for waiting in tuple(_waiting.values())
    )


def forget_waiting(wanted: Waiting) -> None:
    """Note that the owner of *wanted* waits no more."""
    _waiting.pop(wanted.agent, None)


def note_order(claim: Claim) -> None:
    """Note that *claim* is about to be made, unless its owner has something of a higher kind.

    Raises:
        LockOrderError: If they have.
    """
    for held in _higher_kinds.get(claim.agent, ()):
        if held.kind > claim.kind:
            raise LockOrderError(
                resource=claim.resource,
                wanted_by=claim.owner,
                kind=claim.kind.name,
                held=held.resource,
                held_kind=held.kind.name,
            )


def note_granted(claim: Claim) -> None:
    """Remember a granted claim of a higher kind than the lowest."""
    _higher_kinds.setdefault(claim.agent, []).append(claim)


def forget_granted(claim: Claim) -> None:
    """Forget such a claim."""
    claims = _higher_kinds[claim.agent]
    claims.remove(claim)
    if not claims:
        del _higher_kinds[claim.agent]


_Path: TypeAlias = tuple[tuple[str, str], ...]


def _find_circle(wanted: Waiting) -> _Path | None:
    """Return the resources and their holders on the way from *wanted* back to its owner, or None."""
    stack: list[tuple[Waiting, _Path]] = [(wanted, ())]
    seen: set[int] = set()
    while stack:
        waiting, path = stack.pop()
        held = waiting.held_by()
        if held is None or id(held) in seen:
            continue
        seen.add(id(held))
        if _surely_goes_on(held, wanted):
            continue
        path = (*path, (held.resource, held.owner))
        if held.agent is wanted.agent or _is_inside(wanted.task, held):
            return path
        if held.agent in _waiting:
            stack.append((_waiting[held.agent], path))
        stack += [(other, path) for other in tuple(_waiting.values()) if _is_inside(other.task, held)]
    return None


def _surely_goes_on(held: Holder, wanted: Waiting) -> bool:
    """Return whether its holder is another one, waits for nothing, and has opened no nursery inside its block."""
    return (
        held.agent is not wanted.agent and held.agent not in _waiting and len(held.task.child_nurseries) <= held.depth
    )


def _is_inside(task: trio.lowlevel.Task | None, held: Holder) -> bool:
    """Return whether *task* sits in a nursery that the holder of *held* opened inside its block."""
    if len(held.task.child_nurseries) <= held.depth:
        return False
    for nursery in _nurseries_around(task):
        if nursery.parent_task is held.task:
            return held.task.child_nurseries.index(nursery) >= held.depth
    return False


def _nurseries_around(task: trio.lowlevel.Task | None) -> Iterator[trio.Nursery]:
    while task is not None and task.parent_nursery is not None:
        yield task.parent_nursery
        task = task.parent_nursery.parent_task
