"""The journal keeps each id to one effect, over restarts, full disks and foreign files."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from signed_commands import ADDRESS, NOW_MS, TOPICS, command

from runtime.fleet.envelope import Command, Reply
from runtime.fleet.journal import Journal, JournalError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "fleet.db"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    journal = Journal(path, outbox_rows=100)
    yield journal
    journal.close()


def accepted(sent: Command) -> Reply:
    return Reply(sent.id, sent.op, "ACCEPTED", 1, NOW_MS)


def test_sessions_only_rise_over_restarts(path: Path) -> None:
    for expected in (1, 2, 3):
        journal = Journal(path)
        assert journal.next_session() == expected
        journal.close()


def test_a_duplicate_gets_the_stored_answer(journal: Journal) -> None:
    sent = command()
    assert journal.accept(sent, accepted(sent), ADDRESS, NOW_MS) == (True, accepted(sent))
    journal.advance(sent.id, "RUNNING", NOW_MS)
    done = journal.advance(sent.id, "SUCCEEDED", NOW_MS + 1, result={"x": 1})
    assert done.version == 3
    assert journal.accept(sent, accepted(sent), ADDRESS, NOW_MS + 2) == (False, done)
    states = [msgspec.json.decode(letter.payload, type=Reply).state for letter in journal.letters()]
    assert states == ["ACCEPTED", "SUCCEEDED", "SUCCEEDED"]


def test_an_id_used_for_something_else_is_refused_and_leaves_the_first_alone(journal: Journal) -> None:
    first, second = command("hold"), command("estop")
    journal.accept(first, accepted(first), ADDRESS, NOW_MS)
    fresh, answer = journal.accept(second, accepted(second), ADDRESS, NOW_MS)
    assert (fresh, answer.state, answer.code) == (False, "REJECTED", "ID_REUSED")
    assert journal.accept(first, accepted(first), ADDRESS, NOW_MS) == (False, accepted(first))


def test_what_was_unfinished_is_interrupted_and_reported(path: Path) -> None:
    journal = Journal(path)
    ids = [f"{name:x<16}" for name in ("waiting", "running", "finished")]
    for one in ids:
        sent = command(id=one)
        journal.accept(sent, accepted(sent), ADDRESS, NOW_MS)
    journal.advance(ids[1], "RUNNING", NOW_MS)
    journal.advance(ids[2], "RUNNING", NOW_MS)
    journal.advance(ids[2], "SUCCEEDED", NOW_MS)
    journal.close()
    again = Journal(path)
    assert {reply.id: reply.state for reply in again.interrupt_unfinished(NOW_MS)} == {
        ids[0]: "INTERRUPTED",
        ids[1]: "INTERRUPTED",
    }
    assert again.interrupt_unfinished(NOW_MS) == []
    last = [msgspec.json.decode(letter.payload, type=Reply) for letter in again.letters()][-2:]
    assert [reply.state for reply in last] == ["INTERRUPTED", "INTERRUPTED"]
    again.close()


def test_events_are_bounded_replies_are_not(journal: Journal) -> None:
    sent = command()
    journal.accept(sent, accepted(sent), ADDRESS, NOW_MS)
    for number in range(150):
        journal.post_event(TOPICS.event, str(number).encode())
    letters = journal.letters(1000)
    assert letters[0].topic == ADDRESS.topic
    assert [letter.payload for letter in letters[1:]] == [str(n).encode() for n in range(50, 150)]


def test_old_commands_are_forgotten_unfinished_ones_are_not(journal: Journal, path: Path) -> None:
    for one in ("finished", "hanging"):
        sent = command(id=f"{one:x<16}")
        journal.accept(sent, accepted(sent), ADDRESS, NOW_MS)
    journal.advance("finishedxxxxxxxx", "SUCCEEDED", NOW_MS)
    sent = command()
    journal.accept(sent, accepted(sent), ADDRESS, NOW_MS + 86_400_001)
    with sqlite3.connect(path) as reader:
        assert {row[0] for row in reader.execute("SELECT id FROM commands")} == {"hangingxxxxxxxxx", sent.id}


def test_writes_are_on_disk_when_they_return(journal: Journal) -> None:
    assert journal._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert journal._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_full_disk_is_one_line_and_heals(journal: Journal) -> None:
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(JournalError, match="is the disk full"):
        for number in range(1000):
            journal.post_event(TOPICS.event, b"x" * 4096 + str(number).encode())
    journal._db.execute("PRAGMA max_page_count=100000")
    journal.post_event(TOPICS.event, b"after")
    assert journal.letters(1000)[-1].payload == b"after"


def test_a_file_that_is_no_journal_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "fleet.db").write_bytes(b"not a database, but long enough to be read as one" * 100)
    with pytest.raises(JournalError, match="cannot open"):
        Journal(tmp_path / "fleet.db")
