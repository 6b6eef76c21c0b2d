"""IEEE 488.2 blocks: the same result however the bytes were cut, and a clear error for what is none."""

import itertools
import mmap
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trio_daq.wire import BlockFormatError, BlockReader, encode_block

MOST = 1000


def fed(chunks, finish=False, max_size=MOST):
    reader = BlockReader(max_size)
    for chunk in chunks:
        reader.feed(chunk)
    if finish:
        reader.finish()
    return reader


def outcome(chunks, finish):
    """Everything that can be seen of a reader, or how it failed."""
    try:
        reader = fed(chunks, finish)
    except BlockFormatError as error:
        return error
    seen = (reader.prefix, reader.size, reader.received, reader.wanted, reader.is_complete, reader.surplus)
    return (*seen, bytes(reader.payload) if reader.is_complete else None)


def pieces(data, cuts):
    edges = [0, *sorted(cuts), len(data)]
    return [data[start:stop] for start, stop in itertools.pairwise(edges)]


streams = st.builds(
    lambda prefix, block, after: prefix + block + after,
    st.sampled_from([b"", b":CURVE ", b" ", b"\n", b"1.5,"]),
    st.binary(max_size=40).map(encode_block)
    | st.binary(max_size=40).map(lambda data: b"#(%d)" % len(data) + data)
    | st.binary(max_size=40).map(lambda data: b"#0" + data + b"\n")
    | st.binary(max_size=40).map(lambda data: b"#41001" + data),
    st.sampled_from([b"", b"\n", b"\r\n", b"#15again"]),
)
noise = st.lists(st.sampled_from(list(b"#0123459()AZ: *\n\x00\xff-,")), max_size=40).map(bytes)


@given(streams | noise | st.binary(max_size=40), st.data(), st.booleans())
@example(b"#0\n", None, True)
def test_a_block_does_not_depend_on_how_its_bytes_were_chunked(stream, data, finish):
    """Every split gives what the uncut bytes give; and whatever comes, nothing but a `BlockFormatError` is raised."""
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8)) if data else range(1, len(stream))
    whole, cut = outcome([stream], finish), outcome(pieces(stream, cuts), finish)
    if isinstance(whole, BlockFormatError):
        assert isinstance(cut, BlockFormatError)
        assert whole.data.startswith(cut.data)
    else:
        assert cut == whole


@given(streams | noise, st.booleans())
def test_received_in_place_is_as_good_as_fed(stream, finish):
    """Bytes received into the reader's own memory, byte-exact, give the block; what follows was never taken."""
    reader, left = BlockReader(MOST), memoryview(stream)
    try:
        while not reader.is_complete and left:
            room = reader.writable()
            assert reader.wanted is None or 0 < len(room) == reader.wanted
            count = min(len(room), len(left), 7)
            room[:count] = left[:count]
            reader.advance(count)
            left = left[count:]
        if finish:
            reader.finish()
    except BlockFormatError:
        assert isinstance(outcome([stream], finish), BlockFormatError)
    else:
        expected = fed([stream], finish)
        assert reader.is_complete == expected.is_complete
        assert reader.surplus == b""
        assert bytes(left) == expected.surplus
        if reader.is_complete:
            assert reader.payload == expected.payload


@given(st.binary(max_size=MOST))
def test_what_was_encoded_is_read_back(data):
    """Encoding and reading undo each other, with a header before it and a newline after it or without."""
    assert fed([encode_block(data)]).payload == data
    reader = fed([b":CURV ", encode_block(data), b"\n"])
    assert (reader.prefix, reader.payload, reader.surplus) == (b":CURV ", data, b"\n")


@given(streams.filter(lambda stream: b"#0" not in stream))
def test_so_many_bytes_as_are_wanted_are_indeed_needed(stream):
    """Whoever reads as many bytes as `wanted` says never takes one that belongs to what follows."""
    reader, left = BlockReader(MOST), stream
    try:
        while reader.wanted and left:
            part, left = left[: reader.wanted], left[reader.wanted :]
            reader.feed(part)
    except BlockFormatError:
        return
    assert reader.surplus == b""


@pytest.mark.parametrize(
    ("data", "encoded"),
    [(b"", b"#10"), (b"?", b"#11?"), (b"x" * 10, b"#210" + b"x" * 10), (bytearray(b"ab"), b"#12ab")],
)
def test_a_block_is_encoded_with_the_fewest_digits(data, encoded):
    """Also an empty one."""
    assert encode_block(data) == encoded


def test_a_view_of_wide_items_is_counted_in_bytes():
    """The length is that of the bytes, not of the items."""
    assert encode_block(memoryview(b"abcd").cast("H")) == b"#14abcd"
    assert fed([memoryview(b"#14abcd ").cast("H")]).payload == b"abcd"


@pytest.mark.parametrize(
    ("came", "wanted", "size"),
    [
        (b"", 2, None),
        (b":CURVE ", 2, None),
        (b"#", 1, None),
        (b"#4", 4, None),
        (b"#410", 2, None),
        (b"#3100", 100, 100),
        (b"#3100abc", 97, 100),
        (b"#10", 0, 0),
        (b"#11a\n", 0, 1),
        (b"#(", 2, None),
        (b"#(10", 1, None),
        (b"#(100)abc", 97, 100),
        (b"#0", None, None),
        (b"#0abc", None, None),
    ],
)
def test_a_reader_says_what_it_still_needs(came, wanted, size):
    """As soon as a byte is certain to be needed it is counted, and an indefinite block cannot tell."""
    reader = fed([came])
    assert (reader.wanted, reader.size) == (wanted, size)


