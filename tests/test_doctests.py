"""The examples in the docstrings."""

import doctest
import importlib
import pkgutil

import pytest

import trio_daq

MODULES = sorted(
    info.name for info in pkgutil.walk_packages(trio_daq.__path__, "trio_daq.") if not info.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_each_module_do_what_they_say(name: str) -> None:
    """Every example in a docstring runs and prints what stands there."""
    module = importlib.import_module(name)
    names = {"trio": importlib.import_module("trio"), "tempfile": importlib.import_module("tempfile")}
    for package in ("data", "recording"):
        names |= vars(importlib.import_module(f"trio_daq.{package}"))
    failed, _ = doctest.testmod(module, extraglobs=names, raise_on_error=False)
    assert failed == 0
