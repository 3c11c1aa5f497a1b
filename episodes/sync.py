"""Copying published episodes into another store: resumable, checked by checksum, published by rename.

The sender offers an episode's commit marker; the receiver answers how much of each file it has already.
The rest follows in pieces. Then the receiver compares every file with the marker's digests, syncs,
gives the episode its name and adds its catalogue row. Until then it lies in ``incoming/``, where an
interrupted copy goes on the next time. Files that fail their checksum are sent once more, then refused.

Which copy lets another be deleted: X counts as synced on Y's copy when Y's own does not count on anybody
else's at that moment. So whatever is copied where, in circles, too, one of the stores keeps the episode: in
a circle of stores that count on the next, the last to be noted would have counted on one that did so
already. Both ends hold their ``sync.lock`` meanwhile, so that two stores cannot come to count on each other
at the same time.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from episodes.copies import Notes
from episodes.errors import DamagedError, RecordingError
from episodes.files import io_error
from episodes.lock import WriterLock
from episodes.marker import MARKER_NAME, Marker, read_marker
from episodes.store import EpisodeStore

PIECE_BYTES = 1 << 20
INCOMING = "incoming"
_ASKED = 1000


class Link(Protocol):
    """The other store. Methods raise StoreError."""

    def missing(self, episode_ids: list[str]) -> list[str]:
        """Which of these are not published there; at most 1000 are asked for at a time."""

    def offer(self, episode_id: str, marker: bytes) -> dict[str, int] | None:
        """File → bytes that are there already; None when the episode is published there, and whole.

        Raises DamagedError when what is published there is no copy of it: only this episode is refused.
        """

    def piece(self, episode_id: str, name: str, offset: int, data: bytes) -> None:
        """The next bytes of a file."""

    def commit(self, episode_id: str) -> list[str]:
        """Check and publish; the files that failed their checksum and must be sent again."""

    def keeps(self, episode_id: str) -> bool:
        """Whether that copy counts on no other, so that others may count on it."""


class Receiver:
    """The receiving end, on a store that is open for writing."""

    def __init__(self, store: EpisodeStore) -> None:
        self._store = store
        self._offers: dict[str, tuple[Path, Marker]] = {}

    def missing(self, episode_ids: list[str]) -> list[str]:
        """See Link."""
        for episode_id in episode_ids:
            _check_name(episode_id)
        return [name for name in episode_ids if not (self._store.root / "episodes" / name).is_dir()]

    def offer(self, episode_id: str, marker: bytes) -> dict[str, int] | None:
        """See Link. Raises DamagedError for a bad marker, when another episode has this id, or when the one
        that is there is no longer what was written."""
        _check_name(episode_id)
        published = self._store.root / "episodes" / episode_id
        folder = self._store.root / INCOMING / episode_id
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / MARKER_NAME).write_bytes(marker)
            offered = read_marker(folder)
            if offered.meta.id != episode_id or any(not _inside(name) for name in offered.files):
                raise DamagedError(f"the marker offered for {episode_id} names other files")
            if published.is_dir():
                shutil.rmtree(folder)
                there = read_marker(published)
                if there.content_digest() != offered.content_digest():
                    raise DamagedError(f"another episode {episode_id} is in {self._store.root}", "delete one")
                bad = [name for name, entry in there.files.items() if not _matches(published / name, *entry)]
                if bad:
                    raise DamagedError(
                        f"episode {episode_id} in {self._store.root} is damaged ({bad[0]})",
                        "move it out of the way there, then copy it again",
                    )
                return None
            sizes = {name: _size(folder / name, size) for name, (size, _) in offered.files.items()}
        except OSError as error:
            raise io_error(error, folder) from error
        self._offers[episode_id] = (folder, offered)
        return sizes

    def piece(self, episode_id: str, name: str, offset: int, data: bytes) -> None:
        """See Link."""
        folder, marker = self._offered(episode_id)
        if name not in marker.files or offset + len(data) > marker.files[name][0]:
            raise RecordingError(f"{name} at {offset} does not belong to episode {episode_id}")
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("r+b" if path.exists() else "wb") as file:
                file.seek(offset)
                file.write(data)
        except OSError as error:
            raise io_error(error, path) from error

    def commit(self, episode_id: str) -> list[str]:
        """See Link."""
        folder, marker = self._offered(episode_id)
        bad = [name for name, entry in marker.files.items() if not _matches(folder / name, *entry)]
        target = self._store.root / "episodes" / episode_id
        try:
            for name in bad:
                (folder / name).unlink(missing_ok=True)
            if bad:
                return bad
            self._store.files.sync_filesystem(folder)
            self._store.files.rename(folder, target)
            self._store.files.sync_path(target.parent)
        except OSError as error:
            raise io_error(error, target) from error
        self._store.catalogue.put(marker, durable=True)
        del self._offers[episode_id]
        return []

    def keeps(self, episode_id: str) -> bool:
        """See Link."""
        return self._store.catalogue.synced_at(episode_id) is None

    def _offered(self, episode_id: str) -> tuple[Path, Marker]:
        try:
            return self._offers[episode_id]
        except KeyError:
            raise RecordingError(f"episode {episode_id} was not offered") from None


@dataclass(slots=True)
class Copied:
    """``sent`` were copied now, ``there`` already were; bytes sent, and bytes a former copy had left.

    ``leaning`` are there, but count on another copy themselves (this one, perhaps): no copy to count on.
    ``damaged`` have no copy: what is wrong, here or there, with each. ``gone`` were deleted here meanwhile.
    """

    sent: list[str] = field(default_factory=list)
    there: list[str] = field(default_factory=list)
    leaning: list[str] = field(default_factory=list)
    damaged: dict[str, DamagedError] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    bytes: int = 0
    resumed_bytes: int = 0


def send(
    root: Path,
    ids: Iterable[str],
    link: Link,
    notes: Notes,
    progress: Callable[[int], None] = lambda _: None,
) -> Copied:
    """Copy the episodes ``ids`` of the store at ``root``; ``notes`` learns which copies may be counted on,
    and of all that it counted on, chosen or not, which are not there any more.

    ``progress`` is called with the bytes sent so far. Works beside a recorder that writes this store. What is
    damaged is skipped (see `Copied`). Raises what the link and the notes raise.
    """
    counted = notes.counted()
    for first in range(0, len(counted), _ASKED):
        for episode_id in link.missing(counted[first : first + _ASKED]):
            notes.lost(episode_id)
    copied = Copied()
    for episode_id in ids:
        folder = root / "episodes" / episode_id
        if not folder.is_dir() and notes.deleted(episode_id):
            copied.gone.append(episode_id)
            continue
        try:
            digest = _copy(folder, link, notes, copied, progress)
        except DamagedError as error:
            copied.damaged[episode_id] = error
            continue
        if link.keeps(episode_id):
            notes.good(episode_id, digest)
        else:
            copied.leaning.append(episode_id)
    return copied


def _copy(folder: Path, link: Link, notes: Notes, copied: Copied, progress: Callable[[int], None]) -> str:
    """Have a checked copy of one episode there; its content's digest. Raises DamagedError."""
    marker = read_marker(folder)
    try:
        there = link.offer(folder.name, _marker_bytes(folder))
    except DamagedError:
        notes.lost(folder.name)
        raise
    if there is None:
        copied.there.append(folder.name)
        return marker.content_digest()
    copied.resumed_bytes += sum(there.values())
    _send_files(folder, marker, there, link, copied, progress)
    if again := link.commit(folder.name):
        _send_files(folder, marker, dict.fromkeys(again, 0), link, copied, progress)
        if bad := link.commit(folder.name):
            raise DamagedError(
                f"{folder / bad[0]} is damaged (its copy fails its checksum)", "run verify on both stores"
            )
    copied.sent.append(folder.name)
    return marker.content_digest()


