"""The programs that play the instruments: in C where there is a compiler, else in Python.

What a query costs beside the base is the question, and a slow instrument would hide it.
"""

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_HERE = Path(__file__).parent


@functools.cache
def language() -> str:
    """Return in which language the instruments are written here."""
    return "C" if os.name == "posix" and shutil.which("cc") else "Python"


@functools.cache
def program(name: str) -> tuple[str, ...]:
    """Return the command that starts instrument *name*, a file in this folder for each language."""
    if language() == "Python":
        return sys.executable, str(_HERE / f"{name}.py")
    folder = tempfile.TemporaryDirectory(prefix="trio_daq_bench_")
    atexit.register(folder.cleanup)
    compiled = str(Path(folder.name) / name)
    subprocess.run(["cc", "-O2", "-o", compiled, str(_HERE / f"{name}.c")], check=True)
    return (compiled,)
