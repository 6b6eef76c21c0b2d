"""Old code above PyVISA, unchanged but for the name of the library, on an instrument that it shares."""

import contextlib
import ctypes
import random
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import pyvisa
import trio
from pyvisa.constants import AccessModes, StatusCode
from pyvisa.errors import VisaIOError
from serial.tools import list_ports
from visa_instrument import Instrument, wait_until

from trio_daq.legacy import offer
from trio_daq.visa import VisaSessionConfig, VisaSessionManager, canonical_resource
from trio_daq.wire import encode_block

BYTES = bytes(range(256)) * 4  # with every termination there is


@pytest.fixture(params=["native", "pyvisa"])
async def instrument(request: pytest.FixtureRequest, nursery: trio.Nursery) -> Instrument:
    instrument = Instrument()
    instrument.transport = request.param
    instrument.answers["CURV?"] = encode_block(BYTES).decode("latin-1")
    instrument.answers["LIST?"] = "1.5,2.5,-3"
    instrument.answers["LONG?"] = "x" * 100_000
    await nursery.start(instrument.serve)
    return instrument


@pytest.fixture
async def session(instrument: Instrument, nursery: trio.Nursery) -> Any:
    config = VisaSessionConfig(resource=instrument.resource, transport=instrument.transport)
    async with VisaSessionManager(config) as session:
        await nursery.start(offer(session).serve)
        yield session


def opened(instrument: Instrument, **options: Any) -> Any:
    """Open it as a script does."""
    options = {"read_termination": "\n", "write_termination": "\n", "timeout": 2000, **options}
    return pyvisa.ResourceManager("@trio_daq").open_resource(instrument.resource, **options)


async def run_old(script: Callable[[], Any]) -> Any:
    """Run old code in a thread, and give up waiting for it after 20 s."""
    with trio.fail_after(20):
        return await trio.to_thread.run_sync(script, abandon_on_cancel=True)


async def test_what_a_script_does_all_day(instrument: Instrument, session: VisaSessionManager) -> None:
    """Texts, numbers, blocks, in one piece and in many."""

    def script() -> None:
        with opened(instrument) as meter:
            assert meter.query("*IDN?") == "ACME,METER,1,2.0"
            assert meter.write("CONF:VOLT") == len("CONF:VOLT\n")
            meter.write("ECHO? one")
            assert meter.read() == "one"
            assert meter.query_ascii_values("LIST?") == [1.5, 2.5, -3.0]
            assert bytes(meter.query_binary_values("CURV?", datatype="B", container=bytes)) == BYTES
            values = meter.query_binary_values("CURV?", datatype="f", is_big_endian=True)
            assert struct.pack(f">{len(values)}f", *values)[:4] == BYTES[:4]
            assert len(meter.query("LONG?")) == 100_000
            meter.write("ECHO? abcdef")
            assert (meter.read_bytes(2), meter.read_bytes(4), meter.read_raw()) == (b"ab", b"cdef", b"\n")
            meter.write_raw(b"ECHO? raw\n")
            assert meter.read_raw(2) == b"raw\n"

    await run_old(script)
    assert await session.query("ECHO? 1") == "1"


async def test_one_of_many_owners(instrument: Instrument, session: VisaSessionManager) -> None:
    """Threads of old code and tasks ask for what only they could have asked, and each gets it, two hundred times."""
    wrong: list[tuple[str, str]] = []

    def script(name: str) -> None:
        with opened(instrument) as meter:
            for number in range(50):
                text = f"{name} {number}"
                if number % 3:
                    meter.write(f"ECHO? {text}")
                    reply = meter.read()
                else:
                    reply = meter.query(f"ECHO? {text}")
                if reply != text:
                    wrong.append((text, reply))

    async def task(name: str) -> None:
        for number in range(50):
            text = f"{name} {number}"
            if (reply := await session.query(f"ECHO? {text}", 20)) != text:
                wrong.append((text, reply))

    async with trio.open_nursery() as nursery:
        for name in ("old", "older"):
            nursery.start_soon(run_old, lambda name=name: script(name))
        for name in ("new", "newer"):
            nursery.start_soon(task, name)
    assert not wrong
    assert len(instrument.commands) == 200


