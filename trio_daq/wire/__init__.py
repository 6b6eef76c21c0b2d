"""Bytes to messages and back: no I/O, no Trio."""

from trio_daq.wire.block import BlockFormatError, BlockReader, definite_block_end, encode_block
from trio_daq.wire.command import Command, Quoted
from trio_daq.wire.dialect import ReplyRule, reply_rule
from trio_daq.wire.exchange import Exchange, check_pattern
from trio_daq.wire.framing import ReceiveBuffer
from trio_daq.wire.scpi import expects_reply
from trio_daq.wire.sync_query import SyncQuery, SyncQuestion, SyncSequence
from trio_daq.wire.text import parse_terminator, printable
from trio_daq.wire.trace import Trace, TraceEntry
from trio_daq.wire.values import parse_values, unpack_values

__all__ = [
    "BlockFormatError",
    "BlockReader",
    "Command",
    "Exchange",
    "Quoted",
    "ReceiveBuffer",
    "ReplyRule",
    "SyncQuery",
    "SyncQuestion",
    "SyncSequence",
    "Trace",
    "TraceEntry",
    "check_pattern",
    "definite_block_end",
    "encode_block",
    "expects_reply",
    "parse_terminator",
    "parse_values",
    "printable",
    "reply_rule",
    "unpack_values",
]
