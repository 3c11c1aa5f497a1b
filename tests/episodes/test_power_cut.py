"""The power goes at every single write: the store opens as it was or as it was to be."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
from episode_helpers import record_episode
from failing_disk import TICKS, FailingLayer, check_prefix, record_until_it_fails

from episodes.files import FileLayer
from episodes.store import EpisodeStore


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
