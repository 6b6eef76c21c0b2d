"""What a query of an old program costs through ``@trio_daq``, beside pyvisa-py as it is and with TCP_NODELAY set.

By raw PyVISA and, where they are installed, by an instrument of PyMeasure and one of QCoDeS, as in ``nox -s legacy``.
Run it as ``nox -s bench`` or ``python benchmarks/legacy.py``; ``--quick`` takes 20 s.
"""

import argparse
import sys
from pathlib import Path

# As a script this file brings its folder, where serial.py would be found under the name of pyserial: the folder leaves
# the path, the one above comes last.
_HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != _HERE] + [str(_HERE.parent)]

import trio  # noqa: E402

from benchmarks import legacy_contestants as programs  # noqa: E402
from benchmarks.interleaved import Row, compare  # noqa: E402
from benchmarks.programs import language  # noqa: E402

FEW = {"base_size": 3, "rounds_for_one": 6}
"""For a base that sleeps 44 ms each time."""


def rows() -> list[Row]:
    table = []
    for library, query, write_query in (
        ("pyvisa", programs.raw_query, programs.raw_write_query),
        ("PyMeasure", programs.pymeasure_ask, programs.pymeasure_write_ask),
        ("QCoDeS", programs.qcodes_ask, programs.qcodes_write_ask),
    ):
        prompt, plain, shared = programs.PROMPT, programs.PLAIN, programs.SHARED
        table += [
            Row(f"{library} query", query(shared), "pyvisa-py, TCP_NODELAY", query(prompt)),
            Row(f"{library} query", query(shared), "pyvisa-py as it is", query(plain)),
            Row(f"{library} write + query", write_query(shared), "pyvisa-py, TCP_NODELAY", write_query(prompt)),
            Row(f"{library} write + query", write_query(shared), "pyvisa-py as it is", write_query(plain), **FEW),
        ]
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--size", type=int, default=60, help="operations in a block")
    parser.add_argument("--quick", action="store_true", help="few rounds of short blocks")
    parser.add_argument("--only", default="", help="part of a row's name")
    arguments = parser.parse_args()
    rounds, size = (9, 30) if arguments.quick else (arguments.rounds, arguments.size)
    chosen = [row for row in rows() if arguments.only in row.name]
    print(f"old programs on loopback TCP; the instruments are written in {language()}")
    trio.run(compare, chosen, rounds, size)


if __name__ == "__main__":
    main()
