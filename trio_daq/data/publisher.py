"""Number and stamp the readings of one instrument, and publish them.

Invariant: a number is used only when its reading was given to every subscriber, so a stream has no gaps.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from trio_daq.data.distributor import DataDistributor
from trio_daq.data.reading import Reading


class DataPublisher:
    """The way into the stream for one instrument.

    Several publishers of one instrument share its numbering, so a restarted member goes on where it stopped.

    Args:
        distributor: Where its readings go.
        instrument: Whose readings they are.

    Attributes:
        distributor: As given.
        instrument: As given.
    """

    def __init__(self, distributor: DataDistributor, instrument: str) -> None:
        self.instrument = instrument
        self.distributor = distributor

    async def publish(
        self,
        channel: str,
        value: float | Sequence[float],
        unit: str = "",
        *,
        asked_ns: int | None = None,
        timeout: float = 5.0,
    ) -> Reading:
        """Publish one value and return its reading, whose ``seq`` a recorder acknowledges.

        All or nothing: cancelled or out of time, it was given to nobody.

        Args:
            channel: What was measured.
            value: A number, or a row of numbers.
            unit: A label.
            asked_ns: `time.monotonic_ns` when the instrument was asked; the time of this call if omitted.
            timeout: Seconds to wait for subscribers that may lose nothing.

        Raises:
            PublishTimeoutError: If such a subscriber had no room in time.
        """
        came_ns = time.monotonic_ns()
        await self.distributor.wait_for_room(self.instrument, timeout)
        # No checkpoint from here on: the number, the room and the reading belong together.
        reading = Reading(
            instrument=self.instrument,
            channel=channel,
            value=value,
            unit=unit,
            seq=self.distributor.next_seq(self.instrument),
            time_ns=time.time_ns(),
            monotonic_ns=came_ns,
            asked_ns=came_ns if asked_ns is None else asked_ns,
        )
        self.distributor.publish_nowait(reading)
        return reading
