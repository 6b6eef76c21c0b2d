"""One suite for all transports: whatever carries the messages, a VISA session keeps the same promises.

The instrument is the simulated meter, in a process of its own; under pyvisa-sim it is a list of questions and replies.
"""

import contextlib
import gc
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, get_args

import attrs
import pytest
import pyvisa
import trio

from trio_daq.errors import CommandTimeoutError, LineLostError, LineOpenError, SessionClosedError
from trio_daq.legacy import offer
from trio_daq.sim import MeterOver, SimulatedLab, SimulatedStage, open_simulated_lab, read_log, replies_by_tag
from trio_daq.sim.dialogue import Bench
from trio_daq.sim.faults import NO_FAULTS
from trio_daq.sim.log import InstrumentLog
from trio_daq.sim.meter import IDENTITY
from trio_daq.sim.tcp_line import TcpLine
from trio_daq.visa import VisaSessionConfig, VisaSessionManager, is_stream
from trio_daq.wire import SyncQuery

LATE = 0.5
"""Seconds after which a late reply comes; who asked has given up after `PATIENCE`."""
PATIENCE = 0.2
SLACK = 0.5
"""Seconds by which a busy computer may be late where a promise says "at once" or "by the deadline"."""

IDN = IDENTITY.decode()
MANY = ";".join(["*IDN?"] * 7000)
MANY_REPLIES = ";".join([IDN] * 7000)
"""217 kB, to a command of 42 kB."""
LONG_WRITE = ";".join(["*RST"] * 12_000)
"""60 kB."""
OWNERS = 20
EACH = 5


@attrs.frozen
class Link:
    """A way to an instrument: what carries the messages, and which transport of ours.

    Attributes:
        name: What pytest calls it.
        over: What the simulated meter is served on, None for pyvisa-sim.
        transport: The setting of that name.
        settings: Others that a user of this link would give.
    """

    name: str
    over: MeterOver | None
    transport: str = "pyvisa"
    settings: dict[str, Any] = attrs.field(factory=dict)


LINKS = {
    link.name: link
    for link in (
        Link("native-socket", "socket", "native"),
        Link("py-socket", "socket"),
        Link("py-hislip", "hislip"),
        Link("py-vxi11", "vxi11"),
        Link(
            "py-asrl",
            "pty",
            settings={"sync_query": SyncQuery("*OPC?", "1", other=("SYST:ERR?", '0,"No error"')), "quiet_time": 0.1},
        ),
        Link("sim", None),
    )
}
ALL = tuple(LINKS)
REAL = tuple(name for name in ALL if name != "sim")
ON_TCP = tuple(name for name in REAL if name != "py-asrl")


_LEAKS = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
"""pyvisa-py 0.8.1 leaves the socket of a VXI-11 connection that was refused to the garbage collector."""


