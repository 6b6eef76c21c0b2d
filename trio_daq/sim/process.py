"""Start the simulated instruments in a process of their own, and end it.

They live apart so that they go on, and their log with them, while the program under test is stalled, stopped or
killed. This is the side of the program that uses them; ``__main__`` is the other.

Invariants: the process holds the reading end of a pipe whose writing end only we hold, so it ends with us, however we
end. Leaving the block takes five seconds at most, cancelled or not.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import attrs
import trio

from trio_daq.errors import StartError
from trio_daq.sharing import checked_timeout
from trio_daq.sim.faults import CONNECTION_FAULTS, NO_FAULTS, FaultPlan

START_TIMEOUT = 10.0
"""Seconds to wait until everything listens."""
ORDER_TIMEOUT = 5.0
"""Seconds to wait until an order is taken, and a cable out or in."""
CLOSE_TIMEOUT = 3.0
"""Seconds for the process to end by itself once its stdin is closed."""
_JUST_NOW = 0.05
"""Seconds in which Trio takes note of a process that has ended: its own task waits for that."""

TERMINATE_TIMEOUT = 1.0
"""Seconds after SIGTERM, and again after SIGKILL."""

MeterOver = Literal["socket", "hislip", "vxi11", "pty"]
"""What carries the meter's messages."""
_METER_RESOURCES: dict[MeterOver, str] = {
    "socket": "TCPIP::127.0.0.1::{}::SOCKET",
    "hislip": "TCPIP::127.0.0.1::hislip0,{}::INSTR",
    "vxi11": "TCPIP::127.0.0.1,{}::inst0::INSTR",
    "pty": "ASRL{}::INSTR",
}

_log = logging.getLogger("trio_daq.sim")


@attrs.frozen(kw_only=True)
class SimulatedLab:
    """Where the simulated instruments are, and what can be done to them.

    Attributes:
        stage_path: Serial port of the stage controller, None if there is none.
        meter_port: TCP port of the meter on 127.0.0.1, None if there is none.
        meter_path: Serial port of the meter, None if it is on TCP or there is none.
        meter_over: What carries the meter's messages.
        bus_path: Serial port of the three stages on one line, addresses 1 to 3, None if there are none.
        log: Their diary, see `read_log`.
        pid: Their process.
    """

    stage_path: str | None
    meter_port: int | None
    meter_path: str | None
    meter_over: MeterOver
    bus_path: str | None
    log: Path
    pid: int
    _process: trio.Process = attrs.field(repr=False, eq=False)
    _stage_link: Path | None = attrs.field(repr=False, eq=False)

    @property
    def meter_resource(self) -> str | None:
        """VISA resource name of the meter; its messages end in a line feed."""
        where = self.meter_path if self.meter_port is None else self.meter_port
        return None if where is None else _METER_RESOURCES[self.meter_over].format(where)

    async def unplug_stage(self) -> None:
        """Pull the stage's cable out: whoever has its port open sees a hang-up, and the port is no longer there.

        The stage goes on without it, and what it says meanwhile is lost. Cancelled, it may be out or not.

        Raises:
            ValueError: If the lab was opened without ``stage_link``.
            trio.TooSlowError: If it was not out within 5 s.
        """
        await self._tell_stage(b"unplug\n", linked=False)

    async def replug_stage(self) -> None:
        """Put the stage's cable in again: its port is there again, as another pty perhaps. Raises as `unplug_stage`."""
        await self._tell_stage(b"replug\n", linked=True)

    def freeze(self) -> None:
        """Stop the process of the instruments (SIGSTOP): none answers, and nothing tells a client why. POSIX only."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen process go on; what it was asked meanwhile it answers now."""
        self._process.send_signal(signal.SIGCONT)

    async def restart_meter(self, away_for: float) -> None:
        """Switch the meter off, and on again after *away_for* seconds.

        Its connections are closed, what it had not read is gone, and so are the errors in its queue. While it is off
        its port refuses connections; after that it is the same port. Returns at once: the log says when it began.

        Raises:
            ValueError: If there is no meter, or it is not on a raw socket.
            trio.TooSlowError: If its process did not take the order within 5 s.
        """
        await self._tell_meter(b"restart", away_for)

    async def deafen_meter(self, seconds: float) -> None:
        """Have the meter read nothing for so many seconds, so that a client that writes fills the buffers and waits.

        It goes on to accept connections, and to answer what it has read. Returns and raises as `restart_meter`.
        """
        await self._tell_meter(b"deafen", seconds)

    async def _tell_meter(self, order: bytes, seconds: float) -> None:
        if self.meter_port is None or self.meter_over != "socket":
            raise ValueError("this lab has no meter on a raw socket")
        with trio.fail_after(ORDER_TIMEOUT):
            await self._tell(b"%s %g\n" % (order, checked_timeout(seconds)))

    async def _tell_stage(self, order: bytes, *, linked: bool) -> None:
        if self._stage_link is None:
            raise ValueError("only a lab that was opened with stage_link can unplug its stage: it could not come back")
        with trio.fail_after(ORDER_TIMEOUT):
            await self._tell(order)
            while self._stage_link.is_symlink() is not linked:  # noqa: ASYNC110 - a file has no event
                await trio.sleep(0.001)

    async def _tell(self, order: bytes) -> None:
        assert self._process.stdin is not None
        await self._process.stdin.send_all(order)


