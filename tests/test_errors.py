"""Every error: what it is, what it says, and that it survives a copy."""

import copy
import inspect
import pickle
import re

import pytest

from trio_daq import errors
from trio_daq.errors import DaqError, is_bug

WAIT = {"resource": "/dev/ttyUSB7", "wanted_by": "alice", "held_by": "bob", "held_for": 12.5}

EXAMPLES = {
    "AcquireTimeoutError": (
        {**WAIT, "waited": 2.0, "position": 3, "phase": "queue"},
        TimeoutError,
        ["/dev/ttyUSB7", "'alice'", "'bob'", "12.5 s", "2 s", "place 3", "Nothing was sent"],
    ),
    "PortBusyError": (
        {**WAIT, "waiting": 4},
        OSError,
        ["/dev/ttyUSB7", "'alice'", "'bob'", "12.5 s", "4 waiting", "Nothing was sent"],
    ),
    "DeadlockError": (
        {
            "resource": "/dev/ttyUSB7",
            "wanted_by": "alice",
            "circle": [("/dev/ttyUSB7", "bob"), ("/dev/ttyUSB8", "alice")],
        },
        RuntimeError,
        ["/dev/ttyUSB7", "/dev/ttyUSB8", "'alice'", "'bob'", "Nothing was sent", "acquire_all"],
    ),
    "LockOrderError": (
        {
            "resource": "/dev/ttyUSB7",
            "wanted_by": "alice",
            "kind": "SERIAL",
            "held": "GPIB0::5::INSTR",
            "held_kind": "VISA",
        },
        RuntimeError,
        ["/dev/ttyUSB7", "'alice'", "GPIB0::5::INSTR", "nothing was sent", "serial lines first"],
    ),
    "LeaseRevokedError": (
        {
            "resource": "/dev/ttyUSB7",
            "owner": "alice",
            "action": "query(b'x')",
            "reason": "it was held for more than 5 s",
        },
        ConnectionError,
        ["/dev/ttyUSB7", "'alice'", "query(b'x')", "more than 5 s", "sent: unknown", "Acquire it again"],
    ),
    "ExchangeTimeoutError": (
        {
            "resource": "/dev/ttyUSB7",
            "owner": "alice",
            "operation": "read_exactly(5)",
            "waited": 1.0,
            "sent": "yes",
            "received": b"12\n",
        },
        TimeoutError,
        ["/dev/ttyUSB7", "'alice'", "read_exactly(5)", "1 s", "3 bytes", r"b'12\n'", "sent: yes"],
    ),
    "CommandTimeoutError": (
        {
            "resource": "TCPIP::dmm",
            "command": "READ?",
            "owner": "alice",
            "phase": "queued",
            "sent": "no",
            "waited": 0.25,
            "position": 6,
            "in_flight": "bob",
        },
        TimeoutError,
        [
            "TCPIP::dmm",
            "'READ?'",
            "'alice'",
            "0.25 s",
            "6 ahead of it",
            "busy with a command of 'bob'",
            "never be sent",
        ],
    ),
    "QueueFullError": (
        {"resource": "TCPIP::dmm", "command": "READ?", "owner": "alice", "waiting": 100, "in_flight": "bob"},
        OSError,
        ["TCPIP::dmm", "'READ?'", "'alice'", "100 commands wait", "'bob'", "not sent", "enqueue_command"],
    ),
    "CommandCancelledError": (
        {"resource": "TCPIP::dmm", "command": "READ?", "owner": "alice", "sent": "no"},
        ConnectionAbortedError,
        ["TCPIP::dmm", "'READ?'", "'alice'", "sent: no"],
    ),
    "InstrumentError": (
        {"resource": "TCPIP::dmm", "owner": "alice", "command": "VLOT 1", "errors": [(-113, "Undefined header")]},
        ValueError,
        ["TCPIP::dmm", "'VLOT 1'", "'alice'", "-113 Undefined header"],
    ),
    "TransactionBrokenError": (
        {"resource": "TCPIP::dmm", "owner": "alice", "command": "READ?", "reason": "the instrument closed it"},
        ConnectionError,
        ["TCPIP::dmm", "'READ?'", "'alice'", "not sent", "the instrument closed it", "begin it again"],
    ),
    "ReplyError": (
        {"resource": "TCPIP::dmm", "owner": "alice", "command": "READ?", "reply": "ouch", "expected": "a number"},
        ValueError,
        ["TCPIP::dmm", "'READ?'", "'alice'", "'ouch'", "a number"],
    ),
    "LineOpenError": (
        {"resource": "/dev/ttyUSB7", "reason": "permission denied", "hint": "Join the group dialout."},
        OSError,
        ["/dev/ttyUSB7", "permission denied", "Join the group dialout."],
    ),
    "LineLostError": (
        {"resource": "/dev/ttyUSB7", "owner": "alice", "reason": "hung up"},
        ConnectionError,
        ["/dev/ttyUSB7", "'alice'", "hung up", "sent: unknown"],
    ),
    "LineUnusableError": (
        {"resource": "/dev/ttyUSB7", "reason": "it never falls silent", "retry_in": 1.5},
        ConnectionError,
        ["/dev/ttyUSB7", "it never falls silent", "1.5 s", "Nothing was sent"],
    ),
    "SafeStateError": (
        {"resource": "serial.stage", "reason": "it did not answer 'SHUT?' in time"},
        ConnectionError,
        ["serial.stage", "it did not answer 'SHUT?' in time"],
    ),
    "LineFeatureError": (
        {"resource": "/dev/ttyUSB7", "owner": "alice", "action": "send_break", "reason": "not a tty"},
        OSError,
        ["/dev/ttyUSB7", "'alice'", "send_break", "not a tty"],
    ),
    "SessionClosedError": (
        {"resource": "TCPIP::dmm", "owner": "alice"},
        ConnectionError,
        ["TCPIP::dmm", "'alice'", "sent: no"],
    ),
    "HungCallError": (
        {"thread": "visa dmm #1", "call": "viRead", "waited": 3.0},
        TimeoutError,
        ["'visa dmm #1'", "viRead", "3 s"],
    ),
    "AskTimeoutError": (
        {"actor": "meter", "message": "Measure(1)", "phase": "handling", "waited": 1.0},
        TimeoutError,
        ["'meter'", "Measure(1)", "1 s", "still at it"],
    ),
    "MailboxFullError": ({"actor": "meter", "capacity": 64}, OSError, ["'meter'", "64"]),
    "ActorStoppedError": ({"actor": "meter", "handling": "Measure(1)"}, ConnectionError, ["'meter'", "Measure(1)"]),
    "PublishTimeoutError": (
        {"instrument": "dmm", "subscriber": "recorder", "waited": 5.0},
        TimeoutError,
        ["'dmm'", "'recorder'", "5 s"],
    ),
    "AcknowledgeTimeoutError": (
        {"path": "runs/1.db", "instrument": "dmm", "seq": 41, "waited": 0.5},
        TimeoutError,
        ["runs/1.db", "reading 41", "'dmm'", "0.5 s"],
    ),
    "RecordingError": ({"path": "runs/1.db", "reason": "disk full"}, OSError, ["runs/1.db", "disk full"]),
    "RunFileError": ({"path": "runs/1.db", "reason": "no run"}, OSError, ["runs/1.db", "no run"]),
    "StateError": (
        {"action": "start()", "expected": "STOPPED", "actual": "RUNNING", "hint": "Stop it."},
        RuntimeError,
        ["start()", "STOPPED", "RUNNING", "Stop it."],
    ),
    "StartError": ({"member": "visa.dmm", "cause": OSError("no host")}, RuntimeError, ["visa.dmm", "no host"]),
    "StoppingError": ({"subsystem": "v4", "action": "spawn()"}, ConnectionError, ["v4", "spawn()"]),
    "StuckError": (
        {"member": "v2.camera", "where": ("grab (camera.py:7)",)},
        RuntimeError,
        ["v2.camera", "grab (camera.py:7)"],
    ),
    "UnhealthyError": ({"report": "stage is lost"}, RuntimeError, ["stage is lost"]),
    "DoorClosedError": (
        {"resource": "/dev/ttyUSB7", "owner": "old", "reason": "it is late", "sent": "unknown"},
        ConnectionError,
        ["/dev/ttyUSB7", "'old'", "it is late", "sent: unknown"],
    ),
    "DoorInterruptedError": (
        {"resource": "/dev/ttyUSB7", "owner": "old", "sent": "unknown"},
        ConnectionError,
        ["/dev/ttyUSB7", "'old' is to stop", "sent: unknown", "stop_timeout"],
    ),
    "ConfigError": ({"problems": ("lab.toml:1: a", "lab.toml:2: b")}, ValueError, ["lab.toml:1: a\nlab.toml:2: b"]),
    "GuardReleasedError": (
        {"resource": "/dev/ttyUSB7", "owner": "alice", "action": "write_all"},
        ValueError,
        ["/dev/ttyUSB7", "'alice'", "write_all"],
    ),
    "UnknownNameError": (
        {"kind": "session", "name": "dmmm", "known": ("dmm", "psu"), "suggestion": "dmm"},
        LookupError,
        ["session", "'dmmm'", "did you mean 'dmm'?", "dmm, psu"],
    ),
}