def test_an_indefinite_block_ends_with_the_message():
    """Newlines in it are data, only the one before END is taken off; until then it is not complete."""
    reader = fed([b"#0a\nb\n", b"\n"])
    assert (reader.is_complete, reader.size, reader.received) == (False, None, 5)
    with pytest.raises(ValueError, match="not complete"):
        _ = reader.payload
    reader.finish()
    assert (reader.is_complete, reader.payload, reader.received) == (True, b"a\nb\n", 4)
    reader.finish()
    assert reader.payload == b"a\nb\n"
    assert len(reader.writable()) == 0


@pytest.mark.parametrize(
    "came",
    [
        b'-113,"Undefined header"\n',
        b"1.5,2.5\n",
        b"\n#15hello",
        b"#H1F",
        b"#A",
        b"##15hello",
        b"#4 100",
        b"#3-10",
        b"#()",
        b"#(12x)",
        b"#(" + b"9" * 21,
        b"x" * 65 + b"#15hello",
        b"\xff",
    ],
)
def test_what_is_no_block_is_told_at_once(came):
    """An error message, a number, a list: refused at the first byte that cannot be, and the bytes are kept."""
    with pytest.raises(BlockFormatError, match="no block") as caught:
        fed([came])
    assert caught.value.data == came


def test_what_came_instead_of_a_block_is_shown():
    """The message holds the reply of the instrument, without its control characters."""
    with pytest.raises(BlockFormatError, match=r"""^what came is no block: '-113,"Undefined header"\\\\n'$"""):
        fed([b'-113,"Undefined header"\n'])


@pytest.mark.parametrize("head", [b"#41001", b"#9999999999", b"#(1001)", b"#(99999999999999999999)"])
def test_a_block_that_is_too_large_is_refused_before_it_is_read(head):
    """The header alone is enough, nothing is allocated; the error tells both numbers and what to change."""
    size = int(head.strip(b"#()")[(b"(" not in head) :])
    with pytest.raises(BlockFormatError, match=f"has {size} bytes, and 1000 are allowed; max_block raises that"):
        fed([head])
    assert fed([b"#41000", b"x" * 1000]).is_complete


def test_an_indefinite_block_has_the_same_limit():
    """It may be as large as allowed, with its newline on top, and not a byte more."""
    assert len(fed([b"#0", b"x" * 1000, b"\n"], finish=True).payload) == 1000
    with pytest.raises(BlockFormatError, match="max_block"):
        fed([b"#0", b"x" * 1001], finish=True)
    with pytest.raises(BlockFormatError, match="max_block"):
        fed([b"#0", b"x" * 1002])


def test_a_header_that_lied_is_found_out():
    """A message that ends too early tells how many bytes were announced and how many came."""
    with pytest.raises(BlockFormatError, match="announced 1000 bytes, and the message ended after 12: ") as caught:
        fed([b"#41000", b"x" * 12], finish=True)
    assert caught.value.data == b"#41000" + b"x" * 12


@pytest.mark.parametrize("came", [b"", b":CURVE ", b"#", b"#41", b"#(1"])
def test_a_message_that_ends_before_its_block_is_an_error(came):
    """Also an empty one."""
    with pytest.raises(BlockFormatError, match="ended before a block began") as caught:
        fed([came], finish=True)
    assert caught.value.data == came


def test_an_error_keeps_a_kibibyte():
    """A broken block of many megabytes is not carried around in its error."""
    with pytest.raises(BlockFormatError) as caught:
        fed([b"#3999", b"x" * 998], finish=True, max_size=2000)
    assert len(caught.value.data) == 1003
    with pytest.raises(BlockFormatError) as caught:
        fed([b"#49999", b"x" * 9998], finish=True, max_size=10_000)
    assert len(caught.value.data) == 1024


@pytest.mark.parametrize("count", [-1, 5])
def test_no_more_can_be_received_than_there_was_room_for(count):
    """A count that cannot be is a mistake of the caller, and changes nothing."""
    reader = fed([b"#14"])
    with pytest.raises(ValueError, match="cannot have been received into 4"):
        reader.advance(count)
    assert reader.received == 0


def test_a_reader_needs_room():
    """A limit of nothing is a mistake."""
    with pytest.raises(ValueError, match="max_size"):
        BlockReader(0)


def test_a_large_block_costs_linear_time():
    """Four times the chunks of a large block take far less than the sixteen times of copying all anew at each."""

    def seconds(count):
        reader, chunk = BlockReader(10**8), b"x" * 1024
        start = time.process_time()
        reader.feed(b"#9%09d" % (count * 1024))
        for _ in range(count):
            reader.feed(chunk)
        assert reader.is_complete
        return time.process_time() - start

    small, large = min(seconds(2_000) for _ in range(3)), min(seconds(8_000) for _ in range(3))
    assert large < 10 * small


def test_what_has_no_definite_form_is_not_encoded():
    """A length of ten digits is more than the header can tell."""
    with mmap.mmap(-1, 10**9) as huge, pytest.raises(ValueError, match="at most 999999999 bytes"):
        encode_block(memoryview(huge))
