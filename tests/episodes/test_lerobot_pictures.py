"""Pictures inside somebody else's set: what is looked at before a decoder sees them."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pytest

from episodes.errors import ImportRefusedError
from episodes.lerobot import bounds
from episodes.lerobot.video import decode_picture

PICTURE = np.dstack([np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))] * 3)


def encoded(kind: str, *options: int) -> bytes:
    return bytes(cv2.imencode(kind, PICTURE, options)[1])


def with_scans(count: int) -> bytes:
    """A progressive JPEG in which the last scan comes again and again."""
    data = encoded(".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * (count - data.count(b"\xff\xda")) + b"\xff\xd9"


def png_of(width: int, height: int) -> bytes:
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


@pytest.mark.parametrize(
    "data",
    [encoded(".jpg"), encoded(".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1), encoded(".png"), with_scans(60)],
    ids=["baseline", "progressive", "png", "60 scans"],
)
def test_pictures_are_read(data: bytes) -> None:
    assert np.abs(decode_picture(data, "row 1").astype(int) - PICTURE).mean() < 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (with_scans(bounds.SCANS + 1), "row 1 is a JPEG of 65 scans; at most 64 are read"),
        (png_of(8193, 10), "row 1 is 8193×10 pixels"),
        (png_of(0, 10), "row 1 is no PNG or JPEG picture"),
        (b"GIF89a" + bytes(100), "row 1 is no PNG or JPEG picture"),
        (encoded(".jpg")[:40], "row 1 is no"),
        (encoded(".png")[:60], "row 1 is not a picture"),
        (b"", "row 1 is no"),
    ],
    ids=["scans", "large", "empty", "gif", "cut jpeg", "cut png", "nothing"],
)
def test_what_is_no_picture_or_too_much_work_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ImportRefusedError, match=message):
        decode_picture(data, "row 1")
