"""An episode that is not published yet: what its journal holds, ready to be written as arrays.

The writer fills a draft as it commits groups; recovery fills one by scanning a journal. Both are
published by the same code. Numbers are held in memory (about 50 B per row), pictures stay in the
journal and are found by offset.
"""

from __future__ import annotations

import json
import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from episodes import journal
from episodes.errors import DamagedError
from episodes.journal import BlockKind, FrameRow, RecordKind
from episodes.spec import DropCount, EpisodeSpec, FlagRow, InterventionRow, Outcome


@dataclass(slots=True)
class Draft:
    """Everything recorded so far of one episode.

    ``ended`` is False until the recorder said how the episode ended.
    """

    episode_id: str
    spec: EpisodeSpec
    started_wall: str
    started_ns: int
    rows: list[list[bytes]] = field(default_factory=list)
    frames: list[list[FrameRow]] = field(default_factory=list)
    flags: list[FlagRow] = field(default_factory=list)
    interventions: list[InterventionRow] = field(default_factory=list)
    drops: dict[str, DropCount] = field(default_factory=dict)
    outcome: Outcome = "unknown"
    reason: str = ""
    ended: bool = False
    recovered: bool = False

    def __post_init__(self) -> None:
        self.rows = [[] for _ in self.spec.streams]
        self.frames = [[] for _ in self.spec.cameras]

    def header(self) -> bytes:
        """The journal's first record."""
        return json.dumps(
            {
                "id": self.episode_id,
                "started_wall": self.started_wall,
                "started_ns": self.started_ns,
                "spec": self.spec.model_dump(),
            }
        ).encode()

    def end_record(self) -> bytes:
        """The journal's last record."""
        return json.dumps({"outcome": self.outcome, "reason": self.reason}).encode()

    def stream_rows(self, index: int) -> npt.NDArray[np.void]:
        """Rows of stream ``index`` as a structured array (t_ns, seq, value)."""
        return np.frombuffer(b"".join(self.rows[index]), self.spec.streams[index].row_dtype())

    def add_event(self, event: dict[str, Any]) -> None:
        """Take in a flag, an intervention or the drop counts so far."""
        if "flag" in event:
            self.flags.append(FlagRow.model_validate(event["flag"]))
        elif "intervention" in event:
            self.interventions.append(InterventionRow.model_validate(event["intervention"]))
        elif "drops" in event:
            self.drops = {name: DropCount.model_validate(count) for name, count in event["drops"].items()}

    def is_empty(self) -> bool:
        """True when not one row or frame was committed."""
        return not any(self.rows) and not any(self.frames)


@dataclass(slots=True)
class Scanned:
    """A journal read back: the draft (None when not even the header survived) and its tail."""

    draft: Draft | None
    end: journal.ScanEnd


def read_journal(path: Path) -> Scanned:
    """Read what is committed in a journal. Raises DamagedError when valid records make no sense."""
    end = journal.ScanEnd()
    if path.stat().st_size == 0:
        return Scanned(None, end)
    draft: Draft | None = None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for record in journal.scan(data, end):
            draft = _apply(draft, record, path)
    return Scanned(draft, end)


def _apply(draft: Draft | None, record: journal.Record, path: Path) -> Draft | None:
    try:
        if record.kind is RecordKind.HEADER:
            header = json.loads(record.payload)
            spec = EpisodeSpec.model_validate(header["spec"])
            return Draft(str(header["id"]), spec, str(header["started_wall"]), int(header["started_ns"]))
        if draft is None:
            raise ValueError("no header")
        if record.kind is RecordKind.END:
            ending = json.loads(record.payload)
            draft.outcome, draft.reason, draft.ended = ending["outcome"], str(ending["reason"]), True
            return draft
        for kind, index, body, offset in journal.blocks(record):
            if kind is BlockKind.ROWS:
                draft.rows[index].append(body)
            elif kind is BlockKind.FRAME:
                draft.frames[index].append(journal.frame_row(body, offset))
            else:
                draft.add_event(json.loads(body))
    except (ValueError, KeyError, IndexError, TypeError, struct.error, ValidationError) as error:
        raise DamagedError(f"journal {path} makes no sense ({type(error).__name__})") from error
    return draft
