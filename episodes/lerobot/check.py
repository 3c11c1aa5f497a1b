"""What is odd about an episode of a dataset, in words: shown in the import report."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from episodes.lerobot.layout import BOOKKEEPING, Dataset


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
