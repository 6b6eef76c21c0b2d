"""pyserial's face of a shared port, in real threads: each call does what pyserial's own does on the same pty."""

import contextlib
import io
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import serial
import trio
from old_serial_lab import Instruments, in_thread, open_lab, running_instruments
from trio.testing import MockClock

from trio_daq.errors import AcquireTimeoutError, DoorClosedError, ExchangeTimeoutError, LineOpenError, StateError
from trio_daq.legacy import BlockingSerial, DoorHost, SerialDoor
from trio_daq.legacy.serial_calls import SerialCalls
from trio_daq.serialport import SerialPortConfig, SharedSerialPort
from trio_daq.sim import MemoryLine


@pytest.fixture(scope="module")
def instruments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instruments]:
    with running_instruments(tmp_path_factory.mktemp("sim")) as instruments:
        yield instruments


# --- as pyserial does it ---------------------------------------------------------------------------------------------

Port = Any
"""A `serial.Serial` or a `BlockingSerial`."""


def ask(port: Port, *commands: bytes) -> None:
    port.write(b"".join(command + b"\r\n" for command in commands))


def wait_waiting(port: Port, count: int) -> int:
    ends = time.monotonic() + 2
    while port.in_waiting < count and time.monotonic() < ends:
        time.sleep(0.005)
    return int(port.in_waiting)


def case_readline(port: Port) -> Any:
    ask(port, b"POS? a")
    return port.readline()


def case_read_until_crlf(port: Port) -> Any:
    ask(port, b"POS? a")
    return port.read_until(b"\r\n")


def case_read_until_something_else(port: Port) -> Any:
    ask(port, b"POS? a")
    return port.read_until(b"12."), port.read_until(b"\r"), port.read(1)


def case_read_until_size(port: Port) -> Any:
    ask(port, b"POS? a")
    return port.read_until(size=3), port.read_until(b".", 1), port.read_until(size=40)


def case_read_until_too_late(port: Port) -> Any:
    port.timeout = 0.1
    ask(port, b"POS? a", b"SLOW? b 0.4")
    first = port.read_until(b"never")
    time.sleep(0.5)
    return first, port.read_until()


def case_read_size(port: Port) -> Any:
    ask(port, b"POS? a")
    return port.read(4), port.read(), port.read(size=5)


def case_read_more_than_comes(port: Port) -> Any:
    port.timeout = 0.1
    ask(port, b"POS? a")
    return port.read(100)


def case_read_nothing(port: Port) -> Any:
    port.timeout = 0.05
    return port.read(10), port.readline(), port.read_until(), port.read(0), port.readlines()


def case_read_byte_by_byte(port: Port) -> Any:
    ask(port, b"POS? a")
    got = bytearray()
    while not got.endswith(b"\n"):
        got += port.read(1)
    return bytes(got)


def case_read_what_waits(port: Port) -> Any:
    ask(port, b"POS? a")
    return wait_waiting(port, 10), port.read(port.in_waiting), port.in_waiting


def case_read_all(port: Port) -> Any:
    ask(port, b"POS? a", b"POS? b")
    wait_waiting(port, 20)
    return port.read_all()


def case_non_blocking(port: Port) -> Any:
    port.timeout = 0
    ask(port, b"SLOW? a 0.1")
    early = port.read(100), port.readline(), port.read_until()
    wait_waiting(port, 10)
    return early, port.read(3), port.read_until(b"."), port.readline(), port.read(5)


def case_without_time_limit(port: Port) -> Any:
    port.timeout = None
    ask(port, b"SLOW? a 0.5")
    return port.readline(), port.timeout


def case_several_lines(port: Port) -> Any:
    ask(port, b"POS? a", b"POS? b", b"SLOW? c 0.1")
    return [port.readline() for _ in range(3)]


def case_lines_in_a_loop(port: Port) -> Any:
    port.timeout = 0.2
    ask(port, b"POS? a", b"POS? b", b"SLOW? c 0.1")
    return list(port), port.readlines()


def case_part_of_a_line(port: Port) -> Any:
    ask(port, b"POS? a")
    return port.readline(3), port.readline(), port.readline(0)


def case_command_in_pieces(port: Port) -> Any:
    return port.write(b"PO"), port.write(b"S? a"), port.write(b"\r\n"), port.readline()


def case_kinds_of_bytes(port: Port) -> Any:
    written = port.write(bytearray(b"POS? ")), port.write(memoryview(b"a")), port.write([13, 10]), port.write(b"")
    return written, port.readline()


