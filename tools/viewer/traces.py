"""Streams of numbers cut down to what a screen can show, without losing a spike or a gap."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from episodes.reader import StreamData

MAX_SERIES = 32
MAX_POINTS = 2000


def trace(stream: StreamData, origin_ns: int, begin_s: float, end_s: float, points: int) -> dict[str, Any]:
    """The part of ``stream`` from ``begin_s`` to ``end_s`` after ``origin_ns``, for a chart.

    Up to ``2 * points`` rows are handed out as they are (``lo`` and ``hi`` are the same list); more become
    the least and the greatest value in each of ``points`` equal spans of time. Spans without a row do
    not appear: they are the gaps. ``step`` is the usual time between neighbours, in seconds. A value
    that is not finite is null. One row before and after the span is kept, so that lines reach the edge.
    """
    points = max(2, min(points, MAX_POINTS))
    t = (stream.t_ns - origin_ns) / 1e9
    first = max(0, int(np.searchsorted(t, begin_s)) - 1)
    last = min(len(t), int(np.searchsorted(t, end_s, side="right")) + 1)
    t = t[first:last]
    wide = math.prod(stream.values.shape[1:])
    values = np.asarray(stream.values[first:last], np.float64).reshape(len(t), wide)[:, :MAX_SERIES]
    described: dict[str, Any] = {"unit": stream.unit, "names": list(stream.names), "rows": len(t)}
    if len(t) <= 2 * points:
        step = float(np.median(np.diff(t))) if len(t) > 1 else 0.0
        series = [_plain(column) for column in values.T]
        return {**described, "step": step, "t": _plain(t), "lo": series, "hi": series}
    width = (t[-1] - t[0]) / points or 1.0
    span = np.minimum(((t - t[0]) / width).astype(np.int64), points - 1)
    starts = np.flatnonzero(np.diff(span, prepend=-1))
    centre = t[0] + (span[starts] + 0.5) * width
    low = np.fmin.reduceat(values, starts, axis=0)
    high = np.fmax.reduceat(values, starts, axis=0)
    return {
        **described,
        "step": float(width),
        "t": _plain(centre),
        "lo": [_plain(column) for column in low.T],
        "hi": [_plain(column) for column in high.T],
    }


def spans(stream: StreamData, origin_ns: int, limit: int = 5000) -> list[tuple[float, float, int]]:
    """Runs of one value in a stream of codes: (from s, to s, code), at most ``limit`` of them."""
    if not stream.values.size:
        return []
    column = np.asarray(stream.values).reshape(len(stream), -1)[:, 0]
    starts = np.flatnonzero(np.diff(column.astype(np.int64), prepend=int(column[0]) - 1))[:limit]
    t = (stream.t_ns - origin_ns) / 1e9
    ends = np.append(t[starts[1:]], t[-1])
    return [
        (round(a, 4), round(b, 4), int(code))
        for a, b, code in zip(t[starts].tolist(), ends.tolist(), column[starts].tolist(), strict=True)
    ]


def _plain(values: npt.NDArray[np.float64]) -> list[float | None]:
    finite = np.isfinite(values)
    rounded = np.round(values, 5).tolist()
    if finite.all():
        return rounded
    return [v if ok else None for v, ok in zip(rounded, finite.tolist(), strict=True)]
