"""Settings that are built in Python, without a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from trio_daq.config import ApplicationConfig, DualConfig, MemberConfig, RecordingConfig, SubsystemConfig
from trio_daq.errors import ConfigError
from trio_daq.serialport import SerialPortConfig
from trio_daq.visa import VisaSessionConfig

WRONG_FIELDS: list[Callable[[], object]] = [
    lambda: ApplicationConfig(name=""),
    lambda: ApplicationConfig(name="a\n"),
    lambda: ApplicationConfig(name=3),  # type: ignore[arg-type]
    lambda: ApplicationConfig(log_level="loud"),  # type: ignore[arg-type]
    lambda: ApplicationConfig(shutdown_timeout=float("inf")),
    lambda: ApplicationConfig(shutdown_timeout=True),
    lambda: MemberConfig(id="", driver="m:f"),
    lambda: MemberConfig(id="a", driver="m"),
    lambda: MemberConfig(id="a", driver="m:"),
    lambda: MemberConfig(id="a", driver="../m:f"),
    lambda: MemberConfig(id="a", driver="m:f", kind="process"),  # type: ignore[arg-type]
    lambda: MemberConfig(id="a", driver="m:f", serial=3),
    lambda: MemberConfig(id="a", driver="m:f", visa=[]),
    lambda: MemberConfig(id="a", driver="m:f", visa=["x", "x"]),
    lambda: MemberConfig(id="a", driver="m:f", options=[]),  # type: ignore[arg-type]
    lambda: MemberConfig(id="a", driver="m:f", stop_timeout=0),
    lambda: SubsystemConfig(enabled=1),  # type: ignore[arg-type]
    lambda: SubsystemConfig(stop_timeout=-1),
    lambda: SubsystemConfig(instruments=["a"]),  # type: ignore[list-item]
    lambda: RecordingConfig(directory=3),
    lambda: RecordingConfig(directory="a\0b"),
    lambda: RecordingConfig(survives="fire"),  # type: ignore[arg-type]
    lambda: DualConfig(v2={}, v4=SubsystemConfig()),  # type: ignore[arg-type]
    lambda: DualConfig(serial={"a": "/dev/ttyS0"}, v4=SubsystemConfig()),  # type: ignore[dict-item]
]


@pytest.mark.parametrize("build", WRONG_FIELDS)
def test_a_wrong_field_is_refused(build: Callable[[], object]) -> None:
    """A field of the wrong type or range raises TypeError or ValueError when it is set, not when it is used."""
    with pytest.raises((TypeError, ValueError)):
        build()


def test_settings_that_contradict_each_other_raise_one_error() -> None:
    """Unknown names, ids used twice and hardware named twice are all told, without a file name."""
    member = MemberConfig(id="a", driver="m:f", visa=["dmm", "psu"])
    with pytest.raises(ConfigError) as caught:
        DualConfig(
            serial={name: SerialPortConfig(path="/dev/ttyS0") for name in ("one", "two")},
            visa={"dmm": VisaSessionConfig(resource="GPIB::1::INSTR")},
            v2=SubsystemConfig(instruments=[member]),
            v4=SubsystemConfig(instruments=[attrs.evolve(member, kind="thread")]),
        )
    assert [problem.split(": ")[0] for problem in caught.value.problems] == [
        "serial.two.path",
        "v4.instruments[0].id",
        "v2.instruments[0].visa",
        "v4.instruments[0].visa",
        "v4.instruments[0].kind",
    ]


def test_both_sides_are_off_unless_given() -> None:
    """A side that is not given is disabled, one that is given runs, and a lab without either is refused."""
    config = DualConfig(v4=SubsystemConfig())
    assert (config.v2.enabled, config.v4.enabled) == (False, True)
    with pytest.raises(ConfigError, match="nothing is enabled"):
        DualConfig()
    with pytest.raises(ConfigError, match="nothing is enabled"):
        DualConfig(v2=SubsystemConfig(enabled=False))


def test_settings_cannot_be_changed() -> None:
    """Settings are frozen, and a changed copy is checked again."""
    config = DualConfig(v2=SubsystemConfig())
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        config.v2.enabled = False  # type: ignore[misc]
    with pytest.raises(ConfigError):
        attrs.evolve(config, v2=SubsystemConfig(enabled=False))
    assert config.recording.directory == Path("runs")


def test_built_in_drivers_need_no_module() -> None:
    """A driver may be called by its short name."""
    assert MemberConfig(id="a", driver="scpi_poll").driver == "scpi_poll"
