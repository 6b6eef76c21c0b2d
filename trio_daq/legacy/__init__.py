"""Doors through which old blocking code reaches shared instruments from its own thread."""

from trio_daq.legacy.context import ThreadContext
from trio_daq.legacy.host import DoorHost, Job
from trio_daq.legacy.serial_door import SerialDoor, SerialSequence
from trio_daq.legacy.visa_door import VisaDoor

__all__ = ["DoorHost", "Job", "SerialDoor", "SerialSequence", "ThreadContext", "VisaDoor"]
