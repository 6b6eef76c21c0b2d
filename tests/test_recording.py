"""The recorder and the reader of run files, in one process."""

import contextlib
import os
import sqlite3
import struct

import pytest
import trio
import trio.testing

from trio_daq.data import DataDistributor, DataPublisher, Reading
from trio_daq.errors import AcknowledgeTimeoutError, RecordingError, RunFileError, StateError
from trio_daq.recording import ChannelSummary, Recorder, open_run


@pytest.fixture
def distributor():
    return DataDistributor()


@pytest.fixture
def recorder(distributor, tmp_path):
    return Recorder(distributor, tmp_path / "runs", "test", metadata={"sample": "A7", "name": "mine"})


async def publish(distributor, instrument, count, value=float):
    """Publish *count* readings and return them."""
    publisher = DataPublisher(distributor, instrument)
    return [await publisher.publish("count", value(number), "1") for number in range(count)]


async def publish_while_cancelled(distributor, count):
    with trio.CancelScope(shield=True):
        return await publish(distributor, "dmm", count)


async def record(distributor, directory, *values):
    """Record *values* in a run of their own, and return its path."""
    recorder = Recorder(distributor, directory, "small")
    async with trio.open_nursery() as nursery:
        await nursery.start(recorder.serve)
        for value in values:
            await DataPublisher(distributor, "dmm").publish("v", value, "V")
            await recorder.wait_acknowledged("dmm", distributor.next_seq("dmm") - 1)
        recorder.stop()
    return recorder.path


# --- recording -------------------------------------------------------------------------------------------------------


async def test_rows_in_the_file_are_those_acknowledged_and_those_published(distributor, recorder):
    """From several tasks at once, more than the ring holds: published = acknowledged = in the file."""
    published = {}

    async def run_one(name, count):
        published[name] = await publish(distributor, name, count)

    async with trio.open_nursery() as nursery:
        await nursery.start(recorder.serve)
        async with trio.open_nursery() as publishers:
            for name, count in (("dmm", 9000), ("psu", 70), ("scope", 1)):
                publishers.start_soon(run_one, name, count)
        for name, readings in published.items():
            await recorder.wait_acknowledged(name, readings[-1].seq)
        recorder.stop()
    statistics = recorder.statistics()
    with open_run(recorder.path) as run:
        for name, readings in published.items():
            assert list(run.readings(name)) == readings
            assert recorder.acknowledged(name) == readings[-1].seq
        assert statistics.rows == len(list(run.readings())) == 9071
    assert statistics.rows_by_instrument == {"dmm": 9000, "psu": 70, "scope": 1}
    assert 1 <= statistics.blocks <= 9071
    assert 0 < statistics.longest_commit < 5


async def test_every_float_comes_back_bit_for_bit(distributor, tmp_path):
    """NaN with a payload, infinities, negative zero, an array and an empty array survive the file."""
    odd = struct.unpack("<d", struct.pack("<Q", 0x7FF4_0000_0000_BEEF))[0]
    path = await record(distributor, tmp_path, odd, -0.0, float("-inf"), (odd, -0.0), ())
    with open_run(path) as run:
        values = [reading.value for reading in run.readings()]
    assert struct.pack("<d", values[0]) == struct.pack("<Q", 0x7FF4_0000_0000_BEEF)
    assert struct.pack("<d", values[1]) == struct.pack("<d", -0.0)
    assert values[2] == float("-inf")
    assert struct.pack("<2d", *values[3]) == struct.pack("<Qd", 0x7FF4_0000_0000_BEEF, -0.0)
    assert values[4] == ()


async def test_stop_records_what_was_published_before_it_and_nothing_later(distributor, recorder):
    """Readings published right before stop are in the file though nobody waited; later ones are not."""
    async with trio.open_nursery() as nursery:
        await nursery.start(recorder.serve)
        before = await publish(distributor, "dmm", 300)
        recorder.stop()
    await publish(distributor, "dmm", 5)
    with open_run(recorder.path) as run:
        assert list(run.readings()) == before
        assert run.ended_well
        assert run.ended_ns >= run.started_ns
    assert recorder.acknowledged("dmm") == 299
    assert os.listdir(recorder.path.parent) == [recorder.path.name]


