"""Query or command: golden cases of IEEE 488.2 and of what instruments are really sent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_daq.wire import expects_reply

QUERIES = [
    "*IDN?",
    "*IDN?\n",
    "*IDN?\r\n",
    " *IDN?",
    "\t:SYST:ERR?",
    "*OPC?",
    "SYST:ERR?;",
    ":MEAS:VOLT:DC?",
    "MEAS:VOLT? (@1)",
    "MEAS:VOLT:DC? 10,0.003",
    "MEAS:VOLT?\t10",
    "CURV? 1",
    'READ? "defbuffer1", SOUR',
    "READ? 'a;b', SOUR",
    'READ?"defbuffer1"',
    'READ?"defbuffer1";',
    "TRAC:DATA? 1, 10",
    "*RST;*OPC?",
    "*RST; *OPC?",
    "*RST ;*OPC?",
    "*OPC?;*RST",
    "VOLT 1;CURR 2;MEAS:VOLT?",
    ":VOLT 1;:VOLT?;:OUTP ON",
    'DISP:TEXT "READY?";*OPC?',
    "DISP:TEXT 'it''s;here?';*OPC?",
    'DISP:TEXT "say ""hi"";";:SYST:ERR?',
    "DATA #15a;b?c;*OPC?",
    "DATA #212\n;?0123456789;*WAI;*OPC?",
    "REG #HFF;REG?",
    "REG #B01;REG?",
    "CALC:PAR? #H10",
    "CALC1:DATA? SDATA",
    "ROUT:CLOS? (@101:103)",
    "SOUR2:VOLT? MAX",
    "FREQ? ;",
    "a?",
    "TRCB?1,0,4",
    "OUTP?1",
]

COMMANDS = [
    "",
    "\n",
    ";",
    ";;",
    "*RST",
    "*RST\n",
    "*CLS;*RST",
    "CONF:VOLT:DC",
    "VOLT 1.5",
    "VOLT 1;CURR 2;",
    'DISP:TEXT "READY?"',
    "DISP:TEXT 'READY?'",
    'DISP:TEXT "READY?;X?"',
    'DISP:TEXT "READY? "',
    'DISP:TEXT "unfinished? ;*IDN?',
    "DISP:TEXT 'it''s ok?;*IDN?'",
    'DISP:TEXT "say ""ok?"";*IDN?"',
    'DISP:TEXT "a" , "b?"',
    "DISP:TEXT what?",
    "DISP:TEXT what? ;",
    "DATA #15a;b?c",
    "DATA #18*IDN?;x?",
    "DATA #0;*IDN?\n",
    "DATA 1,#13a?;",
    "DATA #3005*I?;Q",
    "?IDN",
    "!FREQ 100",
    "OUTPIDEN",
    "RMEM 1",
    "print(smua.measure.v())",
    'print("ready?")',
    "SYST:COMM 1 ?",
    "REG #HFF",
    "REG #Q17;REG #B1",
]


@pytest.mark.parametrize("message", QUERIES)
def test_a_unit_whose_header_ends_in_a_question_mark_is_answered(message):
    """A message is a query if the header of any of its units ends in a question mark, parameters or not."""
    assert expects_reply(message)


@pytest.mark.parametrize("message", COMMANDS)
def test_a_question_mark_elsewhere_is_data(message):
    """Question marks and semicolons in strings, blocks and parameters make no query."""
    assert not expects_reply(message)


headers = st.from_regex(r"[*:]?[A-Z]{1,4}(:[A-Z]{1,4}[0-9]?)?", fullmatch=True)
text = st.text(st.sampled_from("aZ?;#1'\" ,("), max_size=8)
strings = text.map(lambda value: '"' + value.replace('"', '""') + '"') | text.map(
    lambda value: "'" + value.replace("'", "''") + "'"
)
blocks = text.map(lambda value: f"#2{len(value):02}{value}")
numbers = st.sampled_from(["1", "-2.5E3", "#HFF", "#B101", "MAX", "(@1,2)"])
parameters = st.lists(strings | blocks | numbers, max_size=3).map(
    lambda values: "".join(" " * (not at) + ("," * bool(at)) + one for at, one in enumerate(values))
)
units = st.tuples(headers, st.booleans(), parameters)


@given(st.lists(units, min_size=1, max_size=5), st.sampled_from(["", "\n", "\r\n", ";"]))
def test_a_row_of_units_is_a_query_if_one_of_them_is(row, end):
    """Made from headers, strings, blocks and numbers, a message is a query just if a question mark ends a header."""
    message = ";".join(f"{header}{'?' * query}{rest}" for header, query, rest in row) + end
    assert expects_reply(message) == any(query for _, query, _ in row)


@given(st.text(st.sampled_from("?;#\"'0123 \n*Aa("), max_size=30))
def test_no_message_is_too_strange(message):
    """Whatever the text, there is an answer, and white space before or a terminator after it changes nothing."""
    answer = expects_reply(message)
    assert answer in (True, False)
    assert expects_reply(" \t" + message) == answer
