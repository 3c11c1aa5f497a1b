"""A journal cut or damaged anywhere yields exactly what was committed before the damage."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from episode_helpers import SPEC, state
from hypothesis import given, settings
from hypothesis import strategies as st

from episodes import journal
from episodes.draft import Draft, read_journal
from episodes.errors import DamagedError
from episodes.files import FileLayer
from episodes.journal import GroupBuilder, JournalWriter, RecordKind
from episodes.store import EpisodeStore
from tools.commands.episodes import recover

GROUPS, ROWS = 6, 5
STREAM = SPEC.streams[0].row_dtype()


def group(number: int) -> bytes:
    rows = np.zeros(ROWS, STREAM)
    for i in range(ROWS):
        tick = number * ROWS + i
        rows[i] = (tick, tick, state(tick))
    builder = GroupBuilder()
    builder.rows(0, rows.tobytes())
    builder.frame(0, number, number, False, b"jpeg" * 20)
    return builder.take()


def write_journal(path: Path, episode_id: str, groups: int = GROUPS, end: bool = False) -> list[int]:
    """A journal and the file offsets after the header and after each group."""
    draft = Draft(episode_id, SPEC, "2026-01-01T00:00:00.000Z", 0)
    writer = JournalWriter(path, FileLayer(), durable=False)
    writer.append(RecordKind.HEADER, draft.header())
    ends = [writer.committed_bytes]
    for number in range(groups):
        writer.append(RecordKind.GROUP, group(number))
        ends.append(writer.committed_bytes)
    if end:
        draft.outcome, draft.reason = "success", "done"
        writer.append(RecordKind.END, draft.end_record())
    writer.close()
    return ends


def committed_groups(ends: list[int], size: int) -> int:
    return sum(size >= offset for offset in ends) - 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[int]]:
    path = tmp_path_factory.mktemp("journal") / "whole.journal"
    ends = write_journal(path, "e1")
    return path.read_bytes(), ends


def test_every_cut_keeps_the_whole_groups_before_it(whole: tuple[bytes, list[int]], tmp_path: Path) -> None:
    data, ends = whole
    path = tmp_path / "cut"
    for size in range(0, len(data) + 1, 7):
        path.write_bytes(data[:size])
        scanned = read_journal(path)
        groups = committed_groups(ends, size)
        if groups < 0:
            assert scanned.draft is None
            continue
        assert scanned.draft is not None
        rows = scanned.draft.stream_rows(0)
        np.testing.assert_array_equal(rows["seq"], np.arange(groups * ROWS))
        assert len(scanned.draft.frames[0]) == groups
        assert not scanned.end.damaged
        assert scanned.end.valid_bytes == ends[groups]


@settings(max_examples=150, deadline=None)
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_never_read_as_data(
    whole: tuple[bytes, list[int]], tmp_path_factory: pytest.TempPathFactory, position: float, bit: int
) -> None:
    data, ends = whole
    flipped = bytearray(data)
    at = int(position * len(data))
    flipped[at] ^= 1 << bit
    path = tmp_path_factory.mktemp("flip") / "j"
    path.write_bytes(flipped)
    scanned = read_journal(path)
    groups = sum(at >= offset for offset in ends) - 1
    assert scanned.end.damaged == (at < ends[-2]), "damage with records after it is told from a torn tail"
    if scanned.draft is None:
        assert groups < 0
    else:
        rows = scanned.draft.stream_rows(0)
        np.testing.assert_array_equal(rows["value"][:, 0], np.arange(groups * ROWS))


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=400))
def test_garbage_is_no_journal(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("garbage") / "j"
    path.write_bytes(data)
    assert read_journal(path).draft is None


def test_valid_records_that_make_no_sense_are_damage(tmp_path: Path) -> None:
    for payload in (
        b"\x01",
        b"\x01\x09\x00\x04\x00\x00\x00abcd",
        b"\x07" + bytes(6),
        b"\x02\x00\x00\x01\x00\x00\x00a",
    ):
        path = tmp_path / payload.hex()
        draft = Draft("e1", SPEC, "", 0)
        writer = JournalWriter(path, FileLayer(), durable=False)
        writer.append(RecordKind.HEADER, draft.header())
        writer.append(RecordKind.GROUP, payload)
        writer.close()
        with pytest.raises(DamagedError, match=r"makes no sense|malformed"):
            read_journal(path)


def test_an_absurd_length_is_refused_without_allocating() -> None:
    head = journal._RECORD.pack(b"RJ", 1, RecordKind.GROUP, 0, 1 << 60)
    end = journal.ScanEnd()
    assert list(journal.scan(head + bytes(100), end)) == []
    assert end.torn_bytes == len(head) + 100


def new_store(path: Path) -> Path:
    EpisodeStore.open(path).close()
    return path / "journals"


def test_opening_publishes_an_interrupted_episode_as_recovered(tmp_path: Path) -> None:
    ends = write_journal(new_store(tmp_path) / "e1.journal", "e1")
    path = tmp_path / "journals" / "e1.journal"
    path.write_bytes(path.read_bytes()[: ends[4] + 9])
    with EpisodeStore.open(tmp_path) as store:
        assert store.recovery.recovered == ["e1"]
        meta = store.read("e1").meta
        assert (meta.outcome, meta.recovered, meta.reason) == ("unknown", True, "recovered after a crash")
        np.testing.assert_array_equal(store.read("e1").streams["observation.state"].seq, np.arange(4 * ROWS))
        assert store.read("e1").frames("front").jpeg(3) == b"jpeg" * 20
        assert store.verify().ok
        assert store.query("SELECT recovered FROM episodes") == [{"recovered": True}]
    assert not path.exists()
    with EpisodeStore.open(tmp_path) as store:
        assert not store.recovery


def test_an_ended_episode_is_completed_with_its_own_outcome(tmp_path: Path) -> None:
    write_journal(new_store(tmp_path) / "e1.journal", "e1", end=True)
    with EpisodeStore.open(tmp_path) as store:
        assert store.recovery.completed == ["e1"]
        meta = store.read("e1").meta
    assert (meta.outcome, meta.recovered, meta.reason) == ("success", False, "done")


def test_a_damaged_journal_gives_its_prefix_and_is_set_aside(tmp_path: Path) -> None:
    ends = write_journal(new_store(tmp_path) / "e1.journal", "e1")
    path = tmp_path / "journals" / "e1.journal"
    data = bytearray(path.read_bytes())
    data[ends[2] + 50] ^= 1
    path.write_bytes(data)
    with EpisodeStore.open(tmp_path) as store:
        meta = store.read("e1").meta
        assert len(store.read("e1").streams["observation.state"]) == 2 * ROWS
    assert f"{len(data) - ends[2]} bytes could not be read" in meta.reason
    assert (tmp_path / "damaged" / "e1.journal").read_bytes() == data


def test_unusable_journals_never_stop_the_store_from_opening(tmp_path: Path) -> None:
    journals = new_store(tmp_path)
    (journals / "empty.journal").touch()
    (journals / "noise.journal").write_bytes(random.Random(0).randbytes(5000))
    write_journal(journals / "other.journal", "another-id")
    write_journal(journals / "header-only.journal", "header-only", groups=0)
    write_journal(journals / "good.journal", "good")
    with EpisodeStore.open(tmp_path) as store:
        assert store.recovery.recovered == ["good"]
        assert store.recovery.damaged == ["other"]
        assert store.recovery.unreadable == ["noise"]
        assert store.recovery.empty == ["empty", "header-only"]
        assert store.ids() == ["good"]
    assert list(journals.iterdir()) == []
    kept = (tmp_path / "damaged" / "noise.journal").read_bytes()
    assert kept == random.Random(0).randbytes(5000), "whatever it is, it is not ours to delete"


def test_the_verb_says_what_became_of_journals_that_are_none(tmp_path: Path) -> None:
    journals = new_store(tmp_path)
    (journals / "noise.journal").write_bytes(random.Random(1).randbytes(3000))
    (journals / "empty.journal").touch()
    done = CliRunner().invoke(recover, ["--store", str(tmp_path)])
    assert "noise: its journal CANNOT BE READ, moved to damaged/" in done.output
    assert "empty: had begun, nothing was recorded" in done.output
    assert "nothing to do" not in done.output
    assert done.exit_code == 1