def an_error(name):
    values, _, _ = EXAMPLES[name]
    return getattr(errors, name)(**values)


def classes():
    return {
        name
        for name, value in inspect.getmembers(errors, inspect.isclass)
        if issubclass(value, DaqError) and value is not DaqError
    }


def test_every_error_has_an_example_here():
    """No error class of the module is left out by the tests below."""
    assert set(EXAMPLES) == classes()


def test_the_tree_in_the_docstring_is_the_tree():
    """The module's docstring lists every error class, once, and none that is not there."""
    listed = re.findall(r"\b\w+Error\b", errors.__doc__.partition("Tree::")[2])
    assert sorted(listed) == sorted([*classes(), "DaqError"])


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_message_names_the_thing_and_the_facts(name):
    """The text of each error holds the thing, those involved, the times, and what it means."""
    text = str(an_error(name))
    for fact in EXAMPLES[name][2]:
        assert fact in text


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_error_is_a_daq_error_and_a_builtin(name):
    """Old code that catches the builtin catches ours, and so does who catches DaqError."""
    error = an_error(name)
    assert isinstance(error, DaqError)
    assert isinstance(error, EXAMPLES[name][1])


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))],
    ids=["copy", "deep", "pickle"],
)
def test_a_copy_has_the_type_the_values_and_the_text(name, duplicate):
    """Copied, deep-copied or pickled, an error keeps its class, its attributes and its message."""
    error = an_error(name)
    twin = duplicate(error)
    assert twin is not error
    assert type(twin) is type(error)
    assert str(twin) == str(error)
    for key in EXAMPLES[name][0]:
        assert repr(getattr(twin, key)) == repr(getattr(error, key))