async def test_another_command_between_write_and_read_waits(
    instrument: Instrument, session: VisaSessionManager
) -> None:
    """Who asks has the instrument until the reply was read; its own writes still go through, before the reply too."""
    asked, read = threading.Event(), threading.Event()

    def script() -> str:
        with opened(instrument) as meter:
            meter.write("ECHO? old")
            meter.write("TRIG")
            asked.set()
            read.wait(10)
            return str(meter.read())

    async with trio.open_nursery() as nursery:
        replies: list[str] = []

        async def old() -> None:
            replies.append(await run_old(script))

        nursery.start_soon(old)
        await wait_until(asked.is_set)
        pending = session.submit("ECHO? new", 10)
        await trio.sleep(0.05)
        assert instrument.commands == ["ECHO? old", "TRIG"]
        read.set()
        assert await pending.wait() == "new"
    assert replies == ["old"]


async def test_reply_that_is_never_read(instrument: Instrument, session: VisaSessionManager) -> None:
    """A script that forgets its reply, or dies, delays others by the time of a lease, and costs them no wrong reply."""
    meter = await run_old(lambda: opened(instrument))
    await run_old(lambda: meter.write("ECHO? forgotten"))
    began = trio.current_time()
    assert await session.query("ECHO? 1", 10) == "1"
    assert 4 < trio.current_time() - began < 8
    with pytest.raises(VisaIOError, match="VI_ERROR_TMO"):
        await run_old(meter.read)
    assert await run_old(lambda: meter.query("ECHO? asked")) == "asked"
    await run_old(lambda: meter.write("ECHO? forgotten"))
    await run_old(meter.close)  # who closes gives it back at once
    began = trio.current_time()
    assert await session.query("ECHO? 2", 10) == "2"
    assert trio.current_time() - began < 2


async def test_reply_that_comes_after_the_lease(instrument: Instrument, session: VisaSessionManager) -> None:
    """It is dropped, as every late reply is."""
    meter = await run_old(lambda: opened(instrument))
    await run_old(lambda: meter.write("WAIT? 6.2 late"))
    assert await session.query("ECHO? 1", 10) == "1"
    assert await session.query("ECHO? 2", 10) == "2"


async def test_what_is_open_does_not_block_other_instruments(
    instrument: Instrument, session: VisaSessionManager, nursery: trio.Nursery
) -> None:
    """``dmm.write("READ?"); stage.move(); dmm.read()``, in two threads, in opposite order: when its time is up one of
    them loses its reply, or both do, and the calls in the middle succeed."""
    other = Instrument()
    await nursery.start(other.serve)
    both = threading.Barrier(2, timeout=10)
    async with VisaSessionManager(VisaSessionConfig(resource=other.resource)) as second:
        await nursery.start(offer(second).serve)

        def script(one: Instrument, two: Instrument, name: str) -> tuple[str, str]:
            with opened(one) as first, opened(two) as last:
                first.write(f"ECHO? {name}1")
                both.wait()
                reply = last.query(f"ECHO? {name}2")
                try:
                    return first.read(), reply
                except VisaIOError as error:
                    return error.abbreviation, reply

        results: list[tuple[str, str]] = []

        async def run(one: Instrument, two: Instrument, name: str) -> None:
            results.append(await run_old(lambda: script(one, two, name)))

        async with trio.open_nursery() as threads:
            threads.start_soon(run, instrument, other, "a")
            threads.start_soon(run, other, instrument, "b")
    assert sorted(reply for _, reply in results) == ["a2", "b2"]
    assert "VI_ERROR_TMO" in {own for own, _ in results} <= {"VI_ERROR_TMO", "a1", "b1"}


