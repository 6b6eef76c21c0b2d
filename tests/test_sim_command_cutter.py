"""Cutting a client's bytes into commands."""

from hypothesis import given
from hypothesis import strategies as st

from trio_daq.sim.command_cutter import LONGEST_COMMAND, CommandCutter, TooLong

WORDS = st.binary(min_size=1, max_size=6).filter(lambda word: word.strip() == word and not set(word) & set(b"\r\n"))


def cut(cutter: CommandCutter, data: bytes, size: int) -> list[bytes | TooLong]:
    return [command for at in range(0, len(data), size) for command in cutter.feed(data[at : at + size])]


@given(st.lists(st.tuples(WORDS, st.sampled_from([b"\n", b"\r", b"\r\n", b"\n\n"]))), st.integers(1, 9))
def test_chunks_do_not_matter(commands: list[tuple[bytes, bytes]], size: int) -> None:
    """Commands come out whole and in order, whatever ends them and however their bytes arrive."""
    data = b"".join(word + end for word, end in commands)
    assert cut(CommandCutter(b"\r\n"), data, size) == [word for word, _ in commands]


@given(st.integers(LONGEST_COMMAND, 3 * LONGEST_COMMAND), st.integers(1000, 4 * LONGEST_COMMAND))
def test_a_flood_is_one_overrun(length: int, size: int) -> None:
    """A command that is too long gives its first bytes and nothing else, and the next one is as if it had not been."""
    cutter = CommandCutter(b"\n")
    assert cut(cutter, b"A\n" + b"x" * length + b"\nB\n", size) == [b"A", TooLong(b"x" * 80), b"B"]


def test_a_flood_is_not_kept() -> None:
    """Bytes without an end do not pile up."""
    cutter = CommandCutter(b"\n")
    for _ in range(100):
        list(cutter.feed(b"x" * 10_000))
        assert len(cutter._buffer) < LONGEST_COMMAND


def test_only_its_own_ends_count() -> None:
    """A carriage return within a command of an instrument that ends them by a line feed is data."""
    assert list(CommandCutter(b"\n").feed(b"A\rB\n")) == [b"A\rB"]
