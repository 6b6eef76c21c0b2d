"""Say why a serial port could not be opened, and what to do about it."""

from __future__ import annotations

import difflib
import errno
import os

from serial.tools import list_ports

from trio_daq.errors import LineOpenError


def explain_open_failure(path: str, error: OSError) -> LineOpenError:
    """Turn what the operating system said into a sentence that names the cure."""
    code = error.errno
    if code is None and error.__context__ is not None and error.__context__.args:
        code = error.__context__.args[0]  # pyserial hides what tcgetattr(3) said in the context
    if code in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        return LineOpenError(resource=path, reason="there is no such serial port", hint=_what_there_is(path))
    if code in (errno.EACCES, errno.EPERM):
        hint = f"Add yourself to the group that owns it ({_group(path)}), then log in again."
        return LineOpenError(resource=path, reason="permission denied", hint=hint)
    if code in (errno.EBUSY, errno.EAGAIN):
        hint = "Close the other program, or set exclusive = false if both may talk at once."
        return LineOpenError(resource=path, reason="another program has it", hint=hint)
    if code in (errno.ENOTTY, errno.EINVAL, errno.EISDIR):
        return LineOpenError(resource=path, reason="it is no serial port", hint=_what_there_is(path))
    return LineOpenError(resource=path, reason=str(error))


def _what_there_is(path: str) -> str:
    names = sorted(port.device for port in list_ports.comports())
    near = difflib.get_close_matches(path, names, n=1)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"Found here: {', '.join(names)}." if names else "No serial ports were found; is it plugged in?"


def _group(path: str) -> str:
    try:
        import grp

        return grp.getgrgid(os.stat(path).st_gid).gr_name
    except (ImportError, OSError, KeyError):
        return "often 'dialout' or 'uucp'"
