"""Find the device that a path stands for: by its name, or by the USB adapter that it is.

A USB adapter gets another name when it is plugged elsewhere, so ``usb:VID:PID:SERIAL`` is looked up anew each time.
Matching is a pure function of what pyserial lists.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import attrs
from serial.tools import list_ports
from serial.tools.list_ports_common import ListPortInfo

from trio_daq.errors import LineOpenError
from trio_daq.wire import printable

_USB = re.compile(r"usb:([0-9a-f]{1,4}):([0-9a-f]{1,4})(?::(.+))?", re.IGNORECASE)


@attrs.frozen
class UsbAdapter:
    """What tells one USB adapter from another.

    Attributes:
        vendor_id: 16 bits, the maker of the adapter.
        product_id: 16 bits, its model.
        serial_number: Its own; None for any. Letter case does not count, since some systems change it.
    """

    vendor_id: int
    product_id: int
    serial_number: str | None = None

    def is_at(self, port: ListPortInfo) -> bool:
        """Return whether it is at this port."""
        if (port.vid, port.pid) != (self.vendor_id, self.product_id):
            return False
        return self.serial_number is None or self.serial_number.casefold() == (port.serial_number or "").casefold()


def find_device(path: str) -> str:
    """Return the device that *path* stands for now. It asks the system: not for the event loop.

    Args:
        path: ``usb:VID:PID`` or ``usb:VID:PID:SERIAL``, ids in hexadecimal; any other path is returned as it is.

    Raises:
        LineOpenError: If no adapter matches, or several do.
        ValueError: If it begins with ``usb:`` and is malformed.
    """
    if parse_usb_path(path) is None:
        return path
    return choose_device(path, list_ports.comports())


def parse_usb_path(path: str) -> UsbAdapter | None:
    """Return the adapter that *path* names, None if it is no ``usb:`` path.

    Raises:
        ValueError: If it is malformed.

    Example:
        >>> parse_usb_path("usb:0403:6001:A50285BI")
        UsbAdapter(vendor_id=1027, product_id=24577, serial_number='A50285BI')
    """
    if path[:4].lower() != "usb:":
        return None
    if (match := _USB.fullmatch(path)) is None:
        raise ValueError(
            f"{path!r} names no USB adapter; write usb:VID:PID or usb:VID:PID:SERIAL, VID and PID as one to four "
            "hexadecimal digits, such as 'usb:0403:6001' or 'usb:0403:6001:A50285BI'"
        )
    return UsbAdapter(int(match[1], 16), int(match[2], 16), match[3])


def choose_device(path: str, ports: Iterable[ListPortInfo]) -> str:
    """Return the device of the one port at which the adapter is that the ``usb:`` path names.

    Raises:
        LineOpenError: If it is at no port, or at several.
        ValueError: If *path* is malformed or no ``usb:`` path.
    """
    adapter = parse_usb_path(path)
    if adapter is None:
        raise ValueError(f"{path!r} is no usb: path")
    usb_ports = sorted(filter(_is_usb, ports), key=lambda port: str(port.device))
    found = [port for port in usb_ports if adapter.is_at(port)]
    if len(found) == 1:
        return str(found[0].device)
    if found:
        reason = f"{len(found)} serial ports match"
        hint = f"Write which one: {_listed(found, usb_ports)}."
    elif usb_ports:
        reason = "no such USB adapter is plugged in"
        hint = f"Found here: {_listed(usb_ports, usb_ports)}."
    else:
        reason = "no such USB adapter is plugged in"
        hint = "No USB serial ports were found."
    raise LineOpenError(resource=path, reason=reason, hint=hint)


def usb_path(port: ListPortInfo, ports: Iterable[ListPortInfo]) -> str | None:
    """Return the ``usb:`` path that means *port* alone among *ports*, None if there is none."""
    if not _is_usb(port):
        return None
    path = f"usb:{port.vid:04x}:{port.pid:04x}"
    if port.serial_number:
        path += f":{printable(port.serial_number)}"
    adapter = parse_usb_path(path)
    return path if adapter is not None and sum(map(adapter.is_at, filter(_is_usb, ports))) == 1 else None


def _is_usb(port: ListPortInfo) -> bool:
    return port.vid is not None and port.pid is not None


def _listed(shown: list[ListPortInfo], usb_ports: list[ListPortInfo]) -> str:
    return ", ".join(_name(port, usb_ports) for port in shown)


def _name(port: ListPortInfo, usb_ports: list[ListPortInfo]) -> str:
    """Return the ``usb:`` path that means this port alone; if there is none, its device and where it is plugged in."""
    device = printable(port.device)
    if (path := usb_path(port, usb_ports)) is not None:
        return f"{path} (now {device})"
    return f"{device} (USB socket {printable(port.location)}; see /dev/serial/by-path)" if port.location else device
