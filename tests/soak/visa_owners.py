"""Owners that share one meter through `VisaSessionManager`, by every verb it has, some of whom misbehave.

Tasks ask the session; threads ask its blocking door. Faults of the instrument are its own business, and those of the
world are `VisaWorld`'s. What owners do wrong: they are cancelled, queued or in flight; they ask behind a slow query
with a deadline that passes in the queue; they write megabytes to a meter that does not read.
"""

from __future__ import annotations

import time

import trio
from due_faults import DueFaults
from notes import Note, Notebook
from visa_world import VisaWorld

from trio_daq.legacy import DoorHost, VisaDoor
from trio_daq.visa import Transaction, VisaSessionManager

OWNER_FAULTS = ("cancelled", "queue_deadline")
SOON = 0.01
"""Seconds after which an exchange that is to be spoilt is cut."""
SLOWLY = 0.03
"""Seconds that the meter takes for a slow query, behind which others wait."""
ABOUT_A_REPLY = 0.0005
"""Seconds after which a reply is about to come."""
PATIENCE = 3
"""Times the timeout: patient owners wait as long for what others spoilt."""
TRANSACTION_WAIT = 60.0
"""Seconds; who takes a transaction waits for it as long as it takes, and then only as long as the meter may."""
TOO_MUCH = 4_000_000
"""Bytes, more than the buffers of both ends take."""


Way = VisaSessionManager | Transaction
"""Both have the same verbs."""


