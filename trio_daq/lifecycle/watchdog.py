"""End a program whose shutdown does not come to its end: a clock that the event loop cannot hold up.

It runs in a thread that learns of signals from the C level of the interpreter, so neither a blocked event loop nor a
main thread that is deep in a library keeps it from them. Behind it, `faulthandler` has a clock that does not need the
interpreter's lock. What is printed then is somebody else's business.

Invariant: once started it ends the process, unless it is stopped before its time.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection
from types import TracebackType
from typing import NoReturn, Self

from trio_daq.lifecycle.leaving import stderr_number

_MARGIN = 2.0
"""Seconds above the time of a shutdown, in which the program is to leave by itself."""

_LOCKED_MARGIN = 2.0
"""Seconds more after which the process is ended without the interpreter's lock."""

_TELLING = 1.0
"""Seconds for the last words, whose reader may not read."""

_LOOK = b"\0"
"""Wakes the thread; what a signal writes is its number."""


_watching: list[Watchdog] = []
"""Those that hear signals; one at most, as they do so in the main thread."""


class Watchdog:
    """A clock for the length of a ``with`` block.

    Args:
        timeout: Seconds of the shutdown that a signal begins.
        signals: Those that begin one.
        last_words: Returns what to write to stderr before the process is ended; called in another thread.
        exit_code: Returns with which code; called in another thread.
    """

    def __init__(
        self,
        timeout: float,
        signals: Collection[int],
        last_words: Callable[[], str],
        exit_code: Callable[[], int],
    ) -> None:
        self._timeout = timeout
        self._signals = frozenset(signals)
        self._last_words = last_words
        self._exit_code = exit_code
        self._deadline: float | None = None
        self._is_closed = False
        self._lock = threading.Lock()
        self._old_fd = -1

    def start(self, timeout: float) -> None:
        """Count from now on the seconds of a shutdown that may take *timeout*, in place of those counted so far."""
        with self._lock:
            if not self._is_closed:
                self._deadline = time.monotonic() + timeout + _MARGIN
                # There is one such clock in a process: if the program has set it, it is ours from here on.
                locked = timeout + _MARGIN + _LOCKED_MARGIN
                faulthandler.dump_traceback_later(locked, exit=True, file=stderr_number())
        self._wake()

    def stop(self) -> None:
        """Count no more."""
        with self._lock:
            if self._deadline is not None:
                self._deadline = None
                faulthandler.cancel_dump_traceback_later()
        self._wake()

    def __enter__(self) -> Self:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._thread = threading.Thread(target=self._watch, name="trio_daq watchdog", daemon=True)
        self._thread.start()
        if os.name == "posix" and threading.current_thread() is threading.main_thread():
            # In front of that of Trio, to which everything is handed on.
            self._old_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            _watching.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if os.name == "posix" and threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(self._old_fd, warn_on_full_buffer=False)
            _watching.remove(self)
        self.stop()
        with self._lock:
            self._is_closed = True
        self._wake()
        self._thread.join()
        self._reader.close()
        self._writer.close()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # it is full, so it wakes; or closed, since all is over
            self._writer.send(_LOOK)

    def _watch(self) -> None:
        while not self._is_closed:
            deadline = self._deadline
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                self._end()
            self._reader.settimeout(left)
            try:
                said = self._reader.recv(4096)
            except TimeoutError:
                continue
            self._hand_on(said)
            if self._deadline is None and self._signals.intersection(said):
                self.start(self._timeout)

    def _hand_on(self, said: bytes) -> None:
        if self._old_fd >= 0 and (numbers := said.replace(_LOOK, b"")):
            with contextlib.suppress(OSError):  # full, so it wakes whom it is to wake; or closed, since all is over
                os.write(self._old_fd, numbers)

    def _end(self) -> NoReturn:
        teller = threading.Thread(target=self._tell, daemon=True)
        teller.start()
        teller.join(_TELLING)
        os._exit(self._exit_code())

    def _tell(self) -> None:
        words = f"trio-daq: did not end in time, so the process ends with exit code {self._exit_code()}\n"
        with contextlib.suppress(OSError):
            os.write(stderr_number(), words.encode())
            try:
                words = self._last_words()
            except Exception as error:  # noqa: BLE001 - what it looks at changes meanwhile
                words = f"what it is at cannot be said: {error!r}\n"
            os.write(stderr_number(), words.encode(errors="backslashreplace"))
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        logging.shutdown()


def _forget_wakeup_fd() -> None:
    """Keep the signals of a forked child from the clock of its parent."""
    if _watching:
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_wakeup_fd)
