"""One writer per store, held by flock: the kernel lets go of it however the writer dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from episodes.errors import RecordingError, StoreLockedError


class WriterLock:
    """Holds ``<store>/lock`` until ``release``; the file names the holder's pid."""

    def __init__(self, path: Path) -> None:
        """Raises StoreLockedError naming the holder, RecordingError when the file cannot be opened."""
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise RecordingError(
                f"cannot open {path} for writing ({error.strerror})",
                "open the store with mode='r' to read it",
            ) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise StoreLockedError(
                f"store {path.parent} is being written by process {holder}",
                "stop it, or open the store with mode='r' to read it",
            ) from error
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let the next writer in; safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
