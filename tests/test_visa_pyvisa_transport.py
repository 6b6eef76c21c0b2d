"""Calls into VISA libraries that never come back: they cost their caller only the deadline, and others nothing."""

import ctypes
import os
import threading
import time
from collections.abc import AsyncIterator
from typing import Any, Self

import pytest
import trio

from trio_daq.errors import CommandTimeoutError
from trio_daq.visa import VisaSessionConfig, VisaSessionManager

THREADS = "visa TCPIP"
"""How the names of the worker threads begin."""


class Meter:
    """An instrument on loopback TCP: ``ECHO? X`` gives X; the first connection is not read if it is told to be deaf."""

    def __init__(self) -> None:
        self.resource = ""
        self.deaf = False
        self.hear = trio.Event()

    async def serve(self, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, self._client, 0)
            self.resource = f"TCPIP::127.0.0.1::{listeners[0].socket.getsockname()[1]}::SOCKET"
            task_status.started()

    async def _client(self, stream: trio.SocketStream) -> None:
        if self.deaf:
            self.deaf = False
            await self.hear.wait()
            return
        data = b""
        async for chunk in stream:
            data += chunk
            while b"\n" in data:
                line, _, data = data.partition(b"\n")
                if line.startswith(b"ECHO? "):
                    await stream.send_all(line[6:] + b"\n")


@pytest.fixture
async def meter(nursery: trio.Nursery) -> AsyncIterator[Meter]:
    """An instrument that serves for the length of the test."""
    instrument = Meter()
    await nursery.start(instrument.serve)
    yield instrument
    instrument.hear.set()


def worker_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(THREADS)]


async def wait_for_threads(number: int) -> None:
    with trio.fail_after(5):
        while len(worker_threads()) != number:  # noqa: ASYNC110 - a thread has no event
            await trio.sleep(0.01)


async def test_write_that_hangs_frees_its_caller(meter: Meter) -> None:
    """pyvisa-py waits for ever for an instrument that does not read; we wait until the deadline, then reconnect."""
    meter.deaf = True
    async with VisaSessionManager(meter.resource, timeout=5) as stuck, VisaSessionManager(meter.resource) as other:
        began = time.monotonic()
        with pytest.raises(CommandTimeoutError) as caught:
            await stuck.write("x" * 20_000_000, timeout=0.2)
        assert time.monotonic() - began < 0.8
        assert (caught.value.phase, caught.value.sent) == ("in_flight", "unknown")
        assert await other.query("ECHO? 1", timeout=0.5) == "1"
        assert await stuck.query("ECHO? 2", timeout=5) == "2"
        assert stuck.statistics().resyncs == 1
        assert len(worker_threads()) == 3
        meter.hear.set()  # the connection ends, which wakes the thread that was given up
        await wait_for_threads(2)
    await wait_for_threads(0)


class hanging_backend:
    """Register the backend ``@hang``, pyvisa-py whose first read hangs in C, for the length of a ``with`` block."""

    def __enter__(self) -> Self:
        import pyvisa.highlevel
        from pyvisa_py import highlevel

        self.reader, self.writer = os.pipe()
        self.woken = threading.Event()
        library, hung = ctypes.CDLL(None), []

        class HangingLibrary(highlevel.PyVisaLibrary):  # type: ignore[misc, unused-ignore]
            def read(inner, session: int, count: int) -> Any:
                if not hung:
                    hung.append(session)
                    library.read(self.reader, ctypes.create_string_buffer(1), 1)
                    self.woken.set()
                return super().read(session, count)

        pyvisa.highlevel._WRAPPERS["hang"] = HangingLibrary
        return self

    def wake(self) -> None:
        os.write(self.writer, b"x")

    def __exit__(self, *_: object) -> None:
        import pyvisa.highlevel

        del pyvisa.highlevel._WRAPPERS["hang"]
        os.close(self.reader)
        os.close(self.writer)


async def test_call_that_hangs_in_the_library_costs_nobody_else(meter: Meter) -> None:
    """The caller is free at its deadline, another session serves meanwhile, and a new thread takes over."""
    with hanging_backend() as backend:
        config = VisaSessionConfig(resource=meter.resource, backend="@hang", timeout=5)
        async with VisaSessionManager(config) as stuck, VisaSessionManager(meter.resource) as other:
            began = time.monotonic()
            with pytest.raises(CommandTimeoutError) as caught:
                await stuck.query("ECHO? 1", timeout=0.1)
            assert time.monotonic() - began < 0.6
            assert (caught.value.phase, caught.value.sent) == ("in_flight", "yes")
            for number in range(5):
                assert await other.query(f"ECHO? {number}", timeout=0.5) == str(number)
            assert await stuck.query("ECHO? 2", timeout=5) == "2"
            assert not backend.woken.is_set()
            backend.wake()
            await wait_for_threads(2)


async def test_closing_while_a_call_hangs_is_bounded(meter: Meter) -> None:
    """A session whose library hangs is closed in bounded time; its thread ends when it wakes up."""
    with hanging_backend() as backend:
        config = VisaSessionConfig(resource=meter.resource, backend="@hang", timeout=5)
        session = VisaSessionManager(config)
        async with trio.open_nursery() as nursery, session:
            nursery.start_soon(_expect_closed, session)
            await trio.sleep(0.1)
            began = time.monotonic()
            await session.close(timeout=0.1)
            assert time.monotonic() - began < 2.6  # 2 s are for the connection
        assert len(worker_threads()) == 1
        backend.wake()
        await wait_for_threads(0)


async def _expect_closed(session: VisaSessionManager) -> None:
    from trio_daq.errors import SessionClosedError

    with pytest.raises(SessionClosedError):
        await session.query("ECHO? 1")
