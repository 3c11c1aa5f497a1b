"""Where the frames of a plain mp4 file lie: its sample tables (ISO/IEC 14496-12), read without its frames.

Only what recorders of datasets write is understood: one sample entry, frames shown in the order they are
decoded, no fragments. For anything else ``read_track`` returns None, and libavformat has to look at it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

MOOV_BYTES = 64 << 20
FRAMES = 10_000_000  # of one file
_BOXES = 1000  # at the top of a file, or in one box
_ENTRY_HEADER = 86  # of a VisualSampleEntry, with the box's own
_CODECS = {b"av01", b"avc1", b"avc3", b"hvc1", b"hev1", b"vp09", b"mp4v"}

_Ints = npt.NDArray[np.int64]
_Boxes = dict[bytes, list[bytes]]


@dataclass(frozen=True, slots=True)
class Track:
    """The video track of a file: offset and size in bytes of every frame, and which are key frames.

    ``entry`` is its sample entry box without the bit rate: equal for tracks whose frames fit together.
    """

    entry: bytes
    width: int
    height: int
    offsets: _Ints
    sizes: _Ints
    keys: _Ints

    @property
    def layout(self) -> str:
        """Equal for tracks whose frames fit into one track."""
        return f"mp4 {self.width}x{self.height} {hashlib.sha256(self.entry).hexdigest()[:16]}"

    def runs(self) -> list[tuple[int, int, int]]:
        """Offset, bytes and frames of each stretch that lies in the file without a gap."""
        ends = self.offsets + self.sizes
        starts = np.flatnonzero(np.concatenate([[True], self.offsets[1:] != ends[:-1]]))
        lasts = np.append(starts[1:], len(ends)) - 1
        return [
            (int(self.offsets[a]), int(ends[b] - self.offsets[a]), int(b - a + 1))
            for a, b in zip(starts, lasts, strict=True)
        ]


def read_track(path: Path) -> Track | None:
    """The video track of ``path``; None when it is not as plain as this module needs it.

    Raises OSError when the file cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        try:
            moov = _moov(file, size)
            return None if moov is None else _track(moov, size)
        except (ValueError, IndexError, KeyError, OverflowError, struct.error):
            return None  # malformed: libavformat says how


def _moov(file: BinaryIO, size: int) -> bytes | None:
    at, found = 0, None
    for _ in range(_BOXES):
        file.seek(at)
        header = file.read(16)
        if len(header) < 8:
            break
        length, kind = struct.unpack_from(">I4s", header)
        if length == 1:
            length = struct.unpack_from(">Q", header, 8)[0]
        elif length == 0:
            length = size - at
        if length < 8 or kind == b"moof":
            return None
        if kind == b"moov":
            if length > MOOV_BYTES:
                return None
            file.seek(at)
            found = file.read(length)[8:]
        at += length
    return found


