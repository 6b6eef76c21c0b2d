"""Which resources of this program are in use: one link for each, whatever name it was given, and one lane for each bus.

It belongs to one `trio.run`, and opens nothing.
"""

from __future__ import annotations

import attrs
import trio

from trio_daq.errors import LineOpenError
from trio_daq.visa.lane import Lane
from trio_daq.visa.link import VisaLink
from trio_daq.visa.opening import MakeTransport
from trio_daq.visa.resource_name import canonical_resource
from trio_daq.visa.settings import VisaSessionConfig

_PRIVATE = frozenset({"resource", "timeout", "queue_warning", "max_hold", "safe_order"})
"""Settings in which two sessions of one resource may differ."""


@attrs.define
class _Entry:
    lane: Lane
    link: VisaLink
    users: int = 0


_entries_of_this_run: trio.lowlevel.RunVar[dict[str, _Entry]] = trio.lowlevel.RunVar("trio_daq_visa_links")


def join(config: VisaSessionConfig, make_transport: MakeTransport) -> tuple[Lane, VisaLink]:
    """Return the lane and the link of a resource, which others may use too. To be ended by `leave`.

    Raises:
        LineOpenError: If there can be no such resource.
        ValueError: If the resource is in use with other settings, or its bus with another ``max_open``.
    """
    entries = _entries()
    try:
        resource = canonical_resource(config.resource)
    except ValueError as error:
        raise LineOpenError(resource=config.resource, reason=str(error)) from error
    entry = entries.get(resource)
    if entry is None:
        lane = _lane_of(entries, config, _bus_name(resource, config))
        entry = entries[resource] = _Entry(lane, VisaLink(config.resource, resource, config, make_transport))
        lane.links.append(entry.link)
    else:
        _check_alike(entry.link.config, config)
    entry.users += 1
    return entry.lane, entry.link


def is_shared(link: VisaLink) -> bool:
    """Return whether more than one session uses *link*."""
    return _entries()[link.canonical].users > 1


def leave(link: VisaLink) -> bool:
    """Use *link* no more; return whether nobody else does. It is then no longer known, nor served."""
    entries = _entries()
    entry = entries[link.canonical]
    entry.users -= 1
    if entry.users:
        return False
    del entries[link.canonical]
    entry.lane.links.remove(link)
    return True


def _entries() -> dict[str, _Entry]:
    try:
        return _entries_of_this_run.get()
    except LookupError:
        entries: dict[str, _Entry] = {}
        _entries_of_this_run.set(entries)
        return entries


def _bus_name(resource: str, config: VisaSessionConfig) -> str:
    if config.bus is not None:
        return f"bus {config.bus}"
    # All instruments of one GPIB board hang on one cable, and a controller talks to one at a time (IEEE 488.1).
    return resource.partition("::")[0] if resource.upper().startswith("GPIB") else resource


def _lane_of(entries: dict[str, _Entry], config: VisaSessionConfig, name: str) -> Lane:
    lane = next((entry.lane for entry in entries.values() if entry.lane.name == name), None)
    if lane is None:
        return Lane(name, config.max_open)
    if lane.max_open != config.max_open:
        raise ValueError(
            f"{config.resource}: max_open is {config.max_open} here and {lane.max_open} in another session of {name}; "
            "give all sessions of a bus the same"
        )
    return lane


def _check_alike(first: VisaSessionConfig, second: VisaSessionConfig) -> None:
    for field in attrs.fields(VisaSessionConfig):
        name = field.name
        one, other = getattr(first, name), getattr(second, name)
        if name not in _PRIVATE and one != other:
            raise ValueError(
                f"{second.resource}: it is in use as {first.resource!r} with {name} = {one!r}, and here {name} = "
                f"{other!r}; two sessions of one instrument share its worker, so give them the same settings"
            )
