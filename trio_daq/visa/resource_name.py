"""One spelling for each VISA resource (VPP-4.3, section 4.3: names are case-insensitive, board 0 may be left out)."""

from __future__ import annotations


def canonical_resource(name: str) -> str:
    """Return the one full spelling of a VISA resource name.

    Raises:
        ValueError: If *name* is no resource name.

    Example:
        >>> canonical_resource("tcpip::192.168.1.100::INSTR")
        'TCPIP0::192.168.1.100::inst0::INSTR'
    """
    from pyvisa import rname  # late: it costs 50 ms, and not every program uses VISA

    try:
        return rname.to_canonical_name(name)
    except rname.InvalidResourceName as error:
        raise ValueError(f"{name!r} is no VISA resource name: {error}") from None
