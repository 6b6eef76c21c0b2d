"""Settings of a serial line are checked when they are built."""

import math
from typing import Any

import attrs
import pytest

from trio_daq.serialport import SerialParity, SerialPortConfig

PATH = "/dev/ttyUSB0"


def test_defaults_are_those_of_the_documentation() -> None:
    """Only the path must be given: 9600 8N1, no flow control, one second, line feeds, exclusive."""
    config = SerialPortConfig(path=PATH)
    assert attrs.asdict(config) == {
        "path": PATH,
        "baud_rate": 9600,
        "data_bits": 8,
        "stop_bits": 1.0,
        "parity": SerialParity.NONE,
        "flow_control": "none",
        "timeout": 1.0,
        "acquire_timeout": 2.0,
        "write_terminator": b"\n",
        "read_terminator": b"\n",
        "quiet_time": None,
        "sync_query": None,
        "sync_every": 10.0,
        "stations": {},
        "min_gap": 0.0,
        "char_delay": 0.0,
        "echo": False,
        "unsolicited": b"",
        "on_acquire": "discard",
        "max_hold": None,
        "exclusive": True,
        "reconnect": True,
        "identify": None,
        "on_reconnect": (),
        "safe_state": (),
        "safe_order": 0,
        "trace": False,
    }
    assert config.quiet == 1.0
    assert attrs.evolve(config, timeout=3.0).quiet == 3.0
    assert attrs.evolve(config, timeout=3.0, quiet_time=0.5).quiet == 0.5


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("parity", "even", SerialParity.EVEN),
        ("parity", "o", SerialParity.ODD),
        ("parity", SerialParity.MARK, SerialParity.MARK),
        ("stop_bits", 1.5, 1.5),
        ("data_bits", 5, 5),
        ("read_terminator", "\\r\\n", b"\r\n"),
        ("read_terminator", "hex:03", b"\x03"),
        ("write_terminator", b"\x00", b"\x00"),
        ("baud_rate", 1_234_567, 1_234_567),
        ("quiet_time", 0.01, 0.01),
        ("on_acquire", "keep", "keep"),
        ("exclusive", False, False),
    ],
)
def test_good_values_are_kept(name: str, given: Any, kept: Any) -> None:
    """Values are taken as they are; text is read where it stands for something else."""
    assert getattr(SerialPortConfig(**{"path": PATH, name: given}), name) == kept


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("path", ""),
        ("path", "tty\0"),
        ("path", None),
        ("baud_rate", 0),
        ("baud_rate", -9600),
        ("baud_rate", 9600.7),
        ("baud_rate", True),
        ("baud_rate", "9600"),
        ("data_bits", 9),
        ("stop_bits", 3),
        ("parity", "none of these"),
        ("parity", 1),
        ("flow_control", "xon"),
        ("timeout", 0),
        ("timeout", -1.0),
        ("timeout", math.inf),
        ("timeout", math.nan),
        ("timeout", True),
        ("acquire_timeout", math.inf),
        ("acquire_timeout", "2"),
        ("quiet_time", 0),
        ("write_terminator", b""),
        ("write_terminator", ""),
        ("read_terminator", 10),
        ("read_terminator", "hex:0"),
        ("read_terminator", "\\q"),
        ("on_acquire", "drop"),
        ("exclusive", 1),
    ],
)
def test_bad_values_are_refused(name: str, value: Any) -> None:
    """A value that no port could use is a TypeError or a ValueError at once, before anything opens."""
    with pytest.raises((TypeError, ValueError)):
        SerialPortConfig(**{"path": PATH, name: value})


def test_settings_cannot_be_changed() -> None:
    """Settings are values: frozen, equal and hashable by what they hold."""
    config = SerialPortConfig(path=PATH)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        config.timeout = 5.0  # type: ignore[misc]
    assert {config} == {SerialPortConfig(path=PATH)}


def test_unknown_settings_are_refused() -> None:
    """A misspelt setting is not taken silently."""
    with pytest.raises(TypeError, match="baudrate"):
        SerialPortConfig(path=PATH, baudrate=9600)  # type: ignore[call-arg]