def over(names: tuple[str, ...]) -> pytest.MarkDecorator:
    """Run a test once for each of these links."""
    links = [pytest.param(LINKS[name], marks=[_LEAKS] if name == "py-vxi11" else []) for name in names]
    return pytest.mark.parametrize("link", links, ids=names)


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Notice what a library left open in the test that did it, not in the next one."""
    yield
    gc.collect()


class Instrument:
    """The meter at the end of a link; it can go away and come back to the same place."""

    def __init__(self, link: Link, folder: Path) -> None:
        self.link = link
        self.log = folder / "log"
        self.folder = folder
        self._running = AsyncExitStack()
        self._lab: SimulatedLab | None = None

    async def start(self) -> None:
        if self.link.over is not None:
            port = 0 if self._lab is None or self._lab.meter_port is None else self._lab.meter_port
            lab = open_simulated_lab(self.log, stage=None, meter_over=self.link.over, meter_port=port)
            self._lab = await self._running.enter_async_context(lab)
        else:
            (self.folder / "meter.yaml").write_text(simulation())

    async def stop(self) -> None:
        await self._running.aclose()

    def config(self, **settings: Any) -> VisaSessionConfig:
        if self._lab is None:
            own = {"resource": "TCPIP0::localhost::inst0::INSTR", "backend": f"{self.folder / 'meter.yaml'}@sim"}
        else:
            own = {"resource": self._lab.meter_resource}
        return VisaSessionConfig(**{**own, "transport": self.link.transport, **self.link.settings, **settings})

    def commands(self) -> list[str]:
        return [entry.text for entry in read_log(self.log) if entry.event == "command"]


@asynccontextmanager
async def instrument(link: Link, folder: Path) -> AsyncIterator[Instrument]:
    meter = Instrument(link, folder)
    await meter.start()
    try:
        yield meter
    finally:
        await meter.stop()


def simulation() -> str:
    """Return the meter as a YAML file of pyvisa-sim; what has no reply there is not answered."""
    tags = ["a", "next", "after", *(f"o{owner}n{number}" for owner in range(OWNERS) for number in range(EACH))]
    replies = {
        "*IDN?": IDN,
        MANY: MANY_REPLIES,
        LONG_WRITE: None,
        "*RST": None,
        "CONF:VOLT:DC": None,
        "SYST:ERR?": '0,"No error"',
        **{f"MEAS:VOLT? {tag}": f"{tag},+1.234567E+00" for tag in tags},
    }
    lines = [
        'spec: "1.1"',
        "devices:",
        "  meter:",
        "    eom:",
        "      TCPIP INSTR:",
        r'        q: "\n"',
        r'        r: "\n"',
    ]
    lines += ['    delimiter: ""', "    dialogues:"]
    for question, reply in replies.items():
        lines += [f"      - q: '{question}'", *([] if reply is None else [f"        r: '{reply}'"])]
    lines += ["resources:", "  TCPIP0::localhost::inst0::INSTR:", "    device: meter"]
    return "\n".join(lines) + "\n"


async def wait_until(condition: Callable[[], object], within: float = 10.0) -> None:
    with trio.fail_after(within):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await trio.sleep(0.01)


@contextlib.contextmanager
def takes(least: float, most: float) -> Iterator[None]:
    """Check that the block takes between *least* and *most* seconds, some slack allowed."""
    began = time.monotonic()
    yield
    assert least - 0.01 <= time.monotonic() - began <= most + SLACK


# --- messages --------------------------------------------------------------------------------------------------------


@over(ALL)
async def test_instrument_says_who_it_is(link: Link, tmp_path: Path) -> None:
    """A query returns the reply without its termination, many times over."""
    async with instrument(link, tmp_path) as meter, VisaSessionManager(meter.config()) as session:
        assert [await session.query("*IDN?") for _ in range(10)] == [IDN] * 10
        assert session.state == "open"


@over(ALL)
async def test_query_write_and_command(link: Link, tmp_path: Path) -> None:
    """What is not answered gives "" or nothing, in any order with what is, and each was carried out."""
    async with instrument(link, tmp_path) as meter, VisaSessionManager(meter.config()) as session:
        await session.write("*RST")
        assert await session.enqueue_command("CONF:VOLT:DC") == ""
        assert (await session.enqueue_command("MEAS:VOLT? a")).startswith("a,+1.2")
        await session.write("CONF:VOLT:DC")
        assert await session.query("SYST:ERR?") == '0,"No error"'
        if link.over is not None:
            asked = [command for command in meter.commands() if command != "*OPC?"]
            assert asked[-5:] == ["*RST", "CONF:VOLT:DC", "MEAS:VOLT? a", "CONF:VOLT:DC", "SYST:ERR?"]


@pytest.mark.parametrize("transport", ["native", "pyvisa"])
async def test_two_character_terminations_on_a_socket(transport: str, tmp_path: Path, nursery: trio.Nursery) -> None:
    """Commands and replies that end in two characters come without either, on a raw socket."""
    with InstrumentLog(tmp_path / "log") as log:
        port = await nursery.start(TcpLine(Bench(SimulatedStage(), NO_FAULTS, log)).serve)
        await check_stage(f"TCPIP::127.0.0.1::{port}::SOCKET", transport)
        nursery.cancel_scope.cancel()


async def test_two_character_terminations_on_a_serial_line(tmp_path: Path) -> None:
    """Commands and replies that end in two characters come without either, on a serial line."""
    async with open_simulated_lab(tmp_path / "log", meter=None) as lab:
        await check_stage(f"ASRL{lab.stage_path}::INSTR", "pyvisa")


async def check_stage(resource: str, transport: Any) -> None:
    config = VisaSessionConfig(
        resource=resource, transport=transport, write_termination="\r\n", read_termination="\r\n"
    )
    async with VisaSessionManager(config) as stage:
        for number in range(10):
            assert await stage.query(f"POS? n{number}") == f"n{number} 12.500"
        await stage.write("SHUT 1")
        assert await stage.query("SHUT?") == "1"


@over(ALL)
async def test_long_reply_is_whole(link: Link, tmp_path: Path) -> None:
    """A reply of 217 kB, more than any buffer on the way, is returned whole, and the next one is the next."""
    async with instrument(link, tmp_path) as meter, VisaSessionManager(meter.config(timeout=30)) as session:
        assert await session.query(MANY) == MANY_REPLIES
        assert (await session.query("MEAS:VOLT? next")).startswith("next,")


@over(ALL)
async def test_long_write_arrives_whole(link: Link, tmp_path: Path) -> None:
    """A command of 60 kB is carried out as it was, and does not disturb the next one."""
    async with instrument(link, tmp_path) as meter, VisaSessionManager(meter.config(timeout=30)) as session:
        await session.write(LONG_WRITE)
        assert (await session.query("MEAS:VOLT? next")).startswith("next,")
        if link.over is not None:
            assert meter.commands()[-2:] == [LONG_WRITE, "MEAS:VOLT? next"]


@over(REAL)
async def test_old_code_above_pyvisa(link: Link, tmp_path: Path, nursery: trio.Nursery) -> None:
    """Bytes as they come, in pieces of any size: what a script reads through @trio_daq is what the instrument sent."""

    def script() -> list[object]:
        resource = meter.config().resource
        meter_ = pyvisa.ResourceManager("@trio_daq").open_resource(resource, timeout=10_000)
        meter_.read_termination = meter_.write_termination = "\n"
        got: list[object] = [meter_.query("*IDN?"), meter_.write("CONF:VOLT")]
        meter_.write("MEAS:VOLT? split")
        got += [meter_.read_bytes(2), meter_.read_bytes(4), meter_.read()[:2]]
        for chunk_size in (100, 20_480):
            meter_.chunk_size = chunk_size
            got.append(meter_.query_binary_values("CURV? a,100000", datatype="B", container=bytes))
        got.append(meter_.query(MANY) == MANY_REPLIES)
        try:
            got.append(meter_.read_stb() & ~0x10)
        except pyvisa.VisaIOError as error:
            got.append(error.abbreviation)
        got.append(meter_.query("MEAS:VOLT? last")[:5])
        return got

    async with instrument(link, tmp_path) as meter, VisaSessionManager(meter.config(timeout=10)) as session:
        await nursery.start(offer(session).serve)
        status = "VI_ERROR_NSUP_OPER" if is_stream(session.resource) else 0
        block = (b"a," + bytes(range(256)) * 400)[:100_000]
        with trio.fail_after(30):
            got = await trio.to_thread.run_sync(script)
        assert got == [IDN, 10, b"sp", b"lit,", "+1", block, block, True, status, "last,"]
        assert (await session.query("MEAS:VOLT? next")).startswith("next,")
        nursery.cancel_scope.cancel()


@over(REAL)
@pytest.mark.parametrize("size", [10, 256, 100_000])
async def test_block_is_returned_byte_for_byte(link: Link, size: int, tmp_path: Path) -> None:
    """A block comes as it was sent, with every byte, terminators among them, and the next reply is the next."""
    async with instrument(link, tmp_path) as meter, VisaSessionManager(meter.config(timeout=10)) as session:
        block = await session.query_block(f"CURV? a,{size}")
        assert bytes(block) == (b"a," + bytes(range(256)) * (size // 256 + 1))[:size]
        assert (await session.query("MEAS:VOLT? next")).startswith("next,")


# --- time ------------------------------------------------------------------------------------------------------------


@over(ALL)
async def test_no_reply_is_an_error_by_the_deadline(link: Link, tmp_path: Path) -> None:
    """A query that is not answered fails at its deadline, the error says that it was sent, and the next one goes on."""
    async with instrument(link, tmp_path) as meter, VisaSessionManager(meter.config()) as session:
        await session.query("*IDN?")
        with takes(0.3, 0.3), pytest.raises(CommandTimeoutError) as caught:
            await session.query("CONF:VOLT:DC", timeout=0.3)
        assert (caught.value.sent, caught.value.phase) == ("yes", "in_flight")
        with takes(0, 1):
            assert await session.query("*IDN?") == IDN


@over(REAL)
async def test_late_reply_goes_to_nobody(link: Link, tmp_path: Path) -> None:
    """After a timeout the next commands get their own replies, before the late one comes and after it."""
    async with instrument(link, tmp_path) as meter, VisaSessionManager(meter.config(timeout=5)) as session:
        with pytest.raises(CommandTimeoutError):
            await session.query(f"SLOW? late,{LATE}", timeout=PATIENCE)
        end = time.monotonic() + 2 * LATE
        number = 0
        while time.monotonic() < end:
            number += 1
            reply = await session.query(f"MEAS:VOLT? n{number}")
            assert reply.startswith(f"n{number},")
            await trio.sleep(0.02)
        assert number > 3


@over(REAL)
async def test_late_reply_to_the_same_text_goes_to_nobody(link: Link, tmp_path: Path) -> None:
    """Asked again in the same words after a timeout, the instrument's second reply is returned, not its first."""
    async with instrument(link, tmp_path) as meter, VisaSessionManager(meter.config(timeout=5)) as session:
        with pytest.raises(CommandTimeoutError):
            await session.query(f"SLOW? same,{LATE}", timeout=PATIENCE)
        with takes(LATE, 60):
            reply = await session.query(f"SLOW? same,{LATE}")
        assert reply == replies_by_tag(read_log(meter.log))["same"]
        assert (await session.query("MEAS:VOLT? next")).startswith("next,")


