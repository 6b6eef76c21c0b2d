"""Keep a serial line to one program. POSIX only.

Two locks, since programs know one, the other or none: flock(2), which pyserial sets, keeps out those who ask for it
too and goes with its holder; exclusive mode, TIOCEXCL of tty_ioctl(4), makes the system refuse every further open, but
not to root, and it belongs to the line: a pty keeps it when its setter was killed.

So exclusive mode counts only while somebody has the line open, and is set only where it cannot shut out a successor.
"""

from __future__ import annotations

import contextlib
import errno
import os
import termios
from array import array
from collections.abc import Iterator
from fcntl import ioctl

from trio_daq.serialport.holders import is_pty, port_holders

_FLAGS = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK

_TIOCGEXCL = 0x80045440
"""Whether a line is in exclusive mode; Linux, and the termios module has no name for it."""


@contextlib.contextmanager
def refused_if_in_use(path: str) -> Iterator[None]:
    """Hold the device open while it is being opened and configured, unless it is in exclusive mode and in use.

    pyserial changes settings and empties the input as it opens, so this must be known before. It stays open meanwhile,
    for a last close would drop DTR, which resets many a board.

    Raises:
        OSError: EBUSY if another descriptor has it in exclusive mode, or what open(2) said.
    """
    probe = os.open(path, _FLAGS)
    try:
        if _in_exclusive_mode(probe) and port_holders(path, besides=probe):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))  # as the system says it to all but root
        yield
    finally:
        os.close(probe)


def keep_others_out(fd: int, path: str) -> None:
    """Put the open line in exclusive mode, if we may be sure that it ends with us."""
    ioctl(fd, termios.TIOCEXCL)
    if is_pty(os.fstat(fd)):
        try:
            os.close(os.open(path, _FLAGS))
        except OSError:  # so, if we were killed, whoever starts us again would not get in: flock alone must do
            ioctl(fd, termios.TIOCNXCL)


def _in_exclusive_mode(fd: int) -> bool:
    answer = array("i", [0])
    with contextlib.suppress(OSError):  # no terminal, or a system that cannot tell
        ioctl(fd, _TIOCGEXCL, answer)
    return bool(answer[0])
