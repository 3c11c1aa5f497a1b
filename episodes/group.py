"""The group being collected: encoded, journaled as one record, and only then part of the draft."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt

from episodes.decoding import decode_jpeg
from episodes.draft import Draft
from episodes.errors import RecordingError
from episodes.journal import FrameRow, GroupBuilder, JournalWriter, RecordKind
from episodes.spec import DropCount

if TYPE_CHECKING:  # FFmpeg is loaded by episodes that need it
    from episodes.h264 import Encoder


class Group:
    """Rows, frames and events since the last commit. Used by the writer's thread alone."""

    def __init__(self, draft: Draft, journal: JournalWriter) -> None:
        self._draft = draft
        self._journal = journal
        self._builder = GroupBuilder()
        self._rows: list[list[bytes]] = [[] for _ in draft.spec.streams]
        self._frames: list[tuple[int, FrameRow]] = []
        self._events: list[dict[str, Any]] = []
        self._drops_journaled: dict[str, DropCount] = {}
        self._encoders: dict[int, Encoder] = {}
        self.bytes = 0
        """Encoded bytes waiting to be committed."""

    def add_row(self, index: int, data: bytes) -> None:
        """One packed row of stream ``index``."""
        self._rows[index].append(data)
        self.bytes += len(data)

    def add_frame(
        self, index: int, t_ns: int, seq: int, repeated: bool, image: npt.NDArray[np.uint8]
    ) -> None:
        """Encode one RGB picture of camera ``index``. Raises RecordingError when that fails."""
        spec = self._draft.spec
        if spec.codec == "h264":
            self._add(index, t_ns, seq, repeated, self._encoder(index).encode(image))
            return
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        encoded, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, spec.jpeg_quality])
        if not encoded:
            raise RecordingError(f"a picture of {spec.cameras[index].name} cannot be encoded as JPEG")
        self._add(index, t_ns, seq, repeated, jpeg.tobytes())

    def add_jpeg(self, index: int, t_ns: int, seq: int, repeated: bool, data: bytes) -> None:
        """One picture of camera ``index`` that is a JPEG already. Raises DamagedError when it is none."""
        if self._draft.spec.codec == "h264":
            self.add_frame(index, t_ns, seq, repeated, decode_jpeg(data))
        else:
            self._add(index, t_ns, seq, repeated, data)

    def _encoder(self, index: int) -> Encoder:
        if index not in self._encoders:
            from episodes.h264 import Encoder  # as above

            camera = self._draft.spec.cameras[index]
            self._encoders[index] = Encoder((camera.height, camera.width), self._draft.spec.crf)
        return self._encoders[index]

    def _add(self, index: int, t_ns: int, seq: int, repeated: bool, data: bytes) -> None:
        offset, crc = self._builder.frame(index, t_ns, seq, repeated, data)
        self._frames.append((index, FrameRow(t_ns, seq, repeated, offset, len(data), crc)))
        self.bytes += len(data)

    def add_event(self, event: dict[str, Any]) -> None:
        """A flag or an intervention."""
        self._events.append(event)

    def commit(self, drops: dict[str, DropCount]) -> None:
        """Write the group, if there is anything in it. Raises OSError, the draft unchanged."""
        rows = [(i, b"".join(parts)) for i, parts in enumerate(self._rows) if parts]
        for index, data in rows:
            self._builder.rows(index, data)
        if drops != self._drops_journaled:
            self._events.append({"drops": {name: drop.model_dump() for name, drop in drops.items()}})
        for event in self._events:
            self._builder.event(event)
        if self._builder.size == 0:
            return
        start = self._journal.append(RecordKind.GROUP, self._builder.take())
        for index, data in rows:
            self._draft.rows[index].append(data)
            self._rows[index].clear()
        for index, row in self._frames:
            moved = FrameRow(row.t_ns, row.seq, row.repeated, start + row.offset, row.length, row.crc)
            self._draft.frames[index].append(moved)
        for event in self._events:
            self._draft.add_event(event)
        self._drops_journaled = drops
        self._frames.clear()
        self._events.clear()
        self.bytes = 0
