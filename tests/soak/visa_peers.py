"""What people do without this library: one PyVISA resource and one lock, threads that go on after an error.

It has the same meter, the same world and the same notes, so that the same verdict says what it is worth. When a
connection is seen to be lost it is opened again; one variant also clears the device after each error, as many do.
"""

from __future__ import annotations

import contextlib
import threading
import time

import pyvisa
from notes import Note, Notebook

CLEAR_TIMEOUT = 1.0
"""Seconds after which a device clear that does not end is cut off, so that the run can go on at all."""
PAUSE = 0.05
"""Seconds before a refused connection is tried again."""


class LockedVisa:
    """A PyVISA resource behind a lock.

    Args:
        resource: Its name.
        book: Where it is noted that a device clear hung.
        timeout: Seconds for each read.
        clear: Clear the device after each error.
    """

    def __init__(self, resource: str, book: Notebook, timeout: float, *, clear: bool) -> None:
        self._name = resource
        self._book = book
        self._timeout = timeout
        self._clear = clear
        self._lock = threading.Lock()
        self._manager = pyvisa.ResourceManager("@py")
        self._resource = self._open()

    def exchange(self, note: Note) -> None:
        """Make one exchange, and note what came of it."""
        number = int(note.nonce[1:])
        with self._lock:
            try:
                if number % 11 == 2:
                    note.verb = "write"
                    self._resource.write(f"CONF:VOLT:DC {note.nonce}")
                    note.reply = ""
                elif number % 11 in (3, 8):
                    note.verb = "query_block"
                    command = f"CURV? {note.nonce},{20 + 37 * number % 5000}"
                    note.got(self._resource.query_binary_values(command, datatype="B", container=bytes))
                else:
                    note.reply = self._resource.query(f"MEAS:VOLT? {note.nonce}")
            except Exception as error:  # pyvisa-py raises whatever happened to it
                note.error = type(error).__name__
                self._recover(error)

    def close(self) -> None:
        """Close it."""
        self._resource.close()

    def _open(self) -> pyvisa.resources.TCPIPSocket:
        resource = self._manager.open_resource(self._name, resource_pyclass=pyvisa.resources.TCPIPSocket)
        resource.timeout = 1000 * self._timeout
        resource.read_termination = resource.write_termination = "\n"
        return resource

    def _recover(self, error: Exception) -> None:
        if isinstance(error, ConnectionRefusedError):
            time.sleep(PAUSE)
        with contextlib.suppress(Exception):  # the next exchange will fail and come here again
            if isinstance(error, ConnectionError) or (self._clear and not self._is_cleared()):
                self._reopen()

    def _reopen(self) -> None:
        self._resource.close()
        self._resource = self._open()

    def _is_cleared(self) -> bool:
        """Clear the device, and return whether that ended: where it was closed, pyvisa-py 0.8.1 clears it for ever."""
        link = self._resource.visalib.sessions[self._resource.session].interface
        watchdog = threading.Timer(CLEAR_TIMEOUT, link.close)
        watchdog.start()
        try:
            self._resource.clear()
        except (OSError, ValueError):
            self._book.seen["clear_hung"] += link.fileno() < 0
            return False
        finally:
            watchdog.cancel()
        return True


def run_visa_peer(resource: str, book: Notebook, *, timeout: float, clear: bool, owners: int = 8) -> None:
    """Make all exchanges that *book* wants, by threads."""
    shared = LockedVisa(resource, book, timeout, clear=clear)

    def work(owner: str) -> None:
        for note in book.exchanges(owner):
            shared.exchange(note)

    threads = [threading.Thread(target=work, args=(f"thread{number}",)) for number in range(owners)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shared.close()
