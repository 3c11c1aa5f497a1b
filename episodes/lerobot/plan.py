"""What goes where when v2.1 episodes become v3.0 files: episode → chunk, file, first frame.

The plan is made from headers and footers alone, before anything is written; what cannot be converted is
refused here, by name. Files end at LeRobot's size limits, where videos no longer fit into one track, and
before 1,000 s: LeRobot compares frame times as float32, whose spacing there exceeds its own tolerance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from episodes.errors import ImportRefusedError
from episodes.lerobot import bounds
from episodes.lerobot.check import refuse_wrong_times
from episodes.lerobot.layout import BOOKKEEPING, Dataset, SourceEpisode, in_order
from episodes.lerobot.remux import VideoFacts, video_facts
from episodes.lerobot.tables import seconds
from episodes.lerobot.tasks import row_tasks
from episodes.lerobot.v30 import Present

FILE_SECONDS = 1000.0
_SHARE = 16  # episodes a thread looks at before it asks for more: each takes it a millisecond
ON_GRID_S = 1e-4
"""LeRobot's tolerance between a timestamp and the frame found for it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes at which files end, MiB (LeRobot's defaults)."""

    data_mb: int = 100
    video_mb: int = 200


@dataclass(slots=True)
class Facts:
    """What headers and footers say about a source episode. ``identity``: equal for the same episode, of
    whichever copy of the set."""

    identity: str
    data_bytes: int
    columns: frozenset[str]
    off_grid_s: float
    videos: dict[str, VideoFacts]


@dataclass(slots=True)
class Part:
    """One episode in a file: which, under which number, from which frame on."""

    source: int
    episode: int
    first_index: int
    length: int
    first_frame: int = 0


@dataclass(slots=True)
class OutFile:
    """A file to be written: the number it gets, the feature it belongs to ("" for rows), what goes in."""

    key: str
    number: int
    parts: list[Part] = field(default_factory=list)


def scan(
    dataset: Dataset,
    chosen: Iterable[int],
    missing_video: bool,
    workers: int,
    progress: Callable[[int], None] | None = None,
) -> dict[int, Facts]:
    """Look at every chosen episode's files, in parallel. Raises ImportRefusedError for the first bad one.

    ``missing_video``: a video that is absent is left out of the result instead of refused.
    """
    found: dict[int, Facts] = {}
    every = iter(chosen)
    shares = iter(lambda: list(islice(every, _SHARE)), [])

    def look(share: list[int]) -> dict[int, Facts]:
        return {i: _facts(dataset, dataset.episodes[i], missing_video) for i in share}

    with ThreadPoolExecutor(workers) as pool:
        for facts in pool.map(look, shares):
            found |= facts
            if progress is not None:
                progress(len(found))
    return found


def _facts(dataset: Dataset, episode: SourceEpisode, missing_video: bool) -> Facts:
    with bounds.parquet(episode.data) as file:
        meta = file.metadata
        if meta.num_rows != episode.length or not episode.length:
            raise ImportRefusedError(
                f"{episode.data} has {meta.num_rows} rows, the metadata of episode {episode.index} says "
                f"{episode.length}",
                "check the download, or leave this episode out (--episodes)",
            )
        size = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
        columns = frozenset(file.schema_arrow.names)
        wanted = [c for c in ("timestamp", "frame_index", "task_index") if c in columns]
        off = _off_grid_s(dataset, episode, bounds.read_open(file, episode.data, wanted)) if wanted else 0.0
    videos = {}
    for key, span in episode.videos.items():
        if missing_video and not span.path.is_file():
            continue
        videos[key] = _video(dataset, episode, key, span.path)
    return Facts(_identity(dataset, episode, videos), size, columns, off, videos)


def _off_grid_s(dataset: Dataset, episode: SourceEpisode, table: Any) -> float:
    """How far timestamps are from index / fps, s. Raises ImportRefusedError when tasks or times have no clear
    meaning."""
    row_tasks(dataset, episode, table)
    if "timestamp" not in table.column_names:
        return 0.0
    times = seconds(in_order(table), "timestamp")
    refuse_wrong_times(times, dataset.fps, episode.data)
    return float(np.abs(times - np.arange(len(times)) / dataset.fps).max())


def _identity(dataset: Dataset, episode: SourceEpisode, videos: Mapping[str, VideoFacts]) -> str:
    """Ratchet's id and digest where it exported the episode; else its number and what is in its files."""
    label = dataset.labels.of(episode.index, episode.length)
    if label is not None:
        return label.identity
    with episode.data.open("rb") as file:
        sha = hashlib.file_digest(file, "sha256")
    for key, facts in sorted(videos.items()):
        sha.update(f"{key} {facts.identity}".encode())
    return f"{episode.index} {sha.hexdigest()}"


