"""Pictures as short closed groups of H.264: a fifth of the bytes of JPEGs, every picture still within reach.

A camera's pictures are one stream, each stored picture one access unit. Every eighth is a key picture with
its parameter sets before it, and nothing refers across it: picture n needs those from n - n % 8 on, and no
more. A journal that ends anywhere leaves a stream that decodes up to there. Colours are 4:2:0, BT.601,
limited range. ISO/IEC 14496-10.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt

from episodes.errors import DamagedError, RecordingError

U8 = npt.NDArray[np.uint8]

GROUP = 8
"""Pictures from one key picture to the next."""

# x264's fastest preset, with those tools switched back on that cost little and save much: arithmetic coding,
# the deblocking filter and 8×8 transforms make a quarter less of the same quality, for twice the time.
_PARAMETERS = (
    f"keyint={GROUP}:min-keyint={GROUP}:scenecut=0:bframes=0:open-gop=0:intra-refresh=0:repeat-headers=1:"
    "cabac=1:8x8dct=1:no-deblock=0:deblock=0,0:subme=1:colormatrix=smpte170m:range=tv"
)
_DECODERS = 4  # of a thread: one for each camera that is being played, or compared


class Encoder:
    """One camera's pictures, in order. Used by one thread."""

    def __init__(self, size: tuple[int, int], crf: int) -> None:
        """``size`` is (height, width), both even; ``crf`` x264's constant rate factor, less is better."""
        self._size = size
        self._count = 0
        self._context: Any = av.CodecContext.create("libx264", "w")
        self._context.height, self._context.width = size
        self._context.pix_fmt = "yuv420p"
        self._context.time_base, self._context.framerate = Fraction(1, 30), Fraction(30, 1)
        self._context.gop_size, self._context.thread_count = GROUP, 1
        self._context.options = {
            "preset": "ultrafast", "tune": "zerolatency", "crf": str(crf), "x264-params": _PARAMETERS,
        }  # fmt: skip

    def encode(self, rgb: U8) -> bytes:
        """One uint8 RGB (H, W, 3) picture → its access unit. Raises RecordingError."""
        frame = av.VideoFrame.from_ndarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420), format="yuv420p")
        frame.pts = self._count
        self._count += 1
        try:
            packets = self._context.encode(frame)
        except av.error.FFmpegError as error:
            raise RecordingError(f"a picture cannot be encoded as H.264 ({error.strerror})") from error
        if len(packets) != 1:
            raise RecordingError(f"the H.264 encoder made {len(packets)} units of one picture")
        return bytes(packets[0])


class _Decoder:
    """A decoder somewhere in a camera's stream."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._context: Any = av.CodecContext.create("h264", "r")
        self._context.thread_count = 1
        self._context.options = {"flags": "low_delay", "max_pixels": str(max(4096, size[0] * size[1] * 2))}
        self._size = size
        self._at = -1
        self._last: U8 | None = None

    def picture(self, index: int, unit: Callable[[int], bytes], where: str) -> U8:
        first = index - index % GROUP
        if self._last is not None and self._at == index:
            return self._last
        if self._last is not None and first <= self._at < index:
            first = self._at + 1
        else:
            self._context.flush_buffers()
        self._last = None
        frames: list[Any] = []
        try:
            for number in range(first, index + 1):
                frames = self._context.decode(av.Packet(unit(number)))
        except av.error.FFmpegError as error:
            raise DamagedError(f"{where} is not H.264 ({error.strerror})") from error
        if len(frames) != 1 or (frames[0].height, frames[0].width) != self._size:
            raise DamagedError(f"{where} is no H.264 picture of {self._size[1]}x{self._size[0]}")
        planes = frames[0].to_ndarray(format="yuv420p")
        self._at, self._last = index, np.asarray(cv2.cvtColor(planes, cv2.COLOR_YUV2RGB_I420), np.uint8)
        return self._last


class _Local(threading.local):
    def __init__(self) -> None:
        self.decoders: OrderedDict[str, _Decoder] = OrderedDict()


_local = _Local()


def decode(stream: str, size: tuple[int, int], index: int, unit: Callable[[int], bytes], where: str) -> U8:
    """Picture ``index`` of the stream named ``stream`` as uint8 RGB (H, W, 3); not to be written to.

    ``unit(n)`` gives the stored bytes of picture n. In order, each costs one decoding; at random half a
    group. Raises DamagedError naming ``where``, and what ``unit`` raises.
    """
    decoders = _local.decoders
    found = decoders.get(stream)
    if found is None:
        found = decoders[stream] = _Decoder(size)
        while len(decoders) > _DECODERS:
            decoders.popitem(last=False)
    decoders.move_to_end(stream)
    return found.picture(index, unit, where)
