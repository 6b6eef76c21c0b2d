"""Settings of a lab: from a TOML file or built in Python, checked as a whole before anything opens."""

from trio_daq.config.driver_binding import ResolvedDriver, check_drivers, resolve_driver
from trio_daq.config.dual_config import (
    BUILT_IN_DRIVERS,
    ApplicationConfig,
    DualConfig,
    Kind,
    MemberConfig,
    RecordingConfig,
    RestartPolicy,
    SubsystemConfig,
)

__all__ = [
    "BUILT_IN_DRIVERS",
    "ApplicationConfig",
    "DualConfig",
    "Kind",
    "MemberConfig",
    "RecordingConfig",
    "ResolvedDriver",
    "RestartPolicy",
    "SubsystemConfig",
    "check_drivers",
    "resolve_driver",
]
