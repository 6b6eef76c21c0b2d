"""What a command through the queue of a VISA session costs, beside PyVISA, bare sockets, plain Trio and scpipy.

Run it as ``nox -s bench`` or ``python benchmarks/visa.py``; ``--quick`` takes 20 s, ``--profile`` says where the
time of a query goes.
"""

import argparse
import sys
from pathlib import Path

# As a script this file brings its folder, where serial.py would be found under the name of pyserial: the folder leaves
# the path, the one above comes last.
_HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != _HERE] + [str(_HERE.parent)]

import trio  # noqa: E402

from benchmarks import visa_contestants as others  # noqa: E402
from benchmarks import visa_sessions as ours  # noqa: E402
from benchmarks.interleaved import Row, compare  # noqa: E402
from benchmarks.programs import language  # noqa: E402
from benchmarks.visa_memory import KINDS, print_memory, print_one  # noqa: E402
from benchmarks.where_it_goes import print_profile  # noqa: E402

LATENCIES = {1: 1, 10: 5, 100: 50}
"""Milliseconds that a command may wait in a queue of this depth, by the first description of this project."""


def queries() -> list[Row]:
    base = ("blocking pyvisa-py query", others.pyvisa_query)
    native, by_thread = "query, native", "query, pyvisa transport"
    in_thread = ("trio.to_thread per command", others.pyvisa_in_thread)
    return [
        Row(native, ours.native_query, *base, wall_target=1.3),
        Row(by_thread, ours.pyvisa_query, *base, wall_target=2.8),
        Row("batch of 10, native, per command", ours.native_batch, *base),
        Row("batch of 10, pyvisa transport, per command", ours.pyvisa_batch, *base, wall_target=1.3),
        Row(native, ours.native_query, "plain trio.SocketStream", others.plain_trio),
        Row(native, ours.native_query, "the same, Lock, fail_after", others.plain_trio_locked),
        Row(native, ours.native_query, *in_thread),
        Row(by_thread, ours.pyvisa_query, *in_thread),
        Row(by_thread, ours.pyvisa_query, "scpipy (asyncio, pyvisa-py)", others.scpipy),
        Row("raw blocking socket", others.raw_socket, *base),
        Row("plain trio.SocketStream, no guard", others.plain_trio, *base),
        Row("plain trio.SocketStream with Lock, fail_after", others.plain_trio_locked, *base),
        Row("pyvisa-py in trio.to_thread per command", others.pyvisa_in_thread, *base),
        Row("scpipy, no deadline but PyVISA's", others.scpipy, *base),
    ]


def writes() -> list[Row]:
    """Against Nagle's algorithm: the base sleeps 44 ms each time, so a loaded machine slows only the others."""
    base = ("blocking pyvisa-py", others.pyvisa_write_query)
    target, few = {"wall_target": 0.01}, {"base_size": 3, "rounds_for_one": 6}
    return [
        Row("write + query, native", ours.native_write_query, *base, **target, **few),
        Row("write + query, pyvisa transport", ours.pyvisa_write_query, *base, **target, **few),
        Row("write + query, plain trio.SocketStream", others.plain_trio_write_query, *base, **few),
        Row("write + query, trio.to_thread", others.pyvisa_in_thread_write_query, *base, size=3, **few),
        Row("write + query, scpipy", others.scpipy_write_query, *base, size=3, **few),
    ]


def blocks() -> list[Row]:
    """Of 4 MB: 20 times the throughput is 0.05 of the time."""
    base = ("query_binary_values", others.pyvisa_waveform)
    flat = ("query_binary_values", others.pyvisa_flat)
    few = {"size": 4, "base_size": 1, "rounds_for_one": 4}
    return [
        Row("4 MB block, native", ours.native_waveform, *base, wall_target=0.05, **few),
        Row("4 MB block, pyvisa transport", ours.pyvisa_waveform, *base, wall_target=0.05, **few),
        Row("4 MB block, plain trio.SocketStream", others.plain_trio_waveform, *base, **few),
        Row("4 MB block, pyvisa-py, exact count by hand", others.pyvisa_exact_count, *base, **few),
        Row("4 MB block without line feeds, pyvisa-py", others.pyvisa_flat, *base, **few),
        Row("4 MB block without line feeds, native", ours.native_flat, *flat, **few),
    ]


def latencies() -> list[Row]:
    """What the last of several queries at once takes beyond as many, one by one, on what is under the queue."""
    bare = {"native": others.plain_trio_one_by_one, "pyvisa": ours.worker_thread_one_by_one}
    return [
        Row(
            f"queue latency at depth {depth}, {transport}",
            ours.at_once(transport, depth),
            f"beyond bare: of {milliseconds} ms",
            bare[transport](depth),
            wall_target=0.2,
            size=max(1, 50 // depth),
            rounds_for_one=2,
            allowance=milliseconds * 1e3,
        )
        for transport in bare
        for depth, milliseconds in LATENCIES.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--size", type=int, default=60, help="operations in a block")
    parser.add_argument("--quick", action="store_true", help="few rounds of short blocks")
    parser.add_argument("--only", default="", help="part of a row's name")
    parser.add_argument(
        "--profile", nargs="?", choices=["native", "pyvisa"], const="native", help="say where the time of a query goes"
    )
    parser.add_argument("--memory-of", choices=KINDS, help="print only what one of these takes, in this process")
    parser.add_argument("--traced", action="store_true", help="as Python's allocator sees it")
    arguments = parser.parse_args()
    rounds, size = (9, 30) if arguments.quick else (arguments.rounds, arguments.size)
    if arguments.profile:
        trio.run(print_profile, ours.query(arguments.profile), rounds * size)
        return
    if arguments.memory_of:
        print_one(arguments.memory_of, arguments.traced)
        return
    rows = [row for row in queries() + writes() + blocks() + latencies() if arguments.only in row.name]
    if rows:
        print(f"VISA sessions on loopback TCP; the instruments are written in {language()}")
        trio.run(compare, rows, rounds, size)
    if arguments.only in "memory":
        print_memory(__file__)


if __name__ == "__main__":
    main()
