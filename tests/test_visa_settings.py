"""Settings of a VISA session are checked when they are built, and resource names have one spelling."""

import math
from typing import Any

import attrs
import pytest

from trio_daq.visa import VisaSessionConfig, VisaSessionManager, canonical_resource

RESOURCE = "TCPIP0::192.168.1.100::INSTR"


def test_defaults_are_those_of_the_documentation() -> None:
    """Only the resource must be given: 2 s, pyvisa-py, SCPI, line feeds, 100 places of each priority."""
    settings = attrs.asdict(VisaSessionConfig(resource=RESOURCE))
    assert {name: value for name, value in settings.items() if value not in (None, ())} == {
        "resource": RESOURCE,
        "timeout": 2.0,
        "backend": "@py",
        "transport": "auto",
        "dialect": "scpi",
        "write_termination": "\n",
        "read_termination": "\n",
        "queue_size": 100,
        "queue_warning": 10,
        "max_block": 67_108_864,
        "check_errors": "never",
        "error_query": "SYST:ERR?",
        "resync_timeout": 2.0,
        "reopen": True,
        "reconnect": True,
        "safe_order": 0,
        "trace": False,
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("resource", "192.168.1.100"),
        ("resource", 5),
        ("timeout", 0),
        ("timeout", -1.0),
        ("timeout", math.inf),
        ("timeout", math.nan),
        ("timeout", True),
        ("timeout", "2"),
        ("backend", ""),
        ("backend", None),
        ("transport", "native"),  # it is no SOCKET resource
        ("transport", "raw"),
        ("write_termination", ""),
        ("read_termination", b"\n"),
        ("queue_size", 0),
        ("queue_size", 1.5),
        ("queue_size", True),
    ],
)
def test_bad_values_are_refused(name: str, value: Any) -> None:
    """A value that no session could use is a TypeError or a ValueError at once, before anything opens."""
    with pytest.raises((TypeError, ValueError)):
        VisaSessionConfig(**{"resource": RESOURCE, name: value})


def test_timeout_of_the_session_overrides_the_settings() -> None:
    """A session may be made of a name or of settings, and its own timeout wins and is checked."""
    assert VisaSessionManager(RESOURCE).config.timeout == 2.0
    assert VisaSessionManager(VisaSessionConfig(resource=RESOURCE, timeout=7), timeout=3).config.timeout == 3
    with pytest.raises(ValueError, match="timeout"):
        VisaSessionManager(RESOURCE, timeout=0)


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("tcpip::192.168.1.100::INSTR", "TCPIP0::192.168.1.100::inst0::INSTR"),
        ("TCPIP0::192.168.1.100::inst0::INSTR", "TCPIP0::192.168.1.100::inst0::INSTR"),
        ("TCPIP::meter.local::5025::SOCKET", "TCPIP0::meter.local::5025::SOCKET"),
        ("gpib::14::instr", "GPIB0::14::INSTR"),
        ("GPIB0::14", "GPIB0::14::INSTR"),
        ("tcpip::meter.local::5025::socket", "TCPIP0::meter.local::5025::SOCKET"),
    ],
)
def test_spellings_of_one_resource_are_one(name: str, canonical: str) -> None:
    """Case, a left-out board and left-out parts do not make another instrument."""
    assert canonical_resource(name) == canonical


@pytest.mark.parametrize("name", ["", "dmm", "NONSENSE::1"])
def test_names_of_no_resource_are_refused(name: str) -> None:
    """What VISA cannot read is a ValueError that shows the name."""
    with pytest.raises(ValueError, match="is no VISA resource name"):
        canonical_resource(name)
