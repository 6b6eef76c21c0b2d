"""What helps to test code that shares instruments: a Trio run driven from outside, a cancellation at every step."""

from trio_daq.testing.cancel_at_step import CancelAtStep
from trio_daq.testing.trio_driver import TrioDriver

__all__ = ["CancelAtStep", "TrioDriver"]
