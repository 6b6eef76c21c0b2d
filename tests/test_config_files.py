"""Wrong files: what each mistake is called, and in which line."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trio_daq.config import DualConfig
from trio_daq.errors import ConfigError
from trio_daq.serialport import SerialParity
from trio_daq.wire import Exchange, SyncQuery

V2 = "[v2]\n"
MEMBER = "[[v2.instruments]]\nid = 'a'\ndriver = 'm:f'\n"
DMM = "[visa.dmm]\nresource = 'GPIB::1::INSTR'\n"
SAFE = "safe_state = [{ write = 'SHUT 0' }]\n"
STAGE = "[serial.stage]\npath = '/dev/ttyS0'\n"


def problems_of(folder: Path, content: str | bytes) -> list[str]:
    """Load a file called lab.toml and return what is said to be wrong, without the folder."""
    file = folder / "lab.toml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        DualConfig.load_from_file(file)
    return [problem.removeprefix(f"{folder}/") for problem in caught.value.problems]


WRONG_FILES = [
    # --- the text itself
    ("", "lab.toml: nothing is enabled: add a table [v2] or [v4], or take out its 'enabled = false'"),
    ("[v2]\nenabled = false\n[v4]\nenabled = false\n", "lab.toml: nothing is enabled"),
    ("[v2]\nstop_timeout = \n", "lab.toml:2: is no TOML: Invalid value at column 16"),
    (
        "[v2]\nstop_timeout = 1\nstop_timeout = 2\n",
        "lab.toml:3: v2.stop_timeout: is defined again; it stands in line 2",
    ),
    ("[v2]\n\n[serial]\n[v2]\n", "lab.toml:4: v2: is defined again; it stands in line 1 already"),
    ("[v2]\nx = [1,\n  2,\n", "lab.toml:3: is no TOML: Invalid value, and the file ends"),
    (
        '[v2]\n[recording]\ndirectory = "C:\\data"\n',
        "lab.toml:3: is no TOML: Unescaped '\\' in a string at column 18; a b",
    ),
    ('[v2]\n[recording]\ndirectory = "C:\\Users"\n', "write \\\\ for it, or use single quotes, as in 'C:\\data'"),
    (
        '[v2]\n[recording]\ndirectory = "C:\\new"\n',
        "lab.toml:3: recording.directory: must be a path without control ch",
    ),
    ("[v2]\nname = 'µ'\n".encode("latin-1"), "lab.toml:2: the byte 0xB5 is no UTF-8 text; save the file as UTF-8"),
    ("[v2]\n".encode("utf-16"), "lab.toml: is UTF-16 text or no text at all (it holds NUL bytes); save it as UTF-8"),
    ("[v2]\n".encode("utf-16-le"), "lab.toml: is UTF-16 text"),
    ("[v2]\n".encode("utf-32"), "lab.toml: is UTF-16 text"),
    (b"\x7fELF\0\0", "lab.toml: is UTF-16 text or no text at all"),
    ("x = " + "[" * 20_000, "lab.toml: brackets are nested too deeply"),
    ("x = " + "1" * 5_000, "lab.toml: is no TOML: Exceeds the limit (4300"),
    ("\n" + "a." * 100_000 + "a = 1", "lab.toml:2: this key has more than 32 parts"),
    ("\nx = [{" + '"a" . a.' * 50_000 + "a = 1}]", "lab.toml:2: this key has more than 32 parts"),
    ("#" * (2**20 + 1), "lab.toml: is larger than 1 MiB, so it is no settings file"),
    # --- tables and keys
    (V2 + "[seriall]\n", "lab.toml:2: seriall: unknown key (did you mean 'serial'?)"),
    (V2 + "[zzz]\n", "lab.toml:2: zzz: unknown key; known: application, serial, visa, v2, v4, recording"),
    ("v2 = 3\n", "lab.toml:1: v2: expected a table [v2], got 3"),
    ("[[v2]]\n", "lab.toml:1: v2: expected a table [v2], got a list"),
    (
        V2 + "[v2.instruments]\nid = 'a'",
        "lab.toml:2: v2.instruments: expected a list of tables [[v2.instruments]], got a ta",
    ),
    (V2 + "instruments = ['a']", "lab.toml:2: v2.instruments[0]: expected a table, got 'a'"),
    (V2 + "[[v2.instrument]]", "lab.toml:2: v2.instrument: unknown key (did you mean 'instruments'?)"),
    (V2 + "[[v2.program]]", "lab.toml:2: v2.program: unknown key (did you mean 'programs'?)"),
    (
        V2 + "[serial]\npath = '/dev/ttyS0'",
        "lab.toml:3: serial.path: expected a table such as [serial.name], got '/dev/ttyS",
    ),
    ("serial = []\n" + V2, "lab.toml:1: serial: expected tables such as [serial.name], got a list"),
    ("application = 1\n" + V2, "lab.toml:1: application: expected a table, got 1"),
    (V2 + STAGE + "parityy = 'even'", "lab.toml:4: serial.stage.parityy: unknown key (did you mean 'parity'?)"),
    (V2 + "[serial.stage]\nbaud_rate = 9600", "lab.toml:2: serial.stage: the key 'path' is missing"),
    (V2 + "[visa.dmm]\n", "lab.toml:2: visa.dmm: the key 'resource' is missing"),
    (V2 + "[[v2.instruments]]\ndriver = 'm:f'", "lab.toml:2: v2.instruments[0]: the key 'id' is missing"),
    # --- types and ranges
    (V2 + STAGE + "baud_rate = true", "lab.toml:4: serial.stage.baud_rate: expected a whole number, got true"),
    (V2 + STAGE + "baud_rate = 9600.7", "lab.toml:4: serial.stage.baud_rate: expected a whole number, got 9600.7"),
    (V2 + STAGE + "baud_rate = '9600'", "lab.toml:4: serial.stage.baud_rate: expected a whole number, got '9600'"),
    (V2 + STAGE + "baud_rate = 0", "lab.toml:4: serial.stage.baud_rate: must be above 0, not 0"),
    (
        V2 + STAGE + "baud_rate = 0x" + "F" * 9000,
        "expected a whole number of at most 64 bits, got a number of 36000 bits",
    ),
    (
        V2 + STAGE + "timeout = 0x" + "F" * 9000,
        "lab.toml:4: serial.stage.timeout: expected a whole number of at most 64",
    ),
    (V2 + STAGE + "data_bits = 9", "lab.toml:4: serial.stage.data_bits: must be one of 5, 6, 7, 8, not 9"),
    (
        V2 + STAGE + "parity = 'evn'",
        "lab.toml:4: serial.stage.parity: must be one of none, even, odd, mark, space, not 'evn'",
    ),
    (V2 + STAGE + "parity = 1", "lab.toml:4: serial.stage.parity: expected text, got 1"),
    (V2 + STAGE + "read_terminator = 10", "lab.toml:4: serial.stage.read_terminator: expected text, got 10"),
    (V2 + STAGE + "read_terminator = 'hex:0'", "lab.toml:4: serial.stage.read_terminator: 'hex:0' is no row of hexade"),
    (
        V2 + STAGE + "read_terminator = ''",
        "lab.toml:4: serial.stage.read_terminator: a terminator needs at least one byte",
    ),
    (V2 + STAGE + "flow_control = 'rts'", "got 'rts' (did you mean 'rtscts'?)"),
    (V2 + STAGE + "exclusive = 1", "lab.toml:4: serial.stage.exclusive: expected true or false, got 1"),
    (V2 + DMM + "timeout = nan", "lab.toml:4: visa.dmm.timeout: expected a finite number, got nan"),
    (V2 + DMM + "timeout = -inf", "lab.toml:4: visa.dmm.timeout: expected a finite number, got -inf"),
    (V2 + DMM + "timeout = 0", "lab.toml:4: visa.dmm.timeout: must be a finite number of seconds, above 0, not 0.0"),
    (V2 + DMM + "timeout = true", "lab.toml:4: visa.dmm.timeout: expected a number, got true"),
    (V2 + DMM + "timeout = {a = 1}", "lab.toml:4: visa.dmm.timeout: expected a number, got a table"),
    (
        V2 + DMM + "queue_size = 07:32:00",
        "lab.toml:4: visa.dmm.queue_size: expected a whole number, got datetime.time(7,",
    ),
    (V2 + "[application]\nlog_level = 'INFO'", "got 'INFO' (did you mean 'info'?)"),
    (
        V2 + "[application]\nname = ''",
        "lab.toml:3: application.name: must be text without control characters, at least one",
    ),
    (
        V2 + "[recording]\nsurvives = 'fire'",
        "lab.toml:3: recording.survives: expected one of 'kill', 'power-loss', got 'f",
    ),
    (
        V2 + "[[v2.instruments]]\nid = \"a\\u001b[0m\"\ndriver = 'm:f'",
        "lab.toml:3: v2.instruments[0].id: must be text wit",
    ),
    (
        V2 + "[[v2.instruments]]\nid = 'a'\ndriver = 'm.py'",
        "v2.instruments[0].driver: must be 'module:object' or a built",
    ),
    (V2 + "[[v2.instruments]]\nid = 'a'\ndriver = 'scpi_pol'", "not 'scpi_pol' (did you mean 'scpi_poll'?)"),
    (V2 + MEMBER + "options = 3", "lab.toml:5: v2.instruments[0].options: expected a table, got 3"),
    (
        V2 + MEMBER + "serial = []",
        "lab.toml:5: v2.instruments[0].serial: must hold at least one name; leave the key out",
    ),
    (V2 + MEMBER + "serial = ['a', 3]", "lab.toml:5: v2.instruments[0].serial: expected text, got 3"),
    (
        V2 + STAGE + MEMBER + "serial = ['stage', 'stage']",
        "v2.instruments[0].serial: must hold each name once, not ['sta",
    ),
    # --- one thing against another
    (
        DMM + "[v4]\n[[v4.instruments]]\nid = 'a'\ndriver = 'm:f'\nvisa = 'dmmm'",
        "lab.toml:7: v4.instruments[0].visa: unkno",
    ),
    (
        V2 + MEMBER + "visa = 'dmm'",
        "lab.toml:5: v2.instruments[0].visa: unknown session 'dmm'; there is no [visa.…] table",
    ),
    (
        V2 + STAGE + MEMBER + "serial = 'pump'",
        "lab.toml:7: v2.instruments[0].serial: unknown port 'pump'; known: stage",
    ),
    (
        STAGE + SAFE + V2 + MEMBER + "makes_safe = ['serial.stag']\n",
        "lab.toml:8: v2.instruments[0].makes_safe: unknown line 'serial.stag' (did you mean 'serial.stage'?)",
    ),
    (
        STAGE + SAFE + V2 + MEMBER + "makes_safe = 'stage'\n",
        "lab.toml:8: v2.instruments[0].makes_safe: unknown line 'stage' (did you mean 'serial.stage'?)",
    ),
    (
        V2 + MEMBER + "makes_safe = 'stage'\n",
        "lab.toml:5: v2.instruments[0].makes_safe: unknown line 'stage'; there is no [serial.…] or [visa.…] table",
    ),
    (
        STAGE + DMM + V2 + MEMBER + "makes_safe = ['visa.dmm']\n",
        "lab.toml:9: v2.instruments[0].makes_safe: 'visa.dmm' has no safe_state; give it one, or take it out of this",
    ),
    (
        STAGE + SAFE + V2 + MEMBER + "makes_safe = ['serial.stage', 'serial.stage']\n",
        "lab.toml:8: v2.instruments[0].makes_safe: must hold each name once",
    ),
    (STAGE + SAFE + V2 + MEMBER + "makes_safe = 3\n", "lab.toml:8: v2.instruments[0].makes_safe: expected a name or a"),
    (
        V2 + MEMBER + MEMBER,
        "lab.toml:6: v2.instruments[1].id: 'a' is the id of v2.instruments[0] already; call this one 'a_v2'",
    ),
    (
        V2 + MEMBER + "[[v4.instruments]]\nid = 'a'\ndriver = 'm:f'\n[[v4.instruments]]\nid = 'a_v4'\ndriver = 'm:f'",
        "lab.toml:6: v4.instruments[0].id: 'a' is the id of v2.instruments[0] already; call this one 'a_v4_2'",
    ),
    (
        V2 + MEMBER + "kind = 'actor'",
        "lab.toml:5: v2.instruments[0].kind: 'actor' does not run on [v2], only 'thread' or 'task' or 'asyncio'",
    ),
    (
        MEMBER.replace("v2", "v4") + "kind = 'task'",
        "lab.toml:4: v4.instruments[0].kind: 'task' does not run on [v4], only",
    ),
    (
        V2 + MEMBER + "restart = 'on-failure'",
        "restart: expected one of 'always', 'on_failure', 'never', got 'on-failure' (did you mean 'on_failure'?)",
    ),
    (V2 + MEMBER + "required = 'no'", "required: expected true or false, got"),
    (
        V2 + MEMBER + "on_bug = 'isolated'",
        "expected one of 'stop', 'isolate', got 'isolated' (did you mean 'isolate'?)",
    ),
    (V2 + MEMBER + "escalate = true", "escalate: expected one of 'error', 'stop', got"),
    (
        V2 + MEMBER + "kind = 'tsk'",
        "expected one of 'thread', 'task', 'asyncio', 'actor', got 'tsk' (did you mean 'task'?)",
    ),
    (
        V2 + STAGE + "[serial.two]\npath = '/dev/../dev/ttyS0'",
        "lab.toml:5: serial.two.path: '/dev/../dev/ttyS0' is the same hardware as serial.stage ('/dev/ttyS0')",
    ),
    (
        V2 + DMM + "[visa.two]\nresource = 'gpib0::1'",
        "lab.toml:5: visa.two.resource: 'gpib0::1' is the same hardware as visa.dmm ('GPIB::1::INSTR')",
    ),
    (
        V2 + STAGE + "[visa.two]\nresource = 'ASRL/dev/ttyS0::INSTR'",
        "lab.toml:5: visa.two.resource: 'ASRL/dev/ttyS0::INSTR' is the same hardware as serial.stage ('/dev/ttyS0')",
    ),
    (
        V2 + "[visa.dmm]\nresource = 'GPBI::1::INSTR'",
        "lab.toml:3: visa.dmm.resource: 'GPBI::1::INSTR' is no VISA resource",
    ),
    (V2 + '[visa.dmm]\nresource = "GPIB::1\\n::INSTR"', "lab.toml:3: visa.dmm.resource: must be text without control"),
    (V2 + "[serial.'']\npath = '/dev/ttyS0'", 'lab.toml:2: serial."": a name must be text without control characters'),
]


@pytest.mark.parametrize(("content", "said"), WRONG_FILES, ids=[said[:60] for _, said in WRONG_FILES])
def test_a_mistake_is_named_with_its_line(tmp_path: Path, content: str | bytes, said: str) -> None:
    """One mistake in a file is one sentence, with the line and the way out."""
    found = problems_of(tmp_path, content)
    assert len(found) == 1, found
    assert said in found[0]
    assert found[0].startswith(said) or not said.startswith("lab.toml")
    assert found[0].isprintable()


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    """Wrong types, ranges, keys, names and ids in one file are all listed, by line, even several in one table."""
    found = problems_of(
        tmp_path,
        """\
