"""Be the process of the simulated instruments: ``python -m trio_daq.sim --log FILE``.

Once everything listens, one JSON line on stdout says where:
``{"stage": "/dev/pts/7", "meter": 54321, "bus": null, "pid": 4711}``. Nothing else is ever printed there. With
``--meter-over pty`` the meter, too, is at a path. It ends when its stdin ends, on SIGTERM, or on SIGINT. Until then it
obeys lines on stdin: ``unplug`` pulls the stage's cable out, ``replug`` puts it in again; of a meter on a raw socket,
``restart S`` switches it off for S seconds, and ``deafen S`` has it read nothing for S seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING

import attrs
import trio

from trio_daq.sim.bus import SimulatedBus, SimulatedStation
from trio_daq.sim.command_cutter import CommandCutter
from trio_daq.sim.dialogue import Bench
from trio_daq.sim.faults import CONNECTION_FAULTS, NO_FAULTS, FaultPlan
from trio_daq.sim.hislip_line import serve_on_hislip
from trio_daq.sim.log import InstrumentLog
from trio_daq.sim.meter import SimulatedMeter
from trio_daq.sim.stage import SimulatedStage
from trio_daq.sim.tcp_line import TcpLine
from trio_daq.sim.vxi11_line import serve_on_vxi11

if TYPE_CHECKING:
    from trio_daq.sim.pty_line import PtyLine


MeterSocket = tuple[Bench, TcpLine]

_KINDS = {"stage": "a stage controller on a pty", "meter": "a SCPI meter on TCP", "bus": "three stages on one pty"}
_STATIONS = (b"1", b"2", b"3")
_METER_SERVERS = {"hislip": serve_on_hislip, "vxi11": serve_on_vxi11}


@attrs.frozen
class _Order:
    """What the command line asks for."""

    log: str
    plans: Mapping[str, FaultPlan]
    stage_link: str | None
    meter_port: int
    meter_over: str
    stall_limit: float | None


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve what *arguments*, by default those of the command line, ask for."""
    trio.run(_serve, _parse(arguments))


def _parse(arguments: Sequence[str] | None) -> _Order:
    parser = argparse.ArgumentParser(
        prog="python -m trio_daq.sim",
        description="Simulated instruments, until stdin ends. With none of --stage, --meter and --bus, the first two.",
    )
    parser.add_argument("--log", required=True, metavar="FILE", help="append the instruments' diary here")
    parser.add_argument("--stage-link", metavar="PATH", help="make a link to the stage's pty, which may come and go")
    parser.add_argument("--meter-port", type=int, default=0, metavar="PORT", help="TCP port on loopback, 0 for any")
    parser.add_argument(
        "--meter-over",
        choices=("socket", *_METER_SERVERS, "pty"),
        default="socket",
        help="what carries the meter's messages",
    )
    parser.add_argument(
        "--stall-limit", type=float, metavar="S", help="note when this process did not run for S seconds"
    )
    for instrument, what in _KINDS.items():
        group = parser.add_argument_group(what)
        group.add_argument(f"--{instrument}", action="store_true", help=what)
        for field in attrs.fields(FaultPlan):
            option = f"--{instrument}-{field.name.replace('_', '-')}"
            group.add_argument(option, type=type(field.default), default=field.default, metavar="N")
    given = vars(parser.parse_args(arguments))
    served = {instrument for instrument in _KINDS if given[instrument]} or {"stage", "meter"}
    plans: dict[str, FaultPlan] = {}
    for instrument in _KINDS:
        values = {field.name: given[f"{instrument}_{field.name}"] for field in attrs.fields(FaultPlan)}
        try:
            plan = FaultPlan(**values)
        except ValueError as error:
            parser.error(f"--{instrument}-...: {error}")
        if plan.needs_connection and instrument != "meter":
            parser.error(f"the {instrument} has no connection that could have {', '.join(CONNECTION_FAULTS)}")
        if instrument in served:
            plans[instrument] = plan
        elif plan != NO_FAULTS:
            parser.error(f"faults of the {instrument} need --{instrument}")
    return _Order(
        given["log"], plans, given["stage_link"], given["meter_port"], given["meter_over"], given["stall_limit"]
    )


