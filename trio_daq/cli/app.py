"""Commands, their arguments, and how their errors reach a person: one clear sentence, never a traceback."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated

import cyclopts
from rich.console import Console

from trio_daq.errors import ConfigError, DaqError, StartError
from trio_daq.lifecycle import EXIT_UNSAFE
from trio_daq.wire import printable

_USAGE = 2
_FAILED = 1
_INTERRUPTED = 130

_is_whole_process = ContextVar("trio_daq_is_whole_process", default=False)
"""Whether the process ends with the command."""

app = cyclopts.App(
    name="trio-daq",
    help="Share serial ports and VISA instruments between old blocking drivers and new async ones.",
    version_flags=["--version"],
)


@app.command
def demo(
    *,
    seconds: Annotated[float, cyclopts.Parameter(validator=cyclopts.validators.Number(gt=0, lte=86400))] = 10.0,
    directory: Path = Path("runs"),
) -> int:
    """Run a whole lab without hardware: simulated instruments, shared by old and new code, with faults.

    Args:
        seconds: How long it runs.
        directory: Where the recorded run and the instruments' logs go.
    """
    from trio_daq.cli.demo import run_demo

    return run_demo(seconds, directory)


@app.command
def run(config: Path) -> int:
    """Run the lab that a TOML file describes, until its members end or Ctrl-C.

    Args:
        config: The file.
    """
    from trio_daq.cli.run import run_config

    return run_config(config, exits=_is_whole_process.get())


@app.command
def check(config: Path) -> int:
    """Check a TOML file and the drivers that it names. Opens nothing.

    Args:
        config: The file.
    """
    from trio_daq.cli.run import check_config

    return check_config(config)


@app.command
def safe(config: Path) -> int:
    """Make every line of a TOML file that has a safe_state safe, now. No interlock: it needs the line to work.

    Args:
        config: The file.
    """
    from trio_daq.cli.run import make_config_safe

    return make_config_safe(config)


@app.command
def show(run: Path) -> int:
    """Show what a recorded run holds.

    Args:
        run: The run file.
    """
    from trio_daq.cli.show import show_run

    return show_run(run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 well, 1 failed, 2 wrong use or configuration, as `run` else."""
    _is_whole_process.set(arguments is None)
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        code = app(arguments, exit_on_error=False, error_console=errors, result_action="return_value")
    except cyclopts.CycloptsError:
        return _USAGE  # it has been explained already
    except KeyboardInterrupt:
        return _INTERRUPTED
    except (DaqError, OSError, BaseExceptionGroup) as error:
        leaves = _leaves(error)
        if any(isinstance(leaf, KeyboardInterrupt) for leaf in leaves):
            return _INTERRUPTED
        if not all(isinstance(leaf, (DaqError, OSError)) for leaf in leaves):
            raise  # a bug: its traceback is what helps
        for leaf in leaves:
            for line in str(leaf).splitlines():
                errors.print(f"trio-daq: {printable(line, 2000)}", markup=False)
        if any(isinstance(leaf, StartError) and getattr(leaf.report, "unsafe", ()) for leaf in leaves):
            return EXIT_UNSAFE
        return _USAGE if isinstance(leaves[0], ConfigError) else _FAILED
    return int(code or 0)


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for one in error.exceptions for leaf in _leaves(one)]
    return [error]
