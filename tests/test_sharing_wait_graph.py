"""The wait-for graph: every true circle is refused with its names, and nothing else is."""

import functools
import itertools
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_daq.errors import DaqError, DeadlockError, LockOrderError, PortBusyError
from trio_daq.sharing import Lease, LineKind, acquire_all, on_behalf_of
from trio_daq.sharing.wait_graph import _higher_kinds, _waiting


async def until_blocked():
    await trio.testing.wait_all_tasks_blocked()


def assert_graph_empty():
    """Nobody waits and nobody holds anything of a higher kind."""
    assert (_waiting, _higher_kinds) == ({}, {})


async def take_in_turn(owner, leases, refused, *, agent=None):
    """Take *leases* nested, letting everybody else go on before each; note the error of a refusal."""

    async def take(rest):
        if rest:
            async with rest[0].hold(owner, 50):
                await trio.sleep(1)
                await take(rest[1:])

    try:
        if agent is None:
            await take(leases)
        else:
            with on_behalf_of(agent):
                await take(leases)
    except DeadlockError as error:
        refused[owner] = error


# --- circles -----------------------------------------------------------------------------------------------------


async def test_two_tasks_and_two_leases(autojump_clock):
    """Two that take two lines in opposite order: the one that would close the circle is refused, with both names."""
    stage, meter = Lease("stage"), Lease("meter")
    refused = {}
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_in_turn, "anna", [stage, meter], refused)
        await trio.sleep(0.5)
        nursery.start_soon(take_in_turn, "bert", [meter, stage], refused)
    assert trio.current_time() - start < 10
    error = refused.pop("bert")
    assert refused == {}
    assert (error.resource, error.wanted_by, error.sent) == ("stage", "bert", "no")
    assert error.circle == (("stage", "anna"), ("meter", "bert"))
    assert str(error) == (
        "stage: 'bert' would wait for ever: stage is held by 'anna'; meter is held by 'bert', and so back to 'bert'. "
        "Nothing was sent; release what you have first, or take all lines at once with acquire_all()."
    )
    assert_graph_empty()


async def test_three_parties(autojump_clock):
    """A circle of three is refused to the last, with all three names in the order of the circle."""
    a, b, c = Lease("a"), Lease("b"), Lease("c")
    refused = {}
    async with trio.open_nursery() as nursery:
        for owner, leases in [("anna", [a, b]), ("bert", [b, c]), ("carl", [c, a])]:
            nursery.start_soon(take_in_turn, owner, leases, refused)
            await trio.sleep(0.25)
    assert list(refused) == ["carl"]
    assert refused["carl"].circle == (("a", "anna"), ("b", "bert"), ("c", "carl"))
    assert_graph_empty()


async def test_a_chain_is_no_circle(autojump_clock):
    """Each waits for the next, and the last for nobody: all are served."""
    leases = [Lease(str(n)) for n in range(6)]
    refused = {}
    async with trio.open_nursery() as nursery:
        for n in range(5):
            nursery.start_soon(take_in_turn, f"owner {n}", leases[n : n + 2], refused)
            await trio.sleep(0.125)
    assert refused == {}
    assert [sum(lease.statistics().grants.values()) for lease in leases] == [1, 2, 2, 2, 2, 1]
    assert_graph_empty()


async def test_what_one_has_already(autojump_clock):
    """Asking for what one holds is the smallest circle, also under another name; with timeout=0 it is only busy."""
    lease = Lease("stage")
    async with lease.hold("anna"):
        with pytest.raises(DeadlockError) as caught:
            async with lease.hold("anna, second name", 5):
                pass
        with pytest.raises(PortBusyError):
            async with lease.hold("anna", 0):
                pass
    assert caught.value.circle == (("stage", "anna"),)
    async with lease.hold("anna"):
        pass
    assert_graph_empty()


async def test_after_an_early_release_one_may_ask_again(autojump_clock):
    """Given back inside the block, a lease can be taken again there."""
    lease = Lease("stage")
    async with lease.hold("anna") as claim:
        claim.release()
        async with lease.hold("anna", 5):
            assert lease.holder == "anna"
    assert_graph_empty()


# --- nurseries ---------------------------------------------------------------------------------------------------


