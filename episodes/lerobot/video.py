"""Frames of a stretch of a video file, decoded with PyAV."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from episodes.errors import ImportRefusedError
from episodes.lerobot import bounds

_PNG = b"\x89PNG\r\n\x1a\n"
_SCAN = b"\xff\xda"


def video_frames(
    path: Path, start_s: float, count: int, fps: float, size: tuple[int, int]
) -> Iterator[npt.NDArray[np.uint8]]:
    """``count`` frames from time ``start_s`` on as uint8 RGB (H, W, 3) of ``size`` = (height, width).

    Starts at the key frame before, so that any episode of a long file is reached without decoding
    those in front of it. Raises ImportRefusedError naming the file when it is missing, broken or too short.
    """
    bounds.regular(path, "video")
    height, width = size
    given = 0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            if not 0 < max(stream.width, stream.height) <= bounds.PIXELS:
                raise ImportRefusedError(f"video {path} is {stream.width}×{stream.height} pixels", "check it")
            base = float(stream.time_base or 1 / fps)
            origin = (stream.start_time or 0) * base
            if start_s > 0:
                container.seek(int((start_s + origin) / base), stream=stream, backward=True)
            first = start_s + origin - 0.5 / fps
            for frame in container.decode(stream):
                if frame.pts is not None and frame.pts * base < first:
                    continue
                if given == count:
                    return
                given += 1
                small = (height, width) != (frame.height, frame.width)
                picture = frame.reformat(width, height, "rgb24", interpolation="AREA" if small else None)
                yield np.ascontiguousarray(picture.to_ndarray())
    except (av.FFmpegError, IndexError) as error:
        raise ImportRefusedError(
            f"video {path} cannot be decoded after {given} frames ({error})", "check the download"
        ) from error
    if given < count:
        raise ImportRefusedError(
            f"video {path} ends after {given} of {count} frames from {start_s:.3f} s",
            "leave this episode out with episodes=",
        )


def decode_picture(data: bytes, where: str) -> npt.NDArray[np.uint8]:
    """An embedded PNG or JPEG as uint8 RGB (H, W, 3). Raises ImportRefusedError naming ``where``."""
    height, width = _picture_size(data) or (0, 0)
    if height == 0 or width == 0:
        raise ImportRefusedError(f"{where} is no PNG or JPEG picture", "check the download")
    if max(height, width) > bounds.PIXELS:
        raise ImportRefusedError(f"{where} is {width}×{height} pixels", "check it")
    # In what a scan holds, a zero stands behind every 0xFF.
    if not data.startswith(_PNG) and (scans := data.count(_SCAN)) > bounds.SCANS:
        raise ImportRefusedError(f"{where} is a JPEG of {scans} scans", f"at most {bounds.SCANS} are read")
    try:
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        bgr = None
    if bgr is None:
        raise ImportRefusedError(f"{where} is not a picture", "check the download")
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def _picture_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) as the head of a PNG or JPEG says, None where it is neither."""
    if data.startswith(_PNG) and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        return height, width
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):
        return None
    return height, width
