"""A larger v2.1 set out of a small one: its episodes over and over, numbered on, the videos as they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from episodes.lerobot.layout import Dataset
from episodes.lerobot.metadata import json_lines
from tools.errors import UsageError


def repeat_set(source: Path, target: Path, count: int) -> Path:
    """Write a set of ``count`` episodes to ``target``. Raises UsageError when ``source`` is no v2.1 set."""
    dataset = Dataset(source)
    if dataset.version != "v2.1":
        raise UsageError(f"{source} is a {dataset.version} set: give one of v2.1")
    statistics = {row["episode_index"]: row for _, row in json_lines(source / "meta/episodes_stats.jsonl")}
    known = list(dataset.episodes)
    rows = 0
    (target / "meta").mkdir(parents=True)
    with (
        (target / "meta/episodes.jsonl").open("w") as listed,
        (target / "meta/episodes_stats.jsonl").open("w") as stats,
    ):
        for number in range(count):
            episode = dataset.episodes[known[number % len(known)]]
            _copy(dataset, number, episode.index, rows, target)
            rows += episode.length
            line = {"episode_index": number, "tasks": episode.tasks, "length": episode.length}
            listed.write(json.dumps(line) + "\n")
            stats.write(json.dumps(statistics[episode.index] | {"episode_index": number}) + "\n")
    shutil.copyfile(source / "meta/tasks.jsonl", target / "meta/tasks.jsonl")
    videos = count * len(dataset.video_keys())
    info = dataset.info | {
        "total_episodes": count, "total_frames": rows, "total_videos": videos,
        "total_chunks": (count - 1) // dataset.chunk + 1, "splits": {"train": f"0:{count}"},
    }  # fmt: skip
    (target / "meta/info.json").write_text(json.dumps(info))
    return target


def _copy(dataset: Dataset, number: int, index: int, first_row: int, target: Path) -> None:
    episode = dataset.episodes[index]
    at = {"episode_index": number, "episode_chunk": number // dataset.chunk}
    table = pq.read_table(episode.data)
    counted = {"episode_index": np.full(len(table), number), "index": np.arange(len(table)) + first_row}
    for name, values in counted.items():
        if name in table.column_names:
            column = table.schema.get_field_index(name)
            field = table.schema.field(column)
            table = table.set_column(column, field, pa.array(values, field.type))
    data = target / dataset.info["data_path"].format(**at)
    data.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, data)
    for key, span in episode.videos.items():
        video = target / dataset.info["video_path"].format(video_key=key, **at)
        video.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(span.path, video)
