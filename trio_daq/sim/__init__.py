"""Simulated instruments, with faults, in a process of their own: for the demo, for tests, for trying a lab at home.

`open_simulated_lab` starts a stage controller on a pty, a SCPI meter on a raw socket, HiSLIP, VXI-11 or a pty, or three
stages on one line. What they write into their own log is the truth about what was asked and answered, whatever the
program under test believes. `MemoryLine` is a serial line, and `MemoryInstrument` a VISA instrument, without a device
or another process: a task of the test, on a virtual clock.
"""

from trio_daq.sim.answer import Answer, Reply
from trio_daq.sim.bus import SimulatedBus, SimulatedStation
from trio_daq.sim.faults import NO_FAULTS, FaultPlan
from trio_daq.sim.log import LogEntry, read_log, replies_by_tag
from trio_daq.sim.memory_instrument import MemoryInstrument
from trio_daq.sim.memory_line import MemoryControls, MemoryLine
from trio_daq.sim.meter import SimulatedMeter
from trio_daq.sim.process import MeterOver, SimulatedLab, open_simulated_lab
from trio_daq.sim.stage import SimulatedStage

__all__ = [
    "NO_FAULTS",
    "Answer",
    "FaultPlan",
    "LogEntry",
    "MemoryControls",
    "MemoryInstrument",
    "MemoryLine",
    "MeterOver",
    "Reply",
    "SimulatedBus",
    "SimulatedLab",
    "SimulatedMeter",
    "SimulatedStage",
    "SimulatedStation",
    "open_simulated_lab",
    "read_log",
    "replies_by_tag",
]
