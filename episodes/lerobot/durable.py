"""Small files that are whole or not there, and one program at a time in a folder that is being made."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from episodes.errors import StoreLockedError
from episodes.files import FileLayer

_FILES = FileLayer()


def write_whole(path: Path, text: str) -> None:
    """Write ``path``, on the disk when this returns; a power cut leaves the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    _FILES.sync_path(temporary)
    _FILES.rename(temporary, path)
    _FILES.sync_path(path.parent)


def lock_path(root: Path) -> Path:
    """The lock file of the set in ``root``: beside it, because the folder itself may be moved."""
    return root.with_name(f".{root.name}.ratchet-lock")


@contextmanager
def only_writer(root: Path) -> Iterator[None]:
    """Nobody else converts or exports into ``root`` meanwhile; the kernel lets go when this process dies.

    Raises StoreLockedError when somebody does.
    """
    path = lock_path(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = os.pread(held, 32, 0).decode(errors="replace").strip() or "unknown"
                raise StoreLockedError(
                    f"{root} is being written by process {holder}", "wait for it, or choose another folder"
                ) from error
            if not _is(held, path):
                continue  # the one before took it away after we had opened it
            try:
                os.pwrite(held, f"{os.getpid()}\n".encode(), 0)
                yield
            finally:
                path.unlink(missing_ok=True)
            return
        finally:
            os.close(held)


def _is(held: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(held), path.stat())
    except FileNotFoundError:
        return False
