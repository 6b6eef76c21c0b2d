"""One spelling for each VISA resource (VPP-4.3, section 4.3: names are case-insensitive, board 0 may be left out)."""

from __future__ import annotations

import functools
import os
import re

_CLASSES = frozenset({"INSTR", "SOCKET", "RAW", "INTFC", "BACKPLANE", "MEMACC", "SERVANT"})
"""Resource classes of VPP-4.3 (section 4.3), which end a name; PyVISA takes them in capitals only."""

_NUMBER = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]+")
_DEFAULT_PORT = ",4880"
"""Of HiSLIP (IVI-6.1, section 2.2)."""
_USB_SERIAL_NUMBER = 2
"""Its place behind the board: text, whatever it looks like, and of one case."""


def canonical_resource(name: str) -> str:
    """Return the one full spelling of a VISA resource name.

    Raises:
        ValueError: If *name* is no resource name.

    Example:
        >>> canonical_resource("tcpip::192.168.1.100::INSTR")
        'TCPIP0::192.168.1.100::inst0::INSTR'
    """
    from pyvisa import rname  # late: it costs 50 ms, and not every program uses VISA

    front, _, last = name.rpartition("::")
    spelled = f"{front}::{last.upper()}" if front and last.upper() in _CLASSES else name
    try:
        board, *places, kind = rname.to_canonical_name(spelled).split("::")
    except rname.InvalidResourceName as error:
        raise ValueError(f"{name!r} is no VISA resource name: {error}") from None
    if board.startswith("ASRL/"):  # links such as those in /dev/serial/by-id are the port that they lead to
        board = f"ASRL{os.path.realpath(board.removeprefix('ASRL'))}"
    else:
        board = re.sub(r"(?<=[A-Z])0+(?=[0-9])", "", board)
    if board.startswith("TCPIP"):
        places = [place.lower().removesuffix(_DEFAULT_PORT) for place in places]
        if places[0] == "localhost":
            places[0] = "127.0.0.1"
    is_usb = board.startswith("USB")
    places = [_plain(place, is_text=is_usb and at == _USB_SERIAL_NUMBER) for at, place in enumerate(places)]
    return "::".join((board, *places, kind))


@functools.cache
def is_stream(name: str) -> bool:
    """Return whether a resource carries bytes only, without marking the end of a message: sockets and serial ports."""
    resource = canonical_resource(name)
    return resource.endswith("::SOCKET") or resource.startswith("ASRL")


def _plain(place: str, *, is_text: bool) -> str:
    """Return one spelling for a number, and anything else as it is."""
    if is_text or not _NUMBER.fullmatch(place):
        return place
    return str(int(place, 16 if place[:2] in ("0x", "0X") else 10))
