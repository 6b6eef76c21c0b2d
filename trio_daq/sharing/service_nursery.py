"""A nursery for tasks that serve an ``async with`` block, which does not change the block's exception.

Trio's nursery wraps everything in a group. A block that merely opens a session must let a KeyError of its body out as
a KeyError.
"""

from __future__ import annotations

from types import TracebackType

import trio


class ServiceNursery:
    """Open a nursery; on leaving, raise what the body raised, or the one error of a service, without a group.

    A group stays one only when the body and a service, or two services, failed for reasons of their own.
    """

    def __init__(self) -> None:
        self._manager = trio.open_nursery()

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> trio.Nursery:
        return await self._manager.__aenter__()

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        shown = _BodyFailed(error) if isinstance(error, BaseExceptionGroup) and not _cancelled_in(error) else error
        try:
            return bool(await self._manager.__aexit__(kind, shown, traceback))
        except BaseExceptionGroup as group:
            failures = [one for one in group.exceptions if not isinstance(one, trio.Cancelled)] or [group.exceptions[0]]
            if failures == [shown]:
                return False  # the interpreter goes on raising it, untouched
            if len(failures) == 1:
                raise failures[0] from failures[0].__cause__
            if shown is error or error is None:
                raise
            raise group.derive([error if one is shown else one for one in failures]) from None


class _BodyFailed(Exception):  # noqa: N818 - it is never seen outside
    """Stands in for a group that the body raised, since Trio rebuilds groups and so they lose their identity."""


def _cancelled_in(group: BaseExceptionGroup[BaseException]) -> bool:
    return group.subgroup(trio.Cancelled) is not None
