"""The file layer: whatever the store changes on the disk goes through here, SQLite's files excepted.

One seam for three reasons: durability is decided in one place, each error becomes a typed one,
and a layer that fails, or keeps a log of the operations, can be handed in to test the rest.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from episodes.errors import DiskFullError, RecordingError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def io_error(error: OSError, where: Path | str, kept: str = "") -> RecordingError:
    """The typed one-line error for an OSError met at ``where``; ``kept`` says what is safe."""
    reason = error.strerror or type(error).__name__
    if error.errno in _FULL:
        return DiskFullError(f"no space left to write {where} ({reason}){kept}", "free space on this disk")
    return RecordingError(f"cannot write {where} ({reason}){kept}", "check the disk and its permissions")


class FileLayer:
    """Plain POSIX files. Methods raise OSError; callers turn it into a typed error."""

    def create(self, path: Path) -> int:
        """Open a new file for writing and reading; returns the descriptor."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)

    def write(self, fd: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of ``data`` at the descriptor's position."""
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    def truncate(self, fd: int, size: int) -> None:
        """Cut the file to ``size`` bytes."""
        os.ftruncate(fd, size)

    def datasync(self, fd: int) -> None:
        """Returns when the file's data is on the disk."""
        os.fdatasync(fd)

    def write_file(self, path: Path, parts: Iterable[bytes | bytearray]) -> tuple[int, str]:
        """Write a new file (not yet synced); returns its size and sha256."""
        digest = hashlib.sha256()
        size = 0
        fd = self.create(path)
        try:
            for part in parts:
                self.write(fd, part)
                digest.update(part)
                size += len(part)
        finally:
            os.close(fd)
        return size, digest.hexdigest()

    def sync_path(self, path: Path) -> None:
        """fsync a file or a folder by name."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def sync_filesystem(self, path: Path) -> None:
        """Returns when everything written so far to the file system of ``path`` is on the disk."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.syncfs(fd) != 0:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code), str(path))
        finally:
            os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        """Atomic rename within one file system."""
        source.rename(target)

    def mkdir(self, path: Path, exist_ok: bool = False) -> None:
        """Make one folder."""
        path.mkdir(exist_ok=exist_ok)

    def unlink(self, path: Path) -> None:
        """Remove a file; nothing happens when it is not there."""
        path.unlink(missing_ok=True)

    def remove_tree(self, path: Path) -> None:
        """Remove a folder and all in it as far as that is possible; nothing happens when it is not there."""
        shutil.rmtree(path, ignore_errors=True)
