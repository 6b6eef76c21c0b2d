"""The modem lines of a serial port: control wires beside the data (RS-232, EIA-574)."""

from __future__ import annotations

import attrs

from trio_daq.serialport.byte_stream import ControlLines


@attrs.frozen
class ModemLines:
    """What the control wires say. A wire is true when it is asserted.

    Attributes:
        cts: Clear to send, set by the device.
        dsr: Data set ready, set by the device.
        ri: Ring indicator, set by the device.
        cd: Carrier detect, set by the device.
        dtr: Data terminal ready, set by us.
        rts: Request to send, set by us.
    """

    cts: bool
    dsr: bool
    ri: bool
    cd: bool
    dtr: bool
    rts: bool


def read_modem_lines(device: ControlLines) -> ModemLines:
    """Return the state of all lines. Called in the thread of the port."""
    return ModemLines(
        cts=device.cts, dsr=device.dsr, ri=device.ri, cd=device.cd, dtr=bool(device.dtr), rts=bool(device.rts)
    )


def write_modem_lines(device: ControlLines, dtr: bool | None, rts: bool | None) -> None:
    """Set the lines that are ours; None leaves one as it is. Called in the thread of the port."""
    if dtr is not None:
        device.dtr = dtr
    if rts is not None:
        device.rts = rts
