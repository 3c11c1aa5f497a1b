"""What pictures cost in other forms: bytes, PSNR against the original RGB, milliseconds of one thread."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt

from episodes import h264 as h264_form
from episodes.urgency import urgency_kept

Picture = npt.NDArray[np.uint8]

# LeRobot 0.4.4: libsvtav1, crf 30, a key frame every 2 frames, yuv420p; preset 12 where it streams.
LEROBOT: tuple[str, int, Mapping[str, str]] = (
    "libsvtav1",
    2,
    {"crf": "30", "preset": "12", "svtav1-params": "lp=1"},
)
_DECODER = "libdav1d"


def psnr_db(one: Picture, two: Picture) -> float:
    """Peak signal to noise ratio over all samples of two RGB pictures; 99 for equal ones."""
    error = float(np.mean(np.square(one.astype(np.float32) - two.astype(np.float32))))
    return 99.0 if error == 0 else float(10 * np.log10(255**2 / error))


def jpeg(pictures: Sequence[Picture], quality: int) -> dict[str, float]:
    """Each picture on its own as JPEG, as the store keeps it."""
    began = time.perf_counter()
    coded = [
        cv2.imencode(".jpg", cv2.cvtColor(p, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        for p in pictures
    ]
    seconds = time.perf_counter() - began
    back = [cv2.cvtColor(cv2.imdecode(c, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB) for c in coded]
    return _figures(pictures, sum(map(len, coded)), back, seconds)


def h264(pictures: Sequence[Picture], crf: int) -> dict[str, float]:
    """In closed groups, as the store keeps it with ``codec = "h264"``."""
    height, width = pictures[0].shape[:2]
    encoder = h264_form.Encoder((height, width), crf)
    began = time.perf_counter()
    units = [encoder.encode(picture) for picture in pictures]
    seconds = time.perf_counter() - began
    stream = f"bench-{id(units)}"
    back = [
        h264_form.decode(stream, (height, width), i, units.__getitem__, "a picture").copy()
        for i in range(len(units))
    ]
    return _figures(pictures, sum(map(len, units)), back, seconds)


def video(
    pictures: Sequence[Picture], codec: str, group: int, options: Mapping[str, str]
) -> dict[str, float] | None:
    """As a video with a key picture every ``group``; None where this FFmpeg has no such encoder."""
    if codec not in av.codecs_available:
        return None
    height, width = pictures[0].shape[:2]
    encoder: Any = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, 30), Fraction(30, 1)
    encoder.gop_size, encoder.thread_count, encoder.options = group, 1, dict(options)
    with urgency_kept():
        encoder.open()
    began = time.perf_counter()
    packets = []
    for index, picture in enumerate(pictures):
        frame = av.VideoFrame.from_ndarray(cv2.cvtColor(picture, cv2.COLOR_RGB2YUV_I420), format="yuv420p")
        frame.pts = index
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    seconds = time.perf_counter() - began
    decoder: Any = av.CodecContext.create(_DECODER, "r")
    frames = [f for packet in [*packets, None] for f in decoder.decode(packet)]
    back = [cv2.cvtColor(f.to_ndarray(format="yuv420p"), cv2.COLOR_YUV2RGB_I420) for f in frames]
    return _figures(pictures, sum(p.size for p in packets), back, seconds)


def _figures(pictures: Sequence[Picture], size: int, back: Sequence[Any], seconds: float) -> dict[str, float]:
    quality = [psnr_db(a, b) for a, b in zip(pictures, back, strict=True)]
    return {
        "bytes_per_frame": round(size / len(pictures)),
        "psnr_db": round(float(np.mean(quality)), 2),
        "encode_ms": round(seconds / len(pictures) * 1e3, 2),
    }
