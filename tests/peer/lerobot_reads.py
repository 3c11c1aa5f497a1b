"""Run by LeRobot's own interpreter: opens a set with LeRobotDataset and compares every row and frame.

    python lerobot_reads.py SET REFERENCE.json

REFERENCE.json says for each episode what must come out: its task, the numbers of each feature row by row,
and for each camera the video (decoded here with PyAV, in order) or the pictures it must agree with.
Prints one JSON line; exit code 1 when anything differs.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def frames_of(path: str) -> Iterator[Any]:
    """The frames of a video in order, or of a .npy file, uint8 RGB."""
    import av

    if path.endswith(".npy"):
        yield from np.load(path)
        return
    with av.open(path) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def compare_row(item: dict[str, Any], want: dict[str, Any], at: int, wrong: list[str]) -> None:
    """The numbers and the task of one row."""
    where = f"row {at} of episode {int(item['episode_index'])}"
    if item["task"] != want["task"]:
        wrong.append(f"task of {where}: {item['task']}")
    for key, values in want["numbers"].items():
        got = np.asarray(item[key]).ravel()
        if not np.array_equal(got, np.asarray(values[at]).astype(got.dtype).ravel()):
            wrong.append(f"{key} of {where}")


def main(root: Path, reference: Path) -> None:
    """Compare every row and every frame."""
    import lerobot
    import torch
    import torchcodec
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    torch.set_num_threads(1)
    expected = json.loads(reference.read_text())
    dataset = LeRobotDataset("peer/set", root=root)
    started = time.perf_counter()
    wrong: list[str] = []
    frames = exact = worst = row = 0
    for want in expected["episodes"]:
        pictures = {key: frames_of(path) for key, path in want["pictures"].items()}
        for at in range(want["length"]):
            item = dataset[row]
            row += 1
            compare_row(item, want, at, wrong)
            for key, each in pictures.items():
                mine = (item[key] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
                difference = int(np.abs(mine.astype(int) - next(each)).max())
                frames, exact, worst = frames + 1, exact + (difference == 0), max(worst, difference)
                if difference > expected["tolerance"]:
                    wrong.append(f"{key} of row {at} of episode {want['episode']} differs by {difference}")
    if row != len(dataset):
        wrong.append(f"LeRobot has {len(dataset)} rows, {row} are expected")
    figures = {
        "lerobot": lerobot.__version__, "torch": torch.__version__, "torchcodec": torchcodec.__version__,
        "backend": dataset.video_backend, "episodes": dataset.num_episodes, "rows": row, "frames": frames,
        "frames_equal_to_the_bit": exact, "largest_difference": worst, "differing": len(wrong),
        "first_differing": wrong[:5], "seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip
    print(json.dumps(figures))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
