"""The root of all errors, what makes a class one of them, and the words that several of them use."""

from __future__ import annotations

from typing import Any, Literal, TypeVar, cast, dataclass_transform

import attrs

Sent = Literal["no", "yes", "unknown"]
"""Whether a command reached the instrument: the first thing to know before trying again."""

_E = TypeVar("_E", bound=BaseException)


@dataclass_transform(kw_only_default=True)
def error(cls: type[_E]) -> type[_E]:
    """Make a class of keyword values, with the address under which its users know it."""
    cls.__module__ = "trio_daq.errors"
    return attrs.define(cls, kw_only=True, slots=False, eq=False, str=False)


@error
class DaqError(Exception):
    """The root of every error here. Catch it to catch them all."""

    def __str__(self) -> str:
        """Say what happened, where, and what to do."""
        return type(self).__name__

    def __reduce__(self) -> tuple[Any, ...]:
        """Let keyword-only errors be copied and sent between processes."""
        return _rebuild, (type(self), {a.name: getattr(self, a.name) for a in attrs.fields(cast("Any", type(self)))})


def seconds(value: float) -> str:
    """Return a time as text."""
    return f"{value:.3g} s"


def holder(held_by: str | None, held_for: float) -> str:
    """Say who has something, and for how long."""
    return f"{held_by!r} has held it for {seconds(held_for)}" if held_by is not None else "nobody holds it now"


def _rebuild(cls: type[DaqError], values: dict[str, Any]) -> DaqError:
    return cls(**values)
