"""Drivers that ask an instrument the same questions again and again, and publish the numbers."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping

import trio

from trio_daq.drivers.context import DriverContext
from trio_daq.errors import DaqError, ReplyError
from trio_daq.serialport import SharedSerialPort
from trio_daq.sharing import checked_timeout
from trio_daq.visa import VisaSessionManager

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?(?:nan|inf(?:inity)?)\b", re.IGNORECASE)
"""IEEE 488.2 §8.7.2-8.7.4 (NR1, NR2, NR3), and the words for not-a-number and infinity (SCPI-99 §7.2.1.5)."""


async def scpi_poll(
    *,
    visa: VisaSessionManager,
    context: DriverContext,
    commands: Mapping[str, str],
    units: Mapping[str, str] | None = None,
    period: float = 1.0,
    timeout: float | None = None,
) -> None:
    """Ask a VISA instrument each of *commands* every *period* seconds, and publish the first number of each reply.

    A command that fails is logged and asked again at the next turn.

    Args:
        visa: The session.
        context: Where to publish, and when to stop.
        commands: Channel to query, for example ``{"voltage": "MEAS:VOLT?"}``.
        units: Channel to unit.
        period: Seconds from one turn to the next.
        timeout: Seconds for each command; the session's own if omitted.
    """

    async def ask(command: str) -> str:
        return await visa.query(command, timeout)

    await _poll(visa.resource, ask, context, commands, units or {}, period)


async def serial_poll(
    *,
    serial: SharedSerialPort,
    context: DriverContext,
    commands: Mapping[str, str],
    units: Mapping[str, str] | None = None,
    period: float = 1.0,
    timeout: float | None = None,
    station: str | None = None,
) -> None:
    """Ask a serial instrument each of *commands* every *period* seconds, and publish the first number of each reply.

    The port is held for one command at a time, so others can come in between. Commands and replies are ASCII; the
    port's terminators are added and taken off.

    Args:
        serial: The port.
        context: Where to publish, and when to stop.
        commands: Channel to query, for example ``{"position": "POS?"}``.
        units: Channel to unit.
        period: Seconds from one turn to the next.
        timeout: Seconds for each exchange; the port's own if omitted.
        station: Which of the port's stations to ask, if it has any.
    """

    async def ask(command: str) -> str:
        async with serial.acquire(station=station) as guard:
            reply = await guard.query(command.encode("ascii"), timeout=timeout)
        try:
            return reply.decode("ascii")
        except UnicodeDecodeError:
            raise ReplyError(
                resource=serial.path, owner=context.id, command=command, reply=reply, expected="ASCII text"
            ) from None

    await _poll(serial.path, ask, context, commands, units or {}, period)


async def _poll(
    resource: str,
    ask: Callable[[str], Awaitable[str]],
    context: DriverContext,
    commands: Mapping[str, str],
    units: Mapping[str, str],
    period: float,
) -> None:
    checked_timeout(period, "period", zero=False)
    if not commands:
        raise ValueError("commands names no channel; give at least one, such as {voltage = 'MEAS:VOLT?'}")
    started, turns = trio.current_time(), 0
    while not context.stopping.is_set():
        for channel, command in commands.items():
            if context.stopping.is_set():
                return
            asked_ns = time.monotonic_ns()
            try:
                value = _first_number(resource, context.id, command, await ask(command))
            except DaqError as error:
                context.log.warning("%s", error)
            else:
                await context.publish(channel, value, units.get(channel, ""), asked_ns=asked_ns)
        # On the grid of the start, so that the phase does not drift; turns that are over already are left out.
        turns = max(turns + 1, int((trio.current_time() - started) / period) + 1)
        await context.wait_stopping(max(0.0, started + turns * period - trio.current_time()))


def _first_number(resource: str, owner: str, command: str, reply: str) -> float:
    found = _NUMBER.search(reply)
    if found is None:
        raise ReplyError(resource=resource, owner=owner, command=command, reply=reply, expected="a number")
    return float(found[0])