@over(REAL)
async def test_reply_at_the_deadline_goes_to_its_asker_or_nobody(link: Link, tmp_path: Path) -> None:
    """A reply that comes just before, at or after the deadline is never taken for another's."""
    answered = 0
    async with instrument(link, tmp_path) as meter, VisaSessionManager(meter.config(timeout=5)) as session:
        for number in range(20):
            with contextlib.suppress(CommandTimeoutError):
                reply = await session.query(f"SLOW? s{number},0.05", timeout=0.045 + 0.001 * number)
                assert reply.startswith(f"s{number},")
                answered += 1
            assert (await session.query(f"MEAS:VOLT? m{number}")).startswith(f"m{number},")
    assert answered < 20


@over(REAL)
@pytest.mark.parametrize("timeout", [2 * LATE, 1.5 * PATIENCE], ids=["reply in time", "reply too late"])
async def test_caller_who_is_cancelled_is_free_at_once(link: Link, timeout: float, tmp_path: Path) -> None:
    """A cancelled caller does not wait, and its reply, before the deadline that it had given or after, is nobody's."""
    async with instrument(link, tmp_path) as meter, VisaSessionManager(meter.config(timeout=5)) as session:
        await session.query("*IDN?")
        with takes(PATIENCE, PATIENCE), trio.move_on_after(PATIENCE):
            await session.query(f"SLOW? left,{LATE}", timeout=timeout)
        end = time.monotonic() + 2 * LATE
        while time.monotonic() < end:
            assert (await session.query("MEAS:VOLT? next")).startswith("next,")
            await trio.sleep(0.02)


