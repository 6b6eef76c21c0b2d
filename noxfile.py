"""Every check of this project: ``nox`` runs what must pass, ``nox -s docs bench legacy soak`` the rest."""

from pathlib import Path

import nox

nox.needs_version = ">=2025.10"
nox.options.sessions = ["lint", "typing", "tests"]
nox.options.error_on_external_run = True
nox.options.default_venv_backend = "venv"

BENCHMARKS = ["serial.py", "visa.py", "actors.py", "legacy.py"]

LEGACY_TESTS = [
    "tests/test_legacy_pymeasure.py",
    "tests/test_legacy_pymeasure_serial.py",
    "tests/test_legacy_pymeasure_drivers.py",
    "tests/test_legacy_qcodes_drivers.py",
    "tests/test_legacy_scripts.py",
    "tests/test_legacy_soup.py",
]
"""Those that need what the dependency group ``legacy`` has."""

PROJECT = nox.project.load_toml("pyproject.toml")


def group(name: str) -> list[str]:
    """Requirements of a dependency group of pyproject.toml."""
    return nox.project.dependency_groups(PROJECT, name)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, format, and who may import whom."""
    session.install(*group("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports")


@nox.session
def typing(session: nox.Session) -> None:
    """Strict types."""
    session.install(".", *group("typing"))
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """All tests, against the installed wheel: the source tree is not on the import path."""
    session.install(".", *group("test"))
    # Most tests wait for instruments, so three processes take less than half of the time of one, on two cores too.
    at_once = [] if session.posargs else ["-n", "3", "--dist", "loadfile"]
    session.run("pytest", *at_once, *session.posargs, env={"TRIO_DAQ_INSTALLED": "1"})


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error."""
    session.install(".", *group("docs"))
    session.run("sphinx-build", "-W", "-q", "docs", "docs/_build")


@nox.session
def bench(session: nox.Session) -> None:
    """Ratios to other libraries, measured side by side. Never part of a test."""
    session.install(".", *group("bench"))
    for script in BENCHMARKS:
        session.run("python", "-P", str(Path("benchmarks", script)), *session.posargs)


@nox.session
def legacy(session: nox.Session) -> None:
    """Old programs as they are, on shared lines: stops, drivers, 5000 questions of a soup; and what a query costs."""
    session.install(".", *group("test"), *group("legacy"))
    long = {"TRIO_DAQ_INSTALLED": "1", "TRIO_DAQ_PYMEASURE_STOPS": "100", "TRIO_DAQ_SOUP_COMMANDS": "5000"}
    session.run("pytest", *LEGACY_TESTS, *session.posargs, env=long)
    session.run("python", "-P", str(Path("benchmarks", "legacy.py")), "--quick")


@nox.session
def soak(session: nox.Session) -> None:
    """Shared ports and sessions under every kind of fault, judged by the instrument's own log; takes an hour."""
    session.install(".")
    session.run("python", "tests/soak", *session.posargs)
