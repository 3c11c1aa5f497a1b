"""The fleet agent's memory: commands with their states, and the outbox, in one SQLite file.

WAL with synchronous=FULL: when a method returns, what it wrote survives a power cut. All methods
block (an fsync each), so the agent calls them on the journal's own thread through ``run``.
"""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

import msgspec

from runtime.errors import RuntimeFault
from runtime.fleet.envelope import Command, CommandState, Reply, encode

P = ParamSpec("P")
T = TypeVar("T")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS commands (
  id TEXT PRIMARY KEY, digest BLOB NOT NULL, topic TEXT NOT NULL, correlation BLOB,
  received INTEGER NOT NULL, final INTEGER NOT NULL, reply BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS commands_received ON commands (received);
CREATE TABLE IF NOT EXISTS outbox (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, correlation BLOB, payload BLOB NOT NULL,
  event INTEGER NOT NULL
) STRICT;
"""
_VERSION = 1


class JournalError(RuntimeFault):
    """The journal cannot be opened or written."""


@dataclass(frozen=True, slots=True)
class Letter:
    """One message waiting in the outbox."""

    seq: int
    topic: str
    correlation: bytes | None
    payload: bytes


@dataclass(frozen=True, slots=True)
class ReturnAddress:
    """Where the replies to one command go."""

    topic: str
    correlation: bytes | None


class Journal:
    """Open it with its file; ``close`` when done. Every method raises JournalError."""

    def __init__(self, path: Path, *, outbox_rows: int = 10_000, remember_s: float = 86_400.0) -> None:
        self._path = path
        self._outbox_rows = outbox_rows
        self._remember_ms = round(remember_s * 1e3)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fleet-journal")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, _VERSION):
                raise JournalError(f"{path} was written by another version ({version})", "move it away")
            self._db.executescript(_SCHEMA)
            self._db.execute(f"PRAGMA user_version={_VERSION}")
        except (sqlite3.Error, OSError) as error:
            raise JournalError(
                f"cannot open the fleet journal {path} ({error})", "check the directory"
            ) from error

    async def run(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a method of this journal on its thread. Cancelling does not undo it."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: method(*args, **kwargs))

    def close(self) -> None:
        """Finish what is being written and close."""
        self._thread.shutdown(wait=True)
        self._db.close()

    def next_session(self) -> int:
        """Count one more connection; the number in birth and will."""
        with _Transaction(self._db, self._path):
            self._db.execute(
                "INSERT INTO meta VALUES ('session', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1"
            )
            return int(self._db.execute("SELECT value FROM meta WHERE name = 'session'").fetchone()[0])

    def accept(
        self, command: Command, verdict: Reply, address: ReturnAddress, now_ms: int
    ) -> tuple[bool, Reply]:
        """Write a command down with its first state, once.

        Returns (True, verdict) for a new id. For a known id nothing is changed and (False, what is
        stored) is returned: a duplicate. Either way the reply is put into the outbox. An id reused
        for another command gets a REJECTED reply of its own.
        """
        digest = hashlib.sha256(encode(command)).digest()
        with _Transaction(self._db, self._path):
            self._db.execute(
                "DELETE FROM commands WHERE received < ? AND final", (now_ms - self._remember_ms,)
            )
            row = self._db.execute(
                "SELECT digest, reply FROM commands WHERE id = ?", (command.id,)
            ).fetchone()
            if row is None:
                self._db.execute(
                    "INSERT INTO commands VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (
                        command.id,
                        digest,
                        address.topic,
                        address.correlation,
                        now_ms,
                        verdict.final,
                        encode(verdict),
                    ),
                )
                stored = verdict
            elif row[0] == digest:
                stored = msgspec.json.decode(row[1], type=Reply)
            else:
                stored = msgspec.structs.replace(
                    verdict, state="REJECTED", code="ID_REUSED", detail="this id named another command before"
                )
            self._post(address.topic, address.correlation, encode(stored), event=False)
        return row is None, stored

    def advance(
        self,
        command_id: str,
        state: CommandState,
        now_ms: int,
        *,
        detail: str = "",
        code: str = "",
        result: dict[str, object] | None = None,
    ) -> Reply:
        """Write a command's next state; a final one also goes into the outbox."""
        with _Transaction(self._db, self._path):
            row = self._db.execute(
                "SELECT topic, correlation, reply FROM commands WHERE id = ?", (command_id,)
            ).fetchone()
            if row is None:
                raise JournalError(f"command {command_id} is not in the journal", "this is a defect")
            old = msgspec.json.decode(row[2], type=Reply)
            new = msgspec.structs.replace(
                old,
                state=state,
                version=old.version + 1,
                ts=now_ms,
                code=code,
                detail=detail,
                result=result or {},
            )
            self._db.execute(
                "UPDATE commands SET reply = ?, final = ? WHERE id = ?", (encode(new), new.final, command_id)
            )
            if new.final:
                self._post(row[0], row[1], encode(new), event=False)
        return new

    def interrupt_unfinished(self, now_ms: int) -> list[Reply]:
        """At start: every command the last process did not finish becomes INTERRUPTED, none is re-run."""
        with _Transaction(self._db, self._path):
            rows = self._db.execute("SELECT id FROM commands WHERE NOT final ORDER BY received").fetchall()
        detail = "the robot's runtime restarted before it finished; it is not run again"
        return [self.advance(row[0], "INTERRUPTED", now_ms, code="RESTART", detail=detail) for row in rows]

    def post_event(self, topic: str, payload: bytes) -> None:
        """Queue an event; beyond the outbox's bound the oldest events are dropped, replies never."""
        with _Transaction(self._db, self._path):
            self._post(topic, None, payload, event=True)
            self._db.execute(
                "DELETE FROM outbox WHERE event AND seq <= "
                "(SELECT seq FROM outbox WHERE event ORDER BY seq DESC LIMIT 1 OFFSET ?)",
                (self._outbox_rows,),
            )

    def letters(self, limit: int = 32) -> list[Letter]:
        """The oldest messages in the outbox."""
        with _Transaction(self._db, self._path):
            rows = self._db.execute(
                "SELECT seq, topic, correlation, payload FROM outbox ORDER BY seq LIMIT ?", (limit,)
            ).fetchall()
        return [Letter(*row) for row in rows]

    def delivered(self, seq: int) -> None:
        """The broker has acknowledged a message: drop it."""
        with _Transaction(self._db, self._path):
            self._db.execute("DELETE FROM outbox WHERE seq = ?", (seq,))

    def _post(self, topic: str, correlation: bytes | None, payload: bytes, *, event: bool) -> None:
        self._db.execute(
            "INSERT INTO outbox (topic, correlation, payload, event) VALUES (?, ?, ?, ?)",
            (topic, correlation, payload, event),
        )


class _Transaction:
    """BEGIN IMMEDIATE … COMMIT, with SQLite's errors turned into ours."""

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        self._db = db
        self._path = path

    def __enter__(self) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise self._error(error) from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        failed = error if isinstance(error, sqlite3.Error) else None
        if error is None:
            try:
                self._db.execute("COMMIT")
            except sqlite3.Error as refused:
                failed = refused
        if self._db.in_transaction:  # a full disk may have rolled back already
            self._db.execute("ROLLBACK")
        if failed is not None:
            raise self._error(failed) from failed

    def _error(self, error: sqlite3.Error) -> JournalError:
        return JournalError(f"cannot write the fleet journal {self._path} ({error})", "is the disk full?")
