"""Who was champion when, and why: append-only, each row sealed by a hash over the row before it.

MLflow's aliases keep no history; this does, and MLflow mirrors it.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from learner.errors import LedgerError


class State(StrEnum):
    """Life of a policy version."""

    CANDIDATE = "candidate"
    GATED = "gated"
    REJECTED = "rejected"
    CHAMPION = "champion"
    RETIRED = "retired"
    ROLLED_BACK = "rolled_back"


ALLOWED: Mapping[State | None, frozenset[State]] = {
    None: frozenset({State.CANDIDATE}),
    State.CANDIDATE: frozenset({State.GATED, State.REJECTED}),
    State.GATED: frozenset({State.CHAMPION, State.REJECTED}),
    State.CHAMPION: frozenset({State.RETIRED, State.ROLLED_BACK}),
    State.RETIRED: frozenset({State.CHAMPION}),
    State.REJECTED: frozenset(),
    State.ROLLED_BACK: frozenset(),
}

_SCHEMA = """
CREATE TABLE IF NOT EXISTS ledger (
  id INTEGER PRIMARY KEY, wall TEXT NOT NULL, version TEXT NOT NULL, state TEXT NOT NULL, parent TEXT,
  who TEXT NOT NULL, why TEXT NOT NULL, evidence TEXT NOT NULL, before TEXT NOT NULL,
  hash TEXT NOT NULL UNIQUE
) STRICT;
CREATE TRIGGER IF NOT EXISTS ledger_no_update BEFORE UPDATE ON ledger
  BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER IF NOT EXISTS ledger_no_delete BEFORE DELETE ON ledger
  BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""
_GENESIS = "0" * 64


@dataclass(frozen=True, slots=True)
class Entry:
    """One row. ``evidence`` is free JSON (gate decision, data set, seeds); ``wall`` is a label."""

    id: int
    wall: str
    version: str
    state: State
    parent: str | None
    who: str
    why: str
    evidence: dict[str, Any]
    before: str
    hash: str


