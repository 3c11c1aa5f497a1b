"""The disk fails or the power goes at every single write: the recording ends, nothing committed is lost."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from episode_helpers import LOSSLESS, SPEC, record_episode, record_ticks, state

from episodes.errors import DiskFullError, RecordingError, StoreError
from episodes.files import FileLayer
from episodes.store import EpisodeStore
from episodes.writer import EpisodeWriter
from runtime.store_budget import publish_left

TICKS = 6


class FailingLayer(FileLayer):
    """Every operation from number ``first`` on fails; ``first`` None: none does. Syncs are only counted."""

    def __init__(self, code: int = errno.ENOSPC) -> None:
        self.code = code
        self.first: int | None = None
        self.operations = 0
        self._lock = threading.Lock()

    def _count(self) -> None:
        with self._lock:
            self.operations += 1
            if self.first is not None and self.operations > self.first:
                raise OSError(self.code, os.strerror(self.code))

    def create(self, path: Path) -> int:
        self._count()
        return super().create(path)

    def write(self, fd: int, data: bytes | bytearray | memoryview) -> None:
        try:
            self._count()
        except OSError:
            os.write(fd, bytes(data[: len(data) // 2]))  # a full disk takes the first half
            raise
        super().write(fd, data)

    def datasync(self, fd: int) -> None:
        self._count()

    def sync_path(self, path: Path) -> None:
        self._count()

    def sync_filesystem(self, path: Path) -> None:
        self._count()

    def rename(self, source: Path, target: Path) -> None:
        self._count()
        super().rename(source, target)


class LateLayer(FileLayer):
    """While ``failing``, the sync of ``folder``, which comes after the rename, fails; ``synced`` is told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.failing = False
        self.synced: list[Path] = []

    def sync_path(self, path: Path) -> None:
        if self.failing and path == self.folder:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().sync_path(path)
        self.synced.append(path)

    def sync_filesystem(self, path: Path) -> None:
        super().sync_filesystem(path)
        self.synced.append(path)


def record_until_it_fails(store: EpisodeStore) -> StoreError | None:
    try:
        writer = store.begin(SPEC, config=LOSSLESS, episode_id="running")
        record_ticks(writer, TICKS)
        writer.end("success", "done").wait(30)
    except StoreError as error:
        return error
    return None


def until_something_is_committed(writer: EpisodeWriter) -> None:
    while writer._draft.rows[0] == []:
        threading.Event().wait(0.01)


def record_ticks_until_the_disk_refuses(writer: EpisodeWriter) -> None:
    with pytest.raises(DiskFullError):
        for tick in range(TICKS, 100_000):
            writer.append("action", tick, tick, state(tick))
            threading.Event().wait(0.001)
    writer._thread.join(30)


def operations_of_one_episode(tmp_path: Path) -> int:
    layer = FailingLayer()
    with EpisodeStore.open(tmp_path / "count", files=layer) as store:
        layer.operations = 0
        assert record_until_it_fails(store) is None
    return layer.operations


def check_prefix(store: EpisodeStore) -> None:
    episode = store.read("running")
    data = episode.streams["action"]
    np.testing.assert_array_equal(
        data.values, np.reshape([state(t) + 0.5 for t in range(len(data))], (-1, 6))
    )
    for index in range(len(episode.frames("front"))):
        assert episode.frames("front")[index].shape == (24, 32, 3)
    if not episode.meta.recovered:
        assert (episode.meta.ticks, episode.meta.outcome) == (TICKS, "success")


@pytest.mark.slow
def test_a_full_disk_at_every_write_is_a_clear_error_and_loses_nothing(tmp_path: Path) -> None:
    total = operations_of_one_episode(tmp_path)
    assert total > 40
    for first in range(total):
        root = tmp_path / str(first)
        layer = FailingLayer()
        store = EpisodeStore.open(root, files=layer)
        kept = record_episode(store, TICKS)
        layer.operations, layer.first = 0, first
        error = record_until_it_fails(store)
        if error is None:  # fewer groups than the first time: how many there are is a matter of timing
            assert layer.operations <= first
        else:
            assert isinstance(error, DiskFullError), f"operation {first}"
            assert "\n" not in str(error)
            assert "free space" in str(error)
        layer.first = None  # somebody freed some space: the same store carries on
        store.recover()
        record_episode(store, TICKS)
        store.close()
        with EpisodeStore.open(root, files=FailingLayer()) as again:
            assert kept in again.ids()
            if "running" in again.ids():
                check_prefix(again)
            assert again.verify().ok
        shutil.rmtree(root)


def test_after_publishing_began_a_full_disk_costs_nothing(tmp_path: Path) -> None:
    layer = FailingLayer()
    with EpisodeStore.open(tmp_path / "s", files=layer) as store:
        writer = store.begin(SPEC, config=LOSSLESS, episode_id="running")
        record_ticks(writer, TICKS)
        until_something_is_committed(writer)
        layer.first = layer.operations + 3
        with pytest.raises(DiskFullError, match="kept"):
            writer.end("success").wait(30)
        layer.first = None
        report = store.recover()
        assert report.recovered + report.completed == ["running"]
        check_prefix(store)


