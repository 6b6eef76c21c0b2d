"""What a user writes: a class with handlers, a start and a stop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from trio_daq.actors.mailbox import Overflow
from trio_daq.actors.messages import Message, handlers_of

if TYPE_CHECKING:
    from trio_daq.actors.life import Life


class Actor:
    """Base of all actors. Its methods run one at a time, so its attributes need no lock.

    Class attributes set the mailbox: ``mailbox_capacity``, and ``overflow`` for when it is full: ``"block"`` lets
    senders wait, ``"fail"`` refuses the message, ``"drop_oldest"`` drops the first in line for it, and
    ``"drop_newest"`` drops it.

    A restarted actor is a new object, made as the one before; messages that wait are kept for it.

    Example::

        class Meter(Actor):
            def __init__(self, *, visa):
                self.visa = visa

            @handles(Measure)
            async def measure(self, message: Measure) -> float:
                return float(await self.visa.query(f"MEAS:VOLT? (@{message.channel})"))
    """

    mailbox_capacity: ClassVar[int] = 64
    overflow: ClassVar[Overflow] = "block"

    _handlers: ClassVar[dict[type[Message[Any]], str]] = {}
    _trio_daq_life: Life | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._handlers = handlers_of(cls)

    async def on_start(self) -> None:
        """Get ready. The actor takes messages only after this has returned."""

    async def on_stop(self) -> None:
        """Clean up. Runs at every end of the actor, in a shielded scope with a deadline of its own (2 s)."""

    @property
    def name(self) -> str:
        """Its name in the lab.

        Raises:
            AttributeError: If the actor does not run.
        """
        return self._running().owner

    def after(self, seconds: float, message: Message[Any]) -> None:
        """Tell itself *message* once, *seconds* from now. Forgotten when this life of the actor ends."""
        self._running().tell_later(seconds, None, message)

    def every(self, period: float, message: Message[Any]) -> None:
        """Tell itself *message* at once and then every *period* seconds, until this life ends.

        The times are absolute, so they do not drift. A tick that finds the one before still unhandled is left out and
        counted in `ActorStatistics.missed_ticks`.
        """
        self._running().tell_later(0.0, period, message)

    def _running(self) -> Life:
        if self._trio_daq_life is None:
            raise AttributeError(f"{type(self).__name__} does not run: spawn it, and set timers in on_start or later")
        return self._trio_daq_life
