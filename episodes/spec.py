"""What an episode is made of: streams, cameras, provenance; and what is kept about one.

All times are monotonic nanoseconds of the clock the episode was recorded with; wall time is a
label. Units are SI.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from episodes.errors import RecordingError

Kind = Literal["demo", "rollout", "intervention", "import"]
Outcome = Literal["success", "failure", "unknown"]
PictureCodec = Literal["jpeg", "h264"]
DType = Literal["float32", "float64", "uint8", "int32", "int64", "uint16", "bool"]


def _not_reserved(name: str) -> str:
    if name.startswith(("time.", "frames.", "__")) or name in ("zarr.json", "episode.json"):
        raise ValueError(f"{name!r} is a name of the store's own")
    return name


# Names become folder names and zarr node names.
Name = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]*$", min_length=1, max_length=100),
    AfterValidator(_not_reserved),
]
EpisodeId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_\-]*$", min_length=1, max_length=80)]
Dimension = Annotated[int, Field(ge=1, le=1_000_000)]
Pixels = Annotated[int, Field(ge=1, le=8192)]

TICK_STREAMS = ("action", "observation.state")
"""Streams that have one row per control tick; the first one present counts the ticks."""


class Frozen(BaseModel):
    """Immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StreamSpec(Frozen):
    """One stream of numbers: rows of ``dtype`` and ``shape`` with a time and a sequence number.

    ``names`` labels the elements of a row (``shoulder_pan.pos`` …); empty when there are none.
    """

    name: Name
    dtype: DType = "float32"
    shape: tuple[Dimension, ...] = ()
    unit: str = ""
    names: tuple[str, ...] = ()

    def row_dtype(self) -> np.dtype[np.void]:
        """Packed little-endian layout of one row in the journal: t_ns, seq, value."""
        value = np.dtype(self.dtype).newbyteorder("<")
        return np.dtype([("t_ns", "<i8"), ("seq", "<i8"), ("value", value, self.shape)])


class CameraSpec(Frozen):
    """One camera: uint8 RGB frames of ``height`` × ``width`` pixels."""

    name: Name
    height: Pixels
    width: Pixels


class EpisodeSpec(Frozen):
    """What will be recorded, and where it comes from; written before any data.

    ``fps`` is the control rate in Hz. ``provenance`` is free JSON (calibration, bundle, firmware,
    git …); its keys ``policy``, ``session``, ``split`` and ``robot`` become catalogue columns. ``codec`` is
    how pictures are kept: each as a JPEG of ``jpeg_quality``, or in groups of H.264 at x264's rate factor
    ``crf``.
    """

    task: str = Field(min_length=1, max_length=1000)
    fps: float = Field(default=30.0, gt=0, le=1000)
    streams: tuple[StreamSpec, ...] = ()
    cameras: tuple[CameraSpec, ...] = ()
    provenance: dict[str, Any] = Field(default_factory=dict)
    kind: Kind = "demo"
    codec: PictureCodec = "jpeg"
    jpeg_quality: int = Field(default=95, ge=50, le=100)
    crf: int = Field(default=22, ge=10, le=40)

    @model_validator(mode="after")
    def _names_are_unique(self) -> EpisodeSpec:
        for what, names in (
            ("stream", [s.name for s in self.streams]),
            ("camera", [c.name for c in self.cameras]),
        ):
            twice = {n for n in names if names.count(n) > 1}
            if twice:
                raise ValueError(f"{what} named twice: {', '.join(sorted(twice))}")
        odd = [c.name for c in self.cameras if c.height % 2 or c.width % 2]
        if self.codec == "h264" and odd:
            raise ValueError(f"H.264 needs an even height and width; camera {odd[0]} has not")
        return self


class FlagRow(Frozen):
    """Something noticed in an episode: kind, span in monotonic ns, score, evidence."""

    kind: str
    start_ns: int
    end_ns: int
    score: float
    evidence: dict[str, Any] = Field(default_factory=dict)


class InterventionRow(Frozen):
    """A span in which somebody took over."""

    start_ns: int
    end_ns: int
    by: str


class DropCount(Frozen):
    """Samples of one stream or camera that found the queue full and were not recorded."""

    count: int
    first_ns: int
    last_ns: int


class StreamMeta(Frozen):
    """What was kept of a stream. ``time`` names the (n, 2) array of t_ns and seq it shares.

    ``missing`` counts sequence numbers skipped, ``max_gap_ns`` is the longest time between rows.
    """

    dtype: DType
    shape: tuple[int, ...]
    unit: str
    names: tuple[str, ...]
    rows: int
    time: str
    missing: int
    max_gap_ns: int


class CameraMeta(Frozen):
    """What was kept of a camera; ``repeated`` counts frames the device handed out twice.

    ``codec`` "h264": the pictures are one stream in closed groups (`episodes.h264`).
    """

    height: int
    width: int
    frames: int
    repeated: int
    missing: int
    max_gap_ns: int
    bytes: int
    codec: PictureCodec = "jpeg"


class EpisodeMeta(Frozen):
    """Everything about a published episode but its data.

    ``seconds`` is the span from the first to the last sample, ``ticks`` the rows of the tick
    streams, ``started_wall`` an ISO 8601 label in UTC, ``recovered`` True when the end was lost in
    a crash and the episode holds what had been committed.
    """

    id: EpisodeId
    task: str
    kind: Kind
    outcome: Outcome
    reason: str
    recovered: bool
    fps: float
    started_wall: str
    started_ns: int
    ticks: int
    seconds: float
    provenance: dict[str, Any]
    streams: dict[str, StreamMeta]
    cameras: dict[str, CameraMeta]
    flags: tuple[FlagRow, ...]
    interventions: tuple[InterventionRow, ...]
    drops: dict[str, DropCount]


def wall_label() -> str:
    """The present wall time as an ISO 8601 label in UTC with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def plain_json(value: Any) -> Any:
    """``default`` hook of json.dumps: numpy scalars and arrays become plain numbers and lists."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")


def json_copy(value: dict[str, Any], what: str) -> dict[str, Any]:
    """``value`` through JSON and back: what cannot be written fails now, and the copy is ours.

    Raises RecordingError naming ``what``.
    """
    try:
        copied: dict[str, Any] = json.loads(json.dumps(value, default=plain_json))
    except (TypeError, ValueError) as error:
        raise RecordingError(f"{what} is not JSON ({error})", "use plain values") from error
    return copied
