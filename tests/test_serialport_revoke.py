"""A port that is taken back from its owner."""

import attrs
import pytest
import trio
import trio.testing

from trio_daq.errors import ExchangeTimeoutError, LeaseRevokedError
from trio_daq.serialport import SerialPortConfig, SharedSerialPort
from trio_daq.sim import open_simulated_lab
from trio_daq.wire import SyncQuery


@pytest.fixture
async def port(tmp_path):
    async with open_simulated_lab(tmp_path / "log", meter=None) as lab:
        config = SerialPortConfig(
            path=lab.stage_path,
            write_terminator="\r\n",
            read_terminator="\r\n",
            acquire_timeout=3,
            sync_query=SyncQuery("ECHO {nonce}", "{nonce}"),
        )
        port = SharedSerialPort(config)
        yield port
        await port.aclose()


async def test_the_owner_is_woken_and_the_next_gets_its_own_reply(port) -> None:
    """Revoked in the middle of a query: the owner gets LeaseRevokedError, the next owner the line and no late reply."""
    caught = []

    async def stuck(task_status) -> None:
        async with port.acquire("stuck") as guard:
            task_status.started()
            try:
                await guard.query(b"SLOW? late 0.3", timeout=5)
            except LeaseRevokedError as error:
                caught.append(error)
            with pytest.raises(LeaseRevokedError):
                await guard.query(b"POS? again")

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            await nursery.start(stuck)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert port.revoke("it is stuck") == "stuck"
            async with port.acquire("next") as guard:
                assert await guard.query(b"POS? next") == b"next 12.500"
    assert (caught[0].owner, caught[0].reason, caught[0].sent) == ("stuck", "it is stuck", "yes")
    assert port.revoke("again") is None


async def test_the_next_owner_keeps_its_own_deadline(port) -> None:
    """A revoked owner that leaves its call late does not take the deadline of the next owner's exchange with it."""

    async def stuck(task_status) -> None:
        async with port.acquire("stuck") as guard:
            task_status.started()
            with pytest.raises(LeaseRevokedError):
                await guard.read_until(timeout=5)

    async def hasty() -> None:
        async with port.acquire("hasty") as guard:
            with pytest.raises(ExchangeTimeoutError):
                await guard.read_until(timeout=0.02)

    for _ in range(12):  # Trio runs the two in any order
        with trio.fail_after(2):
            async with trio.open_nursery() as nursery:
                await nursery.start(stuck)
                nursery.start_soon(hasty)
                await trio.testing.wait_all_tasks_blocked(0.01)
                port.revoke("test")


async def test_a_block_that_holds_too_long_is_cancelled(port) -> None:
    """With max_hold the block is cancelled and ends in LeaseRevokedError; the port goes to the next in line."""
    limited = SharedSerialPort(attrs.evolve(port.config, max_hold=0.1))

    async def hold_for_ever() -> None:
        async with limited.acquire("greedy") as guard:
            assert await guard.query(b"POS? greedy") == b"greedy 12.500"
            await trio.sleep_forever()

    with trio.fail_after(5):
        with pytest.raises(LeaseRevokedError, match=r"more than 0\.1 s"):
            await hold_for_ever()
        assert limited.current_owner() is None
        async with limited.acquire("next") as guard:
            assert await guard.query(b"POS? next") == b"next 12.500"
    await limited.aclose()


async def test_what_the_body_raises_is_not_replaced(port) -> None:
    """A revoked owner's own exception, and a cancellation from outside, come out as they are."""

    async def fail() -> None:
        async with port.acquire("owner"):
            port.revoke("test")
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    with trio.move_on_after(0.05) as outside:
        async with port.acquire("owner"):
            port.revoke("test")
            await trio.sleep_forever()
    assert outside.cancelled_caught
