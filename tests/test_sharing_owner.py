"""Under which name a task asks."""

import pytest
import trio
import trio.testing

from trio_daq.sharing import acting_as, owner_name


async def test_a_given_name_beats_the_member_and_the_member_beats_the_task():
    """The name given counts first, then the member's id, then the task's name."""
    task = trio.lowlevel.current_task().name
    assert owner_name(None) == task
    with acting_as("member"):
        assert owner_name(None) == "member"
        assert owner_name("given") == "given"
        with acting_as("inner"):
            assert owner_name(None) == "inner"
        assert owner_name(None) == "member"
    assert owner_name(None) == task


async def test_an_error_in_the_block_ends_the_role():
    """After a block that raised, the task is itself again."""
    with pytest.raises(KeyError), acting_as("member"):
        raise KeyError
    assert owner_name(None) == trio.lowlevel.current_task().name


async def test_the_identity_goes_into_threads():
    """A thread started by Trio from a member knows the member's id."""
    with acting_as("member"):
        assert await trio.to_thread.run_sync(owner_name, None) == "member"


async def test_a_task_started_elsewhere_is_not_the_member():
    """A task that was started before keeps its own name while a member acts."""
    go, names = trio.Event(), []

    async def stranger():
        await go.wait()
        names.append(owner_name(None))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stranger, name="stranger")
        with acting_as("member"):
            go.set()
            await trio.testing.wait_all_tasks_blocked()
    assert names == ["stranger"]


@pytest.mark.parametrize("name", ["", "  "])
async def test_an_empty_name_is_refused(name):
    """A name of nothing is a mistake, not a wish for the default."""
    with acting_as("member"), pytest.raises(ValueError, match="needs a name"):
        owner_name(name)
