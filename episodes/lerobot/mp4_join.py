"""Plain mp4 files put end to end: new tables in front, the frames copied by the kernel in long stretches.

Frame i is shown at i / fps exactly. Nothing is decoded, and no frame passes through this program.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from episodes.errors import ImportRefusedError
from episodes.lerobot.mp4 import Track, box

TICKS = 512  # of the track's clock per frame
_MATRIX = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
_FULL = bytes(4)  # version and flags


def join(path: Path, sources: Sequence[tuple[Path, Track]], fps: int) -> int:
    """Write ``path`` from ``sources``, which have one layout; the bytes of all frames.

    Raises ImportRefusedError when a source ends early, OSError when the disk is full.
    """
    first = sources[0][1]
    start = b"av01" if first.entry[4:8] == b"av01" else b"avc1"
    head = box(b"ftyp", b"isom", struct.pack(">I", 512), b"isomiso2", start, b"mp41")
    runs = [run for _, track in sources for run in track.runs()]
    total = sum(size for _, size, _ in runs)
    begin = len(head) + len(_moov(sources, fps, 0)) + 16
    with path.open("wb") as out:
        out.write(head + _moov(sources, fps, begin) + struct.pack(">I4sQ", 1, b"mdat", total + 16))
        out.flush()
        for source, track in sources:
            with source.open("rb") as file:
                for offset, size, _ in track.runs():
                    _copy(out.fileno(), file.fileno(), offset, size, source)
    return total


def _copy(target: int, source: int, offset: int, size: int, name: Path) -> None:
    while size:
        copied = os.sendfile(target, source, offset, size)
        if not copied:
            raise ImportRefusedError(f"video {name} became shorter while it was copied", "convert again")
        offset, size = offset + copied, size - copied


def _moov(sources: Sequence[tuple[Path, Track]], fps: int, begin: int) -> bytes:
    tracks = [track for _, track in sources]
    frames = sum(len(t.sizes) for t in tracks)
    shown_ms = min(frames * 1000 // fps, (1 << 32) - 1)
    first = tracks[0]
    movie = struct.pack(">IIIIIH10x", 0, 0, 1000, shown_ms, 1 << 16, 256) + _MATRIX + bytes(24)
    header = struct.pack(">IIIII16x", 0, 0, 1, 0, shown_ms) + _MATRIX
    header += struct.pack(">II", first.width << 16, first.height << 16)
    media = struct.pack(">IQQIQHH", 1 << 24, 0, 0, fps * TICKS, frames * TICKS, 0x55C4, 0)
    here = box(b"dref", _FULL, struct.pack(">I", 1), box(b"url ", struct.pack(">I", 1)))
    info = box(
        b"minf",
        box(b"vmhd", struct.pack(">I8x", 1)),
        box(b"dinf", here),
        _table(tracks, frames, begin),
    )
    handler = box(b"hdlr", struct.pack(">II4s12x", 0, 0, b"vide"), b"VideoHandler\0")
    track = box(
        b"trak",
        box(b"tkhd", struct.pack(">I", 3), header),
        box(b"mdia", box(b"mdhd", media), handler, info),
    )
    return box(b"moov", box(b"mvhd", _FULL, movie + struct.pack(">I", 2)), track)


def _table(tracks: Sequence[Track], frames: int, begin: int) -> bytes:
    runs = np.array([run for t in tracks for run in t.runs()], np.int64)
    chunks = begin + np.cumsum(runs[:, 1]) - runs[:, 1]
    changes = np.flatnonzero(np.concatenate([[True], np.diff(runs[:, 2]) != 0]))
    each = np.stack([changes + 1, runs[changes, 2], np.ones_like(changes)], axis=1)
    counts = np.array([len(t.sizes) for t in tracks])
    before = np.cumsum(counts) - counts
    keys = np.concatenate([t.keys + b + 1 for t, b in zip(tracks, before, strict=True)])
    sizes = np.concatenate([t.sizes for t in tracks])
    parts = [
        box(b"stsd", _FULL, struct.pack(">I", 1), tracks[0].entry),
        box(b"stts", _FULL, struct.pack(">III", 1, frames, TICKS)),
        box(b"stsc", _FULL, struct.pack(">I", len(each)), each.astype(">u4")),
        box(b"stsz", _FULL, struct.pack(">II", 0, frames), sizes.astype(">u4")),
        box(b"co64", _FULL, struct.pack(">I", len(chunks)), chunks.astype(">u8")),
    ]
    if len(keys) != frames:
        parts.append(box(b"stss", _FULL, struct.pack(">I", len(keys)), keys.astype(">u4")))
    return box(b"stbl", *parts)
