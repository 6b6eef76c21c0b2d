"""What people do without this library: one pyserial port and one lock, with the input flushed before a command or not.

It has the same owners and the same notes, so that the same verdict says what it is worth.
"""

from __future__ import annotations

import threading

import serial
from notes import Note, Notebook


class LockedSerial:
    """A serial port behind a lock.

    Args:
        path: The port.
        timeout: Seconds for a reply.
        flush: Throw away what has come, before each command.
    """

    def __init__(self, path: str, timeout: float, *, flush: bool) -> None:
        self._port = serial.Serial(path, timeout=timeout)
        self._lock = threading.Lock()
        self._flush = flush

    def query(self, command: bytes) -> bytes:
        """Write *command* and return the line that comes.

        Raises:
            TimeoutError: If none came whole.
        """
        with self._lock:
            if self._flush:
                self._port.reset_input_buffer()
            self._port.write(command + b"\r\n")
            line = self._port.read_until(b"\r\n")
        if not line.endswith(b"\r\n"):
            raise TimeoutError
        return line[:-2]

    def close(self) -> None:
        """Close it."""
        self._port.close()


def run_peer(path: str, book: Notebook, *, timeout: float, flush: bool, owners: int = 8, stations: int = 0) -> None:
    """Make all exchanges that *book* wants, by threads; with *stations*, to each station of a bus in turn."""
    port = LockedSerial(path, timeout, flush=flush)

    def work(owner: str) -> None:
        for note in book.exchanges(owner):
            try:
                note.got(port.query(_command(note, stations)))
            except TimeoutError as error:
                note.error = type(error).__name__

    threads = [threading.Thread(target=work, args=(f"thread{number}",)) for number in range(owners)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    port.close()


def _command(note: Note, stations: int) -> bytes:
    command = b"POS? " + note.nonce.encode("ascii")
    return b"%d %s" % (1 + int(note.nonce[1:]) % stations, command) if stations else command
