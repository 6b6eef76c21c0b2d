"""What a lab uses, and what other serial ports this computer has.

The system is asked once in 30 s, and again when something was plugged, in a thread. VISA resources that the lab does
not use are not looked for: see `trio_daq.discovery`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Literal

import attrs
import trio

from trio_daq.discovery import FoundPort, find_serial_ports
from trio_daq.errors import LineOpenError
from trio_daq.lifecycle.lines import Lines
from trio_daq.serialport import find_device

_FRESH_FOR = 30.0
"""Seconds for which what the system said is good, unless something was plugged."""

_NODES = "/dev"
"""Where device nodes come and go; nobody else writes there, so its time tells of plugs. Not on Windows."""


@attrs.frozen(kw_only=True)
class Device:
    """Something that a lab uses, or could use.

    Attributes:
        kind: ``"serial"`` for a port, ``"visa"`` for a session, ``"device"`` for a shared object.
        resource: The path of a port, a VISA resource name, or the name under which an object is shared.
        used_as: Its name in the lab; None if the lab does not use it.
        state: How far the lab can trust it, in a word; None if the lab does not use it.
        description: What the system says of a port, for people.
        usb_path: How to write a port in a configuration so that it is found wherever it is plugged.
        held_by: Processes that have a port open; on Linux only.
    """

    kind: Literal["serial", "visa", "device"]
    resource: str
    used_as: str | None = None
    state: str | None = None
    description: str = ""
    usb_path: str | None = None
    held_by: tuple[str, ...] = ()


class DeviceList:
    """The devices of one lab.

    Args:
        lines: What it uses.
    """

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._ports: dict[str, FoundPort] = {}
        self._paths: dict[str, str] = {}
        self._asked_at: float | None = None
        self._nodes_at: int | None = None

    async def all(self, *, refresh: bool) -> tuple[Device, ...]:
        """Return what the lab uses, and then the other serial ports by path.

        Cancelled, it lets the thread that asks the system end by itself.

        Args:
            refresh: Ask the system now, however fresh the last answer is.
        """
        if refresh or not self._is_fresh():
            self._nodes_at = _nodes_at()  # before it is asked: what comes meanwhile makes it ask again
            paths = [port.path for port in self._lines.serial.values()]
            self._ports, self._paths = await trio.to_thread.run_sync(_ask_system, paths, abandon_on_cancel=True)
            self._asked_at = trio.current_time()
        return (*self._used(), *self._unused())

    def _is_fresh(self) -> bool:
        if self._asked_at is None or trio.current_time() - self._asked_at > _FRESH_FOR:
            return False
        return self._nodes_at == _nodes_at()

    def _used(self) -> Iterable[Device]:
        for name, port in self._lines.serial.items():
            found = self._ports.get(self._paths.get(port.path, ""))
            yield attrs.evolve(
                _device(found) if found is not None else Device(kind="serial", resource=port.path),
                resource=port.path,
                used_as=name,
                state=port.state.value,
            )
        for name, session in self._lines.visa.items():
            yield Device(kind="visa", resource=session.resource, used_as=name, state=session.state)
        for name, shared in self._lines.devices.items():
            yield Device(
                kind="device", resource=name, used_as=name, state="free" if shared.is_available() else "in use"
            )

    def _unused(self) -> Iterable[Device]:
        used = {self._paths.get(port.path) for port in self._lines.serial.values()}
        return (_device(found) for path, found in self._ports.items() if path not in used)


def _ask_system(paths: Iterable[str]) -> tuple[dict[str, FoundPort], dict[str, str]]:
    """Return the ports that there are, by their real paths, and the real path of each of *paths*."""
    found = {os.path.realpath(port.path): port for port in find_serial_ports()}
    return found, {path: _real_path(path) for path in paths}


def _real_path(path: str) -> str:
    try:
        return os.path.realpath(find_device(path))
    except LineOpenError:  # it is not plugged in
        return path


def _device(port: FoundPort) -> Device:
    return Device(
        kind="serial",
        resource=port.path,
        description=port.description,
        usb_path=port.usb_path,
        held_by=port.held_by,
    )


def _nodes_at() -> int | None:
    try:
        return os.stat(_NODES).st_mtime_ns
    except OSError:
        return None
