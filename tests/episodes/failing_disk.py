"""A disk that refuses from some operation on, and recordings that run into it."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from episode_helpers import LOSSLESS, SPEC, record_ticks, state

from episodes.errors import DiskFullError, StoreError
from episodes.files import FileLayer
from episodes.store import EpisodeStore
from episodes.writer import EpisodeWriter

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
