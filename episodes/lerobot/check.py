"""What is odd about an episode of a dataset, in words: shown in the import report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from episodes.errors import ImportRefusedError
from episodes.lerobot.layout import BOOKKEEPING, Dataset

_ISOLATED = 0.02  # of the rows: as often may time go back, two times in any case
_RATE = 0.15  # of fps: further from it the usual step between rows is no jitter (25 against 30 is 0.17)
_RATE_ROWS = 10  # in fewer rows a gap and another rate look the same


def refuse_wrong_times(timestamps_s: npt.NDArray[np.float64], fps: float, where: Path) -> None:
    """Raises ImportRefusedError for timestamps that are not those of rows in order at ``fps``.

    Gaps, drift by jitter and isolated steps back are notes (`timestamp_notes`); what has no clear meaning is
    time that goes back again and again or stands still, and another rate than info.json's.
    """
    steps = np.diff(timestamps_s)
    leave_out = "leave this episode out (--episodes)"
    back, still = int((steps < 0).sum()), int((steps == 0).sum())
    if back > max(2, _ISOLATED * len(steps)) or (still > len(steps) / 2 and len(steps) > 2):
        what = "go back" if back else "stand still"
        raise ImportRefusedError(
            f"timestamps in {where} {what} between {back or still} of {len(steps)} pairs of rows",
            f"sort the rows or correct the column, or {leave_out}",
        )
    usual = float(np.median(steps)) if len(timestamps_s) >= _RATE_ROWS else 1 / fps
    if usual <= 0 or abs(usual * fps - 1) > _RATE:
        found = f"are {1 / usual:.3g} a second" if usual > 0 else "mostly do not advance"
        raise ImportRefusedError(
            f"timestamps in {where} {found}, info.json says fps {fps:g}",
            f"correct fps in info.json, or {leave_out}",
        )


def timestamp_notes(timestamps_s: npt.NDArray[np.float64], fps: float) -> list[str]:
    """Drift from index/fps, gaps, and steps back of an episode's timestamps."""
    if len(timestamps_s) < 2:
        return []
    notes = []
    period = 1 / fps
    nominal = np.arange(len(timestamps_s)) * period
    drift = float(np.abs(timestamps_s - timestamps_s[0] - nominal).max())
    if drift > period / 2:
        notes.append(f"timestamps drift up to {drift:.2f} s from index/fps; the originals are kept")
    steps = np.diff(timestamps_s)
    gaps = int((steps > 1.5 * period).sum())
    if gaps:
        notes.append(f"{gaps} gaps longer than 1.5 periods, the longest {float(steps.max()):.2f} s")
    back = int((steps <= 0).sum())
    if back:
        notes.append(f"time does not advance between {back} pairs of rows")
    return notes


def sequence_notes(frame_index: npt.NDArray[np.int64]) -> list[str]:
    """Frame numbers that do not count 0, 1, 2 …"""
    if np.array_equal(frame_index, np.arange(len(frame_index))):
        return []
    return ["frame_index does not count 0, 1, 2 …; it is kept as the sequence number"]


def value_notes(name: str, values: npt.NDArray[np.generic]) -> list[str]:
    """Values no policy can learn from."""
    if values.dtype.kind != "f":
        return []
    bad = int((~np.isfinite(values)).any(axis=tuple(range(1, values.ndim))).sum())
    return [f"{name} is not finite in {bad} rows"] if bad else []


def layout_notes(table: Any, dataset: Dataset) -> list[str]:
    """Columns that are not what info.json and the format say, and how they are read."""
    notes = []
    for key, feature in dataset.features.items():
        if key not in table.column_names or feature.is_picture or feature.dtype == "string":
            continue
        found = value_type(table.schema.field(key).type)
        if str(found) != arrow_name(feature.dtype):
            notes.append(
                f"{key} is stored as {found}, info.json says {feature.dtype}; read as {feature.dtype}"
            )
    missing = sorted(BOOKKEEPING - set(table.column_names) - {"timestamp", "frame_index"})
    if missing:
        notes.append(f"no {', '.join(missing)} column; rebuilt from the metadata and the order of the rows")
    return notes


def value_type(kind: Any) -> Any:
    """The type of the numbers in a column, whatever lists they are in."""
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    return getattr(kind, "storage_type", kind)


def arrow_name(dtype: str) -> str:
    """What pyarrow calls a dtype of info.json."""
    return {"float32": "float", "float64": "double", "float16": "halffloat"}.get(dtype, dtype)


def total_notes(dataset: Dataset) -> list[str]:
    """Totals in info.json that are not those of the metadata, which is what is read."""
    listed = {
        "total_episodes": len(dataset.episodes),
        "total_frames": sum(e.length for e in dataset.episodes.values()),
    }
    return [
        f"info.json says {key} {dataset.info.get(key)!s:.40}, the metadata lists {found}"
        for key, found in listed.items()
        if dataset.info.get(key) != found
    ]
