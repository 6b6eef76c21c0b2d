"""A program that records until somebody ends it: what test_recording_crash.py kills.

``recording_writer.py DIRECTORY SURVIVES [LIMIT]`` prints the path of the run file, then a line ``INSTRUMENT SEQ`` for
each acknowledgement. With LIMIT no file may grow beyond so many bytes, and it ends with a line ``failed REASON``.
"""

import os
import sys

import trio

from trio_daq.data import DataDistributor, DataPublisher
from trio_daq.errors import RecordingError
from trio_daq.recording import Recorder


def say(text):
    os.write(1, text.encode() + b"\n")


async def publish(distributor, instrument, row):
    publisher = DataPublisher(distributor, instrument)
    while True:
        seq = distributor.next_seq(instrument)
        # The value tells which reading it is, so that the reader can check it without having seen it.
        await publisher.publish("count", [float(seq)] * row if row else float(seq), "1")
        if seq % 50 == 0:
            await trio.lowlevel.checkpoint()


async def tell(recorder, instrument):
    seq = 0
    while True:
        await recorder.wait_acknowledged(instrument, seq)
        seq = recorder.acknowledged(instrument)
        say(f"{instrument} {seq}")
        seq += 1


async def main(directory, survives, limit=None):
    distributor = DataDistributor(capacity=200)  # small blocks, so that many commits fit into a short life
    recorder = Recorder(distributor, directory, "crash", survives=survives)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(recorder.serve)
            say(str(recorder.path))
            if limit is not None:
                import resource

                resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
            for instrument, row in (("dmm", 0), ("scope", 8)):
                nursery.start_soon(publish, distributor, instrument, row)
                nursery.start_soon(tell, recorder, instrument)
    except* RecordingError as errors:
        say(f"failed {errors.exceptions[0].reason}")


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