async def test_late_reply_is_read_by_a_second_read(instrument: Instrument, session: VisaSessionManager) -> None:
    """As with other VISA libraries, a read that timed out can be repeated; a new question begins afresh."""

    def script() -> None:
        with opened(instrument, timeout=100) as meter:
            meter.write("WAIT? 0.5 slow")
            for _ in range(2):
                with pytest.raises(VisaIOError) as caught:
                    meter.read()
                assert caught.value.error_code == StatusCode.error_timeout
            meter.timeout = 2000
            assert meter.read() == "slow"
            meter.timeout = 100
            with pytest.raises(VisaIOError, match="VI_ERROR_TMO"):
                meter.query("WAIT? 0.5 slower")
            meter.timeout = 5000
            assert meter.query("ECHO? next") == "next"

    await run_old(script)
    assert await session.query("ECHO? 1") == "1"


async def test_reading_until_nothing_comes(instrument: Instrument, session: VisaSessionManager) -> None:
    """A driver that reads byte by byte until the time is up keeps nobody waiting after that, nor itself."""

    def script() -> float:
        with opened(instrument, timeout=200) as meter:
            meter.write("ECHO? abc")
            got = b""
            with contextlib.suppress(VisaIOError):
                while True:
                    got += meter.read_bytes(1)
            assert got == b"abc\n"
            began = time.monotonic()
            meter.write("CONF:VOLT")
            assert meter.query("ECHO? next") == "next"
            return time.monotonic() - began

    assert await run_old(script) < 1.5
    began = trio.current_time()
    assert await session.query("ECHO? 1") == "1"
    assert trio.current_time() - began < 1.5


async def test_unread_reply_is_dropped_by_the_next_question(
    instrument: Instrument, session: VisaSessionManager
) -> None:
    """IEEE 488.2 calls that interrupted; no program gets the answer to its last question but one."""
    assert session.state == "open"

    def script() -> None:
        with opened(instrument) as meter:
            meter.write("ECHO? old")
            assert meter.query("ECHO? new") == "new"
            meter.write("ECHO? abc")
            assert meter.read_bytes(1) == b"a"
            assert meter.query("ECHO? next") == "next"
            meter.write("ECHO? cleared")
            meter.clear()
            assert meter.query("ECHO? last") == "last"

    await run_old(script)


@pytest.mark.parametrize(
    ("text", "first", "read", "unended"),
    [
        ("0123456789 all of this", 5, 3, False),
        ("#210abcdefghij", 1, 1, False),
        ("#210abcdefghij", 3, 2, False),
        ("#210abcdefghij", 8, 6, False),
        ("#210abcdefghij", 14, 14, False),  # and the termination comes by itself
        ("\x01\x02\x03\x04\x05\x06", 3, 2, True),
    ],
)
async def test_rest_of_a_reply_reaches_nobody_else(
    instrument: Instrument, session: VisaSessionManager, text: str, first: int, read: int, unended: bool
) -> None:
    """A script that has read some of a reply, when not all had come, leaves nothing of it to others."""
    instrument.unended = unended

    def script() -> None:
        with opened(instrument) as meter:
            for _ in range(2):
                meter.write(f"PIECES? {first} 0.1 {text}")
                assert meter.read_bytes(read) == text[:read].encode()
                time.sleep(0.05)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_old, script)
        for number in range(20):
            assert await session.query(f"ECHO? {number}", 10) == str(number)
            await trio.sleep(0.01)


async def test_termination_of_two_characters_in_two_pieces(instrument: Instrument, nursery: trio.Nursery) -> None:
    """The end of a reply is seen though it comes in two packets: the instrument is free at once."""
    config = VisaSessionConfig(resource=instrument.resource, transport=instrument.transport, read_termination="\r\n")

    def script() -> tuple[bytes, bytes]:
        meter = opened(instrument)
        meter.write("PIECES? 4 0.1 abc\r")
        got.append(meter)  # so that it stays open
        return meter.read_bytes(4), meter.read_bytes(1)

    got: list[Any] = []
    async with VisaSessionManager(config) as session:
        await nursery.start(offer(session).serve)
        assert await run_old(script) == (b"abc\r", b"\n")
        began = trio.current_time()
        await session.write("CONF:VOLT", timeout=10)
        assert trio.current_time() - began < 2
        await run_old(got.pop().close)


