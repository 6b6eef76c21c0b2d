"""The worker thread, with real threads and small times."""

import threading
import time

import pytest
import trio
import trio.testing

from trio_daq.errors import HungCallError
from trio_daq.sharing import WorkerThread


class Latch:
    """A blocking call that says when it has begun and ends when it is let go."""

    def __init__(self):
        self.begun, self.go = threading.Event(), threading.Event()
        self.ended = False

    def __call__(self, result=None):
        self.begun.set()
        assert self.go.wait(10)
        self.ended = True
        return result

    async def wait_begun(self):
        assert await trio.to_thread.run_sync(self.begun.wait, 10)


@pytest.fixture
async def worker():
    worker = WorkerThread("worker under test")
    yield worker
    await worker.aclose(5)


def threads():
    """Our worker threads that live now, those that are just ending aside."""
    found = [thread for thread in threading.enumerate() if thread.name.startswith("worker under test")]
    for thread in found:
        thread.join(0.2)
    return [thread.name for thread in found if thread.is_alive()]


async def test_calls_are_made_in_order_in_one_thread(worker):
    """Calls run one at a time, in the order in which they were asked for, all in one daemon thread."""
    seen, inside = [], []

    def work(number):
        inside.append(number)
        assert inside == [number]
        seen.append((number, threading.current_thread()))
        inside.remove(number)
        return number * number

    async with trio.open_nursery() as nursery:
        results = {}

        async def call(number):
            results[number] = await worker.run(work, number)

        for number in range(50):
            nursery.start_soon(call, number)
            await trio.lowlevel.checkpoint()
    assert [number for number, _ in seen] == list(range(50))
    assert len({thread for _, thread in seen}) == 1
    assert seen[0][1].daemon
    assert seen[0][1] is not threading.current_thread()
    assert results == {number: number * number for number in range(50)}


async def test_what_the_call_raises_comes_out(worker):
    """The exception of the call is raised to its caller, and the thread serves the next call."""
    error = KeyError("from the library")

    def fail():
        raise error

    with pytest.raises(KeyError) as caught:
        await worker.run(fail)
    assert caught.value is error
    assert await worker.run(sum, [1, 2]) == 3


async def test_a_call_that_was_left_before_it_began_is_never_made(worker):
    """Cancelled behind another call, a call is not made when its turn comes."""
    latch, made = Latch(), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.run, latch)
        await latch.wait_begun()
        with trio.move_on_after(0.01) as scope:
            await worker.run(made.append, "cancelled")
        assert scope.cancelled_caught
        latch.go.set()
        await worker.run(made.append, "next")
    assert made == ["next"]


async def test_a_cancelled_task_starts_no_call(worker):
    """A task that is cancelled already does not even start the thread."""
    made = []
    with trio.CancelScope() as scope:
        scope.cancel()
        await worker.run(made.append, 1)
    assert scope.cancelled_caught
    assert threads() == []
    assert made == []


async def test_a_call_that_was_left_goes_on_and_the_next_waits_for_it(worker):
    """Cancelled while it runs, a call ends in its own time, nobody gets its result, and the next call comes after."""
    latch = Latch()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.run, latch, "old result")
            await latch.wait_begun()
            scope.cancel()
    assert scope.cancelled_caught
    assert not latch.ended
    results = []

    async def next_call():
        results.append(await worker.run(lambda: ("next", latch.ended)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(next_call)
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert results == []
        latch.go.set()
    assert results == [("next", True)]


async def test_a_result_never_wakes_a_later_wait(worker):
    """The result of a call that was left wakes no other wait of the same task, neither a sleep nor another call."""
    latch = Latch()

    async def leave_a_call(latch):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_when_begun, scope, latch)
                await worker.run(latch, "OLD")

    await leave_a_call(latch)
    woken = []

    def abort(_):
        woken.append("cancelled")
        return trio.lowlevel.Abort.SUCCEEDED

    threading.Timer(0.02, latch.go.set).start()
    with trio.move_on_after(0.1):
        woken.append(await trio.lowlevel.wait_task_rescheduled(abort))
    assert woken == ["cancelled"]
    assert latch.ended

    second = Latch()
    await leave_a_call(second)
    second.go.set()
    assert await worker.run(str, "NEW") == "NEW"


async def _cancel_when_begun(scope, latch):
    await latch.wait_begun()
    scope.cancel()


async def test_a_result_and_a_cancellation_at_one_time_never_cross(worker):
    """Cancelled again and again just when the result comes, each call ends in its own result or in a cancellation."""
    cancelled = 0
    for number in range(300):
        with trio.move_on_after(0.0002 * (number % 5)) as scope:
            result = await worker.run(lambda number=number: number)
            assert result == number
        cancelled += scope.cancelled_caught
        await trio.lowlevel.checkpoint()  # an old wake-up would raise or return here
    assert cancelled > 0
    assert await worker.run(int, "7") == 7


async def test_a_hung_call_is_given_up_after_timeout_and_grace(worker):
    """A call that hangs raises HungCallError after timeout + grace; the next call gets a fresh thread at once."""
    latch = Latch()
    started = trio.current_time()
    with pytest.raises(HungCallError) as caught:
        await worker.run(latch, timeout=0.03, grace=0.03)
    assert 0.06 <= trio.current_time() - started < 2
    error = caught.value
    assert (error.thread, error.waited, error.sent) == ("worker under test #1", 0.06, "unknown")
    assert worker.abandoned() == ("worker under test #1",)
    assert await worker.run(lambda: threading.current_thread().name) == "worker under test #2"
    assert not latch.ended
    latch.go.set()
    await worker.aclose(5)
    assert threads() == []


async def test_an_error_of_a_hung_call_names_the_function(worker):
    """The error says which function hangs."""
    go = threading.Event()

    def read_from_instrument():
        go.wait(10)

    with pytest.raises(HungCallError, match="read_from_instrument"):
        await worker.run(read_from_instrument, timeout=0.01, grace=0.01)
    go.set()


async def test_grace_is_on_top_of_the_timeout(worker):
    """A call that ends between timeout and grace gives its result, and its thread stays."""
    latch = Latch()
    threading.Timer(0.05, latch.go.set).start()
    assert await worker.run(latch, "late", timeout=0.01, grace=5) == "late"
    assert worker.abandoned() == ()


async def test_the_thread_closes_what_it_opened_as_its_last_act(worker):
    """``closing`` is called with the result, in the thread that opened it, after all calls, and only then."""
    log = []

    def note(what):
        log.append((what, threading.current_thread().name))

    def opening():
        note("open")
        return "resource"

    await worker.run(opening, closing=lambda resource: note(f"close {resource}"))
    await worker.run(note, "use")
    assert [what for what, _ in log] == ["open", "use"]
    assert await worker.aclose(5)
    assert [what for what, _ in log] == ["open", "use", "close resource"]
    assert len({name for _, name in log}) == 1


async def test_what_is_opened_for_nobody_is_closed_all_the_same(worker):
    """If the opener left while the call ran, the thread still closes the result as its last act."""
    latch, closed = Latch(), []
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when_begun, scope, latch)
            await worker.run(latch, "resource", closing=closed.append)
    latch.go.set()
    assert closed == []
    assert await worker.aclose(5)
    assert closed == ["resource"]


