"""Who has a serial device open. Linux tells; elsewhere nobody is found.

It asks /proc, for an error that is about to be raised: what it may not see, it does not know, and it never raises.
/proc/locks shows the locks of all users, the descriptors of a process only its own user and root may see.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs

from trio_daq.wire import printable

_MOST_DESCRIPTORS = 20_000
"""Looked at, at most: they take 20 to 40 µs each, so this is less than a second on the busiest machine."""

_MOST_LETTERS = 80
"""Of a command line in an error: enough for a program and its first arguments."""

_PTY = 136
"""Major number of pseudo-terminals (Linux, Documentation/admin-guide/devices.txt)."""


@attrs.frozen(kw_only=True)
class PortHolder:
    """A process that has a serial device open.

    Attributes:
        pid: Its process id.
        command: Its command line in one line of plain text, shortened.
        has_lock: Whether it holds the flock(2) lock by which programs keep each other off a port.
    """

    pid: int
    command: str
    has_lock: bool

    @property
    def is_us(self) -> bool:
        """Whether it is the process that asks."""
        return self.pid == os.getpid()

    def __str__(self) -> str:
        """Name it for an error."""
        if self.is_us:
            return "this process (another port object, or an abandoned thread that still has it open)"
        return f"process {self.pid} ({self.command})"


def port_holders(path: str, *, besides: int = -1) -> tuple[PortHolder, ...]:
    """Return the processes that have the serial device *path* open, those with the lock first.

    The process at the other end of a pty is the instrument and no holder, although it often keeps our end open too;
    it counts if it has the lock.

    Args:
        path: The device or a link to it.
        besides: A descriptor of this process that does not count.
    """
    if sys.platform != "linux":
        return ()
    try:
        device = os.stat(path)
    except (OSError, ValueError):
        return ()
    if not stat.S_ISCHR(device.st_mode):
        return ()
    found = dict.fromkeys(_pids_with_lock(device), True)
    for pid, has_lock in _pids_with_descriptor(device, besides):
        found[pid] = found.get(pid, False) or has_lock
    holders = [
        PortHolder(pid=pid, command=command, has_lock=has_lock)
        for pid, has_lock in found.items()
        if (command := _command(pid))  # none if it has ended; a lock may outlive it in a child, which is listed too
    ]
    return tuple(sorted(holders, key=lambda holder: (not holder.has_lock, holder.pid)))


def is_pty(device: os.stat_result) -> bool:
    """Return whether it is the client's end of a pseudo-terminal."""
    return sys.platform == "linux" and os.major(device.st_rdev) == _PTY


def _pids_with_lock(device: os.stat_result) -> Iterator[int]:
    # proc_locks(5): "1: FLOCK  ADVISORY  WRITE 701 00:1a:18 0 EOF"; device numbers in hexadecimal, "->" for who waits.
    inode = f"{os.major(device.st_dev):02x}:{os.minor(device.st_dev):02x}:{device.st_ino}"
    for fields in map(str.split, _text("/proc/locks").splitlines()):
        if len(fields) > 5 and fields[1] == "FLOCK" and fields[5] == inode:
            yield int(fields[4])


def _pids_with_descriptor(device: os.stat_result, besides: int) -> Iterator[tuple[int, bool]]:
    """Yield a process and whether it has the lock, for each descriptor on the device."""
    us = str(os.getpid())
    for pid, descriptors in _descriptors():
        locks: list[bool] = []
        at_other_end = False
        for number, target in descriptors:
            if pid == us and number == str(besides):
                continue
            # Only what lies in /dev is looked at closer: a stat(2) of a file on a dead network disk would hang.
            if target.endswith("/ptmx"):
                at_other_end = at_other_end or _is_other_end(pid, number, device)
            elif target.startswith("/dev/") and _leads_to(pid, number, device):
                # proc_pid_fdinfo(5) shows a lock also in a child that inherited it, which /proc/locks does not.
                locks.append("FLOCK" in _text(f"/proc/{pid}/fdinfo/{number}"))
        yield from ((int(pid), has_lock) for has_lock in locks if has_lock or not at_other_end)


def _descriptors() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield each process with what its descriptors lead to: our own, then the newest first, within the bound."""
    us = str(os.getpid())
    left = _MOST_DESCRIPTORS
    pids = sorted(filter(str.isdigit, _entries("/proc")), key=lambda pid: (pid != us, -int(pid)))
    for pid in pids:
        numbers = _entries(f"/proc/{pid}/fd")[:left]
        left -= len(numbers)
        targets = []
        for number in numbers:
            with contextlib.suppress(OSError):
                targets.append((number, os.readlink(f"/proc/{pid}/fd/{number}")))
        yield pid, targets
        if left <= 0:
            return


def _is_other_end(pid: str, number: str, device: os.stat_result) -> bool:
    if not is_pty(device):
        return False
    index = f"tty-index:\t{os.minor(device.st_rdev)}"
    return index in _text(f"/proc/{pid}/fdinfo/{number}").splitlines()


def _leads_to(pid: str, number: str, device: os.stat_result) -> bool:
    try:
        found = os.stat(f"/proc/{pid}/fd/{number}")
    except OSError:
        return False
    # The ptys of two containers may share a number; a device node in each of them means one device.
    return found.st_rdev == device.st_rdev and (found.st_dev == device.st_dev or not is_pty(device))


def _command(pid: int) -> str:
    """Return the command line, an empty one for a process that has ended, also if nobody has taken note of its end."""
    return printable(_text(f"/proc/{pid}/cmdline").rstrip("\0").replace("\0", " "), _MOST_LETTERS)


def _entries(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _text(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", "backslashreplace")
    except OSError:
        return ""
