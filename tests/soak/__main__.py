"""Soak what instruments are shared by in faults, and say what went astray: ``python tests/soak``.

Real ptys and loopback TCP, the instruments in a process of their own, the real clock. Each mode is one run with its own
instruments:

- ``sync``: `SharedSerialPort` with a sync query, under every kind of fault;
- ``flush``, ``none``: pyserial and a lock, with the input flushed before each command or not;
- ``bus``: `SharedSerialPort` with three stations on one line, each with its own sync query and its own faults;
- ``bus-flush``: pyserial and a lock on that line;
- ``visa-native``, ``visa-pyvisa``: `VisaSessionManager` over either transport, by every verb, with the faults of TCP;
- ``visa-peer``, ``visa-peer-clear``: pyvisa-py and a lock, without and with a device clear after each error.

The verdict comes from the instrument's log and the owners' notes alone. The exit code is 1 if one of ours misroutes,
doubles, loses, or sends what it called not sent, if a kind of fault makes up less than 1 % of the exchanges, or if a
peer gets everything right (then the faults were too tame to show anything).
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Literal

import attrs
import trio
from notes import Notebook
from owners import TASK_FAULTS, Crowd
from peers import run_peer
from verdict import Verdict, judge, report
from visa_owners import OWNER_FAULTS, VisaCrowd
from visa_peers import run_visa_peer
from visa_world import WORLD_FAULTS, VisaWorld

from trio_daq.serialport import SerialPortConfig, SharedSerialPort
from trio_daq.sim import FaultPlan, SimulatedLab, open_simulated_lab, read_log
from trio_daq.visa import VisaSessionConfig, VisaSessionManager
from trio_daq.wire import SyncQuery

EVERY = 80
"""Each kind of fault comes once in so many exchanges, or answers: 1.25 %, so that 1 % is reached for certain."""
KINDS = ("late", "silent", "half", "garbage", "garbage_after", "echo", "split", "twice", "unsolicited")
SYNC_FAULTS = (*KINDS, *TASK_FAULTS, "unplug", "freeze")
BUS_FAULTS = (*KINDS, *TASK_FAULTS, "freeze")
STATIONS = ("1", "2", "3")
VISA_EVERY = 48
"""Answers are counted here, of which there are fewer than exchanges: some are writes, some are never sent."""
VISA_KINDS = ("late", "silent", "half", "split", "garbage", "reset", "fin", "lie")
VISA_FAULTS = (*VISA_KINDS, *OWNER_FAULTS, *WORLD_FAULTS, "unread")


@attrs.frozen
class Setting:
    """What the runs have in common.

    Attributes:
        timeout: Seconds in which the instrument ought to answer.
        late_by: Seconds by which a late reply is late.
        seed: Of the instrument's faults.
    """

    timeout: float
    late_by: float
    seed: int

    @property
    def stall_limit(self) -> float:
        """Seconds that the instrument's process may not run before that counts as a fault: well below *timeout*."""
        return 0.4 * self.timeout

    def plan(self, kinds: tuple[str, ...], every: int = EVERY) -> FaultPlan:
        """Return a plan with these kinds of fault."""
        return FaultPlan(late_by=self.late_by, seed=self.seed, **{f"{kind}_every": every for kind in kinds})

    def meter(self, folder: Path) -> AbstractAsyncContextManager[SimulatedLab]:
        """Return a meter on TCP, with its faults."""
        plan = self.plan(VISA_KINDS, VISA_EVERY)
        return open_simulated_lab(folder / "log", stage=None, meter=plan, stall_limit=self.stall_limit)

    def port(self, path: str, **changes: object) -> SharedSerialPort:
        """Return a port with these settings."""
        config = SerialPortConfig(
            path=path,
            write_terminator="\r\n",
            read_terminator="\r\n",
            timeout=self.timeout,
            acquire_timeout=30.0,
            unsolicited=rb"EVENT \d+",
        )
        return SharedSerialPort(attrs.evolve(config, **changes))


async def run_sync(setting: Setting, book: Notebook, folder: Path) -> None:
    """Nine owners of one port, all faults."""
    plan = setting.plan(KINDS)
    async with open_simulated_lab(
        folder / "log", stage=plan, meter=None, stage_link=folder / "stage", stall_limit=setting.stall_limit
    ) as lab:
        port = setting.port(str(lab.stage_path), sync_query=SyncQuery("ECHO {nonce}", "{nonce}"))
        await Crowd(port, lab, book, EVERY).run(tasks=6, threads=3)
        await port.aclose()


async def run_bus(setting: Setting, book: Notebook, folder: Path) -> None:
    """Nine owners, three stations on one line, each with its own sync query."""
    plan = setting.plan(KINDS)
    queries = {name: SyncQuery(f"{name} ECHO {{nonce}}", f"{name} {{nonce}}") for name in STATIONS}
    async with open_simulated_lab(
        folder / "log", stage=None, meter=None, bus=plan, stall_limit=setting.stall_limit
    ) as lab:
        port = setting.port(str(lab.bus_path), stations=queries)
        await Crowd(port, lab, book, EVERY, STATIONS).run(tasks=9, threads=0)
        await port.aclose()


