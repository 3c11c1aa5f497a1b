"""Whole cameras as arrays: what the learner trains from."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import numpy.typing as npt

from episodes.errors import DamagedError
from episodes.reader import Episode

_SCALES = ((8, cv2.IMREAD_REDUCED_COLOR_8), (4, cv2.IMREAD_REDUCED_COLOR_4), (2, cv2.IMREAD_REDUCED_COLOR_2))


def load_frames(
    episode: Episode, camera: str, size: tuple[int, int] | None = None, threads: int = 1
) -> npt.NDArray[np.uint8]:
    """All frames of a camera as uint8 RGB (n, H, W, 3), resized to ``size`` = (height, width) if given.

    Frames much larger than ``size`` are decoded at a half, quarter or eighth right away, which costs a
    fraction of decoding them whole. ``threads`` decode in parallel (OpenCV lets go of the GIL).
    Raises KeyError for an unknown camera, DamagedError for bytes that are not what was written.
    """
    meta = episode.meta.cameras.get(camera)
    jpegs = episode.frames(camera).jpegs()
    assert meta is not None
    height, width = size or (meta.height, meta.width)
    out = np.empty((len(jpegs), height, width, 3), np.uint8)
    flag = _decode_flag((meta.height, meta.width), (height, width))

    def decode(index: int) -> None:
        _decode_into(
            jpegs[index], flag, out[index], f"frame {index} of camera {camera} of episode {episode.id}"
        )

    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(decode, range(len(jpegs)), chunksize=16):
                pass
    else:
        for index in range(len(jpegs)):
            decode(index)
    return out


def resize(rgb: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Picture (H, W, 3) at ``size`` = (height, width): area averaging down, linear up."""
    height, width = size
    if rgb.shape[:2] == (height, width):
        return rgb
    shrinks = height < rgb.shape[0] and width < rgb.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(rgb, (width, height), interpolation=method), np.uint8)


def _decode_flag(stored: tuple[int, int], wanted: tuple[int, int]) -> int:
    """The coarsest JPEG scale that is still at least as large as what is wanted."""
    for factor, flag in _SCALES:
        if stored[0] >= wanted[0] * factor and stored[1] >= wanted[1] * factor:
            return int(flag)
    return int(cv2.IMREAD_COLOR)


def _decode_into(jpeg: bytes, flag: int, out: npt.NDArray[np.uint8], where: str) -> None:
    bgr = cv2.imdecode(np.frombuffer(jpeg, np.uint8), flag)
    if bgr is None:
        raise DamagedError(f"{where} is not a JPEG")
    scaled = resize(bgr, (out.shape[0], out.shape[1]))
    if scaled.shape != out.shape:
        raise DamagedError(f"{where} has shape {scaled.shape}, expected {out.shape}")
    cv2.cvtColor(scaled, cv2.COLOR_BGR2RGB, dst=out)