[application]
shutdown_timeout = 'long'
[serial.stage]
path = '/dev/ttyS0'
baud_rate = -1
timeout = -1
colour = 'red'
[visa.dmm]
resource = 'GPIB::1::INSTR'
[v2]
stop_timeout = 0
[[v2.instruments]]
id = 'a'
driver = 'nonsense'
visa = 'dnm'
[[v4.instruments]]
id = 'a'
driver = 'm:f'
""",
    )
    assert [line.split(": ")[0:2] for line in found] == [
        ["lab.toml:2", "application.shutdown_timeout"],
        ["lab.toml:5", "serial.stage.baud_rate"],
        ["lab.toml:6", "serial.stage.timeout"],
        ["lab.toml:7", "serial.stage.colour"],
        ["lab.toml:11", "v2.stop_timeout"],
        ["lab.toml:14", "v2.instruments[0].driver"],
        ["lab.toml:15", "v2.instruments[0].visa"],
        ["lab.toml:17", "v4.instruments[0].id"],
    ]


def test_a_broken_port_is_not_also_called_unknown(tmp_path: Path) -> None:
    """A port with a mistake in it is still defined: its users are not blamed."""
    found = problems_of(tmp_path, V2 + STAGE + "baud_rate = 0\n" + MEMBER + "serial = 'stage'")
    assert len(found) == 1


def test_a_whole_file_becomes_settings(tmp_path: Path) -> None:
    """Every key of a right file arrives with its type, programs follow instruments, and a BOM does no harm."""
    text = r"""
        [application]
        name = "bench 3"
        log_level = "debug"
        shutdown_timeout = 20
        [serial.stage]
        path = "/dev/ttyS0"
        parity = "even"
        stop_bits = 2
        read_terminator = "\r\n"
        write_terminator = 'hex:0D'
        [visa.dmm]
        resource = "GPIB::1::INSTR"
        timeout = 3
        [v2]
        stop_timeout = 2.5
        [[v2.programs]]
        id = "script"
        driver = "scripts.old:main"
        kind = "thread"
        [[v2.instruments]]
        id = "ramp"
        driver = "scpi_poll"
        serial = "stage"
        visa = ["dmm"]
        stop_timeout = 1
        [v2.instruments.options]
        every = 0.5
        limits = { low = -inf }
        [recording]
        directory = "data"
        survives = "power-loss"
    """
    file = tmp_path / "lab.toml"
    file.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    config = DualConfig.load_from_file(str(file))
    assert (config.application.name, config.application.log_level) == ("bench 3", "debug")
    assert config.application.shutdown_timeout == 20.0
    stage = config.serial["stage"]
    assert (stage.parity, stage.stop_bits) == (SerialParity.EVEN, 2.0)
    assert (stage.read_terminator, stage.write_terminator) == (b"\r\n", b"\r")
    assert type(config.visa["dmm"].timeout) is float
    assert config.v2.enabled
    assert not config.v4.enabled
    ramp, script = config.v2.instruments
    assert (ramp.id, ramp.serial, ramp.visa, ramp.stop_timeout) == ("ramp", "stage", ("dmm",), 1.0)
    assert ramp.options == {"every": 0.5, "limits": {"low": float("-inf")}}
    assert (script.id, script.kind, script.serial) == ("script", "thread", None)
    assert config.recording.directory == tmp_path / "data"
    assert config.recording.survives == "power-loss"
    assert config.folder == tmp_path


def test_a_relative_file_name_gives_absolute_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where runs go does not change when the program changes its folder later."""
    (tmp_path / "lab.toml").write_text("[v4]\n")
    monkeypatch.chdir(tmp_path)
    config = DualConfig.load_from_file("lab.toml")
    assert config.recording.directory == tmp_path / "runs"
    assert config.v4.enabled


