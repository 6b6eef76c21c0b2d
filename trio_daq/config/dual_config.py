"""Settings of a whole lab: what is shared, what runs on either side, where it is recorded.

Everything is frozen and checked when it is built, from a file or in Python. Settings import no driver and open
nothing; a wrong field raises TypeError or ValueError, and settings that contradict each other raise one ConfigError.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import attrs

from trio_daq.config.conflicts import find_conflicts
from trio_daq.config.problems import Origin, describe, did_you_mean
from trio_daq.errors import ConfigError
from trio_daq.serialport import SerialPortConfig
from trio_daq.sharing import checked_timeout, positive_seconds
from trio_daq.visa import VisaSessionConfig

Kind: TypeAlias = Literal["thread", "task", "asyncio", "actor"]
"""How a member runs: a blocking function in a thread, an async function as a Trio task, one that is written for asyncio
under asyncio in a thread, or an actor."""

RestartPolicy: TypeAlias = Literal["always", "on_failure", "never"]
"""When a member that has ended is started again."""

BUILT_IN_DRIVERS: Final[Mapping[str, str]] = {
    "scpi_poll": "trio_daq.drivers:scpi_poll",
    "serial_poll": "trio_daq.drivers:serial_poll",
    "shadow": "trio_daq.drivers:shadow",
}
"""Drivers that have a short name."""

_OBJECT_PATH = re.compile(r"(?!\d)\w+(\.(?!\d)\w+)*:(?!\d)\w+(\.(?!\d)\w+)*")


def _text(_: Any, attribute: attrs.Attribute[Any], value: str) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{attribute.name} is text, not {value!r}")
    if not value or not value.isprintable():
        raise ValueError(f"{attribute.name} must be text without control characters, at least one, not {value!r}")


def _driver(_: Any, attribute: attrs.Attribute[Any], value: str) -> None:
    _text(_, attribute, value)
    if value not in BUILT_IN_DRIVERS and not _OBJECT_PATH.fullmatch(value):
        hint = did_you_mean(value, BUILT_IN_DRIVERS)
        known = ", ".join(BUILT_IN_DRIVERS)
        raise ValueError(f"driver must be 'module:object' or a built-in ({known}), not {value!r}{hint}")


def _directory(_: Any, __: attrs.Attribute[Any], value: Path) -> None:
    if not isinstance(value, Path):
        raise TypeError(f"directory is a path, not {value!r}")
    if not str(value).isprintable():
        raise ValueError(
            f"directory must be a path without control characters, not {str(value)!r} (in TOML, a backslash between "
            "double quotes begins an escape: use single quotes)"
        )


def _names(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _line_names(_: Any, attribute: attrs.Attribute[Any], value: str | tuple[str, ...] | None) -> None:
    if value == ():
        raise ValueError(f"{attribute.name} must hold at least one name; leave the key out for none")
    _any_line_names(_, attribute, value)


def _any_line_names(_: Any, attribute: attrs.Attribute[Any], value: str | tuple[str, ...] | None) -> None:
    if value is None or isinstance(value, str):
        return
    if not isinstance(value, tuple) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"{attribute.name} is a name or a list of names, not {value!r}")
    if len(set(value)) < len(value):
        raise ValueError(f"{attribute.name} must hold each name once, not {list(value)!r}")


def _path(value: Any) -> Any:
    return Path(value) if isinstance(value, (str, os.PathLike)) else value


def _members(value: Iterable[MemberConfig]) -> tuple[MemberConfig, ...]:
    return tuple(value)


def _seconds(_: Any, attribute: attrs.Attribute[Any], value: float) -> None:
    checked_timeout(value, attribute.name)


_is_bool = attrs.validators.instance_of(bool)


@attrs.frozen(kw_only=True)
class ApplicationConfig:
    """Settings of the program.

    Attributes:
        name: What the lab is called in logs and run files.
        log_level: ``"debug"``, ``"info"``, ``"warning"`` or ``"error"``.
        shutdown_timeout: Seconds for a whole ordered stop, hardware and recording included.
        guard_after: Seconds of silence after which the guardian of ``trio-daq run`` ends the program and makes its
            lines safe; 0 for no guardian. A program that stops its event loop for longer is ended so.
    """

    name: str = attrs.field(default="lab", validator=_text)
    log_level: Literal["debug", "info", "warning", "error"] = attrs.field(
        default="info", validator=attrs.validators.in_(("debug", "info", "warning", "error"))
    )
    shutdown_timeout: float = attrs.field(default=15.0, validator=positive_seconds)
    guard_after: float = attrs.field(default=5.0, validator=_seconds)


@attrs.frozen(kw_only=True)
class MemberConfig:
    """Settings of one part that runs: an old driver or program (V2), or an actor (V4).

    Attributes:
        id: Its name, which no other member of the lab has.
        driver: ``"module:object"``, or the name of a built-in driver.
        kind: How it runs; None finds it out from the driver, an async function being a ``"task"``. One that is written
            for asyncio needs ``"asyncio"``.
        serial: Name of the serial port it uses, or several; None for no port.
        visa: Name of the VISA session it uses, or several; None for no session.
        makes_safe: Lines, such as ``"serial.stage"``, that are made safe whenever it ends, for any reason, before it
            is started again; an empty list for none. None: those with a ``safe_state`` that no other member uses.
        options: What else the driver is called with. Their values are the driver's business.
        restart: When it is started again: ``"always"`` when it has ended, ``"on_failure"`` when an error ended it that
            is no bug, or ``"never"``. At most 5 times in 60 s.
        required: Whether the lab cannot start without it. If not, its start is tried again by the same rule.
        on_bug: Whether a bug in it is to ``"stop"`` the lab or to ``"isolate"`` it, so that the others go on.
        escalate: Whether giving it up turns its side to ``"error"``, or is to ``"stop"`` the lab.
        stop_timeout: Seconds it has to stop, None for the `SubsystemConfig.stop_timeout` of its side.
        heartbeat: Seconds without a sign of life after which it counts as hung, and its side is in error until the
            next; None if it may be silent. Signs are what it does with its lines, each message that an actor begins
            and ends, ``publish``, ``wait_stopping`` and ``beat`` of its context. An actor that has nothing to handle
            owes none.
    """

    id: str = attrs.field(validator=_text)
    driver: str = attrs.field(validator=_driver)
    kind: Kind | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.in_(("thread", "task", "asyncio", "actor")))
    )
    serial: str | tuple[str, ...] | None = attrs.field(default=None, converter=_names, validator=_line_names)
    visa: str | tuple[str, ...] | None = attrs.field(default=None, converter=_names, validator=_line_names)
    makes_safe: str | tuple[str, ...] | None = attrs.field(default=None, converter=_names, validator=_any_line_names)
    options: dict[str, Any] = attrs.field(factory=dict, validator=attrs.validators.instance_of(dict))
    restart: RestartPolicy = attrs.field(
        default="on_failure", validator=attrs.validators.in_(("always", "on_failure", "never"))
    )
    required: bool = attrs.field(default=True, validator=_is_bool)
    on_bug: Literal["stop", "isolate"] = attrs.field(
        default="stop", validator=attrs.validators.in_(("stop", "isolate"))
    )
    escalate: Literal["error", "stop"] = attrs.field(default="error", validator=attrs.validators.in_(("error", "stop")))
    stop_timeout: float | None = attrs.field(default=None, validator=attrs.validators.optional(positive_seconds))
    heartbeat: float | None = attrs.field(default=None, validator=attrs.validators.optional(positive_seconds))


@attrs.frozen(kw_only=True)
class SubsystemConfig:
    """Settings of one side, V2 or V4.

    Attributes:
        enabled: Whether it is started.
        stop_timeout: Seconds that a member has to stop if it names no time of its own.
        instruments: Its members, in the order of the file: instruments before programs.
    """

    enabled: bool = attrs.field(default=True, validator=_is_bool)
    stop_timeout: float = attrs.field(default=5.0, validator=positive_seconds)
    instruments: tuple[MemberConfig, ...] = attrs.field(
        default=(),
        converter=_members,
        validator=attrs.validators.deep_iterable(attrs.validators.instance_of(MemberConfig)),
    )


@attrs.frozen(kw_only=True)
class RecordingConfig:
    """Settings of the recorder.

    Attributes:
        enabled: Whether anything is recorded.
        directory: Where run files go. A relative path in a config file starts at the folder of that file.
        survives: What an acknowledged reading outlives: ``"kill"`` of the program, or also ``"power-loss"``, which
            waits for the disk.
    """

    enabled: bool = attrs.field(default=True, validator=_is_bool)
    directory: Path = attrs.field(default=Path("runs"), converter=_path, validator=_directory)
    survives: Literal["kill", "power-loss"] = attrs.field(
        default="kill", validator=attrs.validators.in_(("kill", "power-loss"))
    )


def _off() -> SubsystemConfig:
    return SubsystemConfig(enabled=False)


@attrs.frozen(kw_only=True)
class DualConfig:
    """Settings of a lab with both sides, V2 and V4, and what they share.

    Attributes:
        application: Settings of the program.
        serial: Settings of each serial port, by its name.
        visa: Settings of each VISA session, by its name.
        v2: Old drivers and programs. Off unless given.
        v4: Actors. Off unless given.
        recording: Settings of the recorder.
        folder: Folder of the file they came from, where drivers are looked for first; None if there is no file.
        origin: The file they came from and the line of each key, for messages; None if there is no file.

    Example:
        >>> member = MemberConfig(id="ramp", driver="ramps:run", serial="stage")
        >>> DualConfig(v2=SubsystemConfig(instruments=[member]))
        Traceback (most recent call last):
            ...
        trio_daq.errors.ConfigError: v2.instruments[0].serial: unknown port 'stage'; there is no [serial.…] table
    """

    application: ApplicationConfig = attrs.field(
        factory=ApplicationConfig, validator=attrs.validators.instance_of(ApplicationConfig)
    )
    serial: Mapping[str, SerialPortConfig] = attrs.field(
        factory=dict,
        validator=attrs.validators.deep_mapping(value_validator=attrs.validators.instance_of(SerialPortConfig)),
    )
    visa: Mapping[str, VisaSessionConfig] = attrs.field(
        factory=dict,
        validator=attrs.validators.deep_mapping(value_validator=attrs.validators.instance_of(VisaSessionConfig)),
    )
    v2: SubsystemConfig = attrs.field(factory=_off, validator=attrs.validators.instance_of(SubsystemConfig))
    v4: SubsystemConfig = attrs.field(factory=_off, validator=attrs.validators.instance_of(SubsystemConfig))
    recording: RecordingConfig = attrs.field(
        factory=RecordingConfig, validator=attrs.validators.instance_of(RecordingConfig)
    )
    folder: Path | None = None
    origin: Origin | None = attrs.field(default=None, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        problems = find_conflicts(
            ports={name: _facts(port) for name, port in self.serial.items()},
            sessions={name: _facts(session) for name, session in self.visa.items()},
            members=[
                ((side, "instruments", index), _facts(member))
                for side, subsystem in (("v2", self.v2), ("v4", self.v4))
                for index, member in enumerate(subsystem.instruments)
            ],
            any_side_enabled=self.v2.enabled or self.v4.enabled,
        )
        if problems:
            raise ConfigError(problems=[describe(problem) for problem in problems])

    @classmethod
    def load_from_file(cls, path: str | os.PathLike[str]) -> DualConfig:
        """Read settings from a TOML file. Nothing is imported and nothing is opened but the file.

        Raises:
            ConfigError: If the file cannot be read or anything in it is wrong; it lists all problems with their lines.
        """
        from trio_daq.config.loading import load_settings  # late: it builds what this module defines

        return load_settings(path)


def _facts(settings: attrs.AttrsInstance) -> dict[str, Any]:
    return attrs.asdict(settings, recurse=False)
