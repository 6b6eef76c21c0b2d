"""Say why a serial port could not be opened, and what to do about it.

It asks the system about devices, groups and processes, which may take some 10 ms: not for the event loop.
"""

from __future__ import annotations

import copy
import difflib
import errno
import os
import stat
from pathlib import Path

from serial.tools import list_ports

from trio_daq.errors import LineOpenError
from trio_daq.serialport.holders import PortHolder, is_pty, port_holders
from trio_daq.wire import printable

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFREG: "a regular file",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a disk",
    stat.S_IFCHR: "another kind of device",
}


def explain_open_failure(path: str, error: Exception, device: str | None = None) -> LineOpenError:
    """Turn what pyserial or the system said into a sentence that names the cure.

    Args:
        path: What the user called the port.
        error: What came of opening it. A `LineOpenError` has been explained before.
        device: Where the port was found, if that is another path.
    """
    if isinstance(error, LineOpenError):
        return copy.copy(error)  # so that it can be raised from the first, which keeps its own cause
    reason, hint, holders = _explanation(device or path, error)
    return LineOpenError(resource=path, reason=reason, hint=hint, holder_pids=tuple(holder.pid for holder in holders))


def _explanation(device: str, error: Exception) -> tuple[str, str, tuple[PortHolder, ...]]:
    if isinstance(error, (ValueError, OverflowError, NotImplementedError)):  # pyserial's words for a setting
        reason = f"the driver refuses a setting: {printable(str(error).rstrip('.'))}"
        return reason, "Use a baud rate that the adapter knows, such as 9600 or 115200.", ()
    code = _errno(error)
    if code in (errno.EAGAIN, errno.EBUSY):
        found = port_holders(device)
        holders = tuple(holder for holder in found if holder.has_lock) or found
        return *_in_use(device, holders), holders
    if code in (errno.EACCES, errno.EPERM):
        return "permission denied", _how_to_be_permitted(device), ()
    if code in (errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.ENOTDIR, errno.ELOOP) and not _kind(device):
        return _missing(device), _what_there_is(device), ()
    if code in (errno.ENOTTY, errno.EINVAL, errno.EISDIR, errno.ENXIO, errno.ENODEV):
        kind = _kind(device) or "something else"
        return f"it is {kind}, no serial port", _what_there_is(device), ()
    if code == errno.EIO:
        return "there is no hardware behind it", _what_there_is(device), ()
    return printable(str(error).rstrip(".")), "", ()


def _errno(error: Exception) -> int | None:
    code = getattr(error, "errno", None)
    if code is None and error.__context__ is not None and error.__context__.args:
        code = error.__context__.args[0]  # pyserial hides what tcgetattr(3) said in the context
    if code is None and error.args:
        code = error.args[0]  # termios.error is no OSError
    return code if isinstance(code, int) else None


# --- in use ------------------------------------------------------------------------------------------------------


def _in_use(device: str, holders: tuple[PortHolder, ...]) -> tuple[str, str]:
    if not holders:
        hint = f"Find it with `sudo fuser -v {printable(device)}` and close it."
        if _is_pty(device):
            hint += " If nobody has it, a program that was killed left it so: restart the instrument's end of this pty."
        return "another program has it open", hint
    locked = holders[0].has_lock
    reason = f"{' and '.join(map(str, holders))} {'has locked it' if locked else 'has it open'}"
    if any(holder.is_us for holder in holders):
        return reason, "One SharedSerialPort serves a whole process: use that one everywhere."
    if locked:
        return reason, "Close that program, or set exclusive = false in both if they may talk at once."
    return reason, "Close that program first: it wants the line for itself."


def _is_pty(device: str) -> bool:
    try:
        return is_pty(os.stat(device))
    except OSError:
        return False


# --- not permitted -----------------------------------------------------------------------------------------------


def _how_to_be_permitted(device: str) -> str:
    try:
        import grp
        import pwd

        node = os.stat(device)
        group = _group_name(node.st_gid)
        user = pwd.getpwuid(os.geteuid())
        may_group, may_all = (node.st_mode & bits == bits for bits in (0o060, 0o006))
        mode = f"Its mode, {stat.S_IMODE(node.st_mode):04o},"
        if node.st_uid == user.pw_uid and node.st_mode & 0o600 != 0o600:
            return f"{mode} keeps out even you, its owner: chmod u+rw it."
        if may_all or (may_group and node.st_gid in (os.getegid(), *os.getgroups())):
            return f"{mode} lets you in, so it is a container, a mount option or an access list that does not."
        if not may_group:
            return f"{mode} keeps out even its group, {group!r}: change it, on Linux by a udev rule."
        if node.st_gid == user.pw_gid or user.pw_name in grp.getgrgid(node.st_gid).gr_mem:
            return f"{user.pw_name!r} is in its group, {group!r}, but was not when this session began: log in again."
    except PermissionError:
        return "A folder on the way to it is closed to you."
    except (ImportError, OSError, KeyError):
        return "Add yourself to the group that owns it, often 'dialout' or 'uucp', and log in again."
    return f"Add {user.pw_name!r} to the group that owns it, {group!r}, and log in again."


def _group_name(gid: int) -> str:
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


# --- not there, or something else --------------------------------------------------------------------------------


def _kind(device: str) -> str | None:
    try:
        return _KINDS.get(stat.S_IFMT(os.stat(device).st_mode))
    except OSError:
        return None


def _missing(device: str) -> str:
    if os.path.islink(device):
        target = os.path.join(os.path.dirname(device), os.readlink(device))
        return f"it is a link to {printable(os.path.normpath(target))}, which is not there"
    return "there is no such serial port"


def _what_there_is(device: str) -> str:
    ports = sorted(port.device for port in list_ports.comports())
    known = {os.path.basename(name): name for name in (*_links_beside(device), *ports) if name != device}
    name = os.path.basename(device)
    # ttyUSB0 is no slip of the finger for ttyS0: they are different kinds of ports.
    near = [other for other in difflib.get_close_matches(name, known) if _kind_of_name(other) == _kind_of_name(name)]
    if near:
        return f"Did you mean {printable(known[near[0]])!r}?"
    if ports:
        return f"Found here: {', '.join(map(printable, ports))}."
    return "No serial ports were found; is it plugged in?"


def _kind_of_name(name: str) -> str:
    return name.rstrip("0123456789") if name.startswith(("tty", "cu", "rfcomm")) else ""


def _links_beside(device: str) -> list[str]:
    """Return the links to devices in the same folder, such as /dev/serial/by-id."""
    try:
        beside = list(Path(device).parent.iterdir())
        return sorted(str(path) for path in beside if path.is_symlink() and path.is_char_device())
    except OSError:
        return []
