"""Be the process of the simulated instruments: ``python -m trio_daq.sim --log FILE``.

Once everything listens, one JSON line on stdout says where: ``{"stage": "/dev/pts/7", "meter": 54321, "pid": 4711}``.
Nothing else is ever printed there. It ends when its stdin ends, on SIGTERM, or on SIGINT.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence

import attrs
import trio

from trio_daq.sim.dialogue import Bench
from trio_daq.sim.faults import NO_FAULTS, FaultPlan
from trio_daq.sim.log import InstrumentLog
from trio_daq.sim.meter import SimulatedMeter
from trio_daq.sim.stage import SimulatedStage
from trio_daq.sim.tcp_line import serve_on_tcp


@attrs.frozen
class _Order:
    """What the command line asks for."""

    log: str
    stage: FaultPlan | None
    meter: FaultPlan | None
    meter_port: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve what *arguments*, by default those of the command line, ask for."""
    trio.run(_serve, _parse(arguments))


def _parse(arguments: Sequence[str] | None) -> _Order:
    parser = argparse.ArgumentParser(
        prog="python -m trio_daq.sim",
        description="Simulated instruments, until stdin ends. With neither --stage nor --meter, both.",
    )
    parser.add_argument("--log", required=True, metavar="FILE", help="append the instruments' diary here")
    parser.add_argument("--meter-port", type=int, default=0, metavar="PORT", help="TCP port on loopback, 0 for any")
    for instrument, what in (("stage", "a stage controller on a pty"), ("meter", "a SCPI meter on TCP")):
        group = parser.add_argument_group(what)
        group.add_argument(f"--{instrument}", action="store_true", help=what)
        for field in attrs.fields(FaultPlan):
            option = f"--{instrument}-{field.name.replace('_', '-')}"
            group.add_argument(option, type=type(field.default), default=field.default, metavar="N")
    given = vars(parser.parse_args(arguments))
    served = {instrument for instrument in ("stage", "meter") if given[instrument]} or {"stage", "meter"}
    plans: dict[str, FaultPlan] = {}
    for instrument in ("stage", "meter"):
        values = {field.name: given[f"{instrument}_{field.name}"] for field in attrs.fields(FaultPlan)}
        try:
            plan = FaultPlan(**values)
        except ValueError as error:
            parser.error(f"--{instrument}-...: {error}")
        if instrument in served:
            plans[instrument] = plan
        elif plan != NO_FAULTS:
            parser.error(f"faults of the {instrument} need --{instrument}")
    return _Order(given["log"], plans.get("stage"), plans.get("meter"), given["meter_port"])


async def _serve(order: _Order) -> None:
    with InstrumentLog(order.log) as log, trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            stage_path = meter_port = None
            if order.stage is not None:
                from trio_daq.sim.pty_line import serve_on_pty  # late: the meter alone runs without POSIX

                stage_path = await nursery.start(serve_on_pty, Bench(SimulatedStage(), order.stage, log))
            if order.meter is not None:
                bench = Bench(SimulatedMeter(), order.meter, log)
                meter_port = await nursery.start(serve_on_tcp, bench, order.meter_port)
            sys.stdout.write(json.dumps({"stage": stage_path, "meter": meter_port, "pid": os.getpid()}) + "\n")
            sys.stdout.flush()
            nursery.start_soon(_cancel_at_signal, signals, nursery.cancel_scope)
            await _wait_stdin_ends()
            nursery.cancel_scope.cancel()


async def _cancel_at_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()


async def _wait_stdin_ends() -> None:
    # In a thread, since stdin may be anything: waiting for readability fails on files and on /dev/null.
    while await trio.to_thread.run_sync(os.read, sys.stdin.fileno(), 4096, abandon_on_cancel=True):
        pass


if __name__ == "__main__":
    main()
