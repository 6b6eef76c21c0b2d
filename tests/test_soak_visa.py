"""A cut of the VISA soak: minutes of what can go wrong between nine owners and a meter on TCP, in one.

``nox -s soak`` runs the whole. What is asserted here is the verdict of the instrument's own log and the owners' notes.
"""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from trio_daq.sim import LogEntry

SOAK = Path(__file__).parent / "soak"
EXCHANGES = {"visa-native": 400, "visa-pyvisa": 400, "visa-peer": 200}
OURS = ["visa-native", "visa-pyvisa"]
KINDS = 15

Verdict = dict[str, Any]


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Verdict]:
    """Run each mode once."""
    folder = tmp_path_factory.mktemp("soak")  # the logs and the notes stay there when a test fails
    command = [sys.executable, str(SOAK), "--json", f"--keep={folder}", "--timeout=0.2", "--late-by=0.27"]
    command += [f"{mode}={count}" for mode, count in EXCHANGES.items()]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=110)
    return {verdict["mode"]: verdict for verdict in map(json.loads, ended.stdout.splitlines())}


@pytest.mark.parametrize("mode", OURS)
def test_nothing_is_misrouted_doubled_lost_or_sent_after_its_end(verdicts: dict[str, Verdict], mode: str) -> None:
    """No owner gets another's reply, nothing is carried out twice or left unanswered, "not sent" means not sent."""
    verdict = verdicts[mode]
    assert verdict["exchanges"] >= EXCHANGES[mode]
    assert (verdict["misrouted"], verdict["doubled"], verdict["lost"], verdict["expired"]) == ([], [], [], [])
    assert verdict["right"] > 0.5 * EXCHANGES[mode]
    assert verdict["unsent"] > 0.01 * EXCHANGES[mode]


@pytest.mark.parametrize("mode", OURS)
def test_every_kind_of_fault_fired(verdicts: dict[str, Verdict], mode: str) -> None:
    """Each kind of fault makes up one in a hundred exchanges at least."""
    fired = verdicts[mode]["fired"]
    assert len(fired) == KINDS
    assert {kind: count for kind, count in fired.items() if count < 0.01 * EXCHANGES[mode]} == {}


def test_the_same_faults_misroute_without_recovery(verdicts: dict[str, Verdict]) -> None:
    """pyvisa-py behind a lock gives replies to the wrong owners under these faults."""
    assert len(verdicts["visa-peer"]["misrouted"]) > 0


# --- the verdict itself ------------------------------------------------------------------------------------------


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    """The modules of the verdict and of the notes."""
    monkeypatch.syspath_prepend(str(SOAK))
    import notes
    import verdict

    return verdict, notes


SECOND = 1_000_000_000
A, B = "n000001", "n000002"


def entry(t: float, event: str, tag: str | None, text: str, fault: str | None = None) -> LogEntry:
    return LogEntry(t=round(t * SECOND), instrument="meter", event=event, text=text, tag=tag, fault=fault)


def exchange(t: float, tag: str, took: float = 0.0) -> list[LogEntry]:
    return [entry(t, "command", tag, f"MEAS:VOLT? {tag}"), entry(t + took, "reply", tag, f"{tag},+1.2E+00")]


def judged(soak: tuple[ModuleType, ModuleType], notes: list[dict[str, Any]], log: list[LogEntry]) -> Any:
    """Judge exchanges with nonces n000001 and up, each of 1 s if nothing else is said."""
    verdict, kinds = soak
    book = kinds.Notebook(len(notes))
    for number, values in enumerate(notes):
        note = book.new("a")
        note.asked, note.ended = number * SECOND, (number + 1) * SECOND
        for name, value in values.items():
            setattr(note, name, value)
    return verdict.judge(book, log)


def test_what_was_called_not_sent_is_not_on_the_wire(soak: tuple[ModuleType, ModuleType]) -> None:
    """A command is expired on the wire if its owner was told that it was not sent, however late it comes."""
    told = {"error": "CommandTimeoutError", "sent": "no", "fault": "queue_deadline"}
    assert judged(soak, [told], exchange(5, B)).is_clean
    found = judged(soak, [told, {"reply": f"{B},+1.2E+00"}], [*exchange(1.5, B), *exchange(99, A)])
    assert [note.nonce for note in found.expired] == [A]
    assert not found.is_clean


def test_a_write_is_right_once_it_was_carried_out(soak: tuple[ModuleType, ModuleType]) -> None:
    """A write that its owner takes for done is lost if the instrument never saw it, doubled if it saw it twice."""
    done = {"verb": "write", "reply": ""}
    seen = entry(0.5, "command", None, f"CONF:VOLT:DC {A}")
    assert (judged(soak, [done], [seen]).right, judged(soak, [done], [seen]).is_clean) == (1, True)
    assert [note.nonce for note in judged(soak, [done], []).lost] == [A]
    assert judged(soak, [done], [seen, seen]).doubled == (A,)
    assert judged(soak, [done], [entry(0.9, "fault", None, "0.2 s", "restart")]).lost == ()


def test_a_deadline_that_passed_behind_a_fault_is_no_loss(soak: tuple[ModuleType, ModuleType]) -> None:
    """It is excused only if it was waited out, if somebody met a fault then, and if there was no answer to be had."""
    fault = entry(0.2, "fault", "n000009", "", "silent")

    def is_lost(log: list[LogEntry], **values: Any) -> bool:
        note = {"error": "CommandTimeoutError", "sent": "yes", "timeout": 1.0, **values}
        return bool(judged(soak, [note], log).lost)

    assert not is_lost([fault])
    assert is_lost([])
    assert is_lost([fault], timeout=2.0)
    assert is_lost([fault], error="LineLostError")
    assert is_lost([fault, *exchange(0.3, A)])
    assert not is_lost([fault, *exchange(0.3, A, took=0.69)])


def test_a_batch_ends_for_all_of_it(soak: tuple[ModuleType, ModuleType]) -> None:
    """What met a fault excuses the other commands of its batch, and nobody else."""
    fault = entry(0.5, "fault", A, "", "silent")
    lost = {"error": "LineLostError"}
    assert judged(soak, [lost, lost | {"group": A}], [fault]).lost == ()
    assert [note.nonce for note in judged(soak, [lost, lost], [fault]).lost] == [B]


def test_a_block_is_right_if_its_bytes_are(soak: tuple[ModuleType, ModuleType]) -> None:
    """What a block query gives is compared with the block's bytes without its header."""
    log = [entry(0.1, "command", A, f"CURV? {A},9"), entry(0.1, "reply", A, f"#19{A},x")]
    for reply, right in ((f"{A},x", 1), (f"{A},y", 0), (f"#19{A},x", 0)):
        assert judged(soak, [{"verb": "query_block", "reply": reply}], log).right == right