async def ask(lease, owner, outcome):
    try:
        async with lease.hold(owner, 20):
            outcome[owner] = "granted"
    except DeadlockError as error:
        outcome[owner] = error


async def test_a_child_of_a_nursery_inside_the_block(autojump_clock):
    """A child, and a grandchild, that waits for what the block around its nursery holds is refused."""
    lease = Lease("stage")
    outcome = {}

    async def with_child():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, lease, "grandchild", outcome)

    async with lease.hold("parent"), trio.open_nursery() as nursery:
        nursery.start_soon(ask, lease, "child", outcome)
        nursery.start_soon(with_child)
    assert outcome["child"].circle == outcome["grandchild"].circle == (("stage", "parent"),)
    assert_graph_empty()


async def test_a_child_of_a_nursery_around_the_block(autojump_clock):
    """A child of a nursery that was opened before the block waits for its parent, which will leave the block."""
    lease = Lease("stage")
    outcome = {}
    async with trio.open_nursery() as nursery, lease.hold("parent"):
        nursery.start_soon(ask, lease, "child", outcome)
        async with trio.open_nursery() as inner:
            inner.start_soon(trio.sleep, 1)
        await trio.sleep(1)
    assert outcome == {"child": "granted"}
    assert_graph_empty()


async def test_a_circle_that_goes_through_a_child(autojump_clock):
    """A holder that cannot leave before its child has what the asker holds closes a circle, whoever asks last."""
    a, b = Lease("a"), Lease("b")
    for child_first in (True, False):
        outcome = {}

        async def parent(pause, outcome=outcome):
            async with a.hold("parent"), trio.open_nursery() as nursery:
                await trio.sleep(pause)
                nursery.start_soon(ask, b, "child", outcome)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(parent, 1 if child_first else 3)
            await until_blocked()
            async with b.hold("other"):
                await trio.sleep(2)
                await ask(a, "other", outcome)
        if child_first:
            assert outcome["other"].circle == (("a", "parent"), ("b", "other"))
            assert outcome["child"] == "granted"
        else:
            assert outcome["child"].circle == (("b", "other"), ("a", "parent"))
            assert outcome["other"] == "granted"
    assert_graph_empty()


async def test_a_task_that_a_holder_started_elsewhere(autojump_clock):
    """A task that the holder starts in a nursery of somebody else is no part of its block."""
    lease = Lease("stage")
    outcome = {}

    async def holder(elsewhere):
        async with lease.hold("holder"), trio.open_nursery():
            elsewhere.start_soon(ask, lease, "restarted", outcome)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(holder, nursery)
    assert outcome == {"restarted": "granted"}


# --- threads -----------------------------------------------------------------------------------------------------


async def test_a_thread_that_asks_through_two_tasks(autojump_clock):
    """What a thread holds through one host task and asks for through another is one waiter: its circle is refused."""
    a, b = Lease("a"), Lease("b")
    thread = object()
    refused = {}
    done = trio.Event()

    async def host():
        with on_behalf_of(thread):
            async with a.hold("thread"):
                await done.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(host)
        await until_blocked()
        nursery.start_soon(take_in_turn, "task", [b, a], refused)
        await trio.sleep(2)
        with on_behalf_of(thread), pytest.raises(DeadlockError) as caught:
            async with b.hold("thread", 20):
                pass
        with on_behalf_of(thread), pytest.raises(DeadlockError) as itself:
            async with a.hold("thread", 20):
                pass
        done.set()
    assert caught.value.circle == (("b", "task"), ("a", "thread"))
    assert itself.value.circle == (("a", "thread"),)
    assert refused == {}
    assert_graph_empty()


async def test_two_threads_behind_two_tasks(autojump_clock):
    """Two threads in opposite order: the second is refused; and threads are strangers to the task that hosts both."""
    a, b = Lease("a"), Lease("b")
    refused = {}
    async with trio.open_nursery() as nursery:
        for owner, leases in [("one", [a, b]), ("two", [b, a])]:
            nursery.start_soon(lambda o=owner, x=leases: take_in_turn(o, x, refused, agent=o))
            await trio.sleep(0.5)
    assert list(refused) == ["two"]
    assert refused["two"].circle == (("a", "one"), ("b", "two"))
    assert_graph_empty()


# --- no false refusal of waits that are over ---------------------------------------------------------------------