def test_a_link_and_its_device_are_the_same_hardware(tmp_path: Path) -> None:
    """Two ports that lead to one device by different paths are refused."""
    (tmp_path / "device").touch()
    (tmp_path / "by-id").symlink_to(tmp_path / "device")
    text = f"[v2]\n[serial.a]\npath = '{tmp_path}/device'\n[serial.b]\npath = '{tmp_path}/by-id'\n"
    assert "is the same hardware as serial.a" in problems_of(tmp_path, text)[0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing.toml", "there is no such file (looked for "),
        ("folder", "is a folder, not a file"),
        ("pipe", "is no regular file"),
        ("/dev/zero", "is no regular file"),
        ("/proc/self/mem", "cannot be read: Input/output error"),
        ("bad\0name", "cannot be read: embedded null byte"),
        ("x" * 300, "cannot be read: File name too long"),
        ("loop", "cannot be read: Too many levels of symbolic links"),
    ],
)
def test_what_is_no_file_is_named(tmp_path: Path, name: str, said: str) -> None:
    """A missing file, a folder, a pipe or a device gives a ConfigError at once; a link in a circle too."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ConfigError) as caught:
        DualConfig.load_from_file(os.path.join(tmp_path, name))
    (problem,) = caught.value.problems
    assert said in problem


# --- any bytes ----------------------------------------------------------------------------------------------------

_WORDS = [
    *["[v2]", "[v4]", "[[v2.instruments]]", "[[v4.instruments]]", "[[v2.programs]]", "[serial.a]", "[visa.b]"],
    *["[recording]", "[application]", "id = ", "driver = ", "serial = ", "visa = ", "kind = ", "path = "],
    *["resource = ", "timeout = ", "enabled = ", "options.x = ", "options = {", "'a'", "'b'", "'m:f'", "'task'"],
    *["true", "1", "-1", "0x1F", "nan", "1.5", "1979-05-27", "07:32:00", "'/dev/ttyS0'", "'GPIB::1::INSTR'"],
    *["'TCPIP::x::SOCKET'", "\n", "\n", "\n", "\r\n", "\r", "\0", "\ufeff", "é", "\x1b", " ", "\\u0000"],
    *["'''", '"""', '"', "'", "\\", "#", "=", ".", ",", "[", "]", "{", "}", "[[", "]]"],
]
_TOML_LIKE = st.lists(st.sampled_from(_WORDS), max_size=60).map("".join).map(str.encode)
_VALID_LINES = [line for content, _ in WRONG_FILES if isinstance(content, str) for line in content[:2000].split("\n")]
_SHUFFLED = st.lists(st.sampled_from(_VALID_LINES), max_size=20).map("\n".join).map(str.encode)


