"""Tell a SCPI query from a command.

IEEE 488.2-1992 §7: a program message is a row of units separated by ``;``; a unit is a *header*, then white space,
then parameters; a query is a unit whose header ends in ``?``. A ``;`` or ``?`` inside a quoted string or a block
(``#<n><length>…``) is data. This module knows nothing of any one instrument.
"""

from __future__ import annotations

_WHITE = frozenset(chr(code) for code in range(33))
"""IEEE 488.2 §7.4.1.2: white space is any of 0x00–0x20."""


def expects_reply(message: str) -> bool:
    r"""Return whether an instrument that speaks SCPI answers *message*.

    Args:
        message: One program message, with or without its terminator.

    Example:
        >>> expects_reply("*IDN?"), expects_reply("MEAS:VOLT? (@1)"), expects_reply("*RST;*OPC?")
        (True, True, True)
        >>> expects_reply("*RST"), expects_reply('DISP:TEXT "READY?;X?"')
        (False, False)
    """
    in_header, last, at = True, "", 0
    while at < len(message):
        char = message[at]
        if char == ";":
            if last == "?":
                return True
            in_header, last, at = True, "", at + 1
        elif char in "\"'":
            if in_header and last == "?":
                return True
            at = _end_of_string(message, at)
            in_header = in_header and last == ""
        elif char == "#" and not in_header:
            at = _end_of_block(message, at)
        else:
            if in_header:
                if char not in _WHITE:
                    last = char
                elif last == "?":
                    return True
                elif last:
                    in_header = False
            at += 1
    return in_header and last == "?"


def _end_of_string(message: str, start: int) -> int:
    """Return where the quoted string that starts at *start* ends (IEEE 488.2 §7.7.5).

    A doubled quote is data there; to read it as the end of one string and the start of the next comes to the same.
    """
    end = message.find(message[start], start + 1)
    return end + 1 if end >= 0 else len(message)


def _end_of_block(message: str, start: int) -> int:
    """Return where the block that starts at *start* ends (IEEE 488.2 §7.7.6), or just past ``#`` if it is no block."""
    digits = message[start + 1 : start + 2]
    if digits == "0":  # indefinite length: ends with the message
        return len(message)
    if digits.isdecimal() and digits.isascii():
        first = start + 2 + int(digits)
        length = message[start + 2 : first]
        if length.isdecimal() and length.isascii():
            return first + int(length)
    return start + 1  # `#H1F` and the like are numbers
