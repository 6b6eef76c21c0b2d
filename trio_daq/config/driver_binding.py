"""Import the drivers and check that they can be called as the settings say, before anything is opened.

A driver is called with keyword arguments: ``serial=`` and ``visa=`` if its member names any, ``context=`` if it has a
parameter of that name, and the member's options. Importing a driver runs its module; nothing of it is called.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from inspect import Parameter
from pathlib import Path
from typing import Any

import attrs

from trio_daq.config.conflicts import wrong_side
from trio_daq.config.dual_config import BUILT_IN_DRIVERS, DualConfig, Kind, MemberConfig
from trio_daq.config.lines import KeyPath
from trio_daq.config.problems import Problem, describe, did_you_mean
from trio_daq.errors import ConfigError


@attrs.frozen(kw_only=True)
class ResolvedDriver:
    """A driver that was imported and can be called.

    Attributes:
        target: The function or class.
        kind: How it runs.
        wants_context: Whether it takes a ``context=``.
    """

    target: Callable[..., Any]
    kind: Kind
    wants_context: bool


def resolve_driver(member: MemberConfig, folder: Path | None = None) -> ResolvedDriver:
    """Import the driver of one member and check its kind and its parameters.

    Args:
        member: Settings of the member.
        folder: Where modules are looked for first, None for the usual places only.

    Raises:
        ConfigError: If it cannot be imported, or cannot be called as the member says.
    """
    try:
        return _resolve(member, folder)
    except _WrongDriverError as error:
        raise ConfigError(problems=[f"{member.id}.{describe(problem)}" for problem in error.problems]) from None


def check_drivers(config: DualConfig) -> dict[str, ResolvedDriver]:
    """Import the drivers of all members of the enabled sides, and check them.

    Returns:
        The drivers by the ids of their members.

    Raises:
        ConfigError: If anything is wrong with any of them; it lists all problems.
    """
    drivers: dict[str, ResolvedDriver] = {}
    problems: list[Problem] = []
    for path, member in _members(config):
        try:
            driver = _resolve(member, config.folder)
        except _WrongDriverError as error:
            problems += [((*path, *key), sentence) for key, sentence in error.problems]
            continue
        problems += wrong_side((*path, "driver"), driver.kind)
        drivers[member.id] = driver
    if problems:
        say = config.origin.describe_all if config.origin is not None else lambda all_: [describe(one) for one in all_]
        raise ConfigError(problems=say(problems))
    return drivers


def _members(config: DualConfig) -> Iterator[tuple[KeyPath, MemberConfig]]:
    in_file: Mapping[str, KeyPath] = config.origin.members if config.origin is not None else {}
    for side, subsystem in (("v2", config.v2), ("v4", config.v4)):
        if subsystem.enabled:
            for index, member in enumerate(subsystem.instruments):
                yield in_file.get(member.id, (side, "instruments", index)), member


class _WrongDriverError(Exception):
    """All that is wrong with one driver; key paths begin at the member."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__(problems)
        self.problems = problems


def _resolve(member: MemberConfig, folder: Path | None) -> ResolvedDriver:
    target = _load(BUILT_IN_DRIVERS.get(member.driver, member.driver), folder)
    name = f"{member.driver}{_place(target, folder)}"
    if not callable(target):
        raise _WrongDriverError((("driver",), f"{name} is {type(target).__name__}, which cannot be called"))
    kind = natural = _natural_kind(target, name)
    if member.kind == "asyncio" and natural == "task" and member.driver not in BUILT_IN_DRIVERS:
        kind = member.kind  # what an async function is written for does not show
    elif member.kind not in (None, natural):
        why = _BUILT_IN if member.driver in BUILT_IN_DRIVERS else _WHY[natural]
        raise _WrongDriverError((("kind",), f"{member.kind!r} does not fit: {name} {why}"))
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        sentence = f"{name} does not tell its parameters; wrap it in a function"
        raise _WrongDriverError((("driver",), sentence)) from None
    wants_context = "context" in parameters and parameters["context"].kind in _BY_KEYWORD
    problems = tuple(_wrong_arguments(member, parameters, wants_context, name))
    if problems:
        raise _WrongDriverError(*problems)
    return ResolvedDriver(target=target, kind=kind, wants_context=wants_context)


# --- import -------------------------------------------------------------------------------------------------------


def _load(driver: str, folder: Path | None) -> Any:
    module_name, _, object_path = driver.partition(":")
    with _first_on_import_path(folder):
        try:
            found: Any = importlib.import_module(module_name)
            for part in object_path.split("."):
                if not hasattr(found, part):
                    hint = did_you_mean(part, (name for name in dir(found) if not name.startswith("_")))
                    whole = getattr(found, "__qualname__", module_name)
                    raise _WrongDriverError((("driver",), f"{whole}{_place(found, folder)} has no {part!r}{hint}"))
                found = getattr(found, part)
        except _WrongDriverError:
            raise
        except (Exception, SystemExit) as error:  # what the module of a user may raise
            sentence = _import_failure(error, module_name, folder)
            raise _WrongDriverError((("driver",), sentence)) from error
    return found


