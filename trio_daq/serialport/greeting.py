"""Recognise the device at the other end of a line that was opened, and tell it what it has to know again."""

from __future__ import annotations

from trio_daq.errors import ExchangeTimeoutError, LineOpenError, ReplyError
from trio_daq.serialport.guard import SerialGuard
from trio_daq.serialport.line import SerialLine
from trio_daq.wire import Exchange, printable


async def greet(guard: SerialGuard, line: SerialLine) -> None:
    """Do what the settings ask for when a device is there anew. Cancelled, all of it is done again by the next owner.

    Raises:
        LineOpenError: If it is another device, or does not say which; it is let go of.
        ReplyError: If it answers a step of ``on_reconnect`` otherwise than expected.
        DaqError: As a guard's calls raise it.
    """
    config = line.config
    if config.identify is not None:
        await _identify(guard, line, config.identify)
    if line.opens > 1:
        for step in config.on_reconnect:
            await _take_step(guard, line, step)
    line.greeted = True


async def _identify(guard: SerialGuard, line: SerialLine, identify: Exchange) -> None:
    asked = printable(identify.query)
    try:
        reply = await guard.query(identify.query)
    except ExchangeTimeoutError as error:
        raise LineOpenError(
            resource=line.config.path, reason=f"the device does not answer {asked!r}, by which it is recognised"
        ) from error
    if not identify.accepts(reply):
        await line.hang_up()
        line.trouble = f"another device is there: it answers {asked!r} by {printable(reply)!r}"
        raise LineOpenError(
            resource=line.config.path,
            reason=line.trouble,
            hint=f"Expected {printable(identify.expect)!r}; look where the device is plugged in now.",
        )


async def _take_step(guard: SerialGuard, line: SerialLine, step: Exchange) -> None:
    if step.write:
        await guard.write_only(step.write + line.config.write_terminator)
        return
    reply = await guard.query(step.query)
    if not step.accepts(reply):
        raise ReplyError(
            resource=line.config.path,
            owner=guard.owner,
            command=printable(step.query),
            reply=reply,
            expected=f"{printable(step.expect)!r}, since the device has come back",
        )