def case_text_is_refused(port: Port) -> Any:
    with pytest.raises(TypeError):
        port.write("POS?")
    return "refused"


def case_answered_command_without_a_question(port: Port) -> Any:
    ask(port, b"MOVE 12.5 a")
    return port.readline()


def case_command_that_is_not_answered(port: Port) -> Any:
    ask(port, b"SHUT 1")
    ask(port, b"SHUT?")
    return port.readline()


def case_clear(port: Port) -> Any:
    ask(port, b"POS? a")
    wait_waiting(port, 10)
    port.reset_input_buffer()
    port.reset_output_buffer()
    port.flush()
    ask(port, b"POS? b")
    return port.readline(), port.out_waiting


def case_old_names(port: Port) -> Any:
    ask(port, b"POS? a")
    wait_waiting(port, 10)
    waits = port.inWaiting()
    port.flushInput()
    port.flushOutput()
    return waits, port.isOpen(), port.inWaiting()


def case_readinto(port: Port) -> Any:
    ask(port, b"POS? a")
    room = bytearray(10)
    return port.readinto(room), bytes(room)


def case_text_layer(port: Port) -> Any:
    port.timeout = 0.3
    text = io.TextIOWrapper(io.BufferedRWPair(port, port, 1), newline="\r\n", line_buffering=True)
    text.write("POS? a\r\n")
    text.flush()
    return text.readline()


def case_settings(port: Port) -> Any:
    port.timeout = 1.5
    port.write_timeout = 2
    with pytest.raises(ValueError, match="timeout"):
        port.timeout = -1
    with pytest.raises(ValueError, match="baudrate"):
        port.baudrate = None
    settings = port.get_settings()
    port.apply_settings(settings)
    return settings, port.bytesize, port.parity, port.stopbits, port.xonxoff, port.rtscts, port.dsrdtr


def case_baud_rate(port: Port) -> Any:
    before, port.baudrate = port.baudrate, 19200
    changed, port.baudrate = port.baudrate, before
    return before, changed, port.baudrate


def case_close_and_open(port: Port) -> Any:
    port.close()
    port.close()
    closed = port.is_open
    for call in (port.read, lambda: port.write(b"x"), port.read_until, port.readline, port.send_break, port.flush):
        with pytest.raises(serial.PortNotOpenError):
            call()
    with pytest.raises(serial.PortNotOpenError):
        port.reset_input_buffer()
    port.open()
    with pytest.raises(serial.SerialException, match="already open"):
        port.open()
    ask(port, b"POS? a")
    return closed, port.is_open, port.readline()


def case_context_manager(port: Port) -> Any:
    with port as same:
        ask(same, b"POS? a")
        reply = same.readline()
    with port:
        inside = port.is_open
    return same is port, reply, inside, port.is_open


def case_identity(port: Port) -> Any:
    is_stream = isinstance(port, io.RawIOBase) and isinstance(port, serial.SerialBase)
    return port.port == port.name, is_stream, port.readable(), port.writable(), port.seekable(), port.closed


CASES = [value for name, value in sorted(globals().items()) if name.startswith("case_")]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__.removeprefix("case_"))
async def test_it_does_what_pyserial_does(instruments: Instruments, case: Callable[[Port], Any]) -> None:
    """Each call gives what pyserial's own object gives on the same line, in about the same time."""

    def timed(port: Port) -> tuple[Any, float]:
        began = time.monotonic()
        return case(port), time.monotonic() - began

    def plain() -> tuple[Any, float]:
        with serial.Serial(instruments.stage, timeout=1) as port:
            return timed(port)

    expected, seconds = await in_thread(plain)
    async with open_lab(instruments.stage, instruments.log) as lab:
        got, took = await in_thread(lambda: timed(BlockingSerial(lab.door, timeout=1)))
    assert got == expected
    assert took < seconds + 0.5


# --- where it is not pyserial -----------------------------------------------------------------------------------------


async def test_a_read_without_time_limit_ends(autojump_clock: MockClock) -> None:
    """After a minute, by an error; nothing that came is lost by that."""
    line = MemoryLine()
    async with SharedSerialPort(SerialPortConfig(path="memory", quiet_time=0.1), line.open_stream) as port:
        async with port.acquire("old") as guard:
            calls = SerialCalls(guard, b"\n", own_timeout=1.0)
            for read in (lambda: calls.read(9, None), lambda: calls.read_until(b"\n", None, None)):
                line.send(b"12.")
                began = trio.current_time()
                with pytest.raises(ExchangeTimeoutError):
                    await read()
                assert trio.current_time() - began == pytest.approx(60)
                assert (await calls.read(3, 1)).data == b"12."
            # It was due in the instrument's own time, not in a minute: the next owner waits no longer than that.
            await guard.write_all(b"READ?\n")
            with trio.move_on_after(3):
                await calls.read(9, None)
        began = trio.current_time()
        async with port.acquire("new", timeout=10):
            assert trio.current_time() - began < 1.2


