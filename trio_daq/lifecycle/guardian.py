"""A small process that makes the lines of a lab safe when the lab itself cannot any more. POSIX only.

It holds the settings of the lines that have a safe state, plain data, and listens to a pipe: heartbeats from the event
loop of the lab, and a mark when the lab has made its lines safe by itself. It imports nothing of the user's. Whoever
ends without that mark is followed up; whoever is silent is ended first, so that nobody uses the lines meanwhile.

It is no interlock: it dies with the computer, and cannot reach an instrument whose cable is out.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import attrs
import trio

from trio_daq.config import DualConfig
from trio_daq.lifecycle.report import SafeStateReport
from trio_daq.lifecycle.safe_state import make_safe_from_cold
from trio_daq.serialport import SerialPortConfig
from trio_daq.visa import VisaSessionConfig

_BEAT, _CLEAN = b".", b"!"

_BEATS_IN_TIME = 5
"""Heartbeats in the time after which silence counts."""

_TRIES = 3
"""How often a line is tried: the system may need a moment to let go of what a killed process had open."""

_PAUSE = 0.2
"""Seconds between two tries."""

_LOOK_EVERY = 0.5
"""Seconds between looks whether the lab lives: a child that it forked may hold its end of the pipe open."""


_NATIVE_NOWHERE = "TCPIP::255.255.255.255::9::SOCKET"
"""A connection to all hosts is refused by the system itself."""

_SERIAL_NOWHERE = f"ASRL{os.devnull}::INSTR"


class Guardian:
    """The lab's side: it starts the process, tells it that all is well, and at the end that it is not needed.

    Args:
        config: What the lab consists of.
    """

    def __init__(self, config: DualConfig) -> None:
        self._after = config.application.guard_after
        # Nothing of what is left out is needed to make a line safe, and some of it may be the user's own.
        serial = {
            name: attrs.evolve(line, sync_query=None, stations={}, identify=None, on_reconnect=())
            for name, line in config.serial.items()
            if line.safe_state
        }
        visa = {
            name: attrs.evolve(
                line, dialect="scpi", sync_query=None, identify=None, on_reconnect=(), bus=None, max_open=None
            )
            for name, line in config.visa.items()
            if line.safe_state
        }
        self._process: subprocess.Popen[bytes] | None = None
        if self._after and (serial or visa):
            self._data = pickle.dumps((os.getpid(), self._after, serial, visa))
            self._start()

    async def beat(self) -> None:
        """Tell it again and again that the event loop runs. As long as the program does."""
        while self._process is not None:
            self._say(_BEAT)
            await trio.sleep(self._after / _BEATS_IN_TIME)

    def dismiss(self) -> None:
        """Tell it that all lines are safe, so that it ends."""
        self._say(_CLEAN)

    def _start(self) -> None:
        root = str(Path(__file__).resolve().parents[2])
        paths = [path for path in (os.environ.get("PYTHONPATH"), root) if path]
        # A session of its own: neither Ctrl-C nor a closed terminal reaches it.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", "from trio_daq.lifecycle.guardian import watch; watch()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        assert self._process.stdin is not None
        self._process.stdin.write(len(self._data).to_bytes(8, "big") + self._data)
        self._process.stdin.flush()
        os.set_blocking(self._process.stdin.fileno(), False)

    def _say(self, word: bytes) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):  # it is gone, or so far behind that it knows
                os.write(self._process.stdin.fileno(), word)


# --- in the guardian's own process --------------------------------------------------------------------------------


def watch() -> None:
    """Be the guardian of whoever is at the other end of stdin, and exit."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    size = int.from_bytes(_read_exactly(8), "big")
    pid, after, serial, visa = pickle.loads(_read_exactly(size))  # noqa: S301 - from the process that started this one
    rehearse(serial, visa)
    reason = _wait_for_trouble(pid, after)
    if not reason:
        os._exit(0)
    _tell(f"the lab (pid {pid}) {reason}; its lines are made safe")
    reports: tuple[SafeStateReport, ...] = ()
    for _ in range(_TRIES):
        reports = trio.run(make_safe_from_cold, serial, visa)
        if not any(report.result.outcome == "failed" for report in reports):
            break
        time.sleep(_PAUSE)
    for report in reports:
        _tell(str(report))
    os._exit(0)


def rehearse(serial: Mapping[str, SerialPortConfig], visa: Mapping[str, VisaSessionConfig]) -> None:
    """Make lines safe where there are none, so that all is imported by the time when every millisecond counts."""
    ports = {name: attrs.evolve(port, path=os.devnull) for name, port in serial.items() if "://" not in port.path}
    sessions = {
        name: attrs.evolve(session, resource=_NATIVE_NOWHERE if session.is_native else _SERIAL_NOWHERE)
        for name, session in visa.items()
        if session.backend == "@py"
    }
    logging.disable(logging.CRITICAL)  # it fails, of course
    try:
        trio.run(make_safe_from_cold, ports, sessions)
    finally:
        logging.disable(logging.NOTSET)


def _wait_for_trouble(pid: int, after: float) -> str:
    """Wait until the lab has ended, and return why that is trouble, empty if it is not; end it if it is silent."""
    heard = time.monotonic()
    while True:
        left = heard + after - time.monotonic()
        ready = select.select([0], [], [], max(0.0, min(left, _LOOK_EVERY)))[0]
        if ready:
            said = os.read(0, 4096)
            if _CLEAN in said:
                return ""
            if not said:
                return "has ended without making its lines safe"
            heard = time.monotonic()
        elif os.getppid() != pid:
            return "has ended without making its lines safe"
        elif left <= 0:
            os.kill(pid, signal.SIGKILL)
            while os.getppid() == pid:  # it may be in the middle of a system call
                time.sleep(0.001)
            return f"was silent for {after:g} s and has been ended"


def _read_exactly(count: int) -> bytes:
    data = b""
    while len(data) < count:
        if not (more := os.read(0, count - len(data))):
            os._exit(0)  # it ended before it had opened anything
        data += more
    return data


def _tell(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
        sys.stderr.write(f"trio-daq guardian: {text}\n")
        sys.stderr.flush()
