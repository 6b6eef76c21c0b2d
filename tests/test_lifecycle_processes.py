"""Labs with parts that hang in every way, in real processes, stopped by signals at random moments.

By the clock of their parent each ends in time, with the right code, and with a report. `TRIO_DAQ_PROCESS_RUNS` is how
many labs are run, two at a time; 4 where nothing is said. A failure names the seed of its lab; `TRIO_DAQ_PROCESS_SEED`
is the first one.
"""

import collections
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import attrs
import pytest
import trio

from trio_daq.sim import open_simulated_lab

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

RUNS = int(os.environ.get("TRIO_DAQ_PROCESS_RUNS", "4"))
SEED = int(os.environ.get("TRIO_DAQ_PROCESS_SEED", "1"))

TIMEOUT = 3.0
MARGIN = 2.0
"""What `run` adds to the time of a shutdown before it ends the process, and once more with the GIL held."""

PARTS = """
import concurrent.futures, ctypes, os, threading, time
import trio
from trio_daq import Actor, Message, handles

async def well(context):
    await context.stopping.wait()
    await trio.sleep(0.1)

async def deaf():
    with trio.CancelScope(shield=True):
        await trio.sleep(60)

def sleeping():
    time.sleep(60)

def locked():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()

def in_c():
    ctypes.CDLL(None).read(os.pipe()[0], ctypes.create_string_buffer(1), 1)

def with_a_thread():
    threading.Thread(target=time.sleep, args=(60,), daemon=False).start()
    time.sleep(60)

def with_a_pool():
    with concurrent.futures.ThreadPoolExecutor() as pool:
        pool.submit(time.sleep, 60).result()

async def raising(context):
    await context.stopping.wait()
    raise OSError("unplugged")

async def blocking(context):
    await context.stopping.wait()
    time.sleep(1)

async def blocking_always():
    while True:
        time.sleep(0.3)
        await trio.sleep(0.01)

async def blocked(context):
    await context.stopping.wait()
    time.sleep(60)

async def blocked_in_c(context):
    await context.stopping.wait()
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()

async def holding_the_gil(context):
    await context.stopping.wait()
    ctypes.PyDLL(None).usleep(60_000_000)
    ctypes.PyDLL(None).sleep(60)

async def asking(serial):
    while True:
        async with serial.acquire(timeout=30) as guard:
            await guard.query(b"POS?", timeout=30)

def asking_in_a_thread(serial):
    while True:
        with serial.exclusive() as sequence:
            sequence.query(b"POS?", timeout=30)

class Hang(Message[None]):
    pass

class Hung(Actor):
    @handles(Hang)
    async def hang(self, _):
        with trio.CancelScope(shield=True):
            await trio.sleep(60)

class Slow(Actor):
    async def on_start(self):
        print("starting", flush=True)
        await trio.sleep(0.3)
"""

PROGRAM = """
import json, sys
from pathlib import Path
import trio
from trio_daq import DualConfig, run
from trio_daq.config import ApplicationConfig, MemberConfig, RecordingConfig, SubsystemConfig
from trio_daq.serialport import SerialPortConfig

plan = json.loads(sys.argv[1])

def member(number, name):
    return MemberConfig(
        id=f"{name}_{number}",
        driver=f"parts:{name}",
        serial="stage" if name.startswith("asking") else None,
        restart="never",
    )

async def main(manager):
    for name in manager.v4.stage.members:
        if name.startswith("Hung"):
            import parts
            await manager.v4.actor(name).tell(parts.Hang())
    print("ready", flush=True)
    until = None
    while until is None or trio.current_time() < until:
        try:
            await trio.sleep_forever() if until is None else await trio.sleep(0)
        except trio.Cancelled:
            until = trio.current_time() + plan["deaf_for"] if until is None else until
            if not plan["deaf_for"]:
                raise
        if until is not None:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.01)

config = DualConfig(
    application=ApplicationConfig(shutdown_timeout=plan["timeout"]),
    serial={"stage": SerialPortConfig(path=plan["path"], write_terminator="\\r\\n", read_terminator="\\r\\n")}
    if plan["path"] else {},
    v2=SubsystemConfig(stop_timeout=0.5, instruments=[member(*one) for one in enumerate(plan["v2"])]),
    v4=SubsystemConfig(stop_timeout=0.5, instruments=[member(*one) for one in enumerate(plan["v4"])]),
    recording=RecordingConfig(directory="runs"),
    folder=Path.cwd(),
)
sys.exit(run(config, main, on_report=lambda report: print(report, flush=True)))
"""

HARMLESS = ("well", "raising", "blocking", "blocking_always")
IN_A_CALL = ("sleeping", "locked", "in_c", "with_a_thread", "with_a_pool")
STUCK = ("deaf",)
ON_THE_LINE = ("asking", "asking_in_a_thread")
FORCED = ("blocked", "blocked_in_c")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@attrs.frozen
class Life:
    """What one lab is made of, how it is stopped, and how that has to end."""

    seed: int
    v2: tuple[str, ...]
    v4: tuple[str, ...]
    deaf_for: float
    during_start: bool
    after: float
    first: signal.Signals
    second: signal.Signals | None
    gap: float

    @classmethod
    def of(cls, seed: int) -> "Life":
        dice = random.Random(seed)
        v2 = dice.choices(HARMLESS + IN_A_CALL + STUCK + ON_THE_LINE, k=dice.randrange(1, 5))
        worst = dice.random()
        if worst < 0.07:
            v2.append("holding_the_gil")
        elif worst < 0.2:
            v2.append(dice.choice(FORCED))
        dice.shuffle(v2)
        during_start = dice.random() < 0.3
        return cls(
            seed=seed,
            v2=tuple(v2),
            v4=("Hung", "Slow") if not during_start and dice.random() < 0.2 else ("Slow",),
            deaf_for=dice.choices((0, 1.0, 60.0), (7, 2, 1))[0],
            during_start=during_start,
            after=dice.uniform(0, 0.4),
            first=dice.choice(SIGNALS),
            second=dice.choice(SIGNALS) if dice.random() < 0.4 else None,
            gap=dice.uniform(0, 1.0),
        )

    def kind(self, said: str) -> str:
        """Return what is worst about it, as far as it has come."""
        if "holding_the_gil" in self.v2:
            return "GIL held"
        if {*FORCED} & {*self.v2}:
            return "blocked for ever"
        if {*STUCK} & {*self.v2} or "Hung" in self.v4:
            return "stuck"
        return "deaf body" if self.deaf_for > TIMEOUT and "ready" in said else "orderly"


