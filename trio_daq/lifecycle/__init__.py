"""Start a lab, watch over it, and stop it in order and in time."""

from trio_daq.lifecycle.dual import DualRuntimeManager, LabSnapshot
from trio_daq.lifecycle.health import HealthReport
from trio_daq.lifecycle.lines import LineSnapshot
from trio_daq.lifecycle.manager import EXIT_STUCK, Manager
from trio_daq.lifecycle.member import Member
from trio_daq.lifecycle.report import MemberReport, ShutdownReport, StageReport
from trio_daq.lifecycle.running import run, run_lab, stop_on_signals
from trio_daq.lifecycle.side import V2Side, V4Side
from trio_daq.lifecycle.stage import Stage
from trio_daq.lifecycle.state import ManagerState, Status
from trio_daq.lifecycle.supervision import Supervision

__all__ = [
    "EXIT_STUCK",
    "DualRuntimeManager",
    "HealthReport",
    "LabSnapshot",
    "LineSnapshot",
    "Manager",
    "ManagerState",
    "Member",
    "MemberReport",
    "ShutdownReport",
    "Stage",
    "StageReport",
    "Status",
    "Supervision",
    "V2Side",
    "V4Side",
    "run",
    "run_lab",
    "stop_on_signals",
]
