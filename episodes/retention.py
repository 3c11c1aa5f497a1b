"""A budget for the disk: what may be deleted when the store is larger, and in which order.

Only episodes of which a checked copy exists elsewhere, and in which nothing was flagged and nobody took
over, the oldest first. Everything else stays, and when that alone exceeds the budget it is said.
"""

from __future__ import annotations

import logging
import stat
from dataclasses import dataclass
from pathlib import Path

from episodes.errors import RecordingError
from episodes.publish import PARTIAL
from episodes.store import EpisodeStore

log = logging.getLogger(__name__)

_ROWS = """SELECT id, bytes, flagged OR interventions > 0 AS marked, synced IS NULL AS unsynced
           FROM episodes ORDER BY started_wall, id"""
_ASIDE = ("damaged", "incoming")


@dataclass(frozen=True, slots=True)
class Retention:
    """What was (or would be) deleted: bytes of the store before and after, and of what must stay.

    ``failed`` are episodes that the disk would not let go of. ``flagged_bytes`` and ``unsynced_bytes`` may
    overlap; ``aside_bytes`` lie in ``damaged/`` and ``incoming/``, which nothing here deletes. ``over`` is
    how far the store is beyond its budget even so.
    """

    deleted: tuple[str, ...]
    failed: tuple[str, ...]
    before: int
    after: int
    budget: int
    flagged_bytes: int
    unsynced_bytes: int
    aside_bytes: int

    @property
    def over(self) -> int:
        """Bytes beyond the budget that may not, or could not, be deleted; 0 when the store fits."""
        return max(0, self.after - self.budget)


def prune(store: EpisodeStore, budget_bytes: int, dry_run: bool = False) -> Retention:
    """Delete the oldest unflagged, synced episodes until the store fits into ``budget_bytes``.

    Everything below the store's folder counts: running episodes with their journals, what recovery set aside,
    copies on their way here, and what is left of an episode that could not be deleted completely. Running
    episodes are never touched. A copy that the catalogue does not know of does not count. Raises StoreError.
    """
    rows = [
        (str(i), int(size or 0), bool(marked), bool(unsynced))
        for i, size, marked, unsynced in store.catalogue.select(_ROWS)
    ]
    episodes = store.root / "episodes"
    aside = sum(_bytes(store.root / name) for name in _ASIDE)
    unfinished = _bytes(store.root / "journals") + sum(_bytes(p) for p in episodes.glob(f"*{PARTIAL}"))
    before = after = aside + unfinished + sum(size for _, size, _, _ in rows)
    active = store.active()
    deleted, failed = [], []
    for episode_id, size, marked, unsynced in rows:
        if after <= budget_bytes:
            break
        if marked or unsynced or episode_id in active:
            continue
        if dry_run:
            deleted.append(episode_id)
            after -= size
            continue
        if store.catalogue.synced_at(episode_id) is None:
            continue  # its copy has been found damaged since the rows were read
        try:
            store.delete(episode_id)
            deleted.append(episode_id)
        except RecordingError as error:
            log.error("store.not_deleted id=%s error=%s", episode_id, error)
            failed.append(episode_id)
        after -= size - _left(episodes, episode_id, size)
    return Retention(
        tuple(deleted),
        tuple(failed),
        before,
        after,
        budget_bytes,
        sum(size for _, size, marked, _ in rows if marked),
        sum(size for _, size, _, unsynced in rows if unsynced),
        aside,
    )


def _left(episodes: Path, episode_id: str, most: int) -> int:
    """Bytes that are still there of an episode that was to be deleted."""
    return min(most, _bytes(episodes / episode_id) + _bytes(episodes / (episode_id + PARTIAL)))


def _bytes(folder: Path) -> int:
    """Size of all files below ``folder``; 0 where there is none. Files may come and go meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        if stat.S_ISREG(status.st_mode):
            total += status.st_size
    return total
