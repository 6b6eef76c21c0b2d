"""Calls into VISA libraries that never come back: they cost their caller only the deadline, and others nothing."""

import json
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pyvisa.highlevel
import trio
from pyvisa.constants import ResourceAttribute, StatusCode

from trio_daq.errors import LineOpenError
from trio_daq.visa import VisaSessionConfig
from trio_daq.visa.pyvisa_transport import PyvisaTransport
from trio_daq.visa.transport import ConnectionLostError, Request, TransportError, TransportTimeoutError

RESOURCE = "GPIB0::{}::INSTR"


class Library(pyvisa.highlevel.VisaLibraryBase):
    """A VISA library whose instruments answer what they were asked; ``trouble`` tells what some calls do instead."""

    trouble: dict[str, Any] = {}  # noqa: RUF012 - one for each test, see the fixture

    @staticmethod
    def get_library_paths() -> tuple[Any, ...]:
        return (pyvisa.util.LibraryPath("fake"),)

    def _init(self) -> None:
        self.waiting: dict[int, bytes] = {}
        self.closed: list[int] = []

    def _do(self, call: str) -> None:
        if (trouble := self.trouble.get(call)) is not None:
            trouble()

    def open_default_resource_manager(self) -> Any:
        return 1, StatusCode.success

    def open(self, *_: Any, **__: Any) -> Any:
        self._do("open")
        session = 2 + len(self.waiting)
        self.waiting[session] = b""
        return session, StatusCode.success

    def write(self, session: int, data: bytes) -> Any:
        self._do("write")
        self.waiting[session] = data
        return len(data), StatusCode.success

    def read(self, session: int, count: int) -> Any:
        self._do("read")
        return self.waiting[session], StatusCode.success

    def clear(self, session: int) -> Any:
        self._do("clear")

    def close(self, session: int) -> Any:
        self._do("close")
        self.closed.append(session)

    def get_attribute(self, session: int, attribute: ResourceAttribute) -> Any:
        return 0, StatusCode.success

    def set_attribute(self, session: int, attribute: ResourceAttribute, state: Any) -> Any:
        return StatusCode.success

    def disable_event(self, *_: Any) -> Any:
        return StatusCode.success

    discard_events = disable_event


@pytest.fixture
def trouble() -> Iterator[dict[str, Any]]:
    """The backend ``@fake``, and what its calls do instead of working."""
    Library.trouble = {}
    pyvisa.highlevel._WRAPPERS["fake"] = Library
    yield Library.trouble
    del pyvisa.highlevel._WRAPPERS["fake"]


@pytest.fixture
async def transport(trouble: dict[str, Any]) -> AsyncIterator[PyvisaTransport]:
    connection = make(1)
    await connection.open(1)
    yield connection
    trouble.clear()
    await connection.aclose(1)


def make(address: int) -> PyvisaTransport:
    return PyvisaTransport(VisaSessionConfig(resource=RESOURCE.format(address), backend="@fake"))


async def ask(transport: PyvisaTransport, data: bytes, timeout: float = 1.0) -> bytes:
    return (await transport.exchange([Request(data, "message")], trio.current_time() + timeout))[0]