def peer(*, flush: bool, bus: bool = False) -> Callable[[Setting, Notebook, Path], Awaitable[None]]:
    """Return the run of a peer."""

    async def run(setting: Setting, book: Notebook, folder: Path) -> None:
        plan = setting.plan(KINDS)
        async with open_simulated_lab(
            folder / "log", stage=None if bus else plan, meter=None, bus=plan if bus else None
        ) as lab:

            def work() -> None:
                path = str(lab.bus_path if bus else lab.stage_path)
                run_peer(path, book, timeout=setting.timeout, flush=flush, stations=len(STATIONS) if bus else 0)

            await trio.to_thread.run_sync(work)

    return run


def visa(transport: Literal["native", "pyvisa"]) -> Callable[[Setting, Notebook, Path], Awaitable[None]]:
    """Return the run of nine owners of one session, all faults."""

    async def run(setting: Setting, book: Notebook, folder: Path) -> None:
        async with setting.meter(folder) as lab:
            assert lab.meter_resource is not None
            config = VisaSessionConfig(resource=lab.meter_resource, timeout=setting.timeout, transport=transport)
            async with VisaSessionManager(config) as session:
                world = VisaWorld(lab, book, EVERY, setting.timeout)
                await VisaCrowd(session, book, VISA_EVERY, world).run(tasks=7, threads=2)

    return run


def visa_peer(*, clear: bool) -> Callable[[Setting, Notebook, Path], Awaitable[None]]:
    """Return the run of a peer of our session."""

    async def run(setting: Setting, book: Notebook, folder: Path) -> None:
        async with setting.meter(folder) as lab, trio.open_nursery() as nursery:
            assert lab.meter_resource is not None
            nursery.start_soon(VisaWorld(lab, book, EVERY, setting.timeout).disturb)
            work = functools.partial(run_visa_peer, lab.meter_resource, book, timeout=setting.timeout, clear=clear)
            await trio.to_thread.run_sync(work)
            nursery.cancel_scope.cancel()

    return run


@attrs.frozen
class Mode:
    """One kind of run, and what is claimed of it."""

    run: Callable[[Setting, Notebook, Path], Awaitable[None]]
    faults: tuple[str, ...] = ()
    is_ours: bool = False

    def complaints(self, verdict: Verdict) -> list[str]:
        """Return what contradicts the claim."""
        if not self.is_ours:
            return [] if verdict.misrouted else ["the peer got everything right: the faults were too tame"]
        wrong = [] if verdict.is_clean else ["something went astray"]
        rare = [kind for kind in self.faults if verdict.fired[kind] < 0.01 * verdict.exchanges]
        return wrong + [f"{kind} came too seldom: {verdict.fired[kind]} times" for kind in rare]


MODES = {
    "sync": Mode(run_sync, SYNC_FAULTS, is_ours=True),
    "flush": Mode(peer(flush=True)),
    "none": Mode(peer(flush=False)),
    "bus": Mode(run_bus, BUS_FAULTS, is_ours=True),
    "bus-flush": Mode(peer(flush=True, bus=True)),
    "visa-native": Mode(visa("native"), VISA_FAULTS, is_ours=True),
    "visa-pyvisa": Mode(visa("pyvisa"), VISA_FAULTS, is_ours=True),
    "visa-peer": Mode(visa_peer(clear=False)),
    "visa-peer-clear": Mode(visa_peer(clear=True)),
}


DEFAULT_MODES = (
    *("sync=20000", "bus=20000", "flush=4000", "none=1000", "bus-flush=4000"),
    *("visa-native=20000", "visa-pyvisa=20000", "visa-peer=4000", "visa-peer-clear=4000"),
)


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python tests/soak", description=__doc__.partition("\n")[0])
    parser.add_argument("modes", nargs="*", metavar="MODE=EXCHANGES", help=f"modes: {', '.join(MODES)}")
    parser.add_argument("--timeout", type=float, default=0.3, help="seconds in which the instrument ought to answer")
    parser.add_argument("--late-by", type=float, default=0.4, help="seconds by which a late reply is late")
    parser.add_argument("--seed", type=int, default=1, help="of the instrument's faults")
    parser.add_argument("--keep", metavar="FOLDER", help="leave the instruments' logs and the owners' notes there")
    parser.add_argument("--json", action="store_true", help="print one JSON line for each mode instead of a table")
    given = parser.parse_args()
    setting = Setting(given.timeout, given.late_by, given.seed)
    logging.basicConfig(level=logging.ERROR)  # a warning for each revoked holder would bury the figures
    complaints = []
    if not given.json:
        print(f"{platform.platform()}, Python {platform.python_version()}, Trio {trio.__version__}, {setting}")
    for word in given.modes or DEFAULT_MODES:
        name, _, wanted = word.partition("=")
        book = Notebook(int(wanted))
        folder = Path(tempfile.mkdtemp(prefix=f"soak-{name}-", dir=given.keep))
        began = time.monotonic()
        trio.run(MODES[name].run, setting, book, folder)
        seconds = time.monotonic() - began
        verdict = judge(book, read_log(folder / "log"))
        if given.keep is None:
            shutil.rmtree(folder)
        else:
            (folder / "notes").write_text("".join(json.dumps(attrs.asdict(note)) + "\n" for note in book.notes))
        wrong = MODES[name].complaints(verdict)
        complaints += wrong
        if given.json:
            print(json.dumps(attrs.asdict(verdict) | {"mode": name, "seconds": seconds, "complaints": wrong}))
        else:
            print(report(name, verdict, seconds), *(f"  WRONG: {text}" for text in wrong), sep="\n", flush=True)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
