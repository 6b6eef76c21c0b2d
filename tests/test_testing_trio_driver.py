"""A Trio run that is driven from synchronous code."""

import pytest
import trio

from trio_daq.testing import TrioDriver


def test_time_stands_still_until_it_is_told_to_go_on():
    """Each deadline on the way is met at its own time, however far the clock is sent at once."""
    with TrioDriver() as driver:
        woke = []

        async def sleep_on(step):
            while True:
                await trio.sleep(step)
                woke.append((trio.current_time(), step))

        driver.start(sleep_on, 3)
        driver.start(sleep_on, 5)
        driver.advance(2.5)
        assert woke == []
        driver.advance(8)
        assert woke == [(3, 3), (5, 5), (6, 3), (9, 3), (10, 5)]


def test_a_task_that_fails_ends_the_run_with_its_error():
    """The call during which a task failed raises what it raised; leaving the block does not raise it again."""

    async def fail():
        await trio.sleep(1)
        raise KeyError("mine")

    with TrioDriver() as driver:
        driver.start(fail)
        with pytest.raises(ExceptionGroup) as caught:
            driver.advance(2)
        assert caught.group_contains(KeyError, match="mine")
        with pytest.raises(RuntimeError, match="has ended"):
            driver.settle()


def test_leaving_cancels_what_still_runs():
    """A task that sleeps for ever is cancelled at the end, and its clean-up runs."""
    cleaned = []

    async def work():
        try:
            await trio.sleep_forever()
        finally:
            cleaned.append(True)

    with TrioDriver() as driver:
        driver.start(work)
    assert cleaned == [True]


def test_not_entered():
    """A driver that was not entered says so."""
    with pytest.raises(RuntimeError, match="with TrioDriver"):
        TrioDriver().start(trio.sleep, 1)