async def test_a_wait_that_was_just_cancelled_closes_no_circle(autojump_clock):
    """In the turn in which a waiter is cancelled it waits no more: who asks for what it holds may wait for that."""
    a, b = Lease("a"), Lease("b")
    refused = {}
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery, b.hold("anna"):

            async def bert():
                with scope_of_bert:
                    await take_in_turn("bert", [a, b], refused)

            scope_of_bert = trio.CancelScope()
            nursery.start_soon(bert)
            await trio.sleep(2)
            assert b.statistics().waiting == ("bert",)
            scope_of_bert.cancel()
            async with a.hold("anna", 5):
                assert a.holder == "anna"
    assert not scope.cancelled_caught
    assert refused == {}
    assert_graph_empty()


async def test_a_wait_that_ran_out_or_was_granted_leaves_the_graph(autojump_clock):
    """After a time-out and after a grant nobody is noted as waiting."""
    a, b = Lease("a"), Lease("b")
    async with trio.open_nursery() as nursery, b.hold("anna"):

        async def bert():
            async with a.hold("bert"):
                with pytest.raises(TimeoutError):
                    async with b.hold("bert", 2):
                        pass
                await trio.sleep(1)

        nursery.start_soon(bert)
        await trio.sleep(2.5)
        assert _waiting == {}
        async with a.hold("anna", 5):
            pass
    assert_graph_empty()


# --- the order of kinds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("contended", [False, True])
@pytest.mark.parametrize("held", list(LineKind))
@pytest.mark.parametrize("wanted", list(LineKind))
async def test_kinds_are_taken_in_rising_order(held, wanted, contended, autojump_clock):
    """A lower kind after a higher one is refused at once, whether somebody has it or not; any other order is legal."""
    first, second = Lease("first", kind=held), Lease("second", kind=wanted)
    async with trio.open_nursery() as nursery:
        if contended:
            nursery.start_soon(take_in_turn, "other", [second], {})
            await until_blocked()
        async with first.hold("anna"):
            start = trio.current_time()
            if wanted < held:
                with pytest.raises(LockOrderError) as caught:
                    async with second.hold("anna", 5):
                        pass
                error = caught.value
                assert trio.current_time() == start
                assert (error.resource, error.wanted_by, error.held) == ("second", "anna", "first")
                assert (error.kind, error.held_kind, error.sent) == (wanted.name, held.name, "no")
                assert "Take serial lines first" in str(error)
                assert second.statistics().waiting == ()
            else:
                async with second.hold("anna", 5):
                    assert second.holder == "anna"
        async with second.hold("anna", 5):
            pass
    assert_graph_empty()


async def test_the_order_holds_for_each_task_and_each_thread(autojump_clock):
    """What another task has is no reason to refuse; what one's thread has through another task is."""
    visa, serial = Lease("visa", kind=LineKind.VISA), Lease("serial")
    thread = object()
    with on_behalf_of(thread):
        async with visa.hold("thread"), trio.open_nursery() as nursery:
            with on_behalf_of(None):
                nursery.start_soon(take_in_turn, "child", [serial], {})
            await until_blocked()
            assert serial.holder == "child"

            async def other_host():
                with pytest.raises(LockOrderError):
                    async with serial.hold("thread", 5):
                        pass

            nursery.start_soon(other_host)
    assert_graph_empty()


async def test_a_revoked_claim_counts_no_more(autojump_clock):
    """Who has lost a VISA line to a revocation may take a serial one."""
    visa, serial = Lease("visa", kind=LineKind.VISA), Lease("serial")
    async with visa.hold("anna"):
        visa.revoke("test")
        async with serial.hold("anna"):
            assert serial.holder == "anna"
    assert_graph_empty()


# --- chaos -------------------------------------------------------------------------------------------------------

LEASES = 4
TIMEOUT = 59.0
"""Longer than all pauses of a plan together: a wait that reaches it has hung."""


