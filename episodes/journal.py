"""The append journal an episode lives in while it runs.

A journal is a run of records: ``HEADER`` (what is recorded), ``GROUP`` (everything that came in
since the last group), ``END`` (how it ended). Each record carries its length, kind, sequence number
and a CRC32C over all of it, so that a torn tail is recognised and cut. A group is one record: it
is there whole or not at all, and once fdatasync has returned it is committed.

Inside a group are blocks: rows of one stream, one JPEG frame, or one event (flag, intervention,
drops).
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import google_crc32c

from episodes.errors import DamagedError
from episodes.files import FileLayer

_RECORD = struct.Struct("<2sBBIQ")  # magic, version, kind, sequence, payload bytes; then crc32c
_CRC = struct.Struct("<I")
_BLOCK = struct.Struct("<BHI")  # kind, stream or camera index, bytes that follow
_FRAME = struct.Struct("<qqBI")  # t_ns, seq, repeated, crc32c of the JPEG
_MAGIC = b"RJ"
_VERSION = 1
_HEAD_BYTES = _RECORD.size + _CRC.size
_MAX_PAYLOAD = 1 << 31  # no record is near this: a larger length is damage, not data


class RecordKind(IntEnum):
    """Kinds of journal records."""

    HEADER = 1
    GROUP = 2
    END = 3


Data = bytes | mmap.mmap
"""A journal's bytes; slices are copies, so a map may be closed at any time."""

_KINDS = frozenset(map(int, RecordKind))


class BlockKind(IntEnum):
    """Kinds of blocks inside a group."""

    ROWS = 1
    FRAME = 2
    EVENT = 3


@dataclass(frozen=True, slots=True)
class FrameRow:
    """One frame of a camera: its times and where its JPEG lies in the journal."""

    t_ns: int
    seq: int
    repeated: bool
    offset: int
    length: int
    crc: int


class GroupBuilder:
    """Collects blocks until they are committed as one record."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.size = 0

    def _add(self, *parts: bytes) -> None:
        self._parts.extend(parts)
        self.size += sum(map(len, parts))

    def rows(self, index: int, data: bytes) -> None:
        """Packed rows of stream ``index`` (layout: StreamSpec.row_dtype)."""
        self._add(_BLOCK.pack(BlockKind.ROWS, index, len(data)), data)

    def frame(self, index: int, t_ns: int, seq: int, repeated: bool, jpeg: bytes) -> tuple[int, int]:
        """One JPEG of camera ``index``; returns its offset in the payload and its CRC32C."""
        crc = google_crc32c.value(jpeg)
        head = _FRAME.pack(t_ns, seq, repeated, crc)
        self._add(_BLOCK.pack(BlockKind.FRAME, index, len(head) + len(jpeg)), head, jpeg)
        return self.size - len(jpeg), crc

    def event(self, event: dict[str, Any]) -> None:
        """A flag, an intervention or the drop counts, as JSON."""
        data = json.dumps(event).encode()
        self._add(_BLOCK.pack(BlockKind.EVENT, 0, len(data)), data)

    def take(self) -> bytes:
        """The payload so far; the builder starts anew."""
        payload = b"".join(self._parts)
        self._parts = []
        self.size = 0
        return payload


class JournalWriter:
    """Appends records to a new journal file. Every method may raise OSError."""

    def __init__(self, path: Path, files: FileLayer, durable: bool) -> None:
        self.path = path
        self._files = files
        self._durable = durable
        self._fd = files.create(path)
        self._seq = 0
        self.committed_bytes = 0

    def append(self, kind: RecordKind, payload: bytes) -> int:
        """Write and commit one record; returns the file offset of its payload."""
        head = _RECORD.pack(_MAGIC, _VERSION, kind, self._seq, len(payload))
        crc = google_crc32c.extend(google_crc32c.value(head), payload)
        self._files.write(self._fd, b"".join((head, _CRC.pack(crc), payload)))
        if self._durable:
            self._files.datasync(self._fd)
            if self._seq == 0:  # the file's name, too
                self._files.sync_path(self.path.parent)
        start = self.committed_bytes + _HEAD_BYTES
        self._seq += 1
        self.committed_bytes = start + len(payload)
        return start

    def cut_torn_tail(self) -> None:
        """After a failed append: back to the committed prefix."""
        self._files.truncate(self._fd, self.committed_bytes)

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@dataclass(frozen=True, slots=True)
class Record:
    """One valid record and the file offset of its payload."""

    kind: RecordKind
    payload: bytes
    offset: int


@dataclass(slots=True)
class ScanEnd:
    """Where a scan stopped: ``torn`` bytes after the last valid record; ``damaged`` when they hold
    more than the one record a crash can tear."""

    valid_bytes: int = 0
    torn_bytes: int = 0
    damaged: bool = False


def scan(data: Data, end: ScanEnd) -> Iterator[Record]:
    """The valid records of a journal in order; fills ``end`` when exhausted."""
    position = 0
    sequence = 0
    while (record := _parse(data, position, sequence)) is not None:
        yield record
        position = record.offset + len(record.payload)
        sequence += 1
    end.valid_bytes = position
    end.torn_bytes = len(data) - position
    end.damaged = _more_follows(data, position)


def _parse(data: Data, position: int, sequence: int) -> Record | None:
    start = position + _HEAD_BYTES
    if start > len(data):
        return None
    head = data[position : position + _RECORD.size]
    magic, version, kind, seq, length = _RECORD.unpack(head)
    if magic != _MAGIC or version != _VERSION or seq != sequence or length > _MAX_PAYLOAD:
        return None
    payload = data[start : start + length]
    if len(payload) != length or kind not in _KINDS:
        return None
    (crc,) = _CRC.unpack(data[start - _CRC.size : start])
    if google_crc32c.extend(google_crc32c.value(head), payload) != crc:
        return None
    return Record(RecordKind(kind), payload, start)


def _more_follows(data: Data, position: int) -> bool:
    """Whether a further record header lies after the unreadable one: then it is damage."""
    at = data.find(_MAGIC, position + 1)
    while 0 <= at <= len(data) - _HEAD_BYTES:
        sequence = _RECORD.unpack(data[at : at + _RECORD.size])[3]
        if _parse(data, at, sequence) is not None:
            return True
        at = data.find(_MAGIC, at + 1)
    return False


def blocks(record: Record) -> Iterator[tuple[BlockKind, int, bytes, int]]:
    """Blocks of a group: kind, stream or camera index, bytes, and their offset in the file."""
    payload, position = record.payload, 0
    while position < len(payload):
        try:
            kind, index, length = _BLOCK.unpack_from(payload, position)
            start = position + _BLOCK.size
            body = payload[start : start + length]
            if len(body) != length:
                raise ValueError("short block")
            yield BlockKind(kind), index, body, record.offset + start
        except (struct.error, ValueError) as error:
            raise DamagedError(f"a journal group holds a malformed block at byte {position}") from error
        position = start + length


def frame_row(body: bytes, offset: int) -> FrameRow:
    """The frame described by a FRAME block whose bytes lie at ``offset`` of the file."""
    t_ns, seq, repeated, crc = _FRAME.unpack_from(body)
    return FrameRow(t_ns, seq, bool(repeated), offset + _FRAME.size, len(body) - _FRAME.size, crc)
