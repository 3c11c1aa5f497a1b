"""A budget for the disk: what may be deleted when the store is larger, and in which order.

Only episodes of which a checked copy exists elsewhere, and in which nothing was flagged and nobody took
over, the oldest first. Everything else stays, and when that alone exceeds the budget it is said.
"""

from __future__ import annotations

from dataclasses import dataclass

from episodes.store import EpisodeStore

_ROWS = """SELECT id, bytes, flagged OR interventions > 0 AS marked, synced IS NULL AS unsynced
           FROM episodes ORDER BY started_wall, id"""


@dataclass(frozen=True, slots=True)
class Retention:
    """What was (or would be) deleted: bytes of the store before and after, and of what must stay.

    ``flagged_bytes`` and ``unsynced_bytes`` may overlap. ``over`` is how far the store is beyond its budget
    even so.
    """

    deleted: tuple[str, ...]
    before: int
    after: int
    budget: int
    flagged_bytes: int
    unsynced_bytes: int

    @property
    def over(self) -> int:
        """Bytes beyond the budget that may not be deleted; 0 when the store fits."""
        return max(0, self.after - self.budget)


def prune(store: EpisodeStore, budget_bytes: int, dry_run: bool = False) -> Retention:
    """Delete the oldest unflagged, synced episodes until the store fits into ``budget_bytes``.

    Running episodes count with their journals and are never touched. A copy that the catalogue does not
    know of does not count. Raises StoreError.
    """
    rows = [
        (str(i), int(size or 0), bool(marked), bool(unsynced))
        for i, size, marked, unsynced in store.catalogue.select(_ROWS)
    ]
    running = sum(p.stat().st_size for p in (store.root / "journals").iterdir() if p.is_file())
    before = after = running + sum(size for _, size, _, _ in rows)
    active = store.active()
    deleted = []
    for episode_id, size, marked, unsynced in rows:
        if after <= budget_bytes:
            break
        if marked or unsynced or episode_id in active:
            continue
        if not dry_run:
            store.delete(episode_id)
        deleted.append(episode_id)
        after -= size
    return Retention(
        tuple(deleted),
        before,
        after,
        budget_bytes,
        sum(size for _, size, marked, _ in rows if marked),
        sum(size for _, size, _, unsynced in rows if unsynced),
    )
