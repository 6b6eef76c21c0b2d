"""Text for people: nothing that reaches a terminal can steer it; and terminators as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_daq.wire import parse_terminator, printable

BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
C1 = "".join(map(chr, range(0x80, 0xA0)))
C0 = "".join(map(chr, [*range(0x20), 0x7F]))


@pytest.mark.parametrize("char", [*C0, *C1, *BIDI, "\u2028", "\u2029", "\ufeff", "\u200b", "\xad", "\ud800"], ids=ascii)
def test_characters_that_steer_a_terminal_or_a_line_are_escaped(char):
    """C0, C1, DEL, bidirectional and invisible characters come out as visible ASCII."""
    shown = printable(f"a{char}b")
    assert shown.isascii()
    assert shown.startswith("a\\")
    assert shown.endswith("b")


@pytest.mark.parametrize("data", [b"\x1b[2J", b"\x9b2J", "\x9b2J".encode(), b"\x1b]0;title\x07", b"\xff\xfe"])
def test_escape_sequences_in_replies_are_escaped(data):
    """ESC and CSI, as one byte or as UTF-8, never come through, and neither do bytes that are no UTF-8."""
    assert printable(data).isascii()
    assert "\x1b" not in printable(data)


@given(st.binary(max_size=300) | st.text(max_size=300), st.integers(1, 250))
def test_the_result_is_one_short_printable_line(data, limit):
    """Whatever came, what is shown is printable, on one line, and no longer than the limit."""
    shown = printable(data, limit)
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1
    assert len(shown) <= limit


@given(st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"]), max_size=200))
def test_plain_text_stays_as_it_is(text):
    """What needs no escape is shown unchanged, as text and as bytes."""
    assert printable(text) == text
    assert printable(text.encode()) == text


def test_letters_of_all_scripts_stay():
    """Units and names are no hazard: µ, Ω, ° and umlauts are shown."""
    assert printable("10 µV, 5 kΩ, 20 °C, größer".encode()) == "10 µV, 5 kΩ, 20 °C, größer"


def test_a_cut_is_shown():
    """A text that was cut ends in an ellipsis; one that just fits does not."""
    assert printable("x" * 200) == "x" * 200
    assert printable("x" * 201) == "x" * 199 + "…"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\\n", b"\n"),
        ("\\r\\n", b"\r\n"),
        ("\\t", b"\t"),
        ("\\0", b"\0"),
        ("\\\\", b"\\"),
        ("\\x03", b"\x03"),
        ("\\xfF", b"\xff"),
        ("\\x0a\\n", b"\n\n"),
        ("\\\\n", b"\\n"),
        ("\n", b"\n"),
        ("\r\n", b"\r\n"),
        (";", b";"),
        ("END", b"END"),
        ("ok\\r", b"ok\r"),
        ("hex:0D0A", b"\r\n"),
        ("hex:0d 0a", b"\r\n"),
        ("hex:ff", b"\xff"),
    ],
)
def test_a_terminator_is_read_as_it_is_written(text, expected):
    """Escapes, real control characters, plain text and hex: each give their bytes."""
    assert parse_terminator(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "at least one byte"),
        ("hex:", "at least one byte"),
        ("hex:0", "hexadecimal"),
        ("hex:0G", "hexadecimal"),
        ("\\", "unknown escape"),
        ("\\q", "unknown escape"),
        ("\\x", "unknown escape"),
        ("\\x1", "unknown escape"),
        ("\\xZZ", "unknown escape"),
        ("a\\\n", "unknown escape"),
        ("µ", "not ASCII"),
        ("\\é", "unknown escape"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(text, words):
    """A terminator that is empty, no hex, an unknown escape or not ASCII raises a sentence about it."""
    with pytest.raises(ValueError, match=words):
        parse_terminator(text)


@given(st.binary(min_size=1, max_size=8))
def test_any_bytes_can_be_written_in_two_ways(data):
    """Every terminator can be written with ``\\xHH`` and with ``hex:``."""
    assert parse_terminator("".join(f"\\x{byte:02x}" for byte in data)) == data
    assert parse_terminator("hex:" + data.hex()) == data
