"""What is odd about an episode of a dataset, in words: shown in the import report."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


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
