"""Reading a published episode. Everything is loaded when asked for, and checked when loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from episodes.decoding import decode_into, encode_jpeg, resize
from episodes.decoding import decode_jpeg as decode_jpeg  # part of this module's interface
from episodes.errors import DamagedError, UnknownEpisodeError
from episodes.marker import Marker, read_marker
from episodes.spec import EpisodeMeta, FlagRow, InterventionRow, PictureCodec
from episodes.zarrfile import ArrayFile

_SHOWN_QUALITY = 95  # of a JPEG that is made of H.264, to be looked at or exported


@dataclass(frozen=True, slots=True)
class StreamData:
    """A whole stream: ``t_ns`` and ``seq`` int64 (n,), ``values`` (n, …) in the stream's unit."""

    t_ns: npt.NDArray[np.int64]
    seq: npt.NDArray[np.int64]
    values: npt.NDArray[Any]
    unit: str
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.t_ns)


class Streams(Mapping[str, StreamData]):
    """The streams of an episode by name, read on first use."""

    def __init__(self, folder: Path, meta: EpisodeMeta) -> None:
        self._folder = folder
        self._meta = meta
        self._times: dict[str, npt.NDArray[np.int64]] = {}
        self._loaded: dict[str, StreamData] = {}

    def __getitem__(self, name: str) -> StreamData:
        """Raises KeyError for an unknown stream, DamagedError when its bytes are not what was written."""
        if name not in self._loaded:
            described = self._meta.streams[name]
            if described.time not in self._times:
                self._times[described.time] = ArrayFile(self._folder / described.time).read()
            clock = self._times[described.time]
            values = ArrayFile(self._folder / name).read()
            if len(values) != described.rows or len(clock) != described.rows:
                raise DamagedError(f"{self._folder / name} does not have the rows its marker says")
            self._loaded[name] = StreamData(clock[:, 0], clock[:, 1], values, described.unit, described.names)
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._meta.streams)

    def __len__(self) -> int:
        return len(self._meta.streams)


class FrameSeq:
    """The frames of one camera, each read and decoded when asked for.

    ``t_ns``, ``seq`` int64 (n,), ``repeated`` bool (n,); ``lengths`` int64 (n,) are sizes in bytes as stored,
    ``size`` is (height, width). A JPEG is decoded on its own; of H.264 its group up to there, or, read in
    order, what is new.
    """

    def __init__(
        self, folder: Path, camera: str, size: tuple[int, int], codec: PictureCodec = "jpeg"
    ) -> None:
        index = ArrayFile(folder / f"frames.{camera}.index").read()
        self.camera = camera
        self.size = size
        self.codec = codec
        self.t_ns: npt.NDArray[np.int64] = index[:, 0]
        self.seq: npt.NDArray[np.int64] = index[:, 1]
        self.repeated: npt.NDArray[np.bool_] = index[:, 2].astype(bool)
        self._offsets = index[:, 3]
        self.lengths: npt.NDArray[np.int64] = index[:, 4]
        self._crcs = index[:, 5]
        self._blob = ArrayFile(folder / f"frames.{camera}")

    def __len__(self) -> int:
        return len(self.t_ns)

    def jpeg(self, index: int) -> bytes:
        """Frame ``index`` as JPEG: the stored one, or one made of H.264. Raises IndexError, DamagedError."""
        if self.codec == "h264":
            return encode_jpeg(self._picture(index), _SHOWN_QUALITY)
        return self.stored(index)

    def stored(self, index: int) -> bytes:
        """The bytes of frame ``index`` as stored, checked. Raises IndexError, DamagedError."""
        data = self._blob.read_bytes(int(self._offsets[index]), int(self.lengths[index]))
        return self._checked(index, data)

    def __getitem__(self, index: int) -> npt.NDArray[np.uint8]:
        """Frame ``index`` as uint8 RGB (H, W, 3). Raises IndexError, DamagedError."""
        if self.codec == "h264":
            return self._picture(index).copy()
        return decode_jpeg(self.stored(index), self._where(index))

    def read_into(self, index: int, out: npt.NDArray[np.uint8]) -> None:
        """Decode frame ``index`` into ``out`` uint8 RGB (H, W, 3), at the size of ``out``.

        How it gets that size is told in `episodes.decoding`. Raises IndexError, DamagedError.
        """
        if self.codec == "h264":
            out[...] = resize(self._picture(index), (out.shape[0], out.shape[1]))
        else:
            decode_into(self.stored(index), self.size, out, self._where(index))

    def jpegs(self) -> list[bytes]:
        """All frames as JPEG, checked: stored ones in one pass over the file."""
        if self.codec == "h264":
            return [self.jpeg(index) for index in range(len(self))]
        total = int(self.lengths.sum())
        blob = self._blob.read_bytes(0, total) if total else b""
        return [
            self._checked(i, blob[o : o + n])
            for i, (o, n) in enumerate(zip(self._offsets.tolist(), self.lengths.tolist(), strict=True))
        ]

    def _picture(self, index: int) -> npt.NDArray[np.uint8]:
        from episodes.h264 import decode  # FFmpeg is loaded by those who need it

        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"camera {self.camera} has frames 0 to {len(self) - 1}")
        return decode(str(self._blob.folder), self.size, index, self.stored, self._where(index))

    def _where(self, index: int) -> str:
        return f"frame {index} of {self._blob.folder}"

    def _checked(self, index: int, data: bytes) -> bytes:
        if google_crc32c.value(data) != int(self._crcs[index]):
            raise DamagedError(
                f"frame {index} of {self._blob.folder} is damaged (fails its checksum)",
                "run verify on the store and restore the episode from a copy",
            )
        return data


class Episode:
    """One published episode: ``meta``, ``streams``, ``frames``, ``flags``, ``interventions``."""

    def __init__(self, folder: Path) -> None:
        """Reads and checks the commit marker. Raises UnknownEpisodeError, DamagedError."""
        if not folder.is_dir():
            raise UnknownEpisodeError(f"no episode {folder.name} in {folder.parent}", "list what there is")
        self.folder = folder
        self.marker: Marker = read_marker(folder)
        self.meta: EpisodeMeta = self.marker.meta
        self.streams = Streams(folder, self.meta)

    @property
    def id(self) -> str:
        """The episode's id."""
        return self.meta.id

    @property
    def digest(self) -> str:
        """Content digest: equal for equal data."""
        return self.marker.content_digest()

    @property
    def flags(self) -> tuple[FlagRow, ...]:
        """What was noticed while it was recorded."""
        return self.meta.flags

    @property
    def interventions(self) -> tuple[InterventionRow, ...]:
        """Spans in which somebody took over."""
        return self.meta.interventions

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras."""
        return tuple(self.meta.cameras)

    def frames(self, camera: str) -> FrameSeq:
        """The frames of ``camera``. Raises KeyError, DamagedError."""
        if camera not in self.meta.cameras:
            raise KeyError(
                f"episode {self.id} has no camera {camera!r}; it has {', '.join(self.cameras) or 'none'}"
            )
        described = self.meta.cameras[camera]
        return FrameSeq(self.folder, camera, (described.height, described.width), described.codec)
