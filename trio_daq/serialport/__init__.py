"""A serial port that many owners share, one at a time."""

from trio_daq.serialport.byte_stream import ByteStream, ControlLines
from trio_daq.serialport.guard import SerialGuard
from trio_daq.serialport.modem import ModemLines
from trio_daq.serialport.port import PortAcquisition, PortStatistics, SharedSerialPort
from trio_daq.serialport.settings import SerialParity, SerialPortConfig
from trio_daq.serialport.state import LineState

__all__ = [
    "ByteStream",
    "ControlLines",
    "LineState",
    "ModemLines",
    "PortAcquisition",
    "PortStatistics",
    "SerialGuard",
    "SerialParity",
    "SerialPortConfig",
    "SharedSerialPort",
]
