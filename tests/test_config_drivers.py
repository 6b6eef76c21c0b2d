"""Drivers named in the settings: imported, and held against how they will be called."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trio_daq.config import (
    DualConfig,
    MemberConfig,
    ResolvedDriver,
    SubsystemConfig,
    check_drivers,
    resolve_driver,
)
from trio_daq.errors import ConfigError

Write = Callable[[str], str]
FUNCTIONS = """
import functools

def ramp(*, serial, rate, steps=3):
    pass

async def sweep(visa, context, **options):
    pass

def anything(**options):
    pass

def by_position(serial, /):
    pass

def bare():
    pass

def stream():
    yield 1

async def astream():
    yield 1

class Caller:
    async def __call__(self, *, visa):
        pass

caller = Caller()
slow = functools.partial(ramp, rate=1)
number = 3

class Group:
    @staticmethod
    def run(*, serial):
        pass

class NoActor:
    pass

def old(context=None, /):
    pass
"""


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    """Write driver modules into tmp_path, each under a name of its own; forget them afterwards."""
    written: list[str] = []

    def module(text: str) -> str:
        name = f"driver_{abs(hash(tmp_path))}_{len(written)}"
        (tmp_path / f"{name}.py").write_text(text)
        written.append(name)
        return name

    yield module
    for name in written:
        sys.modules.pop(name, None)


def resolve(tmp_path: Path, driver: str, **settings: Any) -> ResolvedDriver:
    """Resolve the driver of a member called x."""
    return resolve_driver(MemberConfig(id="x", driver=driver, **settings), tmp_path)


@pytest.mark.parametrize(
    ("name", "settings", "kind", "wants_context"),
    [
        ("ramp", {"serial": "s", "options": {"rate": 1}}, "thread", False),
        ("ramp", {"serial": ["s", "t"], "options": {"rate": 1, "steps": 4}, "kind": "thread"}, "thread", False),
        ("sweep", {"visa": "d", "options": {"a": 1}}, "task", True),
        ("sweep", {"visa": "d", "kind": "task"}, "task", True),
        ("sweep", {"visa": "d", "kind": "asyncio"}, "asyncio", True),
        ("caller", {"visa": "d", "kind": "asyncio"}, "asyncio", False),
        ("anything", {"serial": "s", "visa": "d", "options": {"a": 1}}, "thread", False),
        ("bare", {}, "thread", False),
        ("caller", {"visa": "d"}, "task", False),
        ("slow", {"serial": "s"}, "thread", False),
        ("Group.run", {"serial": "s"}, "thread", False),
        ("old", {}, "thread", False),
    ],
)
def test_a_driver_that_fits_is_resolved(
    tmp_path: Path, write: Write, name: str, settings: dict[str, Any], kind: str, wants_context: bool
) -> None:
    """A function, an object or a partial is imported, and its kind and wish for a context are found out."""
    module = write(FUNCTIONS)
    found = resolve(tmp_path, f"{module}:{name}", **settings)
    assert (found.kind, found.wants_context) == (kind, wants_context)
    expected = functools.reduce(getattr, name.split("."), sys.modules[module])
    assert found.target is expected
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("ramp", {"serial": "s"}, "x.driver: {m}:ramp ({m}.py:4) needs the option 'rate', which is not given"),
        ("ramp", {"options": {"rate": 1}}, "x.driver: {m}:ramp ({m}.py:4) needs the key 'serial', which is not given"),
        (
            "ramp",
            {"serial": "s", "options": {"rate": 1, "stepps": 1}},
            "x.options.stepps: {m}:ramp ({m}.py:4) has no parameter 'stepps' (did you mean 'steps'?)",
        ),
        (
            "ramp",
            {"serial": "s", "visa": "d", "options": {"rate": 1}},
            "x.visa: {m}:ramp ({m}.py:4) has no parameter 'visa'",
        ),
        (
            "anything",
            {"options": {"serial": 1}},
            "x.options.serial: 'serial' is no option: the lab itself passes it to the driver",
        ),
        (
            "sweep",
            {"visa": "d", "options": {"context": 1}},
            "x.options.context: 'context' is no option: the lab itself passes it to the driver",
        ),
        (
            "by_position",
            {},
            "x.driver: {m}:by_position ({m}.py:13) needs 'serial' by position, and drivers are called by keyword",
        ),
        ("slow", {}, "x.driver: {m}:slow ({m}.py:4) needs the key 'serial', which is not given"),
        ("rmap", {}, "x.driver: {m} ({m}.py) has no 'rmap' (did you mean 'ramp'?)"),
        ("Group.rum", {}, "x.driver: Group ({m}.py:33) has no 'rum' (did you mean 'run'?)"),
        ("number", {}, "x.driver: {m}:number is int, which cannot be called"),
        (
            "sweep",
            {"visa": "d", "kind": "thread"},
            (
                "x.kind: 'thread' does not fit: {m}:sweep ({m}.py:7) is an async function; write kind = 'task' or "
                "nothing, or 'asyncio' if it is written for asyncio"
            ),
        ),
        (
            "bare",
            {"kind": "task"},
            "x.kind: 'task' does not fit: {m}:bare ({m}.py:16) is a plain callable; write kind = 'thread' or nothing",
        ),
        (
            "bare",
            {"kind": "asyncio"},
            (
                "x.kind: 'asyncio' does not fit: {m}:bare ({m}.py:16) is a plain callable; "
                "write kind = 'thread' or nothing"
            ),
        ),
        ("stream", {}, "x.driver: {m}:stream ({m}.py:19) holds a 'yield', so calling it runs nothing; take it out"),
        ("astream", {}, "x.driver: {m}:astream ({m}.py:22) holds a 'yield', so calling it runs nothing; take it out"),
        (
            "caller",
            {"visa": "d", "serial": "s"},
            "x.serial: {m}:caller ({m}.py:25) has no parameter 'serial'",
        ),
    ],
)
def test_a_driver_that_does_not_fit_is_named_with_its_place(
    tmp_path: Path, write: Write, name: str, settings: dict[str, Any], said: str
) -> None:
    """What cannot be called as the settings say is told with file and line of the driver's definition."""
    module = write(FUNCTIONS)
    with pytest.raises(ConfigError) as caught:
        resolve(tmp_path, f"{module}:{name}", **settings)
    assert list(caught.value.problems) == [said.replace("{m}", module)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def run(:\n    pass", "does not import: {m}.py:1: SyntaxError: invalid syntax"),
        ("x = 1\nif x:\n\ty = 1\n        z = 1", "does not import: {m}.py:4: TabError: inconsistent use of tabs"),
        ("x = 1\n\n1 / 0\n", "does not import: {m}.py:3: ZeroDivisionError: division by zero"),
        ("def f():\n    1 / 0\n\nf()\n", "does not import: {m}.py:2: ZeroDivisionError: division by zero"),
        (
            "import no_such_module_here",
            "does not import: {m}.py:1: ModuleNotFoundError: No module named 'no_such_modul",
        ),
        ("\nfrom json import lods", "does not import: {m}.py:2: ImportError: cannot import name 'lods' from 'json'"),
        ("import sys\nsys.exit(3)", "does not import: {m}.py:2: SystemExit: 3"),
        ("import json\n\njson.loads('{')", "does not import: {m}.py:3: JSONDecodeError: Expecting property name"),
        ("raise KeyError('a\\nb\\x1b[31m')", "does not import: {m}.py:1: KeyError: 'a\\nb\\x1b[31m'"),
        ("# \xb5\0", "does not import: "),
    ],
)
def test_a_module_that_does_not_import_is_named_with_the_failing_line(
    tmp_path: Path, write: Write, text: str, said: str
) -> None:
    """Whatever a module raises when it is imported is told in one line, with the line of the module that failed."""
    module = write(text)
    with pytest.raises(ConfigError) as caught:
        resolve(tmp_path, f"{module}:run")
    (problem,) = caught.value.problems
    assert problem.startswith("x.driver: " + said.replace("{m}", module))
    assert problem.isprintable()


