"""Doors through which old blocking code, and asyncio, reach shared instruments from threads of their own."""

from trio_daq.legacy.arguments import with_doors
from trio_daq.legacy.asyncio_context import AsyncioContext
from trio_daq.legacy.asyncio_device import AsyncioDeviceDoor
from trio_daq.legacy.asyncio_program import AsyncioProgram
from trio_daq.legacy.asyncio_serial import AsyncioSerialDoor, AsyncioSerialGuard
from trio_daq.legacy.asyncio_visa import AsyncioTransaction, AsyncioVisaDoor
from trio_daq.legacy.blocking_serial import BlockingSerial
from trio_daq.legacy.context import ThreadContext
from trio_daq.legacy.device_door import DeviceDoor
from trio_daq.legacy.directory import Line, LineDirectory, offer, resource_of, served_by
from trio_daq.legacy.host import DoorHost, Interruption, Job
from trio_daq.legacy.implicit_lease import ImplicitLease
from trio_daq.legacy.registration import register
from trio_daq.legacy.serial_door import SerialDoor, SerialSequence
from trio_daq.legacy.visa_door import VisaDoor, VisaTransaction

__all__ = [
    "AsyncioContext",
    "AsyncioDeviceDoor",
    "AsyncioProgram",
    "AsyncioSerialDoor",
    "AsyncioSerialGuard",
    "AsyncioTransaction",
    "AsyncioVisaDoor",
    "BlockingSerial",
    "DeviceDoor",
    "DoorHost",
    "ImplicitLease",
    "Interruption",
    "Job",
    "Line",
    "LineDirectory",
    "SerialDoor",
    "SerialSequence",
    "ThreadContext",
    "VisaDoor",
    "VisaTransaction",
    "offer",
    "register",
    "resource_of",
    "served_by",
    "with_doors",
]
