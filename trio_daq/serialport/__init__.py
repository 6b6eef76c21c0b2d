"""A serial port that many owners share, one at a time."""

from trio_daq.serialport.byte_stream import ByteStream, ControlLines
from trio_daq.serialport.device_path import find_device, usb_path
from trio_daq.serialport.guard import SerialGuard
from trio_daq.serialport.holders import PortHolder, port_holders
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
    "PortHolder",
    "PortStatistics",
    "SerialGuard",
    "SerialParity",
    "SerialPortConfig",
    "SharedSerialPort",
    "find_device",
    "port_holders",
    "usb_path",
]
