"""A cache of decoded pictures: memory-mapped files that processes share, bounded in bytes.

::

    cache/
      lock                                  held while files are made or thrown out
      lease-PID-NNNN                        locked while that process lives; names the files it uses
      DIGEST.CAMERA.HEIGHTxWIDTH.frames     one camera of one episode

A file is a page-aligned header (text), one CRC32C a picture (0: not decoded yet), and the pictures.
Nothing in it is believed without its checksum: a process checks a picture the first time it reads it,
so that neither a process killed while it wrote nor a power cut that kept some pages and lost others
can put a wrong picture into training; what fails is decoded again. A file's blocks are reserved when
it is made, so that a full disk means "not cached", never a fault while writing.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import google_crc32c
import numpy as np
import numpy.typing as npt

from episodes.decoding import DECODER
from learner.errors import DataError

log = logging.getLogger(__name__)

U8 = npt.NDArray[np.uint8]

_SUFFIX = ".frames"
_MAPPED = 256  # files mapped at a time: each takes a file descriptor, of which there are often only 1,024


class CacheFile:
    """The mapped pictures of one camera of one episode: uint8 (n, H, W, 3)."""

    def __init__(self, path: Path, frames: int, size: tuple[int, int]) -> None:
        """Raises ValueError when the file is not what it should be, OSError when it cannot be mapped."""
        head, crcs, total = layout(frames, size)
        raw = np.memmap(path, np.uint8, "r+")
        if len(raw) != total or bytes(raw[: len(header(frames, size))]) != header(frames, size):
            raise ValueError(f"{path} is another file than its name says")
        self._crcs = raw[head : head + 4 * frames].view(np.uint32)
        self._pictures = raw[crcs:].reshape(frames, *size, 3)
        self._checked = np.zeros(frames, bool)

    def read_into(self, frame: int, out: U8) -> bool:
        """Copy a picture; False when it is not there, or not what was written."""
        wanted = int(self._crcs[frame])
        if wanted == 0:
            return False
        out[...] = self._pictures[frame]
        if not self._checked[frame]:
            if checksum(out) != wanted:
                return False
            self._checked[frame] = True
        return True

    def write(self, frame: int, picture: U8) -> None:
        """Keep a picture: its pixels first, the checksum that makes them valid last."""
        self._pictures[frame] = picture
        self._crcs[frame] = checksum(picture)


def checksum(picture: U8) -> int:
    """CRC32C of a picture's bytes; never 0, which means that there is none."""
    return google_crc32c.value(picture.tobytes()) or 1


def header(frames: int, size: tuple[int, int]) -> bytes:
    """What a file begins with: another decoder's pictures are not ours."""
    return f"ratchet decoded pictures 1 {DECODER} {frames} {size[0]}x{size[1]}\n".encode()


