"""What the block of a manager raises because of the lab and not of its body.

It knows neither stages nor members: it is told of errors, and asked at the end of the block.

Invariants: the first error that it is told of is the one; the body's own exception is never replaced, except by Ctrl-C
in a member, since what the body made of the end of that member is no matter then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

_log = logging.getLogger("trio_daq.lifecycle")


class BlockFailure:
    """Why the block fails, if it does."""

    def __init__(self) -> None:
        self._error: BaseException | None = None

    def note(self, error: BaseException | None) -> None:
        """Take *error* as the reason, unless there is one already."""
        if self._error is None:
            self._error = error

    def of_calling(self, listener: Callable[..., object], *args: object) -> None:
        """Call *listener* in the midst of a shutdown: raised there its error would end that half way."""
        try:
            listener(*args)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - SystemExit is how Rich leaves a closed pipe
            _log.error("%r failed during the shutdown: %s: %s", listener, type(error).__name__, error)
            self.note(error)

    def raise_interrupt(self) -> None:
        """Raise the reason if it is Ctrl-C in a member."""
        error = self._error
        of_group = isinstance(error, BaseExceptionGroup) and error.subgroup(KeyboardInterrupt) is not None
        if error is not None and (of_group or isinstance(error, KeyboardInterrupt)):
            raise error from error.__cause__

    def end_block(self, body_error: BaseException | None, *, swallowed: bool) -> bool:
        """Raise the reason, or note it on the body's own error, and return what ``__aexit__`` returns.

        Args:
            body_error: What the body raised.
            swallowed: Whether that goes no further.
        """
        if self._error is None:
            return swallowed
        if body_error is None or swallowed or isinstance(body_error, trio.Cancelled):
            raise self._error from self._error.__cause__
        body_error.add_note(f"trio_daq was stopping because of {type(self._error).__name__}: {self._error}")
        return False
