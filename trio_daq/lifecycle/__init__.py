"""Start a lab, watch over it, and stop it in order and in time."""

from trio_daq.lifecycle.devices import Device
from trio_daq.lifecycle.dual import DualRuntimeManager, LabSnapshot
from trio_daq.lifecycle.health import HealthEvent, HealthProblem, HealthReport, HealthStatus, Severity
from trio_daq.lifecycle.lines import LineSnapshot
from trio_daq.lifecycle.manager import Manager
from trio_daq.lifecycle.member import Member
from trio_daq.lifecycle.report import (
    EXIT_STUCK,
    EXIT_UNSAFE,
    MemberReport,
    SafeStateReport,
    ShutdownReport,
    StageReport,
)
from trio_daq.lifecycle.running import run, run_lab, stop_on_signals
from trio_daq.lifecycle.safe_state import make_safe_from_cold
from trio_daq.lifecycle.side import V2Side, V4Side
from trio_daq.lifecycle.stage import Stage
from trio_daq.lifecycle.state import ManagerState, Status
from trio_daq.lifecycle.supervision import Supervision

__all__ = [
    "EXIT_STUCK",
    "EXIT_UNSAFE",
    "Device",
    "DualRuntimeManager",
    "HealthEvent",
    "HealthProblem",
    "HealthReport",
    "HealthStatus",
    "LabSnapshot",
    "LineSnapshot",
    "Manager",
    "ManagerState",
    "Member",
    "MemberReport",
    "SafeStateReport",
    "Severity",
    "ShutdownReport",
    "Stage",
    "StageReport",
    "Status",
    "Supervision",
    "V2Side",
    "V4Side",
    "make_safe_from_cold",
    "run",
    "run_lab",
    "stop_on_signals",
]
