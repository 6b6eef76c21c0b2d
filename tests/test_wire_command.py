"""Commands with values: each type is written in one way, and no value becomes another command."""

import copy
import enum
import math
import pickle
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from trio_daq.wire import Command, Quoted, expects_reply


class Shape(enum.Enum):
    SINE = "SIN"
    SQUARE = "SQU"


class Range(enum.IntEnum):
    LOW = 1


class Odd(enum.Enum):
    NONE = None


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (True, "1"),
        (False, "0"),
        (0, "0"),
        (-12, "-12"),
        (10**20, "1" + "0" * 20),
        (1.5, "1.5"),
        (2.0, "2.0"),
        (-0.0, "-0.0"),
        (0.1, "0.1"),
        (1e-7, "1E-7"),
        (1e300, "1E+300"),
        (9.9e37, "9.9E+37"),
        (Decimal("1.50"), "1.50"),
        (Decimal("1e3"), "1E+3"),
        (Decimal("1e400"), "1E+400"),
        (Fraction(1, 4), "0.25"),
        ("MAX", "MAX"),
        ("10mV", "10mV"),
        ("V.S-1/M", "V.S-1/M"),
        ("SOUR1:VOLT", "SOUR1:VOLT"),
        (Shape.SQUARE, "SQU"),
        (Range.LOW, "1"),
        (Quoted("READY?"), '"READY?"'),
        (Quoted(""), '""'),
        (Quoted('say "go"; \'#15?'), '"say ""go""; \'#15?"'),
    ],
)
def test_each_type_is_written_in_one_way(value, sent):
    """Numbers, bools, words, enum members and strings are written as IEEE 488.2 has them."""
    command = Command("SOUR:X {}, (@{})", value, 101)
    assert str(command) == command.text == f"SOUR:X {sent}, (@101)"


def test_a_template_without_places_is_sent_as_it_is():
    """Doubled braces are braces."""
    assert str(Command("*RST")) == "*RST"
    assert str(Command("x = {{{}, {{}}}}", 1)) == "x = {1, {}}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "1;OUTP ON",
        "1,2",
        'a"b',
        "a'b",
        "READY?",
        "#15",
        "a\n",
        "\n",
        "a\r",
        "a b",
        "\x00",
        "\x7f",
        "5 µ",
        "Ω",
        "٣",
    ],
)
def test_text_that_is_no_word_is_refused(text):
    """Terminators, separators, quotes, question marks, control characters and other scripts: the way out is named."""
    with pytest.raises(ValueError, match=r"value 2 of 'X \{\},\{\}': .* is no single word; for free text give Quoted"):
        Command("X {},{}", 1, text)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, Decimal("inf"), Decimal("sNaN"), Fraction(10**400)])
def test_what_is_not_finite_is_refused(value):
    """Infinity and not-a-number are mistakes more often than wishes; the error tells how SCPI writes them."""
    with pytest.raises(ValueError, match=r"value 1 of 'VOLT \{\}': .*9\.9E37.*9\.91E37"):
        Command("VOLT {}", value)


@pytest.mark.parametrize("value", [None, b"1", [1, 2], (1,), {}, 1j, object(), Odd.NONE, Command("*RST")])
def test_other_types_are_refused(value):
    """A list, bytes, None: nothing is sent by its repr."""
    with pytest.raises(TypeError, match=r"value 1 of 'X \{\}': .* is neither a number"):
        Command("X {}", value)


@pytest.mark.parametrize(("template", "values"), [("X {}", ()), ("X", (1,)), ("X {},{}", (1,)), ("X {}", (1, 2))])
def test_the_number_of_values_must_be_right(template, values):
    """One too many or too few is an error that tells both numbers."""
    places = template.count("{}")
    with pytest.raises(ValueError, match=f"has {places} places, and {len(values)} values were given"):
        Command(template, *values)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("X {0}", "no names"),
        ("X {volt}", "no names"),
        ("X {:.3f}", "no formats"),
        ("X {!r}", "no formats"),
        ("X {", "cannot be read"),
        ("X }", "cannot be read"),
        ("X {}\n", "terminator"),
        ("X {}\r", "terminator"),
        ('X "{}', "not ended"),
        ("X '{}\"", "not ended"),
        ("X #14{}", "block"),
        ("X #{}", "block"),
        ("X #({})", "block"),
    ],
)
def test_a_template_that_is_none_is_refused(template, why):
    """Named or formatted places, terminators, open strings and blocks: refused in words, whatever the value."""
    with pytest.raises(ValueError, match=why):
        Command(template, 1)