async def test_reply_in_pieces_is_read_piece_by_piece(instrument: Instrument, session: VisaSessionManager) -> None:
    """However it is cut, and whatever time the script takes between two reads, it gets the whole of it."""

    def script() -> None:
        with opened(instrument) as meter:
            meter.write("PIECES? 3 0.1 #210abcdefghij")
            pieces = []
            for count in (2, 2, 10, 1):
                pieces.append(meter.read_bytes(count))
                time.sleep(0.05 if count < 10 else 0)
            assert pieces == [b"#2", b"10", b"abcdefghij", b"\n"]
            meter.chunk_size = 7
            for text in ("0123456789 all of this", "0123456"):
                assert meter.query(f"PIECES? 9 0.1 {text}") == text

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_old, script)
        for number in range(10):
            assert await session.query(f"ECHO? {number}", 10) == str(number)


async def test_question_that_a_stop_interrupts(instrument: Instrument, nursery: trio.Nursery) -> None:
    """It was sent, since a write is done first; what the clean-up asks after it is not answered by its reply."""
    config = VisaSessionConfig(resource=instrument.resource, transport=instrument.transport)
    async with VisaSessionManager(config) as session:
        directory = offer(session)
        await nursery.start(directory.serve)
        begun = threading.Event()

        def script() -> str:
            with opened(instrument) as meter:
                begun.set()
                with pytest.raises(VisaIOError, match="VI_ERROR_ABORT"):
                    meter.write("ECHO? measured")
                return str(meter.query("ECHO? cleaned up"))

        async with trio.open_nursery() as threads:
            replies: list[str] = []

            async def old() -> None:
                replies.append(await run_old(script))

            async with session.transaction("new", 5):
                threads.start_soon(old)
                await wait_until(begun.is_set)
                await trio.sleep(0.1)
                directory.host.interrupt()
    assert replies == ["cleaned up"]


async def test_block_that_is_written_asks_nothing(instrument: Instrument, session: VisaSessionManager) -> None:
    """Whatever its bytes look like: the instrument is anybody's right after it."""
    meter = await run_old(lambda: opened(instrument))
    await run_old(lambda: meter.write_binary_values("DATA ", b"READ?\nREAD?\n" * 50, datatype="B"))
    await run_old(lambda: meter.write("DATA #15MORE?"))
    began = trio.current_time()
    with trio.fail_after(3):
        async with session.transaction("new", 3):
            assert trio.current_time() - began < 1
    await run_old(lambda: meter.write("DATA #15MORE?;ECHO? both"))  # and here is a question behind one
    assert session.current_owner() == "old programs"
    await run_old(meter.close)


async def test_forgotten_reply_of_which_half_has_come(instrument: Instrument, session: VisaSessionManager) -> None:
    """The other half reaches nobody either."""

    def script() -> None:
        with opened(instrument) as meter:
            meter.write("PIECES? 3 0.3 forgotten")
            time.sleep(0.1)

    await run_old(script)
    for number in range(3):
        assert await session.query(f"ECHO? {number}", 10) == str(number)


async def test_two_questions_in_one_write(instrument: Instrument, session: VisaSessionManager) -> None:
    """Each reply is the script's own, however late the second one is; what it leaves of them reaches nobody."""

    def script() -> None:
        with opened(instrument) as meter:
            meter.write("ECHO? one\nWAIT? 0.2 two")
            assert meter.read() == "one"
            time.sleep(0.1)
            assert meter.read() == "two"
            assert meter.query("ECHO? one\nWAIT? 0.2 left") == "one"
            assert meter.query("ECHO? next") == "next"
            meter.write("ECHO? both\nWAIT? 0.2 left")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_old, script)
        for number in range(20):
            assert await session.query(f"ECHO? {number}", 10) == str(number)
            await trio.sleep(0.02)


