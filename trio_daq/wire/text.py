"""Text that goes to people, and text that people write for bytes.

What an instrument sends is hostile until shown otherwise: an escape sequence in a reply must not reach a terminal.
"""

from __future__ import annotations

import re

_ESCAPES = {"\\": b"\\", "n": b"\n", "r": b"\r", "t": b"\t", "0": b"\0"}


def printable(data: bytes | str, limit: int = 200) -> str:
    r"""Return *data* as one line of plain text, control characters escaped, cut at *limit* characters.

    Example:
        >>> printable(b"12.5\r\n"), printable("\x1b]0;x\x07")
        ('12.5\\r\\n', '\\x1b]0;x\\x07')
    """
    text = data.decode("utf-8", "backslashreplace") if isinstance(data, bytes) else data
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def parse_terminator(text: str) -> bytes:
    r"""Return the bytes that *text* stands for.

    Args:
        text: Plain ASCII with the escapes ``\n``, ``\r``, ``\t``, ``\0``, ``\\`` and ``\xHH``, or ``hex:0D0A``.
            Real control characters are taken as they are, since TOML has already undone its own escapes.

    Raises:
        ValueError: If it is empty or cannot be read.

    Example:
        >>> parse_terminator("\\r\\n"), parse_terminator("hex:03")
        (b'\r\n', b'\x03')
    """
    if text.startswith("hex:"):
        try:
            parsed = bytes.fromhex(text[4:])
        except ValueError:
            raise ValueError(f"{text!r} is no row of hexadecimal bytes, such as 'hex:0D0A'") from None
    else:
        parsed = b"".join(_piece(match, text) for match in re.finditer(r"(?s)\\x[0-9A-Fa-f]{2}|\\.?|[^\\]+", text))
    if not parsed:
        raise ValueError("a terminator needs at least one byte")
    return parsed


def _piece(match: re.Match[str], text: str) -> bytes:
    piece = match[0]
    if not piece.startswith("\\"):
        if not piece.isascii():
            raise ValueError(f"{text!r} is not ASCII; write other bytes as \\xHH or hex:")
        return piece.encode("ascii")
    if len(piece) == 4:
        return bytes.fromhex(piece[2:])
    try:
        return _ESCAPES[piece[1:]]
    except KeyError:
        raise ValueError(f"{text!r} has the unknown escape {piece!r}; known: \\n \\r \\t \\0 \\\\ \\xHH") from None