@contextmanager
def _first_on_import_path(folder: Path | None) -> Iterator[None]:
    importlib.invalidate_caches()
    if folder is None:
        yield
        return
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with suppress(ValueError):  # the module may have changed the path itself
            sys.path.remove(str(folder))


def _import_failure(error: BaseException, module_name: str, folder: Path | None) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
        where = f"{folder} and the installed packages" if folder is not None else "the installed packages"
        return f"no module {error.name!r} in {where}"
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError) and error.filename:
        return f"does not import: {_short(error.filename, folder)}:{error.lineno}: {type(error).__name__}: {error.msg}"
    # The frames of this file and of importlib come first, then those of the driver's module.
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in (__file__, importlib.__file__) and not frame.filename.startswith("<frozen importlib")
    ]
    in_module = [frame for frame in frames if frame.filename == frames[0].filename]
    place = f"{_short(in_module[-1].filename, folder)}:{in_module[-1].lineno}: " if in_module else ""
    return f"does not import: {place}{said}"


# --- what it is and how it is called ------------------------------------------------------------------------------

_BY_KEYWORD = (Parameter.KEYWORD_ONLY, Parameter.POSITIONAL_OR_KEYWORD)

_WHY: Mapping[Kind, str] = {
    "actor": "is an actor; write kind = 'actor' or nothing",
    "task": "is an async function; write kind = 'task' or nothing, or 'asyncio' if it is written for asyncio",
    "thread": "is a plain callable; write kind = 'thread' or nothing",
}

_BUILT_IN = "is built in, an async function for Trio; write kind = 'task' or nothing"


def _natural_kind(target: Callable[..., Any], name: str) -> Kind:
    if inspect.isclass(target):
        from trio_daq.actors import Actor  # late: most labs have no actor classes to look at

        return "actor" if issubclass(target, Actor) else "thread"
    for function in (target, type(target).__call__):  # an object may have an async __call__
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise _WrongDriverError((("driver",), f"{name} holds a 'yield', so calling it runs nothing; take it out"))
        if inspect.iscoroutinefunction(function):
            return "task"
    return "thread"


def _wrong_arguments(
    member: MemberConfig, parameters: Mapping[str, Parameter], wants_context: bool, name: str
) -> Iterable[Problem]:
    by_keyword = [key for key, parameter in parameters.items() if parameter.kind in _BY_KEYWORD]
    takes_any = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values())
    lines = [key for key in ("serial", "visa") if getattr(member, key) is not None]
    given = {*lines, *member.options} | ({"context"} if wants_context else set())
    options = [key for key in by_keyword if key not in ("serial", "visa", "context")]
    for key in lines:
        if key not in by_keyword and not takes_any:
            yield (key,), f"{name} has no parameter {key!r}"
    for key in member.options:
        if key in ("serial", "visa", "context"):
            yield ("options", key), f"{key!r} is no option: the lab itself passes it to the driver"
        elif key not in by_keyword and not takes_any:
            yield ("options", key), f"{name} has no parameter {key!r}{did_you_mean(key, options)}"
    for key, parameter in parameters.items():
        if parameter.default is not Parameter.empty or (key in given and parameter.kind in _BY_KEYWORD):
            continue
        if parameter.kind is Parameter.POSITIONAL_ONLY:
            yield ("driver",), f"{name} needs {key!r} by position, and drivers are called by keyword"
        elif parameter.kind in _BY_KEYWORD:
            what = f"the key {key!r}" if key in ("serial", "visa") else f"the option {key!r}"
            yield ("driver",), f"{name} needs {what}, which is not given"


def _place(target: Any, folder: Path | None) -> str:
    """Return `` (file:line)`` of the definition, or nothing if it has none in Python source."""
    while isinstance(target, functools.partial):
        target = target.func
    if inspect.ismodule(target):
        file = getattr(target, "__file__", None)
        return f" ({_short(file, folder)})" if file else ""
    try:
        target = inspect.unwrap(target)
        if not inspect.isclass(target) and not hasattr(target, "__code__") and not inspect.ismethod(target):
            target = type(target)
        file = inspect.getsourcefile(target)
        line = inspect.getsourcelines(target)[1]
    except (OSError, TypeError, ValueError):
        return ""
    return f" ({_short(file, folder)}:{line})" if file else ""


def _short(file: str, folder: Path | None) -> str:
    if folder is not None and Path(file).is_relative_to(folder):
        return os.path.relpath(file, folder)
    return file