class Ledger:
    """The open ledger. Every change is one transaction; concurrent writers wait for each other."""

    def __init__(self, path: Path) -> None:
        """Open or create. Raises LedgerError when the file is not a ledger or its chain is broken."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(path, timeout=30, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            raise LedgerError(f"{path} is not a ledger ({error})", "restore it from a copy") from error
        self.verify()

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def record(
        self,
        version: str,
        state: State,
        *,
        why: str,
        who: str = "learner",
        parent: str | None = None,
        evidence: Mapping[str, Any] | None = None,
    ) -> Entry:
        """Append one state change. Raises LedgerError when it is not allowed from the present state.

        Becoming champion retires the present one in the same transaction.
        """
        with self._transaction():
            if state is State.CHAMPION:
                now = self.champion()
                if now is not None and now != version:
                    self._append(now, State.RETIRED, f"replaced by {version}", who, None, {})
            return self._append(version, state, why, who, parent, dict(evidence or {}))

    def crown_first(self, version: str, *, why: str, evidence: Mapping[str, Any] | None = None) -> None:
        """Make ``version`` champion where there is none to compare with. Raises LedgerError otherwise."""
        with self._transaction():
            if self.champion() is not None:
                raise LedgerError(f"{self.champion()} is champion already", "pass the gate to replace it")
            state = self.state(version)
            steps = [s for s in (State.CANDIDATE, State.GATED, State.CHAMPION) if s != state]
            if state is State.GATED:
                steps = [State.CHAMPION]
            for step in steps:
                self._append(version, step, why, "learner", None, dict(evidence or {}))

    def roll_back(self, *, why: str, who: str = "learner") -> str:
        """Champion → rolled back, the one before it → champion again. Returns that version.

        Raises LedgerError when there is nothing to go back to.
        """
        with self._transaction():
            now = self.champion()
            earlier = self._before(now) if now is not None else None
            if now is None or earlier is None:
                raise LedgerError(f"no earlier champion in {self.path}", "load a bundle by hand")
            self._append(now, State.ROLLED_BACK, why, who, None, {})
            self._append(earlier, State.CHAMPION, f"rolled back from {now}: {why}", who, None, {})
            return earlier

    def predecessor(self) -> str | None:
        """The version that `roll_back` would go back to; None when there is none."""
        now = self.champion()
        return None if now is None else self._before(now)

    def champion(self) -> str | None:
        """The version in use; None before the first."""
        latest = self._latest()
        for version, state in latest.items():
            if state is State.CHAMPION:
                return version
        return None

    def state(self, version: str) -> State | None:
        """Where ``version`` stands; None when it was never seen."""
        return self._latest().get(version)

    def judged(self, besides: str, since_champion: bool = True) -> int:
        """How many versions other than ``besides`` were judged: since the last crowning, or ever."""
        seen: set[str] = set()
        for entry in reversed(self.history()):
            if since_champion and entry.state is State.CHAMPION:
                break
            if entry.state in (State.GATED, State.REJECTED) and entry.version != besides:
                seen.add(entry.version)
        return len(seen)

    def evidence(self, version: str, key: str) -> Any:
        """The newest value of ``key`` among the evidence of ``version``; None when it has none."""
        found = [e.evidence[key] for e in self.history(version) if key in e.evidence]
        return found[-1] if found else None

    def history(self, version: str | None = None) -> list[Entry]:
        """All rows, oldest first; only those of ``version`` when given."""
        where, values = ("", ()) if version is None else (" WHERE version = ?", (version,))
        rows = self._db.execute(
            "SELECT id, wall, version, state, parent, who, why, evidence, before, hash FROM ledger"
            f"{where} ORDER BY id",
            values,
        )
        return [_entry(r) for r in rows]

    def verify(self) -> int:
        """Recompute the chain; returns the number of rows. Raises LedgerError at the first bad row."""
        before, number = _GENESIS, 0
        try:
            for entry in self.history():
                number += 1
                if entry.id != number or entry.before != before or entry.hash != _digest(entry):
                    raise LedgerError(f"row {entry.id} of {self.path} was changed", "restore it from a copy")
                before = entry.hash
        except (sqlite3.DatabaseError, ValueError) as error:
            raise LedgerError(f"{self.path} is damaged ({error})", "restore it from a copy") from error
        return number

    def _before(self, champion: str) -> str | None:
        states = self._latest()
        for entry in reversed(self.history()):
            was_champion = entry.state is State.CHAMPION and entry.version != champion
            if was_champion and states[entry.version] is State.RETIRED:
                return entry.version
        return None

    def _latest(self) -> dict[str, State]:
        rows = self._db.execute(
            "SELECT version, state FROM ledger WHERE id IN (SELECT max(id) FROM ledger GROUP BY version)"
        )
        return {version: State(state) for version, state in rows}

    def _append(
        self, version: str, state: State, why: str, who: str, parent: str | None, evidence: dict[str, Any]
    ) -> Entry:
        now = self.state(version)
        if state not in ALLOWED[now]:
            raise LedgerError(
                f"{version} is {now or 'unknown'} and cannot become {state}", "see ratchet model ls"
            )
        last = self._db.execute("SELECT id, hash FROM ledger ORDER BY id DESC LIMIT 1").fetchone()
        wall = datetime.now(UTC).isoformat(timespec="seconds")
        number, before = (last[0] + 1, last[1]) if last else (1, _GENESIS)
        evidence = json.loads(json.dumps(evidence))
        entry = Entry(number, wall, version, state, parent, who, why, evidence, before, "")
        digest = _digest(entry)
        self._db.execute(
            "INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (number, wall, version, str(state), parent, who, why, _canonical(evidence), before, digest),
        )
        return Entry(number, wall, version, state, parent, who, why, evidence, before, digest)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            raise LedgerError(f"{self.path} cannot be written ({error})", "check the disk") from error


def _entry(row: tuple[Any, ...]) -> Entry:
    number, wall, version, state, parent, who, why, evidence, before, digest = row
    return Entry(number, wall, version, State(state), parent, who, why, json.loads(evidence), before, digest)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _digest(e: Entry) -> str:
    content = [e.id, e.wall, e.version, str(e.state), e.parent, e.who, e.why, e.evidence, e.before]
    return hashlib.sha256(_canonical(content).encode()).hexdigest()