@attrs.frozen
class End:
    code: int
    took: float
    said: str
    errors: str


def start(folder: Path, plan: object) -> subprocess.Popen[bytes]:
    """Start a lab in *folder*, whose files get what it says."""
    (folder / "parts.py").write_text(PARTS)
    (folder / "lab.py").write_text(PROGRAM)
    with open(folder / "said", "w") as said, open(folder / "errors", "w") as errors:
        command = [sys.executable, "lab.py", json.dumps(plan)]
        return subprocess.Popen(command, stdout=said, stderr=errors, cwd=folder)


async def wait_end(process: subprocess.Popen[bytes], within: float) -> None:
    with trio.move_on_after(within):
        while process.poll() is None:  # noqa: ASYNC110
            await trio.sleep(0.005)


async def live(life: Life, folder: Path) -> End:
    """Run a lab, send it its signals, and wait for its end."""
    async with open_simulated_lab(folder / "log", meter=None) as instruments:
        plan = {
            "v2": life.v2,
            "v4": life.v4,
            "deaf_for": life.deaf_for,
            "timeout": TIMEOUT,
            "path": instruments.stage_path if {*ON_THE_LINE} & {*life.v2} else None,
        }
        process = start(folder, plan)
        try:
            with trio.fail_after(30):
                mark = "starting" if life.during_start else "ready"
                while mark not in (folder / "said").read_text():
                    assert process.poll() is None, (folder / "errors").read_text()
                    await trio.sleep(0.005)
            await trio.sleep(life.after)
            instruments.freeze()
            process.send_signal(life.first)
            began = time.monotonic()
            if life.second is not None:
                await wait_end(process, life.gap)
                process.send_signal(life.second)
            await wait_end(process, TIMEOUT + 12)
            took = time.monotonic() - began
        finally:
            process.kill()
            instruments.thaw()
            process.wait()
    return End(process.returncode, took, (folder / "said").read_text(), (folder / "errors").read_text())


def faults_of(life: Life, end: End) -> list[str]:
    """Say what is wrong with how it ended."""
    by_signal = {128 + life.first}
    if life.second is not None and life.gap < 0.5:
        by_signal.add(128 + life.second)  # of two that wait, Python hears the lower number first
    if life.second is not None and end.took < life.gap + 0.3:
        by_signal.add(-life.second)  # it was over, and the handlers were given back
    codes, late, word = {
        "GIL held": ({1}, 2 * MARGIN, "Timeout ("),
        "blocked for ever": ({3}, MARGIN, "did not end in time"),
        "stuck": ({3}, MARGIN, ""),
        "deaf body": ({3}, MARGIN, "did not end in time"),
        "orderly": (by_signal, MARGIN, ""),
    }[life.kind(end.said)]
    faults = []
    if end.code not in codes:
        faults.append(f"it ended with {end.code} instead of {codes}")
    if end.took > TIMEOUT + late + 2:  # the computer may be busy
        faults.append(f"it took {end.took:.2f} s")
    if word not in end.errors if word else "stopped in" not in end.said and "did not end in time" not in end.errors:
        faults.append("it gave no report")
    return faults


@pytest.fixture(autouse=True)
def signals_are_heard():
    """Undo what a shell or ``nohup`` has done to the signals that children inherit."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGHUP,)}
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


async def test_every_process_ends_in_time_with_its_code_and_a_report(tmp_path):
    """Whatever hangs in it, and whenever it was told."""
    outcomes = collections.Counter()
    late: dict[str, list[float]] = collections.defaultdict(list)
    failures = []
    limit = trio.CapacityLimiter(2)

    async def one(seed: int) -> None:
        async with limit:
            life = Life.of(seed)
            (folder := tmp_path / str(seed)).mkdir()
            end = await live(life, folder)
        kind = life.kind(end.said)
        outcomes[kind, "start" if life.during_start else "run", end.code] += 1
        late[kind].append(end.took - TIMEOUT)
        if faults := faults_of(life, end):
            failures.append(f"{'; '.join(faults)}\n{life}\n{end.said}\n{end.errors}")

    async with trio.open_nursery() as nursery:
        for seed in range(SEED, SEED + RUNS):
            nursery.start_soon(one, seed)
    for (kind, moment, code), count in sorted(outcomes.items()):
        print(f"{kind:<18} told during {moment:<6} exit code {code:>4}: {count}")
    for kind, times in late.items():
        times.sort()
        quartiles = [times[round(part * (len(times) - 1))] for part in (0, 0.25, 0.5, 0.75, 1)]
        print(f"{kind:<18} seconds past the time of the shutdown: {[round(one, 2) for one in quartiles]}")
    assert not failures, f"{len(failures)} of {RUNS}:\n" + "\n\n".join(failures)
