"""A small JPEG that is much work: a progressive one with thousands of scans, a dozen bytes each."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np


@lru_cache(maxsize=8)
def many_scans(height: int, width: int, scans: int) -> bytes:
    """A picture of one colour whose last scan comes so many times more; libjpeg goes through it each time."""
    grey = np.full((height, width, 3), 128, np.uint8)
    _, made = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_QUALITY, 90])
    picture = made.tobytes()
    end = len(picture) - 2
    scan = picture[picture.rindex(b"\xff\xda") : end]
    return picture[:end] + scan * scans + picture[end:]
