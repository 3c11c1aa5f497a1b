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


def query(catalogue: Catalogue, sql: str, timeout_s: float | None = None) -> list[dict[str, Any]]:
    """Rows of ``sql`` as dicts. Tables: episodes, flags, interventions (columns: episodes/catalogue.py).

    A statement that takes longer than ``timeout_s`` is broken off. Raises QueryError with DuckDB's
    message on one line.
    """
    with duckdb.connect(":memory:", config={"threads": 1}) as db:
        for table, columns in TABLES.items():
            rows = catalogue.rows(table)
            held = zip(*rows, strict=True) if rows else ([] for _ in columns)
            arrays = {
                c: pa.array(list(v), _arrow(t)) for (c, t), v in zip(columns.items(), held, strict=True)
            }
            db.register(f"_{table}", pa.table(arrays))
            fields = ", ".join(
                f'CAST("{c}" AS BOOLEAN) AS "{c}"' if c in _FLAGS else f'"{c}"' for c in columns
            )
            db.execute(f"CREATE TABLE {table} AS SELECT {fields} FROM _{table}")
            db.unregister(f"_{table}")
        db.execute("SET enable_external_access = false")
        db.execute("SET lock_configuration = true")
        late = threading.Timer(timeout_s, db.interrupt) if timeout_s is not None else None
        try:
            if late is not None:
                late.start()
            if any(s.type is not duckdb.StatementType.SELECT for s in db.extract_statements(sql)):
                raise QueryError("only SELECT statements are answered; the catalogue is read, never written")
            cursor = db.execute(sql)
            names = [d[0] for d in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        except duckdb.Error as error:
            first = str(error).split("\n\n")[0]
            raise QueryError(first, "tables: episodes, flags, interventions") from error
        finally:
            if late is not None:
                late.cancel()


def _arrow(kind: str) -> Any:
    return {"VARCHAR": pa.string(), "BIGINT": pa.int64(), "DOUBLE": pa.float64()}[_TYPES[kind]]