class Hang:
    """A call that does not come back until it is told to."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def __call__(self) -> None:
        self.go_on.wait(20)


async def wait_for_no_threads() -> None:
    with trio.fail_after(5):
        while any(thread.name.startswith("visa ") for thread in threading.enumerate()):  # noqa: ASYNC110
            await trio.sleep(0.01)


async def test_hung_call_costs_its_caller_only_the_deadline(transport: PyvisaTransport, trouble: Any) -> None:
    """The caller is free at the deadline and the grace, another session serves meanwhile; the hung one is not used."""
    trouble["read"] = hang = Hang()
    began = time.monotonic()
    with pytest.raises(TransportTimeoutError, match="has not returned"):
        await ask(transport, b"A?\n", timeout=0.2)
    assert 0.6 < time.monotonic() - began < 1.0
    assert (transport.sent, transport.completed) == ("yes", 0)
    del trouble["read"]
    other = make(2)
    await other.open(1)
    for number in range(5):
        assert await ask(other, b"%d?\n" % number) == b"%d?" % number
    with pytest.raises(ConnectionLostError, match="hangs"):
        await ask(transport, b"B?\n")
    with pytest.raises(ConnectionLostError, match="hangs"):
        await transport.clear(1)
    assert await other.aclose(1)
    library = transport._connection._library  # type: ignore[union-attr]
    began = time.monotonic()
    assert not await transport.aclose(0.2)
    assert time.monotonic() - began < 0.4
    assert library.closed == [3]  # neither the hung session nor the manager
    hang.go_on.set()
    await wait_for_no_threads()
    assert library.closed == [3, 2, 1]
    assert await transport.aclose(0.2)


async def test_hung_open_is_closed_when_it_comes_back(trouble: Any) -> None:
    """Opening is given up in time; should it succeed after all, its own thread closes what it opened."""
    trouble["open"] = hang = Hang()
    transport = make(1)
    began = time.monotonic()
    with pytest.raises(LineOpenError, match="has not returned"):
        await transport.open(0.1)
    assert time.monotonic() - began < 1.4
    assert not await transport.aclose(0.1)
    hang.go_on.set()
    await wait_for_no_threads()
    assert await transport.aclose(0.1)


async def test_close_that_hangs_is_bounded(trouble: Any) -> None:
    """A library that does not return from viClose is left to its thread."""
    transport = make(1)
    await transport.open(1)
    trouble["close"] = hang = Hang()
    began = time.monotonic()
    assert not await transport.aclose(0.3)
    assert time.monotonic() - began < 0.5
    hang.go_on.set()
    await wait_for_no_threads()
    assert await transport.aclose(0.3)


def _raiser(error: BaseException) -> Any:
    def trouble() -> None:
        raise error

    return trouble


class RPCError(Exception):
    """Has the name of what pyvisa-py raises over VXI-11."""


VISA_ERROR = pyvisa.errors.VisaIOError


@pytest.mark.parametrize("call", ["write", "read"])
@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (VISA_ERROR(StatusCode.error_timeout), TransportTimeoutError),
        (TimeoutError("timed out"), TransportTimeoutError),
        (VISA_ERROR(StatusCode.error_connection_lost), ConnectionLostError),
        (VISA_ERROR(StatusCode.error_invalid_object), ConnectionLostError),
        (pyvisa.errors.InvalidSession(), ConnectionLostError),
        (ConnectionResetError(104, "reset"), ConnectionLostError),
        (BrokenPipeError(32, "broken"), ConnectionLostError),
        (OSError(9, "bad file descriptor"), ConnectionLostError),
        (TimeoutError(110, "the system gave up"), ConnectionLostError),
        (VISA_ERROR(StatusCode.error_io), TransportError),
        (TypeError("NoneType"), TransportError),
        (NotImplementedError(), TransportError),
        (RPCError("wrong xid"), TransportError),
        (__import__("struct").error("unpack"), TransportError),
        (Exception("bare"), TransportError),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else repr(value)[:40],
)
async def test_every_failure_is_one_of_three(
    transport: PyvisaTransport, trouble: Any, call: str, error: Exception, meaning: type[TransportError]
) -> None:
    """Whatever type a backend chose, it comes out as a timeout, as a loss, or as a failure, with its cause."""
    trouble[call] = _raiser(error)
    with pytest.raises(TransportError) as caught:
        await ask(transport, b"A?\n")
    assert type(caught.value) is meaning
    assert caught.value.__cause__ is error
    assert str(caught.value)
    assert transport.sent == {"write": "unknown", "read": "yes"}[call]


async def test_drain_works_where_only_visa_can_read(transport: PyvisaTransport, trouble: Any) -> None:
    """Without a socket to look at, input is read by VISA until it says that none comes."""
    reads = iter([None, None, VISA_ERROR(StatusCode.error_timeout)])

    def trouble_of_read() -> None:
        if (error := next(reads)) is not None:
            raise error

    await transport.exchange([Request(b"late", "nothing")], trio.current_time() + 1)
    trouble["read"] = trouble_of_read
    assert await transport.drain(0, 1) == b"latelate"
    trouble["read"] = _raiser(VISA_ERROR(StatusCode.error_io))
    with pytest.raises(TransportError):
        await transport.drain(0, 1)


async def test_unsupported_clear_is_told(transport: PyvisaTransport, trouble: Any) -> None:
    """An instrument without device clear is a failure, and so is one that does not answer to it."""
    trouble["clear"] = _raiser(VISA_ERROR(StatusCode.error_nonsupported_operation))
    with pytest.raises(TransportError, match="NSUP_OPER"):
        await transport.clear(1)
    trouble["clear"] = _raiser(TimeoutError("timed out"))
    with pytest.raises(TransportTimeoutError):
        await transport.clear(1)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
async def test_interruption_in_the_thread_is_not_swallowed(
    transport: PyvisaTransport, trouble: Any, interruption: type[BaseException]
) -> None:
    """What is to end the program reaches the caller as it is, not as a failure of the instrument."""
    trouble["read"] = _raiser(interruption())
    with pytest.raises(interruption):
        await ask(transport, b"A?\n")
    del trouble["read"]
    assert await ask(transport, b"B?\n") == b"B?"


PROGRAM = """
import ctypes, json, os, sys, time
import pyvisa.highlevel, trio
sys.path.insert(0, {tests!r})
from test_visa_hung_calls import Library, RESOURCE, ask, make
from trio_daq.visa.transport import TransportTimeoutError

reader, writer = os.pipe()
libc = ctypes.CDLL(None)
pyvisa.highlevel._WRAPPERS["fake"] = Library

def hang():  # in C, where no signal and no exception of Python reaches it
    libc.read(reader, ctypes.create_string_buffer(1), 1)

async def main():
    stuck, other = make(1), make(2)
    await stuck.open(1)
    await other.open(1)
    Library.trouble[{call!r}] = hang
    began = time.monotonic()
    if {call!r} == "read":
        try:
            await ask(stuck, b"A?\\n", timeout=0.3)
        except TransportTimeoutError:
            pass
    else:
        assert not await stuck.aclose(0.5)
    waited = time.monotonic() - began
    del Library.trouble[{call!r}]
    served = [(await ask(other, b"B?\\n")).decode() for _ in range(3)]
    if {close!r}:
        await other.aclose(1)
        await stuck.aclose(0.1)
    print(json.dumps([waited, served]), flush=True)

trio.run(main)
"""


@pytest.mark.parametrize("close", [True, False])
@pytest.mark.parametrize("call", ["read", "close"])
def test_process_ends_though_a_call_hangs(call: str, close: bool) -> None:
    """A program with a call that hangs in C for ever serves others meanwhile, and ends in time, with code 0."""
    program = textwrap.dedent(PROGRAM).format(tests=str(Path(__file__).parent), call=call, close=close)
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            began = time.monotonic()
            _, errors = process.communicate(timeout=10)
            assert time.monotonic() - began < 2, errors
        finally:
            process.kill()
    assert (process.returncode, errors) == (0, "")
    waited, served = json.loads(line)
    assert 0.3 < waited < 1.2
    assert served == ["B?"] * 3
