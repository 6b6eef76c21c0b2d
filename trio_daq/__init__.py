"""Share serial ports and VISA instruments between old blocking drivers and new async ones, on Trio.

The everyday names, handed on from the rooms that own them. They are looked up when they are first used, so importing
this package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trio_daq.actors import Actor as Actor
    from trio_daq.actors import ActorRef as ActorRef
    from trio_daq.actors import Message as Message
    from trio_daq.actors import handles as handles
    from trio_daq.config import DualConfig as DualConfig
    from trio_daq.data import DataDistributor as DataDistributor
    from trio_daq.data import DataPublisher as DataPublisher
    from trio_daq.data import Reading as Reading
    from trio_daq.errors import DaqError as DaqError
    from trio_daq.lifecycle import DualRuntimeManager as DualRuntimeManager
    from trio_daq.lifecycle import ManagerState as ManagerState
    from trio_daq.lifecycle import ShutdownReport as ShutdownReport
    from trio_daq.lifecycle import Status as Status
    from trio_daq.lifecycle import run as run
    from trio_daq.recording import Recorder as Recorder
    from trio_daq.recording import open_run as open_run
    from trio_daq.serialport import SerialParity as SerialParity
    from trio_daq.serialport import SerialPortConfig as SerialPortConfig
    from trio_daq.serialport import SharedSerialPort as SharedSerialPort
    from trio_daq.sharing import acquire_all as acquire_all
    from trio_daq.visa import VisaSessionConfig as VisaSessionConfig
    from trio_daq.visa import VisaSessionManager as VisaSessionManager
    from trio_daq.wire import Exchange as Exchange
    from trio_daq.wire import SyncQuery as SyncQuery

_ROOMS = {
    "Actor": "actors",
    "ActorRef": "actors",
    "DaqError": "errors",
    "DataDistributor": "data",
    "DataPublisher": "data",
    "DualConfig": "config",
    "DualRuntimeManager": "lifecycle",
    "Exchange": "wire",
    "ManagerState": "lifecycle",
    "Message": "actors",
    "Reading": "data",
    "Recorder": "recording",
    "SerialParity": "serialport",
    "SerialPortConfig": "serialport",
    "SharedSerialPort": "serialport",
    "ShutdownReport": "lifecycle",
    "Status": "lifecycle",
    "SyncQuery": "wire",
    "VisaSessionConfig": "visa",
    "VisaSessionManager": "visa",
    "acquire_all": "sharing",
    "handles": "actors",
    "open_run": "recording",
    "run": "lifecycle",
}

__all__ = [
    "Actor",
    "ActorRef",
    "DaqError",
    "DataDistributor",
    "DataPublisher",
    "DualConfig",
    "DualRuntimeManager",
    "Exchange",
    "ManagerState",
    "Message",
    "Reading",
    "Recorder",
    "SerialParity",
    "SerialPortConfig",
    "SharedSerialPort",
    "ShutdownReport",
    "Status",
    "SyncQuery",
    "VisaSessionConfig",
    "VisaSessionManager",
    "acquire_all",
    "handles",
    "open_run",
    "run",
]


def __getattr__(name: str) -> Any:
    try:
        room = _ROOMS[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(importlib.import_module(f"{__name__}.{room}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
