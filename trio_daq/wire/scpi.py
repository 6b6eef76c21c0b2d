"""Tell a SCPI query from a command.

IEEE 488.2-1992 §7: a program message is a row of units separated by ``;``; a unit is a *header*, then white space,
then parameters; a query is a unit whose header ends in ``?``. Old instruments, such as Stanford Research's SR830, want
no space behind it: ``OUTP?1``. A ``;`` or ``?`` inside a quoted string or a block
(``#<n><length>…``, or ``#(<length>)…`` as Rohde & Schwarz write long ones) is data, of any byte there is: text stands
for bytes here, one character each, as in Latin-1. This module knows nothing of any one instrument.
"""

from __future__ import annotations

import re

_WHITE = frozenset(chr(code) for code in range(33))
"""IEEE 488.2 §7.4.1.2: white space is any of 0x00–0x20."""

_BLOCK_HEAD = re.compile(r"#(?:(?P<digits>[1-9])|\((?P<long>[0-9]{1,20})\))")


def expects_reply(message: str) -> bool:
    r"""Return whether an instrument that speaks SCPI answers *message*.

    Args:
        message: One program message, with or without its terminator. Of several, whether any is answered.

    Example:
        >>> expects_reply("*IDN?"), expects_reply("MEAS:VOLT? (@1)"), expects_reply("*RST;*OPC?")
        (True, True, True)
        >>> expects_reply("*RST"), expects_reply('DISP:TEXT "READY?;X?"')
        (False, False)
    """
    in_header, last, at = True, "", 0
    while at < len(message):
        char = message[at]
        if char in ";\n":
            if last == "?":
                return True
            in_header, last, at = True, "", at + 1
        elif char in "\"'#":
            if in_header and last == "?":
                return True
            at = _end_of_block(message, at) if char == "#" else _end_of_string(message, at)
            in_header = in_header and last == ""
        else:
            if in_header:
                if last not in ("", "?") and char == "?":
                    return True
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
    if message.startswith("#0", start):  # indefinite length: ends with the message
        return len(message)
    head = _BLOCK_HEAD.match(message, start)
    if head is None:  # `#H1F` and the like are numbers
        return start + 1
    if head["long"] is not None:
        return head.end() + int(head["long"])
    first = head.end() + int(head["digits"])
    length = message[head.end() : first]
    return first + int(length) if length.isdecimal() and length.isascii() else start + 1