async def test_interrupt_at_any_moment_of_a_script(instrument: Instrument, session: VisaSessionManager) -> None:
    """A KeyboardInterrupt that the script survives costs neither it nor others a wrong reply."""
    wrong: list[Any] = []
    has_ended = threading.Event()

    def interrupt(thread: int) -> None:
        draw = random.Random(1)
        while not has_ended.wait(draw.uniform(0.0005, 0.006)):
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(KeyboardInterrupt))

    def script() -> None:
        meter = opened(instrument, timeout=1000)
        threading.Thread(target=interrupt, args=(threading.get_ident(),)).start()
        number, until = 0, time.monotonic() + 3
        while time.monotonic() < until:
            with contextlib.suppress(KeyboardInterrupt):
                number += 1
                if (reply := meter.query(f"ECHO? old {number}")) != f"old {number}":
                    wrong.append((number, reply))
                for _ in range(100):
                    pass
        while not has_ended.is_set():
            with contextlib.suppress(KeyboardInterrupt):
                has_ended.set()
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(0.05)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_old, script)
        while not has_ended.is_set():
            if (reply := await session.query("ECHO? new", 10)) != "new":
                wrong.append(reply)
            await trio.sleep(0.005)
    assert not wrong


async def test_read_in_vain(instrument: Instrument, session: VisaSessionManager) -> None:
    """Where nothing was asked a read takes the instrument for its own timeout, and tells nothing about later writes."""

    def read_in_vain(meter: Any) -> None:
        with pytest.raises(VisaIOError, match="VI_ERROR_TMO"):
            meter.read()

    meter = await run_old(lambda: opened(instrument, timeout=100))
    for before in (lambda: None, lambda: meter.query("ECHO? read")):
        await run_old(before)
        await run_old(lambda: read_in_vain(meter))
        began = trio.current_time()
        assert await session.query("ECHO? 1", 10) == "1"
        await run_old(lambda: meter.write("CONF:VOLT"))
        assert await session.query("ECHO? 2", 10) == "2"
        assert trio.current_time() - began < 2


async def test_replies_to_what_looks_like_no_question(instrument: Instrument, session: VisaSessionManager) -> None:
    """After the first read without a question each write keeps the instrument, and the reply is the right one."""
    wrong = []

    def script() -> None:
        with opened(instrument, timeout=1000) as meter:
            with contextlib.suppress(VisaIOError):  # if somebody else's command comes between, the reply is dropped
                meter.query("SAY first")
            for number in range(30):
                reply = meter.query(f"SAY {number}")
                if reply != str(number):
                    wrong.append((number, reply))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_old, script)
        for number in range(30):
            assert await session.query(f"ECHO? n{number}", 20) == f"n{number}"
    assert not wrong


async def test_lock(instrument: Instrument, session: VisaSessionManager) -> None:
    """viLock is a transaction: nobody comes between, and who wants it meanwhile waits as long as it said."""
    locked, go_on = threading.Event(), threading.Event()

    def script() -> None:
        meter = opened(instrument)
        with meter.lock_context():
            assert meter.lock_state == AccessModes.exclusive_lock
            assert meter.query("ECHO? 1") == "1"
            meter.write("ECHO? dropped")
            assert meter.query("ECHO? 2") == "2"
            locked.set()
            go_on.wait(10)
            meter.write("ECHO? unread")
        assert meter.lock_state == AccessModes.no_lock
        assert meter.query("ECHO? 3") == "3"
        with pytest.raises(VisaIOError, match="VI_ERROR_SESN_NLOCKED"):
            meter.unlock()

    def other() -> None:
        with pytest.raises(VisaIOError) as caught:
            opened(instrument, access_mode=AccessModes.exclusive_lock, open_timeout=100)
        assert caught.value.error_code == StatusCode.error_timeout

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_old, script)
        await wait_until(locked.is_set)
        await run_old(other)
        pending = session.submit("ECHO? new", 10)
        await trio.sleep(0.05)
        assert "ECHO? new" not in instrument.commands
        go_on.set()
        assert await pending.wait() == "new"


