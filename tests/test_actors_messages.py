"""Which method of an actor hears which message."""

import attrs
import pytest

from trio_daq.actors import Actor, Message, handles


@attrs.frozen
class Ping(Message[str]):
    """Answered by a text."""


@attrs.frozen
class Pong(Message[str]):
    """Answered by a text."""


class Base(Actor):
    @handles(Ping)
    async def ping(self, message):
        return "base"


def test_handlers_are_found_by_the_type_of_the_message():
    """Marked methods are found, inherited ones too, and others are not."""

    class Derived(Base):
        @handles(Pong)
        async def pong(self, message):
            return "pong"

        async def unmarked(self, message):
            return "never"

    assert Derived._handlers == {Ping: "ping", Pong: "pong"}
    assert Base._handlers == {Ping: "ping"}


def test_an_overridden_handler_needs_its_mark():
    """A subclass replaces a handler by marking its own method of the same name; unmarked, it handles nothing."""

    class Marked(Base):
        @handles(Ping)
        async def ping(self, message):
            return "derived"

    class Unmarked(Base):
        async def ping(self, message):
            return "derived"

    assert Marked._handlers == {Ping: "ping"}
    assert Unmarked._handlers == {}


def test_two_handlers_of_one_message_are_refused():
    """A class with two methods for one message cannot be defined, and the error names both."""
    with pytest.raises(TypeError, match=r"handles Ping twice: in \w+ and in \w+"):

        class Torn(Base):
            @handles(Ping)
            async def another(self, message):
                return "other"


def test_two_actors_share_no_handlers():
    """What one class handles, its sibling does not."""

    class One(Actor):
        @handles(Ping)
        async def hear(self, message):
            return "one"

    class Two(Actor):
        @handles(Pong)
        async def hear(self, message):
            return "two"

    assert (One._handlers, Two._handlers, Actor._handlers) == ({Ping: "hear"}, {Pong: "hear"}, {})
