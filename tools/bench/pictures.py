"""Pictures to record: the bench's scene, drawn once, or those of real videos; held decoded."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt

from hal.bench.model import CAMERAS
from hal.bench.prerendered import POSES, VARIANTS, Prerendered
from hal.bench.world import World, WorldConfig
from tools.errors import UsageError

HEIGHT, WIDTH = 480, 640
Picture = npt.NDArray[np.uint8]


def scene(cameras: int, count: int, folder: Path) -> list[list[Picture]]:
    """``count`` pictures for each of ``cameras`` cameras, of the bench's scene with sensor noise."""
    drawn = Prerendered(World(WorldConfig(height=HEIGHT, width=WIDTH)), folder)
    pictures = {}
    for camera in CAMERAS:
        jpegs = [drawn.next(camera) for _ in range(min(count, POSES * 2 * VARIANTS))]
        pictures[camera] = [_decode(jpeg) for jpeg in jpegs]
    return [pictures[CAMERAS[i % len(CAMERAS)]] for i in range(cameras)]


def videos(cameras: int, count: int, folder: Path) -> list[list[Picture]]:
    """``count`` pictures for each camera from 640×480 videos below ``folder``. Raises UsageError."""
    found: list[list[Picture]] = []
    for path in sorted(folder.rglob("*.mp4")):
        pictures = _decode_video(path, count)
        if len(pictures) == count:
            found.append(pictures)
        if len(found) == cameras:
            return found
    raise UsageError(f"{folder} has not {cameras} videos of {count} pictures {WIDTH}x{HEIGHT}; give another")


def _decode_video(path: Path, count: int) -> list[Picture]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        if (stream.height, stream.width) != (HEIGHT, WIDTH):
            return []
        pictures: list[Picture] = []
        for frame in container.decode(stream):
            pictures.append(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8))
            if len(pictures) == count:
                break
    return pictures


def _decode(jpeg: bytes) -> Picture:
    bgr = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
