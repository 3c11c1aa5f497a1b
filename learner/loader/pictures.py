"""Where the pictures of a data set come from: held decoded, decoded when asked for, or from a cache.

All three are one interface: picture ``number`` of a camera, written into a row of a batch at the size
of training. A camera's pictures are numbered through all episodes of the set, in their order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import numpy.typing as npt

from episodes.errors import StoreError
from episodes.reader import Episode, FrameSeq
from learner.errors import DataError
from learner.loader.cache import DecodedCache

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]

_FILL_BLOCK = 32  # pictures a thread decodes before it looks for more


class Pictures(Protocol):
    """``sizes`` is (height, width) by camera. Methods may be called from several threads at once."""

    @property
    def sizes(self) -> Mapping[str, tuple[int, int]]: ...

    def read_into(self, camera: str, number: int, out: U8) -> None:
        """Write picture ``number`` of ``camera`` to ``out`` uint8 RGB (H, W, 3). Raises DataError."""


class StoredPictures:
    """Decoded from the episode store each time they are asked for."""

    def __init__(self, episodes: Sequence[Episode], sizes: Mapping[str, tuple[int, int]]) -> None:
        self.sizes = dict(sizes)
        self.episodes = tuple(episodes)
        self.frames: dict[str, list[FrameSeq]] = {c: [e.frames(c) for e in self.episodes] for c in self.sizes}
        self.first: dict[str, I64] = {
            c: np.cumsum([0, *(len(f) for f in seqs)], dtype=np.int64) for c, seqs in self.frames.items()
        }

    def locate(self, camera: str, number: int) -> tuple[int, int]:
        """(position of the episode, frame within it) of picture ``number``."""
        episode = int(np.searchsorted(self.first[camera], number, side="right")) - 1
        return episode, number - int(self.first[camera][episode])

    def read_into(self, camera: str, number: int, out: U8) -> None:
        """As `Pictures.read_into`."""
        episode, frame = self.locate(camera, number)
        try:
            self.frames[camera][episode].read_into(frame, out)
        except StoreError as error:
            raise DataError(f"an episode cannot be read: {error}", "run ratchet episodes verify") from error


class HeldPictures:
    """Decoded once, held as arrays. ``slots`` maps a picture's number to its row; None: they are the same."""

    def __init__(self, arrays: Mapping[str, U8], slots: Mapping[str, I64] | None = None) -> None:
        self.arrays = dict(arrays)
        self.slots = slots
        self.sizes = {c: (a.shape[1], a.shape[2]) for c, a in self.arrays.items()}

    @classmethod
    def filled(cls, source: StoredPictures, numbers: Mapping[str, I64], threads: int) -> HeldPictures:
        """The pictures ``numbers`` of ``source``, decoded by ``threads`` threads. Raises DataError."""
        arrays, slots = {}, {}
        with ThreadPoolExecutor(threads, "decode") as pool:
            for camera, wanted in numbers.items():
                out = np.empty((len(wanted), *source.sizes[camera], 3), np.uint8)
                arrays[camera] = out
                slots[camera] = np.full(int(source.first[camera][-1]), -1, np.int64)
                slots[camera][wanted] = np.arange(len(wanted))

                def decode(first: int, camera: str = camera, wanted: I64 = wanted, out: U8 = out) -> None:
                    for row in range(first, min(first + _FILL_BLOCK, len(wanted))):
                        source.read_into(camera, int(wanted[row]), out[row])

                for _ in pool.map(decode, range(0, len(wanted), _FILL_BLOCK)):
                    pass
        return cls(arrays, slots)

    def read_into(self, camera: str, number: int, out: U8) -> None:
        """As `Pictures.read_into`."""
        out[...] = self.arrays[camera][number if self.slots is None else self.slots[camera][number]]


class CachedPictures:
    """Decoded the first time they are asked for, then copied from a cache that other processes share."""

    def __init__(self, source: StoredPictures, cache: DecodedCache) -> None:
        self.sizes = source.sizes
        self._source = source
        self._cache = cache
        self._names = {
            camera: [
                cache.claim(episode.digest, camera, len(seq), size)
                for episode, seq in zip(source.episodes, source.frames[camera], strict=True)
            ]
            for camera, size in source.sizes.items()
        }

    @property
    def share(self) -> float:
        """Share of the episodes' cameras that the cache has room for."""
        names = [name for names in self._names.values() for name in names]
        return sum(name is not None for name in names) / max(1, len(names))

    def read_into(self, camera: str, number: int, out: U8) -> None:
        """As `Pictures.read_into`."""
        episode, frame = self._source.locate(camera, number)
        name = self._names[camera][episode]
        if name is None:
            self._source.read_into(camera, number, out)
            return
        file = self._cache.file(name)
        if not file.read_into(frame, out):
            self._source.read_into(camera, number, out)
            file.write(frame, out)
