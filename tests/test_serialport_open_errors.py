"""A port that cannot be opened says why, and what to do: the whole sentence, for each cause, as the system gives it."""

import os
import pwd
import socket
import subprocess
import sys
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from serial.tools import list_ports

from trio_daq.errors import ExchangeTimeoutError, LineOpenError
from trio_daq.serialport import SerialPortConfig, SharedSerialPort
from trio_daq.serialport.holders import port_holders
from trio_daq.serialport.open_errors import explain_open_failure

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="devices, users and locks are those of Linux")

as_root = pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can become another user")

HOLDER = Path(__file__).with_name("port_holder.py")


@pytest.fixture
def pty() -> Iterator[str]:
    """The client's end of a pty. Both ends stay open in this process, as with a simulated instrument."""
    master, slave = os.openpty()
    tty.setraw(slave)
    yield os.ttyname(slave)
    os.close(slave)
    os.close(master)


async def open_failure(path: str | Path, **settings: int) -> LineOpenError:
    """Try to open the port, as open() and as an owner, and return the error; it leaves nothing behind."""
    port = SharedSerialPort(SerialPortConfig(path=str(path), **settings))
    files = len(os.listdir("/proc/self/fd"))
    with pytest.raises(LineOpenError) as caught:
        await port.open()
    with pytest.raises(LineOpenError):
        async with port.acquire("alice"):
            pytest.fail("entered")
    assert port.is_available()
    assert len(os.listdir("/proc/self/fd")) == files
    assert (caught.value.resource, caught.value.sent) == (str(path), "no")
    return caught.value


@contextmanager
def holder(how: str, path: str) -> Iterator[int]:
    command = [sys.executable, str(HOLDER), how, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said, _, pid = process.stdout.readline().partition(" ")
        assert said == "held", pid
        yield int(pid)


def failure_of(user: str, path: str) -> str:
    """Return what a user, who is in no group, is told of the port."""
    command = [sys.executable, str(HOLDER), "shared", path, user]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=True)
    name, _, said = done.stdout.rstrip("\n").partition(" ")
    assert name == "LineOpenError", done.stdout
    return said


def found_here() -> str:
    names = sorted(port.device for port in list_ports.comports())
    return f"Found here: {', '.join(names)}." if names else "No serial ports were found; is it plugged in?"


# --- not there ---------------------------------------------------------------------------------------------------


async def test_missing_port() -> None:
    """A name that is not there: what there is instead."""
    error = await open_failure("/dev/instrument")
    assert str(error) == f"/dev/instrument: cannot be opened: there is no such serial port. {found_here()}"


async def test_misspelt_port(pty: str, tmp_path: Path) -> None:
    """A name that is nearly that of a link in the same folder: that one."""
    (tmp_path / "usb-stage-if00").symlink_to(pty)
    (tmp_path / "usb-stage-if01").write_bytes(b"")
    path = tmp_path / "usb-stgae-if00"
    assert str(await open_failure(path)) == (
        f"{path}: cannot be opened: there is no such serial port. Did you mean '{tmp_path}/usb-stage-if00'?"
    )


async def test_dangling_link(tmp_path: Path) -> None:
    """A link whose device was unplugged: what it led to."""
    (tmp_path / "by-id").mkdir()
    path = tmp_path / "by-id" / "stage"
    path.symlink_to("../instrument")
    assert str(await open_failure(path)) == (
        f"{path}: cannot be opened: it is a link to {tmp_path}/instrument, which is not there. {found_here()}"
    )


async def test_missing_adapter() -> None:
    """A USB adapter that is not plugged in is a failure to open like another."""
    error = await open_failure("usb:ffff:fffe:NONE")
    assert str(error).startswith("usb:ffff:fffe:NONE: cannot be opened: no such USB adapter is plugged in. ")


