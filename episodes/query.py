"""SQL over the catalogue, by DuckDB.

The statement runs on a copy of the catalogue's tables in memory, in a database that may open no
file and change no setting: whatever it says, the store stays as it is.
"""

from __future__ import annotations

import threading
from typing import Any

import duckdb
import pyarrow as pa

from episodes.catalogue import TABLES, Catalogue
from episodes.errors import QueryError

_TYPES = {"TEXT": "VARCHAR", "TEXT PRIMARY KEY": "VARCHAR", "INTEGER": "BIGINT", "REAL": "DOUBLE"}
_FLAGS = {"recovered", "flagged", "durable"}

TIMEOUT_S = 60.0
MAX_ROWS = 1_000_000
_FETCHED = 10_000
# One core and so much memory, whatever is asked: a robot may be recording beside it. Nothing is spilled to
# the disk, and no extension is fetched.
_BOUNDS = {
    "threads": 1,
    "memory_limit": "512MB",
    "temp_directory": "",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
}


def query(catalogue: Catalogue, sql: str, timeout_s: float = TIMEOUT_S) -> list[dict[str, Any]]:
    """Rows of ``sql`` as dicts. Tables: episodes, flags, interventions (columns: episodes/catalogue.py).
    Of columns with the same name the second gets ``_2`` behind it, and so on.

    A statement that takes longer than ``timeout_s``, more memory than there is for it, or that answers with
    too many rows, is broken off. Raises QueryError with DuckDB's message on one line, KeyboardInterrupt.
    """
    with duckdb.connect(":memory:", config=_BOUNDS) as db:
        _load(db, catalogue)
        db.execute("SET enable_external_access = false")
        db.execute("SET lock_configuration = true")
        late = threading.Timer(timeout_s, db.interrupt)
        late.daemon = True
        late.start()
        try:
            return _answer(db, sql)
        except duckdb.InterruptException as error:
            raise QueryError(
                f"the statement was broken off after {timeout_s:g} s", "ask for less, or allow more time"
            ) from error
        except duckdb.Error as error:
            first = str(error).split("\n\n")[0]
            raise QueryError(first, "tables: episodes, flags, interventions") from error
        except RuntimeError as error:  # what DuckDB makes of Ctrl-C
            if "interrupted" in str(error):
                raise KeyboardInterrupt from error
            raise
        finally:
            late.cancel()


def _load(db: duckdb.DuckDBPyConnection, catalogue: Catalogue) -> None:
    """The catalogue's tables as they are now."""
    for table, columns in TABLES.items():
        rows = catalogue.rows(table)
        held = zip(*rows, strict=True) if rows else ([] for _ in columns)
        arrays = {c: pa.array(list(v), _arrow(t)) for (c, t), v in zip(columns.items(), held, strict=True)}
        db.register(f"_{table}", pa.table(arrays))
        fields = ", ".join(f'CAST("{c}" AS BOOLEAN) AS "{c}"' if c in _FLAGS else f'"{c}"' for c in columns)
        db.execute(f"CREATE TABLE {table} AS SELECT {fields} FROM _{table}")
        db.unregister(f"_{table}")


def _answer(db: duckdb.DuckDBPyConnection, sql: str) -> list[dict[str, Any]]:
    statements = db.extract_statements(sql)
    if not statements:
        raise QueryError("there is no statement", "such as: SELECT id, task, outcome FROM episodes")
    if any(s.type is not duckdb.StatementType.SELECT for s in statements):
        raise QueryError("only SELECT statements are answered; the catalogue is read, never written")
    cursor = db.execute(sql)
    names = _apart([d[0] for d in cursor.description or ()])
    rows: list[dict[str, Any]] = []
    while found := cursor.fetchmany(_FETCHED):
        rows += (dict(zip(names, row, strict=True)) for row in found)
        if len(rows) > MAX_ROWS:
            raise QueryError(f"the statement answers with more than {MAX_ROWS} rows", "add a LIMIT")
    return rows


def _apart(names: list[str]) -> list[str]:
    """Every column under a name of its own: the second ``kind`` is ``kind_2``."""
    out: list[str] = []
    for name in names:
        number, free = 1, name
        while free in out or (number > 1 and free in names):
            number += 1
            free = f"{name}_{number}"
        out.append(free)
    return out


def _arrow(kind: str) -> Any:
    return {"VARCHAR": pa.string(), "BIGINT": pa.int64(), "DOUBLE": pa.float64()}[_TYPES[kind]]
