"""Bytes to messages and back: no I/O, no clock, no Trio."""

from trio_daq.wire.framing import ReceiveBuffer
from trio_daq.wire.scpi import expects_reply
from trio_daq.wire.sync_query import SyncQuery, SyncQuestion, SyncSequence
from trio_daq.wire.text import parse_terminator, printable

__all__ = [
    "ReceiveBuffer",
    "SyncQuery",
    "SyncQuestion",
    "SyncSequence",
    "expects_reply",
    "parse_terminator",
    "printable",
]