async def test_stop_ends_although_somebody_goes_on_publishing(distributor, recorder):
    """A publisher that never rests cannot keep stop from ending the run."""

    async def publish_for_ever():
        while True:
            await DataPublisher(distributor, "dmm").publish("v", 1.0)
            await trio.lowlevel.checkpoint()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(recorder.serve)
            nursery.start_soon(publish_for_ever)
            await recorder.wait_acknowledged("dmm", 1000)
            recorder.stop()
            with pytest.raises(RecordingError):
                await recorder.wait_acknowledged("dmm", 10**9)
            nursery.cancel_scope.cancel()
    with open_run(recorder.path) as run:
        assert run.ended_well
        assert sum(1 for _ in run.readings()) == recorder.statistics().rows


async def test_cancellation_keeps_what_was_published_and_marks_the_run(distributor, recorder):
    """A cancelled recorder takes what was published, closes the file, and does not call that a good end."""
    async with trio.open_nursery() as nursery:
        await nursery.start(recorder.serve)
        published = await publish(distributor, "dmm", 300)
        nursery.cancel_scope.cancel()
    with open_run(recorder.path) as run:
        assert list(run.readings()) == published
        assert not run.ended_well
        assert run.ended_ns is not None
    assert recorder.acknowledged("dmm") == 299
    assert os.listdir(recorder.path.parent) == [recorder.path.name]


