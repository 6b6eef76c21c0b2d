"""Errors that only a changed program or file can cure."""

from __future__ import annotations

from collections.abc import Sequence

from trio_daq.errors.daq_error import DaqError, Sent, error


@error
class ConfigError(DaqError, ValueError):
    """A configuration is wrong; all that is wrong with it is listed.

    Attributes:
        problems: One sentence each, as ``lab.toml:12: visa.dmm.timeout: ...``.
    """

    problems: Sequence[str]

    def __str__(self) -> str:
        return "\n".join(self.problems)


@error
class GuardReleasedError(DaqError, ValueError):
    """A guard was used after its ``async with`` block had ended."""

    resource: str
    owner: str
    action: str
    sent: Sent = "no"

    def __str__(self) -> str:
        return (
            f"{self.resource}: {self.action} by {self.owner!r} after its guard was released. "
            "Acquire again and use the guard inside its `async with` block."
        )


@error
class UnknownNameError(DaqError, LookupError):
    """There is no port, session or member of that name."""

    kind: str
    name: str
    known: Sequence[str]
    suggestion: str | None = None

    def __str__(self) -> str:
        text = f"no {self.kind} called {self.name!r}"
        if self.suggestion is not None:
            text += f" (did you mean {self.suggestion!r}?)"
        return f"{text}; known: {', '.join(self.known) or 'none'}."
