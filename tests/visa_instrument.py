"""An instrument on loopback TCP, a task of the test, for the tests of VISA sessions.

It keeps a diary of what it was asked, when, and over which connection: the truth about what was carried out. Each
connection is served on its own and strictly in order.
"""

from collections import deque
from collections.abc import Callable
from typing import Literal

import attrs
import trio


@attrs.define
class Taken:
    """One command in the diary: when it was taken up, and when it was done with."""

    command: str
    connection: int
    at: float
    until: float = 0.0


class Census:
    """How many connections are open at once, over all instruments that it was given to."""

    def __init__(self) -> None:
        self.open = self.most = self.total = 0

    def __enter__(self) -> None:
        self.open += 1
        self.total += 1
        self.most = max(self.most, self.open)

    def __exit__(self, *_: object) -> None:
        self.open -= 1


class Instrument:
    """What it answers.

    ``ECHO? X`` and ``ECHO X``: X. ``WAIT? SECONDS X``: X after a while. ``COUNT? SECONDS``: after a while, how often it
    was asked that. ``SAY X``: X, although it is no query. ``PIECES? COUNT SECONDS X``: COUNT bytes of X, and the rest
    after a while; with `unended`, without a termination. ``TWICE? X``: X, two times in one go. ``MUTE?``: nothing.
    ``DROP?``: the end of the connection. ``LAST? X``: X, and the end of the connection. ``print(X)``: X. ``FLOOD``:
    lines without an end. ``*OPC`` and ``*ESR?``: as in IEEE 488.2, an operation takes `busy_for`. ``BOGUS``: an error
    for the queue that ``SYST:ERR?`` reads. `answers` has what else it answers; the rest it takes in silence.
    """

    def __init__(self, census: Census | None = None) -> None:
        self.port = 0
        self.transport: Literal["native", "pyvisa"] = "native"
        self.census = Census() if census is None else census
        self.diary: list[Taken] = []
        self.answers = {"*IDN?": "ACME,METER,1,2.0", "*ESE?": "0", "*OPC?": "1", "READ?": "+1.5E+00"}
        self.greeting = ""
        self.delay = 0.0
        self.busy_for = 0.0
        self.farewell = 0.0
        self.unended = False
        self.errors: deque[str] = deque()
        self._counted = 0
        self._complete_at = float("inf")
        self._scope = trio.CancelScope()

    @property
    def resource(self) -> str:
        return f"TCPIP::127.0.0.1::{self.port}::SOCKET"

    @property
    def commands(self) -> list[str]:
        """What was taken up, in order."""
        return [taken.command for taken in self.diary]

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self._scope = trio.CancelScope()
        with self._scope:
            async with trio.open_nursery() as nursery:
                listeners = await nursery.start(trio.serve_tcp, self._serve_client, self.port)
                self.port = listeners[0].socket.getsockname()[1]
                task_status.started()

    def unplug(self) -> None:
        """Go away, connections and all; `serve` comes back at the same port."""
        self._scope.cancel()

    async def _serve_client(self, stream: trio.SocketStream) -> None:
        with self.census:
            connection, data = self.census.total, b""
            try:
                if self.greeting:
                    await stream.send_all(self.greeting.encode() + b"\n")
                async for chunk in stream:
                    data += chunk
                    while b"\n" in data:
                        command, _, data = data.partition(b"\n")
                        taken = Taken(command.decode(), connection, trio.current_time())
                        self.diary.append(taken)
                        if taken.command == "DROP?":
                            return
                        if taken.command == "FLOOD":
                            while True:
                                await stream.send_all(b"noise\n" * 1000)
                        if taken.command.startswith("PIECES?"):
                            _, count, seconds, text = taken.command.split(" ", 3)
                            data = text.encode("latin-1") + (b"" if self.unended else b"\n")
                            await stream.send_all(data[: int(count)])
                            await trio.sleep(float(seconds))
                            await stream.send_all(data[int(count) :])
                            continue
                        reply = await self._answer(taken.command)
                        taken.until = trio.current_time()
                        if reply is not None:
                            await stream.send_all(reply.encode("latin-1") + b"\n")
                        if taken.command.startswith("LAST?"):
                            return
                await trio.sleep(self.farewell)
            except trio.BrokenResourceError:
                return

    async def _answer(self, command: str) -> str | None:
        await trio.sleep(self.delay)
        verb, _, text = command.partition(" ")
        match verb:
            case "ECHO?" | "ECHO" | "SAY" | "LAST?":
                return text
            case "WAIT?":
                seconds, _, text = text.partition(" ")
                await trio.sleep(float(seconds))
                return text
            case "COUNT?":
                self._counted += 1
                reply = f"count {self._counted}"
                await trio.sleep(float(text))
                return reply
            case "TWICE?":
                return f"{text}\n{text}"
            case "*OPC":
                self._complete_at = trio.current_time() + self.busy_for
            case "*ESR?":
                if trio.current_time() < self._complete_at:
                    return "0"
                self._complete_at = float("inf")
                return "1"
            case "SYST:ERR?":
                return self.errors.popleft() if self.errors else '0,"No error"'
            case "BOGUS" | "BOGUS?":
                self.errors.append('-113,"Undefined header"')
            case _ if command.startswith("print("):
                return command[6:-1]
        return self.answers.get(command)


async def wait_until(condition: Callable[[], object], within: float = 5.0) -> None:
    with trio.fail_after(within):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await trio.sleep(0.002)
