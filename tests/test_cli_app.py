"""What the command says to wrong input: one clear sentence, no traceback, and the exit code of its kind."""

import contextlib
import re
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trio_daq.cli import main

Command = Callable[..., tuple[int, str, str]]

POLL = """
[[v2.instruments]]
id = "poll"
driver = "scpi_poll"
visa = "dmm"
options = { commands = { voltage = "MEAS:VOLT?" }, period = 0.1 }
"""


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run the command in an empty folder; return its exit code, and what it said on stdout and on stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")  # a message in a box is not folded

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


@pytest.fixture
def lab(tmp_path: Path) -> Callable[..., str]:
    """Write a lab with one VISA instrument and one poller; return its path."""

    def write(
        resource: str = "TCPIP::127.0.0.1::5025::SOCKET", more: str = POLL, recording: str = "enabled = false"
    ) -> str:
        text = f"[visa.dmm]\nresource = '{resource}'\ntimeout = 0.3\n[v2]\n{more}\n[recording]\n{recording}\n"
        (tmp_path / "lab.toml").write_text(text)
        return "lab.toml"

    return write


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["bogus"], 'Unknown command "bogus"'),
        (["dmo"], 'Did you mean "demo"'),
        (["run"], "requires an argument"),
        (["check"], "requires an argument"),
        (["show"], "requires an argument"),
        (["run", "a.toml", "b.toml"], "b.toml"),
        (["demo", "--second", "3"], "Did you mean --seconds?"),
        (["demo", "--seconds", "0"], "Must be > 0"),
        (["demo", "--seconds", "-1"], "Must be > 0"),
        (["demo", "--seconds", "nan"], '"nan" for --seconds'),
        (["demo", "--seconds", "inf"], "Must be <= 86400"),
        (["demo", "--seconds", "soon"], 'unable to convert "soon" into float'),
    ],
)
def test_wrong_use_is_explained(arguments, sentence, command, tmp_path):
    """The exit code is 2, the sentence names what is wrong, and nothing was done."""
    code, out, err = command(*arguments)
    assert code == 2
    assert sentence in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_help_and_version(command):
    """Without a command, and with --help, it lists its commands; --version says which one it is."""
    for arguments in ([], ["--help"]):
        code, out, _ = command(*arguments)
        assert code == 0
        assert all(word in out for word in ("demo", "run", "check", "show"))
    code, out, _ = command("--version")
    assert code == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", out)


@pytest.mark.parametrize("verb", ["run", "check"])
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "lab.toml: there is no such file"),
        (b"[v2\n", "lab.toml:1"),
        (b"\xff\xfe[\x00v\x002\x00]\x00", "UTF-16"),
        (b"[v2]\nenbled = true\n", "did you mean 'enabled'"),
        (b"[v2]\nstop_timeout = -1\n", "lab.toml:2: v2.stop_timeout"),
        (
            b"[v2]\n[[v2.instruments]]\nid = 'a'\ndriver = 'no_module:run'\n",
            "lab.toml:4: v2.instruments[0].driver: no module 'no_module'",
        ),
        (b"[v2]\n[[v2.instruments]]\nid = 'a'\ndriver = 'scpi_pol'\n", "did you mean 'scpi_poll'"),
    ],
)
def test_a_wrong_file_is_explained(verb, text, sentence, command, tmp_path):
    """run and check say the same: file, line, key and cure, exit code 2, and nothing was opened or made."""
    if text is not None:
        (tmp_path / "lab.toml").write_bytes(text)
    code, out, err = command(verb, "lab.toml")
    assert code == 2
    assert err.startswith("trio-daq: lab.toml")
    assert sentence in err
    assert out == ""
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("driver", "sentence"),
    [
        (
            "def run(visa):\n    pass\nraise OSError('no licence')\n",
            "does not import: bad_driver.py:3: OSError: no licence",
        ),
        ("def run(visa:\n", "does not import: bad_driver.py:1: SyntaxError"),
        ("\ndef run(serial):\n    pass\n", "(bad_driver.py:2) has no parameter 'visa'"),
        ("\n\nasync def run(visa, speed):\n    pass\n", "(bad_driver.py:3) needs the option 'speed'"),
        ("def rum(visa):\n    pass\n", "did you mean 'rum'"),
        ("run = 7\n", "cannot be called"),
    ],
)
def test_a_driver_that_does_not_fit_is_explained(driver, sentence, command, lab, tmp_path):
    """The line of the TOML file and the place in the driver stand in one sentence."""
    (tmp_path / "bad_driver.py").write_text(driver)
    lab(more="[[v2.instruments]]\nid = 'a'\ndriver = 'bad_driver:run'\nvisa = 'dmm'\n")
    try:
        code, _, err = command("check", "lab.toml")
    finally:
        sys.modules.pop("bad_driver", None)
    assert code == 2
    assert err.startswith("trio-daq: lab.toml:")
    assert sentence in err


def test_all_that_is_wrong_is_said_at_once(command, tmp_path):
    """One line for each problem, so that a file is cured in one go."""
    (tmp_path / "lab.toml").write_text("[v2]\nenbled = true\n[application]\nlog_level = 'loud'\n")
    code, _, err = command("check", "lab.toml")
    assert code == 2
    assert [line.split(":")[2] for line in err.splitlines()] == ["2", "4"]


def test_check_says_what_a_file_describes(command, lab):
    """Lines and members, each with its kind; nothing is opened, so no instrument is needed."""
    code, out, err = command("check", lab())
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "lab.toml: fine.",
        "  visa.dmm: TCPIP::127.0.0.1::5025::SOCKET",
        "  v2.poll: task scpi_poll",
    ]


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        yield server


