"""Hand out one PyVISA ResourceManager for each backend, and close it when the last one has given it back.

PyVISA keeps one manager for each class of library and path, gives it to everybody who asks, and closes all sessions of
all of them when one closes it, or at exit, where one hung session then holds up the process for ever. So ours belongs
to a library class of its own: what the user's program does with its manager cannot reach our sessions, nor can we
reach its own. A session that hangs keeps its manager, which then is never closed.

Invariant: no lock is held while a manager closes. All functions may be called from any thread.
"""

from __future__ import annotations

import atexit
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyvisa import ResourceManager


class SharedManager:
    """The manager of one backend, counted; see `shared_manager`."""

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._manager: ResourceManager | None = None
        self._users = 0

    def take(self) -> ResourceManager:
        """Return the manager, made if there is none; `give_back` must follow."""
        with self._lock:
            if self._manager is None:
                self._manager = _make_manager(self._backend)
            self._users += 1
            return self._manager

    def give_back(self) -> None:
        """Close the manager if nobody else has it. That may block as long as the library likes."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
            manager, self._manager = self._manager, None
        assert manager is not None
        manager.close()


_managers: dict[str, SharedManager] = {}
_looking_up = threading.Lock()


def shared_manager(backend: str) -> SharedManager:
    """Return the one `SharedManager` of *backend*, named as in ``pyvisa.ResourceManager(backend)``."""
    with _looking_up:
        return _managers.setdefault(backend, SharedManager(backend))


def _make_manager(backend: str) -> ResourceManager:
    from pyvisa import ResourceManager
    from pyvisa.highlevel import get_wrapper_class

    path, at, wrapper = backend.rpartition("@")
    library_class = get_wrapper_class(wrapper) if at else get_wrapper_class("ivi")
    # A new class each time, so that a manager that is still closing is not handed out again.
    own_class = type(f"Own{library_class.__name__}", (library_class,), {})
    library = own_class(path if at else backend)
    library.issue_warning_on.clear()  # what PyVISA would warn of here, such as a reply above one chunk, is no news
    manager = ResourceManager(library)
    atexit.unregister(manager._atexit_handler)
    return manager
