"""Small LeRobot sets made here, with real videos, that tests may bend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from episodes.lerobot.encode import VideoFormat, encode_video

KEY = "observation.images.eye"
H264 = VideoFormat("h264", 18, 2)


def frame(episode: int, row: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A 32×48 picture that tells its episode and row."""
    out = np.full((32, 48, 3), 30 + 9 * row % 200, np.uint8)
    out[:, : 8 + 6 * episode % 40] = 200 - row % 100
    return out


def make_set(
    root: Path, lengths: tuple[int, ...] = (6, 9, 4), *, stats: bool = False, fps: int = 10, **columns: Any
) -> Path:
    """A v2.1 set with a video camera; ``columns`` replace columns of every episode (None takes one away)."""
    (root / "meta").mkdir(parents=True)
    index = 0
    lines, statistics = [], []
    for episode, length in enumerate(lengths):
        table: dict[str, Any] = {
            "observation.state": pa.array([[r, r + 0.5] for r in range(length)], pa.list_(pa.float32(), 2)),
            "action": pa.array([[r + 0.25, -r] for r in range(length)], pa.list_(pa.float32(), 2)),
            "timestamp": pa.array([r / fps for r in range(length)], pa.float32()),
            "frame_index": list(range(length)),
            "episode_index": [episode] * length,
            "index": [index + r for r in range(length)],
            "task_index": [episode % 2] * length,
        }
        for name, make in columns.items():
            table[name.replace("__", ".")] = make(length) if make is not None else None
        table = {k: v for k, v in table.items() if v is not None}
        data = root / f"data/chunk-000/episode_{episode:06d}.parquet"
        data.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), data)
        video = root / f"videos/chunk-000/{KEY}/episode_{episode:06d}.mp4"
        video.parent.mkdir(parents=True, exist_ok=True)
        encode_video(video, fps, H264, [[frame(episode, r) for r in range(length)]])
        lines.append({"episode_index": episode, "tasks": [f"task {episode % 2}"], "length": length})
        mean = {n: [[[0.5]], [[0.5]], [[0.5]]] for n in ("min", "max", "mean", "std")}
        statistics.append({"episode_index": episode, "stats": {KEY: mean | {"count": [length]}}})
        index += length
    _write_lines(root / "meta/episodes.jsonl", lines)
    _write_lines(root / "meta/tasks.jsonl", [{"task_index": i, "task": f"task {i}"} for i in range(2)])
    if stats:
        _write_lines(root / "meta/episodes_stats.jsonl", statistics)
    (root / "meta/info.json").write_text(json.dumps(_info(lengths, fps)))
    return root


def _info(lengths: tuple[int, ...], fps: int) -> dict[str, Any]:
    vector = {"dtype": "float32", "shape": [2], "names": ["a.pos", "b.pos"]}
    own = {"frame_index": "int64", "episode_index": "int64", "index": "int64", "task_index": "int64",
           "timestamp": "float32"}  # fmt: skip
    return {
        "codebase_version": "v2.1", "robot_type": "koch", "fps": fps, "chunks_size": 1000,
        "total_episodes": len(lengths), "total_frames": sum(lengths), "total_tasks": 2,
        "total_videos": len(lengths), "total_chunks": 1, "splits": {"train": f"0:{len(lengths)}"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {
            "observation.state": vector, "action": vector,
            KEY: {"dtype": "video", "shape": [32, 48, 3], "names": ["height", "width", "channels"]},
            **{k: {"dtype": d, "shape": [1], "names": None} for k, d in own.items()},
        },
    }  # fmt: skip


def edit_info(root: Path, **changes: Any) -> None:
    """Replace entries of info.json; ``features`` is merged."""
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    for key, value in changes.items():
        if key == "features":
            info["features"].update(value)
        else:
            info[key] = value
    path.write_text(json.dumps(info))


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
