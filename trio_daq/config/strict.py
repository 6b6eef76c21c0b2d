"""Make settings of plain TOML values, without guessing: a number in quotes is text, and ``true`` is no number.

All that is wrong with a table is found in one go, also with the tables inside it. What holds tables with names of the
user's own is put together elsewhere (`loading`).
"""

from __future__ import annotations

import enum
import math
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, Literal, NoReturn, TypeVar, cast, get_args, get_origin

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn, override

from trio_daq.config.lines import KeyPath
from trio_daq.config.problems import Problem, did_you_mean, known_names, shown

_S = TypeVar("_S", bound=attrs.AttrsInstance)
_Hook = Callable[[Any, Any], Any]


@attrs.frozen
class Structured(Generic[_S]):
    """What became of one table.

    Attributes:
        settings: The settings, or None if anything is wrong.
        facts: The keys with nothing wrong about them, with the values that stand in the file.
        problems: All that is wrong.
    """

    settings: _S | None
    facts: Mapping[str, Any]
    problems: list[Problem]


def structure(cls: type[_S], table: Any, path: KeyPath, also_known: tuple[str, ...] = ()) -> Structured[_S]:
    """Make an instance of *cls* of a TOML table.

    Args:
        cls: A settings class of `attrs`.
        table: What the file has there, a table or not.
        path: Where it stands.
        also_known: Keys that are read elsewhere, for the message on an unknown key.
    """
    if not isinstance(table, Mapping):
        return Structured(None, {}, [(path, f"expected a table, got {shown(table)}")])
    try:
        return Structured(_CONVERTER.structure(table, cls), dict(table), [])
    except cattrs.ClassValidationError as error:
        problems = _problems(error, cls, path, also_known)
    wrong = {problem_path[len(path)] for problem_path, _ in problems if len(problem_path) > len(path)}
    return Structured(None, {key: value for key, value in table.items() if key not in wrong}, problems)


def _problems(
    error: cattrs.ClassValidationError, cls: type[attrs.AttrsInstance], path: KeyPath, also_known: tuple[str, ...]
) -> list[Problem]:
    problems: list[Problem] = []
    of_fields, of_table = error.group_exceptions()
    for reason, note in of_fields:
        if isinstance(reason, cattrs.ClassValidationError):
            problems += _problems(reason, reason.cl, (*path, note.name), ())
        elif isinstance(reason, _TablesError):
            problems += [
                problem
                for place, inner in reason.errors
                for problem in _problems_of_one(inner, (*path, note.name, place))
            ]
        elif isinstance(reason, KeyError):
            problems.append((path, f"the key {note.name!r} is missing"))
        else:
            problems.append(((*path, note.name), _sentence(reason, note.name)))
    for reason in of_table:
        if isinstance(reason, cattrs.ForbiddenExtraKeysError):
            known = [*(field.name for field in attrs.fields(cls)), *also_known]
            for key in reason.extra_fields:
                hint = did_you_mean(key, known) or known_names(known, "key")
                problems.append(((*path, key), f"unknown key{hint}"))
        else:
            problems.append((path, _sentence(reason, "")))
    return problems


def _problems_of_one(error: Exception, path: KeyPath) -> list[Problem]:
    if isinstance(error, cattrs.ClassValidationError):
        return _problems(error, error.cl, path, ())
    return [(path, _sentence(error, ""))]


class _TablesError(Exception):
    """Several tables in one field are wrong. *errors*: the index or the name of each, and what is wrong with it."""

    def __init__(self, errors: list[tuple[int | str, Exception]]) -> None:
        super().__init__(errors)
        self.errors = errors


def _sentence(error: BaseException, name: str) -> str:
    """Return what an error says, without the name of the field in front: the key path has it."""
    text = str(error.args[0]) if error.args else type(error).__name__
    return text.removeprefix(f"{name} ").removeprefix(f"'{name}' ")


# --- hooks: each returns a value of exactly the type that was asked for, or raises TypeError or ValueError ---------


def _whole_number(value: Any, _: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"expected a whole number, got {shown(value)}")
    if not -(2**63) <= value < 2**63:  # the range that TOML 1.0 promises
        raise ValueError(f"expected a whole number of at most 64 bits, got {shown(value)}")
    return value