async def test_a_line_that_drips_for_ever_ends(autojump_clock: MockClock) -> None:
    """A line whose bytes come one by one is read to its end, and given up after a minute."""
    line = MemoryLine()

    async def drip(data: bytes) -> None:
        for number in data:
            await trio.sleep(0.5)
            line.send(bytes([number]))

    config = SerialPortConfig(path="memory", quiet_time=0.1)
    port = SharedSerialPort(config, line.open_stream)
    async with port, port.acquire("old") as guard, trio.open_nursery() as nursery:
        calls = SerialCalls(guard, b"\n", own_timeout=1.0)
        nursery.start_soon(drip, b"12.500\n" + b"x" * 200)
        assert (await calls.read_line(None, 0.6)).data == b"12.500\n"
        began = trio.current_time()
        assert (await calls.read_line(None, 0.6)).data.startswith(b"x" * 100)
        assert trio.current_time() - began < 62
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def on_memory(line: MemoryLine, **settings: Any) -> AsyncIterator[SerialDoor]:
    """Have a door to a port without a device."""
    config = SerialPortConfig(path="memory", quiet_time=0.05, **settings)
    async with SharedSerialPort(config, line.open_stream) as port, trio.open_nursery() as nursery:
        host = DoorHost("old")
        await nursery.start(host.serve)
        yield SerialDoor(host, port)
        nursery.cancel_scope.cancel()


async def test_modem_lines_and_break() -> None:
    """They are those of the shared port; what a shared port cannot do is refused in pyserial's words."""
    line = MemoryLine()
    async with on_memory(line) as door:

        def script() -> Any:
            old = BlockingSerial(door)
            line.controls.ri = True
            before = old.cts, old.dsr, old.ri, old.cd
            old.dtr = old.rts = False
            old.setDTR(True)
            old.send_break(0.01)
            with pytest.raises(serial.SerialException, match="use send_break"):
                old.break_condition = True
            for name, value in (("bytesize", 7), ("parity", "E"), ("stopbits", 2), ("rtscts", True)):
                before_it = getattr(old, name)
                with pytest.raises(ValueError, match=f"{name} is .* for all who share this port"):
                    setattr(old, name, value)
                assert getattr(old, name) == before_it
            with pytest.raises(ValueError, match="cannot become"):
                old.port = "/dev/ttyS9"
            old.close()
            old.baudrate = 4800
            assert line.controls.baudrate == 9600
            old.open()
            return before, old.dtr, old.rts, line.controls.dtr, line.controls.rts, line.controls.baudrate

        assert await in_thread(script) == ((True, True, True, True), True, False, True, False, 4800)


async def test_errors_are_pyserials_with_our_text() -> None:
    """A library catches them as what it knows, and a person reads who has the port, or why it cannot be opened."""

    async def in_vain(call: Callable[[], object]) -> serial.SerialException:
        def run() -> serial.SerialException:
            with pytest.raises(serial.SerialException) as caught:
                call()
            return caught.value

        return await in_thread(run)

    line = MemoryLine(capacity=4)
    async with on_memory(line) as door:
        old = BlockingSerial(door, write_timeout=0.1)
        with pytest.raises(StateError, match="in another thread"):
            old.write(b"x")
        error = await in_vain(lambda: old.write(b"more than it takes"))
        assert type(error) is serial.SerialTimeoutException
        assert "'old' did not finish within" in str(error)
        assert await line.receive() == b"more"
    async with on_memory(MemoryLine()) as door, door._port.acquire("calibration"):
        old = BlockingSerial(door)
        error = await in_vain(lambda: old.exclusive("scan", 0.1).__enter__())
        assert "calibration" in str(error)
        assert isinstance(error.__cause__, AcquireTimeoutError)
    assert isinstance((await in_vain(lambda: old.write(b"x"))).__cause__, DoorClosedError)
    unplugged = MemoryLine()
    async with on_memory(unplugged, acquire_timeout=0.2, reconnect=False) as door:
        unplugged.unplug()
        error = await in_vain(BlockingSerial(door).read)
        assert isinstance(error.__cause__, LineOpenError)
