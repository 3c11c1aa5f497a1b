"""`ratchet episodes query`: statements of people, in a process that may not take more than its share."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_helpers import ROOT, Toys, ratchet

import episodes.query
from episodes.errors import QueryError
from episodes.store import EpisodeStore
from tests.processes import runs


def test_query_is_sql_and_changes_nothing(toys: Toys) -> None:
    sql = "SELECT count(*) AS n, sum(ticks) AS ticks FROM episodes"
    assert ratchet("episodes", "query", sql, "--store", toys.store, "--json").json() == [
        {"n": 4, "ticks": 96}
    ]
    assert "96" in ratchet("episodes", "query", sql, "--store", toys.store).out
    wrong = ratchet("episodes", "query", "SELECT nothing FROM nowhere", "--store", toys.store).one_line()
    assert "nowhere" in wrong
    assert "tables: episodes, flags, interventions" in wrong


def test_a_query_keeps_every_column_and_is_json(toys: Toys) -> None:
    sql = "SELECT a.id, b.id, b.id AS id_2, 'nan'::DOUBLE AS x, ['inf'::DOUBLE, 1] AS y "
    sql += "FROM episodes a, episodes b ORDER BY 1, 2 LIMIT 1"
    shown = ratchet("episodes", "query", sql, "--store", toys.store, "--json")
    assert "NaN" not in shown.out
    assert list(shown.json()[0]) == ["id", "id_3", "id_2", "x", "y"]
    assert (shown.json()[0]["x"], shown.json()[0]["y"]) == (None, [None, 1.0])
    assert "id_3" in ratchet("episodes", "query", sql, "--store", toys.store).out
    for nothing in ("", ";", "/* a remark */"):
        line = ratchet("episodes", "query", nothing, "--store", toys.store).one_line()
        assert "there is no statement" in line


ENDLESS = "SELECT count(*) AS n FROM range(1000000) a, range(1000000) b"


def test_a_query_ends_with_its_time(toys: Toys) -> None:
    line = ratchet("episodes", "query", ENDLESS, "--store", toys.store, "--timeout", 0.3).one_line()
    assert "broken off after 0.3 s" in line


GREEDY = (
    "SELECT list(i) AS l FROM range(200000000) t(i)",
    "SELECT repeat('x', 2000000) AS s FROM range(100000)",  # text is not in what DuckDB counts
    "SELECT repeat('x', 3000000000) AS s",  # … nor does it look at its watch
)
# In a process of its own: the kernel keeps the most that any child of a process ever had.
ASKS = """
import pathlib, resource, sys
from episodes.errors import QueryError
from episodes.store import EpisodeStore
from tests.processes import runs
with EpisodeStore.open(pathlib.Path(sys.argv[1]), mode="r") as store:
    for sql in sys.argv[2:]:
        try:
            store.query(sql)
        except QueryError as error:
            assert "needs more than 512 MB; select less" in str(error), error
        else:
            raise SystemExit("it was answered")
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10)
"""


def test_a_query_has_no_more_memory_or_rows_than_it_may(
    toys: Toys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", ASKS, str(toys.store), *GREEDY]
    asked = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert asked.returncode == 0, asked.stderr
    assert int(asked.stdout) < 900e6
    monkeypatch.chdir(tmp_path)
    line = ratchet("episodes", "query", GREEDY[1], "--store", toys.store).one_line()
    assert "needs more than 512 MB; select less" in line
    with (
        EpisodeStore.open(toys.store, mode="r") as opened,
        pytest.raises(QueryError, match="more than 1 MB"),
    ):
        episodes.query.query(
            opened.catalogue, "SELECT repeat('x', 20000) AS s FROM range(100)", answer_bytes=1 << 20
        )
    monkeypatch.setattr(episodes.query, "MAX_ROWS", 20_000)
    many = "SELECT i FROM range(1000000000) t(i)"
    assert "add a LIMIT" in ratchet("episodes", "query", many, "--store", toys.store).one_line()
    for outside in ("SELECT * FROM read_text('/etc/hosts')", "SELECT * FROM 'x.csv'"):
        ratchet("episodes", "query", outside, "--store", toys.store).one_line()


@contextlib.contextmanager
def asking(toys: Toys) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`ratchet` while it asks something without end, and the process that works on it."""
    command = [sys.executable, "-m", "tools.cli", "episodes", "query", ENDLESS, "--store", str(toys.store)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not (child := _children(process.pid)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(1.0)  # it has begun to count
        yield process, child[0]


def test_ctrl_c_ends_a_query(toys: Toys) -> None:
    with asking(toys) as (process, child):
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert (out, b"Traceback" in err) == (b"", False)
    assert not Path(f"/proc/{child}").exists()


def test_a_query_does_not_outlive_who_asked(toys: Toys) -> None:
    with asking(toys) as (process, child):
        process.kill()
    deadline = time.monotonic() + 60
    while runs(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_long_query_prints_nothing_but_its_rows(toys: Toys) -> None:
    """After two seconds DuckDB shows how far it is on stdout, in a program that it takes for a person's."""
    slow = "SELECT count(*) AS n FROM range(30000) a, range(30000) b WHERE hash(a.range, b.range) = 1"
    command = [sys.executable, "-c", "from tools.cli import main; main()", "episodes", "query", slow]
    command += ["--store", str(toys.store), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=100, check=True)
    assert json.loads(done.stdout) == [{"n": 0}]
    assert done.stderr == b""
