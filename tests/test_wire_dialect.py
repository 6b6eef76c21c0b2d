"""Which commands are answered, in each dialect: golden cases of what instruments are really sent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_daq.wire import reply_rule


def hp(command):
    """HP analysers before SCPI: OUTP… and RMEM are answered, and no question mark is sent."""
    return command.startswith(("OUTP", "RMEM"))


def pyvisa_sim(command):
    """The default device of PyVISA-sim asks with a leading question mark and acknowledges with OK."""
    return command.startswith(("?", "!"))


ANSWERED, SILENT = True, False

CASES = [
    ("scpi", "*IDN?", ANSWERED),
    ("scpi", "  *IDN?  \r\n", ANSWERED),
    ("scpi", "\x00\t*IDN?\x0b", ANSWERED),
    ("scpi", "*IDN ?", SILENT),
    ("scpi", 'READ? "defbuffer1", SOUR', ANSWERED),
    ("scpi", "CURV? 1", ANSWERED),
    ("scpi", "ROUT:CLOS? (@101:103,105)", ANSWERED),
    ("scpi", 'DISP:TEXT "READY?"', SILENT),
    ("scpi", "DISP:TEXT 'READY?;*IDN?'", SILENT),
    ("scpi", 'DISP:TEXT "say ""READY?"";*IDN?"', SILENT),
    ("scpi", 'DISP:TEXT "say ""READY?""";*IDN?', ANSWERED),
    ("scpi", "DISP:TEXT 'it''s';*OPC?", ANSWERED),
    ("scpi", 'DISP:TEXT "it\'s?;";*WAI', SILENT),
    ("scpi", "VOLT 1;CURR 2;*WAI", SILENT),
    ("scpi", "VOLT 1;CURR 2;MEAS:VOLT?", ANSWERED),
    ("scpi", "MEAS:VOLT?;:OUTP OFF", ANSWERED),
    ("scpi", "*RST;;\t:SYST:ERR? ;", ANSWERED),
    ("scpi", "CONF:VOLT:DC", SILENT),
    ("scpi", "DATA #15?;*I?", SILENT),
    ("scpi", "DATA #15?;*I?;*OPC?", ANSWERED),
    ("scpi", "DATA #16?\n;\"'\xff;*OPC?", ANSWERED),
    ("scpi", "DATA #13\xff?;", SILENT),
    ("scpi", "DATA #14\n*?\n;*WAI", SILENT),
    ("scpi", "DATA #10;*OPC?", ANSWERED),
    ("scpi", "DATA #0a;*IDN?\n*OPC?\n", SILENT),
    ("scpi", "DATA #(5)?;*I?", SILENT),
    ("scpi", "DATA #(5)?;*I?;*OPC?", ANSWERED),
    ("scpi", "DATA #(5", SILENT),
    ("scpi", "DATA? #15a;b;c", ANSWERED),
    ("scpi", "DATA?#15a;b;c", ANSWERED),
    ("scpi", "REG #H1F", SILENT),
    ("scpi", "REG #H1F;REG?", ANSWERED),
    ("scpi", "REG? #Q17", ANSWERED),
    ("scpi", 'TEXT "#15";*OPC?', ANSWERED),
    ("scpi", "*RST\n*IDN?\n", ANSWERED),
    ("scpi", "*RST\nDISP:TEXT what?\n", SILENT),
    ("scpi", "?IDN", SILENT),
    ("scpi", "OUTPIDEN", SILENT),
    ("scpi", "print(1)", SILENT),
    ("scpi", "", SILENT),
    ("tsp", "print(smua.measure.v())", ANSWERED),
    ("tsp", "printbuffer(1, 10, smua.nvbuffer1)", ANSWERED),
    ("tsp", "printnumber(1, 2)", ANSWERED),
    ("tsp", "smua.source.output = smua.OUTPUT_ON", SILENT),
    ("tsp", "x = 1 print (x)", ANSWERED),
    ("tsp", "print'ready'", ANSWERED),
    ("tsp", 'display.settext("print(1)")', SILENT),
    ("tsp", "display.settext('it is \\'print(1)\\'')", SILENT),
    ("tsp", 'display.settext("a \\\\") print(1)', ANSWERED),
    ("tsp", "display.settext([[print(1)]])", SILENT),
    ("tsp", "display.settext([==[ ]] print(1)]==])", SILENT),
    ("tsp", "smua.reset() -- print(1)", SILENT),
    ("tsp", "smua.reset() -- why\nprint(1)", ANSWERED),
    ("tsp", "--[[ print(1)\n print(2) ]] smua.reset()", SILENT),
    ("tsp", "--[[ nothing ]] print(1)", ANSWERED),
    ("tsp", 'x = "--" print(x)', ANSWERED),
    ("tsp", "fingerprint(1)", SILENT),
    ("tsp", "node.print(1)", SILENT),
    ("tsp", "printer(1)", SILENT),
    ("tsp", "x = print", SILENT),
    ("tsp", "*IDN?", ANSWERED),
    ("tsp", " *OPC?\n", ANSWERED),
    ("tsp", "*RST", SILENT),
    ("tsp", 'display.settext("*IDN?")', SILENT),
    ("echo", "V", ANSWERED),
    ("echo", "C3", ANSWERED),
    ("echo", "R1?", ANSWERED),
    (hp, "OUTPIDEN", ANSWERED),
    (hp, "RMEM 1", ANSWERED),
    (hp, "WMEM 1", SILENT),
    (pyvisa_sim, "?IDN", ANSWERED),
    (pyvisa_sim, "!FREQ 100", ANSWERED),
    (pyvisa_sim, "IDN?", SILENT),
]


