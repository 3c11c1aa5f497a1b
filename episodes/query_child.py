"""One SQL statement over the catalogue, in a process that may not take much: started by `episodes.query`.

It runs by itself, without the rest of the package, so that it is there in a tenth of a second. JSON lines
come in (what is asked, then the tables) and go out (the names of columns, rows, the end or a refusal).
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import duckdb

_FETCHED = 256  # rows at a time, of which one alone may be large
_TEXT = 4000  # characters of an error
_SIMPLE = {int, str, float, bool, type(None)}
# One core and so much memory, whatever is asked: a robot may be recording beside it. Nothing is spilled to
# the disk, and no extension is fetched.
_BOUNDS = {
    "threads": 1,
    "temp_directory": "",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
}
_OF_TABLES = 0.75  # of the memory, for what DuckDB counts; the rest is text on its way out


class RefusedError(Exception):
    """The statement is not answered; the message is which refusal."""


def main() -> None:
    """Answer one statement."""
    # A descriptor of its own for the answer: whatever else is printed goes where nobody reads.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    wanted = json.loads(sys.stdin.buffer.readline())
    with duckdb.connect(":memory:", config={**_BOUNDS, "memory_limit": _megabytes(wanted)}) as db:
        db.execute("SET enable_progress_bar = false")
        _load(db, sys.stdin.buffer)
        db.execute("SET enable_external_access = false")
        db.execute("SET lock_configuration = true")
        threading.Thread(target=_leave_with_parent, daemon=True).start()
        _limit(wanted["memory_bytes"])
        _tell(out, {"ready": True})
        try:
            _answer(db, wanted, out)
        except RefusedError as error:
            _tell(out, {"refused": str(error)})
        except (MemoryError, duckdb.OutOfMemoryException):
            _tell(out, {"refused": "memory"})
        except (duckdb.Error, RecursionError, ValueError) as error:
            memory = "bad_alloc" in str(error) or "bad allocation" in str(error)
            text = str(error).split("\n\n")[0][:_TEXT]
            _tell(out, {"refused": "memory"} if memory else {"refused": "sql", "text": text})


def _megabytes(wanted: dict[str, Any]) -> str:
    return f"{int(wanted['memory_bytes'] * _OF_TABLES) >> 20}MiB"


def _load(db: duckdb.DuckDBPyConnection, stdin: BinaryIO) -> None:
    """The tables, column by column, until an empty message."""
    while told := json.loads(stdin.readline()):
        table, types = told["table"], told["types"]
        if told["first"]:
            columns = ", ".join(f'"{name}" {kind}' for name, kind in types.items())
            db.execute(f"CREATE TABLE {table} ({columns})")
        fields = ", ".join(f"unnest(?::{kind}[])" for kind in types.values())
        db.execute(f"INSERT INTO {table} SELECT {fields}", told["columns"])


def _limit(memory_bytes: int) -> None:
    """So much more memory than now, none beyond; when the machine has none left, this process goes first."""
    data = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmData" in line)
    most = int(data.split()[1]) * 1024 + memory_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _leave_with_parent() -> None:
    """The other end of stdin is closed by nobody but the end of the parent."""
    os.read(0, 1)
    os._exit(1)


def _answer(db: duckdb.DuckDBPyConnection, wanted: dict[str, Any], out: BinaryIO) -> None:
    sql = wanted["sql"]
    statements = db.extract_statements(sql)
    if not statements:
        raise RefusedError("empty")
    if any(s.type is not duckdb.StatementType.SELECT for s in statements):
        raise RefusedError("changes")
    cursor = db.execute(sql)
    _tell(out, {"columns": [d[0] for d in cursor.description or ()]})
    rows = taken = 0
    while found := cursor.fetchmany(_FETCHED):
        rows += len(found)
        if rows > wanted["max_rows"]:
            raise RefusedError("rows")
        text, values = _text(found)
        size = len(text) + values * wanted["value_bytes"]
        taken += size
        if taken > wanted["answer_bytes"]:
            raise RefusedError("bytes")
        out.write(b'{"bytes": %d, "rows": %s}\n' % (size, text.encode()))
    _tell(out, {"end": True})


def _text(rows: list[tuple[Any, ...]]) -> tuple[str, int]:
    """The rows as JSON, and of how many values they are made."""
    if all(type(value) in _SIMPLE for row in rows for value in row):
        return json.dumps(rows), len(rows) * (1 + len(rows[0]))
    plain, values = _plain(rows)
    return json.dumps(plain), values


def _plain(value: Any) -> tuple[Any, int]:
    """``value`` as JSON can have it, and of how many values it is made; what JSON does not have is text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value, 1
    if isinstance(value, dict):
        pairs = [(str(key), _plain(part)) for key, part in value.items()]
        return {key: part for key, (part, _) in pairs}, 1 + sum(n + 1 for _, (_, n) in pairs)
    if isinstance(value, list | tuple):
        parts = [_plain(part) for part in value]
        return [part for part, _ in parts], 1 + sum(n for _, n in parts)
    return str(value), 1


def _tell(out: BinaryIO, message: dict[str, Any]) -> None:
    out.write(json.dumps(message).encode() + b"\n")
    out.flush()


if __name__ == "__main__":
    main()