def test_a_template_is_text():
    """Bytes are no template."""
    with pytest.raises(TypeError, match="a command is text"):
        Command(b"*RST")


@pytest.mark.parametrize("template", ["X '{}'", 'X "{}"', "X{}", "READ?{}", "X 1;Y{}", "{} 1", "X\xa0{}"])
def test_a_quoted_string_stands_where_a_parameter_may(template):
    """Within other quotes it would end them, within a header it is none."""
    assert str(Command(template, 5)) == template.replace("{}", "5")
    with pytest.raises(ValueError, match="after a header and white space, outside other quotes"):
        Command(template, Quoted("a"))


@pytest.mark.parametrize("text", ["a\n", "\t", "\x00", "é", "\x7f"])
def test_a_quoted_string_has_no_terminator(text):
    """A newline in a string cuts the message in two on a socket, so only printable ASCII is taken."""
    with pytest.raises(ValueError, match="printable ASCII"):
        Quoted(text)


def test_a_quoted_string_is_text():
    """A number is refused rather than turned into text."""
    with pytest.raises(TypeError, match="is text"):
        Quoted(5)


def test_a_command_is_a_value():
    """It is frozen, compared by what it is, can be a key, and survives a copy and a pickle."""
    command = Command("VOLT {}", 1.5)
    assert command == Command("VOLT {}", 1.5)
    assert command != Command("VOLT {}", 2.5)
    assert {command: 1}[copy.copy(command)] == 1
    assert pickle.loads(pickle.dumps(command)) == command
    assert (command.template, command.values) == ("VOLT {}", (1.5,))
    with pytest.raises(AttributeError):
        command.text = "*RST"


values = (
    st.booleans()
    | st.integers()
    | st.floats()
    | st.decimals()
    | st.text(max_size=6)
    | st.text(st.sampled_from("A1.:;?#'\",\n (@-"), max_size=4)
    | st.text(st.sampled_from("A1?;#'\" \n"), max_size=8).filter(lambda text: "\n" not in text).map(Quoted)
    | st.sampled_from([*Shape, *Range])
)
pieces = st.sampled_from(["X", "?", " ", ";", ",", '"', "'", "#", "#H", "(@", "*IDN?", "1", "\xa0", "\t", "#12"])
templates = st.lists(st.just("{}") | pieces, max_size=10).map("".join)


@given(templates, st.data())
def test_no_value_changes_what_a_message_is(template, data):
    """Whatever is accepted: the message is answered just if its template is, and has no terminator and no new unit."""
    given_values = data.draw(st.lists(values, min_size=template.count("{}"), max_size=template.count("{}")))
    try:
        text = str(Command(template, *given_values))
    except ValueError:
        assume(False)
    plain = template.replace("{}", "0")
    assert expects_reply(text) == expects_reply(plain)
    assert expects_reply(text + ";Y?") == expects_reply(plain + ";Y?")
    assert "\n" not in text
    assert "\r" not in text
    free = sum(value.text.count(";") for value in given_values if isinstance(value, Quoted))
    assert text.count(";") == plain.count(";") + free


@given(st.text(st.sampled_from("A1?;#'\" "), max_size=8))
def test_a_quoted_string_is_read_back_as_it_was(text):
    """Undoubled, the string is the text, and it hides every question mark and semicolon."""
    command = str(Command("DISP:TEXT {};Y", Quoted(text)))
    assert command.removeprefix('DISP:TEXT "').removesuffix('";Y').replace('""', '"') == text
    assert not expects_reply(command)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_come_back_exactly(value):
    """The decimal that is sent is read back as the very same float, in characters that IEEE 488.2 knows."""
    sent = str(Command("{}", value))
    assert float(sent) == value
    assert set(sent) <= set("0123456789+-.E")


@given(st.integers())
def test_integers_come_back_exactly(value):
    """However large."""
    assert int(str(Command("{}", value))) == value


def test_numpy_scalars_are_what_they_are_like():
    """NumPy's bools, integers and floats are written as Python's; an array of several values is refused."""
    numpy = pytest.importorskip("numpy")
    command = Command("{},{},{},{}", numpy.bool_(True), numpy.int16(-3), numpy.float64(0.1), numpy.str_("MAX"))
    assert str(command) == "1,-3,0.1,MAX"
    assert float(str(Command("{}", numpy.float32(0.1)))) == float(numpy.float32(0.1))
    with pytest.raises(ValueError, match=r"9\.91E37"):
        Command("{}", numpy.float32("nan"))
    with pytest.raises(ValueError, match="value 1"):
        Command("{}", numpy.arange(3))
