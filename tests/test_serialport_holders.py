"""Who has a serial port open, and how a port comes free: between real processes on a real pty."""

import fcntl
import os
import signal
import subprocess
import sys
import termios
import tty
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from trio_daq.errors import LineOpenError
from trio_daq.serialport import SerialPortConfig, SharedSerialPort
from trio_daq.serialport.holders import port_holders
from trio_daq.sim import open_simulated_lab

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux")

as_root = pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root gets past TIOCEXCL")

HOLDER = Path(__file__).with_name("port_holder.py")
TIOCGEXCL = 0x80045440


@pytest.fixture
def path() -> Iterator[str]:
    """The client's end of a pty. Both ends stay open in this process, as with a simulated instrument."""
    master, slave = os.openpty()
    tty.setraw(slave)
    os.chmod(os.ttyname(slave), 0o666)
    yield os.ttyname(slave)
    os.close(slave)
    os.close(master)


@contextmanager
def holder(how: str, path: str, user: str | None = None) -> Iterator[int]:
    """Have a process that has the port, and give its pid."""
    command = [sys.executable, str(HOLDER), how, path, *([user] if user else [])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said, _, pid = process.stdout.readline().partition(" ")
        assert said == "held", pid
        yield int(pid)  # leaving closes stdin, and so ends it


def is_exclusive(path: str) -> bool:
    answer = array("i", [0])
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
    fcntl.ioctl(fd, TIOCGEXCL, answer)
    os.close(fd)
    return bool(answer[0])


async def acquired_after(path: str, limit: float) -> float:
    """Ask for the port until it is granted, and return how long that took."""
    began = trio.current_time()
    while True:
        port = SharedSerialPort(SerialPortConfig(path=path, quiet_time=0.01))  # silence after an open is waited for
        try:
            async with port.acquire("successor", timeout=5):
                return trio.current_time() - began
        except LineOpenError:
            if trio.current_time() - began > limit:
                raise
            await trio.sleep(0.002)
        finally:
            await port.aclose()


@pytest.mark.parametrize(
    ("how", "has_lock"),
    [("flock", True), ("inherited", True), ("exclusive", False), ("record", False), ("plain", False)],
)
def test_another_process_is_found(path: str, how: str, has_lock: bool) -> None:
    """It is named with its pid, its command line and whether it has the lock, even if it inherited that."""
    assert port_holders(path) == ()
    with holder(how, path) as pid:
        (found,) = port_holders(path)
        assert (found.pid, found.has_lock) == (pid, has_lock)
        assert found.command[:30] == f"{sys.executable} {HOLDER}"[:30]
        assert not found.is_us
        assert str(found) == f"process {pid} ({found.command})"


def test_all_holders_are_found_those_with_the_lock_first(path: str) -> None:
    """Two readers and a locker: the locker is the first."""
    with holder("plain", path) as one, holder("plain", path) as two, holder("flock", path) as locker:
        found = port_holders(path)
    assert found[0].pid == locker
    assert {holder.pid for holder in found[1:]} == {one, two}


def test_a_link_is_followed(path: str, tmp_path: Path) -> None:
    """By a link, as in /dev/serial/by-id, the same holder is found."""
    link = tmp_path / "usb-stage"
    link.symlink_to(path)
    with holder("flock", path) as pid:
        assert [holder.pid for holder in port_holders(str(link))] == [pid]


def test_the_instruments_end_of_a_pty_is_no_holder(path: str) -> None:
    """This process has both ends open and is not listed, until it locks one."""
    ours = os.open(path, os.O_RDWR | os.O_NOCTTY)
    assert port_holders(path) == ()
    fcntl.flock(ours, fcntl.LOCK_EX)
    (found,) = port_holders(path)
    assert (found.is_us, found.has_lock) == (True, True)
    assert str(found) == "this process (another port object, or an abandoned thread that still has it open)"
    os.close(ours)


def test_a_waiting_locker_is_no_holder(path: str) -> None:
    """/proc/locks lists who waits for the lock too; they do not have it."""
    ours = os.open(path, os.O_RDWR | os.O_NOCTTY)
    fcntl.flock(ours, fcntl.LOCK_EX)
    wait = f"import fcntl, os; fd = os.open({path!r}, {os.O_RDWR | os.O_NOCTTY}); print(flush=True); fcntl.flock(fd, 2)"
    with subprocess.Popen([sys.executable, "-c", wait], stdout=subprocess.PIPE) as waiter:
        assert waiter.stdout is not None
        waiter.stdout.readline()
        while f"-> FLOCK  ADVISORY  WRITE {waiter.pid} " not in Path("/proc/locks").read_text():
            os.sched_yield()
        assert [(holder.pid, holder.has_lock) for holder in port_holders(path)] == [
            (os.getpid(), True),
            (waiter.pid, False),
        ]
        os.close(ours)


def test_a_command_line_is_escaped_and_shortened(path: str) -> None:
    """What another program calls itself does not reach the terminal as it is."""
    code = f"import os; os.open({path!r}, {os.O_RDWR | os.O_NOCTTY}); print(flush=True); input()"
    command = [sys.executable, "-c", code, "\x1b[31m\n", "x" * 500]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (found,) = port_holders(path)
        process.communicate(b"\n")
    assert len(found.command) == 80
    assert found.command.endswith("…")
    command = [sys.executable, "-c", code]
    hostile = subprocess.Popen(["\x1b[31m\n", "-c", code], executable=sys.executable, stdin=-1, stdout=-1, stderr=-3)
    with hostile:
        assert hostile.stdout is not None
        hostile.stdout.readline()
        (found,) = port_holders(path)
        hostile.communicate(b"\n")
    assert found.command.startswith(r"\x1b[31m\n -c import os")


@pytest.mark.parametrize("path", ["/dev/ttyNOPE7", "/", "a\0b", "/dev/ttyNOPE7\udcff"])
def test_what_is_no_device_has_no_holders(path: str) -> None:
    """It never raises, whatever the path."""
    assert port_holders(path) == ()


def test_a_process_that_has_ended_is_no_holder(path: str) -> None:
    """Neither its lock nor its descriptor outlives it here."""
    with holder("flock", path) as pid:
        assert len(port_holders(path)) == 1
        os.kill(pid, signal.SIGKILL)
    assert port_holders(path) == ()


@pytest.mark.parametrize("user", [None, "nobody"])
async def test_port_of_a_killed_holder_is_free_at_once(path: str, user: str | None) -> None:
    """Within 100 ms of SIGKILL the successor has it, although the instrument's end of the pty stays open."""
    took = []
    for _ in range(3):  # best of three: the computer may be busy with something else
        with holder("shared", path, user) as pid:
            with pytest.raises(LineOpenError) as caught:
                await acquired_after(path, limit=0)
            assert list(caught.value.holder_pids) == [pid]
            os.kill(pid, signal.SIGKILL)
            took.append(await acquired_after(path, limit=5))
    assert min(took) < 0.1


@as_root
def test_exclusive_mode_is_left_to_those_who_get_past_it(path: str) -> None:
    """On a pty, which keeps exclusive mode, only root sets it: else the user's next program would not get in."""
    with holder("shared", path):
        assert is_exclusive(path)
    assert not is_exclusive(path)
    with holder("shared", path, "nobody") as pid:
        assert not is_exclusive(path)
        os.kill(pid, signal.SIGKILL)
    with holder("shared", path, "nobody"):
        pass


@as_root
async def test_exclusive_mode_that_outlived_its_setter_is_passed(path: str) -> None:
    """A program in exclusive mode is respected while it lives; the flag that it leaves on a pty is not."""
    with holder("exclusive", path) as pid:
        with pytest.raises(LineOpenError) as caught:
            await acquired_after(path, limit=0)
        assert list(caught.value.holder_pids) == [pid]
        os.kill(pid, signal.SIGKILL)
    assert is_exclusive(path)
    assert await acquired_after(path, limit=5) < 1
    assert not is_exclusive(path)


@as_root
async def test_exclusive_mode_is_passed_at_an_instrument_in_another_process(tmp_path: Path) -> None:
    """The simulated lab keeps our end of the pty open too; neither it nor we who look are taken for the holder."""
    async with open_simulated_lab(tmp_path / "instruments.jsonl", meter=None) as lab:
        assert lab.stage_path is not None
        with holder("shared", lab.stage_path) as pid:
            assert [holder.pid for holder in port_holders(lab.stage_path)] == [pid]
            os.kill(pid, signal.SIGKILL)
        assert is_exclusive(lab.stage_path)
        await acquired_after(lab.stage_path, limit=0)
        assert not is_exclusive(lab.stage_path)


@as_root
async def test_refusing_leaves_the_line_of_its_holder_as_it_is(path: str) -> None:
    """Neither the settings nor the input of a program in exclusive mode are touched."""
    ours = os.open(path, os.O_RDWR | os.O_NOCTTY)
    with holder("exclusive", path):
        before = termios.tcgetattr(ours)
        with pytest.raises(LineOpenError):
            await acquired_after(path, limit=0)
        assert termios.tcgetattr(ours) == before
    os.close(ours)


async def test_plain_reader_does_not_keep_us_out(path: str) -> None:
    """A program that asks for no lock cannot hold the port."""
    with holder("plain", path):
        await acquired_after(path, limit=0)


async def test_a_program_that_has_it_open_without_a_lock_is_named_in_the_log(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """pyserial's default locks nothing: the port is opened, and a warning says who will take replies away."""
    with holder("plain", path) as pid:
        async with SharedSerialPort(SerialPortConfig(path=path, quiet_time=0.01)) as port:
            await port.open()
        assert f"process {pid} " in caplog.text
        assert "has it open too" in caplog.text
    caplog.clear()
    async with SharedSerialPort(SerialPortConfig(path=path, quiet_time=0.01)) as port:
        await port.open()
    assert "has it open too" not in caplog.text
