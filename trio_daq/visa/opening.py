"""Which transport carries the messages of a session, by its settings."""

from __future__ import annotations

from collections.abc import Callable

from trio_daq.visa.settings import VisaSessionConfig
from trio_daq.visa.transport import Transport

MakeTransport = Callable[[VisaSessionConfig], Transport]
"""Makes a connection that is not open yet."""


def make_transport(config: VisaSessionConfig) -> Transport:
    """Return Trio's own transport where that is possible and wanted, else PyVISA's, not open yet."""
    if config.is_native:
        from trio_daq.visa.native_transport import NativeTransport

        return NativeTransport(config)
    from trio_daq.visa.pyvisa_transport import PyvisaTransport  # late: most of it is not needed for the native one

    return PyvisaTransport(config)