def test_what_a_full_disk_held_up_is_published_beside_the_next_recording(tmp_path: Path) -> None:
    layer = FailingLayer()
    with EpisodeStore.open(tmp_path / "s", files=layer) as store:
        writer = store.begin(SPEC, config=LOSSLESS, episode_id="running")
        record_ticks(writer, TICKS)
        until_something_is_committed(writer)
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
    layer = FailingLayer()
    with EpisodeStore.open(tmp_path / "s", files=layer) as store:
        writer = store.begin(SPEC, config=LOSSLESS, episode_id="running")
        record_ticks(writer, TICKS)
        until_something_is_committed(writer)
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


def test_a_disk_error_surfaces_on_the_next_append(tmp_path: Path) -> None:
    layer = FailingLayer(errno.EIO)
    with EpisodeStore.open(tmp_path / "s", files=layer) as store:
        writer = store.begin(SPEC, config=LOSSLESS)
        record_ticks(writer, 3)
        layer.first = 0
        with pytest.raises(RecordingError, match=r"Input/output error.*"):
            for tick in range(3, 100_000):
                writer.append("action", tick, tick, state(tick))
                threading.Event().wait(0.001)
        with pytest.raises(RecordingError):
            writer.end("success")
        writer.discard()
        layer.first = None
        assert list((store.root / "journals").iterdir()) == []


class PowerCutLayer(FileLayer):
    """Before each operation, keeps a copy of the store as a power cut would leave it.

    Of files that were not synced, only the names survive.
    """

    def __init__(self, root: Path, copies: Path) -> None:
        self.root, self.copies = root, copies
        self.synced: dict[Path, int] = {}
        self.paths: dict[int, Path] = {}
        self.stages: list[tuple[Path, int]] = []
        self.journal_syncs = 0
        self.armed = False

    def _cut(self) -> None:
        if not self.armed:
            return
        copy = self.copies / str(len(self.stages))
        shutil.copytree(self.root, copy)
        for path in copy.rglob("*"):
            original = self.root / path.relative_to(copy)
            if path.is_file() and original in self.synced:
                os.truncate(path, self.synced[original])
        self.stages.append((copy, self.journal_syncs))

    def create(self, path: Path) -> int:
        self._cut()
        fd = super().create(path)
        self.synced[path] = 0
        self.paths[fd] = path
        return fd

    def write(self, fd: int, data: bytes | bytearray | memoryview) -> None:
        self._cut()
        super().write(fd, data)

    def write_file(self, path: Path, parts: Iterable[bytes | bytearray]) -> tuple[int, str]:
        written = super().write_file(path, parts)
        self.synced[path] = 0
        return written

    def datasync(self, fd: int) -> None:
        self._cut()
        self.synced[self.paths[fd]] = os.fstat(fd).st_size
        self.journal_syncs += 1

    def sync_path(self, path: Path) -> None:
        self._cut()
        if path.is_file():
            self.synced[path] = path.stat().st_size

    def rename(self, source: Path, target: Path) -> None:
        self._cut()
        super().rename(source, target)
        for path in [p for p in self.synced if p.is_relative_to(source)]:
            self.synced[target / path.relative_to(source)] = self.synced.pop(path)
        self._cut()


@pytest.mark.slow
def test_a_power_cut_at_every_write_leaves_old_or_new(tmp_path: Path) -> None:
    root = tmp_path / "s"
    layer = PowerCutLayer(root, tmp_path / "copies")
    with EpisodeStore.open(root, files=layer) as store:
        old = record_episode(store, TICKS)
        layer.armed = True
        layer.journal_syncs = 0
        assert record_until_it_fails(store) is None
        total = layer.journal_syncs  # header, groups, end
    assert len(layer.stages) > 60
    for copy, syncs in layer.stages:
        with EpisodeStore.open(copy, files=FailingLayer()) as store:
            ids = store.ids()
            assert old in ids
            assert store.verify().ok
            if syncs >= 2:  # the header and at least one group are on the disk
                assert "running" in ids
                check_prefix(store)
                assert len(store.read("running").streams["action"]) >= 1
            if syncs == total:
                assert not store.read("running").meta.recovered
        shutil.rmtree(copy)


def test_a_real_file_size_limit_is_reported_like_a_full_disk(tmp_path: Path) -> None:
    script = (
        "import resource, sys, time; sys.path[:0] = sys.argv[2:]\n"
        "from episodes.store import EpisodeStore\n"
        "from episodes.errors import DiskFullError\n"
        "from episode_helpers import SPEC, LOSSLESS, record_ticks\n"
        "store = EpisodeStore.open(sys.argv[1])\n"
        "writer = store.begin(SPEC, config=LOSSLESS, episode_id='running')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
        "try:\n"
        "    for start in range(0, 2000, 4):\n"
        "        record_ticks(writer, 4, start)\n"
        "        time.sleep(0.005)\n"
        "    writer.end('success').wait(30)\n"
        "except DiskFullError as error:\n"
        "    print(error)\n"
    )
    here = Path(__file__).parent
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "s"), str(here), str(here.parents[1])],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "no space left" in done.stdout, done.stderr
    with EpisodeStore.open(tmp_path / "s") as store:
        assert store.recovery.recovered == ["running"]
        check_prefix(store)
        assert len(store.read("running").streams["action"]) > 10