class Party:
    """One task, or one thread behind a host task for each of its claims: what it holds, wants, and has to wait for.

    ``blocks`` has, from the outside to the inside, the lease (a number) of each block, or None once it was given
    back; ``nurseries`` has the number of blocks around each nursery, and the children in it.
    """

    def __init__(self, name, nursery, *, is_thread):
        self.name, self.nursery, self.is_thread = name, nursery, is_thread
        self.blocks, self.nurseries = [], []
        self.wants = None
        self.host_scope = trio.CancelScope()

    def below(self, depth):
        """All parties that the block at *depth* cannot end before."""
        for around, children in self.nurseries:
            if around > depth:
                for child in children:
                    yield child
                    yield from child.below(-1)


class Model:
    """Who holds and waits, noted by the parties, and a search for circles that shares nothing with the real one."""

    def __init__(self):
        self.holder, self.line = {}, {number: [] for number in range(LEASES)}

    def in_the_way_of(self, lease):
        """Every party that has to go on before *lease* can be given back."""
        found, todo = [], [lease]
        while todo:
            number = todo.pop()
            party = self.holder.get(number)
            if party is None:
                continue
            for one in [party, *party.below(party.blocks.index(number))]:
                if one not in found:
                    found.append(one)
                    if one.wants is not None:
                        todo.append(one.wants)
        return found

    def asks(self, party, lease):
        if self.holder.get(lease) is None:
            self.granted(party, lease)
        else:
            party.wants = lease
            self.line[lease].append(party)

    def granted(self, party, lease):
        self.holder[lease] = party
        party.wants = None
        party.blocks.append(lease)

    def gives_back(self, party, lease):
        party.blocks[party.blocks.index(lease)] = None
        while party.blocks and party.blocks[-1] is None:
            party.blocks.pop()
        self.holder[lease] = None
        if self.line[lease]:
            self.granted(self.line[lease].pop(0), lease)

    def gives_up(self, party):
        if party.wants is not None:
            self.line[party.wants].remove(party)
            party.wants = None


class Line:
    """A lease as one party takes it by `acquire_all`."""

    def __init__(self, chaos, party, number):
        self.order = (LineKind.SERIAL, str(number))
        self._take = lambda: chaos.take(party, number)

    def acquire(self, owner, timeout):
        return self._take()


class Chaos:
    """Parties that follow plans; each refusal, and each grant, is compared with the model at its very moment."""

    def __init__(self):
        self.leases = [Lease(f"lease {number}") for number in range(LEASES)]
        self.model = Model()
        self._names = itertools.count()

    async def play(self, plan, nursery, siblings, *, is_thread, name=None):
        """Be a party: take nested what *plan* says, up to the first refusal."""
        party = Party(name or f"child {next(self._names)}", nursery, is_thread=is_thread)
        siblings.append(party)
        try:
            await self._go_on(party, plan)
        except* DeadlockError:
            assert not [lease for lease in party.blocks if lease is not None]
        finally:
            siblings.remove(party)

    async def _go_on(self, party, plan):
        if not plan:
            return
        (what, pause, value), *rest = plan
        await trio.sleep(pause)
        if what == "take":
            async with self.take(party, value):
                await self._go_on(party, rest)
        elif what == "all":
            async with acquire_all(*(Line(self, party, number) for number in value), timeout=TIMEOUT):
                await self._go_on(party, rest)
        elif party.is_thread:  # it has no nurseries
            await self._go_on(party, rest)
        else:
            children = []
            party.nurseries.append((len(party.blocks), children))
            async with trio.open_nursery() as nursery:
                for child, is_thread in value:
                    start = functools.partial(self.play, is_thread=is_thread)
                    nursery.start_soon(start, child, nursery, children)
                try:
                    await self._go_on(party, rest)
                except BaseException:
                    for child in children:  # this nursery is about to cancel them
                        self.give_up(child)
                    raise
            party.nurseries.pop()

    def take(self, party, number):
        return self._take_through_host(party, number) if party.is_thread else self._take(party, number)

    @asynccontextmanager
    async def _take(self, party, number):
        model = self.model
        await trio.lowlevel.checkpoint_if_cancelled()
        circle = party in model.in_the_way_of(number)
        if not circle:
            model.asks(party, number)
        granted = False
        try:
            async with self.leases[number].hold(party.name, TIMEOUT):
                granted = True
                assert model.holder[number] is party
                try:
                    yield
                finally:
                    model.gives_back(party, number)
        except DeadlockError as error:
            if not granted:
                self._compare(circle, error, number)
            raise

    def _compare(self, expected, error, number):
        assert expected, f"refused without a circle: {error}"
        assert error.circle[0][0] == f"lease {number}"
        for resource, owner in error.circle:
            assert self.model.holder[int(resource.removeprefix("lease "))].name == owner

    @asynccontextmanager
    async def _take_through_host(self, party, number):
        settled, done, gone = trio.Event(), trio.Event(), trio.Event()
        refusal = None

        async def host():
            nonlocal refusal
            try:
                with trio.CancelScope() as party.host_scope, on_behalf_of(party):
                    async with self._take(party, number):
                        settled.set()
                        await done.wait()
            except DeadlockError as error:
                refusal = error
            finally:
                settled.set()
                gone.set()

        party.nursery.start_soon(host)
        try:
            await settled.wait()
            if refusal is not None:
                raise refusal
            yield
        finally:
            done.set()
            with trio.CancelScope(shield=True):
                await gone.wait()

    def give_up(self, party):
        """Let *party* and all below it wait no more, in the moment in which they are cancelled."""
        for one in [party, *party.below(-1)]:
            self.model.gives_up(one)
            one.host_scope.cancel()