async def test_cancellation_in_the_middle_of_a_commit_waits_for_it(distributor, recorder):
    """A block whose commit was under way when the recorder was cancelled is in the file, acknowledged, and closed."""
    async with trio.open_nursery() as nursery:
        await nursery.start(recorder.serve)
        with contextlib.closing(sqlite3.connect(recorder.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            published = await publish(distributor, "dmm", 10)
            await trio.testing.wait_all_tasks_blocked()  # the commit waits for the lock
            nursery.cancel_scope.cancel()
            published += await publish_while_cancelled(distributor, 5)
    with open_run(recorder.path) as run:
        assert list(run.readings()) == published
        assert run.ended_ns is not None
        assert not run.ended_well
    assert recorder.acknowledged("dmm") == 14


async def test_a_recorder_that_ended_holds_no_publisher_up(distributor, recorder):
    """After the end its subscription is gone, so more than the ring holds can be published."""
    async with trio.open_nursery() as nursery:
        await nursery.start(recorder.serve)
        recorder.stop()
    await publish(distributor, "dmm", 5000)
    assert distributor.statistics().backlog == {}


async def test_what_was_published_before_the_start_is_not_recorded(distributor, recorder):
    """A run holds what was published from started() on; its numbers then do not begin at 0."""
    await publish(distributor, "dmm", 3)
    async with trio.open_nursery() as nursery:
        await nursery.start(recorder.serve)
        await publish(distributor, "dmm", 2)
        recorder.stop()
    with open_run(recorder.path) as run:
        assert [reading.seq for reading in run.readings()] == [3, 4]


async def test_runs_of_one_second_get_files_of_their_own(distributor, tmp_path):
    """Several runs of one name and one second do not share a file."""
    paths = [await record(distributor, tmp_path, float(number)) for number in range(5)]
    assert len(set(paths)) == 5
    for number, path in enumerate(paths):
        with open_run(path) as run:
            assert [reading.value for reading in run.readings()] == [float(number)]


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/abs", "a\0b", "x" * 400, "ü" * 400, "", "..", "Größe 1/2", "C:\\run", "-rf"]
)
async def test_the_file_stays_in_its_directory_whatever_the_name(name, distributor, tmp_path):
    """No name leads out of the directory, hides the file or makes it an option of a command."""
    recorder = Recorder(distributor, tmp_path, name)
    async with trio.open_nursery() as nursery:
        await nursery.start(recorder.serve)
        recorder.stop()
    assert recorder.path.parent == tmp_path
    assert os.listdir(tmp_path) == [recorder.path.name]
    assert recorder.path.name[0] not in ".-"
    with open_run(recorder.path) as run:
        assert run.name == name


async def test_a_recorder_has_one_life(distributor, recorder):
    """serve can be called once, and there is no path before it."""
    with pytest.raises(StateError, match="not started"):
        _ = recorder.path
    async with trio.open_nursery() as nursery:
        await nursery.start(recorder.serve)
        recorder.stop()
    with pytest.raises(StateError, match="Make a new Recorder"):
        await recorder.serve()


# --- acknowledgements ------------------------------------------------------------------------------------------------


async def test_an_acknowledged_reading_is_in_the_file_already(distributor, recorder):
    """As soon as wait_acknowledged returns, another reader finds the reading, while recording goes on."""
    async with trio.open_nursery() as nursery:
        await nursery.start(recorder.serve)
        assert recorder.acknowledged("dmm") is None
        for number in range(20):
            reading = await DataPublisher(distributor, "dmm").publish("v", float(number), "V")
            await recorder.wait_acknowledged("dmm", reading.seq)
            with open_run(recorder.path) as run:
                assert list(run.readings())[-1] == reading
                assert run.ended_ns is None
                assert not run.ended_well
        recorder.stop()


async def test_one_open_reader_sees_the_run_grow_and_end(distributor, recorder):
    """A reader that stays open shows new readings, and the end; the WAL then stays, and all is there."""
    async with trio.open_nursery() as nursery:
        await nursery.start(recorder.serve)
        with open_run(recorder.path) as run:
            for count in (1, 2, 3):
                reading = await DataPublisher(distributor, "dmm").publish("v", 0.0, "V")
                await recorder.wait_acknowledged("dmm", reading.seq)
                assert sum(1 for _ in run.readings()) == count
            recorder.stop()
            with pytest.raises(RecordingError):
                await recorder.wait_acknowledged("dmm", 99)
            assert run.ended_well
            assert sum(1 for _ in run.readings()) == 3


async def test_waiting_for_a_reading_that_does_not_come_ends(recorder):
    """An acknowledgement that does not come in time, or cannot come any more, is an error that says so."""
    async with trio.open_nursery() as nursery:
        await nursery.start(recorder.serve)
        with pytest.raises(AcknowledgeTimeoutError, match=r"reading 0 of 'dmm' was not acknowledged within 0\.01 s"):
            await recorder.wait_acknowledged("dmm", 0, timeout=0.01)
        recorder.stop()
        with trio.fail_after(2), pytest.raises(RecordingError, match="the run has ended"):
            await recorder.wait_acknowledged("dmm", 0)
    with pytest.raises(ValueError, match="finite"):
        await recorder.wait_acknowledged("dmm", 0, timeout=float("inf"))


# --- failures --------------------------------------------------------------------------------------------------------


async def test_a_directory_that_cannot_be_made_is_a_recording_error(distributor, tmp_path):
    """A file in the place of the directory is named before anything is recorded."""
    (tmp_path / "file").touch()
    recorder = Recorder(distributor, tmp_path / "file" / "runs", "test")
    with pytest.raises(RecordingError, match="Not a directory"):
        await recorder.serve()
    with pytest.raises(RecordingError, match="Not a directory"):
        await recorder.wait_acknowledged("dmm", 0)


async def test_a_reading_that_cannot_be_stored_ends_recording_and_keeps_the_rest(distributor, recorder):
    """What no file can hold is named in the error, and what was acknowledged before stays readable."""
    with pytest.RaisesGroup(pytest.RaisesExc(RecordingError, match="of 'dmm' cannot be stored")):
        async with trio.open_nursery() as nursery:
            await nursery.start(recorder.serve)
            published = await publish(distributor, "dmm", 3)
            await recorder.wait_acknowledged("dmm", 2)
            distributor.publish_nowait(
                Reading(instrument="dmm", channel="v", value=1.0, seq=3, time_ns=2**64, monotonic_ns=0, asked_ns=0)
            )
            await trio.sleep_forever()
    assert recorder.acknowledged("dmm") == 2
    assert os.listdir(recorder.path.parent) == [recorder.path.name]  # closed, else there were a -wal
    with open_run(recorder.path) as run:
        assert list(run.readings()) == published
        assert not run.ended_well


async def test_a_file_that_somebody_else_locks_ends_recording(distributor, recorder):
    """A program that keeps the file locked makes serve fail in bounded time, and tells those who wait at once."""
    told = False
    with pytest.RaisesGroup(pytest.RaisesExc(RecordingError, match="database is locked")), trio.fail_after(8):
        async with trio.open_nursery() as nursery:
            await nursery.start(recorder.serve)
            with contextlib.closing(sqlite3.connect(recorder.path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                await publish(distributor, "dmm", 3)
                with pytest.raises(RecordingError, match="database is locked"):
                    await recorder.wait_acknowledged("dmm", 2, timeout=7)
                told = True
    assert told
    assert recorder.acknowledged("dmm") is None


# --- reading back ----------------------------------------------------------------------------------------------------


async def test_a_run_tells_what_is_in_it(distributor, recorder):
    """Metadata, times, and a summary of each channel, in the order of their first readings."""
    publisher = DataPublisher(distributor, "dmm")
    async with trio.open_nursery() as nursery:
        await nursery.start(recorder.serve)
        first = await publisher.publish("voltage", 1.5, "V")
        odd = await publisher.publish("trace", [1.0, 2.0], "A")
        last = await publisher.publish("voltage", 2.5, "V")
        other = await DataPublisher(distributor, "psu").publish("voltage", 9.0, "mV")
        recorder.stop()
    with open_run(str(recorder.path)) as run:
        assert run.name == "test"
        assert run.metadata == {"sample": "A7", "name": "mine"}
        assert run.started_ns <= first.time_ns <= run.ended_ns
        assert run.summary() == (
            ChannelSummary("dmm", "voltage", "V", 2, 0, 2, first.time_ns, last.time_ns, 2.5),
            ChannelSummary("dmm", "trace", "A", 1, 1, 1, odd.time_ns, odd.time_ns, (1.0, 2.0)),
            ChannelSummary("psu", "voltage", "mV", 1, 0, 0, other.time_ns, other.time_ns, 9.0),
        )


def change(path, statement, *values):
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(statement, values)
    connection.close()


async def test_a_damaged_block_is_named_and_those_before_it_are_read(distributor, tmp_path):
    """One changed byte in the third of five blocks is found, and says where."""
    path = await record(distributor, tmp_path, *map(float, range(5)))
    change(path, "UPDATE block SET data = CAST(replace(hex(data), 'F03F', 'F13F') AS BLOB) WHERE id = 3")
    with open_run(path) as run:
        readings = run.readings()
        assert [next(readings).value, next(readings).value] == [0.0, 1.0]
        with pytest.raises(RunFileError, match="block 3 is damaged: its checksum is wrong"):
            next(readings)
        with pytest.raises(RunFileError, match="block 3"):
            run.summary()


async def test_a_missing_block_is_named(distributor, tmp_path):
    """A block that is gone is not passed over."""
    path = await record(distributor, tmp_path, 1.0, 2.0, 3.0)
    change(path, "DELETE FROM block WHERE id = 2")
    with open_run(path) as run, pytest.raises(RunFileError, match="block 2 is missing"):
        list(run.readings())


async def test_a_file_that_is_no_run_is_refused(distributor, tmp_path):
    """A missing file, a folder, text, an empty file, another database and another format: RunFileError, no new file."""
    run_path = await record(distributor, tmp_path, 1.0)
    other_format = tmp_path / "new.sqlite"
    other_format.write_bytes(run_path.read_bytes())
    change(other_format, "PRAGMA user_version = 2")
    torn = tmp_path / "torn.sqlite"
    torn.write_bytes(run_path.read_bytes()[:5000])
    (tmp_path / "text.sqlite").write_text("time,voltage\n" * 100)
    (tmp_path / "empty.sqlite").touch()
    change(tmp_path / "other.sqlite", "CREATE TABLE run (x)")
    there = sorted(os.listdir(tmp_path))
    for name, reason in {
        "missing.sqlite": "there is no such file",
        ".": "it is a folder",
        "text.sqlite": "file is not a database",
        "empty.sqlite": "it is not a run of trio_daq",
        "other.sqlite": "it is not a run of trio_daq",
        "new.sqlite": "it has format 2, and this version of trio_daq reads format 1",
        "torn.sqlite": "malformed",
    }.items():
        with pytest.raises(RunFileError, match=reason), open_run(tmp_path / name) as run:
            list(run.readings())
    assert sorted(os.listdir(tmp_path)) == there


async def test_a_run_with_odd_characters_in_its_path_is_read(distributor, tmp_path):
    """A folder called like part of a URI is no obstacle."""
    path = await record(distributor, tmp_path / "50% of #1? mode=rw & ü", 1.0)
    with open_run(path) as run:
        assert [reading.value for reading in run.readings()] == [1.0]
