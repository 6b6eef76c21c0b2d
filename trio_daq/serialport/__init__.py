"""A serial port that many owners share, one at a time."""

from trio_daq.serialport.settings import SerialParity, SerialPortConfig

__all__ = ["SerialParity", "SerialPortConfig"]
