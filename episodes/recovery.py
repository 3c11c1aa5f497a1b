"""Putting a store in order after a crash, at every open for writing.

In this order: half-written groups go; episodes without a trustworthy catalogue row are checked
by checksum and catalogued again; journals of episodes that were running are published with what
had been committed. Nothing that cannot be used is deleted: it moves to ``damaged/``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from episodes.catalogue import Catalogue
from episodes.draft import Draft, Scanned, read_journal
from episodes.errors import DamagedError, StoreError
from episodes.files import FileLayer, io_error
from episodes.marker import Marker, read_marker
from episodes.publish import PARTIAL
from episodes.verify import verify_episode

log = logging.getLogger(__name__)

RECOVERED_REASON = "recovered after a crash"
JOURNAL_SUFFIX = ".journal"


@dataclass(slots=True)
class RecoveryReport:
    """What was done. ``recovered`` were interrupted, ``completed`` had ended but were not published,
    ``recatalogued`` had no catalogue row, ``damaged`` were set aside, ``missing`` have a row but no
    folder, ``failed`` could not be published now (journal kept; id → error). ``unreadable`` are journals
    without a readable beginning (set aside), ``empty`` those of episodes that held nothing yet (gone)."""

    recovered: list[str] = field(default_factory=list)
    completed: list[str] = field(default_factory=list)
    recatalogued: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    failed: dict[str, StoreError] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    partial_removed: int = 0

    def __bool__(self) -> bool:
        return any(getattr(self, name) for name in self.__slots__)


class Host(Protocol):
    """What recovery needs of the store."""

    root: Path
    files: FileLayer

    @property
    def catalogue(self) -> Catalogue: ...

    def active(self) -> set[str]:
        """Episodes being written by this process: hands off."""

    def publish_draft(self, draft: Draft, journal: Path) -> Marker:
        """Publish and add the catalogue row; the journal stays."""

    def sync_files(self) -> None:
        """Returns when every file of the store is on the disk."""


def recover(host: Host) -> RecoveryReport:
    """Bring the store in order. Raises StoreError only when the catalogue itself fails."""
    report = RecoveryReport()
    active = host.active()
    _remove_partial(host, active, report)
    _recatalogue(host, active, report)
    for path in sorted((host.root / "journals").glob(f"*{JOURNAL_SUFFIX}")):
        if path.stem not in active:
            recover_journal(host, path, report)
    if report:
        log.warning("store.recovered path=%s report=%s", host.root, report)
    return report


def _remove_partial(host: Host, active: set[str], report: RecoveryReport) -> None:
    for path in (host.root / "episodes").glob(f"*{PARTIAL}"):
        if path.name.removesuffix(PARTIAL) not in active:
            host.files.remove_tree(path)
            report.partial_removed += 1


def _recatalogue(host: Host, active: set[str], report: RecoveryReport) -> None:
    """Rows that are missing, or written before their files were known to be on the disk."""
    rows = host.catalogue.ids()
    found = {p.name for p in (host.root / "episodes").iterdir() if p.is_dir()}
    sound = []
    for episode_id in sorted(found - active):
        _, durable = rows.get(episode_id, ("", False))
        if durable or episode_id.endswith(PARTIAL):
            continue
        folder = host.root / "episodes" / episode_id
        if (marker := _sound(host, folder, report)) is not None:
            sound.append(marker)
    if sound:
        host.sync_files()
    for marker in sound:
        host.catalogue.put(marker, durable=True)
        if marker.meta.id not in rows:
            report.recatalogued.append(marker.meta.id)
    report.missing += sorted(rows.keys() - found)


def _sound(host: Host, folder: Path, report: RecoveryReport) -> Marker | None:
    """The marker of an episode that is all there; one that is not is rejected."""
    problems, _, _ = verify_episode(folder, deep=True)
    if not problems:
        return read_marker(folder)
    _reject(host, folder, report)
    return None


def _reject(host: Host, folder: Path, report: RecoveryReport) -> None:
    """An episode that fails its checksums and was never promised."""
    host.catalogue.remove(folder.name)
    if (host.root / "journals" / (folder.name + JOURNAL_SUFFIX)).exists():
        host.files.remove_tree(folder)  # the journal still has it
        return
    set_aside(host.root, folder, host.files)
    report.damaged.append(folder.name)


def recover_journal(host: Host, path: Path, report: RecoveryReport, reason: str = RECOVERED_REASON) -> None:
    """Publish what a journal holds; ``reason`` is the episode's when it had not ended.

    An episode that got its name, but not its place in the catalogue, is checked and gets that. The journal
    goes when the episode, its name and its row are on the disk.
    """
    episode_id = path.stem
    _, promised = host.catalogue.ids().get(episode_id, ("", False))
    if promised and (host.root / "episodes" / episode_id).is_dir():
        host.files.unlink(path)
        return
    try:
        if _finish(host, episode_id, report):
            host.files.unlink(path)
            report.completed.append(episode_id)
            return
        scanned = read_journal(path)
        if scanned.draft is None and path.stat().st_size:
            log.error("journal.unreadable path=%s", path)
            set_aside(host.root, path, host.files)
            report.unreadable.append(episode_id)
            return
        draft = _usable(scanned, path, episode_id, reason)
        if draft is None:
            host.files.unlink(path)
            report.empty.append(episode_id)
            return
        host.publish_draft(draft, path)
    except DamagedError as error:
        log.error("journal.damaged path=%s error=%s", path, error)
        set_aside(host.root, path, host.files)
        report.damaged.append(episode_id)
    except StoreError as error:
        log.error("journal.not_published path=%s error=%s", path, error)
        report.failed[episode_id] = error
    else:
        (report.recovered if draft.recovered else report.completed).append(episode_id)
        if scanned.end.damaged:
            set_aside(host.root, path, host.files)
        else:
            host.files.unlink(path)


def _finish(host: Host, episode_id: str, report: RecoveryReport) -> bool:
    """Whether the episode's folder was all there: then its files, its name and its row are on the disk.

    The disk failed after the folder got its name. Raises StoreError when it does so again.
    """
    folder = host.root / "episodes" / episode_id
    if not folder.is_dir() or (marker := _sound(host, folder, report)) is None:
        return False
    host.sync_files()
    try:
        host.files.sync_path(folder.parent)
    except OSError as error:
        raise io_error(error, folder.parent) from error
    host.catalogue.put(marker, durable=True)
    return True


def _usable(scanned: Scanned, path: Path, episode_id: str, reason: str) -> Draft | None:
    """The draft to publish; None when nothing had been committed. Raises DamagedError."""
    draft, end = scanned.draft, scanned.end
    if draft is None:
        return None
    if draft.episode_id != episode_id:
        raise DamagedError(f"journal {path} belongs to episode {draft.episode_id}")
    if draft.ended:
        return draft
    if draft.is_empty() and not end.damaged:
        return None
    draft.recovered = True
    draft.outcome = "unknown"
    draft.reason = reason
    if end.damaged:
        draft.reason += f"; its journal was damaged, {end.torn_bytes} bytes could not be read"
    return draft


def set_aside(root: Path, path: Path, files: FileLayer) -> None:
    """Move a file or folder into ``damaged/`` under a name that is free there."""
    folder = root / "damaged"
    files.mkdir(folder, exist_ok=True)
    target = folder / path.name
    number = 1
    while target.exists():
        target = folder / f"{path.name}.{number}"
        number += 1
    files.rename(path, target)
