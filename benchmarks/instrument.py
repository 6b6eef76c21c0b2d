"""Instruments for the serial benchmarks: each on a pty of its own, in a process of its own."""

import os
import subprocess
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.programs import program

QUERY = b"q" * 31 + b"\n"
REPLY_LENGTH = 40


@contextmanager
def instrument() -> Iterator[str]:
    """Start one and give the path of its port."""
    master, client = os.openpty()  # the client stays open here: when this process ends, however, the instrument does
    tty.setraw(master)
    tty.setraw(client)
    command = [*program("echo_peer"), str(master)]
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