# --- ends ------------------------------------------------------------------------------------------------------------


@over(ON_TCP)
async def test_instrument_that_died_and_came_back(link: Link, tmp_path: Path) -> None:
    """While it is away every command is a clear error within its deadline, and it works once it is back."""
    async with instrument(link, tmp_path) as meter, VisaSessionManager(meter.config(timeout=1)) as session:
        assert await session.query("*IDN?") == IDN
        await meter.stop()
        for _ in range(3):
            with takes(0, 0.3), pytest.raises((LineLostError, LineOpenError, CommandTimeoutError)) as caught:
                await session.query("*IDN?", timeout=0.3)
            if isinstance(caught.value, CommandTimeoutError):  # it waited for the instrument to come back
                assert (caught.value.sent, caught.value.phase) == ("no", "resync")
        await meter.start()
        assert (await session.query("MEAS:VOLT? back", timeout=10)).startswith("back,")
        assert await session.query("*IDN?") == IDN


@over(ON_TCP)
async def test_instrument_that_dies_at_a_command(link: Link, tmp_path: Path) -> None:
    """Whose command is in flight when the connection breaks learns it then, not at the deadline."""
    async with instrument(link, tmp_path) as meter, VisaSessionManager(meter.config()) as session:
        assert await session.query("*IDN?") == IDN
        async with trio.open_nursery() as nursery:

            async def stop_soon() -> None:
                await wait_until(lambda: "SLOW? lost,60" in meter.commands())
                await meter.stop()

            nursery.start_soon(stop_soon)
            with takes(0, 5), pytest.raises(LineLostError) as caught:
                await session.query("SLOW? lost,60", timeout=20)
            assert caught.value.sent == "yes"


