"""Make a connection trustworthy after an unfinished exchange: what may still come must go to nobody.

What helps depends on what carries the messages, as measured: where they bear numbers (HiSLIP, IVI-6.1; VXI-11; USBTMC)
or the bus has a device clear (GPIB, IEEE 488.1), that clear does. A raw TCP connection has none, but a new one brings
no old reply. A serial line brings old replies also after it was opened anew, so there one has to ask a question whose
answer is known and read up to it, or to wait for silence.
"""

from __future__ import annotations

from typing import Literal

import trio

from trio_daq.visa.own_talk import OURSELVES
from trio_daq.visa.settings import VisaSessionConfig
from trio_daq.visa.transport import Request, Transport, UnaskedInputError
from trio_daq.wire import SyncSequence, Trace


def resyncs_by(resource: str) -> Literal["clearing", "reopening", "asking"]:
    """Return what helps with *resource*, a canonical VISA resource name."""
    name = resource.upper()
    if name.endswith("::SOCKET"):
        return "reopening"
    return "asking" if name.startswith("ASRL") else "clearing"


def is_cleared_at_opening(resource: str) -> bool:
    """Return whether the instrument keeps a reply for whoever opens it next: on links that are no connections."""
    return resource.upper().startswith(("GPIB", "USB"))


class Resync:
    """The means for one resource; it remembers which question comes next, over all connections."""

    def __init__(self, resource: str, config: VisaSessionConfig, trace: Trace) -> None:
        self._config = config
        self._kind = resyncs_by(resource)
        self._trace = trace
        self._sequence = None if config.sync_query is None else SyncSequence(config.sync_query)

    async def without_reopening(self, transport: Transport) -> bool:
        """Make *transport* trustworthy; return False, having done nothing, where a new connection is the way.

        Raises:
            TransportError: If it did not become so within `resync_timeout`.
        """
        if self._kind == "clearing":
            await transport.clear(self._config.resync_timeout)
            return True
        if self._kind == "reopening" and self._config.reopen:
            return False
        await self.by_asking(transport)
        return True

    async def by_asking(self, transport: Transport) -> None:
        """Ask the sync query and read up to its answer; without one, wait for silence. Raises as the above."""
        budget = self._config.resync_timeout
        if self._sequence is None:
            quiet = self._config.timeout if self._config.quiet_time is None else self._config.quiet_time
            self._drop(await transport.drain(quiet, quiet + budget))
            return
        deadline = trio.current_time() + budget
        for _ in range(self._sequence.needed):
            await self._ask(transport, self._sequence, deadline)

    async def _ask(self, transport: Transport, sequence: SyncSequence, deadline: float) -> None:
        question = sequence.ask()
        data = question.query + self._config.write_termination.encode("ascii")
        request = Request(data, "message")
        while True:
            self._drop(await transport.drain(0, max(0.001, deadline - trio.current_time())))
            try:
                reply = (await transport.exchange([request], deadline))[0]
                break
            except UnaskedInputError as error:  # it came since the look before
                self._drop(error.data)
        self._trace.note(OURSELVES, "write", data)
        while not question.is_answered_by(reply):
            self._drop(reply)
            reply = (await transport.exchange([Request(b"", "message")], deadline))[0]
        self._trace.note(OURSELVES, "read", reply)

    def _drop(self, data: bytes) -> None:
        if data:
            self._trace.note(OURSELVES, "drop", data)
