"""One queue for each VISA instrument, and one worker that talks to it."""

from trio_daq.visa.order import Priority
from trio_daq.visa.pending import PendingRead, PendingReply
from trio_daq.visa.resource_name import canonical_resource, is_stream
from trio_daq.visa.session import VisaSessionManager
from trio_daq.visa.settings import VisaSessionConfig
from trio_daq.visa.statistics import SessionStatistics
from trio_daq.visa.transaction import Transaction
from trio_daq.visa.transport import (
    AROUND_BLOCK,
    BlockError,
    ConnectionLostError,
    Progress,
    Request,
    Transport,
    TransportError,
    TransportTimeoutError,
    UnaskedInputError,
)
from trio_daq.visa.verbs import Text

__all__ = [
    "AROUND_BLOCK",
    "BlockError",
    "ConnectionLostError",
    "PendingRead",
    "PendingReply",
    "Priority",
    "Progress",
    "Request",
    "SessionStatistics",
    "Text",
    "Transaction",
    "Transport",
    "TransportError",
    "TransportTimeoutError",
    "UnaskedInputError",
    "VisaSessionConfig",
    "VisaSessionManager",
    "canonical_resource",
    "is_stream",
]