async def test_errors_have_the_codes_of_visa(instrument: Instrument, session: VisaSessionManager) -> None:
    """And say in a note what was wrong, in our words."""

    def code_of(call: Callable[[], object]) -> tuple[StatusCode, str]:
        with pytest.raises(VisaIOError) as caught:
            call()
        return StatusCode(caught.value.error_code), " ".join(getattr(caught.value, "__notes__", ()))

    def script() -> None:
        manager = pyvisa.ResourceManager("@trio_daq")
        code, note = code_of(lambda: manager.open_resource("TCPIP::127.0.0.1::1::SOCKET"))
        assert code == StatusCode.error_resource_not_found
        assert instrument.resource.split("::")[2] in note  # it names what there is
        meter = opened(instrument, timeout=200)
        code, note = code_of(lambda: meter.query("MUTE?"))
        assert code == StatusCode.error_timeout
        assert "'(a read)' of 'old programs' did not finish within 0.2" in note
        meter.timeout = 2000
        assert code_of(lambda: meter.query("DROP?"))[0] == StatusCode.error_connection_lost
        assert code_of(meter.read)[0] == StatusCode.error_timeout  # nothing was asked
        assert meter.query("ECHO? 1") == "1"
        assert code_of(lambda: meter.get_visa_attribute(0x3FFF0012))[0] == StatusCode.error_nonsupported_attribute
        assert code_of(lambda: meter.implementation_version)[0] == StatusCode.error_nonsupported_attribute
        assert code_of(lambda: meter.set_visa_attribute(0xBFFF0001, "x"))[0] == StatusCode.error_attribute_read_only
        assert code_of(meter.read_stb)[0] == StatusCode.error_nonsupported_operation
        handle = meter.session
        meter.close()
        with pytest.raises(pyvisa.errors.InvalidSession):
            meter.query("*IDN?")
        assert code_of(lambda: manager.visalib.write(handle, b"x"))[0] == StatusCode.error_invalid_object

    await run_old(script)
    assert await session.query("ECHO? 1", 5) == "1"


async def test_settings_are_a_sessions_own(instrument: Instrument, session: VisaSessionManager) -> None:
    """Timeouts and terminations of one script do not reach another one's, nor does the end of its resource manager."""
    assert session.resource == instrument.resource

    def script() -> None:
        manager, other = (pyvisa.ResourceManager("@trio_daq") for _ in range(2))
        one = manager.open_resource(instrument.resource, timeout=100, read_termination="\n", write_termination="\n")
        two = other.open_resource(
            instrument.resource.lower().replace("socket", "SOCKET").replace("tcpip", "TCPIP0"),
            timeout=3000,
            write_termination="\n",
        )
        assert (one.timeout, two.timeout) == (100, 3000)
        assert (one.read_termination, two.read_termination) == ("\n", None)
        assert two.query("ECHO? x") == "x\n"  # no termination was said, so none is taken away
        assert one.resource_name == two.resource_name
        assert instrument.resource.replace("TCPIP", "TCPIP0") in manager.list_resources("?*")
        assert manager.list_resources("GPIB?*") == ()
        found = {f"ASRL{port.device}::INSTR" for port in list_ports.comports()}
        assert {canonical_resource(name) for name in found} <= set(manager.list_resources())
        one.timeout = 0  # VI_TMO_IMMEDIATE
        one.write("ECHO? w")
        time.sleep(0.1)
        assert one.read() == "w"
        one.timeout = None
        assert one.query("ECHO? y") == "y"
        manager.close()
        assert two.query("ECHO? z") == "z\n"

    await run_old(script)


async def test_no_lab_no_instrument(instrument: Instrument) -> None:
    """Where no lab is open, the error says so; where it was closed under a script, it is a connection that was lost."""

    def script() -> Any:
        with pytest.raises(VisaIOError) as caught:
            opened(instrument)
        return caught.value

    assert "in a lab that runs" in (await run_old(script)).__notes__[0]
    config = VisaSessionConfig(resource=instrument.resource, transport=instrument.transport)
    async with VisaSessionManager(config) as session, trio.open_nursery() as nursery:
        await nursery.start(offer(session).serve)
        meter = await run_old(lambda: opened(instrument))
        nursery.cancel_scope.cancel()
    with pytest.raises(VisaIOError, match="VI_ERROR_CONN_LOST"):  # this thread had the event loop, and is free again
        meter.query("*IDN?")
    began = time.monotonic()
    with pytest.raises(VisaIOError) as caught:
        await run_old(lambda: meter.query("*IDN?"))
    assert caught.value.error_code == StatusCode.error_connection_lost
    assert time.monotonic() - began < 2
    await run_old(meter.close)
