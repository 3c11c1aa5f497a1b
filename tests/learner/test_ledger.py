"""The ledger remembers everything, forgives nothing, and knows the way back."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from learner.errors import LedgerError
from learner.ledger import Ledger, State


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = Ledger(tmp_path / "ledger.sqlite")
    made.crown_first("a", why="first", evidence={"path": "bundles/a"})
    return made


def promote(ledger: Ledger, version: str) -> None:
    ledger.record(version, State.CANDIDATE, why="trained", parent=ledger.champion())
    ledger.record(version, State.GATED, why="better", evidence={"e": 40.0})
    ledger.record(version, State.CHAMPION, why="passed")


def test_a_promotion_retires_the_champion(ledger: Ledger) -> None:
    promote(ledger, "b")
    assert ledger.champion() == "b"
    assert ledger.state("a") is State.RETIRED
    assert [e.state for e in ledger.history("b")] == [State.CANDIDATE, State.GATED, State.CHAMPION]


def test_roll_back_restores_the_champion_before(ledger: Ledger) -> None:
    promote(ledger, "b")
    promote(ledger, "c")
    assert ledger.roll_back(why="failures rose") == "b"
    assert (ledger.champion(), ledger.state("c")) == ("b", State.ROLLED_BACK)
    assert ledger.roll_back(why="again") == "a"
    with pytest.raises(LedgerError, match="no earlier champion"):
        ledger.roll_back(why="once more")
    assert ledger.champion() == "a"


def test_nobody_becomes_champion_without_the_gate(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="unknown and cannot become champion"):
        ledger.record("b", State.CHAMPION, why="trust me")
    ledger.record("b", State.CANDIDATE, why="trained")
    with pytest.raises(LedgerError, match="candidate and cannot become champion"):
        ledger.record("b", State.CHAMPION, why="trust me")
    assert ledger.champion() == "a"
    assert ledger.state("a") is State.CHAMPION, "a refused change must change nothing"


def test_rejected_stays_rejected(ledger: Ledger) -> None:
    ledger.record("b", State.CANDIDATE, why="trained")
    ledger.record("b", State.REJECTED, why="worse")
    for state in State:
        with pytest.raises(LedgerError):
            ledger.record("b", state, why="again")


def test_the_first_is_crowned_once(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="champion already"):
        ledger.crown_first("z", why="mine")


def test_judged_counts_since_the_last_crowning(ledger: Ledger) -> None:
    for version in ("b", "c"):
        ledger.record(version, State.CANDIDATE, why="trained")
        ledger.record(version, State.REJECTED, why="worse")
    assert ledger.judged(besides="d") == 2
    assert ledger.judged(besides="c") == 1
    promote(ledger, "e")
    assert ledger.judged(besides="f") == 0
    assert ledger.judged(besides="f", since_champion=False) == 4


def test_it_survives_reopening(ledger: Ledger) -> None:
    promote(ledger, "b")
    ledger.close()
    again = Ledger(ledger.path)
    assert again.champion() == "b"
    assert again.verify() == 7
    assert again.evidence("a", "path") == "bundles/a"


def test_rows_cannot_be_changed_or_removed(ledger: Ledger) -> None:
    db = sqlite3.connect(ledger.path)
    for statement in ("UPDATE ledger SET why = 'other'", "DELETE FROM ledger"):
        with pytest.raises(sqlite3.DatabaseError, match="append-only"):
            db.execute(statement)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE ledger SET why = 'better' WHERE id = 2",
        "UPDATE ledger SET evidence = '{}' WHERE id = 1",
        "DELETE FROM ledger WHERE id = 2",
        "UPDATE ledger SET version = 'z' WHERE id = 3",
    ],
)
def test_tampering_behind_its_back_is_found(ledger: Ledger, damage: str) -> None:
    ledger.close()
    db = sqlite3.connect(ledger.path)
    db.execute("DROP TRIGGER ledger_no_update")
    db.execute("DROP TRIGGER ledger_no_delete")
    db.execute(damage)
    db.commit()
    db.close()
    with pytest.raises(LedgerError, match="was changed"):
        Ledger(ledger.path)


def test_another_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"not a database, not at all, but long enough to be looked at" * 20)
    with pytest.raises(LedgerError, match="is not a ledger") as caught:
        Ledger(path)
    assert "\n" not in str(caught.value)
