"""The instrument for the VISA benchmarks: SCPI over TCP on loopback, in a process of its own."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.programs import program

QUERY, REPLY_LENGTH = "*IDN?", 40
COMMAND = "CONF:VOLT:DC"
WAVEFORM_QUERY, FLAT_QUERY = "CURV?", "CURV? FLAT"
BLOCK_HEADER, BLOCK_LENGTH = b"#74000000", 4_000_000
"""Both blocks have it; in the waveform every byte occurs, in the flat one none is a line feed."""


@contextmanager
def tcp_instrument(ports: int = 1) -> Iterator[list[int]]:
    """Start one and give its *ports*, each good for many connections. It ends with this process in any case."""
    command = [*program("scpi_peer"), str(ports)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield [int(process.stdout.readline()) for _ in range(ports)]
        finally:
            process.stdin.close()
            try:
                process.wait(timeout=2)
            except subprocess.TimeoutExpired:
                process.kill()
