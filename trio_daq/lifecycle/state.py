"""Where a manager and its sides can be, and how they get from one to the other."""

from __future__ import annotations

import enum


class ManagerState(enum.Enum):
    """Where a manager is in its life."""

    UNINITIALIZED = "uninitialized"
    STARTING = "starting"
    RUNNING = "running"
    SHUTTING_DOWN = "shutting down"
    STOPPED = "stopped"


class Status(enum.Enum):
    """How one side of a lab is."""

    ACTIVE = "active"
    INACTIVE = "inactive"
    ERROR = "error"


_M = ManagerState

LEGAL_MOVES: dict[ManagerState, frozenset[ManagerState]] = {
    _M.UNINITIALIZED: frozenset({_M.STARTING}),
    _M.STARTING: frozenset({_M.RUNNING, _M.SHUTTING_DOWN}),
    _M.RUNNING: frozenset({_M.SHUTTING_DOWN}),
    _M.SHUTTING_DOWN: frozenset({_M.STOPPED}),
    _M.STOPPED: frozenset({_M.STARTING}),
}