def test_a_port_that_does_not_exist(command, tmp_path):
    """run names the port and says that there is none, exit code 1."""
    (tmp_path / "lab.toml").write_text("[serial.stage]\npath = '/dev/ttyNONE'\n[v2]\n")
    code, _, err = command("run", "lab.toml")
    assert code == 1
    assert "hardware.serial.stage did not start: /dev/ttyNONE: cannot be opened: there is no such serial port" in err


def test_a_resource_that_refuses(command, lab, listener):
    """A closed port is a refused connection, not an instrument."""
    port = listener.getsockname()[1]
    listener.close()
    code, _, err = command("run", lab(f"TCPIP::127.0.0.1::{port}::SOCKET"))
    assert code == 1
    assert f"hardware.visa.dmm did not start: TCPIP::127.0.0.1::{port}::SOCKET: cannot be opened: " in err
    assert "the connection was refused" in err
    assert "Is the instrument on" in err


def test_a_resource_that_does_not_take_calls(command, lab, listener):
    """An address where nobody answers the connection is given up after a while."""
    address = listener.getsockname()
    with contextlib.ExitStack() as callers:
        # One more than the queue of the listener takes: from then on the kernel answers nobody.
        for _ in range(2):
            caller = callers.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(address)
        code, _, err = command("run", lab(f"TCPIP::127.0.0.1::{address[1]}::SOCKET"))
    assert code == 1
    assert "hardware.visa.dmm did not start" in err
    assert "cannot be opened: it did not answer in time" in err


def test_an_instrument_that_never_replies_fails_the_driver_that_needs_it(command, lab, listener, tmp_path, caplog):
    """A raw socket opens, whatever is behind it. A driver that lets the timeout out has failed: exit code 1, and the
    error says who asked what of whom."""
    (tmp_path / "one_shot.py").write_text("async def ask(visa):\n    await visa.query('*IDN?')\n")
    resource = f"TCPIP::127.0.0.1::{listener.getsockname()[1]}::SOCKET"
    try:
        code, out, _ = command(
            "run",
            lab(resource, "[[v2.instruments]]\nid = 'once'\ndriver = 'one_shot:ask'\nvisa = 'dmm'\nrestart = 'never'"),
        )
    finally:
        sys.modules.pop("one_shot", None)
    assert code == 1
    assert f"v2.once failed: CommandTimeoutError: {resource}: '*IDN?' of 'once' did not" in caplog.text
    assert "the instrument had not answered" in caplog.text
    assert re.search(r"once +failed", out)


@pytest.mark.parametrize("name", ["missing.sqlite", "folder", "notes.txt", "empty.sqlite", "other.sqlite"])
def test_show_of_what_is_no_run(name, command, tmp_path):
    """No file, a folder, text, nothing at all, another program's database: named, exit code 1, and left as it was."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").write_text("voltage: high\n" * 100)
    (tmp_path / "empty.sqlite").touch()
    with contextlib.closing(sqlite3.connect(tmp_path / "other.sqlite")) as database:
        database.execute("CREATE TABLE run (key, value)")
    before = sorted(path.name for path in tmp_path.iterdir())
    code, out, err = command("show", name)
    assert code == 1
    assert err.startswith(f"trio-daq: {name}: cannot be read as a run: ")
    assert out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_folder_that_cannot_be_written(command, lab, tmp_path):
    """demo and run name the folder, and what the system said; nothing runs."""
    (tmp_path / "file").touch()
    code, out, err = command("demo", "--seconds", "1", "--directory", "file/runs")
    assert code == 2
    assert "file/runs: cannot be used for runs: Not a directory" in err
    code, out, err = command("run", lab(recording="directory = 'file/runs'"))
    assert code == 1
    assert "recording.recorder did not start" in err
    assert "Not a directory" in err
    assert "runs; Ctrl-C" not in out


def test_a_bug_keeps_its_traceback(tmp_path):
    """A TypeError in a driver is for its author: the traceback shows the line, and the exit code is 1."""
    (tmp_path / "lab.toml").write_text(
        "[v2]\n[[v2.instruments]]\nid = 'a'\ndriver = 'bug:run'\n[recording]\nenabled = false\n"
    )
    (tmp_path / "bug.py").write_text("async def run():\n    return 3 + 'volt'\n")
    command = [sys.executable, "-P", "-m", "trio_daq", "run", str(tmp_path / "lab.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "bug.py" in done.stderr
    assert done.stderr.rstrip().endswith("TypeError: unsupported operand type(s) for +: 'int' and 'str'")


def test_a_group_with_a_bug_is_not_made_a_sentence(tmp_path, monkeypatch):
    """An error of the lab beside the bug does not hide it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two_errors.py").write_text(
        "from trio_daq.errors import ActorStoppedError\n"
        "async def run():\n"
        "    raise ExceptionGroup('both', [ActorStoppedError(actor='a'), TypeError('3 + volt')])\n"
    )
    member = "[[v2.instruments]]\nid = 'a'\ndriver = 'two_errors:run'\n"
    (tmp_path / "lab.toml").write_text(f"[v2]\n{member}[recording]\nenabled = false\n")
    try:
        with pytest.raises(ExceptionGroup) as caught:
            main(["run", "lab.toml"])
    finally:
        sys.modules.pop("two_errors", None)
    assert caught.group_contains(TypeError, match="volt")


def test_the_module_is_the_command(tmp_path):
    """`python -m trio_daq` hands the exit code on."""
    command = [sys.executable, "-P", "-m", "trio_daq", "show", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert done.stderr == f"trio-daq: {tmp_path}: cannot be read as a run: it is a folder.\n"
