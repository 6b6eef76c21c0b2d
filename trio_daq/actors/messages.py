"""What can be said to an actor, and which method hears it.

A message is a value; the type of its answer is part of its own type, so that ``await ref.ask(Measure(1))`` is a
``float`` to a type checker.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

_Reply_co = TypeVar("_Reply_co", covariant=True)
_Handler = TypeVar("_Handler", bound=Callable[..., Awaitable[Any]])

_MARK = "_trio_daq_handles"


class Message(Generic[_Reply_co]):
    """Base of all messages; the type in brackets is that of the answer.

    Example::

        @attrs.frozen
        class Measure(Message[float]):
            channel: int
    """


def handles(message_type: type[Message[Any]]) -> Callable[[_Handler], _Handler]:
    """Let the decorated ``async def method(self, message)`` answer messages of *message_type*."""

    def mark(method: _Handler) -> _Handler:
        setattr(method, _MARK, message_type)
        return method

    return mark


def handlers_of(cls: type) -> dict[type[Message[Any]], str]:
    """Return the names of the methods of *cls* that handle messages, by the type of the message."""
    found: dict[type[Message[Any]], str] = {}
    for name in dir(cls):
        message_type = getattr(getattr(cls, name), _MARK, None)
        if message_type is None:
            continue
        if message_type in found:
            raise TypeError(
                f"{cls.__name__} handles {message_type.__name__} twice: in {found[message_type]} and in {name}"
            )
        found[message_type] = name
    return found
