"""Several lines at once."""

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_daq.errors import AcquireTimeoutError, DeadlockError
from trio_daq.sharing import Lease, LineKind, acquire_all


class Line:
    """A lease that can be taken as a port is."""

    def __init__(self, name: str, kind: LineKind = LineKind.SERIAL) -> None:
        self.lease = Lease(name, kind=kind)
        self.order = (kind, name)

    def acquire(self, owner, timeout):
        return self.lease.hold(owner, timeout)


async def test_all_are_held_and_then_none(autojump_clock) -> None:
    """Inside the block every line is the owner's, in the order given; after it none is."""
    first, second = Line("a"), Line("b")
    async with acquire_all(second, first, owner="me") as claims:
        assert [claim.resource for claim in claims] == ["b", "a"]
        assert (first.lease.holder, second.lease.holder) == ("me", "me")
    assert (first.lease.holder, second.lease.holder) == (None, None)


async def test_one_deadline_and_all_or_nothing(autojump_clock) -> None:
    """When the second line is not to be had in time, the first is given back."""
    first, second = Line("a"), Line("b")

    async def hold(task_status) -> None:
        async with second.lease.hold("other"):
            task_status.started()
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        await nursery.start(hold)
        started = trio.current_time()
        with pytest.raises(AcquireTimeoutError):
            await acquire_all(first, second, owner="me", timeout=3).__aenter__()
        assert trio.current_time() - started == pytest.approx(3)
        assert first.lease.holder is None
        nursery.cancel_scope.cancel()


async def test_a_line_named_twice_is_a_mistake(autojump_clock) -> None:
    """The same line twice is refused, rather than waited for until the deadline."""
    line = Line("a")
    with pytest.raises(ValueError, match="twice"):
        await acquire_all(line, line).__aenter__()


@settings(deadline=None, max_examples=60)
@given(
    plans=st.lists(st.tuples(st.permutations(range(4)), st.integers(1, 4), st.integers(0, 3)), min_size=2, max_size=12)
)
def test_in_any_order_and_number_nobody_deadlocks(plans) -> None:
    """Tasks that take random lines in random orders all get them, and no wait is refused as a circle."""

    async def main() -> None:
        lines = [
            Line(name, kind)
            for name, kind in zip(
                "abcd", [LineKind.SERIAL, LineKind.SERIAL, LineKind.DEVICE, LineKind.VISA], strict=True
            )
        ]
        done = 0

        async def take(order, count, hold) -> None:
            nonlocal done
            async with acquire_all(*(lines[at] for at in order[:count]), owner=f"task {order}", timeout=50):
                await trio.sleep(hold)
            done += 1

        with trio.fail_after(1000):
            async with trio.open_nursery() as nursery:
                for plan in plans:
                    nursery.start_soon(take, *plan)
        assert done == len(plans)
        assert not any(line.lease.holder for line in lines)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_without_it_the_circle_is_refused_with_both_names(autojump_clock) -> None:
    """Two tasks that take two lines in opposite orders: the second to ask gets an error that names both."""
    first, second = Line("/dev/ttyUSB0"), Line("/dev/ttyUSB1")
    refused = []

    async def take(one, other, owner) -> None:
        async with one.lease.hold(owner):
            await trio.sleep(1)
            try:
                async with other.lease.hold(owner, timeout=10):
                    pass
            except DeadlockError as error:
                refused.append(str(error))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take, first, second, "left")
        nursery.start_soon(take, second, first, "right")
    assert len(refused) == 1
    assert all(word in refused[0] for word in ("/dev/ttyUSB0", "/dev/ttyUSB1", "'left'", "'right'"))