class VisaCrowd:
    """All who use the session in one run.

    Args:
        session: The session they share, open.
        book: Where they write down what they got.
        every: Each fault of an owner comes once in so many exchanges.
        world: What happens to the meter meanwhile.
    """

    def __init__(self, session: VisaSessionManager, book: Notebook, every: int, world: VisaWorld) -> None:
        self._session = session
        self._book = book
        self._timeout = session.config.timeout
        self._due = DueFaults(every, OWNER_FAULTS)
        self._world = world
        self._verbs = (
            *(self._query, self._write, self._query_block, self._query, self._batch, self._query),
            *(self._enqueue, self._query_block, self._query, self._submit, self._query),
        )

    async def run(self, tasks: int, threads: int) -> None:
        """Make all exchanges that the book wants, with so many owners of either kind."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._world.disturb, self._write_unread)
            async with trio.open_nursery() as owners:
                for number in range(tasks):
                    owners.start_soon(self._work, f"task{number}")
                for number in range(threads):
                    host = DoorHost(f"thread{number}")
                    await nursery.start(host.serve)
                    owners.start_soon(trio.to_thread.run_sync, self._work_in_thread, host)
            nursery.cancel_scope.cancel()

    # --- tasks ---------------------------------------------------------------------------------------------------

    async def _work(self, owner: str) -> None:
        for note in self._book.exchanges(owner):
            fault = self._due.next()
            match fault:
                case None:
                    await self._exchange(note)
                case "cancelled":
                    await self._be_cancelled(note)
                case "queue_deadline":
                    await self._expire_in_queue(note)
            if fault is not None and note.fault is None:
                self._due.put_back(fault)
            await trio.lowlevel.checkpoint()

    async def _exchange(self, note: Note) -> None:
        """Ask the session itself, one in three times, or wait for a transaction for long and ask that."""
        verb = self._verbs[_number(note) % len(self._verbs)]
        if _number(note) % 3 == 0:
            note.timeout = self._timeout * (PATIENCE if _number(note) % 4 else 1)
            await verb(note, self._session)
            return
        with note.watch():
            async with self._session.transaction(owner=note.owner, timeout=TRANSACTION_WAIT) as transaction:
                note.timeout = self._timeout
                note.asked = time.monotonic_ns()
                await verb(note, transaction)

    async def _query(self, note: Note, way: Way) -> None:
        with note.watch():
            note.reply = await way.query(_measure(note), timeout=note.timeout, owner=note.owner)

    async def _enqueue(self, note: Note, way: Way) -> None:
        with note.watch():
            note.reply = await way.enqueue_command(_measure(note), timeout=note.timeout, owner=note.owner)

    async def _write(self, note: Note, way: Way) -> None:
        note.verb = "write"
        with note.watch():
            await way.write(_configure(note), timeout=note.timeout, owner=note.owner)
            note.reply = ""

    async def _query_block(self, note: Note, way: Way) -> None:
        note.verb = "query_block"
        command = f"CURV? {note.nonce},{20 + 37 * _number(note) % 5000}"
        with note.watch():
            note.got(await way.query_block(command, timeout=note.timeout, owner=note.owner))

    async def _submit(self, note: Note, way: Way) -> None:
        note.verb = "submit"
        with note.watch():
            note.reply = await way.submit(_measure(note), timeout=note.timeout, owner=note.owner).wait()

    async def _batch(self, note: Note, way: Way) -> None:
        """Ask, write and ask in one go."""
        rest = [self._book.new(note.owner) for _ in range(2)]
        notes = (note, *rest)
        for each in notes:
            each.verb, each.timeout, each.group = "batch", note.timeout, note.nonce
        commands = [_measure(note), _configure(rest[0]), _measure(rest[1])]
        with note.watch():
            replies = await way.batch(commands, timeout=note.timeout, owner=note.owner)
            for each, reply in zip(notes, replies, strict=True):
                each.reply = reply
        for each in rest:
            each.ended, each.error, each.sent = note.ended, note.error, note.sent

    # --- what they do wrong --------------------------------------------------------------------------------------

    async def _be_cancelled(self, note: Note) -> None:
        """Be cancelled in flight, while queued, or about when the reply comes."""
        match _number(note) % 3:
            case 0:
                await self._ask_until(note, f"SLOW? {note.nonce},{SLOWLY}", SOON)
            case 1:
                await self._ask_until(note, _measure(note), ABOUT_A_REPLY)
            case _:
                async with trio.open_nursery() as nursery:
                    before, submitted = self._be_slow(note.owner, nursery), time.monotonic()
                    await self._ask_until(note, _measure(note), SOON)
                    left = time.monotonic() - submitted
                if left < SLOWLY and before.reply is not None and before.nonce in before.reply:
                    note.sent = "no"  # when its owner left, the meter was still at the one before

    async def _ask_until(self, note: Note, command: str, seconds: float) -> None:
        with trio.move_on_after(seconds) as scope, note.watch():
            note.reply = await self._session.query(command, timeout=PATIENCE * self._timeout, owner=note.owner)
        if scope.cancelled_caught:
            note.fault = "cancelled"

    async def _expire_in_queue(self, note: Note) -> None:
        async with trio.open_nursery() as nursery:
            self._be_slow(note.owner, nursery)
            note.timeout = SOON
            with note.watch():
                note.reply = await self._session.query(_measure(note), timeout=SOON, owner=note.owner)
            if note.sent == "no":
                note.fault = "queue_deadline"

    def _be_slow(self, owner: str, nursery: trio.Nursery) -> Note:
        """Queue a slow query, whose reply is waited for in *nursery*."""
        note = self._book.new(owner)
        note.verb, note.timeout = "submit", PATIENCE * self._timeout
        pending = self._session.submit(f"SLOW? {note.nonce},{SLOWLY}", timeout=note.timeout, owner=owner)

        async def wait() -> None:
            with note.watch():
                note.reply = await pending.wait()

        nursery.start_soon(wait)
        return note

    async def _write_unread(self) -> None:
        """Write more than the buffers take; in turn with a deadline that passes meanwhile, and with a longer one."""
        note = self._book.new("writer")
        note.verb = "write"
        note.timeout = (2 * PATIENCE if len(self._book.notes) % 2 else 1) * self._timeout
        command = _configure(note) + " " * TOO_MUCH
        with note.watch():
            await self._session.write(command, timeout=note.timeout, owner=note.owner, priority="urgent")
            note.reply = ""
        if note.ended - note.asked > 1e9 * self._timeout / 3:
            note.fault = "unread"

    # --- threads -------------------------------------------------------------------------------------------------

    def _work_in_thread(self, host: DoorHost) -> None:
        door = VisaDoor(host, self._session)
        for note in self._book.exchanges(host.owner):
            note.timeout = PATIENCE * self._timeout
            with note.watch():
                if _number(note) % 4:
                    note.reply = door.query(_measure(note), timeout=note.timeout)
                else:
                    note.verb = "write"
                    door.write(_configure(note), timeout=note.timeout)
                    note.reply = ""


def _number(note: Note) -> int:
    return int(note.nonce[1:])


def _measure(note: Note) -> str:
    return f"MEAS:VOLT? {note.nonce}"


def _configure(note: Note) -> str:
    return f"CONF:VOLT:DC {note.nonce}"
