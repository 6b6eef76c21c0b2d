r"""Find the line of each key of a TOML text, which `tomllib` does not tell.

It knows no values: it reads keys and headers, and skips what follows an ``=``. A key inside an inline table or an
array has the line of the key before the ``=``. On text that is no TOML it finds what it can and never raises.

Invariant: the scanner moves forward at every step and looks at no character more than a few times, so its time is
linear in the text.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import TypeAlias

import attrs

KeyPath: TypeAlias = tuple[str | int, ...]
"""Keys and list indices from the top of the file, such as ``("v4", "instruments", 0, "visa")``."""

DEEPEST = 32
"""Most parts of one key. tomllib needs quadratic time for longer ones, so they are refused before it sees them."""

_BLANK = re.compile(r"(?:[ \t\r\n]++|\#[^\n]*+)*+")
_PART = re.compile(r"""[ \t]*+( [A-Za-z0-9_-]++ | "(?:[^"\\\n]|\\[^\n])*+" | '[^'\n]*+' )[ \t]*+""", re.VERBOSE)
# Text over several lines may end in up to two quotes of its own, before the three that close it.
_VALUE_TOKEN = re.compile(
    r"""
      \"{3} (?: [^"\\] | \\.? | "(?!"") )*+ (?: "{3,5} | \Z )
    | '{3}  (?: [^']         | '(?!'') )*+ (?: '{3,5} | \Z )
    | " (?: [^"\\\n] | \\[^\n] )*+ "?
    | ' [^'\n]*+ '?
    | \# [^\n]*+
    | (?P<open> [\[{] )
    | (?P<close> [\]}] )
    | (?P<newline> \n )
    | (?P<plain> [^"'\#\[\]{}\n]++ )
    """,
    re.VERBOSE | re.DOTALL,
)


@attrs.frozen
class Repeated:
    """A key that stands in a file twice, which TOML forbids."""

    path: KeyPath
    first_line: int
    line: int


@attrs.frozen
class LineIndex:
    """Where each key stands.

    Attributes:
        lines: Line of each key and table, from 1; for an array of tables, that of the first of them.
        repeated: Keys and tables that are defined again.
        too_deep: Line of the first key with more than `DEEPEST` parts, or None.
    """

    lines: Mapping[KeyPath, int]
    repeated: tuple[Repeated, ...] = ()
    too_deep: int | None = None

    def line_of(self, path: KeyPath) -> int | None:
        """Return the line of *path*, or of the nearest thing around it, or None if nothing of it is in the file."""
        for length in range(len(path), 0, -1):
            line = self.lines.get(path[:length])
            if line is not None:
                return line
        return None


def index_lines(text: str) -> LineIndex:
    r"""Return the line of each key of a TOML text.

    Example:
        >>> index_lines("[v2]\n[[v2.programs]]\nid = 'a'\n").lines
        {('v2',): 1, ('v2', 'programs'): 2, ('v2', 'programs', 0): 2, ('v2', 'programs', 0, 'id'): 3}
    """
    return _Scanner(text).scan()


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._counted_to = 0
        self._line = 1
        self._table: KeyPath = ()
        self._lines: dict[KeyPath, int] = {}
        self._defined: set[KeyPath] = set()
        self._last_index: dict[KeyPath, int] = {}
        self._repeated: list[Repeated] = []
        self._too_deep: int | None = None

    def scan(self) -> LineIndex:
        while True:
            self._take(_BLANK)
            if self._position == len(self._text):
                return LineIndex(self._lines, tuple(self._repeated), self._too_deep)
            if self._text.startswith("[", self._position):
                self._header()
            else:
                self._key_value()

    def _header(self) -> None:
        line, text = self._current_line(), self._text
        brackets = 2 if text.startswith("[[", self._position) else 1
        self._position += brackets
        key = self._key()
        if key and text.startswith("]" * brackets, self._position):
            if brackets == 2:
                array = self._inside_arrays(key[:-1]) + key[-1:]
                self._last_index[array] = self._last_index.get(array, -1) + 1
                self._table = (*array, self._last_index[array])
            else:
                self._table = self._inside_arrays(key)
            self._define(self._table, line)
        end = text.find("\n", self._position)
        self._position = len(text) if end < 0 else end

    def _key_value(self) -> None:
        line = self._current_line()
        key = self._key()
        if key:
            self._define(self._table + key, line)
        self._skip_value()

    def _key(self) -> KeyPath:
        """Read a dotted key; an empty result means that there is none, or none of a usable length."""
        parts: list[str] = []
        while piece := self._take(_PART, group=1):
            if len(parts) <= DEEPEST:
                parts.append(_unquoted(piece))
            if not self._text.startswith(".", self._position):
                break
            self._position += 1
        self._refuse_above_deepest(len(parts))
        return tuple(parts) if len(parts) <= DEEPEST else ()

    def _skip_value(self) -> None:
        depth = 0
        dots = 0  # since the last comma, equals sign or bracket: those of one key in an inline table, or of a number
        while self._position < len(self._text):
            token = _VALUE_TOKEN.match(self._text, self._position)
            assert token is not None
            if token["newline"] and depth <= 0:
                return
            self._position = token.end()
            if token["open"] or token["close"]:
                depth += 1 if token["open"] else -1
                dots = 0
            elif token["plain"]:
                for number, piece in enumerate(re.split("[,=]", token["plain"])):
                    dots = piece.count(".") + (dots if number == 0 else 0)
                    self._refuse_above_deepest(dots + 1)

    def _refuse_above_deepest(self, parts: int) -> None:
        if parts > DEEPEST and self._too_deep is None:
            self._too_deep = self._current_line()

    def _inside_arrays(self, key: KeyPath) -> KeyPath:
        """Return the path of a header, which means the last element of each array of tables that it passes."""
        path: KeyPath = ()
        for part in key:
            path += (part,)
            if path in self._last_index:
                path += (self._last_index[path],)
        return path

    def _define(self, path: KeyPath, line: int) -> None:
        if path in self._defined:
            self._repeated.append(Repeated(path, self._lines[path], line))
            return
        self._defined.add(path)
        for length in range(1, len(path)):
            self._lines.setdefault(path[:length], line)
        self._lines[path] = line

    def _take(self, pattern: re.Pattern[str], group: int = 0) -> str:
        match = pattern.match(self._text, self._position)
        if match is None:
            return ""
        self._position = match.end()
        return match[group]

    def _current_line(self) -> int:
        self._line += self._text.count("\n", self._counted_to, self._position)
        self._counted_to = self._position
        return self._line


def _unquoted(piece: str) -> str:
    if piece[0] not in "\"'":
        return piece
    try:
        return next(iter(tomllib.loads(f"{piece} = 0")))
    except tomllib.TOMLDecodeError:
        return piece
