"""SQL over the catalogue, by DuckDB, in a process of its own.

The statement runs on a copy of the catalogue's tables in memory, in a database that may open no
file and change no setting: whatever it says, the store stays as it is.

The process (`episodes/query_child.py`) is there because a statement can ask for more than DuckDB counts:
text in an answer is outside its memory limit, and within one function it does not look whether it was told to
stop. A robot may be recording beside it, so the kernel limits the memory, and what is late is killed.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from episodes.catalogue import TABLES, Catalogue
from episodes.errors import QueryError

_CHILD = Path(__file__).with_name("query_child.py")
_TYPES = {"TEXT": "VARCHAR", "TEXT PRIMARY KEY": "VARCHAR", "INTEGER": "BIGINT", "REAL": "DOUBLE"}
_FLAGS = {"recovered", "flagged", "durable"}

TIMEOUT_S = 60.0
MAX_ROWS = 1_000_000
MEMORY_BYTES = 512 << 20  # of the process, beyond what it has before the statement
ANSWER_BYTES = 256 << 20  # as the rows will lie in this process
_START_S = 60.0  # until the process has the tables; a board that just booted is slow
_END_S = 5.0  # for a process that has closed its pipe
_SLICE = 2000  # rows of a table in one message
_VALUE_BYTES = 64  # what a value takes as an object, beside its text
_SHORT_BYTES = 64 << 10  # a message without rows


def query(
    catalogue: Catalogue, sql: str, timeout_s: float = TIMEOUT_S, answer_bytes: int = ANSWER_BYTES
) -> list[dict[str, Any]]:
    """Rows of ``sql`` as dicts. Tables: episodes, flags, interventions (columns: episodes/catalogue.py).
    Of columns with the same name the second gets ``_2`` behind it, and so on. Values that JSON does not have,
    such as dates, come as text.

    A statement that takes longer than ``timeout_s``, more memory than there is for it, or that answers with
    too many rows or with more than ``answer_bytes``, is broken off. Raises QueryError on one line.
    """
    wanted = {
        "sql": sql,
        "memory_bytes": MEMORY_BYTES,
        "max_rows": MAX_ROWS,
        "answer_bytes": answer_bytes,
        "value_bytes": _VALUE_BYTES,
    }
    with _process() as child:
        with _Deadline(child, _START_S) as start:
            _send(child, wanted, catalogue)
            if _line(child, _SHORT_BYTES) != {"ready": True}:
                raise _broken(child, start)
        with _Deadline(child, timeout_s) as deadline:
            return list(_rows(child, deadline, answer_bytes))


class _Deadline:
    """``with``: the process is killed when the time is over."""

    def __init__(self, child: subprocess.Popen[bytes], seconds: float) -> None:
        self.seconds = seconds
        self.passed = False
        self._child = child
        self._timer = threading.Timer(seconds, self._over)
        self._timer.daemon = True

    def _over(self) -> None:
        self.passed = True
        self._child.kill()

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


@contextmanager
def _process() -> Iterator[subprocess.Popen[bytes]]:
    """The child; gone at the end, whatever happened. It leaves by itself when this process dies."""
    child = subprocess.Popen(
        # -P: nothing beside the script, nor where the user stands, is imported in place of a library.
        [sys.executable, "-P", str(_CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # what C++ has to say when memory is refused
        start_new_session=True,  # Ctrl-C is for this process, which ends the child
    )
    try:
        yield child
    finally:
        child.kill()
        with suppress(BrokenPipeError):
            child.communicate()


def _send(child: subprocess.Popen[bytes], wanted: dict[str, Any], catalogue: Catalogue) -> None:
    """What is asked, and the catalogue's tables as they are now."""
    assert child.stdin is not None
    with suppress(BrokenPipeError):  # that it died is seen when it is listened to
        child.stdin.write(json.dumps(wanted).encode() + b"\n")
        for table, columns in TABLES.items():
            types = {c: "BOOLEAN" if c in _FLAGS else _TYPES[kind] for c, kind in columns.items()}
            rows = catalogue.rows(table)
            for at in range(0, max(len(rows), 1), _SLICE):
                part: list[Any] = list(zip(*rows[at : at + _SLICE], strict=True)) or [[] for _ in columns]
                told = {"table": table, "types": types, "first": at == 0, "columns": part}
                child.stdin.write(json.dumps(told).encode() + b"\n")
        child.stdin.write(b"{}\n")
        child.stdin.flush()


def _rows(child: subprocess.Popen[bytes], deadline: _Deadline, answer_bytes: int) -> Iterator[dict[str, Any]]:
    names: list[str] = []
    left = answer_bytes
    while (told := _line(child, left + _SHORT_BYTES)) is not None:
        match told:
            case {"columns": found}:
                names = _apart([str(name) for name in found])
            case {"rows": found, "bytes": size}:
                left -= size
                yield from (dict(zip(names, row, strict=True)) for row in found)
            case {"refused": why}:
                raise _refusal(str(why), str(told.get("text", "")), answer_bytes)
            case _:
                return
    raise _broken(child, deadline)


def _line(child: subprocess.Popen[bytes], limit: int) -> dict[str, Any] | None:
    """The next message of at most ``limit`` bytes; None when there is none, or no whole one."""
    assert child.stdout is not None
    line = child.stdout.readline(limit)
    if not line.endswith(b"\n"):
        return None
    told: dict[str, Any] = json.loads(line)
    return told


def _refusal(why: str, text: str, answer_bytes: int) -> QueryError:
    """What the child refused, in words."""
    match why:
        case "empty":
            return QueryError("there is no statement", "such as: SELECT id, task, outcome FROM episodes")
        case "changes":
            return QueryError("only SELECT statements are answered; the catalogue is read, never written")
        case "rows":
            return QueryError(f"the statement answers with more than {MAX_ROWS} rows", "add a LIMIT")
        case "bytes":
            what = f"the statement answers with more than {answer_bytes >> 20} MB"
            return QueryError(what, "select less, or add a LIMIT")
        case "memory":
            return _too_much()
    return QueryError(text, "tables: episodes, flags, interventions")


def _broken(child: subprocess.Popen[bytes], deadline: _Deadline) -> QueryError:
    """Why the child is gone without an answer."""
    if deadline.passed:
        what = f"the statement was broken off after {deadline.seconds:g} s"
        return QueryError(what, "ask for less, or allow more time")
    try:
        code = child.wait(_END_S)
    except subprocess.TimeoutExpired:
        return QueryError("DuckDB's process talks nonsense", "is ratchet installed completely?")
    if code in (-signal.SIGKILL, -signal.SIGABRT, -signal.SIGSEGV):
        return _too_much()  # of the kernel's limit libraries make these
    return QueryError(f"DuckDB's process ended by itself ({code})", "is ratchet installed completely?")


def _too_much() -> QueryError:
    return QueryError(f"the statement needs more than {MEMORY_BYTES >> 20} MB", "select less")


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
