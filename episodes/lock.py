"""One holder of a lock file, by flock: the kernel lets go of it however the holder dies.

A store has two: ``lock`` is its writer's, ``sync.lock`` is held at both ends of a copy.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from episodes.errors import RecordingError, StoreLockedError


class WriterLock:
    """Holds ``path``, a file in the store's folder, until ``release``; the file names the holder's pid.

    ``doing`` is what the holder does with the store, for whoever is refused.
    """

    def __init__(self, path: Path, doing: str = "written") -> None:
        """Raises StoreLockedError naming the holder, RecordingError when the file cannot be opened."""
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise RecordingError(
                f"cannot open {path} for writing ({error.strerror})",
                "check the disk and its permissions; reading the store needs neither",
            ) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise StoreLockedError(
                f"store {path.parent} is being {doing} by process {holder}",
                "stop that first, or wait for it; to read the store needs neither",
            ) from error
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let the next writer in; safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
