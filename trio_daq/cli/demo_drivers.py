"""The drivers of the demo: yesterday's blocking code, plain async code, and actors, on the same two instruments.

They are written as a user would write them, but for the notes that they take. An error of the lab ends none of them.
"""

from __future__ import annotations

import attrs
import trio

from trio_daq.actors import Actor, Message, handles
from trio_daq.cli.evidence import Evidence, taking_notes
from trio_daq.drivers import DriverContext
from trio_daq.errors import DaqError
from trio_daq.legacy import SerialDoor, ThreadContext, VisaDoor
from trio_daq.serialport import SharedSerialPort
from trio_daq.visa import VisaSessionManager


def old_scan(
    *, serial: SerialDoor, visa: VisaDoor, context: ThreadContext, evidence: str | None = None, period: float = 0.005
) -> None:
    """Move the stage to and fro and read the meter, in blocking code that knows nothing of Trio.

    Args:
        serial: The stage.
        visa: The meter.
        context: Where to publish, and when to stop.
        evidence: File for notes.
        period: Seconds between two points.
    """
    with taking_notes(context.id, evidence) as notes:
        point = 0
        while not context.wait_stopping(period):
            point += 1
            tag = notes.tag()
            try:
                # Nobody else can come between the move and the question where it is.
                with serial.exclusive() as line:
                    notes.note("stage", tag, "reply", line.query(f"MOVE {point % 50} {tag}".encode()).decode())
                    tag = notes.tag()
                    reply = line.query(f"POS? {tag}".encode()).decode()
                notes.note("stage", tag, "reply", reply)
                context.publish("position", float(reply.split()[-1]), "mm")
                notes.note_published()
            except TimeoutError:
                notes.note("stage", tag, "late")
            except DaqError as error:
                notes.note("stage", tag, "error", str(error))
            tag = notes.tag()
            try:
                reply = visa.query(f"MEAS:VOLT? {tag}")
                notes.note("meter", tag, "reply", reply)
                context.publish("voltage", float(reply.split(",")[-1]), "V")
                notes.note_published()
            except TimeoutError:
                notes.note("meter", tag, "late")
            except DaqError as error:
                notes.note("meter", tag, "error", str(error))


async def logger(
    *,
    serial: SharedSerialPort,
    visa: VisaSessionManager,
    context: DriverContext,
    evidence: str | None = None,
    period: float = 0.005,
) -> None:
    """Read stage and meter again and again, as a plain Trio task. Its arguments are those of `old_scan`."""
    with taking_notes(context.id, evidence) as notes:
        while not await context.wait_stopping(period):
            await _read_stage(serial, context, notes)
            await _read_meter(visa, context, notes)


async def impatient(
    *,
    serial: SharedSerialPort,
    visa: VisaSessionManager,
    context: DriverContext,
    evidence: str | None = None,
    period: float = 0.5,
) -> None:
    """Ask slow questions and leave before the answer comes. Its arguments are those of `old_scan`."""
    with taking_notes(context.id, evidence) as notes:
        while not await context.wait_stopping(period):
            tag = notes.tag()
            try:
                async with serial.acquire() as guard:
                    with trio.move_on_after(0.02) as patience:
                        reply = await guard.query(f"SLOW? {tag} 0.04".encode())
                        notes.note("stage", tag, "reply", reply.decode())
                if patience.cancelled_caught:
                    notes.note("stage", tag, "cancelled")
                tag = notes.tag()
                with trio.move_on_after(0.02) as patience:
                    notes.note("meter", tag, "reply", await visa.query(f"SLOW? {tag},0.04"))
                if patience.cancelled_caught:
                    notes.note("meter", tag, "cancelled")
            except DaqError as error:
                notes.note("stage", tag, "error", str(error))


@attrs.frozen
class Measure(Message[None]):
    """Take one reading."""


class ReadingActor(Actor):
    """Reads the stage or the meter, whichever it is given. Its other arguments are those of `old_scan`."""

    def __init__(
        self,
        *,
        serial: SharedSerialPort | None = None,
        visa: VisaSessionManager | None = None,
        context: DriverContext,
        evidence: str | None = None,
        period: float = 0.005,
    ) -> None:
        self._serial, self._visa = serial, visa
        self._context, self._evidence, self._period = context, evidence, period

    async def on_start(self) -> None:
        """Begin to read."""
        self._notes = taking_notes(self._context.id, self._evidence)
        self._taken = self._notes.__enter__()
        self.every(self._period, Measure())

    async def on_stop(self) -> None:
        """Close the notes."""
        self._notes.__exit__(None, None, None)

    @handles(Measure)
    async def measure(self, _: Measure) -> None:
        """Take one reading."""
        if self._serial is not None:
            await _read_stage(self._serial, self._context, self._taken)
        if self._visa is not None:
            await _read_meter(self._visa, self._context, self._taken)


async def _read_stage(serial: SharedSerialPort, context: DriverContext, notes: Evidence) -> None:
    tag = notes.tag()
    try:
        async with serial.acquire() as guard:
            reply = (await guard.query(f"POS? {tag}".encode())).decode()
        notes.note("stage", tag, "reply", reply)
        await context.publish("position", float(reply.split()[-1]), "mm")
        notes.note_published()
    except TimeoutError:
        notes.note("stage", tag, "late")
    except DaqError as error:
        notes.note("stage", tag, "error", str(error))


async def _read_meter(visa: VisaSessionManager, context: DriverContext, notes: Evidence) -> None:
    tag = notes.tag()
    try:
        reply = await visa.query(f"MEAS:VOLT? {tag}")
        notes.note("meter", tag, "reply", reply)
        await context.publish("voltage", float(reply.split(",")[-1]), "V")
        notes.note_published()
    except TimeoutError:
        notes.note("meter", tag, "late")
    except DaqError as error:
        notes.note("meter", tag, "error", str(error))