def test_a_missing_module_is_named_with_where_it_was_looked_for(tmp_path: Path) -> None:
    """A module that is nowhere is told apart from one that fails."""
    with pytest.raises(ConfigError) as caught:
        resolve(tmp_path, "no_such_driver.sub:run")
    expected = f"x.driver: no module 'no_such_driver' in {tmp_path} and the installed packages"
    assert list(caught.value.problems) == [expected]


def test_a_builtin_without_a_signature_is_refused(tmp_path: Path) -> None:
    """A C function that does not tell its parameters cannot be checked, so it is refused with the cure."""
    with pytest.raises(ConfigError, match="does not tell its parameters; wrap it in a function"):
        resolve(tmp_path, "time:sleep")


def test_the_folder_of_the_file_comes_first(tmp_path: Path, write: Write) -> None:
    """A driver beside the config file is found before an installed one, and its imports of neighbours work."""
    (tmp_path / "this.py").write_text("def run(): pass")  # also the name of a module of Python
    try:
        assert resolve(tmp_path, "this:run").kind == "thread"
    finally:
        sys.modules.pop("this", None)
    neighbour = write("VALUE = 1")
    module = write(f"from {neighbour} import VALUE\ndef run(): pass")
    assert resolve(tmp_path, f"{module}:run").kind == "thread"
    with pytest.raises(ConfigError, match="no module"):
        resolve_driver(MemberConfig(id="x", driver=f"{write('def run(): pass')}:run"))