@pytest.mark.parametrize("name", EXAMPLES)
def test_values_are_keywords_and_stay_readable(name):
    """Each value given is an attribute of the error, and none can be given by position."""
    values, _, _ = EXAMPLES[name]
    error = an_error(name)
    assert {key: getattr(error, key) for key in values} == values
    with pytest.raises(TypeError):
        getattr(errors, name)(*values.values())


@pytest.mark.parametrize("name", EXAMPLES)
def test_errors_are_compared_by_identity(name):
    """Two errors of equal content are two errors, and each can be a key."""
    assert an_error(name) != an_error(name)
    assert len({an_error(name), an_error(name)}) == 2


@pytest.mark.parametrize(
    ("phase", "words"),
    [("queue", "nobody holds it now"), ("open", "still being opened"), ("resync", "made clean")],
)
def test_an_acquire_timeout_says_where_the_time_went(phase, words):
    """Each phase has its own reason, and a holder that left meanwhile is not invented."""
    values = EXAMPLES["AcquireTimeoutError"][0] | {"phase": phase, "held_by": None}
    text = str(errors.AcquireTimeoutError(**values))
    assert words in text
    assert "bob" not in text


@pytest.mark.parametrize("sent", ["no", "yes", "unknown"])
@pytest.mark.parametrize("phase", ["place", "queued", "in_flight", "resync"])
def test_a_command_timeout_has_a_text_for_every_case(phase, sent):
    """Every phase and every value of ``sent`` makes a message, and only "no" calls a new try safe."""
    values = EXAMPLES["CommandTimeoutError"][0] | {"phase": phase, "sent": sent}
    text = str(errors.CommandTimeoutError(**values))
    assert ("safe to try again" in text) == (sent == "no")
    assert ("had not answered" in text) == (phase == "in_flight" and sent != "no")


@pytest.mark.parametrize("phase", ["mailbox", "queued", "handling"])
def test_an_ask_timeout_has_a_text_for_every_phase(phase):
    """Every phase of an ask makes a message, and they differ."""
    texts = {
        str(errors.AskTimeoutError(**(EXAMPLES["AskTimeoutError"][0] | {"phase": one})))
        for one in ("mailbox", "queued", "handling")
    }
    assert len(texts) == 3


BUGS = ["GuardReleasedError", "LockOrderError", "StateError", "UnknownNameError"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_only_misuse_of_our_api_is_a_bug_among_our_errors(name):
    """Of our own errors exactly four are mistakes in a program."""
    assert is_bug(an_error(name)) == (name in BUGS)


@pytest.mark.parametrize(
    "error",
    [
        TypeError(),
        AttributeError(),
        NameError(),
        UnboundLocalError(),
        AssertionError(),
        NotImplementedError(),
        ImportError(),
        ModuleNotFoundError(),
    ],
    ids=repr,
)
def test_programming_mistakes_are_bugs(error):
    """The builtin errors that only a changed program cures are bugs, subclasses included."""
    assert is_bug(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError(),
        OSError(),
        TimeoutError(),
        RuntimeError(),
        KeyError(),
        KeyboardInterrupt(),
        EOFError(),
        ArithmeticError(),
    ],
    ids=repr,
)
def test_faults_of_the_lab_are_no_bugs(error):
    """Every other error is operational."""
    assert not is_bug(error)


def test_a_group_is_a_bug_if_any_leaf_is():
    """One bug, however deep in groups, makes the group a bug; without one it is none."""
    deep = ExceptionGroup("outer", [OSError(), ExceptionGroup("inner", [ValueError(), TypeError()])])
    assert is_bug(deep)
    assert is_bug(BaseExceptionGroup("outer", [KeyboardInterrupt(), TypeError()]))
    assert not is_bug(ExceptionGroup("outer", [OSError(), ExceptionGroup("inner", [ValueError()])]))
