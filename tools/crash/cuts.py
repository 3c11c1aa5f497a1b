"""One session recorded with its file operations, then replayed up to every point and cut there."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from episodes.store import EpisodeStore
from tools.crash.checks import Expected, Tallied, Unsynced, check
from tools.crash.disk import Disk
from tools.crash.oplog import LoggingLayer, Operation
from tools.crash.recording import RATE_HZ, SPEC, record_one

_EPISODES_S = (0.4, 1.2, 0.7)


@dataclass(slots=True)
class _Story:
    """When each tick of an episode was handed in, and when the store said that it was published."""

    id: str
    started_ns: int
    ticks_ns: list[int]
    published_ns: int = 0
    deleted_ns: int = 0

    def handed(self, ticks: int) -> None:
        """One more tick was handed in."""
        self.ticks_ns.append(time.monotonic_ns())


def run_cuts(
    folder: Path,
    cuts: int,
    seed: int,
    progress: Callable[[int], None],
    layer: type[LoggingLayer] = LoggingLayer,
) -> Tallied:
    """Record, then cut ``cuts`` times: as often as possible at every operation, the rest at random ones."""
    log = layer(folder / "store")
    stories = _record(folder / "store", log)
    operations = log.operations
    rng = random.Random(seed)
    everywhere, rest = divmod(cuts, len(operations))
    points = sorted([*range(len(operations))] * everywhere + rng.sample(range(len(operations)), rest))
    total = Tallied()
    disk, done = Disk(), 0
    for number, point in enumerate(points):
        for operation in operations[done:point]:
            disk.apply(operation)
        done = point
        _cut(folder / "cut", disk, operations[point], stories, rng, total)
        progress(number + 1)
    return total


def _record(root: Path, layer: LoggingLayer) -> list[_Story]:
    """Some episodes in real time; the second begins while the first is being published, one is deleted."""
    stories: list[_Story] = []
    with EpisodeStore.open(root, files=layer) as store:
        refs = []
        for seconds in _EPISODES_S:
            writer = store.begin(SPEC)
            story = _Story(writer.id, time.monotonic_ns(), [])
            stories.append(story)
            record_one(writer, round(seconds * RATE_HZ), story.handed)
            refs.append((story, writer.end("success", "done")))
        for story, ref in refs:
            ref.wait(60)
            story.published_ns = time.monotonic_ns()
        first = stories[0]
        first.deleted_ns = time.monotonic_ns()
        store.delete(first.id)
    return stories


def _cut(
    target: Path,
    disk: Disk,
    during: Operation,
    stories: list[_Story],
    rng: random.Random,
    total: Tallied,
) -> None:
    shutil.rmtree(target, ignore_errors=True)
    disk.cut(target, rng, during)
    total.crashes += 1
    expected = []
    for story in stories:
        if story.started_ns > during.begun_ns or (story.deleted_ns and during.begun_ns >= story.deleted_ns):
            continue
        ticks = sum(at <= during.begun_ns for at in story.ticks_ns)
        promised = bool(story.published_ns) and during.begun_ns >= story.published_ns
        expected.append(Expected(story.id, story.started_ns, ticks, promised, during.begun_ns))
    root = target / "store"
    root.mkdir(exist_ok=True)  # the very first cut may leave nothing at all
    check(root, expected, total, Unsynced(), f"cut during {during.kind} {during.path}")
    shutil.rmtree(target, ignore_errors=True)
