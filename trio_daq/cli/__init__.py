"""The ``trio-daq`` command."""

from trio_daq.cli.app import main

__all__ = ["main"]
