"""Owners that share one line through `SharedSerialPort`, some of whom misbehave, and a world that does.

Tasks ask the port; threads ask its blocking door. Faults of the instrument itself are its own business: see the plan
that it was started with. What is done here by counting: every so many exchanges each of `TASK_FAULTS` is due, and each
of the outages.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import trio
from due_faults import DueFaults
from notes import Note, Notebook

from trio_daq.errors import DaqError, LeaseRevokedError
from trio_daq.legacy import DoorHost, SerialDoor
from trio_daq.serialport import PortAcquisition, SharedSerialPort
from trio_daq.sim import SimulatedLab

THREAD_FAULTS = ("raises", "left")
"""A holder that raises between a command and its reply; one that writes and leaves without reading."""
TASK_FAULTS = (*THREAD_FAULTS, "cancelled", "revoked")
"""Threads cannot be cancelled; the revoking is done to tasks."""
SOON = 0.01
"""Seconds after which an exchange that is to be spoilt is cut."""
SLOWLY = 3 * SOON
"""Seconds that an instrument takes to answer, where its reply is to come after that."""


class DeliberateError(Exception):
    """What a holder raises in the middle of its exchange."""


class Crowd:
    """All who use the line in one run.

    Args:
        port: The port they share.
        lab: The process of the instrument.
        book: Where they write down what they got.
        every: Each kind of fault comes once in so many exchanges.
        stations: On a bus, the stations, which are asked in turn.
    """

    def __init__(
        self, port: SharedSerialPort, lab: SimulatedLab, book: Notebook, every: int, stations: Sequence[str] = ()
    ) -> None:
        self._port = port
        self._lab = lab
        self._book = book
        self._every = every
        self._stations = stations
        self._due = DueFaults(every, TASK_FAULTS)
        self._nursery: trio.Nursery | None = None

    async def run(self, tasks: int, threads: int) -> None:
        """Make all exchanges that the book wants, with so many owners of either kind."""
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._disturb)
            async with trio.open_nursery() as owners:
                for number in range(tasks):
                    owners.start_soon(self._work, f"task{number}")
                for number in range(threads):
                    host = DoorHost(f"thread{number}")
                    await self._nursery.start(host.serve)
                    owners.start_soon(trio.to_thread.run_sync, self._work_in_thread, host)
            self._nursery.cancel_scope.cancel()

    # --- tasks ---------------------------------------------------------------------------------------------------

    async def _work(self, owner: str) -> None:
        for note in self._book.exchanges(owner):
            fault = self._due.next(TASK_FAULTS)
            try:
                await self._exchange(note, fault)
            except DeliberateError:
                note.fault = "raises"
            except LeaseRevokedError:
                note.fault = "revoked"
            except DaqError as error:
                note.error = type(error).__name__
            if fault is not None and note.fault is None:
                self._due.put_back(fault)
            await trio.lowlevel.checkpoint()

    async def _exchange(self, note: Note, fault: str | None) -> None:
        ask, slowly = self._commands(note)
        if fault == "cancelled":
            if await self._is_cancelled(note, int(note.nonce[1:]) % 3):
                note.fault = "cancelled"
            return
        async with self._acquire(note) as guard:
            match fault:
                case None:
                    note.got(await guard.query(ask))
                case "raises":
                    await guard.write_all(slowly + b"\r\n")
                    raise DeliberateError
                case "left":
                    await guard.write_all(slowly + b"\r\n")
                    note.fault = "left"
                case "revoked":
                    assert self._nursery is not None
                    self._nursery.start_soon(self._revoke_soon, note.owner)
                    note.got(await guard.query(slowly))

    async def _is_cancelled(self, note: Note, when: int) -> bool:
        """Be cancelled within an exchange: while it waits, between command and reply, or about when the reply comes."""
        ask, slowly = self._commands(note)
        async with self._acquire(note) as guard:
            with trio.CancelScope() as scope:
                if when == 0:
                    scope.deadline = trio.current_time() + SOON
                    note.got(await guard.query(slowly))
                elif when == 1:
                    await guard.write_all(ask + b"\r\n")
                    scope.cancel()
                    note.got(await guard.read_until())
                else:
                    scope.deadline = trio.current_time() + 0.0002
                    note.got(await guard.query(ask))
            return scope.cancelled_caught and note.reply is None

    async def _revoke_soon(self, owner: str) -> None:
        await trio.sleep(SOON)
        if self._port.current_owner() == owner:
            self._port.revoke("the soak wants it back")

    # --- threads -------------------------------------------------------------------------------------------------

    def _work_in_thread(self, host: DoorHost) -> None:
        door = SerialDoor(host, self._port)
        for note in self._book.exchanges(host.owner):
            fault = self._due.next(THREAD_FAULTS)
            try:
                self._exchange_in_thread(door, note, fault)
            except DeliberateError:
                note.fault = "raises"
            except DaqError as error:
                note.error = type(error).__name__
            if fault is not None and note.fault is None:
                self._due.put_back(fault)

    def _exchange_in_thread(self, door: SerialDoor, note: Note, fault: str | None) -> None:
        ask, slowly = self._commands(note)
        if fault is None:
            note.got(door.query(ask))
            return
        with door.exclusive() as sequence:
            sequence.write_all(slowly + b"\r\n")
            if fault == "raises":
                raise DeliberateError
            note.fault = "left"

    # --- the world -----------------------------------------------------------------------------------------------

    async def _disturb(self) -> None:
        """Pull the cable out and freeze the instrument, each once in so many exchanges; a bus is only frozen."""
        timeout = self._port.config.timeout
        for turn in itertools.count(1):
            while len(self._book.notes) < turn * self._every // 2:  # noqa: ASYNC110 - a list has no event
                await trio.sleep(0.002)
            if turn % 2 and not self._stations:
                with self._book.outage():
                    await self._lab.unplug_stage()
                    await trio.sleep(0.01 * (turn % 5))
                    await self._lab.replug_stage()
            else:
                with self._book.outage():
                    self._lab.freeze()
                    await trio.sleep(1.2 * timeout)
                    self._lab.thaw()

    # --- one line, or several stations on it -----------------------------------------------------------------------

    def _acquire(self, note: Note) -> PortAcquisition:
        return self._port.acquire(note.owner, station=self._station(note))

    def _commands(self, note: Note) -> tuple[bytes, bytes]:
        """Return a query that is answered at once, and one that is answered after a while."""
        station = self._station(note)
        address = "" if station is None else f"{station} "
        return f"{address}POS? {note.nonce}".encode(), f"{address}SLOW? {note.nonce} {SLOWLY}".encode()

    def _station(self, note: Note) -> str | None:
        return self._stations[int(note.nonce[1:]) % len(self._stations)] if self._stations else None