def layout(frames: int, size: tuple[int, int]) -> tuple[int, int, int]:
    """(where the checksums begin, where the pictures begin, size of the file) in bytes."""
    head = mmap.PAGESIZE
    pictures = head + -(-4 * frames // mmap.PAGESIZE) * mmap.PAGESIZE
    return head, pictures, pictures + frames * size[0] * size[1] * 3


class DecodedCache:
    """The files in ``folder``, together never more than ``limit_bytes``. Threads may share one.

    Files that no living process uses make room for new ones, the longest unused first. What there is
    no room for is simply not cached.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """Raises DataError when ``folder`` cannot be used."""
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._shapes: dict[str, tuple[int, tuple[int, int]]] = {}
        self._open: OrderedDict[str, CacheFile] = OrderedDict()
        self._mutex = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lease = (folder / f"lease-{os.getpid()}-{secrets.token_hex(4)}").open("xb", buffering=0)
            fcntl.flock(self._lease, fcntl.LOCK_EX)
        except OSError as error:
            raise DataError(
                f"the cache of decoded pictures in {folder} cannot be used ({error.strerror})",
                "set data.scratch to a folder that can be written",
            ) from error

    def claim(self, digest: str, camera: str, frames: int, size: tuple[int, int]) -> str | None:
        """A name for `file`: the pictures of a camera of an episode; None when there is no room.

        The file is kept as long as this process lives.
        """
        name = f"{digest}.{camera}.{size[0]}x{size[1]}{_SUFFIX}"
        if name in self._shapes:
            return name
        if frames == 0:
            return None
        with self._locked():
            path = self.folder / name
            try:
                if not _sound(path, frames, size) and not self._make(path, frames, size):
                    return None
                os.utime(path)
                self._lease.write(f"{name}\n".encode())
            except OSError as error:
                log.warning("cache.refused file=%s error=%s", path, error.strerror)
                return None
        self._shapes[name] = (frames, size)
        return name

    def file(self, name: str) -> CacheFile:
        """The mapped file of a claimed name. Raises DataError when somebody took it away."""
        with self._mutex:
            found = self._open.get(name)
            if found is None:
                try:
                    found = CacheFile(self.folder / name, *self._shapes[name])
                except (OSError, ValueError) as error:
                    raise DataError(
                        f"a file of the cache is gone or changed: {error}", "leave its folder alone"
                    ) from error
                self._open[name] = found
                while len(self._open) > _MAPPED:
                    self._open.popitem(last=False)
            self._open.move_to_end(name)
            return found

    def used_bytes(self) -> int:
        """Size of all files together."""
        return sum(size for _, size, _ in self._files())

    def close(self) -> None:
        """Let go of the files: others may throw them out. Safe twice."""
        self._open.clear()
        self._lease.close()

    def _make(self, path: Path, frames: int, size: tuple[int, int]) -> bool:
        total = layout(frames, size)[2]
        path.unlink(missing_ok=True)
        if not self._make_room(total):
            return False
        partial = path.with_suffix(".partial")
        try:
            with partial.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, total)
                file.write(header(frames, size))
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        return True

    def _make_room(self, wanted: int) -> bool:
        """Throw out what nobody uses, the longest unused first, until ``wanted`` bytes fit."""
        if wanted > self.limit_bytes:
            return False
        files = self._files()
        used = sum(size for _, size, _ in files)
        in_use = self._in_use() if used + wanted > self.limit_bytes else set()
        for _, size, path in files:
            if used + wanted <= self.limit_bytes:
                break
            if path.name not in in_use:
                path.unlink(missing_ok=True)
                used -= size
        return used + wanted <= self.limit_bytes

    def _files(self) -> list[tuple[float, int, Path]]:
        """(last use, size, path) of every file, the longest unused first; half-made ones are removed."""
        out = []
        for path in self.folder.iterdir():
            if path.suffix == _SUFFIX:
                status = path.stat()
                out.append((status.st_mtime, status.st_size, path))
        return sorted(out)

    def _in_use(self) -> set[str]:
        """Names in the leases of living processes; the leases of dead ones are removed."""
        names: set[str] = set()
        for path in self.folder.glob("lease-*"):
            with path.open("rb") as lease:
                if path.name == Path(self._lease.name).name or not _lockable(lease.fileno()):
                    names |= set(lease.read().decode().split())
                else:
                    path.unlink(missing_ok=True)
        return names

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._mutex, (self.folder / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for left in self.folder.glob("*.partial"):  # of a process that was killed: makers hold the lock
                left.unlink(missing_ok=True)
            yield


def _sound(path: Path, frames: int, size: tuple[int, int]) -> bool:
    """Whether ``path`` is there and as it should be (its pictures have checksums of their own)."""
    try:
        with path.open("rb") as file:
            wanted = header(frames, size)
            return path.stat().st_size == layout(frames, size)[2] and file.read(len(wanted)) == wanted
    except FileNotFoundError:
        return False


def _lockable(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
