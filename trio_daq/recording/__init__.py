"""Runs: record readings so that nothing acknowledged is ever lost, and read them back."""

from trio_daq.recording.recorder import Recorder, RecorderStatistics
from trio_daq.recording.run_file import ChannelSummary, RunFile, open_run
from trio_daq.recording.run_writer import Survives

__all__ = ["ChannelSummary", "Recorder", "RecorderStatistics", "RunFile", "Survives", "open_run"]
