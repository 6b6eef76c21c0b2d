"""Find settings that are right one by one and wrong together.

It works on plain key-value pairs, so that a file with a mistyped value in one place is still checked in all others: a
key that is missing or was refused is simply not looked at.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from trio_daq.config.lines import KeyPath
from trio_daq.config.problems import Problem, did_you_mean, known_names, path_text, shown
from trio_daq.visa import canonical_resource

Facts: TypeAlias = Mapping[str, Any]
"""What is known of one port, session or member: its keys with the values that passed their own check."""

_LONGEST_PATH = 4096
"""PATH_MAX of Linux: a longer path opens nothing, and realpath() needs quadratic time for it."""

KINDS_OF_SIDE: Mapping[str, tuple[str, ...]] = {"v2": ("thread", "task", "asyncio"), "v4": ("actor",)}
"""Which kinds of member run on which side."""


def find_conflicts(
    *,
    ports: Mapping[str, Facts],
    sessions: Mapping[str, Facts],
    members: Sequence[tuple[KeyPath, Facts]],
    any_side_enabled: bool,
) -> list[Problem]:
    """Return everything that is wrong between settings.

    Args:
        ports: Serial ports by name, those with refused keys included.
        sessions: VISA sessions by name, likewise.
        members: Members of both sides with their key paths, whose first part is the side.
        any_side_enabled: Whether V2 or V4 is to run.
    """
    problems: list[Problem] = []
    if not any_side_enabled:
        problems.append(((), "nothing is enabled: add a table [v2] or [v4], or take out its 'enabled = false'"))
    for room, names in (("serial", ports), ("visa", sessions)):
        problems += [
            ((room, name), "a name must be text without control characters, at least one")
            for name in names
            if not name or not name.isprintable()
        ]
    problems += _same_hardware(ports, sessions)
    problems += _repeated_ids(members)
    for path, facts in members:
        problems += _unknown_names((*path, "serial"), facts.get("serial"), ports, "port")
        problems += _unknown_names((*path, "visa"), facts.get("visa"), sessions, "session")
        problems += _not_made_safe((*path, "makes_safe"), facts.get("makes_safe"), ports, sessions)
        problems += wrong_side((*path, "kind"), facts.get("kind"))
    return problems


def wrong_side(path: KeyPath, kind: str | None) -> Iterable[Problem]:
    """Return the problem of a member whose kind does not run on its side, if it has one."""
    side = str(path[0])
    if kind is None or kind in KINDS_OF_SIDE[side]:
        return ()
    other = "v4" if side == "v2" else "v2"
    allowed = " or ".join(repr(name) for name in KINDS_OF_SIDE[side])
    return [(path, f"{kind!r} does not run on [{side}], only {allowed}; list the member under [[{other}.instruments]]")]


def _same_hardware(ports: Mapping[str, Facts], sessions: Mapping[str, Facts]) -> Iterable[Problem]:
    users: dict[tuple[str, str], str] = {}

    def claim(hardware: tuple[str, str], path: KeyPath, written: str) -> Iterable[Problem]:
        if hardware in users:
            sentence = f"{shown(written)} is the same hardware as {users[hardware]}; define it once and share the name"
            yield path, sentence
        else:
            users[hardware] = f"{path_text(path[:-1])} ({shown(written)})"

    for name, facts in ports.items():
        if isinstance(facts.get("path"), str):
            yield from claim(("serial", _real_path(facts["path"])), ("serial", name, "path"), facts["path"])
    for name, facts in sessions.items():
        resource, path = facts.get("resource"), ("visa", name, "resource")
        if not isinstance(resource, str):
            continue
        if not resource.isprintable():
            yield path, f"must be text without control characters, not {shown(resource)}"
            continue
        try:
            canonical = canonical_resource(resource)
        except ValueError as error:
            yield path, str(error)
            continue
        device = canonical[len("ASRL") :].partition("::")[0] if canonical.startswith("ASRL") else ""
        if os.path.isabs(device):  # a serial line by its path; a bare number says nothing of the path
            yield from claim(("serial", _real_path(device)), path, resource)
        else:
            yield from claim(("visa", canonical.upper()), path, resource)


def _real_path(path: str) -> str:
    if "://" in path or len(path) > _LONGEST_PATH:
        return path
    return os.path.realpath(path)


def _repeated_ids(members: Sequence[tuple[KeyPath, Facts]]) -> Iterable[Problem]:
    taken: dict[str, KeyPath] = {}
    ids = {facts["id"] for _, facts in members if isinstance(facts.get("id"), str)}
    for path, facts in members:
        name = facts.get("id")
        if not isinstance(name, str):
            continue
        if name in taken:
            side, number = str(path[0]), 1
            new = f"{name}_{side}"
            while new in ids:
                number += 1
                new = f"{name}_{side}_{number}"
            ids.add(new)
            yield (*path, "id"), f"{name!r} is the id of {path_text(taken[name])} already; call this one {new!r}"
        else:
            taken[name] = path


def _not_made_safe(
    path: KeyPath, names: Any, ports: Mapping[str, Facts], sessions: Mapping[str, Facts]
) -> Iterable[Problem]:
    lines = {f"serial.{name}": facts for name, facts in ports.items()}
    lines |= {f"visa.{name}": facts for name, facts in sessions.items()}
    for name in (names,) if isinstance(names, str) else names or ():
        if name not in lines:
            near = [line for line in lines if line.partition(".")[2] == name]
            hint = f" (did you mean {near[0]!r}?)" if near else did_you_mean(name, lines)
            yield path, f"unknown line {shown(name)}{hint or known_names(lines, '[serial.…] or [visa.…] table')}"
        elif not lines[name].get("safe_state"):
            yield path, f"{shown(name)} has no safe_state; give it one, or take it out of this list"


def _unknown_names(path: KeyPath, names: Any, defined: Mapping[str, Facts], what: str) -> Iterable[Problem]:
    for name in (names,) if isinstance(names, str) else names or ():
        if name not in defined:
            hint = did_you_mean(name, defined) or known_names(defined, f"[{path[-1]}.…] table")
            yield path, f"unknown {what} {shown(name)}{hint}"
