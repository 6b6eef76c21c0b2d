"""What follows when one life of a member has ended: another life, the end of the member, or the end of the lab.

Rules only: it runs no tasks, reads no clock and logs nothing.

Invariant: of all the moments for which `Supervisor.decide` allowed a new life, no window holds more than its limit. A
life that begins well clears nothing, or a member that fails right after each start would be started for ever.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Literal

import attrs

from trio_daq.config import RestartPolicy
from trio_daq.errors import is_bug
from trio_daq.sharing import positive_seconds

MOST_RESTARTS = 5
WINDOW = 60.0
"""A member has at most so many restarts in so many seconds. Those that somebody asks for do not count."""

_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 5.0
_JITTER = 0.25
"""The pause doubles with each restart in the window. A quarter more or less of it keeps members that failed together
from coming back together."""


@attrs.frozen(kw_only=True)
class Supervision:
    """How a member is looked after. The default is for what somebody starts by hand: it runs once.

    Attributes:
        restart: When it gets a new life: ``"always"`` when it ends, ``"on_failure"`` when it ends by an error that is
            no bug, or ``"never"``.
        required: Whether its first start must succeed. If not, the policy also covers its start.
        on_bug: Whether a bug in it stops the lab, or isolates it: it is failed, and the others go on.
        escalate: Whether a member that is given up turns its side to ``"error"``, or stops the lab.
        heartbeat: Seconds without a sign of life after which it counts as hung. See ``MemberConfig.heartbeat``.
    """

    restart: RestartPolicy = "never"
    required: bool = True
    on_bug: Literal["stop", "isolate"] = "stop"
    escalate: Literal["error", "stop"] = "error"
    heartbeat: float | None = attrs.field(default=None, validator=attrs.validators.optional(positive_seconds))


@attrs.frozen
class Restart:
    """It gets a new life.

    Attributes:
        after: Seconds until then.
        reason: Why, to follow the name of the member.
    """

    after: float
    reason: str


@attrs.frozen
class Fail:
    """It gets no new life, and that is a failure.

    Attributes:
        reason: Why, to follow the name of the member.
        stops_lab: Whether everything is to stop.
    """

    reason: str
    stops_lab: bool


@attrs.frozen
class Leave:
    """It is over, and well."""


Decision = Restart | Fail | Leave


class Supervisor:
    """Decides for one member, and remembers its restarts.

    Args:
        rules: How it is looked after.
        chance: Gives numbers from 0 to 1 for the jitter.

    Example:
        >>> supervisor = Supervisor(Supervision(restart="on_failure"), chance=lambda: 0.5)
        >>> supervisor.decide(TimeoutError("no reply"), now=0.0)
        Restart(after=0.2, reason='failed: TimeoutError: no reply')
        >>> supervisor.decide(TypeError("no text"), now=1.0)
        Fail(reason='failed by a bug: TypeError', stops_lab=True)
    """

    def __init__(self, rules: Supervision, chance: Callable[[], float] = random.random) -> None:
        self.rules = rules
        self._chance = chance
        self._restarts: deque[float] = deque()

    def decide(self, error: BaseException | None, now: float) -> Decision:
        """Say what follows a life that ended by *error* (None: by itself) at *now*, in seconds of any clock."""
        if error is None and self.rules.restart != "always":
            return Leave()
        if error is not None and not isinstance(error, Exception):
            return Fail(f"ended by {type(error).__name__}", stops_lab=True)
        if error is not None and is_bug(error):
            return Fail(f"failed by a bug: {type(error).__name__}", stops_lab=self.rules.on_bug == "stop")
        reason = "ended" if error is None else f"failed: {type(error).__name__}: {error}"
        if self.rules.restart == "never":
            return self._give_up(reason)
        while self._restarts and self._restarts[0] <= now - WINDOW:
            self._restarts.popleft()
        if len(self._restarts) >= MOST_RESTARTS:
            return self._give_up(f"was restarted {MOST_RESTARTS} times in {WINDOW:g} s, and again it {reason}")
        pause = min(_FIRST_PAUSE * 2 ** len(self._restarts), _LONGEST_PAUSE)
        pause *= 1 + _JITTER * (2 * self._chance() - 1)
        self._restarts.append(now + pause)
        return Restart(pause, reason)

    def _give_up(self, reason: str) -> Fail:
        return Fail(reason, stops_lab=self.rules.escalate == "stop")
