"""Every error that trio_daq raises on purpose.

Each is a `DaqError` and also the builtin exception that old code already catches, so ``except TimeoutError`` goes
on working. An error is built from keyword values, its message is made from them, and they stay readable as
attributes: nobody needs to match on the text.

Tree::

    DaqError
    ├── waiting    AcquireTimeoutError, PortBusyError, DeadlockError, LockOrderError, LeaseRevokedError
    ├── exchanges  ExchangeTimeoutError, CommandTimeoutError, CommandCancelledError, QueueFullError, ReplyError,
    │              InstrumentError, TransactionBrokenError
    ├── lines      LineOpenError, LineLostError, LineUnusableError, LineFeatureError, SafeStateError,
    │              SessionClosedError, HungCallError
    ├── actors     AskTimeoutError, MailboxFullError, ActorStoppedError
    ├── data       PublishTimeoutError, AcknowledgeTimeoutError, RecordingError, RunFileError
    ├── lifecycle  StateError, StartError, StoppingError, StuckError, UnhealthyError,
    │              DoorClosedError, DoorInterruptedError
    └── you        ConfigError, GuardReleasedError, UnknownNameError
"""

from trio_daq.errors.actor import ActorStoppedError, AskTimeoutError, MailboxFullError
from trio_daq.errors.bug import is_bug
from trio_daq.errors.daq_error import DaqError, Sent
from trio_daq.errors.data import AcknowledgeTimeoutError, PublishTimeoutError, RecordingError, RunFileError
from trio_daq.errors.exchange import (
    CommandCancelledError,
    CommandTimeoutError,
    ExchangeTimeoutError,
    InstrumentError,
    QueueFullError,
    ReplyError,
    TransactionBrokenError,
)
from trio_daq.errors.lifecycle import (
    DoorClosedError,
    DoorInterruptedError,
    StartError,
    StateError,
    StoppingError,
    StuckError,
    UnhealthyError,
)
from trio_daq.errors.line import (
    HungCallError,
    LineFeatureError,
    LineLostError,
    LineOpenError,
    LineUnusableError,
    SafeStateError,
    SessionClosedError,
)
from trio_daq.errors.mistake import ConfigError, GuardReleasedError, UnknownNameError
from trio_daq.errors.waiting import AcquireTimeoutError, DeadlockError, LeaseRevokedError, LockOrderError, PortBusyError

__all__ = [
    "AcknowledgeTimeoutError",
    "AcquireTimeoutError",
    "ActorStoppedError",
    "AskTimeoutError",
    "CommandCancelledError",
    "CommandTimeoutError",
    "ConfigError",
    "DaqError",
    "DeadlockError",
    "DoorClosedError",
    "DoorInterruptedError",
    "ExchangeTimeoutError",
    "GuardReleasedError",
    "HungCallError",
    "InstrumentError",
    "LeaseRevokedError",
    "LineFeatureError",
    "LineLostError",
    "LineOpenError",
    "LineUnusableError",
    "LockOrderError",
    "MailboxFullError",
    "PortBusyError",
    "PublishTimeoutError",
    "QueueFullError",
    "RecordingError",
    "ReplyError",
    "RunFileError",
    "SafeStateError",
    "Sent",
    "SessionClosedError",
    "StartError",
    "StateError",
    "StoppingError",
    "StuckError",
    "TransactionBrokenError",
    "UnhealthyError",
    "UnknownNameError",
    "is_bug",
]
