"""Videos put end to end by copying their packets: nothing is decoded, nothing is encoded again.

Plain mp4 files go by ``mp4_join``; others, and those whose frames are reordered, through libavformat.

Each packet gets the time its frame has on LeRobot's grid, (frames before + its place) / fps, exactly: the
reader finds frames by ``round(time × fps)`` and refuses those off by more than 0.1 ms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np

from episodes.errors import ImportRefusedError
from episodes.lerobot import bounds
from episodes.lerobot.mp4 import read_track
from episodes.lerobot.mp4_join import TICKS, join

_HELD_BYTES = 64 << 20  # a video up to this size is read once, a larger one twice


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """What a video's header says. ``layout`` is equal for videos whose packets fit into one track,
    ``identity`` differs between videos of different frames."""

    frames: int
    width: int
    height: int
    layout: str
    bytes: int
    identity: str


def video_facts(path: Path) -> VideoFacts:
    """Read a video's header. Raises ImportRefusedError naming a file that is missing or no video."""
    size = bounds.regular(path, "video")
    track = read_track(path)
    if track is not None:
        sizes = hashlib.sha256(track.sizes.tobytes()).hexdigest()[:16]
        facts = VideoFacts(len(track.sizes), track.width, track.height, track.layout, size, sizes)
    else:
        facts = _by_libavformat(path, size)
    if not 0 < max(facts.width, facts.height) <= bounds.PIXELS:
        raise ImportRefusedError(f"video {path} is {facts.width}×{facts.height} pixels", "check it")
    return facts


def _by_libavformat(path: Path, size: int) -> VideoFacts:
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            context = stream.codec_context
            extra = hashlib.sha256(bytes(context.extradata or b"")).hexdigest()[:16]
            known = (context.name, stream.width, stream.height, context.pix_fmt, extra)
            frames = stream.frames or sum(1 for p in container.demux(stream) if p.size)
            return VideoFacts(
                frames, stream.width, stream.height, " ".join(map(str, known)), size, f"{size} {frames}"
            )
    except (av.FFmpegError, IndexError) as error:
        raise ImportRefusedError(f"video {path} cannot be read ({error})", "check the download") from error


def put_end_to_end(path: Path, sources: Sequence[Path], fps: int) -> int:
    """Write the mp4 ``path`` from videos of one layout; the number of frames.

    Raises ImportRefusedError naming a source that cannot be read to its end.
    """
    tracks = [(source, read_track(source)) for source in sources]
    plain = [(source, track) for source, track in tracks if track is not None]
    if len(plain) == len(tracks):
        join(path, plain, fps)
        return sum(len(track.sizes) for _, track in plain)
    with Joiner(path, fps) as joiner:
        for source in sources:
            joiner.append(source)
    return joiner.frames


class Joiner:
    """An mp4 file that videos of any kind are appended to, packet by packet.

    Use with ``with``: it is whole only after the end.
    """

    def __init__(self, path: Path, fps: int) -> None:
        self._path, self._fps = path, fps
        self._clock = Fraction(1, fps * TICKS)
        self._out = av.open(str(path), "w", format="mp4", options={"movflags": "faststart"})
        self._stream: Any = None
        self._delay = 0
        self.frames = 0

    def append(self, path: Path) -> int:
        """Copy the packets of ``path``; the number of frames they make.

        Raises ImportRefusedError when it cannot be read to its end.
        """
        held: list[Any] | None = [] if path.stat().st_size <= _HELD_BYTES else None
        try:
            place = _places(path, held)
            if _delay(place) > self._delay and self._stream is not None:
                raise ImportRefusedError(
                    f"video {path} reorders its frames more than those before it", "encode again (--encode)"
                )
            with av.open(str(path)) as source:
                stream = source.streams.video[0]
                if self._stream is None:
                    self._stream = self._out.add_stream_from_template(stream, opaque=True)
                    self._stream.time_base = self._clock
                    self._delay = _delay(place)
                packets = held if held is not None else (p for p in source.demux(stream) if p.size)
                for number, packet in enumerate(packets):
                    packet.stream = self._stream
                    packet.time_base = self._clock
                    packet.pts = (self.frames + place[number]) * TICKS
                    packet.dts = (self.frames + number - self._delay) * TICKS
                    packet.duration = TICKS
                    self._out.mux(packet)
        except (av.FFmpegError, IndexError) as error:
            raise ImportRefusedError(f"video {path} cannot be copied ({error})", "check it") from error
        self.frames += len(place)
        return len(place)

    def __enter__(self) -> Joiner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._out.close()


def _places(path: Path, held: list[Any] | None) -> list[int]:
    """For each packet in the order of the file, the place of its frame in the order of showing.

    The packets themselves go to ``held``, if that is a list.
    """
    try:
        with av.open(str(path)) as source:
            times = []
            for packet in source.demux(source.streams.video[0]):
                if packet.size:
                    if packet.is_corrupt or packet.pts is None:
                        raise ImportRefusedError(f"video {path} has a packet without time or a broken one")
                    times.append(packet.pts)
                    if held is not None:
                        held.append(packet)
    except (av.FFmpegError, IndexError, FileNotFoundError) as error:
        raise ImportRefusedError(f"video {path} cannot be read ({error})", "check the download") from error
    order = np.empty(len(times), np.int64)
    order[np.argsort(np.asarray(times, np.int64), kind="stable")] = np.arange(len(times))
    return order.tolist()


def _delay(place: list[int]) -> int:
    """By how many frames decoding has to run ahead of showing; 0 unless frames are reordered."""
    return max((i - p for i, p in enumerate(place)), default=0)
