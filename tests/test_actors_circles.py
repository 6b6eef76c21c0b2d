"""Asks that would wait for ever are refused at once, and no others are."""

import functools
from typing import ClassVar

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_daq.actors import Actor, ActorCell, Message, handles
from trio_daq.errors import DeadlockError
from trio_daq.sharing import Lease
from trio_daq.sharing.wait_graph import _waiting


@attrs.frozen(eq=False)
class Do(Message[object]):
    """Await what the function returns, in the actor."""

    function: object


class Doer(Actor):
    mailbox_capacity: ClassVar[int] = 1

    @handles(Do)
    async def do(self, message):
        return await message.function()


class Dropper(Doer):
    overflow = "drop_oldest"


async def nothing():
    await trio.lowlevel.checkpoint()


class Lab:
    """Actors by name, in a nursery."""

    def __init__(self, nursery):
        self.nursery = nursery
        self.cells = {}

    async def spawn(self, name, actor_class=Doer):
        self.cells[name] = cell = ActorCell(name, actor_class, actor_class)
        await self.nursery.start(cell.serve)
        return cell.ref

    def stop(self):
        for cell in self.cells.values():
            cell.stop()


def in_lab(test):
    """Run *test* with a lab that ends in time, with nobody left in the graph."""

    @functools.wraps(test)
    async def run(autojump_clock):
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            lab = Lab(nursery)
            await test(lab)
            lab.stop()
        assert trio.current_time() - start < 5, "somebody waited for a deadline"
        assert _waiting == {}

    del run.__wrapped__  # pytest would ask for its fixtures
    return run


def asking(ref, function):
    return lambda: ref.ask(Do(function))


async def until_blocked():
    await trio.testing.wait_all_tasks_blocked()


# --- circles -----------------------------------------------------------------------------------------------------


@in_lab
async def test_asking_oneself(lab):
    """A handler that asks its own actor is refused by name, and the actor lives on."""
    a = await lab.spawn("a")
    with pytest.raises(DeadlockError) as caught:
        await a.ask(Do(asking(a, nothing)))
    error = caught.value
    assert (error.resource, error.wanted_by, error.circle) == ("mailbox of a", "a", (("mailbox of a", "a"),))
    assert await a.ask(Do(nothing)) is None
    assert lab.cells["a"].statistics().waiting == 0


@in_lab
async def test_two_actors_that_ask_each_other(lab):
    """The ask that closes the circle is refused with both names, and goes to the one who asked it."""
    a, b = await lab.spawn("a"), await lab.spawn("b")
    with pytest.raises(DeadlockError) as caught:
        await a.ask(Do(asking(b, asking(a, nothing))))
    assert caught.value.wanted_by == "b"
    assert caught.value.circle == (("mailbox of a", "a"), ("mailbox of b", "b"))


@in_lab
async def test_a_circle_through_a_nursery_in_a_handler(lab):
    """A handler waits for the tasks that it started, so their asks close circles too."""
    a, b = await lab.spawn("a"), await lab.spawn("b")

    async def ask_from_a_task():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asking(b, asking(a, nothing)))

    with pytest.raises(ExceptionGroup) as caught:
        await a.ask(Do(ask_from_a_task))
    assert caught.group_contains(DeadlockError)


@in_lab
async def test_a_circle_of_full_mailboxes(lab):
    """Two actors that tell each other, both with a full mailbox and the policy block: the second is refused."""
    a, b = await lab.spawn("a"), await lab.spawn("b")
    errors = []

    def telling(ref):
        async def tell():
            await trio.sleep(1)
            try:
                await ref.tell(Do(nothing))
            except DeadlockError as error:
                errors.append(error)

        return tell

    await a.tell(Do(telling(b)))
    await b.tell(Do(telling(a)))
    await until_blocked()
    await a.tell(Do(nothing))
    await b.tell(Do(nothing))
    await trio.sleep(2)
    (error,) = errors
    assert {error.wanted_by, *(owner for _, owner in error.circle)} == {"a", "b"}


@in_lab
async def test_a_full_mailbox_of_its_own(lab):
    """A handler that tells its own actor while the mailbox is full and blocks would wait for itself."""
    a = await lab.spawn("a")

    async def tell():
        a.tell_nowait(Do(nothing))
        await a.tell(Do(nothing))

    with pytest.raises(DeadlockError):
        await a.ask(Do(tell))


@pytest.mark.parametrize("port_first", [True, False])
async def test_a_held_port_and_an_ask(port_first, autojump_clock):
    """Who holds a port and asks an actor that needs it closes a circle, whichever of the two waits first."""
    lease = Lease("stage", timeout=4)
    errors = []

    async def take():
        await trio.sleep(1)
        try:
            async with lease.hold():
                pass
        except DeadlockError as error:
            errors.append(error)

    async def hold_and_ask():
        async with lease.hold("anna"):
            await trio.sleep(0.5 if port_first else 2)
            try:
                await a.ask(Do(nothing if not port_first else take))
            except DeadlockError as error:
                errors.append(error)

    async with trio.open_nursery() as nursery:
        lab = Lab(nursery)
        a = await lab.spawn("a")
        nursery.start_soon(hold_and_ask)
        await until_blocked()
        if not port_first:
            await a.tell(Do(take))
        await trio.sleep(3)
        lab.stop()
    (error,) = errors
    assert dict(error.circle) == {"stage": "anna", "mailbox of a": "a"}


