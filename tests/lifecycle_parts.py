"""Members of a lab on the virtual clock that do what a test tells them, and note for themselves what befalls them.

A `Life` begins when its driver is called, and has ended when nothing of it runs any more. What it notes owes nothing to
the library's counters; only which member it is of comes from there, as an identity.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import attrs
import trio

from trio_daq.actors import Actor, Message, handles
from trio_daq.drivers import DriverContext
from trio_daq.lifecycle.member import Member, inside_member
from trio_daq.serialport import SharedSerialPort


@attrs.frozen
class Obey:
    """It ends so many seconds after it was asked to."""

    seconds: float = 0.0


@attrs.frozen
class Deaf:
    """It ignores the request and ends when it is cancelled."""


@attrs.frozen
class Swallow:
    """It ignores the request, and for so many seconds every `trio.Cancelled`; then it ends as if nothing had been."""

    seconds: float


@attrs.frozen
class Shielded:
    """It ignores the request, and cancelled it goes on for so many seconds; None: until the test releases it."""

    seconds: float | None


START_TIMEOUT = 30.0
"""Seconds that a life may take to begin."""

Manners = Obey | Deaf | Swallow | Shielded


@attrs.define(eq=False)
class Life:
    """One life of one member, as it was seen from inside."""

    side: str
    name: str
    member: Member
    manners: Manners
    begun: float
    asked: bool
    """Whether somebody was waiting for a restart of it by hand when it began."""
    told: float | None = None
    """When it saw that it is to stop, by its context or by being cancelled."""
    ended: float | None = None
    error: Exception | None = None
    bell: trio.Event = attrs.field(factory=trio.Event)
    orders: list[tuple[str, float | None]] = attrs.field(factory=list)

    @property
    def is_over(self) -> bool:
        return self.ended is not None

    def note_told(self, world: World) -> None:
        if self.told is None:
            self.told = trio.current_time()
            world.on_told(self)
        self.bell.set()


class World:
    """What all members of one lab share with the test.

    *asked_for*: tells whether a restart of that name by hand is under way. *on_begin* and *on_told* hear of each life.
    """

    def __init__(self, asked_for: Callable[[str], bool]) -> None:
        self.lives: list[Life] = []
        self.manners: dict[str, Manners] = {}
        self.starts: dict[str, float | str] = {}
        """What the next starts of an actor are like: so many seconds, ``"fail"``, or ``"hang"``."""
        self.farewells: dict[str, float] = {}
        """Seconds that the ``on_stop`` of an actor takes."""
        self.release = trio.Event()
        self.on_begin: Callable[[Life], object] = print
        self.on_told: Callable[[Life], object] = print
        self._asked_for = asked_for
        self._nursery: trio.Nursery | None = None

    async def serve(self) -> None:
        """Run what watches over members, outside of the lab."""
        async with trio.open_nursery() as self._nursery:
            await trio.sleep_forever()

    def living(self, side: str | None = None) -> list[Life]:
        return [life for life in self.lives if not life.is_over and side in (None, life.side)]

    def begin(self, side: str, name: str, context: DriverContext | None) -> Life:
        member = inside_member.get()
        assert member is not None
        manners = self.manners.get(name, Obey())
        life = Life(side, name, member, manners, trio.current_time(), self._asked_for(name))
        self.on_begin(life)
        self.lives.append(life)
        if context is not None:
            assert self._nursery is not None
            self._nursery.start_soon(self._watch, life, context.stopping)
        return life

    async def hang(self, seconds: float | None) -> None:
        """Hear nothing for so long; None: until the test releases everything."""
        with trio.CancelScope(shield=True):
            if seconds is None:
                await self.release.wait()
            else:
                await trio.sleep(seconds)

    async def swallows(self, life: Life) -> bool:
        """Do what a life of these manners does when it is cancelled, and return whether it then makes nothing of it."""
        life.note_told(self)
        match life.manners:
            case Swallow(seconds):
                until = trio.current_time() + seconds
                while trio.current_time() < until:
                    with contextlib.suppress(trio.Cancelled):
                        await trio.lowlevel.checkpoint()
                    await self.hang(0.1)
                return True
            case Shielded(seconds):
                await self.hang(seconds)
        return False

    async def _watch(self, life: Life, stopping: trio.Event) -> None:
        await stopping.wait()
        if not life.is_over:
            life.note_told(self)


async def old_driver(world: World, label: str, serial: SharedSerialPort, context: DriverContext) -> None:
    """A task that is asked to stop."""
    await _run_task(world, label, serial, context)


async def plain_driver(world: World, label: str, serial: SharedSerialPort) -> None:
    """A task that is cancelled without being asked."""
    await _run_task(world, label, serial, None)


async def _run_task(world: World, label: str, serial: SharedSerialPort, context: DriverContext | None) -> None:
    life = world.begin("v2", label, context)
    try:
        async with contextlib.AsyncExitStack() as held:
            await _obey_orders(world, life, serial, held)
    except trio.Cancelled:
        if not await world.swallows(life):
            raise
    except Exception as error:
        life.error = error
        raise
    finally:
        life.ended = trio.current_time()


async def _obey_orders(world: World, life: Life, serial: SharedSerialPort, held: contextlib.AsyncExitStack) -> None:
    while True:
        await life.bell.wait()
        life.bell = trio.Event()
        while life.orders:
            await _obey_order(world, life.orders.pop(0), serial, held)
        if life.told is not None and isinstance(life.manners, Obey):
            await trio.sleep(life.manners.seconds)
            return


async def _obey_order(
    world: World, order: tuple[str, float | None], serial: SharedSerialPort, held: contextlib.AsyncExitStack
) -> None:
    match order:
        case ("fault", _):
            raise OSError("unplugged")
        case ("bug", _):
            raise TypeError("3 + 'volt'")
        case ("hang", seconds):
            await world.hang(seconds)
        case ("hold", seconds):
            await held.enter_async_context(serial.acquire(timeout=seconds))


@attrs.frozen
class Do(Message[str]):
    """Do something that takes *seconds*: ``"work"``, ``"hang"``, ``"fault"``, ``"bug"``, or ``"hold"`` the port."""

    what: str
    seconds: float | None = 0.0


class Worker(Actor):
    """An actor that does what it is told."""

    mailbox_capacity = 3

    def __init__(self, world: World, label: str, serial: SharedSerialPort, context: DriverContext) -> None:
        self.world, self.life, self.serial = world, world.begin("v4", label, context), serial

    async def on_start(self) -> None:
        start = self.world.starts.get(self.life.name, 0.0)
        try:
            if start == "fail":
                raise OSError("no camera")
            await trio.sleep(start if isinstance(start, float) else math.inf)
        except OSError as error:
            self.life.error = error
            raise
        except trio.Cancelled:
            if trio.current_time() < self.life.begun + START_TIMEOUT:
                self.life.note_told(self.world)
            else:
                self.life.error = trio.TooSlowError()
            raise

    @handles(Do)
    async def do(self, message: Do) -> str:
        try:
            match message:
                case Do("fault"):
                    raise OSError("unplugged")
                case Do("bug"):
                    self.life.error = TypeError("3 + 'volt'")
                    raise self.life.error
                case Do("hang", seconds):
                    await self.world.hang(seconds)
                case Do("hold", seconds):
                    async with self.serial.acquire(timeout=1):
                        await trio.sleep(seconds or 0.0)
                case Do(_, seconds):
                    await trio.sleep(seconds or 0.0)
        except trio.Cancelled:
            if not await self.world.swallows(self.life):
                raise
        return message.what

    async def on_stop(self) -> None:
        try:
            await trio.sleep(self.world.farewells.get(self.life.name, 0.0))
        finally:
            self.life.ended = trio.current_time()
