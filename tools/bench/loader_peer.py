"""LeRobot's own figure, by its own API: for `ratchet bench loader --lerobot PYTHON`, needs nothing of ours.

``python loader_peer.py FOLDER EPISODES FRAMES SECONDS``: ``FOLDER/pictures.npz`` holds one array uint8
(n, H, W, 3) a camera, played in a loop. The data set is recorded with ``LeRobotDataset.create`` (v3.0,
its default AV1), then random samples with chunks of 100 actions are drawn: in this process, and by a
DataLoader with two workers. Prints one JSON object as its last line.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

FPS = 30
CHUNK = 100
BATCH = 8
NAME = "ratchet/bench"


def main() -> None:
    """Record, then draw."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    folder, episodes, frames, seconds = (
        Path(sys.argv[1]),
        int(sys.argv[2]),
        int(sys.argv[3]),
        float(sys.argv[4]),
    )
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    root = folder / "lerobot"
    _record(LeRobotDataset, folder / "pictures.npz", root, episodes, frames)
    deltas = {"action": [i / FPS for i in range(CHUNK)]}
    data = LeRobotDataset(NAME, root=root, delta_timestamps=deltas)
    # Workers first: once this process has opened a decoder, forked ones would share its place in the file.
    two_workers = _workers(data, seconds)
    print(json.dumps({"one_process": _alone(data, seconds), "two_workers": two_workers}))


def _record(dataset: type, pictures: Path, root: Path, episodes: int, frames: int) -> None:
    shown = dict(np.load(pictures))
    features = {
        name: {"dtype": "float32", "shape": (6,), "names": None} for name in ("observation.state", "action")
    }
    for camera, images in shown.items():
        features[f"observation.images.{camera}"] = {
            "dtype": "video", "shape": images.shape[1:], "names": ["height", "width", "channels"],
        }  # fmt: skip
    made = dataset.create(NAME, FPS, features, root=root, use_videos=True)
    for episode in range(episodes):
        for frame in range(frames):
            row = {f"observation.images.{c}": images[frame % len(images)] for c, images in shown.items()}
            values = np.full(6, np.sin(frame / 30 + episode), np.float32)
            made.add_frame({"observation.state": values, "action": values, "task": "bench", **row})
        made.save_episode()
    made.finalize()


def _alone(data: torch.utils.data.Dataset, seconds: float) -> float:
    order = np.random.default_rng(0).permutation(len(data))
    data[int(order[0])]
    count, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        data[int(order[count % len(order)])]
        count += 1
    return round(count / passed, 1)


def _workers(data: torch.utils.data.Dataset, seconds: float) -> float:
    loader = torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=2, drop_last=True)
    count, began = 0, 0.0
    for number, batch in enumerate(_forever(loader)):
        if number == 4:  # the workers have started
            began = time.perf_counter()
        elif number > 4:
            count += len(batch["action"])
            if time.perf_counter() - began > seconds:
                break
    return round(count / (time.perf_counter() - began), 1)


def _forever(loader: torch.utils.data.DataLoader):
    while True:
        yield from loader


if __name__ == "__main__":
    main()
