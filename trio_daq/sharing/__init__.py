"""Exclusive use of one thing: who has it, who waits, for how long. Knows no hardware."""

from trio_daq.sharing.deadlines import checked_timeout, positive_int, positive_seconds
from trio_daq.sharing.worker_thread import WorkerThread

__all__ = ["WorkerThread", "checked_timeout", "positive_int", "positive_seconds"]
