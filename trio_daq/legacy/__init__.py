"""Doors through which old blocking code reaches shared instruments from its own thread."""

from trio_daq.legacy.blocking_serial import BlockingSerial
from trio_daq.legacy.context import ThreadContext
from trio_daq.legacy.device_door import DeviceDoor
from trio_daq.legacy.directory import LineDirectory, offer, register, served_by
from trio_daq.legacy.host import DoorHost, Interruption, Job
from trio_daq.legacy.implicit_lease import ImplicitLease
from trio_daq.legacy.serial_door import SerialDoor, SerialSequence
from trio_daq.legacy.visa_door import VisaDoor, VisaTransaction

__all__ = [
    "BlockingSerial",
    "DeviceDoor",
    "DoorHost",
    "ImplicitLease",
    "Interruption",
    "Job",
    "LineDirectory",
    "SerialDoor",
    "SerialSequence",
    "ThreadContext",
    "VisaDoor",
    "VisaTransaction",
    "offer",
    "register",
    "served_by",
]
