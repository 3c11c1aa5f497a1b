"""Journals of this process that could not be published, most likely because the disk was full.

They are published as soon as there is room: somebody calls ``publish`` now and then, never the control
loop. Each is tried only when its bytes fit beside it, so that a full disk is not written full again.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Iterable

from episodes.errors import StoreError
from episodes.files import io_error
from episodes.recovery import JOURNAL_SUFFIX, Host, RecoveryReport, recover_journal

log = logging.getLogger(__name__)

CUT_SHORT = "the disk ended the recording"
_SPARE_BYTES = 1 << 20  # beside the journal's size: indices, marker, catalogue


class Leftovers:
    """Thread-safe; ``publish`` runs in one thread at a time."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._ids: set[str] = set()
        self._lock = threading.Lock()
        self._publishing = threading.Lock()
        self._closed = False
        self.busy: str | None = None

    def add(self, episode_ids: Iterable[str]) -> None:
        """Their journals stay, for later."""
        with self._lock:
            self._ids.update(episode_ids)

    def drop(self, episode_id: str) -> None:
        """Thrown away at somebody's word."""
        with self._lock:
            self._ids.discard(episode_id)

    def publish(self, most: int = 1) -> RecoveryReport:
        """Publish up to ``most`` of them, oldest first; what fails is tried again. Raises RecordingError."""
        report = RecoveryReport()
        with self._publishing, self._lock:
            waiting = [] if self._closed else sorted(self._ids)
        for episode_id in waiting:
            if len(report.recovered) + len(report.completed) >= most:
                break
            with self._publishing:
                if self._closed or not self._room(episode_id):
                    break
                self._one(episode_id, report)
        return report

    def close(self) -> None:
        """Wait for the one that is being published; none after it."""
        with self._publishing:
            self._closed = True

    def _room(self, episode_id: str) -> bool:
        root = self._host.root
        path = root / "journals" / (episode_id + JOURNAL_SUFFIX)
        try:
            size = path.stat().st_size if path.exists() else 0
            return shutil.disk_usage(root).free >= size + _SPARE_BYTES
        except OSError as error:
            raise io_error(error, path) from error

    def _one(self, episode_id: str, report: RecoveryReport) -> None:
        path = self._host.root / "journals" / (episode_id + JOURNAL_SUFFIX)
        self.busy = episode_id
        try:
            if path.exists():
                recover_journal(self._host, path, report, CUT_SHORT)
        except OSError as error:
            failed: StoreError = io_error(error, path)
            report.failed[episode_id] = failed
        finally:
            self.busy = None
        if episode_id in report.failed:
            return
        self.drop(episode_id)
        log.info("episode.published_late id=%s", episode_id)
