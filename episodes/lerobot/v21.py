"""Writing a v2.1 set: a data file and a video per episode, metadata in JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from episodes.files import FileLayer
from episodes.lerobot.metadata import Feature
from episodes.lerobot.stats import Stats, only
from episodes.lerobot.v30 import described, write_json

CHUNK = 1000
DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
_FILES = FileLayer()


@dataclass(slots=True)
class Line:
    """What the JSON lines say about one episode."""

    episode: int
    length: int
    tasks: list[str]
    stats: dict[str, Stats]


def data_file(root: Path, episode: int) -> Path:
    """Where the rows of an episode go; its folder is made."""
    return _made(root / DATA_PATH.format(episode_chunk=episode // CHUNK, episode_index=episode))


def video_file(root: Path, key: str, episode: int) -> Path:
    """Where the video of an episode goes; its folder is made."""
    at = {"episode_chunk": episode // CHUNK, "episode_index": episode, "video_key": key}
    return _made(root / VIDEO_PATH.format(**at))


def write_rows(path: Path, table: Any) -> None:
    """The data file of an episode: whole or not there."""
    temporary = path.with_suffix(".tmp")
    pq.write_table(table, temporary, compression="snappy")
    _FILES.sync_path(temporary)
    _FILES.rename(temporary, path)
    _FILES.sync_path(path.parent)


def write_metadata(
    root: Path,
    lines: Iterable[Line],
    features: Mapping[str, Feature],
    raw: Mapping[str, Any],
    fps: int,
    robot: str | None,
    tasks: Mapping[str, int],
    quantiles: bool,
) -> None:
    """meta/: ``raw`` is more about features for info.json; without ``quantiles`` as v2.1 knows it."""
    meta = root / "meta"
    meta.mkdir(parents=True, exist_ok=True)
    episodes = frames = 0
    with (
        (meta / "episodes.jsonl").open("w") as listed,
        (meta / "episodes_stats.jsonl").open("w") as statistics,
    ):
        for line in lines:
            row = {"episode_index": line.episode, "tasks": line.tasks, "length": line.length}
            listed.write(json.dumps(row, ensure_ascii=False) + "\n")
            stats = line.stats if quantiles else only(line.stats)
            statistics.write(json.dumps({"episode_index": line.episode, "stats": stats}) + "\n")
            episodes, frames = episodes + 1, frames + line.length
    with (meta / "tasks.jsonl").open("w") as file:
        for text, index in sorted(tasks.items(), key=lambda item: item[1]):
            file.write(json.dumps({"task_index": index, "task": text}, ensure_ascii=False) + "\n")
    videos = sum(f.dtype == "video" for f in features.values())
    entries = described(raw, features.values(), fps)
    for entry in entries.values():
        entry.pop("fps", None)
    info = {
        "codebase_version": "v2.1", "robot_type": robot, "total_episodes": episodes, "total_frames": frames,
        "total_tasks": len(tasks), "total_videos": videos * episodes,
        "total_chunks": (episodes + CHUNK - 1) // CHUNK, "chunks_size": CHUNK, "fps": fps,
        "splits": {"train": f"0:{episodes}"}, "data_path": DATA_PATH,
        "video_path": VIDEO_PATH if videos else None, "features": entries,
    }  # fmt: skip
    for path in (meta / "episodes.jsonl", meta / "episodes_stats.jsonl", meta / "tasks.jsonl"):
        _FILES.sync_path(path)
    write_json(meta / "info.json", info)


def table(arrays: list[Any], columns: Any) -> Any:
    """The rows of an episode."""
    return pa.Table.from_arrays(arrays, schema=columns)


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
