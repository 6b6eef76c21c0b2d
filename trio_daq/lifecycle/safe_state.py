"""When the lines of a lab are made safe, in which order, and what became of each.

How one line is made safe, and that it is the last thing said before it closes, is the line's own business. Here lines
are made safe when the lab has opened them and when somebody who is meant to leave them safe has ended, and closed in
order at the end, before the rank below closes what is left.

Invariants: a line of a higher ``safe_order`` is begun only when all of a lower one have ended; each line takes no
longer than its second.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from itertools import groupby
from typing import Protocol

import trio

from trio_daq.config import DualConfig, MemberConfig
from trio_daq.errors import SafeStateError, UnknownNameError
from trio_daq.lifecycle.lines import Lines
from trio_daq.lifecycle.member import Member
from trio_daq.lifecycle.report import SafeStateReport
from trio_daq.lifecycle.stage import Stage
from trio_daq.serialport import SerialPortConfig, SharedSerialPort
from trio_daq.sharing import SafeStateResult, ServiceNursery
from trio_daq.visa import VisaSessionConfig, VisaSessionManager

_log = logging.getLogger("trio_daq.lifecycle")

_TIMEOUT = 1.0
"""Seconds for one line."""

_CLOSING_TIMEOUT = 1.5
"""Seconds for one line to be made safe and to close."""


class _Line(Protocol):
    @property
    def config(self) -> SerialPortConfig | VisaSessionConfig: ...

    @property
    def last_safe_state(self) -> SafeStateResult | None: ...

    async def make_safe(self, timeout: float = 1.0) -> SafeStateResult: ...


class SafeStates:
    """The safe states of a lab.

    Args:
        config: Who uses which line.
        lines: The lines.
    """

    def __init__(self, config: DualConfig, lines: Lines) -> None:
        self._lines = lines
        self._config = config
        self._configs = {one.id: one for side in (config.v2, config.v4) for one in side.instruments}
        tables: list[SerialPortConfig | VisaSessionConfig] = [*config.serial.values(), *config.visa.values()]
        orders = {line.safe_order for line in tables if line.safe_state}
        self.seconds = len(orders) * _CLOSING_TIMEOUT
        """Seconds that all of it takes at most; 0 if no line has a safe state."""

    async def populate(self, stage: Stage) -> None:
        """Make all lines safe, and add to *stage* the member that closes them, safe and in order, at its end.

        Raises:
            SafeStateError: If one is not made safe.
        """
        ended = trio.Event()

        @trio.lowlevel.enable_ki_protection
        async def serve(*, task_status: trio.TaskStatus[None]) -> None:
            await self.make_safe()
            for report in self.reports():
                if report.result.outcome == "failed":
                    raise SafeStateError(resource=report.name, reason=report.result.reason)
            task_status.started()
            try:
                await ended.wait()
            finally:
                with trio.CancelScope(shield=True):
                    await self._in_order(self._all(), self._close)

        if self.seconds:
            await stage.add(Member("lines", serve, ended.set))

    async def make_safe(self, name: str | None = None) -> tuple[SafeStateReport, ...]:
        """Make the line *name*, or all that have a safe state, safe, and say how it went. See `Manager.make_safe`."""
        lines = self._all()
        if name is not None:
            if name not in lines:
                raise UnknownNameError(kind="line with a safe_state", name=name, known=sorted(lines), suggestion=None)
            lines = {name: lines[name]}
        await self._in_order(lines, lambda line: line.make_safe(_TIMEOUT))
        return tuple(report for report in self.reports() if report.name in lines)

    def reports(self) -> tuple[SafeStateReport, ...]:
        """Return what became of each line when it was last made safe."""
        return tuple(
            SafeStateReport(name=name, result=line.last_safe_state)
            for name, line in self._all().items()
            if line.last_safe_state is not None
        )

    def left_by(self, member: MemberConfig) -> tuple[str, ...]:
        """Return the names of the lines that are made safe when *member* ends: by default those nobody else uses."""
        if member.makes_safe is not None:
            return (member.makes_safe,) if isinstance(member.makes_safe, str) else member.makes_safe
        others = [
            other
            for side in (self._config.v2, self._config.v4)
            for other in side.instruments
            if side.enabled and other.id != member.id
        ]
        used = set().union(*map(_names_used, others))
        return tuple(name for name in self._all() if name in _names_used(member) - used)

    async def after_life_of(self, member: Member) -> None:
        """Make the lines safe that *member*, one of whose lives has ended for whatever reason, is to leave so."""
        config = self._configs.get(member.name)
        names = () if config is None else self.left_by(config)
        if names:
            lines = self._all()
            await self._in_order({name: lines[name] for name in names}, lambda line: line.make_safe(_TIMEOUT))
        for report in self.reports():
            if report.name in names and report.result.outcome == "failed":
                _log.error("%s is not safe after the end of %s: %s", report.name, member.name, report.result.reason)

    def _all(self) -> dict[str, _Line]:
        serial: dict[str, _Line] = {f"serial.{name}": port for name, port in self._lines.serial.items()}
        visa: dict[str, _Line] = {f"visa.{name}": session for name, session in self._lines.visa.items()}
        return {name: line for name, line in {**serial, **visa}.items() if line.config.safe_state}

    @trio.lowlevel.enable_ki_protection
    async def _in_order(self, lines: dict[str, _Line], work: Callable[[_Line], Awaitable[object]]) -> None:
        def order(line: _Line) -> int:
            return line.config.safe_order

        for _, group in groupby(sorted(lines.values(), key=order), key=order):
            async with ServiceNursery() as nursery:
                for line in group:
                    nursery.start_soon(_undisturbed, work, line)

    async def _close(self, line: _Line) -> None:
        await self._lines.close(line, _CLOSING_TIMEOUT - _TIMEOUT)


@trio.lowlevel.enable_ki_protection
async def _undisturbed(work: Callable[[_Line], Awaitable[object]], line: _Line) -> None:
    await work(line)


async def make_safe_from_cold(
    serial: Mapping[str, SerialPortConfig], visa: Mapping[str, VisaSessionConfig]
) -> tuple[SafeStateReport, ...]:
    """Open each line that has a safe state for that alone, in their order, and say how it went."""
    lines: dict[str, SerialPortConfig | VisaSessionConfig] = {}
    lines.update((f"serial.{name}", line) for name, line in serial.items() if line.safe_state)
    lines.update((f"visa.{name}", line) for name, line in visa.items() if line.safe_state)
    reports: list[SafeStateReport] = []

    def order(line: tuple[str, SerialPortConfig | VisaSessionConfig]) -> int:
        return line[1].safe_order

    async def make_safe(name: str, config: SerialPortConfig | VisaSessionConfig) -> None:
        if isinstance(config, SerialPortConfig):
            port = SharedSerialPort(config)
            reports.append(SafeStateReport(name=name, result=await port.make_safe()))
            await port.aclose()
        else:
            reports.append(SafeStateReport(name=name, result=await VisaSessionManager(config).make_safe()))

    for _, group in groupby(sorted(lines.items(), key=order), key=order):
        async with trio.open_nursery() as nursery:
            for name, config in group:
                nursery.start_soon(make_safe, name, config)
    return tuple(reports)


def _names_used(member: MemberConfig) -> set[str]:
    def names(kind: str, used: str | tuple[str, ...] | None) -> set[str]:
        return {f"{kind}.{name}" for name in ((used,) if isinstance(used, str) else used or ())}

    return names("serial", member.serial) | names("visa", member.visa)