async def _serve(order: _Order) -> None:
    with InstrumentLog(order.log) as log, trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            if order.stall_limit is not None:
                nursery.start_soon(_note_stalls, order.stall_limit, log)
            where: dict[str, object] = dict.fromkeys(_KINDS)
            cable: PtyLine | None = None
            meter: MeterSocket | None = None
            if (plan := order.plans.get("stage")) is not None:
                cable = _open_cable(order.stage_link)
                where["stage"] = await nursery.start(cable.serve, Bench(SimulatedStage(), plan, log))
            if (plan := order.plans.get("meter")) is not None:
                bench = Bench(SimulatedMeter(), plan, log)
                if order.meter_over == "pty":
                    where["meter"] = await nursery.start(_open_cable(None).serve, bench)
                elif order.meter_over == "socket":
                    line = TcpLine(bench, order.meter_port)
                    where["meter"] = await nursery.start(line.serve)
                    meter = bench, line
                else:
                    where["meter"] = await nursery.start(_METER_SERVERS[order.meter_over], bench, order.meter_port)
            if (plan := order.plans.get("bus")) is not None:
                stations = {
                    address: Bench(SimulatedStation(address, SimulatedStage()), plan, log) for address in _STATIONS
                }
                where["bus"] = await nursery.start(_open_cable(None).serve, SimulatedBus(stations, nursery))
            sys.stdout.write(json.dumps({**where, "pid": os.getpid()}) + "\n")
            sys.stdout.flush()
            nursery.start_soon(_cancel_at_signal, signals, nursery.cancel_scope)
            await _obey_stdin(cable, meter, log)
            nursery.cancel_scope.cancel()


def _open_cable(link: str | None) -> PtyLine:
    from trio_daq.sim.pty_line import PtyLine  # late: the meter alone runs without POSIX

    return PtyLine(link)


async def _cancel_at_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()


async def _note_stalls(limit: float, log: InstrumentLog) -> None:
    """Note whenever this process did not run for *limit* seconds: stopped, or starved by a busy computer."""
    looked = time.monotonic()
    while True:
        await trio.sleep(limit / 2)
        looked, before = time.monotonic(), looked
        if looked - before > limit:
            log.write("lab", "fault", b"%.3f s" % (looked - before), None, "freeze")


async def _obey_stdin(cable: PtyLine | None, meter: MeterSocket | None, log: InstrumentLog) -> None:
    """Do what the lines on stdin say, until it ends."""
    cutter = CommandCutter(b"\n")
    # In a thread, since stdin may be anything: waiting for readability fails on files and on /dev/null.
    while data := await trio.to_thread.run_sync(os.read, sys.stdin.fileno(), 4096, abandon_on_cancel=True):
        for line in cutter.feed(data):
            if isinstance(line, bytes):
                _obey(line, cable, meter, log)


def _obey(order: bytes, cable: PtyLine | None, meter: MeterSocket | None, log: InstrumentLog) -> None:
    match order.split():
        case [b"unplug"] if cable is not None:
            log.write("stage", "fault", b"", None, "unplug")
            cable.unplug()
        case [b"replug"] if cable is not None:
            cable.plug()
        case [b"restart", seconds] if meter is not None:
            bench, line = meter
            log.write("meter", "fault", seconds + b" s", None, "restart")
            bench.instrument = SimulatedMeter()  # what it knew is gone
            line.restart(float(seconds))
        case [b"deafen", seconds] if meter is not None:
            log.write("meter", "fault", seconds + b" s", None, "deaf")
            meter[1].deafen(float(seconds))


if __name__ == "__main__":
    main()
