"""Statistics as LeRobot keeps them: per episode and feature, and put together for the whole set.

Keys as in LeRobot 0.4.4 (``datasets/compute_stats.py``): min, max, mean, std, count, q01, q10, q50, q90,
q99; pictures per channel in [0, 1], shaped (3, 1, 1), from a sample of the frames, every n-th pixel. Means
and deviations are put together exactly (Chan et al. 1979); quantiles, as LeRobot does it, by weighted mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
BASIC = ("min", "max", "mean", "std", "count")
Stats = dict[str, Any]
"""One feature's statistics: name → nested lists of numbers."""

_Floats = npt.NDArray[np.float64]


def number_stats(values: npt.NDArray[Any], quantiles: bool = True) -> Stats:
    """Statistics over the rows of ``values`` (n, …), n ≥ 1; of scalars each has the shape (1,)."""
    flat = values.reshape(len(values), -1).astype(np.float64)
    shape = values.shape[1:] or (1,)
    mean = flat.mean(axis=0)
    found: dict[str, npt.NDArray[Any]] = {
        "min": flat.min(axis=0),
        "max": flat.max(axis=0),
        "mean": mean,
        "std": np.sqrt(np.square(flat - mean).mean(axis=0)),
    }
    if quantiles:
        found |= _quantiles(flat)
    out: Stats = {name: value.reshape(shape).tolist() for name, value in found.items()}
    if values.dtype.kind in "iub":  # LeRobot keeps whole numbers' extremes whole
        whole = values.astype(np.int64)
        out["min"], out["max"] = whole.min(axis=0).reshape(shape), whole.max(axis=0).reshape(shape)
        out["min"], out["max"] = out["min"].tolist(), out["max"].tolist()
    out["count"] = [len(values)]
    return out


def _quantiles(flat: _Floats) -> dict[str, _Floats]:
    """As ``np.quantile`` has them (linear), by one sort."""
    ordered = np.sort(flat, axis=0)
    at = np.array(list(QUANTILES.values())) * (len(flat) - 1)
    below = at.astype(int)
    above = np.minimum(below + 1, len(flat) - 1)
    low, high = ordered[below], ordered[above]
    with np.errstate(invalid="ignore"):  # infinite values have no values between them
        between = low + (high - low) * (at - below)[:, None]
    between[:, np.isnan(ordered[-1])] = np.nan  # NaN is last
    return dict(zip(QUANTILES, between, strict=True))


def sampled_rows(count: int) -> list[int]:
    """The frames of an episode that go into its picture statistics (LeRobot's ``sample_indices``)."""
    samples = max(min(100, count), min(int(count**0.75), 10_000))
    return np.round(np.linspace(0, count - 1, samples)).astype(int).tolist()


class PictureStats:
    """Per-channel statistics of sampled pictures, by a histogram of the 256 values a channel has."""

    def __init__(self) -> None:
        self._counts = np.zeros((3, 256), np.int64)
        self._frames = 0

    def add(self, rgb: npt.NDArray[np.uint8]) -> None:
        """Take in one picture (H, W, 3), thinned out as LeRobot does."""
        height, width = rgb.shape[:2]
        if max(height, width) >= 300:
            step = max(height, width) // 150
            rgb = rgb[::step, ::step]
        for channel in range(3):
            self._counts[channel] += np.bincount(rgb[..., channel].ravel(), minlength=256)
        self._frames += 1

    def result(self) -> Stats:
        """The statistics, each (3, 1, 1) and between 0 and 1, with ``count`` pictures."""
        total = self._counts.sum(axis=1)
        levels = np.arange(256) / 255
        mean = self._counts @ levels / total
        variance = self._counts @ levels**2 / total - mean**2
        below = self._counts.cumsum(axis=1)
        at = {
            "min": levels[[int(np.argmax(c > 0)) for c in self._counts]],
            "max": levels[[255 - int(np.argmax(c[::-1] > 0)) for c in self._counts]],
            "mean": mean,
            "std": np.sqrt(np.maximum(0, variance)),
        }
        for name, q in QUANTILES.items():
            at[name] = levels[[int(np.searchsorted(b, q * n)) for b, n in zip(below, total, strict=True)]]
        return {**{k: v.reshape(3, 1, 1).tolist() for k, v in at.items()}, "count": [self._frames]}


class Total:
    """Statistics of many episodes put together, one feature at a time; holds sums only."""

    def __init__(self) -> None:
        self._sums: dict[str, Stats] = {}

    def add(self, stats: Mapping[str, Stats]) -> None:
        """Take in one episode (or the result for a whole set)."""
        for key, new in stats.items():
            arrays = {name: np.asarray(v) for name, v in new.items()}
            old = self._sums.get(key)
            self._sums[key] = arrays if old is None else _together(old, arrays)

    def result(self) -> dict[str, Stats]:
        """Feature → statistics as nested lists."""
        return {key: {n: np.asarray(v).tolist() for n, v in s.items()} for key, s in self._sums.items()}


def _together(one: Stats, two: Stats) -> Stats:
    n1, n2 = int(one["count"][0]), int(two["count"][0])
    total = n1 + n2
    mean = (one["mean"] * n1 + two["mean"] * n2) / total
    spread = sum(n * (s["std"] ** 2 + (s["mean"] - mean) ** 2) for n, s in ((n1, one), (n2, two)))
    out: Stats = {
        "min": np.minimum(one["min"], two["min"]),
        "max": np.maximum(one["max"], two["max"]),
        "mean": mean,
        "std": np.sqrt(spread / total),
        "count": np.array([total]),
    }
    for name in QUANTILES:
        if name in one and name in two:
            out[name] = (one[name] * n1 + two[name] * n2) / total
    return out


def only(stats: Mapping[str, Stats], names: Iterable[str] = BASIC) -> dict[str, Stats]:
    """The statistics cut down to ``names``: v2.1 knows no quantiles."""
    wanted = set(names)
    return {key: {n: v for n, v in s.items() if n in wanted} for key, s in stats.items()}
