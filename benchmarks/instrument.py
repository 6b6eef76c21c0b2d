"""Instruments for the serial benchmarks: each on a pty of its own, in a process of its own.

In C where there is a compiler, since what a query costs beside the base is the question, and a slow instrument would
hide it.
"""

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

QUERY = b"q" * 31 + b"\n"
REPLY_LENGTH = 40

_HERE = Path(__file__).parent


@contextmanager
def instrument() -> Iterator[str]:
    """Start one and give the path of its port."""
    master, client = os.openpty()  # the client stays open here: when this process ends, however, the instrument does
    tty.setraw(master)
    tty.setraw(client)
    command = [*_program(), str(master)]
    with subprocess.Popen(command, pass_fds=[master], stdin=subprocess.DEVNULL) as process:
        os.close(master)
        try:
            yield os.ttyname(client)
        finally:
            os.close(client)
            try:
                process.wait(timeout=2)
            except subprocess.TimeoutExpired:  # somebody still has the port open
                process.kill()


@functools.cache
def language() -> str:
    """Return in which language the instruments are written here."""
    return "C" if shutil.which("cc") else "Python"


@functools.cache
def _program() -> tuple[str, ...]:
    if language() == "Python":
        return sys.executable, str(_HERE / "echo_peer.py")
    folder = tempfile.TemporaryDirectory(prefix="trio_daq_bench_")
    atexit.register(folder.cleanup)
    program = str(Path(folder.name) / "echo_peer")
    subprocess.run(["cc", "-O2", "-o", program, str(_HERE / "echo_peer.c")], check=True)
    return (program,)
