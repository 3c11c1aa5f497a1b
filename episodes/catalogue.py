"""The catalogue: one SQLite database (WAL) with a row per published episode.

It is an index, not the truth: every row can be rebuilt from the episode's commit marker. A row is
written last, after the episode's folder has its final name.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from episodes.errors import DiskFullError, StoreError, StoreFormatError
from episodes.marker import Marker

SCHEMA_VERSION = 2

EPISODE_COLUMNS: dict[str, str] = {
    "id": "TEXT PRIMARY KEY",
    "task": "TEXT",
    "kind": "TEXT",
    "outcome": "TEXT",
    "reason": "TEXT",
    "recovered": "INTEGER",
    "fps": "REAL",
    "ticks": "INTEGER",
    "seconds": "REAL",
    "started_wall": "TEXT",
    "started_ns": "INTEGER",
    "flags": "INTEGER",
    "flagged": "INTEGER",
    "interventions": "INTEGER",
    "dropped": "INTEGER",
    "missing": "INTEGER",
    "policy": "TEXT",
    "session": "TEXT",
    "split": "TEXT",
    "robot": "TEXT",
    "cameras": "TEXT",
    "bytes": "INTEGER",
    "digest": "TEXT",
    "source": "TEXT",
    "provenance": "TEXT",
    "durable": "INTEGER",
    "synced": "TEXT",
}
"""Columns of table ``episodes``. ``flags`` and ``interventions`` are counts, ``missing`` counts skipped
sequence numbers over all streams and cameras, ``dropped`` samples lost to a full queue, ``cameras`` is a
comma-separated list, ``source`` identifies an imported episode, ``provenance`` is JSON, ``digest`` the
content digest of the episode's files, ``durable`` 0 while its files may still be in the page cache,
``synced`` where a checked copy of it is (NULL: nowhere)."""

FLAG_COLUMNS = {
    "episode_id": "TEXT",
    "kind": "TEXT",
    "start_ns": "INTEGER",
    "end_ns": "INTEGER",
    "score": "REAL",
    "evidence": "TEXT",
}
INTERVENTION_COLUMNS = {"episode_id": "TEXT", "start_ns": "INTEGER", "end_ns": "INTEGER", "who": "TEXT"}
TABLES = {"episodes": EPISODE_COLUMNS, "flags": FLAG_COLUMNS, "interventions": INTERVENTION_COLUMNS}


def _uri(path: Path, readonly: bool) -> str:
    """How SQLite is to open ``path``. Beside a database with a log it makes a file even to read it; on a
    read-only disk that it lies alone on nobody writes, and none is needed."""
    plain = path.absolute().as_uri()
    if not readonly:
        return plain
    still = os.statvfs(path).f_flag & os.ST_RDONLY and not path.with_name(f"{path.name}-wal").exists()
    return f"{plain}?mode=ro&immutable=1" if still else f"{plain}?mode=ro"


class Catalogue:
    """The open database; every method may be called from any thread."""

    def __init__(self, path: Path, readonly: bool = False, full_sync: bool = True) -> None:
        """Open, creating what is missing. Raises StoreFormatError when it is not a usable catalogue."""
        self.path = path
        self._lock = threading.Lock()
        if readonly and not path.exists():
            raise StoreFormatError(
                f"catalogue {path} is missing",
                "open the store once for writing: it is rebuilt from the episodes",
            )
        uri = _uri(path, readonly)
        try:
            self._db = sqlite3.connect(
                uri, uri=True, check_same_thread=False, timeout=10, isolation_level=None
            )
            try:
                self._prepare(readonly, full_sync)
            except sqlite3.Error:
                self._db.close()
                raise
        except sqlite3.OperationalError as error:
            if "full" in str(error):
                raise DiskFullError(
                    f"no space left for catalogue {path}", "free space on this disk"
                ) from error
            raise StoreFormatError(f"catalogue {path} cannot be opened ({error})", _REBUILD) from error
        except sqlite3.DatabaseError as error:
            raise StoreFormatError(f"catalogue {path} is corrupt ({error})", _REBUILD) from error

    def _prepare(self, readonly: bool, full_sync: bool) -> None:
        if not readonly:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute(f"PRAGMA synchronous={'FULL' if full_sync else 'NORMAL'}")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0 and not readonly:
            with self._transaction():
                for table, columns in TABLES.items():
                    fields = ", ".join(f'"{name}" {kind}' for name, kind in columns.items())
                    self._db.execute(f"CREATE TABLE IF NOT EXISTS {table} ({fields})")
                self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        elif version == 1 and not readonly:
            with self._transaction():
                self._db.execute("ALTER TABLE episodes ADD COLUMN synced TEXT")
                self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        elif version == 1:
            pass  # nothing that is read is missing; the next writer brings it up to date
        elif version != SCHEMA_VERSION:
            raise sqlite3.DatabaseError(f"schema {version}, expected {SCHEMA_VERSION}")
        self._db.execute("SELECT count(*), max(digest) FROM episodes").fetchone()

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db)

    def check(self) -> str | None:
        """What SQLite's own integrity check finds wrong, or None."""
        with self._lock:
            try:
                (found,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
            except sqlite3.DatabaseError as error:
                return str(error)
        return None if found == "ok" else str(found)

    def put(self, marker: Marker, durable: bool) -> None:
        """Insert or replace the rows of one episode, in one transaction."""
        meta = marker.meta
        provenance = meta.provenance
        text = {key: _text(provenance.get(key)) for key in ("policy", "session", "split", "robot", "source")}
        missing = sum(s.missing for s in meta.streams.values()) + sum(
            c.missing for c in meta.cameras.values()
        )
        row = {
            **{c: getattr(meta, c) for c in EPISODE_COLUMNS if c in _FROM_META},
            **text,
            "recovered": int(meta.recovered),
            "flags": len(meta.flags),
            "flagged": int(bool(meta.flags)),
            "interventions": len(meta.interventions),
            "dropped": sum(d.count for d in meta.drops.values()),
            "missing": missing,
            "cameras": ",".join(meta.cameras),
            "bytes": sum(size for size, _ in marker.files.values()),
            "digest": marker.content_digest(),
            "provenance": json.dumps(provenance, sort_keys=True),
            "durable": int(durable),
        }
        flags = [(meta.id, f.kind, f.start_ns, f.end_ns, f.score, json.dumps(f.evidence)) for f in meta.flags]
        spans = [(meta.id, i.start_ns, i.end_ns, i.by) for i in meta.interventions]
        with self._lock, self._guarded(), self._transaction():
            before = self._db.execute(
                "SELECT synced FROM episodes WHERE id = ? AND digest = ?", (meta.id, row["digest"])
            ).fetchone()
            row["synced"] = before[0] if before else None
            self._delete(meta.id)
            marks = ", ".join("?" * len(EPISODE_COLUMNS))
            self._db.execute(f"INSERT INTO episodes VALUES ({marks})", [row[c] for c in EPISODE_COLUMNS])
            self._db.executemany("INSERT INTO flags VALUES (?, ?, ?, ?, ?, ?)", flags)
            self._db.executemany("INSERT INTO interventions VALUES (?, ?, ?, ?)", spans)

    def remove(self, episode_id: str) -> None:
        """Delete the rows of one episode."""
        with self._lock, self._guarded(), self._transaction():
            self._delete(episode_id)

    def _delete(self, episode_id: str) -> None:
        self._db.execute("DELETE FROM episodes WHERE id = ?", (episode_id,))
        for table in ("flags", "interventions"):
            self._db.execute(f"DELETE FROM {table} WHERE episode_id = ?", (episode_id,))

    def mark_durable(self, ids: Iterable[str]) -> None:
        """The files of these episodes are on the disk; the note itself is synced."""
        with self._lock, self._guarded():
            self._db.execute("PRAGMA synchronous=FULL")
            with self._transaction():
                self._db.executemany("UPDATE episodes SET durable = 1 WHERE id = ?", [(i,) for i in ids])
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")
            self._db.execute("PRAGMA synchronous=NORMAL")

    def mark_synced(self, episode_id: str, digest: str, where: str) -> None:
        """A checked copy of the episode with this content is at ``where``."""
        with self._lock, self._guarded(), self._transaction():
            self._db.execute(
                "UPDATE episodes SET synced = ? WHERE id = ? AND digest = ?", (where, episode_id, digest)
            )

    def unmark_synced(self, episode_id: str, where: str) -> None:
        """There is no good copy of the episode at ``where`` now; what is noted of another place stays."""
        with self._lock, self._guarded(), self._transaction():
            self._db.execute(
                "UPDATE episodes SET synced = NULL WHERE id = ? AND synced = ?", (episode_id, where)
            )

    def synced_at(self, episode_id: str) -> str | None:
        """Where the copy is that this one counts on; None when it counts on none."""
        with self._lock, self._guarded():
            found = self._db.execute("SELECT synced FROM episodes WHERE id = ?", (episode_id,)).fetchone()
        return None if found is None else found[0]

    def ids(self) -> dict[str, tuple[str, bool]]:
        """id → (content digest, durable) of every row, oldest first."""
        with self._lock, self._guarded():
            found = self._db.execute(
                "SELECT id, digest, durable FROM episodes ORDER BY started_wall, id"
            ).fetchall()
        return {i: (digest, bool(durable)) for i, digest, durable in found}

    def select(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a SELECT of ours, in SQLite's words. Users ask by `EpisodeStore.query`."""
        with self._lock, self._guarded():
            return self._db.execute(sql).fetchall()

    def rows(self, table: str) -> list[tuple[object, ...]]:
        """All rows of a table, in the order of its columns in ``TABLES``."""
        columns = ", ".join(f'"{c}"' for c in TABLES[table])
        order = "id" if table == "episodes" else "episode_id, start_ns"
        with self._lock, self._guarded():
            return self._db.execute(f"SELECT {columns} FROM {table} ORDER BY {order}").fetchall()

    def close(self) -> None:
        """Close the database; safe to call twice."""
        with self._lock:
            self._db.close()

    def _guarded(self) -> _Guard:
        return _Guard(self.path)


class _Transaction:
    """``with`` = BEGIN … COMMIT, ROLLBACK on an error."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind is None:
                self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:  # a full disk makes SQLite roll back by itself, sometimes
                self._db.execute("ROLLBACK")


class _Guard:
    """Turns SQLite's errors into typed ones."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, sqlite3.Error):
            full = "full" in str(error)
            remedy = "free space on this disk" if full else _REBUILD
            raise (DiskFullError if full else StoreError)(
                f"catalogue {self._path}: {error}", remedy
            ) from error


_REBUILD = "close the store and open it for writing: the catalogue is rebuilt from the episodes"
_FROM_META = {
    "id", "task", "kind", "outcome", "reason", "fps", "ticks", "seconds", "started_wall", "started_ns",
}  # fmt: skip


def _text(value: object) -> str | None:
    return None if value is None else value if isinstance(value, str) else json.dumps(value)
