r"""Read a TOML file into settings, or into one error that lists all that is wrong with it.

Whatever the file is (missing, a pipe, a photograph, a megabyte of brackets), the result is a `DualConfig` or a
`ConfigError`. The file is the only thing that is opened.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import attrs

from trio_daq.config.conflicts import Facts, find_conflicts
from trio_daq.config.dual_config import (
    ApplicationConfig,
    DualConfig,
    MemberConfig,
    RecordingConfig,
    SubsystemConfig,
)
from trio_daq.config.lines import DEEPEST, KeyPath, LineIndex, index_lines
from trio_daq.config.problems import Origin, Problem, did_you_mean, known_names, path_text, shown
from trio_daq.config.strict import structure
from trio_daq.errors import ConfigError
from trio_daq.serialport import SerialPortConfig
from trio_daq.visa import VisaSessionConfig
from trio_daq.wire import printable

_LARGEST_FILE: Final = 2**20
_UTF16_OR_32_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")
_AT_LINE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_MEMBER_LISTS = ("instruments", "programs")
_S = TypeVar("_S", bound=attrs.AttrsInstance)
_TABLES = ("application", "serial", "visa", "v2", "v4", "recording")


def load_settings(path: str | os.PathLike[str]) -> DualConfig:
    """Read settings from a TOML file.

    Raises:
        ConfigError: If the file cannot be read or anything in it is wrong.
    """
    file = os.fspath(path)
    text = _decode(_read(file), file)
    lines = index_lines(text)
    document = _parse(text, lines, file)
    return _Draft(document, Origin(file=file, lines=lines)).settings(Path(os.path.abspath(file)).parent)


# --- from a name to a document ------------------------------------------------------------------------------------


def _fail(file: str, sentence: str, line: int | None = None) -> NoReturn:
    place = printable(file) if line is None else f"{printable(file)}:{line}"
    raise ConfigError(problems=[f"{place}: {printable(sentence, 500)}"])


def _read(file: str) -> bytes:
    try:
        mode = os.stat(file).st_mode  # before open(), which would wait at a pipe
        if not stat.S_ISREG(mode):
            _fail(file, "is a folder, not a file" if stat.S_ISDIR(mode) else "is no regular file")
        with open(file, "rb") as stream:
            data = stream.read(_LARGEST_FILE + 1)
    except FileNotFoundError:
        _fail(file, f"there is no such file (looked for {os.path.abspath(file)})")
    except OSError as error:
        _fail(file, f"cannot be read: {error.strerror or error}")
    except ValueError as error:  # a NUL in the name
        _fail(file, f"cannot be read: {error}")
    if len(data) > _LARGEST_FILE:
        _fail(file, f"is larger than {_LARGEST_FILE // 2**20} MiB, so it is no settings file")
    return data


def _decode(data: bytes, file: str) -> str:
    if data.startswith(_UTF16_OR_32_MARKS) or b"\0" in data:
        _fail(file, "is UTF-16 text or no text at all (it holds NUL bytes); save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        _fail(file, f"the byte 0x{data[error.start]:02X} is no UTF-8 text; save the file as UTF-8", line)


def _parse(text: str, lines: LineIndex, file: str) -> dict[str, Any]:
    if lines.too_deep is not None:
        _fail(file, f"this key has more than {DEEPEST} parts", lines.too_deep)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        if lines.repeated:  # tomllib does not say which key it is
            again = lines.repeated[0]
            where = f"is defined again; it stands in line {again.first_line} already"
            _fail(file, f"{path_text(again.path)}: {where}", again.line)
        _fail_at(error, text, file)
    except RecursionError:
        _fail(file, "brackets are nested too deeply")
    except ValueError as error:  # such as a number of 5000 digits
        _fail(file, f"is no TOML: {error}")


def _fail_at(error: tomllib.TOMLDecodeError, text: str, file: str) -> NoReturn:
    message = str(error)
    place = _AT_LINE.search(message)
    reason = message[: place.start()] if place else message
    all_lines = text.replace("\r\n", "\n").split("\n")
    if place and place[1]:
        line, column = int(place[1]), f" at column {place[2]}"
    else:
        line, column = len(text.rstrip().split("\n")), ", and the file ends"
    cure = ""
    if "\\" in all_lines[line - 1]:
        cure = r"; a backslash begins an escape there: write \\ for it, or use single quotes, as in 'C:\data'"
    _fail(file, f"is no TOML: {reason}{column}{cure}", line)


# --- from a document to settings ----------------------------------------------------------------------------------


class _Draft:
    """Settings in the making: reads all tables, remembers what is wrong, and tells it at the end."""

    def __init__(self, document: Mapping[str, Any], origin: Origin) -> None:
        self._document = document
        self._origin = origin
        self._problems: list[Problem] = []
        self._members: list[tuple[KeyPath, Facts]] = []

    def settings(self, folder: Path) -> DualConfig:
        for key in self._document:
            if key not in _TABLES:
                hint = did_you_mean(key, _TABLES) or known_names(_TABLES, "table")
                self._problems.append(((key,), f"unknown key{hint}"))
        application = self._table(ApplicationConfig, "application")
        recording = self._table(RecordingConfig, "recording")
        ports, port_facts = self._named_tables(SerialPortConfig, "serial")
        sessions, session_facts = self._named_tables(VisaSessionConfig, "visa")
        v2, v2_enabled = self._side("v2")
        v4, v4_enabled = self._side("v4")
        self._problems += find_conflicts(
            ports=port_facts,
            sessions=session_facts,
            members=self._members,
            any_side_enabled=v2_enabled or v4_enabled,
        )
        if self._problems or application is None or recording is None:
            raise ConfigError(problems=self._origin.describe_all(self._problems))
        return DualConfig(
            application=application,
            serial=ports,
            visa=sessions,
            v2=v2,
            v4=v4,
            recording=attrs.evolve(recording, directory=folder / recording.directory),
            folder=folder,
            origin=attrs.evolve(self._origin, members={facts["id"]: path for path, facts in self._members}),
        )

    def _table(self, cls: type[_S], key: str) -> _S | None:
        return self._read(cls, self._document.get(key, {}), (key,))[0]

    def _named_tables(self, cls: type[_S], key: str) -> tuple[dict[str, _S], dict[str, Facts]]:
        tables = self._document.get(key, {})
        settings: dict[str, _S] = {}
        facts: dict[str, Facts] = {}
        if not isinstance(tables, Mapping):
            self._problems.append(((key,), f"expected tables such as [{key}.name], got {shown(tables)}"))
            return settings, facts
        for name, table in tables.items():
            if not isinstance(table, Mapping):
                self._problems.append(((key, name), f"expected a table such as [{key}.name], got {shown(table)}"))
                continue
            one, facts[name] = self._read(cls, table, (key, name))
            if one is not None:
                settings[name] = one
            elif "safe_state" in table:  # that there is one is known, also if it is wrong
                facts[name] = {**facts[name], "safe_state": table["safe_state"]}
        return settings, facts

    def _side(self, key: str) -> tuple[SubsystemConfig, bool]:
        """Return the settings of a side, and whether the file means it to run."""
        if key not in self._document:
            return SubsystemConfig(enabled=False), False
        table = self._document[key]
        if not isinstance(table, Mapping):
            self._problems.append(((key,), f"expected a table [{key}], got {shown(table)}"))
            return SubsystemConfig(), True
        members = [
            member
            for name in _MEMBER_LISTS
            for index, raw in enumerate(self._member_list(table, (key, name)))
            if (member := self._member(raw, (key, name, index))) is not None
        ]
        own = {name: value for name, value in table.items() if name not in _MEMBER_LISTS}
        side, facts = self._read(SubsystemConfig, own, (key,), also_known=("programs",))
        if side is None:
            return SubsystemConfig(), facts.get("enabled", True)
        return attrs.evolve(side, instruments=members), side.enabled

    def _member_list(self, table: Mapping[str, Any], path: KeyPath) -> list[Any]:
        members = table.get(str(path[-1]), [])
        if isinstance(members, list):
            return members
        self._problems.append((path, f"expected a list of tables [[{path_text(path)}]], got {shown(members)}"))
        return []

    def _member(self, raw: Any, path: KeyPath) -> MemberConfig | None:
        member, facts = self._read(MemberConfig, raw, path)
        self._members.append((path, facts))
        return member

    def _read(
        self, cls: type[_S], table: Any, path: KeyPath, also_known: tuple[str, ...] = ()
    ) -> tuple[_S | None, Facts]:
        result = structure(cls, table, path, also_known)
        self._problems += result.problems
        return result.settings, result.facts
