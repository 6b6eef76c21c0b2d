"""How PyVISA finds our backend: by the module that its rule for plug-ins names."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

_PLUGIN = "pyvisa_trio_daq"
"""The module that PyVISA imports for a backend called ``@trio_daq``, to take its ``WRAPPER_CLASS``."""


def register() -> None:
    """Let ``pyvisa.ResourceManager("@trio_daq")`` find what the open labs have. Importing this module does so."""
    sys.modules.setdefault(_PLUGIN, _Plugin(_PLUGIN))


class _Plugin(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name != "WRAPPER_CLASS":
            raise AttributeError(name)
        from trio_daq.legacy.pyvisa_backend import TrioDaqVisaLibrary  # late: not every lab has old code

        return TrioDaqVisaLibrary


register()  # at once: scripts make their resource manager when they are imported, before there is a lab
