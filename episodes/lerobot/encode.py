"""Encoding videos as LeRobot does by default: SVT-AV1, preset 12, CRF 30, a key frame every 2, yuv420p."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import numpy.typing as npt

from episodes.errors import StoreError
from episodes.urgency import urgency_kept

Codec = Literal["av1", "h264"]
_ENCODERS = {"av1": "libsvtav1", "h264": "libx264"}
_AGAIN = "see that the disk has space, and run it again"


@dataclass(frozen=True, slots=True)
class VideoFormat:
    """``crf``: quality, less is better. ``group``: frames from one key frame to the next."""

    codec: Codec = "av1"
    crf: int = 30
    group: int = 2

    def info(self, shape: tuple[int, ...], fps: int) -> dict[str, Any]:
        """What LeRobot writes about a video feature in info.json."""
        return {
            "video.height": shape[0], "video.width": shape[1], "video.codec": self.codec,
            "video.pix_fmt": "yuv420p", "video.is_depth_map": False, "video.fps": fps, "video.channels": 3,
            "has_audio": False,
        }  # fmt: skip

    def options(self) -> dict[str, str]:
        """The encoder's options."""
        common = {"g": str(self.group), "crf": str(self.crf)}
        if self.codec == "av1":
            # One thread a stage: with more, a stage that waits long enough for a core lets a later frame out
            # in its place (two frames of the file change places, or the encoder hangs). docs/lerobot.md
            return common | {"preset": "12", "svtav1-params": "lp=1"}
        return common | {"preset": "fast", "bf": "0"}


def refuse_unknown(form: VideoFormat) -> None:
    """Raises StoreError when this FFmpeg has no such encoder."""
    encoder = _ENCODERS[form.codec]
    if encoder not in av.codecs_available:
        raise StoreError(f"this PyAV cannot encode {form.codec} ({encoder})", "choose the other codec")


def encode_video(
    path: Path, fps: int, form: VideoFormat, episodes: Iterable[Iterable[npt.NDArray[np.uint8]]]
) -> int:
    """Write an mp4 of the pictures (H, W, 3) of one episode after the other; the number of frames.

    Each episode starts with a key frame. Raises StoreError when this FFmpeg has no such encoder, or cannot
    write the file, or leaves out a frame or lets them out in another order.
    """
    refuse_unknown(form)
    try:
        return _encode(path, fps, form, episodes)
    except av.error.FFmpegError as error:
        raise StoreError(f"{path} could not be encoded: {error.strerror}", _AGAIN) from error


def _encode(
    path: Path, fps: int, form: VideoFormat, episodes: Iterable[Iterable[npt.NDArray[np.uint8]]]
) -> int:
    encoder = _ENCODERS[form.codec]
    os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 writes its settings to stderr for every video
    count = muxed = 0
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as out:
        stream: Any = None
        for pictures in episodes:
            first = True
            for rgb in pictures:
                if stream is None:
                    stream = out.add_stream(encoder, rate=fps, options=form.options())
                    stream.height, stream.width = rgb.shape[:2]
                    stream.pix_fmt = "yuv420p"
                    stream.codec_context.time_base = Fraction(1, fps)
                    with urgency_kept():
                        stream.codec_context.open()
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), "rgb24")
                frame.pts, frame.time_base = count, Fraction(1, fps)
                if first:
                    frame.pict_type = av.video.frame.PictureType.I
                first = False
                count += 1
                muxed = _mux(out, stream.encode(frame), muxed)
        if stream is not None:
            muxed = _mux(out, stream.encode(), muxed)
    if muxed != count:
        raise StoreError(f"{path} holds {muxed} of {count} frames", _AGAIN)
    return count


def _mux(out: Any, packets: Iterable[Any], muxed: int) -> int:
    """How many frames the file has now; no encoder here may reorder them."""
    for packet in packets:
        if packet.pts != muxed:
            raise StoreError(f"the encoder gave frame {packet.pts} where frame {muxed} was due", _AGAIN)
        packet.duration = max(packet.duration or 0, 1)  # without it the last frame has no length
        out.mux(packet)
        muxed += 1
    return muxed