def _number(value: Any, _: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        _refuse("a number", value)
    if isinstance(value, int):
        return float(_whole_number(value, _))
    if not math.isfinite(value):
        _refuse("a finite number", value)
    return value


def _boolean(value: Any, _: Any) -> bool:
    if not isinstance(value, bool):
        _refuse("true or false", value)
    return value


def _text(value: Any, _: Any) -> str:
    if not isinstance(value, str):
        _refuse("text", value)
    return value


def _path(value: Any, _: Any) -> Path:
    return Path(_text(value, _))


def _table(value: Any, _: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        _refuse("a table", value)
    return dict(value)


def _choice(value: Any, choices: Any) -> Any:
    known = get_args(choices)
    if not isinstance(value, str) or value not in known:
        _refuse("one of " + ", ".join(repr(name) for name in known), value, did_you_mean(value, known))
    return value


def _names(value: Any, _: Any) -> str | tuple[str, ...]:
    if isinstance(value, list):
        return tuple(_text(name, _) for name in value)
    if not isinstance(value, str):
        _refuse("a name or a list of names", value)
    return value


def _row_of_text(value: Any, _: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        _refuse("a list of text", value)
    return tuple(_text(item, _) for item in value)


def _hook_for_tables(wanted: Any, converter: cattrs.Converter) -> _Hook:
    """Return a hook for a list of tables, or for tables with names of the user's own."""
    cls = get_args(wanted)[0 if get_origin(wanted) is tuple else 1]

    def hook(value: Any, _: Any) -> Any:
        by_name = get_origin(wanted) is not tuple
        if not isinstance(value, Mapping if by_name else list):
            _refuse("a table of tables" if by_name else "a list of tables", value)
        tables: dict[int | str, Any] = dict(value) if by_name else dict(enumerate(value))
        made, errors = {}, []
        for place, table in tables.items():
            try:
                made[place] = converter.structure(_table(table, cls), cls)
            except Exception as error:  # noqa: BLE001 - all of them are told at once
                errors.append((place, error))
        if errors:
            raise _TablesError(errors)
        return made if by_name else tuple(made.values())

    return hook


def _is_tables(wanted: Any) -> bool:
    arguments = get_args(wanted)
    if get_origin(wanted) is tuple:
        return len(arguments) == 2 and arguments[1] is Ellipsis and attrs.has(arguments[0])
    return get_origin(wanted) is Mapping and attrs.has(arguments[1])


def _refuse(expected: str, value: Any, hint: str = "") -> NoReturn:
    raise TypeError(f"expected {expected}, got {shown(value)}{hint}")


def _hook_for_class(cls: type[attrs.AttrsInstance], converter: cattrs.Converter) -> _Hook:
    """Return a hook that also runs the converter and validator of each field by itself.

    attrs runs them one after the other and stops at the first that fails; a file wants all of them.
    """
    attrs.resolve_types(cls)
    overrides = {field.name: override(struct_hook=_hook_for_field(field, converter)) for field in attrs.fields(cls)}
    make: Any = make_dict_structure_fn  # its overrides are keywords, and so are its flags: no type fits both
    made: _Hook = make(cls, converter, _cattrs_forbid_extra_keys=True, _cattrs_detailed_validation=True, **overrides)

    def hook(value: Any, wanted: Any) -> Any:
        return made(_table(value, wanted), wanted)

    return hook


def _hook_for_field(field: attrs.Attribute[Any], converter: cattrs.Converter) -> _Hook:
    # Bytes and enumerations stand in a file as text, which the converter of the class understands.
    written_as_text = field.type is bytes or (isinstance(field.type, type) and issubclass(field.type, enum.Enum))

    convert: Callable[[Any], Any] | None = cast("Any", field.converter)

    def hook(value: Any, wanted: Any) -> Any:
        result = _text(value, wanted) if written_as_text else converter.structure(value, wanted)
        if convert is not None:
            result = convert(result)
        if field.validator is not None:
            field.validator(None, field, result)
        return result

    return hook


def _strict_converter() -> cattrs.Converter:
    # All hooks are registered before the first structure(): cattrs caches what it has made by then.
    converter = cattrs.Converter()
    for wanted, hook in ((int, _whole_number), (float, _number), (bool, _boolean), (str, _text), (Path, _path)):
        converter.register_structure_hook(wanted, hook)
    converter.register_structure_hook_func(lambda wanted: _origin(wanted) is Literal, _choice)
    converter.register_structure_hook_func(lambda wanted: _origin(wanted) is dict, _table)
    converter.register_structure_hook_func(_is_names, _names)
    converter.register_structure_hook_func(_is_text_or_function, _text)
    converter.register_structure_hook_func(lambda wanted: wanted == tuple[bytes, bytes] | None, _row_of_text)
    converter.register_structure_hook_factory(attrs.has, _hook_for_class)
    converter.register_structure_hook_factory(_is_tables, _hook_for_tables)
    return converter


def _origin(wanted: Any) -> Any:
    return get_origin(wanted)


def _is_names(wanted: Any) -> bool:
    return isinstance(wanted, types.UnionType) and set(get_args(wanted)) == {str, tuple[str, ...], types.NoneType}


def _is_text_or_function(wanted: Any) -> bool:
    # A file cannot hold the function.
    origins = {_origin(one) or one for one in get_args(wanted)}
    return isinstance(wanted, types.UnionType) and origins == {str, Callable}


_CONVERTER = _strict_converter()