pauses = st.sampled_from([0, 0.125, 0.25, 0.5])
numbers = st.integers(0, LEASES - 1)
takes = st.tuples(st.just("take"), pauses, numbers)
takes_all = st.tuples(st.just("all"), pauses, st.lists(numbers, min_size=1, max_size=3, unique=True))
plans = st.recursive(
    st.lists(takes | takes_all, max_size=4),
    lambda inner: st.lists(
        takes
        | takes_all
        | st.tuples(st.just("nursery"), pauses, st.lists(st.tuples(inner, st.booleans()), max_size=2)),
        max_size=4,
    ),
    max_leaves=6,
)
eighths = st.none() | st.integers(0, 16)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(plans, st.booleans(), eighths), min_size=2, max_size=5))
def test_refused_exactly_where_a_circle_is(programs):
    """Nested blocks, all at once, in nurseries, by threads, and cancelled anywhere: refused exactly where an
    independent search finds a circle; no wait hangs, and nothing is left behind."""

    async def main():
        chaos, roots, start = Chaos(), [], trio.current_time()

        async def run(number, plan, is_thread, cancel_after):
            name = f"root {number}"
            with trio.CancelScope() as scope:
                if cancel_after is not None:
                    nursery.start_soon(cancel, name, scope, cancel_after / 8 + 1 / 16)  # between two moves of others
                await chaos.play(plan, nursery, roots, is_thread=is_thread, name=name)

        async def cancel(name, scope, seconds):
            await trio.sleep(seconds)
            for party in roots:
                if party.name == name:
                    chaos.give_up(party)
                    scope.cancel()

        async with trio.open_nursery() as nursery:
            for number, program in enumerate(programs):
                nursery.start_soon(run, number, *program)
        assert trio.current_time() - start < TIMEOUT
        for lease in chaos.leases:
            assert (lease.holder, lease.statistics().waiting, lease.statistics().timeouts) == (None, (), 0)
        assert_graph_empty()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@settings(deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 5), pauses), max_size=5, unique_by=lambda step: step[0]),
        min_size=1,
        max_size=6,
    )
)
def test_in_canonical_order_nobody_is_refused(programs):
    """Tasks that take serial lines, then devices, then VISA, each kind by name, all get what they want."""
    kinds = [kind for kind in LineKind for _ in range(2)]

    async def main():
        leases = [Lease(f"{kind.name} {number}", kind=kind) for number, kind in enumerate(kinds)]
        served = 0

        async def take(owner, steps):
            nonlocal served
            if not steps:
                served += 1
                return
            (number, pause), *rest = steps
            async with leases[number].hold(owner, TIMEOUT):
                await trio.sleep(pause)
                await take(owner, rest)

        async with trio.open_nursery() as nursery:
            for number, steps in enumerate(programs):
                nursery.start_soon(take, f"owner {number}", sorted(steps))
        assert served == len(programs)
        assert_graph_empty()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_no_error_here_is_a_time_out():
    """A refusal is told apart from a time-out by its type."""
    assert issubclass(DeadlockError, DaqError)
    assert not issubclass(DeadlockError, TimeoutError)
    assert not issubclass(LockOrderError, TimeoutError)
