"""What a budget may delete: the oldest, synced and unflagged; and what it counts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from episode_helpers import LOSSLESS, SPEC, record_episode, record_ticks

from episodes.copies import mark_synced
from episodes.files import FileLayer
from episodes.retention import prune
from episodes.store import EpisodeStore
from runtime.store_budget import keep_budget


def test_a_budget_takes_the_oldest_that_are_synced_and_unflagged(store: EpisodeStore) -> None:
    ids = [record_episode(store, 10, episode_id=f"e{i}") for i in range(4)]
    writer = store.begin(SPEC, config=LOSSLESS, episode_id="flagged")
    record_ticks(writer, 10)
    writer.flag("stall", 0, 1, 1.0)
    writer.end("success").wait(30)
    everything = prune(store, 0)
    assert everything.deleted == ()
    assert everything.over == everything.before > 0
    for name in ("e0", "e1", "e3", "flagged"):
        mark_synced(store.root, name, store.read(name).digest, "elsewhere")
    size = store.query("SELECT bytes AS n FROM episodes WHERE id = 'e0'")[0]["n"]
    some = prune(store, everything.before - size, dry_run=True)
    assert some.deleted == ("e0",)
    assert store.ids() == [*ids, "flagged"]
    assert prune(store, 0).deleted == ("e0", "e1", "e3")
    assert store.ids() == ["e2", "flagged"]
    assert store.verify().ok


def test_what_lies_aside_counts_and_what_cannot_be_deleted_is_not_freed(
    store: EpisodeStore, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [record_episode(store, 10, episode_id=f"e{i}") for i in range(3)]
    for name in ids:
        mark_synced(store.root, name, store.read(name).digest, "elsewhere")
    plain = prune(store, 10**12).before
    for folder, size in (("damaged", 1000), ("incoming", 200)):
        inside = store.root / folder / "x" / "frames"
        inside.mkdir(parents=True)
        (inside / "0").write_bytes(bytes(size))
    assert prune(store, 10**12).before == plain + 1200
    assert prune(store, 10**12).aside_bytes == 1200

    class Stuck(FileLayer):
        def rename(self, source: Path, target: Path) -> None:
            if source.name == "e0":
                raise OSError(30, "Read-only file system")
            super().rename(source, target)

        def remove_tree(self, path: Path) -> None:
            if path.name == "e1.partial":
                path = path / "action"
            super().remove_tree(path)

    store.files = Stuck()
    done = prune(store, 0)
    assert done.deleted == ("e2",)
    assert done.failed == ("e0", "e1")
    there = sum(p.stat().st_size for p in (store.root / "episodes").rglob("*") if p.is_file())
    marker = (store.root / "episodes" / "e0" / "episode.json").stat().st_size
    assert done.after - 1200 == pytest.approx(
        there, abs=2 * marker
    )  # markers are no part of an episode's size
    assert store.ids() == ["e0"], "what could not be renamed is still an episode"
    assert prune(store, 10**12).before == pytest.approx(done.after, abs=2 * marker)
    assert "Read-only" in caplog.text


async def test_a_running_service_keeps_its_budget(
    store: EpisodeStore, caplog: pytest.LogCaptureFixture
) -> None:
    names = [record_episode(store, 5, episode_id=f"e{i}") for i in range(2)]
    mark_synced(store.root, "e0", store.read("e0").digest, "elsewhere")
    task = asyncio.create_task(keep_budget(store, 1, period_s=0.01))
    for _ in range(3000):
        if store.ids() != names and "not synced" in caplog.text:
            break
        await asyncio.sleep(0.01)
    task.cancel()
    assert store.ids() == ["e1"]
