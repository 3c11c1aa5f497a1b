"""From JPEG bytes to a picture of the size that is wanted.

A picture stored at least twice (four, eight times) as large as wanted, in both directions, is decoded
at a half (a quarter, an eighth) right away: libjpeg then inverts only the lowest 4×4 (2×2, 1×1) of the
8×8 coefficients of a block, which gives about the mean over each 2×2 (4×4, 8×8) pixels and costs less
than decoding it whole. What is then still not of the size is resized: area averaging down, linear up.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from episodes.errors import DamagedError

U8 = npt.NDArray[np.uint8]

_SCALES = ((8, cv2.IMREAD_REDUCED_COLOR_8), (4, cv2.IMREAD_REDUCED_COLOR_4), (2, cv2.IMREAD_REDUCED_COLOR_2))

DECODER = f"opencv-{cv2.__version__}"
"""What decodes here: equal for equal pixels out of equal bytes."""


def resize(rgb: U8, size: tuple[int, int]) -> U8:
    """Picture (H, W, 3) at ``size`` = (height, width): area averaging down, linear up."""
    height, width = size
    if rgb.shape[:2] == (height, width):
        return rgb
    shrinks = height < rgb.shape[0] and width < rgb.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(rgb, (width, height), interpolation=method), np.uint8)


def decode_flag(stored: tuple[int, int], wanted: tuple[int, int]) -> int:
    """The coarsest JPEG scale that is still at least as large as what is wanted."""
    for factor, flag in _SCALES:
        if stored[0] >= wanted[0] * factor and stored[1] >= wanted[1] * factor:
            return int(flag)
    return int(cv2.IMREAD_COLOR)


def decode_into(jpeg: bytes, flag: int, out: U8, where: str) -> None:
    """Decode with ``flag`` (see `decode_flag`) into ``out`` uint8 RGB (H, W, 3), at the size of ``out``.

    Raises DamagedError naming ``where`` when the bytes are no JPEG.
    """
    bgr = cv2.imdecode(np.frombuffer(jpeg, np.uint8), flag)
    if bgr is None:
        raise DamagedError(f"{where} is not a JPEG")
    scaled = resize(bgr, (out.shape[0], out.shape[1]))
    if scaled.shape != out.shape:
        raise DamagedError(f"{where} has shape {scaled.shape}, expected {out.shape}")
    cv2.cvtColor(scaled, cv2.COLOR_BGR2RGB, dst=out)
