"""The VISA attributes of one session of old code: what it sets is its own, and reaches no other session.

VPP-4.3 says which there are and what they are at first. Those that describe the resource come from its name; those that
would change the line itself (the speed of a serial port) are noted and not acted upon: the line has its settings.
"""

from __future__ import annotations

from typing import Any

from pyvisa import attributes, rname
from pyvisa.constants import AccessModes, InterfaceType, ResourceAttribute

_ENDLESS = 0xFFFFFFFF
"""VI_TMO_INFINITE, in milliseconds (VPP-4.3, table 3.6.1)."""

_FIRST_TIMEOUT = 2000
"""Milliseconds (VPP-4.3, rule 3.6.1)."""

LONGEST_TIMEOUT = 3600.0
"""Seconds for which an endless timeout stands."""

_SPEC_VERSION = 0x00700200


class VisaAttributes:
    """Attributes by number.

    Args:
        resource: Full name of the resource.
    """

    def __init__(self, resource: str) -> None:
        name = rname.ResourceName.from_string(resource)
        self._class = (name.interface_type_const, name.resource_class)
        self._values: dict[int, Any] = {
            ResourceAttribute.resource_name: resource,
            ResourceAttribute.resource_class: name.resource_class,
            ResourceAttribute.interface_type: name.interface_type_const,
            ResourceAttribute.interface_number: _number(getattr(name, "board", 0)),
            ResourceAttribute.resource_manufacturer_name: "trio_daq",
            ResourceAttribute.resource_spec_version: _SPEC_VERSION,
            ResourceAttribute.timeout_value: _FIRST_TIMEOUT,
            ResourceAttribute.resource_lock_state: AccessModes.no_lock,
        }
        for part, attribute in (
            ("host_address", ResourceAttribute.tcpip_address),
            ("port", ResourceAttribute.tcpip_port),
            ("lan_device_name", ResourceAttribute.tcpip_device_name),
            ("primary_address", ResourceAttribute.gpib_primary_address),
            ("serial_number", ResourceAttribute.usb_serial_number),
        ):
            if hasattr(name, part):
                value = getattr(name, part)
                is_number = attribute in (ResourceAttribute.tcpip_port, ResourceAttribute.gpib_primary_address)
                self._values[attribute] = _number(value) if is_number else value

    def get(self, attribute: int) -> Any:
        """Return the value of an attribute.

        Raises:
            LookupError: If the resource has no such attribute.
        """
        if attribute in self._values:
            return self._values[attribute]
        kind = self._kind(attribute)
        if kind.default in (attributes.NotAvailable, "N/A", None):
            raise LookupError(attribute)
        return kind.default

    def set(self, attribute: int, value: Any) -> None:
        """Set an attribute.

        Raises:
            LookupError: If the resource has no such attribute.
            AttributeError: If it can only be read.
        """
        if not self._kind(attribute).write:
            raise AttributeError(attribute)
        self._values[attribute] = value

    @property
    def timeout(self) -> float:
        """Seconds that a call waits for the instrument."""
        milliseconds = self._values[ResourceAttribute.timeout_value]
        return LONGEST_TIMEOUT if milliseconds == _ENDLESS else min(milliseconds / 1000, LONGEST_TIMEOUT)

    @property
    def termination(self) -> bytes | None:
        """The byte behind which reading stops, if it does."""
        is_serial = self._class[0] == InterfaceType.asrl
        if not (self.get(ResourceAttribute.asrl_end_in) if is_serial else self.get(ResourceAttribute.termchar_enabled)):
            return None
        return bytes([self.get(ResourceAttribute.termchar)])

    def _kind(self, attribute: int) -> type[attributes.Attribute[Any]]:
        kind = attributes.AttributesByID.get(attribute)
        of_all, of_this = attributes.AttributesPerResource[attributes.AllSessionTypes], self._class
        if kind is None or (kind not in of_all and kind not in attributes.AttributesPerResource[of_this]):
            raise LookupError(attribute)
        return kind


def _number(text: object) -> int:
    try:
        return int(str(text), 0)
    except ValueError:  # the board of a serial port may be a path
        return 0
