"""Look after a line while nobody wants it, or while those who want it have too little time to do so.

It stands in line like any owner, so it never takes the line from anybody. Without it a line that owners with short
deadlines made dirty could stay so for ever.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from trio_daq.errors import DaqError, LeaseRevokedError, LineUnusableError, PortBusyError
from trio_daq.serialport.line import SerialLine
from trio_daq.serialport.state import LineState
from trio_daq.sharing import Lease

_HEARTBEAT = 1.0
"""Seconds between looks at a line that nobody uses: whether it is still there, and whether it said something."""

_PATIENCE = 60.0
"""Seconds for its turn to come and for the line to become clean: as long as a lease finds reasonable."""

KEEPER = "keeper"
"""Its name as an owner."""


async def keep_line(lease: Lease, line: SerialLine, make_ready: Callable[[], Awaitable[None]]) -> None:
    """Look after *line* until it is closed."""
    while True:
        with trio.move_on_after(_HEARTBEAT):
            await line.in_trouble.wait()
        if line.closed:
            return
        if not line.in_trouble.is_set():
            await _look(lease, line)
        elif line.state is LineState.LOST and not line.config.reconnect:
            await line.pause(_HEARTBEAT)  # it is opened by who wants it
        else:
            await _mend(lease, line, make_ready)


async def _look(lease: Lease, line: SerialLine) -> None:
    if lease.holder is not None:
        return  # who has it sees for themselves
    try:
        async with lease.hold(KEEPER, 0):
            line.catch_up(trio.current_time())
    except (PortBusyError, LeaseRevokedError, trio.ClosedResourceError):
        pass
    except trio.BrokenResourceError:
        await line.hang_up()


async def _mend(lease: Lease, line: SerialLine, make_ready: Callable[[], Awaitable[None]]) -> None:
    try:
        if line.state is LineState.LOST:
            await line.wait_next_try()
        async with lease.hold(KEEPER, _PATIENCE):
            with trio.move_on_after(_PATIENCE):
                await make_ready()
    except LineUnusableError as error:
        await line.pause(error.retry_in or _HEARTBEAT)
    except (DaqError, trio.BrokenResourceError):
        pass  # the next round tries again, after the line's own pause
    except trio.ClosedResourceError:
        await trio.lowlevel.checkpoint()  # it was closed, or lost at this moment: the next round sees which