def test_all_drivers_are_checked_at_once(tmp_path: Path, write: Write) -> None:
    """All problems of all members come in one error with their lines; a disabled side is left alone."""
    module = write(FUNCTIONS)
    (tmp_path / "lab.toml").write_text(f"""\
[serial.stage]
path = "/dev/ttyS0"
[v2]
[[v2.programs]]
id = "late"
driver = "{module}:nothing"
[[v2.instruments]]
id = "a"
driver = "{module}:ramp"
serial = "stage"
[v2.instruments.options]
rat = 1
[[v2.instruments]]
id = "b"
driver = "{module}:sweep"
kind = "thread"
[v4]
enabled = false
[[v4.instruments]]
id = "c"
driver = "nowhere:nothing"
""")
    with pytest.raises(ConfigError) as caught:
        check_drivers(DualConfig.load_from_file(tmp_path / "lab.toml"))
    places = [problem.removeprefix(f"{tmp_path}/").split(": ")[:2] for problem in caught.value.problems]
    assert places == [
        ["lab.toml:6", "v2.programs[0].driver"],
        ["lab.toml:9", "v2.instruments[0].driver"],
        ["lab.toml:12", "v2.instruments[0].options.rat"],
        ["lab.toml:16", "v2.instruments[1].kind"],
    ]


def test_drivers_of_settings_made_in_python_are_checked(tmp_path: Path, write: Write) -> None:
    """Settings that came from no file give the drivers by id, and problems without a line."""
    module = write(FUNCTIONS)

    def config(driver: str) -> DualConfig:
        member = MemberConfig(id="x", driver=f"{module}:{driver}")
        return DualConfig(v2=SubsystemConfig(instruments=[member]), folder=tmp_path)

    assert check_drivers(config("bare"))["x"].target is sys.modules[module].bare
    with pytest.raises(ConfigError) as caught:
        check_drivers(config("barre"))
    (problem,) = caught.value.problems
    assert problem.startswith("v2.instruments[0].driver: ")


def test_a_function_is_no_actor(tmp_path: Path, write: Write) -> None:
    """On V4 only actors run, also where the member names no kind."""
    member = MemberConfig(id="x", driver=f"{write(FUNCTIONS)}:bare")
    with pytest.raises(ConfigError, match="'thread' does not run on"):
        check_drivers(DualConfig(v4=SubsystemConfig(instruments=[member]), folder=tmp_path))


def test_an_actor_is_bound_against_its_init(tmp_path: Path, write: Write) -> None:
    """A subclass of Actor is of kind actor, and its __init__ is what the settings are held against."""
    module = write(
        "from trio_daq.actors import Actor\n\nclass Meter(Actor):\n    def __init__(self, *, visa, every=1.0): pass\n"
    )
    found = resolve(tmp_path, f"{module}:Meter", visa="d", options={"every": 2})
    assert (found.kind, found.wants_context) == ("actor", False)
    with pytest.raises(ConfigError) as caught:
        resolve(tmp_path, f"{module}:Meter", options={"evry": 2})
    assert [problem.replace(module, "m") for problem in caught.value.problems] == [
        "x.options.evry: m:Meter (m.py:3) has no parameter 'evry' (did you mean 'every'?)",
        "x.driver: m:Meter (m.py:3) needs the key 'visa', which is not given",
    ]


def test_kind_actor_needs_an_actor(tmp_path: Path, write: Write) -> None:
    """A class that is no Actor, or a function, is refused where an actor is asked for, and an actor where none is."""
    module = write(FUNCTIONS + "\nfrom trio_daq.actors import Actor\n\nclass Meter(Actor): pass\n")
    for name in ("NoActor", "bare"):
        with pytest.raises(ConfigError, match=r"'actor' does not fit: .* is a plain callable"):
            resolve(tmp_path, f"{module}:{name}", kind="actor")
    with pytest.raises(ConfigError, match=r"'task' does not fit: .* is an actor"):
        resolve(tmp_path, f"{module}:Meter", kind="task")


def test_built_in_driver_is_not_for_asyncio(tmp_path: Path) -> None:
    """Both are async functions, and which of the two worlds a function is for does not show: ours are known."""
    with pytest.raises(
        ConfigError, match=r"'asyncio' does not fit: scpi_poll .*is built in, an async function for Trio"
    ):
        resolve(tmp_path, "scpi_poll", visa="d", kind="asyncio", options={"queries": {"v": "V?"}})