def _marker_bytes(folder: Path) -> bytes:
    try:
        return (folder / MARKER_NAME).read_bytes()
    except OSError as error:
        raise DamagedError(
            f"{folder / MARKER_NAME} cannot be read ({error.strerror})", "run verify"
        ) from error


def _send_files(
    folder: Path,
    marker: Marker,
    there: dict[str, int],
    link: Link,
    copied: Copied,
    progress: Callable[[int], None],
) -> None:
    for name, offset in there.items():
        size = marker.files[name][0]
        try:
            with (folder / name).open("rb") as file:
                file.seek(offset)
                while True:
                    data = file.read(min(PIECE_BYTES, size - offset))
                    if not data and (offset or size):
                        break
                    link.piece(folder.name, name, offset, data)
                    if not data:
                        break
                    offset += len(data)
                    copied.bytes += len(data)
                    progress(copied.bytes)
        except OSError as error:
            raise DamagedError(f"{folder / name} cannot be read ({error.strerror})", "run verify") from error


@contextmanager
def syncing(root: Path, source: bool = False) -> Iterator[bool]:
    """Hold the store at ``root`` against another copy from or to it; whether it can be told of copies.

    A ``source`` that cannot be written is only read: nobody can note in it that it counts on another copy, so
    there is nothing to hold. Raises StoreLockedError, RecordingError for any other store.
    """
    try:
        lock = WriterLock(root / "sync.lock", "copied from or to")
    except RecordingError:
        if not source:
            raise
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _check_name(episode_id: str) -> None:
    if not episode_id.replace("-", "").replace("_", "").isalnum():
        raise RecordingError(f"{episode_id!r} is no episode's id")


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and name != MARKER_NAME


def _size(path: Path, most: int) -> int:
    """Bytes of a partial copy; one that is too long starts anew."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return 0
    if size > most:
        path.unlink()
        return 0
    return size


def _matches(path: Path, size: int, digest: str) -> bool:
    try:
        if path.stat().st_size != size:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest
    except OSError:
        return False
