"""The receive buffer: the same messages however the bytes were cut."""

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_daq.wire import ReceiveBuffer

TERMINATORS = [b"\n", b"\r\n", b"aab", b"aaa", b"\r\n\r\n"]


def pieces(data, cuts):
    edges = [0, *sorted(cuts), len(data)]
    return [data[start:stop] for start, stop in itertools.pairwise(edges)]


def messages(chunks, terminator):
    """Feed the chunks one by one, take each message as soon as it is whole, and return them with what is left."""
    buffer, found = ReceiveBuffer(), []
    for chunk in chunks:
        buffer.feed(chunk)
        while (message := buffer.take_until(terminator)) is not None:
            found.append(message)
    return found, buffer.peek()


@given(st.data(), st.sampled_from(TERMINATORS))
def test_messages_do_not_depend_on_how_the_bytes_were_chunked(data, terminator):
    """Every split of a byte string, in particular within a terminator, gives the messages of the uncut string."""
    stream = bytes(data.draw(st.lists(st.sampled_from([*terminator, ord("x")]), max_size=40)))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=10))
    assert messages(pieces(stream, cuts), terminator) == messages([stream], terminator)


@pytest.mark.parametrize("terminator", TERMINATORS)
def test_every_single_split_of_a_stream_gives_the_same_messages(terminator):
    """All splits of a short stream into three pieces, tried one by one, give the same messages."""
    stream = b"a" + terminator + b"aa" + terminator + terminator + b"rest" + terminator[:-1]
    expected, left = messages([stream], terminator)
    assert b"".join(expected) + left == stream
    for cuts in itertools.combinations_with_replacement(range(len(stream) + 1), 2):
        assert messages(pieces(stream, cuts), terminator) == (expected, left)


@given(st.lists(st.binary(max_size=20).map(lambda raw: raw.replace(b"\n", b""))), st.binary(max_size=10))
def test_messages_are_what_was_framed(bodies, rest):
    """What was joined with terminators is taken apart into just that."""
    rest = rest.replace(b"\n", b"")
    assert messages([b"\n".join([*bodies, rest])], b"\n") == ([body + b"\n" for body in bodies], rest)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("feed"), st.lists(st.sampled_from(b"ab\r\n"), max_size=6).map(bytes)),
            st.tuples(st.just("until"), st.sampled_from([b"\n", b"\r\n", b"ab"])),
            st.tuples(st.just("exactly"), st.integers(1, 5)),
            st.tuples(st.just("some"), st.integers(1, 5)),
            st.tuples(st.just("clear"), st.none()),
        ),
        max_size=30,
    )
)
def test_any_mixture_of_takes_loses_and_invents_nothing(steps):
    """Whatever is taken in whatever way, each take is right on the bytes then there, and all bytes leave in order."""
    buffer, waiting = ReceiveBuffer(), b""
    for kind, value in steps:
        if kind == "feed":
            buffer.feed(value)
            waiting += value
            continue
        if kind == "until":
            found = waiting.find(value)
            size = found + len(value) if found >= 0 else None
            taken = buffer.take_until(value)
        elif kind == "exactly":
            size = value if len(waiting) >= value else None
            taken = buffer.take_exactly(value)
        elif kind == "some":
            size = min(value, len(waiting)) or None
            taken = buffer.take_some(value)
        else:
            size, taken = len(waiting), buffer.clear()
        assert taken == (None if size is None else waiting[:size])
        waiting = waiting[size or 0 :]
        assert (buffer.peek(), len(buffer)) == (waiting, len(waiting))


def test_a_changed_terminator_is_searched_from_the_start():
    """After a vain search for one terminator, another that came before the end is still found."""
    buffer = ReceiveBuffer()
    buffer.feed(b"1;2")
    assert buffer.take_until(b"\n") is None
    assert buffer.take_until(b";") == b"1;"


@pytest.mark.parametrize(
    ("waiting", "most", "taken"),
    [
        (b"12.5\n7\n", 9, b"12.5\n"),
        (b"12.5\n7\n", 5, b"12.5\n"),
        (b"12.5\n7\n", 4, b"12.5"),
        (b"12.5", 4, b"12.5"),
        (b"12.5", 5, None),
    ],
)
def test_a_message_may_be_limited(waiting, most, taken):
    """It is complete with its terminator or with so many bytes, and no more are taken."""
    buffer = ReceiveBuffer()
    buffer.feed(waiting)
    assert buffer.take_until(b"\n", most=most) == taken
    assert buffer.peek() == waiting[len(taken or b"") :]


def test_an_empty_terminator_is_refused():
    """Nothing can end with nothing: it raises instead of giving empty messages without end."""
    with pytest.raises(ValueError, match="at least one byte"):
        ReceiveBuffer().take_until(b"")


def test_a_long_message_in_small_pieces_costs_linear_time():
    """Four times the pieces take far less than the sixteen times of a search that begins anew at each."""

    def seconds(count):
        buffer, chunk = ReceiveBuffer(), b"x" * 64
        start = time.process_time()
        for _ in range(count):
            buffer.feed(chunk)
            buffer.take_until(b"\r\n")
        return time.process_time() - start

    small, large = min(seconds(5_000) for _ in range(3)), min(seconds(20_000) for _ in range(3))
    assert large < 10 * small


def test_many_messages_in_one_chunk_cost_linear_time():
    """Taking messages out of a large buffer does not copy the rest each time."""

    def seconds(count):
        buffer = ReceiveBuffer()
        buffer.feed(b"12345678\n" * count)
        start = time.process_time()
        while buffer.take_until(b"\n"):
            pass
        return time.process_time() - start

    small, large = min(seconds(20_000) for _ in range(3)), min(seconds(80_000) for _ in range(3))
    assert large < 10 * small