async def test_a_hung_opener_closes_when_it_wakes():
    """A thread that was given up closes what it opened when it wakes at last, and ends."""
    worker, latch, closed = WorkerThread("worker under test"), Latch(), []
    with pytest.raises(HungCallError):
        await worker.run(latch, "resource", timeout=0.01, grace=0.01, closing=closed.append)
    assert await worker.run(str, "next") == "next"
    latch.go.set()
    await worker.aclose(5)
    assert threads() == []
    assert closed == ["resource"]


async def test_several_results_are_closed_last_opened_first(worker, caplog):
    """Of several things opened none is forgotten, even if closing one fails, which is logged."""
    closed = []

    def close(resource):
        closed.append(resource)
        if resource == "b":
            raise OSError("stuck")

    for resource in "abc":
        await worker.run(str, resource, closing=close)
    assert await worker.aclose(5)
    assert closed == ["c", "b", "a"]
    assert "could not be closed: stuck" in caplog.text


async def test_a_failed_opening_closes_nothing(worker):
    """If the call raises, there is nothing to close."""
    closed = []
    with pytest.raises(ValueError, match="invalid literal"):
        await worker.run(int, "x", closing=closed.append)
    await worker.aclose(5)
    assert closed == []


async def test_no_thread_is_left_after_aclose(worker):
    """After aclose the thread has ended; closing again, or what was never used, is quick and true."""
    assert await worker.aclose(0)
    await worker.run(str)
    assert len(threads()) == 1
    assert await worker.aclose(5)
    assert threads() == []
    assert await worker.aclose(0)
    assert worker.abandoned() == ()


async def test_aclose_waits_for_the_calls_that_are_in(worker):
    """What was asked for before aclose is done before the thread ends."""
    latch, made = Latch(), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.run, latch)
        await latch.wait_begun()
        nursery.start_soon(worker.run, made.append, 1)
        await trio.testing.wait_all_tasks_blocked()
        threading.Timer(0.02, latch.go.set).start()
        assert await worker.aclose(5)
    assert made == [1]


async def test_aclose_gives_up_on_a_thread_that_hangs_also_when_cancelled():
    """aclose is bounded by its timeout, not cut short by a cancellation, and names the thread that it gave up."""
    worker, latch = WorkerThread("worker under test"), Latch()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when_begun, scope, latch)
            await worker.run(latch)
    with trio.CancelScope() as scope:
        scope.cancel()
        started = trio.current_time()
        assert not await worker.aclose(0.03)
        assert trio.current_time() - started >= 0.03
    assert worker.abandoned() == ("worker under test #1",)
    latch.go.set()
    assert threads() == []


def test_a_thread_that_outlives_the_event_loop_ends_in_silence():
    """A hung call that returns after the event loop has ended raises nowhere, and its thread ends."""
    latch = Latch()

    async def main():
        with pytest.raises(HungCallError):
            await WorkerThread("worker under test").run(latch, timeout=0.01, grace=0.01)

    trio.run(main)
    latch.go.set()
    deadline = time.monotonic() + 5
    while threads() and time.monotonic() < deadline:
        pass
    assert threads() == []
