"""Tell a mistake in a program from a fault of the lab."""

from __future__ import annotations

from trio_daq.errors.daq_error import DaqError
from trio_daq.errors.lifecycle import StateError
from trio_daq.errors.mistake import GuardReleasedError, UnknownNameError
from trio_daq.errors.waiting import LockOrderError


def is_bug(error: BaseException) -> bool:
    """Return whether *error* is a mistake in a program, which no retry cures, rather than a fault of the lab.

    A group is one if any of its leaves is.
    """
    if isinstance(error, BaseExceptionGroup):
        return any(is_bug(leaf) for leaf in error.exceptions)
    if isinstance(error, DaqError):
        return isinstance(error, (GuardReleasedError, LockOrderError, StateError, UnknownNameError))
    return isinstance(error, (TypeError, AttributeError, NameError, AssertionError, NotImplementedError, ImportError))
