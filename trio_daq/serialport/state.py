"""In which state a line is between two owners, and what moves it there.

The table is the whole rule: an event that a state does not list leaves it as it is.
"""

from __future__ import annotations

import enum


class LineState(enum.Enum):
    """How far the next byte on the line can be trusted."""

    CLEAN = "clean"
    """Every command got its reply: the next byte belongs to the next command."""
    SUSPECT = "suspect"
    """More may come than was asked for: a reply to a command that was left unread, an echo, an unasked line."""
    DIRTY = "dirty"
    """An exchange was left unfinished: its reply may still come."""
    LOST = "lost"
    """The device went away."""
    UNUSABLE = "unusable"
    """It could not be made clean."""


class LineEvent(enum.Enum):
    """What can happen to a line."""

    OPENED = "opened"
    DOUBTED = "released after a write that no read followed, or more bytes came than were asked for"
    INTERRUPTED = "timed out, cancelled or failed in the middle of an exchange"
    QUESTIONED = "a doubt is to be removed by asking"
    RECOVERED = "recovered"
    GAVE_UP = "recovery gave up"
    RETRIED = "recovery is tried again"
    HUNG_UP = "hung up"


_S, _E = LineState, LineEvent

_MOVES: dict[LineState, dict[LineEvent, LineState]] = {
    _S.CLEAN: {
        _E.DOUBTED: _S.SUSPECT,
        _E.INTERRUPTED: _S.DIRTY,
        _E.HUNG_UP: _S.LOST,
    },
    _S.SUSPECT: {
        _E.RECOVERED: _S.CLEAN,
        _E.QUESTIONED: _S.DIRTY,
        _E.INTERRUPTED: _S.DIRTY,
        _E.HUNG_UP: _S.LOST,
    },
    _S.DIRTY: {
        _E.RECOVERED: _S.CLEAN,
        _E.GAVE_UP: _S.UNUSABLE,
        _E.HUNG_UP: _S.LOST,
    },
    # Whoever used the line before us may be owed a reply too, so every open starts dirty.
    _S.LOST: {_E.OPENED: _S.DIRTY},
    _S.UNUSABLE: {_E.RETRIED: _S.DIRTY, _E.HUNG_UP: _S.LOST},
}


def after(state: LineState, event: LineEvent) -> LineState:
    """Return the state that follows."""
    return _MOVES[state].get(event, state)
