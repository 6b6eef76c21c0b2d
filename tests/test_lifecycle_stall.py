"""An event loop that stands still: who holds it, where, for how long, and what it costs to know."""

import ast
import logging
import sys
import threading
import time
from pathlib import Path

import attrs
import pytest
import trio

from trio_daq.actors import Actor, Message, handles
from trio_daq.config import DualConfig, RecordingConfig, SubsystemConfig
from trio_daq.lifecycle import DualRuntimeManager, HealthEvent
from trio_daq.lifecycle.stall import Stall, StallWatch

LOG = "trio_daq.lifecycle"
WATCH = "trio_daq stall watch"


def lab() -> DualRuntimeManager:
    """A lab of both sides."""
    return DualRuntimeManager(
        DualConfig(recording=RecordingConfig(enabled=False), v2=SubsystemConfig(), v4=SubsystemConfig())
    )


def line_of(marker: str) -> int:
    """The number of the line of this file that ends with a comment."""
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.endswith(f"# {marker}"))


def stalls(events: tuple[HealthEvent, ...]) -> list[HealthEvent]:
    """Those that are about the event loop."""
    return [event for event in events if event.subject == "the event loop"]


def watches() -> list[threading.Thread]:
    """The threads that watch over an event loop."""
    return [thread for thread in threading.enumerate() if thread.name == WATCH]