# --- something else ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("folder", "a folder"),
        ("file", "a regular file"),
        ("pipe", "a pipe"),
        ("socket", "a socket"),
        ("/dev/null", "another kind of device"),
    ],
)
async def test_things_that_are_no_serial_port(tmp_path: Path, name: str, what: str) -> None:
    """Whatever it is, is said."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        path = tmp_path / name
        error = await open_failure(path)
    assert str(error) == f"{path}: cannot be opened: it is {what}, no serial port. {found_here()}"


def test_port_without_hardware() -> None:
    """A /dev/ttyS* that no chip stands behind, which opens and then gives EIO."""
    error = explain_open_failure("/dev/instrument", OSError(5, "Input/output error"))
    assert str(error) == f"/dev/instrument: cannot be opened: there is no hardware behind it. {found_here()}"


async def test_refused_baud_rate(pty: str) -> None:
    """A speed that cannot be set: which setting to change."""
    error = await open_failure(pty, baud_rate=3_000_000_000)
    assert str(error) == (
        f"{pty}: cannot be opened: the driver refuses a setting: signed integer is greater than maximum. "
        "Use a baud rate that the adapter knows, such as 9600 or 115200."
    )


def test_baud_rate_refused_by_the_driver() -> None:
    """pyserial raises it while it handles EINVAL; it is the setting that is wrong, not the device."""
    refused = ValueError("Failed to set custom baud rate (12345): [Errno 22] Invalid argument")
    refused.__context__ = OSError(22, "Invalid argument")
    assert str(explain_open_failure("/dev/ttyUSB0", refused)) == (
        "/dev/ttyUSB0: cannot be opened: the driver refuses a setting: Failed to set custom baud rate (12345): "
        "[Errno 22] Invalid argument. Use a baud rate that the adapter knows, such as 9600 or 115200."
    )


# --- in use ------------------------------------------------------------------------------------------------------


async def test_locked_by_another_program(pty: str) -> None:
    """A program with the flock lock: its pid and command, and how to talk beside it; not who merely listens in."""
    with holder("plain", pty), holder("flock", pty) as pid:
        found, _ = port_holders(pty)
        error = await open_failure(pty)
    assert str(error) == (
        f"{pty}: cannot be opened: process {pid} ({found.command}) has locked it. "
        "Close that program, or set exclusive = false in both if they may talk at once."
    )
    assert (error.holder_pids, found.command[:9]) == ((pid,), sys.executable[:9])


async def test_in_exclusive_mode_of_another_program(pty: str) -> None:
    """A program with TIOCEXCL and no lock: its pid and command. The system tells all but root, who looks."""
    with holder("exclusive", pty) as pid:
        (found,) = port_holders(pty)
        error = await open_failure(pty)
    assert str(error) == (
        f"{pty}: cannot be opened: process {pid} ({found.command}) has it open. "
        "Close that program first: it wants the line for itself."
    )
    assert error.holder_pids == (pid,)


@as_root
def test_locked_by_another_user(pty: str) -> None:
    """What a process has open only its own user may see; its lock, and so its pid and command, all may."""
    os.chmod(pty, 0o666)
    with holder("flock", pty) as pid:
        (found,) = port_holders(pty)
        said = failure_of("nobody", pty)
    assert said == (
        f"{pty}: cannot be opened: process {pid} ({found.command}) has locked it. "
        "Close that program, or set exclusive = false in both if they may talk at once."
    )


@as_root
def test_in_use_by_a_process_that_cannot_be_seen(pty: str) -> None:
    """The program of another user, which set no lock: how to find it, and what else it may be on a pty."""
    os.chmod(pty, 0o666)
    with holder("exclusive", pty):
        said = failure_of("nobody", pty)
    assert said == (
        f"{pty}: cannot be opened: another program has it open. Find it with `sudo fuser -v {pty}` and close it. "
        "If nobody has it, a program that was killed left it so: restart the instrument's end of this pty."
    )


async def test_in_use_by_this_process(pty: str) -> None:
    """A second port object, of whatever library: the cure is in this program."""
    first = SharedSerialPort(SerialPortConfig(path=pty, quiet_time=0.01))
    async with first.acquire("alice"):
        error = await open_failure(pty)
    await first.aclose()
    assert str(error) == (
        f"{pty}: cannot be opened: this process (another port object, or an abandoned thread that still has it open) "
        "has locked it. One SharedSerialPort serves a whole process: use that one everywhere."
    )
    assert error.holder_pids == (os.getpid(),)


# --- not permitted -----------------------------------------------------------------------------------------------


@as_root
def test_port_of_a_group_that_one_is_not_in(pty: str) -> None:
    """The group that may is named, and who should be added."""
    os.chown(pty, 0, pwd.getpwnam("daemon").pw_gid)
    os.chmod(pty, 0o660)
    assert failure_of("nobody", pty) == (
        f"{pty}: cannot be opened: permission denied. Add 'nobody' to the group that owns it, 'daemon', "
        "and log in again."
    )


@as_root
def test_port_of_a_group_that_one_has_joined_since(pty: str) -> None:
    """The user is in the group, the session is older: log in again."""
    os.chown(pty, 0, pwd.getpwnam("daemon").pw_gid)
    os.chmod(pty, 0o660)
    assert failure_of("daemon", pty) == (
        f"{pty}: cannot be opened: permission denied. 'daemon' is in its group, 'daemon', but was not when this "
        "session began: log in again."
    )


@as_root
def test_port_that_its_group_may_not_use(pty: str) -> None:
    """Where joining the group would not help, that is said; a group without a name is shown as its number."""
    os.chown(pty, 0, 54321)
    os.chmod(pty, 0o620)
    assert failure_of("nobody", pty) == (
        f"{pty}: cannot be opened: permission denied. Its mode, 0620, keeps out even its group, '54321': change it, "
        "on Linux by a udev rule."
    )


@as_root
def test_port_that_its_owner_may_not_use(pty: str) -> None:
    """The owner can change the mode."""
    os.chown(pty, pwd.getpwnam("nobody").pw_uid, 0)
    os.chmod(pty, 0o060)
    assert failure_of("nobody", pty) == (
        f"{pty}: cannot be opened: permission denied. Its mode, 0060, keeps out even you, its owner: chmod u+rw it."
    )


@as_root
def test_port_in_a_folder_that_is_closed(pty: str, tmp_path: Path) -> None:
    """A device that cannot even be looked at."""
    (tmp_path / "closed").mkdir(0o700)
    path = tmp_path / "closed" / "stage"
    path.symlink_to(pty)
    assert failure_of("nobody", str(path)) == (
        f"{path}: cannot be opened: permission denied. A folder on the way to it is closed to you."
    )


def test_port_that_its_mode_permits(pty: str) -> None:
    """Neither owner nor group is the matter: a container or the like."""
    os.chmod(pty, 0o666)
    assert str(explain_open_failure(pty, OSError(1, "Operation not permitted"))) == (
        f"{pty}: cannot be opened: permission denied. Its mode, 0666, lets you in, so it is a container, a mount "
        "option or an access list that does not."
    )


# --- the rest ----------------------------------------------------------------------------------------------------


def test_other_failures_keep_the_words_of_the_system() -> None:
    """An error that is not known here is passed on as it was said, on one line of plain text."""
    error = explain_open_failure("/dev/ttyUSB0", OSError(24, "Too many\nopen files"))
    assert str(error) == r"/dev/ttyUSB0: cannot be opened: [Errno 24] Too many\nopen files."


def test_what_was_explained_is_kept() -> None:
    """An explained error can be explained again, and raised from itself."""
    first = LineOpenError(resource="usb:0403:6001", reason="2 serial ports match", hint="Write which one.")
    again = explain_open_failure("usb:0403:6001", first)
    assert again is not first
    assert str(again) == str(first)


# --- the wrong baud rate -----------------------------------------------------------------------------------------

BAUD_RATES = [1200, 2400, 4800, 9600, 19200, 38400, 57600, 115200]


def heard(text: bytes, sent_at: int, read_at: int) -> bytes:
    """Return what a UART makes of *text*, 8N1, at another baud rate: it samples the middle of each of its own bits."""
    levels = [level for byte in text for level in (0, *((byte >> bit) & 1 for bit in range(8)), 1)]

    def level(time: float) -> int:
        place = int(time * sent_at)
        return levels[place] if place < len(levels) else 1

    received = bytearray()
    time, sample, end = 0.0, 1 / (16 * read_at), len(levels) / sent_at
    while time < end:
        if level(time):
            time += sample
            continue
        received.append(sum(level(time + (1.5 + bit) / read_at) << bit for bit in range(8)))
        time += 9.5 / read_at
    return bytes(received)


def said_of(received: bytes) -> str:
    return str(
        ExchangeTimeoutError(
            resource="/dev/ttyUSB0", owner="alice", operation="read(9)", waited=1, sent="yes", received=received
        )
    )


def test_noise_points_at_the_baud_rate() -> None:
    """The whole sentence."""
    assert said_of(b"\xf8\x80x\x00") == (
        "/dev/ttyUSB0: read(9) of 'alice' did not finish within 1 s: 4 bytes came: b'\\xf8\\x80x\\x00' "
        "(command sent: yes). The bytes look like noise: is the baud rate right?"
    )


@pytest.mark.parametrize(
    "text", [b"+1.234567E+00\r\n", b"KEITHLEY INSTRUMENTS,MODEL 2000,1234\r\n", b"OK\r\n", b"STAGE,1,MOVING\n"]
)
def test_text_at_another_baud_rate_is_noise(text: bytes) -> None:
    """Nearly all wrong pairs of baud rates are recognised by what they make of a reply, and no right one is."""
    assert all(heard(text, rate, rate) == text for rate in BAUD_RATES)
    pairs = [(sent_at, read_at) for sent_at in BAUD_RATES for read_at in BAUD_RATES if sent_at != read_at]
    noise = [pair for pair in pairs if "noise" in said_of(heard(text, *pair))]
    assert len(noise) >= 0.95 * len(pairs)


@pytest.mark.parametrize("received", [b"", b"+1.25", b"\x0212.5\x03", b"\x06", "±5 µV, 3 Ω".encode(), b"12.5 \xb5V"])
def test_text_is_no_noise(received: bytes) -> None:
    """Half a number, framing characters, units and nothing at all are no reason to doubt the baud rate alone."""
    assert said_of(received).endswith("Is the instrument on, and are baud rate and terminator right?")
