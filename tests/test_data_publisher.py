"""Numbers and stamps of the readings of one instrument."""

import time

import pytest
import trio
import trio.testing

from trio_daq.data import DataDistributor, DataPublisher


async def test_a_reading_says_where_it_is_from_and_when_it_came():
    """Instrument, channel, value, unit and three times are as they were at the call."""
    publisher = DataPublisher(DataDistributor(), "dmm")
    wall, monotonic = time.time_ns(), time.monotonic_ns()
    reading = await publisher.publish("voltage", 1.5, "V", asked_ns=42)
    assert (reading.instrument, reading.channel, reading.value, reading.unit) == ("dmm", "voltage", 1.5, "V")
    assert wall <= reading.time_ns <= time.time_ns()
    assert monotonic <= reading.monotonic_ns <= time.monotonic_ns()
    assert reading.asked_ns == 42
    assert publisher.instrument == "dmm"


async def test_without_a_time_of_asking_it_is_the_time_of_the_call():
    """Where nobody says when the instrument was asked, that time is that of the reply."""
    reading = await DataPublisher(DataDistributor(), "dmm").publish("v", 1)
    assert reading.asked_ns == reading.monotonic_ns


async def test_the_time_of_a_reading_is_before_the_wait_for_room():
    """A reading that had to wait for a subscriber bears the time at which it came."""
    distributor = DataDistributor()
    publisher = DataPublisher(distributor, "dmm")
    readings, asked = [], []

    async def second():
        asked.append(time.monotonic_ns())
        readings.append(await publisher.publish("v", 2))

    with distributor.subscribe("recorder", policy="block", capacity=1) as recorder:
        await publisher.publish("v", 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(second)
            await trio.testing.wait_all_tasks_blocked()
            released = time.monotonic_ns()
            recorder.receive_nowait()
    assert asked[0] <= readings[0].monotonic_ns < released


async def test_publishers_of_one_instrument_share_its_numbers():
    """A second publisher of an instrument goes on with the number after the last; another instrument has its own."""
    distributor = DataDistributor()
    seqs = [
        (await DataPublisher(distributor, instrument).publish("v", 1)).seq
        for instrument in ("dmm", "dmm", "psu", "dmm", "psu")
    ]
    assert seqs == [0, 1, 0, 2, 1]


async def test_a_value_that_is_none_uses_no_number():
    """A value that is refused leaves no gap."""
    publisher = DataPublisher(DataDistributor(), "dmm")
    with pytest.raises(TypeError):
        await publisher.publish("v", "1.5")
    assert (await publisher.publish("v", 1.5)).seq == 0
