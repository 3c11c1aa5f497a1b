"""From JPEG bytes to a picture of the size that is wanted.

A picture stored at least twice (four, eight times) as large as wanted, in both directions, is decoded
at a half (a quarter, an eighth) right away: libjpeg then inverts only the lowest 4×4 (2×2, 1×1) of the
8×8 coefficients of a block, which gives about the mean over each 2×2 (4×4, 8×8) pixels and costs less
than decoding it whole. What is then still not of the size is resized: area averaging down, linear up.

Where no resizing is needed, libjpeg-turbo writes straight into the place where the picture is wanted: no
copy and no turning of colours, which at 640×480 are a sixth of the time.
"""

from __future__ import annotations

from importlib.metadata import version

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from episodes.errors import DamagedError

U8 = npt.NDArray[np.uint8]

_SCALES = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}

DECODER = f"simplejpeg-{simplejpeg.__version__}-av-{version('av')}"
"""What decodes here: equal for equal pixels out of equal bytes."""


def resize(rgb: U8, size: tuple[int, int]) -> U8:
    """Picture (H, W, 3) at ``size`` = (height, width): area averaging down, linear up."""
    height, width = size
    if rgb.shape[:2] == (height, width):
        return rgb
    shrinks = height < rgb.shape[0] and width < rgb.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(rgb, (width, height), interpolation=method), np.uint8)


def encode_jpeg(rgb: U8, quality: int) -> bytes:
    """uint8 RGB (H, W, 3) → JPEG bytes, 4:2:0."""
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(rgb), quality, "RGB", "420"))


def scale(stored: tuple[int, int], wanted: tuple[int, int]) -> int:
    """The coarsest JPEG scale (1, 2, 4, 8) that is still at least as large as what is wanted."""
    for factor in _SCALES:
        if stored[0] >= wanted[0] * factor and stored[1] >= wanted[1] * factor:
            return factor
    return 1


def decode_jpeg(data: bytes, where: str = "") -> U8:
    """JPEG bytes → uint8 RGB (H, W, 3). Raises DamagedError naming ``where`` when they are no JPEG."""
    return _decode(data, 1, where or f"a picture of {len(data)} bytes")


def decode_into(jpeg: bytes, stored: tuple[int, int], out: U8, where: str) -> None:
    """Decode a picture of size ``stored`` into ``out`` uint8 RGB (H, W, 3), at the size of ``out``.

    Raises DamagedError naming ``where`` when the bytes are no JPEG.
    """
    factor = scale(stored, (out.shape[0], out.shape[1]))
    height, width = -(-stored[0] // factor), -(-stored[1] // factor)
    if out.shape == (height, width, 3) and out.flags.c_contiguous and _decode_at(jpeg, factor, out):
        return
    out[...] = resize(_decode(jpeg, factor, where), (out.shape[0], out.shape[1]))


def _decode_at(jpeg: bytes, factor: int, out: U8) -> bool:
    """Decode into ``out``; False when the picture has another size than it should, is unusual, or none."""
    try:
        made = simplejpeg.decode_jpeg(
            jpeg, "RGB", min_height=out.shape[0], min_width=out.shape[1], min_factor=factor,
            buffer=out, strict=False,
        )  # fmt: skip
    except (ValueError, KeyError):  # KeyError: a subsampling that it has no name for
        return False
    return bool(made.shape == out.shape)


def _decode(jpeg: bytes, factor: int, where: str) -> U8:
    """By OpenCV: the same library and pixels, and it takes whatever is a JPEG, at the price of a copy."""
    flag = _SCALES.get(factor, cv2.IMREAD_COLOR)
    bgr = cv2.imdecode(np.frombuffer(jpeg, np.uint8), flag) if jpeg else None
    if bgr is None:
        raise DamagedError(f"{where} is not a JPEG")
    cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB, dst=bgr)
    return np.asarray(bgr, np.uint8)