class Heard(logging.Handler):
    """Notes when each warning comes, by a clock of its own."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard: list[tuple[float, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append((time.monotonic(), record.getMessage()))


@pytest.fixture
def heard():
    """The warnings of this area, while the test runs."""
    handler = Heard()
    logging.getLogger(LOG).addHandler(handler)
    yield handler.heard
    logging.getLogger(LOG).removeHandler(handler)


async def test_a_task_that_blocks_is_named_while_it_blocks(heard):
    """The warning comes before the stall is over, with member, file and line; the history has its length after it."""
    took: list[tuple[float, float]] = []

    async def old_driver() -> None:
        await trio.sleep(0.1)
        begin = time.monotonic()
        time.sleep(1.5)  # noqa: ASYNC251 # it blocks here
        took.append((begin, time.monotonic()))

    async with lab() as manager:
        await manager.start()
        member = await manager.v2.spawn(old_driver, name="meter")
        await member.done.wait()
        await trio.sleep(0.05)
        report = await manager.check_health()
        [event] = stalls(manager.health_history())
    [(begin, end)] = took
    [(when, text)] = heard
    assert begin + 0.9 < when < end
    where = f"old_driver ({__file__}:{line_of('it blocks here')})"
    assert f"meter is at {where}" in text
    assert f"while meter was at {where}" in event.text
    length = float(event.text.removeprefix("stood still for ").partition(" ")[0])
    assert end - begin - 0.02 <= length < end - begin + 0.5
    # It is over, so the lab measures; but what did it will do it again.
    assert (report.healthy, report.status, report.status_of("v2")) == (True, "degraded", "ok")
    assert where in str(report)


@attrs.frozen
class Block(Message[None]):
    """Blocks."""


class Blocker(Actor):
    """Calls something that blocks, as a library would."""

    @handles(Block)
    async def block(self, message: Block) -> None:
        await self.deeper()

    async def deeper(self) -> None:
        async with trio.open_nursery():
            ast.literal_eval(Stubborn())  # the library blocks


class Stubborn(str):
    """Blocks for longer than is allowed when the standard library looks at it."""

    __slots__ = ()

    def lstrip(self, chars: str | None = None, /) -> str:
        threading.Event().wait(1.15)
        return "1"


async def test_an_actor_is_named_by_the_innermost_line_that_is_not_the_library_s(heard):
    """What Python, Trio and this library do above and below it is left out; who waits for the actor is not blamed."""
    async with lab() as manager:
        await manager.start()
        ref = await manager.v4.spawn(Blocker)
        await ref.ask(Block(), timeout=5.0)
    [(_, text)] = heard
    assert f"Blocker is at lstrip ({__file__}:" in text


async def test_a_task_of_nobody_is_named_by_its_own_name(heard):
    """Code beside the members can block as well."""

    async def screen_update() -> None:
        deadline = time.monotonic() + 1.15
        while time.monotonic() < deadline:
            pass  # it is busy, and no call is slow

    async with lab() as manager, trio.open_nursery() as nursery:
        await manager.start()
        nursery.start_soon(screen_update, name="screen")
    [(_, text)] = heard
    assert "screen is at screen_update (" in text
    [event] = stalls(manager.health_history())
    assert "while screen was at screen_update (" in event.text


async def test_each_stall_is_told_once(heard):
    """A long one makes one warning and one record; a second one another."""
    seen: list[Stall] = []
    watch = StallWatch(seen.append, stall_after=0.2)
    watch.start()
    for seconds in (0.6, 0.3):
        time.sleep(seconds)  # noqa: ASYNC251 - that is the test
        await trio.sleep(0.1)
    watch.stop()
    assert [0.58 <= seen[0].seconds < 1.1, 0.28 <= seen[1].seconds < 0.8] == [True, True]
    assert len(seen) == len(heard) == 2
    assert watch.last is seen[1]


async def test_work_in_short_steps_and_sleep_are_no_stall(heard):
    """The loop is busy all the time, or asleep all the time, and nobody is to blame for either."""
    seen: list[Stall] = []
    watch = StallWatch(seen.append, stall_after=0.4)
    watch.start()
    begin = time.monotonic()
    while time.monotonic() < begin + 0.6:
        time.sleep(0.02)  # noqa: ASYNC251 - a step that is short enough
        await trio.lowlevel.checkpoint()
    await trio.sleep(0.6)
    watch.stop()
    assert not seen
    assert not heard


async def test_a_clock_of_its_own(autojump_clock, heard):
    """Hours of a virtual clock are no stall, and it does not wake a loop that sleeps for hours."""
    async with lab() as manager:
        await manager.start()
        rounds = 0

        class Count(trio.abc.Instrument):
            def after_io_wait(self, timeout: float) -> None:
                nonlocal rounds
                rounds += 1

        count = Count()
        trio.lowlevel.add_instrument(count)
        await trio.sleep(3600)
        trio.lowlevel.remove_instrument(count)
    assert rounds <= 3
    assert not heard


async def test_nothing_is_left_of_it():
    """There is one thread while the block is open, and neither it nor the instrument when it is left."""
    assert not watches()
    async with lab() as manager:
        assert len(watches()) == 1
        await manager.start()
        await manager.shutdown(5)
        await manager.start()
        assert len(watches()) == 1
    assert not watches()
    with pytest.raises(KeyError):
        trio.lowlevel.remove_instrument(manager._stalls)
    with pytest.raises(ValueError, match="mine"):
        await fail_inside(lab())
    assert not watches()


async def fail_inside(manager: DualRuntimeManager) -> None:
    """Leave the block of a lab by an error."""
    async with manager:
        await manager.start()
        assert len(watches()) == 1
        raise ValueError("mine")


async def test_leaving_takes_no_time():
    """The thread is woken, not waited for."""
    watch = StallWatch(lambda _: None)
    watch.start()
    await trio.sleep(0.05)
    begin = time.monotonic()
    watch.stop()
    assert time.monotonic() - begin < 0.2
    assert not watches()


async def test_a_stall_that_nobody_could_look_at_is_noted_all_the_same():
    """A call that keeps every other thread from running is over before it is seen; its length is known."""
    seen: list[Stall] = []
    watch = StallWatch(seen.append, stall_after=0.05)
    watch.start()
    await trio.lowlevel.checkpoint()
    interval = sys.getswitchinterval()
    try:
        sys.setswitchinterval(5.0)  # as if the loop below were one call of an extension
        deadline = time.monotonic() + 0.2
        while time.monotonic() < deadline:
            pass
        await trio.lowlevel.checkpoint()
    finally:
        sys.setswitchinterval(interval)
    await trio.sleep(0.05)
    watch.stop()
    [stall] = seen
    assert 0.19 < stall.seconds < 1.0
    assert stall.who == "a task"
