"""How ports and sessions are: what is wrong with one now, and what has happened to it.

A line that is lost or unusable carries nothing, so that is an error, also while it is being opened again. One that is
being made trustworthy, or has a long queue, still does its work: a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from trio_daq.lifecycle.health import HealthProblem, Note
from trio_daq.serialport import SharedSerialPort
from trio_daq.visa import VisaSessionManager

_ILL = ("lost", "unusable")
_WELL = ("clean", "suspect", "open")
"""The other states are on the way from one to the other, or closed on purpose."""


def port_problems(subject: str, port: SharedSerialPort) -> Iterator[HealthProblem]:
    """Say what is wrong with a port."""
    return _problems(subject, port.state.value, port.trouble, opens_itself=port.config.reconnect, by="recover()")


def session_problems(subject: str, session: VisaSessionManager) -> Iterator[HealthProblem]:
    """Say what is wrong with a session."""
    yield from _problems(
        subject, session.state, session.trouble, opens_itself=session.config.reconnect, by="reconnect()"
    )
    if session.is_crowded:
        text = f"has {session.queue_depth()} commands waiting; ask less often, or give the urgent ones priority"
        yield HealthProblem(subject, "warning", text)


def watch_port(subject: str, port: SharedSerialPort, note: Note) -> None:
    """Note when a port is lost, unusable, or back."""
    port.on_change(_teller(subject, note, lambda: (port.state.value, port.trouble)))


def watch_session(subject: str, session: VisaSessionManager, note: Note) -> None:
    """Note when a session is lost, unusable, or back, and when its queue becomes long and short again."""
    tell_state = _teller(subject, note, lambda: (session.state, session.trouble))
    was_crowded = False

    def tell() -> None:
        nonlocal was_crowded
        tell_state()
        if session.is_crowded != was_crowded:
            was_crowded = session.is_crowded
            depth = session.queue_depth()
            if was_crowded:
                note(subject, "warning", f"has {depth} commands waiting")
            else:
                note(subject, "info", f"has a short queue again: {depth} waiting")

    session.on_change(tell)


def _problems(subject: str, state: str, trouble: str, *, opens_itself: bool, by: str) -> Iterator[HealthProblem]:
    because = f": {trouble}" if trouble else ""
    if state in _ILL:
        remedy = "it is tried again by itself" if opens_itself or state == "unusable" else f"{by} tries again"
        yield HealthProblem(subject, "error", f"is {state}{because}; {remedy}")
    elif state == "dirty":
        yield HealthProblem(subject, "warning", f"is being made trustworthy{because}")


def _teller(subject: str, note: Note, look: Callable[[], tuple[str, str]]) -> Callable[[], None]:
    known = ""

    def tell() -> None:
        nonlocal known
        state, trouble = look()
        if state in _ILL and state != known:
            note(subject, "error", f"is {state}: {trouble}" if trouble else f"is {state}")
            known = state
        elif state in _WELL and known:
            note(subject, "info", "is back")
            known = ""

    return tell
