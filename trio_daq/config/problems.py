"""How a mistake in the settings is worded: where it is, what was found, what was probably meant.

A problem is a key path and a sentence; only `Origin` knows the file, and puts its name and line in front.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, TypeAlias

import attrs

from trio_daq.config.lines import KeyPath, LineIndex
from trio_daq.wire import printable

Problem: TypeAlias = tuple[KeyPath, str]
"""What is wrong, and the key that it is wrong with (an empty path: the whole file)."""

_LONGEST_PROBLEM = 500
_LONGEST_VALUE = 80
_LONGEST_GUESS = 80
"""difflib needs quadratic time, and nobody mistypes a name longer than this."""
_MOST_GUESSES = 200
_MOST_LISTED = 12


@attrs.frozen(kw_only=True)
class Origin:
    """The file that settings came from.

    Attributes:
        file: Its name, as the caller gave it.
        lines: Where each key stands in it.
        members: Key path of each member, by its id.
    """

    file: str
    lines: LineIndex
    members: Mapping[str, KeyPath] = attrs.field(factory=dict)

    def describe(self, problem: Problem) -> str:
        """Return the problem as one line of text that begins with file and line."""
        path, _ = problem
        line = self.lines.line_of(path)
        place = printable(self.file, _LONGEST_PROBLEM) if line is None else f"{printable(self.file)}:{line}"
        return f"{place}: {describe(problem)}"

    def describe_all(self, problems: Iterable[Problem]) -> list[str]:
        """Return all problems as text, in the order of their lines."""
        return [self.describe(problem) for problem in sorted(problems, key=lambda p: self.lines.line_of(p[0]) or 0)]


def describe(problem: Problem) -> str:
    """Return the problem as one line of text without a file name."""
    path, sentence = problem
    return printable(f"{path_text(path)}: {sentence}" if path else sentence, _LONGEST_PROBLEM)


def path_text(path: KeyPath) -> str:
    """Return a key path as one writes it.

    Example:
        >>> path_text(("v4", "instruments", 0, "visa")), path_text(("serial", "my port"))
        ('v4.instruments[0].visa', 'serial."my port"')
    """
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            bare = re.fullmatch(r"[A-Za-z0-9_-]+", part) is not None
            shown = printable(part, _LONGEST_VALUE)
            text += ("." if text else "") + (shown if bare else f'"{shown}"')
    return text


def shown(value: Any) -> str:
    """Return a value from a TOML file in a few words, as TOML spells it.

    Example:
        >>> shown(True), shown({"a": 1}), shown("on")
        ('true', 'a table', "'on'")
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, int) and value.bit_length() > 64:  # repr() of a very long one raises ValueError
        return f"a number of {value.bit_length()} bits"
    return printable(repr(value), _LONGEST_VALUE)


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` with the known word that is nearest, or nothing if none is near."""
    if not isinstance(word, str) or len(word) > _LONGEST_GUESS:
        return ""
    by_lower_case = {name.casefold(): name for name in islice(known, _MOST_GUESSES)}
    near = difflib.get_close_matches(word.casefold(), by_lower_case, n=1)
    return f" (did you mean {by_lower_case[near[0]]!r}?)" if near else ""


def known_names(names: Iterable[str], what: str) -> str:
    """Return ``; known: a, b`` for a sentence about a name that is none of them."""
    first = list(islice(names, _MOST_LISTED + 1))
    if not first:
        return f"; there is no {what}"
    return f"; known: {', '.join(first[:_MOST_LISTED])}{', …' if len(first) > _MOST_LISTED else ''}"
