"""The statistics of a VISA session equal what the instrument itself wrote down, owner by owner."""

from collections import Counter

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from trio_daq.errors import CommandTimeoutError
from trio_daq.sim import MemoryInstrument, SimulatedMeter
from trio_daq.visa import VisaSessionConfig, VisaSessionManager

SLOW = 0.1
"""Seconds that the instrument takes for each command."""

orders = st.lists(
    st.tuples(
        st.sampled_from(["ann", "bob", "cid"]),
        st.sampled_from(["urgent", "normal", "background"]),
        st.integers(1, 3),  # commands of a batch, 1 for a query
        st.sampled_from([0.15, 0.45, 5.0]),  # its deadline
        st.sampled_from([None, None, 0.05, 0.25]),  # when its caller leaves
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(orders)
def test_counts_equal_those_of_the_instrument(asked):
    """Each command that the instrument took up counts for its owner: as executed, or as one left unfinished."""

    async def main() -> None:
        meter = MemoryInstrument(SimulatedMeter())
        timed_out = 0
        config = VisaSessionConfig(resource="TCPIP::memory::1::SOCKET", timeout=5.0)

        async def ask(session: VisaSessionManager, number: int) -> None:
            nonlocal timed_out
            owner, priority, count, timeout, leaves = asked[number]
            texts = [f"SLOW? {owner}-{number}-{part},{SLOW}" for part in range(count)]
            try:
                with trio.move_on_after(leaves if leaves is not None else 60):
                    await session.batch(texts, timeout, owner, priority)
            except CommandTimeoutError:
                timed_out += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(meter.serve)
            async with VisaSessionManager(config, make_transport=meter.connect) as session:
                async with trio.open_nursery() as callers:
                    for number in range(len(asked)):
                        callers.start_soon(ask, session, number)
                await trio.sleep(10)  # what was left in flight is finished
                seen = session.statistics()
            nursery.cancel_scope.cancel()
        taken = Counter(entry.text.split()[1].partition("-")[0] for entry in meter.log if entry.event == "command")
        assert taken == Counter(seen.executed) + Counter(seen.unfinished)
        assert seen.timed_out == timed_out

    trio.run(main, clock=MockClock(autojump_threshold=0))
