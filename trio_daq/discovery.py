"""What serial ports this computer has, how to name each in a configuration, and who has it open.

It asks the operating system and opens nothing. VISA resources on the network are not looked for: that would send
broadcasts to every instrument of the building.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from serial.tools import list_ports
from serial.tools.list_ports_common import ListPortInfo

from trio_daq.serialport import port_holders, usb_path


@attrs.frozen(kw_only=True)
class FoundPort:
    """A serial port of this computer.

    Attributes:
        path: The device, such as ``/dev/ttyUSB0`` or ``COM3``.
        description: What the system says of it, for people.
        usb_path: The ``usb:VID:PID:SERIAL`` path that means this port alone, wherever it is plugged; None if it is no
            USB adapter, or cannot be told from another.
        held_by: The processes that have it open, as text; on Linux only.
    """

    path: str
    description: str
    usb_path: str | None
    held_by: tuple[str, ...]


def find_serial_ports() -> tuple[FoundPort, ...]:
    """Return the serial ports of this computer, by path. It blocks: not for the event loop."""
    ports = sorted(list_ports.comports(), key=lambda port: str(port.device))
    return tuple(_found(port, ports) for port in ports)


def _found(port: ListPortInfo, ports: Sequence[ListPortInfo]) -> FoundPort:
    return FoundPort(
        path=str(port.device),
        description=port.description or "",
        usb_path=usb_path(port, ports),
        held_by=tuple(str(holder) for holder in port_holders(port.device)),
    )
