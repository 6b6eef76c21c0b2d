"""Resource managers: one for each backend, ours alone, closed when the last transport has left."""

import atexit
import threading
from typing import Any

import pytest
import pyvisa

from trio_daq.visa.resource_managers import SharedManager, shared_manager


def is_open(manager: Any) -> bool:
    try:
        return manager.session is not None
    except pyvisa.errors.InvalidSession:
        return False


def test_manager_is_shared_and_counted() -> None:
    """All get the same manager, and it closes when the last one gives it back; the next one gets a new one."""
    shared = SharedManager("@py")
    first, second = shared.take(), shared.take()
    assert first is second
    shared.give_back()
    assert is_open(first)
    shared.give_back()
    assert not is_open(first)
    third = shared.take()
    assert is_open(third)
    shared.give_back()


def test_backends_have_managers_of_their_own() -> None:
    """One name is one manager, whoever asks."""
    assert shared_manager("@py") is shared_manager("@py")
    assert shared_manager("@py") is not shared_manager("@sim")


@pytest.mark.parametrize("theirs_first", [True, False])
def test_manager_of_the_users_program_is_left_alone(theirs_first: bool) -> None:
    """Whoever was first, closing ours closes nothing of theirs, and closing theirs nothing of ours."""
    shared = SharedManager("@py")
    if theirs_first:
        theirs, ours = pyvisa.ResourceManager("@py"), shared.take()
    else:
        ours, theirs = shared.take(), pyvisa.ResourceManager("@py")
    assert ours is not theirs
    shared.give_back()
    assert is_open(theirs)
    ours = shared.take()
    theirs.close()
    assert is_open(ours)
    shared.give_back()


def test_exit_of_the_process_does_not_close_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyVISA's handler, which would wait at exit for a session that hangs, is not registered any more."""
    registered: list[Any] = []
    monkeypatch.setattr(atexit, "register", registered.append)
    monkeypatch.setattr(atexit, "unregister", registered.remove)
    shared = SharedManager("@py")
    shared.take()
    assert registered == []
    monkeypatch.undo()
    shared.give_back()


def test_unknown_backend_is_told_and_not_counted() -> None:
    """A backend that does not load is an error each time."""
    shared = SharedManager("@nowhere")
    for _ in range(2):
        with pytest.raises(ValueError, match="nowhere"):
            shared.take()


def test_manager_that_hangs_while_closing_is_not_handed_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one thread hangs in closing a manager, another gets a new one at once."""
    shared = SharedManager("@py")
    old = shared.take()
    closing, go_on = threading.Event(), threading.Event()

    def hang(session: int) -> None:
        closing.set()
        go_on.wait(5)

    monkeypatch.setattr(old.visalib, "close", hang)
    thread = threading.Thread(target=shared.give_back)
    thread.start()
    assert closing.wait(5)
    new = shared.take()
    assert new is not old
    assert new.visalib is not old.visalib
    shared.give_back()
    go_on.set()
    thread.join(5)


def test_threads_may_take_and_give_back_at_once() -> None:
    """However many threads come and go, nobody gets a closed manager, and none is left open."""
    shared = SharedManager("@py")
    seen: list[Any] = []
    failures: list[Exception] = []

    def come_and_go() -> None:
        try:
            for _ in range(20):
                manager = shared.take()
                seen.append(manager)
                assert is_open(manager)
                shared.give_back()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=come_and_go) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not failures
    assert len(seen) == 160
    assert not any(is_open(manager) for manager in seen)
