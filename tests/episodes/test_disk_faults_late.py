"""The disk refuses after publishing began: what was recorded is published when there is room."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from episode_helpers import LOSSLESS, SPEC, record_episode, record_ticks
from failing_disk import (
    TICKS,
    FailingLayer,
    LateLayer,
    check_prefix,
    record_ticks_until_the_disk_refuses,
    until_something_is_committed,
)

from episodes.errors import DiskFullError, RecordingError
from episodes.store import EpisodeStore
from episodes.writer import EpisodeWriter
from runtime.store_budget import publish_left


@contextmanager
def begun(root: Path) -> Iterator[tuple[FailingLayer, EpisodeStore, EpisodeWriter]]:
    """A store on a disk that can fail, and an episode in it of which something is committed."""
    layer = FailingLayer()
    with EpisodeStore.open(root, files=layer) as store:
        writer = store.begin(SPEC, config=LOSSLESS, episode_id="running")
        record_ticks(writer, TICKS)
        until_something_is_committed(writer)
        yield layer, store, writer


def test_after_publishing_began_a_full_disk_costs_nothing(tmp_path: Path) -> None:
    with begun(tmp_path / "s") as (layer, store, writer):
        layer.first = layer.operations + 3
        with pytest.raises(DiskFullError, match="kept"):
            writer.end("success").wait(30)
        layer.first = None
        report = store.recover()
        assert report.recovered + report.completed == ["running"]
        check_prefix(store)


def test_what_a_full_disk_held_up_is_published_beside_the_next_recording(tmp_path: Path) -> None:
    with begun(tmp_path / "s") as (layer, store, writer):
        layer.first = layer.operations
        with pytest.raises(DiskFullError):
            writer.end("success").wait(30)
        assert "running" in store.publish_left().failed
        assert "running" not in store.ids()
        layer.first = None
        following = store.begin(SPEC, config=LOSSLESS, episode_id="following")
        record_ticks(following, 2)
        report = store.publish_left()
        assert report.recovered + report.completed == ["running"]
        assert store.active() == {"following"}, "the running one is left alone"
        record_ticks(following, 2, start=2)
        following.end("success").wait(30)
        check_prefix(store)
        assert not store.publish_left()
        assert sorted(store.ids()) == ["following", "running"]
        assert list((store.root / "journals").iterdir()) == []


def test_what_was_thrown_away_after_a_disk_error_stays_thrown_away(tmp_path: Path) -> None:
    with begun(tmp_path / "s") as (layer, store, writer):
        layer.first = layer.operations
        record_ticks_until_the_disk_refuses(writer)
        layer.first = None
        writer.discard()
        assert not store.publish_left()
        assert store.ids() == []


@pytest.mark.parametrize("where", ["catalogue", "folder"])
def test_what_failed_after_its_name_was_given_gets_its_row_before_its_journal_goes(
    tmp_path: Path, where: str
) -> None:
    layer = LateLayer(tmp_path / "s" / "episodes")
    with EpisodeStore.open(tmp_path / "s", files=layer) as store:
        database = store.catalogue._db
        if where == "catalogue":
            (pages,) = database.execute("PRAGMA page_count").fetchone()
            database.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own word for a full disk
        layer.failing = where == "folder"
        spec = SPEC.model_copy(update={"provenance": {"note": "x" * 20_000}})  # more than the pages have
        writer = store.begin(spec, config=LOSSLESS, episode_id="running")
        record_ticks(writer, TICKS)
        with pytest.raises(RecordingError, match="running is kept in"):
            writer.end("success", "done").wait(30)
        folder, journal = (store.root / name for name in ("episodes/running", "journals/running.journal"))
        assert (folder.is_dir(), journal.exists(), store.ids()) == (True, True, [])
        assert "running" in store.publish_left().failed, "the disk is no better"
        assert journal.exists()
        layer.failing = False
        database.execute("PRAGMA max_page_count = 1000000")
        layer.synced.clear()
        assert store.publish_left().completed == ["running"]
        assert {store.root, folder.parent} <= set(layer.synced)
        assert not journal.exists()
        assert store.catalogue.ids()["running"][1], "its row says that it is on the disk"
        assert store.verify().ok
        check_prefix(store)
        assert not store.publish_left()


def test_what_is_not_whole_under_its_name_is_published_again_from_its_journal(tmp_path: Path) -> None:
    layer = LateLayer(tmp_path / "s" / "episodes")
    with EpisodeStore.open(tmp_path / "s", files=layer) as store:
        layer.failing = True
        writer = store.begin(SPEC, config=LOSSLESS, episode_id="running")
        record_ticks(writer, TICKS)
        with pytest.raises(RecordingError):
            writer.end("success", "done").wait(30)
        layer.failing = False
        victim = next((store.root / "episodes/running/action").rglob("0*"))
        victim.write_bytes(bytes(victim.stat().st_size))
        assert store.publish_left().completed == ["running"]
        assert store.verify().ok
        check_prefix(store)


def test_a_catalogue_whose_commit_failed_takes_the_next_row(store: EpisodeStore) -> None:
    database = store.catalogue._db
    database.execute("PRAGMA foreign_keys = ON")
    database.execute("CREATE TABLE part (of TEXT REFERENCES episodes (id) DEFERRABLE INITIALLY DEFERRED)")
    with pytest.raises(sqlite3.IntegrityError), store.catalogue._transaction():
        database.execute("INSERT INTO part VALUES ('nothing')")  # only the commit refuses it
    assert record_episode(store, TICKS) in store.ids()


async def test_the_service_publishes_it_by_itself(tmp_path: Path) -> None:
    layer = FailingLayer()
    with EpisodeStore.open(tmp_path / "s", files=layer) as store:
        writer = store.begin(SPEC, config=LOSSLESS, episode_id="running")
        record_ticks(writer, TICKS)
        await asyncio.to_thread(until_something_is_committed, writer)
        layer.first = layer.operations + 4
        with pytest.raises(DiskFullError):
            writer.end("success").wait(30)
        task = asyncio.create_task(publish_left(store, period_s=0.02))
        await asyncio.sleep(0.1)
        assert store.ids() == []
        layer.first = None
        for _ in range(1500):
            if store.ids():
                break
            await asyncio.sleep(0.02)
        assert store.ids() == ["running"]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