@asynccontextmanager
async def open_simulated_lab(
    log: str | os.PathLike[str],
    *,
    stage: FaultPlan | None = NO_FAULTS,
    meter: FaultPlan | None = NO_FAULTS,
    meter_over: MeterOver = "socket",
    meter_port: int = 0,
    bus: FaultPlan | None = None,
    stage_link: str | os.PathLike[str] | None = None,
    stall_limit: float | None = None,
) -> AsyncIterator[SimulatedLab]:
    r"""Have simulated instruments for the length of an ``async with`` block.

    They run in a session of their own, so Ctrl-C at the terminal does not reach them first. The exception of the block
    passes as it is. Cancellation ends them too, within five seconds.

    Args:
        log: File that the instruments append their diary to.
        stage: Faults of the stage controller on a pty (POSIX only), None for no stage.
        meter: Faults of the meter, None for no meter.
        meter_over: What carries the meter's messages: a raw TCP ``"socket"``, ``"hislip"``, ``"vxi11"`` or a ``"pty"``
            (POSIX only).
        meter_port: TCP port of the meter on 127.0.0.1, 0 for any free one.
        bus: Faults of each of three stages that share one pty (POSIX only), None for no such line.
        stall_limit: If their process did not run for so many seconds, stopped or starved, the log says so, as a fault
            ``"freeze"``. None: nobody looks.
        stage_link: A path at which to make a link to the stage's pty, so that it can be unplugged and come back.

    Raises:
        StartError: If they did not come up within 10 s. What went wrong there stands on stderr.
        ValueError: If stage, meter and bus are None, there is a link and no stage, or a plan has a fault of
            connections for an instrument on a serial line.

    Example:
        >>> import tempfile
        >>> async def main():
        ...     with tempfile.TemporaryDirectory() as folder:
        ...         async with open_simulated_lab(f"{folder}/instruments.jsonl", stage=None) as lab:
        ...             stream = await trio.open_tcp_stream("127.0.0.1", lab.meter_port)
        ...             await stream.send_all(b"*OPC?\n")
        ...             print(await stream.receive_some())
        ...             await stream.aclose()
        >>> trio.run(main)
        b'1\n'
    """
    if stage is None and meter is None and bus is None:
        raise ValueError("a simulated lab needs a stage or a meter or a bus")
    if stage is None and stage_link is not None:
        raise ValueError("stage_link needs a stage")
    if any(plan is not None and plan.needs_connection for plan in (stage, bus, meter if meter_over == "pty" else None)):
        raise ValueError(f"a serial line has no connection that could have {', '.join(CONNECTION_FAULTS)}")
    link = None if stage_link is None else Path(stage_link)
    command = [sys.executable, "-P", "-m", "trio_daq.sim", f"--log={os.fspath(log)}"]
    command += [*_options("stage", stage), *_options("meter", meter), *_options("bus", bus)]
    command += [f"--meter-over={meter_over}", f"--meter-port={meter_port}"]
    command += [] if link is None else [f"--stage-link={link}"]
    command += [] if stall_limit is None else [f"--stall-limit={stall_limit}"]
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, env=_environment()
    )
    try:
        ready = await _wait_ready(process)
        yield SimulatedLab(
            stage_path=ready["stage"],
            meter_port=None if meter_over == "pty" else ready["meter"],
            meter_path=ready["meter"] if meter_over == "pty" else None,
            meter_over=meter_over,
            bus_path=ready["bus"],
            log=Path(log),
            pid=process.pid,
            process=process,
            stage_link=link,
        )
        if await _has_ended(process):
            _log.warning("the simulated instruments (pid %d) had ended by themselves", process.pid)
    finally:
        with trio.CancelScope(shield=True):
            await _end(process)


async def _has_ended(process: trio.Process) -> bool:
    """Return whether the process has ended, also if that was a moment ago and Trio is just taking note of it."""
    with trio.move_on_after(_JUST_NOW):
        await process.wait()
    return process.returncode is not None


def _options(instrument: str, plan: FaultPlan | None) -> list[str]:
    if plan is None:
        return []
    values = attrs.asdict(plan).items()
    return [f"--{instrument}", *(f"--{instrument}-{name.replace('_', '-')}={value}" for name, value in values)]


def _environment() -> dict[str, str]:
    # -P keeps the user's folder, and any serial.py in it, off the path; ours is added, as it may have come from there.
    root = str(Path(__file__).resolve().parents[2])
    paths = [path for path in (os.environ.get("PYTHONPATH"), root) if path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


async def _wait_ready(process: trio.Process) -> dict[str, Any]:
    assert process.stdout is not None
    said = b""
    with trio.move_on_after(START_TIMEOUT):
        while not said.endswith(b"\n"):
            if not (data := await process.stdout.receive_some()):
                await process.wait()
                break
            said += data
    if said.endswith(b"\n"):
        ready: dict[str, Any] = json.loads(said)
        return ready
    cause: OSError
    if process.returncode is not None:
        cause = ChildProcessError(f"their process ended with code {process.returncode}; see stderr")
    else:
        cause = TimeoutError(f"they were not ready within {START_TIMEOUT:g} s")
    raise StartError(member="simulated instruments", cause=cause) from cause


async def _end(process: trio.Process) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    await process.stdin.aclose()
    with trio.move_on_after(CLOSE_TIMEOUT):
        await process.wait()
    for stop, name in ((process.terminate, "SIGTERM"), (process.kill, "SIGKILL")):
        if process.returncode is None:
            _log.warning("the simulated instruments (pid %d) did not end; sending %s", process.pid, name)
            stop()
            with trio.move_on_after(TERMINATE_TIMEOUT):
                await process.wait()
    await process.stdout.aclose()
