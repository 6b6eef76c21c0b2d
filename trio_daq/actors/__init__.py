"""Actors: objects that handle one message at a time, each in its own task."""

from trio_daq.actors.actor import Actor
from trio_daq.actors.cell import ActorCell, ActorStatistics
from trio_daq.actors.dead_letters import DeadLetter
from trio_daq.actors.mailbox import Overflow
from trio_daq.actors.messages import Message, handles
from trio_daq.actors.ref import ActorRef
from trio_daq.actors.registry import ActorRegistry

__all__ = [
    "Actor",
    "ActorCell",
    "ActorRef",
    "ActorRegistry",
    "ActorStatistics",
    "DeadLetter",
    "Message",
    "Overflow",
    "handles",
]
