"""The last seconds, held in memory while nothing is recorded, so that they can be kept after all.

Numbers as they come, pictures as JPEG, made by a thread of its own: the control loop pays for a copy.
Bounded in seconds and in bytes. What the thread does not get to in time is left out, as a gap in the
sequence numbers.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from episodes.writer import EpisodeWriter

_WAITING = 32  # pictures; at two cameras half a second
_ROW_BYTES = 160  # what a row of six costs in memory, about


@dataclass(frozen=True, slots=True)
class _Item:
    t_ns: int
    size: int
    put: Callable[[EpisodeWriter], object]
    stream: str = ""


class Preroll:
    """Takes what an `EpisodeWriter` takes, by the same names; ``take`` may be called from any thread."""

    def __init__(self, seconds: float, max_bytes: int, quality: int) -> None:
        self.seconds = seconds
        self._ns = round(seconds * 1e9)
        self._max_bytes = max_bytes
        self._quality = quality
        self._items: deque[_Item] = deque()
        self._bytes = 0
        self._lock = threading.Lock()
        self._raw: queue.Queue[tuple[str, int, int, npt.NDArray[np.uint8], bool]] = queue.Queue(_WAITING)
        threading.Thread(target=self._encode, name="preroll", daemon=True).start()

    def append(self, stream: str, t_ns: int, seq: int, value: npt.ArrayLike) -> None:
        """Hold one row."""
        data = np.array(value)
        self._hold(_Item(t_ns, _ROW_BYTES, lambda writer: writer.append(stream, t_ns, seq, data), stream))

    def append_frame(
        self, camera: str, t_ns: int, seq: int, rgb: npt.NDArray[np.uint8], repeated: bool = False
    ) -> None:
        """Hold one picture, uint8 RGB (H, W, 3); left out when the encoder is behind."""
        if not self._raw.full():
            self._raw.put_nowait((camera, t_ns, seq, rgb.copy(), repeated))

    def forget(self) -> None:
        """What was held is recorded now, or out of date."""
        with self._lock:
            self._items.clear()
            self._bytes = 0

    def take(self) -> list[_Item]:
        """What is held, in the order of its times; it is held no longer."""
        with self._lock:
            items = sorted(self._items, key=lambda item: item.t_ns)
            self._items.clear()
            self._bytes = 0
        return items

    @property
    def bytes(self) -> int:
        """Memory held, about."""
        return self._bytes

    def _hold(self, item: _Item) -> None:
        with self._lock:
            self._items.append(item)
            self._bytes += item.size
            oldest_ns = item.t_ns - self._ns
            while self._items[0].t_ns < oldest_ns or (self._bytes > self._max_bytes and len(self._items) > 1):
                self._bytes -= self._items.popleft().size

    def _encode(self) -> None:
        while True:
            self._encode_one(*self._raw.get())

    def _encode_one(
        self, camera: str, t_ns: int, seq: int, rgb: npt.NDArray[np.uint8], repeated: bool
    ) -> None:
        bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
        encoded, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, self._quality])
        if encoded:
            data = jpeg.tobytes()
            self._hold(
                _Item(t_ns, len(data), lambda writer: writer.append_jpeg(camera, t_ns, seq, data, repeated))
            )
