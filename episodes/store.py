"""The episode store: a folder of immutable Zarr groups, a catalogue, and the journals of running episodes.

::

    store/
      store.json          format and version
      lock                held by the one writer (its pid)
      catalogue.sqlite    index; can be rebuilt
      journals/<id>.journal
      episodes/<id>/      zarr.json, one folder per array, episode.json (commit marker)
      damaged/            what recovery could not use
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from episodes.catalogue import Catalogue
from episodes.draft import Draft
from episodes.errors import RecordingError, StoreError, StoreFormatError
from episodes.files import FileLayer, io_error
from episodes.journal import JournalWriter
from episodes.leftovers import Leftovers
from episodes.lock import WriterLock
from episodes.marker import Marker, read_marker
from episodes.publish import PARTIAL, publish
from episodes.reader import Episode
from episodes.recovery import JOURNAL_SUFFIX, RecoveryReport, recover, set_aside
from episodes.spec import EpisodeMeta, EpisodeSpec, json_copy, wall_label
from episodes.verify import VerifyReport, verify_store
from episodes.writer import EpisodeWriter, WriterConfig

log = logging.getLogger(__name__)

FORMAT_NAME = "ratchet-episodes"
FORMAT_VERSION = 1
Mode = Literal["w", "r"]
Durability = Literal["fsync", "group"]


class EpisodeStore:
    """One writer, any number of readers. Made by ``EpisodeStore.open``; close it, or use ``with``."""

    def __init__(self, root: Path, mode: Mode, durability: Durability, files: FileLayer) -> None:
        self.root = root
        self.mode = mode
        self.durability = durability
        self.recovery = RecoveryReport()
        self.files = files
        self._lock = WriterLock(root / "lock") if mode == "w" else None
        self._writers: dict[str, EpisodeWriter] = {}
        self._writers_lock = threading.Lock()
        self._unsynced: list[str] = []
        self._left = Leftovers(self)
        self._closed = False
        try:
            self.catalogue = self._open_catalogue()
            if mode == "w":
                self.recovery = recover(self)
                self._left.add(self.recovery.failed)
        except BaseException:
            if self._lock is not None:
                self._lock.release()
            raise

    @classmethod
    def open(
        cls,
        path: Path | str,
        create: bool = True,
        mode: Mode = "w",
        durability: Durability = "fsync",
        files: FileLayer | None = None,
    ) -> EpisodeStore:
        """Open the store in folder ``path``.

        ``mode`` "w" takes the writer lock and recovers what a crash left (see ``recovery``); "r" reads
        beside a live writer. ``durability`` "fsync": an episode is on the disk when ``ref.wait()``
        returns. "group": published episodes are visible and survive the death of the process at once,
        but are promised against power loss only after ``sync()`` or ``close()`` — for bulk recording.

        Raises StoreLockedError, StoreFormatError, RecordingError.
        """
        root = Path(path)
        layer = files or FileLayer()
        if mode == "w" and create and not (root / "store.json").exists():
            _create(root, layer)
        _check_format(root)
        return cls(root, mode, durability, layer)

    def _open_catalogue(self) -> Catalogue:
        path = self.root / "catalogue.sqlite"
        if self.mode == "r":
            return Catalogue(path, readonly=True)
        full = self.durability == "fsync"
        try:
            catalogue = Catalogue(path, full_sync=full)
            if (problem := catalogue.check()) is None:
                return catalogue
            catalogue.close()
        except StoreFormatError as error:
            problem = str(error)
        log.error("catalogue.rebuilt path=%s problem=%s", path, problem)
        set_aside(self.root, path, self.files)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        return Catalogue(path, full_sync=full)

    # ---- writing ----------------------------------------------------------------------------

    def begin(
        self,
        spec: EpisodeSpec,
        *,
        episode_id: str | None = None,
        started_ns: int | None = None,
        config: WriterConfig | None = None,
    ) -> EpisodeWriter:
        """Start recording an episode. Several may run at once.

        ``started_ns`` is the recorder's monotonic time (default: this machine's); ``episode_id`` is made
        up from the wall time unless given. Raises RecordingError, DiskFullError.
        """
        self._writable()
        name = episode_id or f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"
        started = time.monotonic_ns() if started_ns is None else started_ns
        provenance = json_copy(spec.provenance, f"the provenance of episode {name}")
        spec = spec.model_copy(update={"provenance": provenance})
        path = self.root / "journals" / (name + JOURNAL_SUFFIX)
        with self._writers_lock:
            if name in self._writers or (self.root / "episodes" / name).exists():
                raise RecordingError(f"episode {name} exists", "choose another id")
            try:
                journal = JournalWriter(path, self.files, durable=self.durability == "fsync")
            except OSError as error:
                raise io_error(error, path) from error
            draft = Draft(name, spec, wall_label(), started)
            writer = EpisodeWriter(draft, journal, self, self.files, config or WriterConfig())
            self._writers[name] = writer
        writer.start()
        return writer

    def publish(self, draft: Draft, journal: JournalWriter) -> EpisodeMeta:
        """Called by a writer's thread at the end of its episode."""
        marker = self.publish_draft(draft, journal.path)
        journal.close()
        self.files.unlink(journal.path)
        return marker.meta

    def publish_draft(self, draft: Draft, journal: Path) -> Marker:
        """Publish what ``draft`` holds and add its catalogue row. Raises StoreError, the journal kept."""
        durable = self.durability == "fsync"
        kept = f"; episode {draft.episode_id} is kept in {journal} and published when there is room"
        try:
            marker = publish(draft, journal, self.root / "episodes", self.files, durable)
            self.catalogue.put(marker, durable)
        except OSError as error:
            raise io_error(error, self.root / "episodes" / draft.episode_id, kept) from error
        except StoreError as error:
            raise type(error)(error.what + kept, error.remedy) from error
        if not durable:
            with self._writers_lock:
                self._unsynced.append(draft.episode_id)
        return marker

    def forget(self, episode_id: str, left: bool = False) -> None:
        """Called by a writer when it is done with an episode; with ``left`` its journal waits for room."""
        if left:
            self._left.add([episode_id])
        else:
            self._left.drop(episode_id)
        with self._writers_lock:
            self._writers.pop(episode_id, None)

    def publish_left(self) -> RecoveryReport:
        """Publish one journal that the disk refused before, if there is room now; see ``Leftovers``.

        To be called now and then beside a running robot; it waits for the disk. Raises RecordingError.
        """
        return self._left.publish()

    def active(self) -> set[str]:
        """Ids of the episodes being recorded or published by this process."""
        with self._writers_lock:
            return set(self._writers) | ({self._left.busy} if self._left.busy else set())

    def sync_files(self) -> None:
        """Returns when every file of the store is on the disk. Raises RecordingError."""
        try:
            self.files.sync_filesystem(self.root)
        except OSError as error:
            raise io_error(error, self.root) from error

    def sync(self) -> None:
        """Returns when every published episode is on the disk. Raises RecordingError."""
        self._writable()
        with self._writers_lock:
            ids, self._unsynced = self._unsynced, []
        if not ids:
            return
        try:
            self.sync_files()
        except StoreError:
            with self._writers_lock:
                self._unsynced += ids
            raise
        self.catalogue.mark_durable(ids)

    def recover(self) -> RecoveryReport:
        """Once more what opening did: publish journals that are nobody's (after a full disk, say)."""
        self._writable()
        return recover(self)

    def delete(self, episode_id: str) -> None:
        """Remove a published episode for good: its row, its name, then its files.

        A crash in between leaves all of it or nothing. Raises RecordingError when the disk refuses: the
        episode is still there then, or its remains are named.
        """
        self._writable()
        folder = self.root / "episodes" / episode_id
        gone = folder.with_name(episode_id + PARTIAL)
        self.catalogue.remove(episode_id)
        try:
            if folder.is_dir():
                self.files.rename(folder, gone)
        except OSError as error:
            self.catalogue.put(read_marker(folder), durable=True)
            raise io_error(error, folder) from error
        self.files.remove_tree(gone)
        if gone.exists():
            raise RecordingError(f"{gone} cannot be removed completely", "check the disk and its permissions")

    def close(self) -> None:
        """Finish every running episode (outcome unknown), publish, sync, release the lock. Safe twice."""
        if self._closed:
            return
        self._left.close()
        try:
            with self._writers_lock:
                running = list(self._writers.values())
            for writer in running:
                writer.stop("the store was closed before the episode ended")
            if self.mode == "w":
                self.sync()
        finally:
            self._closed = True
            self.catalogue.close()
            if self._lock is not None:
                self._lock.release()

    def _writable(self) -> None:
        if self._closed:
            raise StoreError(f"store {self.root} is closed", "open it again")
        if self.mode != "w":
            raise StoreError(f"store {self.root} was opened for reading only", "open it for writing")

    # ---- reading ----------------------------------------------------------------------------

    def read(self, episode_id: str) -> Episode:
        """A published episode. Raises UnknownEpisodeError, DamagedError."""
        return Episode(self.root / "episodes" / episode_id)

    def ids(self) -> list[str]:
        """Ids of all published episodes, oldest first."""
        return list(self.catalogue.ids())

    def query(self, sql: str, timeout_s: float | None = None) -> list[dict[str, Any]]:
        """DuckDB SQL over the tables episodes, flags, interventions; see `episodes.query`."""
        from episodes.query import TIMEOUT_S, query  # duckdb is only loaded by those who ask

        return query(self.catalogue, sql, TIMEOUT_S if timeout_s is None else timeout_s)

    def select(self, where: str) -> list[str]:
        """Ids of the episodes for which the SQL condition ``where`` holds, oldest first; or a whole SELECT.

        See `episodes.selection.select`. Raises QueryError.
        """
        from episodes.selection import select  # as above

        return select(self.catalogue, where)

    def verify(self, deep: bool = True) -> VerifyReport:
        """Check every published episode: ``deep`` reads and checksums every byte."""
        return verify_store(self.root, self.catalogue, deep)

    def __enter__(self) -> EpisodeStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _create(root: Path, files: FileLayer) -> None:
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        files.mkdir(root, exist_ok=True)
        found = {p.name for p in root.iterdir()}
        begun = {name for name in found if name.startswith("store.json.")}  # power went while it was made
        if found - begun - {"lock", "journals", "episodes"}:
            raise StoreFormatError(f"{root} is not empty and not an episode store", "choose an empty folder")
        for name in ("journals", "episodes"):
            files.mkdir(root / name, exist_ok=True)
        text = json.dumps({"format": FORMAT_NAME, "version": FORMAT_VERSION, "created": wall_label()})
        for name in begun:
            files.unlink(root / name)
        temporary = root / f"store.json.{secrets.token_hex(4)}"
        files.write_file(temporary, (text.encode(),))
        files.sync_path(temporary)
        files.rename(temporary, root / "store.json")
        files.sync_path(root)
        files.sync_path(root.parent)
    except OSError as error:
        raise io_error(error, root) from error


def _check_format(root: Path) -> None:
    path = root / "store.json"
    try:
        described = json.loads(path.read_bytes())
        name, version = described["format"], described["version"]
    except FileNotFoundError:
        raise StoreFormatError(f"no episode store in {root}", "check the path") from None
    except OSError as error:
        raise StoreFormatError(f"cannot read {path} ({error.strerror})", "check its permissions") from error
    except (ValueError, KeyError, TypeError) as error:
        raise StoreFormatError(f"{path} is not readable", "restore it from another store") from error
    if not isinstance(name, str) or type(version) is not int:
        raise StoreFormatError(
            f"{path} is not readable (its format must be a text, its version a whole number)",
            "restore it from another store",
        )
    if name != FORMAT_NAME or version != FORMAT_VERSION:
        raise StoreFormatError(
            f"store {root} has format {name} {version}, this program reads {FORMAT_NAME} {FORMAT_VERSION}",
            "update ratchet",
        )
