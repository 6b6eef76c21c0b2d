"""Bytes to messages and back: no I/O, no Trio."""

from trio_daq.wire.exchange import Exchange, check_pattern
from trio_daq.wire.framing import ReceiveBuffer
from trio_daq.wire.scpi import expects_reply
from trio_daq.wire.sync_query import SyncQuery, SyncQuestion, SyncSequence
from trio_daq.wire.text import parse_terminator, printable
from trio_daq.wire.trace import Trace, TraceEntry

__all__ = [
    "Exchange",
    "ReceiveBuffer",
    "SyncQuery",
    "SyncQuestion",
    "SyncSequence",
    "Trace",
    "TraceEntry",
    "check_pattern",
    "expects_reply",
    "parse_terminator",
    "printable",
]
