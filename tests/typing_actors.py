"""What a type checker must know about actors: checked by mypy --strict in ``nox -s typing``, never run.

A line with an ignore is a mistake that mypy must find; if it no longer does, the ignore is unused, and that is an
error too.
"""

from __future__ import annotations

from typing import assert_type

import attrs

from trio_daq.actors import Actor, ActorCell, ActorRef, Message, handles


@attrs.frozen
class Measure(Message[float]):
    """Answered by a number."""

    channel: int


@attrs.frozen
class Identify(Message[str]):
    """Answered by a text."""


class Reset(Message[None]):
    """Answered by nothing."""


class Meter(Actor):
    """Handles all three."""

    @handles(Measure)
    async def measure(self, message: Measure) -> float:
        """Return the number of the channel."""
        return float(message.channel)

    @handles(Identify)
    async def identify(self, message: Identify) -> str:
        """Return the name."""
        return self.name

    @handles(Reset)
    async def reset(self, message: Reset) -> None:
        """Do nothing, soon and again."""
        self.after(1.0, message)
        self.every(1.0, Measure(1))


async def ask_and_tell(ref: ActorRef[Meter]) -> None:
    """The answer has the type that the message names, and only messages can be sent."""
    assert_type(await ref.ask(Measure(1), timeout=1), float)
    assert_type(await ref.ask(Identify()), str)
    volts: float = await ref.ask(Measure(1))
    text: str = await ref.ask(Measure(1))  # type: ignore[arg-type]
    await ref.tell(Reset(), timeout=1)
    ref.tell_nowait(Reset())
    await ref.ask("MEAS?")  # type: ignore[arg-type]
    await ref.tell("MEAS?")  # type: ignore[arg-type]
    ref.tell_nowait(Measure)  # type: ignore[arg-type]
    await ref.ask(Measure("one"))  # type: ignore[arg-type]
    print(volts, text)


def cells() -> None:
    """A cell knows the class of its actor."""
    cell = ActorCell("meter", Meter, Meter)
    assert_type(cell.ref, ActorRef[Meter])


handles(int)  # type: ignore[arg-type]
