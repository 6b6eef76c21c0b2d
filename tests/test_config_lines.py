"""The line of every key of a TOML text."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from trio_daq.config.lines import KeyPath, index_lines

_KEYS = st.sampled_from(["a", "b-c", "1", "x y", 'q"q', "d.e", "é", "#", "[z]", "="])
_VALUES = st.sampled_from(
    [
        "1",
        "'#'",
        '"\\"]"',
        "[1, # ]\n 2]",
        "[\n'''a\nb = 1\n[c]'''\n]",
        '"""\nx = 1\\\n  \\"""\ny = 2"""""',
        "{ x = [1, '}'], y.z = 2 }",
        "'''''x'''''",
        "['''x'''' ]",
        '["""x"""" ]',
        "1979-05-27 07:32:00",
    ]
)
_PADDING = st.sampled_from(["", "\n", "# [a]\n", "  # x = '''\n\n"])


def _spelled(key: str, style: int) -> str:
    if key.isascii() and key.replace("-", "").isalnum():
        return key
    escaped = key.replace('"', '\\"')
    return f"'{key}'" if style and "'" not in key else f'"{escaped}"'


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[KeyPath, int]]:
    """Draw a TOML text, and the line of each of its keys."""
    text = ""
    lines: dict[KeyPath, int] = {}

    def add(path: KeyPath, code: str) -> None:
        nonlocal text
        text += draw(_PADDING)
        lines[path] = text.count("\n") + 1
        text += code + draw(st.sampled_from(["\n", " # '''\n", "\n\n"]))

    def add_keys(path: KeyPath) -> None:
        for key in draw(st.lists(_KEYS, max_size=3, unique=True)):
            if draw(st.booleans()):
                add((*path, key), f"{_spelled(key, draw(st.integers(0, 1)))} = {draw(_VALUES)}")
            else:
                add((*path, key, "sub"), f"{_spelled(key, 0)} . sub = {draw(_VALUES)}")

    add_keys(())
    for number in range(draw(st.integers(0, 3))):
        name = draw(_KEYS)
        header = f"t{number} . {_spelled(name, 0)}"
        if draw(st.booleans()):
            add((f"t{number}", name), f"[{header}]")
            add_keys((f"t{number}", name))
            continue
        for index in range(draw(st.integers(1, 3))):
            add((f"t{number}", name, index), f"[[ {header} ]]")
            add_keys((f"t{number}", name, index))
            if draw(st.booleans()):
                add((f"t{number}", name, index, "inner"), f"[{header}.inner]")
                add_keys((f"t{number}", name, index, "inner"))
    return text, lines


def _leaves(value: Any, path: KeyPath = ()) -> list[KeyPath]:
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in _leaves(inner, (*path, key))]
    return [path]


@settings(max_examples=400, deadline=None)
@given(documents())
def test_each_key_is_found_in_its_line(document: tuple[str, dict[KeyPath, int]]) -> None:
    """Keys and tables of every spelling are found where they stand, whatever strings and comments hold."""
    text, lines = document
    tomllib.loads(text)
    index = index_lines(text)
    assert {path: index.lines.get(path) for path in lines} == lines
    assert index.repeated == ()
    assert index_lines(text.replace("\n", "\r\n")) == index


@settings(max_examples=1000, deadline=None)
@given(st.text(alphabet="ab.=[]{}'\"\\\n# ,1\r", max_size=60) | st.text(max_size=40))
def test_the_index_takes_any_text(text: str) -> None:
    """No text makes it raise, every line is one of the text, and a valid text has a line for each of its keys."""
    index = index_lines(text)
    assert all(1 <= line <= text.count("\n") + 1 for line in index.lines.values())
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert index.repeated == ()
    for leaf in _leaves(document):
        assert index.line_of(leaf) is not None


def test_what_is_inside_a_value_has_the_line_of_its_key() -> None:
    """An inline table or an array is one place; a path that is not in the file has the line of what is around it."""
    index = index_lines("[v2]\n\ninstruments = [\n { id = 'a' },\n { id = 'b' } ]\n")
    assert index.line_of(("v2", "instruments", 1, "id")) == 3
    assert index.line_of(("v2", "missing")) == 1
    assert index.line_of(("v4",)) is None
    assert index.line_of(()) is None


def test_repeated_keys_are_told_with_both_lines() -> None:
    """A key that stands twice is reported with the lines of both; elements of an array of tables are no repetition."""
    (again,) = index_lines("[[a]]\nx = 1\n[[a]]\nx = 1\n\nx = 2\n").repeated
    assert (again.path, again.first_line, again.line) == (("a", 1, "x"), 4, 6)


def test_the_time_is_linear_in_the_text() -> None:
    """Any amount of quotes, brackets, escapes or dots is read in one pass (a quadratic scan would take minutes)."""
    for piece in ['"', "'", '"""', "\\", '"\\', "[", "a.", "a\n", "[[a]]\n", '"""\\"""', "x='''\n", "#", "]", "=\n"]:
        index_lines(piece * (2**17 // len(piece)))
