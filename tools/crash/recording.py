"""The recorder that is killed: episodes in real time, and a tally that outlives the process.

The tally is a small memory-mapped file: what was handed to the store, and which episodes it said were
published. It lies outside the store and is never synced; SIGKILL does not touch the page cache.
"""

from __future__ import annotations

import itertools
import mmap
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from episodes.ref import EpisodeRef
from episodes.spec import CameraSpec, EpisodeSpec, StreamSpec
from episodes.store import EpisodeStore
from episodes.writer import EpisodeWriter

RATE_HZ = 60
EPISODE_S = 0.4
HEIGHT, WIDTH = 48, 64
SPEC = EpisodeSpec(
    task="be killed",
    fps=RATE_HZ,
    streams=(
        StreamSpec(name="action", shape=(6,), unit="rad"),
        StreamSpec(name="observation.state", shape=(6,), unit="rad"),
    ),
    cameras=(
        CameraSpec(name="front", height=HEIGHT, width=WIDTH),
        CameraSpec(name="wrist", height=HEIGHT, width=WIDTH),
    ),
    jpeg_quality=85,
)

SPEC_H264 = SPEC.model_copy(update={"codec": "h264"})

_ROW = struct.Struct("<qqq80s")  # started ns, ticks handed in, published (0 or 1), id
_ROWS = 64


class Tally:
    """Rows of (id, start, ticks, published), one for each episode that was begun."""

    def __init__(self, path: Path, create: bool = False) -> None:
        if create:
            path.write_bytes(bytes(_ROW.size * _ROWS))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    def set(self, index: int, started_ns: int, ticks: int, published: bool, name: str) -> None:
        """Overwrite row ``index``."""
        _ROW.pack_into(self._map, index * _ROW.size, started_ns, ticks, published, name.encode())

    def rows(self) -> list[tuple[str, int, int, bool]]:
        """(id, start in monotonic ns, ticks handed in, published) of every episode that was begun."""
        found = [_ROW.unpack_from(self._map, i * _ROW.size) for i in range(_ROWS)]
        return [(n.rstrip(b"\0").decode(), at, ticks, bool(done)) for at, ticks, done, n in found if at]

    def close(self) -> None:
        """Let go of the file."""
        self._map.close()


def value(tick: int) -> npt.NDArray[np.float32]:
    """What every stream holds at ``tick``: it can be checked without being remembered."""
    return np.arange(6, dtype=np.float32) + tick


def pictures() -> list[npt.NDArray[np.uint8]]:
    """Some noisy pictures that compress about as badly as a camera's."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 200, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH, 1)
    return [
        np.asarray(np.clip(ramp + rng.normal(0, 8, (HEIGHT, WIDTH, 3)), 0, 255), np.uint8) for _ in range(8)
    ]


def record_one(writer: EpisodeWriter, ticks: int, handed: Callable[[int], None]) -> None:
    """``ticks`` ticks in real time; ``handed`` is told how many the store has taken."""
    shown = pictures()
    begun = time.monotonic()
    for tick in range(ticks):
        t_ns = time.monotonic_ns()
        for camera in writer.spec.cameras:
            writer.append_frame(camera.name, t_ns, tick, shown[tick % len(shown)])
        for stream in writer.spec.streams:
            writer.append(stream.name, t_ns, tick, value(tick))
        handed(tick + 1)
        time.sleep(max(0.0, begun + (tick + 1) / RATE_HZ - time.monotonic()))


def record_until_killed(store_path: str, tally_path: str, first: int = 0) -> None:
    """The victim's main: one episode after the other, every other one H.264; never returns.

    The first is JPEG when ``first`` is even.
    """
    tally = Tally(Path(tally_path))
    store = EpisodeStore.open(store_path)
    ended: list[tuple[int, int, EpisodeRef]] = []
    ticks = round(EPISODE_S * RATE_HZ)
    for index in itertools.count():
        writer = store.begin(SPEC if (first + index) % 2 == 0 else SPEC_H264)
        started_ns = time.monotonic_ns()
        tally.set(index, started_ns, 0, False, writer.id)

        def handed(count: int, row: tuple[int, int, str] = (index, started_ns, writer.id)) -> None:
            tally.set(row[0], row[1], count, False, row[2])
            while ended and ended[0][2].done:
                number, at, ref = ended.pop(0)
                ref.wait()
                tally.set(number, at, ticks, True, ref.id)

        record_one(writer, ticks, handed)
        ended.append((index, started_ns, writer.end("success", "done")))
