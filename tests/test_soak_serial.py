"""A cut of the soak: minutes of what can go wrong on a shared serial line, in one.

``nox -s soak`` runs the whole. What is asserted here is the verdict of the instrument's own log and the owners' notes.
"""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest

from trio_daq.sim import LogEntry

SOAK = Path(__file__).parent / "soak"
EXCHANGES = {"sync": 800, "bus": 480, "flush": 300, "none": 100, "bus-flush": 400}
"""So many take 40 s: most of it is waiting for replies that do not come, with a patience that a busy computer needs."""

Verdict = dict[str, Any]


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Verdict]:
    """Run each mode once."""
    folder = tmp_path_factory.mktemp("soak")  # the logs and the notes stay there when a test fails
    command = [sys.executable, str(SOAK), "--json", f"--keep={folder}"]
    command += [f"{mode}={count}" for mode, count in EXCHANGES.items()]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=110)
    return {verdict["mode"]: verdict for verdict in map(json.loads, ended.stdout.splitlines())}


@pytest.mark.parametrize("mode", ["sync", "bus"])
def test_nothing_is_misrouted_doubled_or_lost(verdicts: dict[str, Verdict], mode: str) -> None:
    """With a sync query, no owner gets another's reply, no command is carried out twice, none is left unanswered."""
    verdict = verdicts[mode]
    assert verdict["exchanges"] == EXCHANGES[mode]
    assert (verdict["misrouted"], verdict["doubled"], verdict["lost"]) == ([], [], [])
    assert verdict["right"] > 0.8 * EXCHANGES[mode]


@pytest.mark.parametrize(("mode", "kinds"), [("sync", 15), ("bus", 14)])
def test_every_kind_of_fault_fired(verdicts: dict[str, Verdict], mode: str, kinds: int) -> None:
    """Each kind of fault makes up one in a hundred exchanges at least."""
    fired = verdicts[mode]["fired"]
    assert len(fired) == kinds
    assert {kind: count for kind, count in fired.items() if count < 0.01 * EXCHANGES[mode]} == {}


@pytest.mark.parametrize("mode", ["flush", "none", "bus-flush"])
def test_the_same_faults_misroute_without_recovery(verdicts: dict[str, Verdict], mode: str) -> None:
    """pyserial behind a lock gives replies to the wrong owners under these faults, with its input flushed or not."""
    assert verdicts[mode]["exchanges"] == EXCHANGES[mode]
    assert len(verdicts[mode]["misrouted"]) > 0


# --- the verdict itself ------------------------------------------------------------------------------------------


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    """The modules of the verdict and of the notes."""
    monkeypatch.syspath_prepend(str(SOAK))
    import notes
    import verdict

    return verdict, notes


def entry(t: int, event: str, tag: str | None, text: str = "", fault: str | None = None) -> LogEntry:
    text = f"POS? {tag}" if event == "command" else text
    return LogEntry(t=t, instrument="stage", event=event, text=text, tag=tag, fault=fault)


def exchange(t: int, tag: str) -> list[LogEntry]:
    return [entry(t, "command", tag), entry(t + 1, "reply", tag, f"{tag} 12.500")]


def judged(soak: tuple[ModuleType, ModuleType], replies: list[Any], log: list[LogEntry], outages: Any = ()) -> Any:
    """Judge exchanges with nonces n000001 and up, each of 10 ns, that got these replies."""
    verdict, notes = soak
    book = notes.Notebook(len(replies), outages=list(outages))
    for number, (note, reply) in enumerate(zip(book.exchanges("a"), replies, strict=True)):
        note.asked, note.reply = 10 * number, reply
    for number, note in enumerate(book.notes):
        note.ended = 10 * number + 9
    return verdict.judge(book, log)


A, B, C = "n000001", "n000002", "n000003"
GOOD = [*exchange(1, A), *exchange(11, B), *exchange(21, C)]


def test_verdict_finds_what_is_misrouted_or_doubled(soak: tuple[ModuleType, ModuleType]) -> None:
    """Another's reply, half of another's in front of the own one, an answer to a sync query and a repeated command."""
    assert judged(soak, [f"{A} 12.500", f"{B} 12.500", f"{C} 12.500"], GOOD).is_clean
    found = judged(soak, [f"{A} 12.500", f"{A}{B} 12.500", "s17"], [*GOOD, entry(29, "command", B)])
    assert [note.nonce for note in found.misrouted] == [B, C]
    assert found.doubled == (B,)
    assert (found.lost, found.right) == ((), 1)


def test_verdict_excuses_only_what_met_a_fault(soak: tuple[ModuleType, ModuleType]) -> None:
    """No reply is a loss, unless the exchange met a fault, was cut by an outage, or followed upon garbage."""

    def lost(log: list[LogEntry], outages: Any = ()) -> list[str]:
        return [note.nonce for note in judged(soak, [None, None, f"{C} 12.500"], log, outages).lost]

    assert lost(GOOD) == [A, B]
    assert lost([*GOOD, entry(2, "fault", A, fault="silent")]) == [B]
    assert lost([*GOOD, entry(2, "fault", A, fault="garbage_after")]) == []
    assert lost(GOOD, [(5, 9)]) == [B]
    assert lost([*GOOD, entry(18, "fault", None, "0.000000005 s", "freeze")]) == [A]
    assert lost(exchange(21, C)) == [A, B]
    assert attrs.asdict(judged(soak, ["EVENT 1"], []))["lost"][0]["nonce"] == A
