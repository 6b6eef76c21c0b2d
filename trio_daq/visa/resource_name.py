"""One spelling for each VISA resource (VPP-4.3, section 4.3: names are case-insensitive, board 0 may be left out)."""

from __future__ import annotations

_CLASSES = frozenset({"INSTR", "SOCKET", "RAW", "INTFC", "BACKPLANE", "MEMACC", "SERVANT"})
"""Resource classes of VPP-4.3 (section 4.3), which end a name; PyVISA takes them in capitals only."""


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
        return rname.to_canonical_name(spelled)
    except rname.InvalidResourceName as error:
        raise ValueError(f"{name!r} is no VISA resource name: {error}") from None
