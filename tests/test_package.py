"""The package as a whole: its names and where they live, and what importing it costs."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import trio_daq

ROOMS = sorted(path.parent.name for path in Path(trio_daq.__file__).parent.glob("*/__init__.py"))


def room(name: str) -> object:
    return importlib.import_module(f"trio_daq.{name}")


@pytest.mark.parametrize("name", trio_daq.__all__)
def test_an_everyday_name_has_one_home(name):
    """Each name of the root is in the face of exactly one room, and is the same object there."""
    homes = [home for home in ROOMS if name in room(home).__all__]
    assert len(homes) == 1
    assert getattr(trio_daq, name) is getattr(room(homes[0]), name)


@pytest.mark.parametrize("name", ROOMS)
def test_the_face_of_a_room_holds(name):
    """All its names exist, each is listed once, and each is made in that very room."""
    face = room(name)
    assert len(set(face.__all__)) == len(face.__all__)
    for public in face.__all__:
        made_in = getattr(getattr(face, public), "__module__", None)
        if isinstance(made_in, str) and made_in.startswith("trio_daq."):
            assert made_in.split(".")[1] == name, f"{public} of {name} is made in {made_in}"


def test_no_two_rooms_offer_one_name():
    """A public name has one address below the root."""
    offered: dict[str, str] = {}
    for name in ROOMS:
        for public in room(name).__all__:
            assert public not in offered, f"{public} is offered by {offered[public]} and by {name}"
            offered[public] = name


def test_the_root_lists_its_names_and_no_others():
    """dir() shows every name, what is not there is an AttributeError that names it."""
    assert set(trio_daq.__all__) <= set(dir(trio_daq))
    assert len(set(trio_daq.__all__)) == len(trio_daq.__all__)
    with pytest.raises(AttributeError, match="'trio_daq' has no attribute 'SharedCereal'"):
        trio_daq.SharedCereal  # noqa: B018


def in_fresh_python(program: str) -> str:
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


def test_importing_the_package_is_light():
    """`import trio_daq`, which every pytest run of a user pays, brings in no library."""
    loaded = in_fresh_python(
        "import sys, trio_daq\n"
        "print(sorted({'trio', 'pyvisa', 'serial', 'attr', 'rich', 'asyncio'} & set(sys.modules)))"
    )
    assert loaded == "[]"


def test_a_name_loads_its_room_alone():
    """Asking for Reading brings in neither pyserial nor PyVISA."""
    loaded = in_fresh_python(
        "import sys\nfrom trio_daq import Reading\n"
        "print(sorted({'pyvisa', 'serial', 'trio_daq.visa'} & set(sys.modules)))"
    )
    assert loaded == "[]"


def test_asking_for_the_face_does_not_load_pyvisa():
    """PyVISA takes long to import, so it waits until a session is opened."""
    assert in_fresh_python("import sys, trio_daq.visa, trio_daq.cli\nprint('pyvisa' in sys.modules)") == "False"


def test_the_package_is_typed():
    """The marker for type checkers is there."""
    assert (Path(trio_daq.__file__).parent / "py.typed").exists()


@pytest.mark.skipif("TRIO_DAQ_INSTALLED" not in os.environ, reason="only where the wheel is to be tested")
def test_it_is_the_installed_package_that_is_tested():
    """Not the source tree beside the tests."""
    assert "site-packages" in Path(trio_daq.__file__).parts
    assert not Path(trio_daq.__file__).is_relative_to(Path(__file__).parents[1] / "trio_daq")


@pytest.mark.skipif("TRIO_DAQ_INSTALLED" not in os.environ, reason="only where the wheel is to be tested")
def test_the_command_is_installed():
    """`trio-daq` stands beside Python, and knows the version of the wheel."""
    from importlib.metadata import version

    command = Path(sys.executable).with_name("trio-daq")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == version("trio-daq")
