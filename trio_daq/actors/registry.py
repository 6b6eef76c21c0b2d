"""The actors of one side of a lab, by name.

A name is a place, not a life: who is started under it again, be it after the whole side was stopped, has the same
address.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, TypeVar, cast

from trio_daq.actors.actor import Actor
from trio_daq.actors.cell import ActorCell
from trio_daq.actors.ref import ActorRef
from trio_daq.errors import UnknownNameError

_A = TypeVar("_A", bound=Actor)


class ActorRegistry:
    """Finds the place of an actor, or its address, by its name."""

    def __init__(self) -> None:
        self._cells: dict[str, ActorCell[Any]] = {}

    def place(self, name: str, make: Callable[[], _A], actor_class: type[_A]) -> ActorCell[_A]:
        """Return a place for an actor of that name: the one that it had if that is free and of the class, or a new one.

        A name that is in use stays with whom it belongs to.
        """
        old = self._cells.get(name)
        if old is not None and not old.is_running and old.actor_class is actor_class:
            old.make = make
            return cast("ActorCell[_A]", old)
        cell = ActorCell(name, make, actor_class)
        if old is None or not old.is_running:
            self._cells[name] = cell
        return cell

    def ref(self, name: str) -> ActorRef[Any]:
        """Return the address of the actor called *name*, whether it runs or not.

        Raises:
            UnknownNameError: If none of that name was ever started; it lists those that were.
        """
        cell = self._cells.get(name)
        if cell is None:
            names = sorted(self._cells)
            near = difflib.get_close_matches(name, names, n=1)
            raise UnknownNameError(kind="actor", name=name, known=names, suggestion=near[0] if near else None)
        return cell.ref
