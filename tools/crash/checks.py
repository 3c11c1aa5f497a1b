"""What must hold of a store after a crash, and how much of the running episode was lost."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from episodes.errors import StoreError
from episodes.files import FileLayer
from episodes.recovery import RECOVERED_REASON
from episodes.store import EpisodeStore
from tools.crash.recording import SPEC, value

LOSS_LIMIT_S = 1.0


class Unsynced(FileLayer):
    """The file layer without its syncs: for opening copies that nobody needs to survive anything."""

    def datasync(self, fd: int) -> None:
        """Nothing."""

    def sync_path(self, path: Path) -> None:
        """Nothing."""

    def sync_filesystem(self, path: Path) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class Expected:
    """An episode at the moment of the crash: ``promised`` by the store as published, or still running.

    ``ticks`` were handed in; ``started_ns`` and ``crash_ns`` are monotonic.
    """

    id: str
    started_ns: int
    ticks: int
    promised: bool
    crash_ns: int


@dataclass(slots=True)
class Tallied:
    """Sums over all crashes; ``problems`` names everything that should not have been."""

    crashes: int = 0
    opened: int = 0
    published: int = 0
    published_lost: int = 0
    recovered: int = 0
    recovered_h264: int = 0
    frames_lost_max: int = 0
    seconds_lost_max: float = 0.0
    problems: list[str] = field(default_factory=list)

    def note(self, problem: str) -> None:
        """Keep the first few in words."""
        if len(self.problems) < 20:
            self.problems.append(problem)


def check(root: Path, expected: list[Expected], total: Tallied, files: FileLayer, label: str) -> None:
    """Open the store as the next start would, verify every byte, compare with what was handed in."""
    try:
        store = EpisodeStore.open(root, files=files)
    except StoreError as error:
        total.note(f"{label}: does not open: {error}")
        return
    with store:
        total.opened += 1
        ids = set(store.ids())
        bad = {damage.episode_id for damage in store.verify().damages}
        if store.recovery.damaged:
            total.note(f"{label}: set aside {store.recovery.damaged}")
        for episode in expected:
            sound = episode.id in ids and episode.id not in bad
            if episode.promised:
                total.published += 1
                if not sound or not _whole(store, episode):
                    total.published_lost += 1
                    total.note(f"{label}: published {episode.id} is lost")
                continue
            kept, newest_ns = _kept(store, episode, total, label) if sound else (0, episode.started_ns)
            lost = (episode.ticks - kept) * len(SPEC.cameras)
            total.frames_lost_max = max(total.frames_lost_max, lost)
            if kept < episode.ticks:  # else nothing was lost, however long ago it ended
                lost_s = (episode.crash_ns - newest_ns) / 1e9
                total.seconds_lost_max = max(total.seconds_lost_max, lost_s)
                if lost_s > LOSS_LIMIT_S:
                    total.note(
                        f"{label}: {lost_s:.2f} s of {episode.id} are lost, {kept}/{episode.ticks} kept"
                    )
        if bad:
            total.note(f"{label}: {sorted(bad)} do not verify")


def _whole(store: EpisodeStore, expected: Expected) -> bool:
    episode = store.read(expected.id)
    rows = len(episode.streams["action"])
    return rows == expected.ticks and len(episode.frames("wrist")) == rows and not episode.meta.recovered


def _kept(store: EpisodeStore, expected: Expected, total: Tallied, label: str) -> tuple[int, int]:
    """Ticks of an unfinished episode that are there, and the newest's time; values and mark are checked."""
    episode = store.read(expected.id)
    data = episode.streams["action"]
    wanted = np.reshape([value(t) for t in range(len(data))], (-1, 6))
    if not np.array_equal(data.values, wanted) or not np.array_equal(data.seq, np.arange(len(data))):
        total.note(f"{label}: {expected.id} holds other values than were recorded")
    frames = [episode.frames(camera) for camera in episode.cameras]
    for sequence in frames:
        sequence.jpegs()  # every checksum
    meta = episode.meta
    if meta.recovered:
        total.recovered += 1
        total.recovered_h264 += any(camera.codec == "h264" for camera in meta.cameras.values())
        if meta.outcome != "unknown" or meta.reason != RECOVERED_REASON:
            total.note(f"{label}: {expected.id} is not marked as recovered")
    elif len(data) != expected.ticks:
        total.note(f"{label}: {expected.id} lacks ticks and is not marked")
    kept = min(len(data), *(len(sequence) for sequence in frames))
    return kept, int(data.t_ns[kept - 1]) if kept else expected.started_ns
