"""Built-in drivers, and what every async driver is handed."""

from trio_daq.drivers.comparison import Comparison
from trio_daq.drivers.comparison_report import ComparisonReport, Difference, Tolerance, Unpaired
from trio_daq.drivers.context import DriverContext
from trio_daq.drivers.polling import scpi_poll, serial_poll
from trio_daq.drivers.shadow import ShadowReport, shadow

__all__ = [
    "Comparison",
    "ComparisonReport",
    "Difference",
    "DriverContext",
    "ShadowReport",
    "Tolerance",
    "Unpaired",
    "scpi_poll",
    "serial_poll",
    "shadow",
]
