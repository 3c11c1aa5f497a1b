"""The store's file operations, recorded in order with their times and bytes.

SQLite writes its own files; of those a copy is kept at every operation at which they had changed. Its
write-ahead log is synced at each commit, so a copy between two commits is what a power cut may leave.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from episodes.files import FileLayer

Kind = Literal["create", "write", "truncate", "sync", "syncfs", "rename", "mkdir", "unlink", "remove_tree"]
CATALOGUE = ("catalogue.sqlite", "catalogue.sqlite-wal")


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation; paths are relative to the store's parent, ``size`` is truncate's.

    ``begun_ns`` is monotonic. ``catalogue`` holds SQLite's files as they were before it.
    """

    kind: Kind
    path: Path
    begun_ns: int
    data: bytes = b""
    offset: int = 0
    size: int = 0
    target: Path | None = None
    catalogue: tuple[bytes | None, ...] = ()


class LoggingLayer(FileLayer):
    """Does everything and keeps a log. An operation is logged when it begins: it may be cut anywhere."""

    def __init__(self, root: Path) -> None:
        self.operations: list[Operation] = []
        self._root = root
        self._lock = threading.Lock()
        self._open: dict[int, Path] = {}
        self._seen: tuple[tuple[int, int], ...] = ()
        self._copies: tuple[bytes | None, ...] = (None, None)

    def _log(
        self,
        kind: Kind,
        path: Path,
        data: bytes = b"",
        offset: int = 0,
        size: int = 0,
        target: Path | None = None,
    ) -> None:
        with self._lock:
            operation = Operation(
                kind,
                self._relative(path),
                time.monotonic_ns(),
                data,
                offset,
                size,
                None if target is None else self._relative(target),
                self._catalogue(),
            )
            self.operations.append(operation)

    def _relative(self, path: Path) -> Path:
        return path.relative_to(self._root.parent) if path != self._root.parent else Path()

    def _catalogue(self) -> tuple[bytes | None, ...]:
        paths = [self._root / name for name in CATALOGUE]
        stats = [p.stat() if p.exists() else None for p in paths]
        seen = tuple((s.st_mtime_ns, s.st_size) if s else (0, 0) for s in stats)
        if seen != self._seen:
            self._copies = tuple(p.read_bytes() if s else None for p, s in zip(paths, stats, strict=True))
            self._seen = seen
        return self._copies

    def create(self, path: Path) -> int:
        self._log("create", path)
        fd = super().create(path)
        self._open[fd] = path
        return fd

    def write(self, fd: int, data: bytes | bytearray | memoryview) -> None:
        self._log("write", self._open[fd], bytes(data), os.lseek(fd, 0, os.SEEK_CUR))
        super().write(fd, data)

    def truncate(self, fd: int, size: int) -> None:
        self._log("truncate", self._open[fd], size=size)
        super().truncate(fd, size)

    def datasync(self, fd: int) -> None:
        self._log("sync", self._open[fd])
        super().datasync(fd)

    def sync_path(self, path: Path) -> None:
        self._log("sync", path)
        super().sync_path(path)

    def sync_filesystem(self, path: Path) -> None:
        self._log("syncfs", path)
        super().sync_filesystem(path)

    def rename(self, source: Path, target: Path) -> None:
        self._log("rename", source, target=target)
        super().rename(source, target)

    def mkdir(self, path: Path, exist_ok: bool = False) -> None:
        self._log("mkdir", path)
        super().mkdir(path, exist_ok)

    def unlink(self, path: Path) -> None:
        self._log("unlink", path)
        super().unlink(path)

    def remove_tree(self, path: Path) -> None:
        if path.exists():
            self._log("remove_tree", path)
        super().remove_tree(path)
