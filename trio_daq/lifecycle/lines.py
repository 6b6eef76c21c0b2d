"""The ports and sessions of a lab, by name: made anew at each start but the first, found by whoever needs them."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping

import attrs
import trio

from trio_daq.config import DualConfig
from trio_daq.errors import UnknownNameError
from trio_daq.lifecycle.member import Member
from trio_daq.lifecycle.stage import Stage
from trio_daq.serialport import SharedSerialPort
from trio_daq.visa import VisaSessionManager, canonical_resource


@attrs.frozen
class LineSnapshot:
    """What one line looked like at one moment.

    Attributes:
        name: Its name in the lab.
        kind: ``"serial"`` or ``"visa"``.
        owner: Who has it, or whose command is in flight; None if nobody.
        held_for: Seconds for which they have had it.
        waiting: Who waits, first in line first.
        state: How far it can be trusted, in a word.
        exchanges: Commands carried out, by owner.
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


class Lines:
    """All lines of a lab.

    Attributes:
        serial: Ports by name.
        visa: Sessions by name.
    """

    def __init__(self, config: DualConfig) -> None:
        self._config = config
        self.serial: dict[str, SharedSerialPort] = {}
        self.visa: dict[str, VisaSessionManager] = {}
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

    def take_back(self, owner: str, reason: str) -> None:
        """Take every port back that *owner* has, and end every transaction of theirs."""
        for port in self.serial.values():
            if port.current_owner() == owner:
                port.revoke(reason)
        for session in self.visa.values():
            if session.statistics().transaction == owner:
                session.revoke(reason)

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
        return (*ports, *sessions)

    def _renew(self) -> None:
        self.serial = {name: SharedSerialPort(config) for name, config in self._config.serial.items()}
        self.visa = {name: VisaSessionManager(config) for name, config in self._config.visa.items()}


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


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Return the error of a name that nothing has, with the names that there are."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    return UnknownNameError(kind=kind, name=name, known=names, suggestion=near[0] if near else None)
