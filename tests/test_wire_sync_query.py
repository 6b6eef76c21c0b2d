"""Sync queries: what is refused, that no question is asked twice, and what counts as the answer."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_daq.wire.sync_query import SyncQuery, SyncSequence

PAIR = SyncQuery("*ESE?", "0", other=("*IDN?", "ACME,1"))
ECHO = SyncQuery("ECHO {nonce}", "<{nonce}>")


@pytest.mark.parametrize(
    ("query", "answer", "other", "message"),
    [
        ("", "0", None, "the query of a sync query must be at least one byte, not b''"),
        ("Q?", "", None, "the answer of a sync query must be at least one byte, not b''"),
        (5, "0", None, "the query of a sync query must be at least one byte, not 5"),
        (
            "ECHO {nonce}",
            "0",
            None,
            "{nonce} must stand in both the query and the answer of a sync query, or in neither",
        ),
        (
            "ECHO",
            "{nonce}",
            ("Q?", "1"),
            "{nonce} must stand in both the query and the answer of a sync query, or in neither",
        ),
        ("ECHO {nonce}", "{nonce}", ("Q?", "1"), "a sync query with {nonce} needs no other"),
        (
            "*ESE?",
            "0",
            None,
            (
                "a sync query without {nonce} needs a second question and answer as other: a late reply to the first "
                "would be taken for its answer"
            ),
        ),
        ("*ESE?", "0", ("*IDN?",), "other must be a second question and its answer, not (b'*IDN?',)"),
        ("*ESE?", "0", (), "other must be a second question and its answer, not ()"),
        ("*ESE?", "0", ("*IDN?", ""), "other must be a second question and its answer, not (b'*IDN?', b'')"),
        ("*ESE?", "0", ("*IDN?", 1), "other must be a second question and its answer, not (b'*IDN?', 1)"),
        ("*ESE?", "0", "ab", "other must be a second question and its answer, not 'ab'"),
        ("*ESE?", "0", 5, "other must be a second question and its answer, not 5"),
        (
            "*ESE?",
            "0",
            ("E {nonce}", "{nonce}"),
            "{nonce} must stand in the query and the answer of a sync query, not in its other",
        ),
        ("*ESE?", "0", ("*SRE?", "0"), "the two answers of a sync query must differ, and none may end in the other"),
        ("*ESE?", "0", ("*SRE?", "10"), "the two answers of a sync query must differ, and none may end in the other"),
        ("*ESE?", "10", ("*SRE?", "0"), "the two answers of a sync query must differ, and none may end in the other"),
    ],
)
def test_what_would_not_tell_replies_apart_is_refused(query, answer, other, message):
    """Each mistake is a ValueError that says what to write instead."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole text is compared below
        SyncQuery(query, answer, other)
    assert str(caught.value) == message


def test_text_becomes_bytes_and_a_list_a_pair():
    """What TOML can say is taken: text, and a list of two texts."""
    assert SyncQuery("*ESE?", "0", other=["*IDN?", "ACME,1"]) == PAIR
    assert PAIR.other == (b"*IDN?", b"ACME,1")
    with pytest.raises(ValueError, match="no ASCII text"):
        SyncQuery("µ?", "0", other=("*IDN?", "1"))


def test_a_nonce_never_comes_back():
    """Ten thousand questions of one sequence are ten thousand different ones, in query and in answer."""
    sequence = SyncSequence(ECHO)
    asked = [sequence.ask() for _ in range(10_000)]
    assert len({question.query for question in asked}) == len({question.answer for question in asked}) == 10_000
    for question in asked:
        nonce = question.query.removeprefix(b"ECHO ")
        assert b"{" not in nonce
        assert question.answer == b"<" + nonce + b">"


def test_two_sequences_start_at_different_numbers():
    """Two programs one after the other do not ask the same questions: of twenty starts, hardly two are the same."""
    assert len({SyncSequence(ECHO).ask().query for _ in range(20)}) >= 18


def test_every_place_of_the_nonce_is_filled():
    """Where the nonce stands more than once it is the same number everywhere."""
    question = SyncSequence(SyncQuery("E {nonce};{nonce}", "{nonce},{nonce}")).ask()
    first, second = question.query.removeprefix(b"E ").split(b";")
    assert first == second
    assert question.answer == first + b"," + first


def test_a_pair_takes_turns():
    """Without a nonce the two questions alternate, beginning with the first."""
    sequence = SyncSequence(PAIR)
    asked = [(question.query, question.answer) for question in (sequence.ask() for _ in range(6))]
    assert asked == [(b"*ESE?", b"0"), (b"*IDN?", b"ACME,1")] * 3


def test_what_each_kind_needs():
    """With numbers one answer is proof and a question may be repeated; a pair needs both answers and no repeats."""
    numbered, pair = SyncSequence(ECHO), SyncSequence(PAIR)
    assert (numbered.needed, numbered.may_repeat) == (1, True)
    assert (pair.needed, pair.may_repeat) == (2, False)


@pytest.mark.parametrize("query", [ECHO, PAIR, SyncQuery("E {nonce}", "{nonce}")])
@given(noise=st.binary(max_size=20))
def test_noise_in_front_does_not_hide_the_answer(query, noise):
    """A line that ends in the answer answers, whatever stands before it."""
    sequence = SyncSequence(query)
    for _ in range(2):
        question = sequence.ask()
        assert question.is_answered_by(noise + question.answer)


@pytest.mark.parametrize("query", [ECHO, PAIR, SyncQuery("E {nonce}", "{nonce}")])
@given(noise=st.binary(max_size=20))
def test_the_answer_to_the_question_before_is_not_taken(query, noise):
    """A late answer to the question before, with or without noise in front of it, answers nothing."""
    sequence = SyncSequence(query)
    for before, now in itertools.pairwise([sequence.ask() for _ in range(12)]):
        assert not now.is_answered_by(noise + before.answer)
        assert not before.is_answered_by(noise + now.answer)


def test_no_number_is_taken_for_one_that_ends_alike():
    """Numbers of different length, of which one ends in the other, are told apart."""
    sequence = SyncSequence(SyncQuery("E {nonce}", "{nonce}"))
    sequence._numbers = iter([1, 11, 21, 211])
    asked = [sequence.ask() for _ in range(4)]
    for one, other in itertools.permutations(asked, 2):
        assert not one.is_answered_by(other.answer)


@pytest.mark.parametrize("line", [b"", b"0\r", b"0 ", b"00x", b"ERROR"])
def test_what_comes_behind_the_answer_spoils_it(line):
    """Nothing, other text, and an answer with something behind it are not the answer."""
    assert not SyncSequence(PAIR).ask().is_answered_by(line)