@in_lab
async def test_asking_oneself_while_starting(lab):
    """An actor takes no message before on_start has returned, so asking itself there is refused too."""

    class Eager(Doer):
        async def on_start(self):
            with pytest.raises(DeadlockError):
                await self._trio_daq_life._cell.ref.ask(Do(nothing))

    await lab.spawn("a", Eager)


# --- no circles --------------------------------------------------------------------------------------------------


@in_lab
async def test_chains_and_crowds_are_no_circles(lab):
    """Many who ask one actor, and actors that ask on in one direction, are all served."""
    a, b, c = [await lab.spawn(name) for name in "abc"]
    answered = []

    async def ask(ref, function):
        await ref.ask(Do(function))
        answered.append(None)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask, a, asking(b, asking(c, nothing)))
            nursery.start_soon(ask, b, asking(c, nothing))
            nursery.start_soon(ask, c, nothing)
    assert len(answered) == 15


@in_lab
async def test_a_message_back_that_nobody_waits_for_is_no_circle(lab):
    """An actor may tell the one who asked it, and itself, while there is room."""
    a, b = await lab.spawn("a"), await lab.spawn("b")

    async def tell_both():
        await a.tell(Do(nothing))
        await b.tell(Do(nothing))

    await a.ask(Do(asking(b, tell_both)))


@in_lab
async def test_a_full_mailbox_that_drops_is_no_circle(lab):
    """Where nobody waits for room, an actor may tell itself as often as it likes."""
    a = await lab.spawn("a", Dropper)

    async def tell():
        for _ in range(3):
            await a.tell(Do(nothing))

    await a.ask(Do(tell))


@in_lab
async def test_a_task_of_somebody_else_may_ask_while_the_actor_waits(lab):
    """An actor that waits for another may be asked by anybody it does not wait for."""
    a, b = await lab.spawn("a"), await lab.spawn("b")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.ask, Do(asking(b, functools.partial(trio.sleep, 1))))
        await until_blocked()
        await a.ask(Do(nothing))


async def test_a_nursery_around_an_actor_is_no_circle(autojump_clock):
    """Tasks in a nursery around an actor, opened in its own task, may ask it: no handler of it waits for them."""
    cell = ActorCell("a", Doer, Doer)

    async def stop():
        cell.stop()

    async def tell_last():
        await until_blocked()  # tasks of a nursery start in any order
        await cell.ref.tell(Do(stop))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cell.ref.ask, Do(functools.partial(trio.sleep, 1)))
        nursery.start_soon(cell.ref.tell, Do(nothing))
        nursery.start_soon(tell_last)
        await cell.serve()
    assert cell.statistics().handled == 3


@in_lab
async def test_a_timer_that_waits_for_room_is_no_circle(lab):
    """A message set for later that finds a full mailbox waits; nobody waits for it."""

    class Timed(Doer):
        async def on_start(self):
            self.after(1, Do(nothing))

    a, b = await lab.spawn("a", Timed), await lab.spawn("b")
    await a.tell(Do(asking(b, functools.partial(trio.sleep, 2))))
    await until_blocked()
    await a.tell(Do(nothing))
    await trio.sleep(3)
    assert lab.cells["a"].statistics().handled == 3


journeys = st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 3), min_size=1, max_size=4)), max_size=6)


@settings(deadline=None)
@given(journeys)
def test_whoever_asks_whom_nobody_waits_for_a_deadline(plan):
    """With any asks through any actors, none times out; those that all go in one direction are never refused."""

    async def main():
        refused, done = [], []

        async with trio.open_nursery() as outer:
            lab = Lab(outer)
            refs = [await lab.spawn(str(number)) for number in range(4)]

            def along(path):
                async def go():
                    await trio.sleep(0.5)
                    if path:
                        await refs[path[0]].ask(Do(along(path[1:])), timeout=1000)

                return go

            async def travel(at, path):
                await trio.sleep(at)
                try:
                    await along(path)()
                except DeadlockError:
                    refused.append(path)
                done.append(path)

            start = trio.current_time()
            async with trio.open_nursery() as nursery:
                for at, path in plan:
                    nursery.start_soon(travel, at, path)
            assert trio.current_time() - start < 100
            lab.stop()
        assert len(done) == len(plan)
        if all(path == sorted(set(path)) for _, path in plan):
            assert refused == []
        for path in refused:
            assert len(path) > 1
        for _, path in plan:
            if len(path) > len(set(path)):
                assert path in refused
        assert _waiting == {}

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