@settings(max_examples=600, deadline=None)
@given(st.binary(max_size=200) | _TOML_LIKE | _SHUFFLED)
@example(b"\xff\xfe[")
@example(b"a = 1979-13-45T99:99:99+99:99")
@example(b"x = '''\\")
def test_any_bytes_are_settings_or_one_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Whatever the bytes of the file, the result is a DualConfig or a ConfigError whose problems are single lines."""
    file = tmp_path_factory.getbasetemp() / "fuzzed.toml"
    file.write_bytes(data)
    try:
        config = DualConfig.load_from_file(file)
    except ConfigError as error:
        problems = error.problems
    else:
        assert config.v2.enabled or config.v4.enabled
        return
    assert problems
    for problem in problems:
        assert re.match(re.escape(str(file)) + r"(:\d+)?: ", problem)
        assert problem.isprintable()


def test_tables_inside_a_port_name_each_mistake(tmp_path):
    """Stations, identify and on_reconnect are read from tables, and every wrong one of them is named by its place."""
    file = tmp_path / "lab.toml"
    file.write_text(
        "[v2]\n[serial.bus]\npath = '/dev/a'\nunsolicited = 'EVENT .*'\n"
        "identify = { query = '*IDN?', expect = 'A.*' }\n"
        "on_reconnect = [ { write = 'RST' }, { query = 'MODE?', expect = '0' } ]\n"
        "[serial.bus.stations]\none = { query = '1 ECHO {nonce}', answer = '1 {nonce}' }\n"
    )
    bus = DualConfig.load_from_file(file).serial["bus"]
    assert (bus.unsolicited, bus.identify) == (b"EVENT .*", Exchange(query=b"*IDN?", expect=b"A.*"))
    assert bus.on_reconnect == (Exchange(write=b"RST"), Exchange(query=b"MODE?", expect=b"0"))
    assert dict(bus.stations) == {"one": SyncQuery("1 ECHO {nonce}", "1 {nonce}")}
    file.write_text(
        "[v2]\n[serial.bad]\npath = '/dev/a'\nidentify = { query = '*IDN?', expects = 'A' }\n"
        "on_reconnect = [ { write = 'RST' }, { querys = 'MODE?' }, 3 ]\nunsolicited = '('\n"
        "stations = { a = 3, b = { query = 'x' } }\n"
        "[serial.worse]\npath = '/dev/b'\nstations = 3\non_reconnect = 'RST'\n"
    )
    with pytest.raises(ConfigError) as caught:
        DualConfig.load_from_file(file)
    assert [problem.split(": ", 1)[1] for problem in caught.value.problems] == [
        "serial.bad.identify.expects: unknown key (did you mean 'expect'?)",
        "serial.bad.on_reconnect[1].querys: unknown key (did you mean 'query'?)",
        "serial.bad.on_reconnect[2]: expected a table, got 3",
        (
            "serial.bad.unsolicited: must be a regular expression, and b'(' is none: "
            "missing ), unterminated subpattern at position 0"
        ),
        "serial.bad.stations.a: expected a table, got 3",
        "serial.bad.stations.b: the key 'answer' is missing",
        "serial.worse.stations: expected a table of tables, got 3",
        "serial.worse.on_reconnect: expected a list of tables, got 'RST'",
    ]
