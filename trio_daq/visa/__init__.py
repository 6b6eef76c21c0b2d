"""One queue for each VISA instrument, and one worker that talks to it."""

from trio_daq.visa.resource_name import canonical_resource
from trio_daq.visa.session import SessionStatistics, VisaSessionManager
from trio_daq.visa.settings import VisaSessionConfig

__all__ = ["SessionStatistics", "VisaSessionConfig", "VisaSessionManager", "canonical_resource"]