@pytest.mark.parametrize(("dialect", "command", "answered"), CASES)
def test_a_rule_knows_what_is_answered(dialect, command, answered):
    """The rule of a dialect tells commands from queries by the grammar of that dialect."""
    assert reply_rule(dialect)(command) is answered


@pytest.mark.parametrize("dialect", ["scpi", "tsp", "echo"])
@given(st.text(max_size=40) | st.text(st.sampled_from("print(\"'-[]=\\\n)*?;#0123 "), max_size=40))
def test_no_command_is_too_strange(dialect, command):
    """Whatever the text, every dialect decides."""
    assert reply_rule(dialect)(command) in (True, False)


@given(st.sampled_from(["--", '"', "'", "[[", "--[["]), st.text(st.sampled_from("print(1) x="), max_size=20))
def test_what_follows_the_start_of_a_comment_or_string_prints_nothing(start, rest):
    """In TSP, a comment or string that is never ended takes in all the rest of its line."""
    assert not reply_rule("tsp")("x = 1 " + start + rest)


@pytest.mark.parametrize(("name", "near"), [("scpy", "scpi"), ("SCPI", "scpi"), ("tps", "tsp"), ("ekho", "echo")])
def test_a_mistyped_dialect_is_guessed(name, near):
    """A name that is unknown is refused with those that are known and the nearest of them."""
    with pytest.raises(ValueError, match=f"no dialect '{name}'; known: scpi, tsp, echo, .* Did you mean '{near}'"):
        reply_rule(name)


def test_a_name_that_is_like_none_gets_no_guess():
    """Where nothing is near, nothing is suggested."""
    with pytest.raises(ValueError, match=r"known: scpi, tsp, echo, or a function\.$"):
        reply_rule("modbus")


@pytest.mark.parametrize("dialect", [None, 5, b"scpi"])
def test_what_is_neither_a_name_nor_a_function_is_refused(dialect):
    """It raises when the rule is made, not at the first command."""
    with pytest.raises(TypeError, match="the name of one or a function"):
        reply_rule(dialect)


@pytest.mark.parametrize("answer", [None, 1, "yes"])
def test_a_rule_of_ones_own_says_true_or_false(answer):
    """A forgotten return is not taken for False: it raises, and names the rule, the command and what came back."""
    with pytest.raises(TypeError, match=rf"must return True or False; for 'V\?' it returned {answer!r}"):
        reply_rule(lambda command: answer)("V?")