def _children(data: bytes, at: int = 0) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of the boxes in ``data``."""
    for _ in range(_BOXES):
        if len(data) - at < 8:
            return
        length, kind = struct.unpack_from(">I4s", data, at)
        if length < 8 or at + length > len(data):
            raise ValueError("a box does not fit into the one it is in")
        yield kind, data[at + 8 : at + length]
        at += length
    raise ValueError("too many boxes")


def _boxes(data: bytes) -> _Boxes:
    out: _Boxes = {}
    for kind, content in _children(data):
        out.setdefault(kind, []).append(content)
    return out


def _track(moov: bytes, size: int) -> Track | None:
    top = _boxes(moov)
    if b"mvex" in top:
        return None
    for trak in map(_boxes, top[b"trak"]):
        media = _boxes(trak[b"mdia"][0])
        if media[b"hdlr"][0][8:12] != b"vide":
            continue
        if b"edts" in trak and not _whole(_boxes(trak[b"edts"][0])):
            return None
        return _of_table(_boxes(_boxes(media[b"minf"][0])[b"stbl"][0]), size)
    return None


def _whole(edits: _Boxes) -> bool:
    """Whether an edit list shows the track from its beginning, once."""
    for data in edits.get(b"elst", []):
        form = ">Qqi" if data[0] == 1 else ">Iii"
        count, (_, start, rate) = struct.unpack_from(">I", data, 4)[0], struct.unpack_from(form, data, 8)
        if (count, start, rate) != (1, 0, 1 << 16):
            return False
    return True


def _of_table(table: _Boxes, size: int) -> Track | None:
    if b"ctts" in table:
        return None
    entry, width, height = _entry(table[b"stsd"][0])
    sizes = _sizes(table[b"stsz"][0])
    offsets = _offsets(table, sizes)
    keys = _numbers(table[b"stss"][0], ">u4", 1) - 1 if b"stss" in table else np.arange(len(sizes))
    durations = _numbers(table[b"stts"][0], ">u4", 2)
    fits = len(sizes) and sizes.min() > 0 and offsets.min() > 0 and int((offsets + sizes).max()) <= size
    sound = len(keys) and keys[0] == 0 and int(keys.max()) < len(sizes) and (np.diff(keys) > 0).all()
    if not fits or not sound or int(durations[0::2].sum()) != len(sizes):
        return None
    return Track(entry, width, height, offsets, sizes, keys)


def _numbers(data: bytes, kind: str, width: int, at: int = 4) -> _Ints:
    """The numbers of a table whose count of entries, each of ``width`` numbers, stands at ``at``."""
    count = struct.unpack_from(">I", data, at)[0]
    if count > FRAMES:
        raise ValueError("too many entries")
    return np.frombuffer(data, kind, count * width, at + 4).astype(np.int64)


def _entry(stsd: bytes) -> tuple[bytes, int, int]:
    """The only sample entry of a track without its bit rate, and the size of its pictures."""
    if struct.unpack_from(">I", stsd, 4)[0] != 1:
        raise ValueError("several sample entries")
    length, kind = struct.unpack_from(">I4s", stsd, 8)
    if kind not in _CODECS or length > len(stsd) - 8 or length < _ENTRY_HEADER:
        raise ValueError("a sample entry of another kind")
    entry = stsd[8 : 8 + length]
    width, height = struct.unpack_from(">HH", entry, 32)
    more = b"".join(box(k, c) for k, c in _children(entry, _ENTRY_HEADER) if k != b"btrt")
    return box(kind, entry[8:_ENTRY_HEADER] + more), width, height


def _sizes(stsz: bytes) -> _Ints:
    same, count = struct.unpack_from(">II", stsz, 4)
    if count > FRAMES:
        raise ValueError("too many frames")
    return np.full(count, same, np.int64) if same else _numbers(stsz, ">u4", 1, 8)


def _offsets(table: _Boxes, sizes: _Ints) -> _Ints:
    """Where each frame lies: frames lie in chunks one after the other."""
    wide = b"co64" in table
    chunks = _numbers(table[b"co64" if wide else b"stco"][0], ">i8" if wide else ">u4", 1)
    first, frames, entry = _numbers(table[b"stsc"][0], ">u4", 3).reshape(-1, 3).T
    if (entry != 1).any() or first[0] != 1 or (np.diff(first) <= 0).any() or first[-1] > len(chunks):
        raise ValueError("chunks are not in order")
    each = np.repeat(frames, np.diff(np.append(first, len(chunks) + 1)))
    if int(each.sum()) != len(sizes):
        raise ValueError("chunks do not hold all frames")
    before = np.cumsum(sizes) - sizes
    starts = np.cumsum(each) - each
    filled = each > 0
    inside = before - np.repeat(before[starts[filled]], each[filled])
    out: _Ints = np.repeat(chunks, each) + inside
    return out


def box(kind: bytes, *content: bytes | npt.NDArray[Any]) -> bytes:
    """A box of ``kind``; arrays go in as they lie in memory."""
    data = b"".join(c if isinstance(c, bytes) else c.tobytes() for c in content)
    return struct.pack(">I4s", len(data) + 8, kind) + data