def _video(dataset: Dataset, episode: SourceEpisode, key: str, path: Path) -> VideoFacts:
    facts = video_facts(path)
    height, width = dataset.features[key].shape[:2]
    if (facts.height, facts.width) != (height, width):
        raise ImportRefusedError(
            f"video {path} is {facts.width}×{facts.height}, info.json says {width}×{height}",
            "correct info.json",
        )
    if facts.frames < episode.length:
        raise ImportRefusedError(
            f"video {path} has {facts.frames} frames for {episode.length} rows of episode {episode.index}",
            "leave this episode out (--episodes)",
        )
    return facts


def usable_features(dataset: Dataset, facts: dict[int, Facts], notes: list[str]) -> list[str]:
    """Features every episode has; one that none has is left out with a note.

    Raises ImportRefusedError for one that only some episodes have.
    """
    keys = []
    for key, feature in dataset.features.items():
        having = [
            i for i, f in facts.items() if (key in f.videos if feature.dtype == "video" else key in f.columns)
        ]
        if len(having) == len(facts):
            keys.append(key)
        elif not having or feature.dtype == "video":
            notes.append(f"{key} is left out: {len(facts) - len(having)} episodes do not have it")
        else:
            lacking = min(set(facts) - set(having))
            raise ImportRefusedError(
                f"{dataset.root}: episode {lacking} has no column {key}", "leave it out (--episodes)"
            )
    unknown = sorted({c for f in facts.values() for c in f.columns} - set(dataset.features) - BOOKKEEPING)
    notes += [f"column {c} is left out: info.json does not describe it" for c in unknown]
    return keys


def assign(
    facts: dict[int, Facts],
    lengths: dict[int, int],
    keys: Iterable[str],
    fps: float,
    present: Present,
    limits: Limits,
    encoded: bool = False,
) -> tuple[list[OutFile], dict[str, list[OutFile]]]:
    """The data files and, per video feature, the video files to write, in order.

    ``encoded``: videos are encoded anew, with one frame per row and no more.
    """  # fmt: skip
    parts = []
    index = present.frames
    for number, source in enumerate(facts):
        parts.append(Part(source, present.episodes + number, index, lengths[source]))
        index += lengths[source]
    data = _split(
        "",
        parts,
        present.data_files,
        limits.data_mb << 20,
        lambda p: facts[p.source].data_bytes,
        None,
        fps,
        encoded,
    )
    videos = {}
    for key in keys:
        videos[key] = _split(
            key, parts, present.video_files.get(key, 0), limits.video_mb << 20,
            lambda p, key=key: facts[p.source].videos[key].bytes,  # type: ignore[misc]
            lambda p, key=key: facts[p.source].videos[key], fps, encoded,  # type: ignore[misc]
        )  # fmt: skip
    return data, videos


def _split(
    key: str, parts: list[Part], number: int, limit: int, size: Callable[[Part], int],
    video: Callable[[Part], VideoFacts] | None, fps: float, encoded: bool,
) -> list[OutFile]:  # fmt: skip
    files: list[OutFile] = []
    used, frames, layout = 0, 0, ""
    for part in parts:
        facts = video(part) if video else None
        count = facts.frames if facts and not encoded else part.length
        full = used + size(part) >= limit or (facts and (frames + count) / fps >= FILE_SECONDS)
        if not files or (full and used) or (facts and facts.layout != layout):
            files.append(OutFile(key, number + len(files)))
            used, frames = 0, 0
        layout = facts.layout if facts else ""
        files[-1].parts.append(Part(part.source, part.episode, part.first_index, part.length, frames))
        used, frames = used + size(part), frames + count
    return files
