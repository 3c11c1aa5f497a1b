"""How pictures travel to a policy server that does not share our memory: raw, or as JPEG.

Raw costs bytes, JPEG costs time at both ends and a little of the picture. Which is faster depends on the
way there, so it is measured: what every answered request took, less the server's own time and the time
an empty message takes, for its bytes.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hal.types import Frame
from protos.codec import encode_image
from protos.ratchet.v1 import common_pb2 as pb

Encoding = Literal["raw", "jpeg"]
Choice = Literal["auto", "raw", "jpeg"]

JPEG_QUALITY = 90
_GAIN = 1 / 8
_RECENT = 9
_BETTER = 0.7  # the other way must take less than this share of the present one's time ...
_PATIENCE = 8  # ... by so many requests in a row
_SAMPLE_EVERY = 128  # requests sent raw, of which one is also encoded to know what it would cost
_WORTH_S = 0.002  # a way there that takes less raw is not worth looking at


@dataclass(frozen=True, slots=True)
class Packed:
    """Encoded pictures, their bytes, and what encoding them took, s."""

    images: tuple[pb.Image, ...]
    encoding: Encoding
    size: int
    took_s: float


@dataclass(frozen=True, slots=True)
class WireFigures:
    """What is known: bytes/s of the way there (0: nothing yet), bytes of a request's pictures, times in s."""

    encoding: Encoding
    bytes_per_s: float
    raw_bytes: float
    jpeg_bytes: float
    jpeg_s: float
    switches: int


class PictureWire:
    """Packs the pictures of each request, and learns from what sending them took.

    ``pack`` may run in a thread of its own, one call at a time; everything else on the event loop.
    """

    def __init__(self, choice: Choice = "auto", quality: int = JPEG_QUALITY) -> None:
        self._choice = choice
        self._quality = quality
        self._encoding: Encoding = "jpeg" if choice == "jpeg" else "raw"
        self._seconds_per_byte = 0.0
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._empty_s = float("inf")
        self._raw_bytes = self._jpeg_bytes = self._jpeg_s = 0.0
        self._packed = 0
        self._in_a_row = 0
        self.switches = 0

    @property
    def encoding(self) -> Encoding:
        """How the next pictures travel."""
        return self._encoding

    @property
    def costly(self) -> bool:
        """Whether packing takes so long that it must not run on the event loop."""
        return self._encoding == "jpeg" or self._due()

    def pack(self, frames: Sequence[Frame]) -> Packed:
        """Encode the pictures of a request. Raises CodecError when one is no picture."""
        self._packed += 1
        if self._encoding == "raw" and self._due():
            self._note_jpeg(self._encode(frames, "jpeg"))
        packed = self._encode(frames, self._encoding)
        if packed.encoding == "jpeg":
            self._note_jpeg(packed)
        self._raw_bytes = float(sum(frame.image.nbytes for frame in frames))
        return packed

    def sent(self, packed: Packed, round_trip_s: float, server_s: float) -> None:
        """A request with these pictures was answered after ``round_trip_s``, the server's part included."""
        way_s = max(round_trip_s - server_s, 0.0)
        spent_s = way_s - min(self._empty_s, way_s)
        per_byte = spent_s / max(packed.size, 1)
        self._recent.append(per_byte)
        # The median: one answer that was held up says nothing of the way.
        self._seconds_per_byte = statistics.median(self._recent)
        self._decide()

    def beat(self, round_trip_s: float) -> None:
        """An empty message was answered after ``round_trip_s``: what does not depend on bytes."""
        # The least of what was seen lately: waiting for a processor is no property of the way.
        self._empty_s = min(round_trip_s, self._empty_s * 1.02)

    def forget(self) -> None:
        """Another connection: nothing is known of the way."""
        self._recent.clear()
        self._seconds_per_byte, self._empty_s, self._in_a_row = 0.0, float("inf"), 0

    def figures(self) -> WireFigures:
        """What is known now."""
        rate = 1.0 / self._seconds_per_byte if self._seconds_per_byte > 0.0 else 0.0
        return WireFigures(
            self._encoding, rate, self._raw_bytes, self._jpeg_bytes, self._jpeg_s, self.switches
        )

    def _due(self) -> bool:
        worth = self._seconds_per_byte * self._raw_bytes > _WORTH_S
        return self._choice == "auto" and worth and (not self._jpeg_s or self._packed % _SAMPLE_EVERY == 0)

    def _encode(self, frames: Sequence[Frame], encoding: Encoding) -> Packed:
        quality = self._quality if encoding == "jpeg" else None
        if quality is not None:
            import cv2  # noqa: F401 (loading it takes long, and only once: not to be measured)
        began = time.perf_counter()
        images = tuple(encode_image(f.camera, f.image, f.seq, f.t_ns, quality) for f in frames)
        size = sum(len(image.data) for image in images)
        return Packed(images, encoding, size, time.perf_counter() - began)

    def _note_jpeg(self, packed: Packed) -> None:
        first = self._jpeg_s == 0.0
        gain = 1.0 if first else _GAIN
        self._jpeg_s += gain * (packed.took_s - self._jpeg_s)
        self._jpeg_bytes += gain * (packed.size - self._jpeg_bytes)

    def _decide(self) -> None:
        """Change over when the other way has been clearly faster for a while."""
        if self._choice != "auto" or not self._jpeg_s:
            return
        raw_s = self._raw_bytes * self._seconds_per_byte
        jpeg_s = self._jpeg_bytes * self._seconds_per_byte + 2 * self._jpeg_s  # decoding costs about as much
        here, there = (raw_s, jpeg_s) if self._encoding == "raw" else (jpeg_s, raw_s)
        self._in_a_row = self._in_a_row + 1 if there < _BETTER * here else 0
        if self._in_a_row >= _PATIENCE:
            self._encoding = "jpeg" if self._encoding == "raw" else "raw"
            self._in_a_row = 0
            self.switches += 1
