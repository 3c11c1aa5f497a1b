"""Whole cameras as arrays: what the learner trains from."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from episodes.decoding import decode_into
from episodes.decoding import resize as resize  # part of this module's interface
from episodes.reader import Episode


def load_frames(
    episode: Episode, camera: str, size: tuple[int, int] | None = None, threads: int = 1
) -> npt.NDArray[np.uint8]:
    """All frames of a camera as uint8 RGB (n, H, W, 3), resized to ``size`` = (height, width) if given.

    Frames much larger than ``size`` are decoded at a half, quarter or eighth right away, which costs a
    fraction of decoding them whole. ``threads`` decode in parallel (decoding lets go of the GIL).
    Raises KeyError for an unknown camera, DamagedError for bytes that are not what was written.
    """
    meta = episode.meta.cameras.get(camera)
    frames = episode.frames(camera)
    assert meta is not None
    height, width = size or (meta.height, meta.width)
    out = np.empty((len(frames), height, width, 3), np.uint8)
    if meta.codec == "h264":  # in order, by one thread: each picture builds on the one before
        for index in range(len(frames)):
            frames.read_into(index, out[index])
        return out
    stored, jpegs = (meta.height, meta.width), frames.jpegs()

    def decode(index: int) -> None:
        decode_into(
            jpegs[index], stored, out[index], f"frame {index} of camera {camera} of episode {episode.id}"
        )

    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(decode, range(len(jpegs)), chunksize=16):
                pass
    else:
        for index in range(len(jpegs)):
            decode(index)
    return out
