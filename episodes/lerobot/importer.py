"""Import of LeRobot datasets into an episode store.

Each source episode becomes one episode of kind "import": numeric features are streams, videos and
images are cameras, the original timestamps are kept, names come from info.json. An import can be
interrupted and run again: episodes whose source digest is in the catalogue are skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from episodes.errors import ImportRefusedError
from episodes.lerobot.check import total_notes
from episodes.lerobot.job import Job
from episodes.lerobot.layout import Dataset, SourceEpisode
from episodes.ref import EpisodeRef
from episodes.spec import Outcome
from episodes.store import EpisodeStore


@dataclass(frozen=True, slots=True)
class ImportProgress:
    """Where an import stands: ``done`` of ``total`` episodes, ``frames`` pictures so far."""

    done: int
    total: int
    frames: int


@dataclass(slots=True)
class ImportReport:
    """What an import did. ``imported`` maps source episode → episode id; ``skipped`` were there already;
    ``notes`` maps source episode → what is odd about it or was left out; ``warnings`` concern the dataset."""

    imported: dict[int, str] = field(default_factory=dict)
    skipped: list[int] = field(default_factory=list)
    notes: dict[int, list[str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    frames: int = 0


def import_lerobot(
    source: Path | str,
    store: EpisodeStore,
    *,
    episodes: Iterable[int] | None = None,
    image_size: tuple[int, int] | None = None,
    allow_missing_video: bool = False,
    outcome: Outcome | None = None,
    progress: Callable[[ImportProgress], None] | None = None,
) -> ImportReport:
    """Import the LeRobot dataset (v2.1 or v3.0) in folder ``source``.

    ``episodes``: indices to take (default all). ``image_size`` = (height, width): store pictures at this
    size. ``allow_missing_video``: leave out cameras whose file is missing instead of refusing.
    ``outcome``: instead of the one in a set that Ratchet exported; LeRobot does not record one ("unknown").

    Raises ImportRefusedError naming the file before anything is recorded when files are missing, and
    in the middle when one turns out broken; episodes imported until then are kept.
    """
    dataset = Dataset(source)
    report = ImportReport(warnings=total_notes(dataset))
    chosen = _choose(dataset, episodes)
    if not allow_missing_video:
        _refuse_missing(dataset, chosen)
    known = _known_sources(store)
    pending: EpisodeRef | None = None
    try:
        for done, item in enumerate(chosen):
            if progress is not None:
                progress(ImportProgress(done, len(chosen), report.frames))
            job = Job(dataset, item, image_size, outcome)
            if job.digest in known:
                report.skipped.append(item.index)
                continue
            ref = job.record(store)
            report.imported[item.index] = ref.id
            report.frames += job.frames
            if job.notes:
                report.notes[item.index] = job.notes
            known.add(job.digest)
            if pending is not None:  # one episode is published while the next one is decoded
                pending.wait()
            pending = ref
    finally:
        if pending is not None:
            pending.wait()
    if progress is not None:
        progress(ImportProgress(len(chosen), len(chosen), report.frames))
    return report


def _choose(dataset: Dataset, episodes: Iterable[int] | None) -> list[SourceEpisode]:
    wanted = sorted(dataset.episodes) if episodes is None else list(dict.fromkeys(episodes))
    unknown = [i for i in wanted if i not in dataset.episodes]
    if unknown:
        raise ImportRefusedError(
            f"dataset {dataset.root} has no episode {unknown[0]}", f"it has {len(dataset.episodes)} episodes"
        )
    return [dataset.episodes[i] for i in wanted]


def _refuse_missing(dataset: Dataset, chosen: list[SourceEpisode]) -> None:
    paths = dict.fromkeys(span.path for item in chosen for span in item.videos.values())
    missing = [p for p in paths if not p.is_file()]
    if missing:
        others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise ImportRefusedError(
            f"video {missing[0]}{others} of dataset {dataset.root.name} is missing",
            "complete the download, or import without these cameras (--allow-missing-video)",
        )


def _known_sources(store: EpisodeStore) -> set[str]:
    """Digests of complete imports; those a crash cut short are deleted, to be imported again."""
    known = set()
    for row in store.query(
        "SELECT id, source, recovered FROM episodes WHERE kind = 'import' AND source IS NOT NULL"
    ):
        if row["recovered"]:
            store.delete(row["id"])
        else:
            known.add(row["source"])
    return known
