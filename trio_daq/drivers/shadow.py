"""Run a new driver in the shadow of an old one, and say where they differ.

A member that listens to what both publish, and holds up neither. What differs is in its log and in its own readings,
so in the recording too. How readings are compared is told in ``comparison.py``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import attrs
import trio

from trio_daq.data import Reading
from trio_daq.drivers.comparison import Comparison
from trio_daq.drivers.comparison_report import ComparisonReport, Difference, Tolerance
from trio_daq.drivers.context import DriverContext
from trio_daq.sharing import ServiceNursery

_Add: TypeAlias = Callable[[Reading], tuple[Difference, ...]]


@attrs.frozen(kw_only=True)
class ShadowReport:
    """What came of comparing two drivers.

    Attributes:
        old: Id of the old driver.
        new: Id of the new driver.
        channels: The report of each channel, in the order in which they were named or came.
        lost: Readings of the lab that were missed, because this member was slow.
    """

    old: str
    new: str
    channels: tuple[ComparisonReport, ...]
    lost: int

    @property
    def agrees(self) -> bool:
        """Whether something was compared, and all of it agrees."""
        return bool(self.channels) and all(one.agrees for one in self.channels)

    def __str__(self) -> str:
        if not self.channels:
            return f"nothing came from {self.old} or {self.new}, so nothing was compared"
        lines = [str(one) for one in self.channels]
        return "\n".join([*lines, f"{self.lost} readings were missed"] if self.lost else lines)


async def shadow(
    *,
    context: DriverContext,
    old: str,
    new: str,
    channels: Mapping[str, str] | None = None,
    tolerance: Tolerance | Mapping[str, Any] | None = None,
) -> ShadowReport:
    """Compare what two members publish, until the lab stops.

    The median difference of each window, new minus old, is published under the name of the old channel; of a row of
    numbers, that of the place which is the farthest out. The first window of a channel that differs is a warning in
    the log, and so is the report at the end if not all agrees. Cancellation leaves out the report.

    Args:
        context: Where to listen and to publish, and when to stop.
        old: Id of the member whose readings are believed.
        new: Id of the member that is to take its place.
        channels: Channel of the old to channel of the new; if omitted, all channels, by the same names.
        tolerance: How far they may be apart, as `Tolerance` or as a table of its values.

    Returns:
        What was found.

    Raises:
        PublishTimeoutError: If a subscriber that may lose nothing had no room for 5 s.
        ValueError: If one of these makes no sense, or *old* and *new* are the same and no channels are named.
    """
    _check(old, new, channels)
    compare = _Channels(old, new, channels, _tolerance(tolerance))
    warned: set[str] = set()

    async def note(readings: Iterable[Reading]) -> None:
        context.beat()
        # All are taken before the first checkpoint, at which a stop may come: none is missing in the report.
        for channel, window in [found for reading in readings for found in compare.take(reading)]:
            if not window.is_allowed and channel not in warned:
                warned.add(channel)
                context.log.warning("%s and %s differ in %s: %s", old, new, channel, window)
            await context.publish(channel, window.difference, window.unit)

    with context.subscribe() as subscription:
        async with ServiceNursery() as nursery:
            nursery.start_soon(_cancel_when_stopping, context, nursery.cancel_scope)
            while True:
                await note(await subscription.receive())
        await note(subscription.receive_nowait())
        report = compare.report(subscription.lost)
    (context.log.info if report.agrees else context.log.warning)("%s", report)
    return report


class _Channels:
    """The comparison of each pair of channels, and which readings go where."""

    def __init__(self, old: str, new: str, channels: Mapping[str, str] | None, tolerance: Tolerance) -> None:
        self._old, self._new = old, new
        self._tolerance = tolerance
        self._takes_any = channels is None
        self._comparisons: dict[str, Comparison] = {}
        self._routes: defaultdict[tuple[str, str], list[tuple[str, _Add]]] = defaultdict(list)
        for channel, other in (channels or {}).items():
            self._compare(channel, other)

    def take(self, reading: Reading) -> list[tuple[str, Difference]]:
        """Take a reading of anybody; return the windows that it completes, with the names of their channels."""
        source = reading.instrument, reading.channel
        if self._takes_any and reading.instrument in (self._old, self._new) and source not in self._routes:
            self._compare(reading.channel, reading.channel)
        return [(channel, window) for channel, add in self._routes.get(source, ()) for window in add(reading)]

    def report(self, lost: int) -> ShadowReport:
        channels = tuple(comparison.report() for comparison in self._comparisons.values())
        return ShadowReport(old=self._old, new=self._new, channels=channels, lost=lost)

    def _compare(self, channel: str, other: str) -> None:
        comparison = Comparison(f"{self._old}/{channel}", f"{self._new}/{other}", self._tolerance)
        self._comparisons[channel] = comparison
        self._routes[self._old, channel].append((channel, comparison.add_old))
        self._routes[self._new, other].append((channel, comparison.add_new))


def _check(old: object, new: object, channels: object) -> None:
    """Refuse what is in a lab file by mistake: an error of another type would end the lab as a bug."""
    for name, value in (("old", old), ("new", new)):
        if not isinstance(value, str):
            raise ValueError(f"{name} must be the id of a member, not {value!r}")
    if channels is None:
        if old == new:
            raise ValueError(f"old and new are both {old!r}; name the channels that are to be compared")
    elif not isinstance(channels, Mapping) or not all(isinstance(name, str) for name in channels.values()):
        raise ValueError(f"channels must be a table such as {{ old_name = 'new_name' }}, not {channels!r}")
    elif not channels:
        raise ValueError("channels names none; leave it out to compare all that have the same name")


def _tolerance(given: Tolerance | Mapping[str, Any] | None) -> Tolerance:
    if isinstance(given, Tolerance):
        return given
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"tolerance must be a table such as {{ relative = 0.005 }}, not {given!r}")
    known = [field.name for field in attrs.fields(Tolerance)]
    if unknown := [key for key in given or {} if key not in known]:
        raise ValueError(f"tolerance has no {unknown[0]!r}; it has {', '.join(known)}")
    return Tolerance(**(given or {}))


async def _cancel_when_stopping(context: DriverContext, scope: trio.CancelScope) -> None:
    await context.stopping.wait()
    scope.cancel()