@over(ALL)
async def test_nothing_there_is_an_open_error(link: Link, tmp_path: Path) -> None:
    """Where no instrument is, opening fails within its timeout with LineOpenError, and nothing stays open."""
    async with instrument(link, tmp_path) as meter:
        nowhere = {
            "socket": "TCPIP::127.0.0.1::{}::SOCKET",
            "hislip": "TCPIP::127.0.0.1::hislip0,{}::INSTR",
            "vxi11": "TCPIP::127.0.0.1,{}::inst0::INSTR",
            "pty": f"ASRL{tmp_path}/no_such_port::INSTR",
            None: "TCPIP0::localhost::inst1::INSTR",
        }[link.over].format(free_port())
        config = meter.config(resource=nowhere, timeout=1)
        threads = threading.active_count()
        with takes(0, 1), pytest.raises(LineOpenError):
            async with VisaSessionManager(config):
                pytest.fail("entered")
        await wait_until(lambda: threading.active_count() <= threads)


@over(ALL)
async def test_close_does_not_wait_for_a_silent_instrument(link: Link, tmp_path: Path) -> None:
    """Closing while a command is not answered takes the time it may take and little more; its caller is told."""
    async with (
        instrument(link, tmp_path) as meter,
        trio.open_nursery() as nursery,
        VisaSessionManager(meter.config()) as session,
    ):
        await session.query("*IDN?")

        async def ask() -> None:
            with pytest.raises(SessionClosedError) as caught:
                await session.query("CONF:VOLT:DC", timeout=4)
            assert caught.value.sent == "yes"

        nursery.start_soon(ask)
        await wait_until(lambda: session.current_owner() is not None)
        await trio.sleep(0.1)
        with takes(0, 2.2):
            await session.close(timeout=0.3)


@over(ALL)
async def test_owners_each_get_their_own(link: Link, tmp_path: Path) -> None:
    """Of 20 owners who ask at the same time each gets the replies to its own questions."""
    got: dict[str, str] = {}
    async with instrument(link, tmp_path) as meter, VisaSessionManager(meter.config(timeout=20)) as session:

        async def ask(owner: int) -> None:
            for number in range(EACH):
                tag = f"o{owner}n{number}"
                got[tag] = await session.query(f"MEAS:VOLT? {tag}", owner=f"owner{owner}")

        async with trio.open_nursery() as nursery:
            for owner in range(OWNERS):
                nursery.start_soon(ask, owner)
        assert session.statistics().executed == {f"owner{owner}": EACH for owner in range(OWNERS)}
    assert len(got) == OWNERS * EACH
    assert all(reply.startswith(f"{tag},") for tag, reply in got.items())


@over(ALL)
async def test_nothing_is_left_of_a_closed_session(link: Link, tmp_path: Path) -> None:
    """Neither a descriptor nor a thread is left of sessions that were used and closed, a timeout in them or not."""
    async with instrument(link, tmp_path) as meter:

        async def live() -> None:
            async with VisaSessionManager(meter.config()) as session:
                await session.query("*IDN?")
                with contextlib.suppress(CommandTimeoutError):
                    await session.query("CONF:VOLT:DC", timeout=0.05)

        await live()  # what a library opens once and keeps
        files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
        for _ in range(3):
            await live()
        await wait_until(lambda: len(os.listdir("/proc/self/fd")) <= files)
        await wait_until(lambda: threading.active_count() <= threads)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_every_line_of_the_meter_is_in_the_suite() -> None:
    """What the simulated meter can be served on is run here, each by PyVISA."""
    assert {link.over for link in LINKS.values() if link.transport == "pyvisa"} == {*get_args(MeterOver), None}
