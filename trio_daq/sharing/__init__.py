"""Exclusive use of one thing: who has it, who waits, for how long. Knows no hardware."""

from trio_daq.sharing.alarms import Alarm
from trio_daq.sharing.backoff import Backoff
from trio_daq.sharing.bell import Bell
from trio_daq.sharing.deadlines import checked_timeout, positive_int, positive_seconds, whole_number
from trio_daq.sharing.histogram import Histogram
from trio_daq.sharing.interrupts import (
    NOT_SWALLOWED,
    Done,
    close_and_leave,
    interruptible,
    interruptible_nowait,
    to_the_end,
)
from trio_daq.sharing.lease import Claim, Lease, LeaseStatistics
from trio_daq.sharing.owner import acting_as, current_agent, member_of, on_behalf_of, owner_name
from trio_daq.sharing.pulse import Pulse, beat, current_pulse, living_by
from trio_daq.sharing.safe_talk import SafeStateResult, SafeTalk
from trio_daq.sharing.service_nursery import ServiceNursery
from trio_daq.sharing.several import Acquirable, acquire_all
from trio_daq.sharing.shared_device import SharedDevice
from trio_daq.sharing.wait_graph import Agent, Holder, LineKind, Wait, all_waits, forget_waiting, note_waiting
from trio_daq.sharing.worker_thread import WorkerThread

__all__ = [
    "NOT_SWALLOWED",
    "Acquirable",
    "Agent",
    "Alarm",
    "Backoff",
    "Bell",
    "Claim",
    "Done",
    "Histogram",
    "Holder",
    "Lease",
    "LeaseStatistics",
    "LineKind",
    "Pulse",
    "SafeStateResult",
    "SafeTalk",
    "ServiceNursery",
    "SharedDevice",
    "Wait",
    "WorkerThread",
    "acquire_all",
    "acting_as",
    "all_waits",
    "beat",
    "checked_timeout",
    "close_and_leave",
    "current_agent",
    "current_pulse",
    "forget_waiting",
    "interruptible",
    "interruptible_nowait",
    "living_by",
    "member_of",
    "note_waiting",
    "on_behalf_of",
    "owner_name",
    "positive_int",
    "positive_seconds",
    "to_the_end",
    "whole_number",
]
