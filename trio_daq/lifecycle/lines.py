"""What the members of a lab share, by name: ports and sessions, made anew at each start but the first, and devices.

Devices are given by whoever runs the lab, and live as long as that wants.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import attrs
import trio

from trio_daq.config import DualConfig
from trio_daq.errors import UnknownNameError
from trio_daq.legacy import Line, resource_of
from trio_daq.lifecycle.health import Note
from trio_daq.lifecycle.line_health import watch_port, watch_session
from trio_daq.lifecycle.member import Member
from trio_daq.lifecycle.stage import Stage
from trio_daq.serialport import SharedSerialPort
from trio_daq.sharing import SharedDevice
from trio_daq.visa import VisaSessionManager, canonical_resource


@attrs.frozen
class LineSnapshot:
    """What one line looked like at one moment.

    Attributes:
        name: Its name in the lab.
        kind: ``"serial"``, ``"visa"`` or ``"device"``.
        owner: Who has it, or whose command is in flight; None if nobody.
        held_for: Seconds for which they have had it.
        waiting: Who waits, first in line first.
        state: How far it can be trusted, in a word.
        exchanges: Commands carried out, by owner; of a device, how often each had it.
        hand_overs: How often it went to another owner than before.
        longest_wait: Seconds of the longest wait that ended well.
        resyncs: How often it had to be made clean, or opened anew.
    """

    name: str
    kind: str
    owner: str | None
    held_for: float
    waiting: tuple[str, ...]
    state: str
    exchanges: Mapping[str, int]
    hand_overs: int
    longest_wait: float
    resyncs: int


class _Revocable(Protocol):
    def revoke(self, reason: str, member: str | None = None) -> str | None: ...


class Lines:
    """All lines of a lab.

    Args:
        config: Which they are.
        note: Takes down what happens to them.

    Attributes:
        serial: Ports by name.
        visa: Sessions by name.
        devices: Shared devices by name.
    """

    def __init__(self, config: DualConfig, note: Note = lambda *_: None) -> None:
        self._config = config
        self._note = note
        self.serial: dict[str, SharedSerialPort] = {}
        self.visa: dict[str, VisaSessionManager] = {}
        self.devices: dict[str, SharedDevice[Any]] = {}
        self._used = False
        self._renew()

    async def populate(self, stage: Stage) -> None:
        """Open every line, as a member of *stage* that closes it at the end."""
        if self._used:
            self._renew()
        self._used = True
        for name, port in self.serial.items():
            await stage.add(_port_member(f"serial.{name}", port))
        for name, session in self.visa.items():
            await stage.add(Member(f"visa.{name}", session.serve, session.stop))

    def port(self, name_or_path: str) -> SharedSerialPort:
        """Return a port by its name, its path, or a link to its path."""
        if name_or_path in self.serial:
            return self.serial[name_or_path]
        real = os.path.realpath(name_or_path)
        for port in self.serial.values():
            if os.path.realpath(port.path) == real:
                return port
        raise unknown_name("serial port", name_or_path, self.serial)

    def session(self, name_or_resource: str | None) -> VisaSessionManager:
        """Return a session by its name or by any spelling of its resource; None for the only one there is."""
        if name_or_resource is None:
            if len(self.visa) == 1:
                return next(iter(self.visa.values()))
            raise unknown_name("VISA session", "(none given)", self.visa)
        if name_or_resource in self.visa:
            return self.visa[name_or_resource]
        try:
            canonical = canonical_resource(name_or_resource)
        except ValueError:
            raise unknown_name("VISA session", name_or_resource, self.visa) from None
        for session in self.visa.values():
            if canonical_resource(session.resource) == canonical:
                return session
        raise unknown_name("VISA session", name_or_resource, self.visa)

    def resources(self) -> tuple[str, ...]:
        """Return the VISA resource names of all sessions and ports."""
        lines: Iterable[Line] = (*self.visa.values(), *self.serial.values())
        return tuple(map(resource_of, lines))

    def by_resource(self, resource: str) -> Line:
        """Return a session or a port by any spelling of its VISA resource name."""
        try:
            return self.session(resource)
        except UnknownNameError:
            kind, _, path = resource.partition("::")[0].partition("ASRL")
            if kind or not path:
                raise
            return self.port(path)

    def share(self, device: SharedDevice[Any]) -> None:
        """Take a device among them.

        Raises:
            ValueError: If there is one of that name.
        """
        if device.name in self.devices:
            raise ValueError(f"a device called {device.name!r} is shared already; choose another name")
        self.devices[device.name] = device

    def device(self, name: str) -> SharedDevice[Any]:
        """Return a shared device by its name."""
        if name not in self.devices:
            raise unknown_name("shared device", name, self.devices)
        return self.devices[name]

    def take_back(self, member: str, reason: str) -> None:
        """Take every port and device back that *member* has, under whatever name, and end every transaction of it."""
        lines: Iterable[_Revocable] = (*self.serial.values(), *self.visa.values(), *self.devices.values())
        for line in lines:
            line.revoke(reason, member)

    async def close(self, line: object, timeout: float) -> None:
        """Close one line for good; what is in flight has no time left."""
        if isinstance(line, SharedSerialPort):
            await line.aclose(timeout)
        elif isinstance(line, VisaSessionManager):
            await line.close(0)

    def snapshot(self) -> tuple[LineSnapshot, ...]:
        """Return what all lines look like now."""
        ports = [_port_snapshot(name, port) for name, port in self.serial.items()]
        sessions = [_session_snapshot(name, session) for name, session in self.visa.items()]
        devices = [_device_snapshot(device) for device in self.devices.values()]
        return (*ports, *sessions, *devices)

    def _renew(self) -> None:
        self.serial = {name: SharedSerialPort(config) for name, config in self._config.serial.items()}
        self.visa = {name: VisaSessionManager(config) for name, config in self._config.visa.items()}
        for name, port in self.serial.items():
            watch_port(f"serial.{name}", port, self._note)
        for name, session in self.visa.items():
            watch_session(f"visa.{name}", session, self._note)


def _port_member(name: str, port: SharedSerialPort) -> Member:
    stopping = trio.Event()

    @trio.lowlevel.enable_ki_protection
    async def serve(*, task_status: trio.TaskStatus[None]) -> None:
        try:
            await port.open()
            task_status.started()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(port.keep)
                await stopping.wait()
                nursery.cancel_scope.cancel()
        finally:
            await port.aclose()

    return Member(name, serve, stopping.set)


def _port_snapshot(name: str, port: SharedSerialPort) -> LineSnapshot:
    seen = port.statistics()
    return LineSnapshot(
        name=name,
        kind="serial",
        owner=seen.lease.holder,
        held_for=seen.lease.held_for,
        waiting=seen.lease.waiting,
        state=seen.state.value,
        exchanges=seen.exchanges,
        hand_overs=seen.lease.hand_overs,
        longest_wait=seen.lease.longest_wait,
        resyncs=seen.recoveries,
    )


def _session_snapshot(name: str, session: VisaSessionManager) -> LineSnapshot:
    seen = session.statistics()
    return LineSnapshot(
        name=name,
        kind="visa",
        owner=seen.in_flight,
        held_for=seen.in_flight_for,
        waiting=seen.waiting,
        state=session.state,
        exchanges=seen.executed,
        hand_overs=seen.hand_overs,
        longest_wait=seen.longest_wait,
        resyncs=seen.resyncs,
    )


def _device_snapshot(device: SharedDevice[Any]) -> LineSnapshot:
    seen = device.statistics()
    return LineSnapshot(
        name=device.name,
        kind="device",
        owner=seen.holder,
        held_for=seen.held_for,
        waiting=seen.waiting,
        state="shared",
        exchanges=seen.grants,
        hand_overs=seen.hand_overs,
        longest_wait=seen.longest_wait,
        resyncs=0,
    )


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Return the error of a name that nothing has, with the names that there are."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    return UnknownNameError(kind=kind, name=name, known=names, suggestion=near[0] if near else None)
