"""Built-in drivers, and what every async driver is handed."""

from trio_daq.drivers.context import DriverContext
from trio_daq.drivers.polling import scpi_poll, serial_poll

__all__ = ["DriverContext", "scpi_poll", "serial_poll"]
