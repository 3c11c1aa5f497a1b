"""Thresholds for a bundle's monitors, from the signals of its own successful rollouts.

Split conformal prediction with a band over time: one part of the episodes gives the band's shape
(how large the signal usually is in each bucket of ticks) and the features' distribution; on the
other part the whole band is scaled until a new successful episode leaves it with probability at
most α, at any time. Recalibrated at each swap: another policy has other signals.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from learner.errors import CalibrationError

log = logging.getLogger(__name__)

F64 = npt.NDArray[np.float64]

BUCKET_TICKS = 16
WANTED_EPISODES = 50
_MIN_FIT = 5
_MIN_PER_BUCKET = 4


@dataclass(frozen=True, slots=True)
class EpisodeSignals:
    """Signals of one successful episode.

    ``error`` (n, 2): tick since its start, mean overlap error in rad. ``features`` (m, D) of the
    chunks made at ``feature_ticks`` (m,).
    """

    error: F64
    features: F64
    feature_ticks: F64


@dataclass(frozen=True, slots=True)
class Mahalanobis:
    """``mean`` (D,), ``factor`` (D, D) with factor·factorᵀ the inverse of the shrunk covariance."""

    mean: F64
    factor: F64
    shrinkage: float

    def distance(self, features: F64) -> F64:
        """(m, D) → (m,)."""
        out: F64 = np.linalg.norm((features - self.mean) @ self.factor, axis=1)
        return out


def read_signals(path: Path) -> list[EpisodeSignals]:
    """The npz that ``ratchet evaluate --signals`` writes. Raises CalibrationError when it is malformed."""
    try:
        with np.load(path, allow_pickle=False) as file:
            numbers = sorted(int(k.removeprefix("error_")) for k in file.files if k.startswith("error_"))
            return [
                EpisodeSignals(
                    np.asarray(file[f"error_{i}"], np.float64).reshape(-1, 2),
                    np.atleast_2d(np.asarray(file[f"features_{i}"], np.float64)),
                    np.asarray(file[f"ftick_{i}"], np.float64).reshape(-1),
                )
                for i in numbers
            ]
    except (OSError, KeyError, ValueError) as error:
        raise CalibrationError(
            f"{path} does not hold signals ({error})", "run ratchet evaluate again"
        ) from error


def minimum_episodes(alpha: float) -> int:
    """Fewest calibration episodes with which a bound at ``alpha`` exists: n ≥ (1 − α)/α (19 at 0.05)."""
    return math.ceil((1.0 - alpha) / alpha - 1e-9)


def calibrate(signals: Sequence[EpisodeSignals], alpha: float = 0.05) -> dict[str, Any]:
    """``manifest.monitors`` for a bundle, from at least 50 (never fewer than 19) successful episodes.

    The episodes are taken in the order given: give them in the order of their seeds. Raises
    CalibrationError for too few, or signals that are not finite.
    """
    floor = minimum_episodes(alpha)
    if len(signals) < floor:
        raise CalibrationError(
            f"{len(signals)} successful episodes cannot bound false alarms at {alpha:g} ({floor} at least)",
            "run more rollouts",
        )
    if any(not (np.isfinite(s.error).all() and np.isfinite(s.features).all()) for s in signals):
        raise CalibrationError("a signal is NaN or infinite", "look at the policy's outputs")
    if len(signals) < WANTED_EPISODES:
        log.warning("calibrate.few_episodes have=%d wanted=%d", len(signals), WANTED_EPISODES)
    fit_count = min(int(0.4 * len(signals)), len(signals) - floor)
    # Every k-th episode fits, the rest calibrate: both see the whole range of seeds.
    fit_rows = set(np.linspace(0, len(signals) - 1, fit_count).round().astype(int).tolist())
    fit = [s for i, s in enumerate(signals) if i in fit_rows]
    rest = [s for i, s in enumerate(signals) if i not in fit_rows]
    monitors: dict[str, Any] = {
        "disagreement": {"threshold": band([s.error for s in fit], [s.error for s in rest], alpha)},
        "n_calibration": len(rest),
        "n_fit": len(fit),
        "alpha": alpha,
        "bucket_ticks": BUCKET_TICKS,
    }
    if len(fit) >= _MIN_FIT:
        model = fit_mahalanobis(np.concatenate([s.features for s in fit]))
        monitors["unfamiliar"] = {
            "mean": _short(model.mean),
            "precision_factor": _short(model.factor),
            "threshold": band(_novelty(model, fit), _novelty(model, rest), alpha),
            "shrinkage": model.shrinkage,
        }
    return monitors


def band(fit: Sequence[F64], rest: Sequence[F64], alpha: float) -> list[float]:
    """A threshold per bucket of 16 ticks from (n, 2) arrays of (tick, score) per episode.

    Shape: the 90th percentile over the fitting episodes' largest score in the bucket. Scale: the
    ⌈(n+1)(1−α)⌉-th smallest, over the n calibration episodes, of the largest score/shape.
    """
    buckets = 1 + max(int(e[:, 0].max()) // BUCKET_TICKS for e in [*fit, *rest] if len(e))
    shape = _shape([_bucket_max(e, buckets) for e in fit], buckets)
    with np.errstate(invalid="ignore"):
        worst = sorted(float(np.nanmax(_bucket_max(e, buckets) / shape)) if len(e) else 0.0 for e in rest)
    rank = math.ceil((len(worst) + 1) * (1.0 - alpha) - 1e-9)
    if rank > len(worst):
        raise CalibrationError(
            f"{len(worst)} calibration episodes cannot bound false alarms at {alpha:g}", "run more rollouts"
        )
    scale = max(worst[rank - 1], 1e-6)
    return [float(f"{v:.6g}") for v in shape * scale]


def _bucket_max(scores: F64, buckets: int) -> F64:
    out = np.full(buckets, np.nan)
    at = (scores[:, 0] // BUCKET_TICKS).astype(int)
    for b in np.unique(at):
        out[b] = scores[at == b, 1].max()
    return out


def _shape(maxima: Sequence[F64], buckets: int) -> F64:
    """Typical size per bucket. Where few episodes reach, the largest value seen so far carries on."""
    shape = np.ones(buckets)
    if not maxima:
        return shape
    table = np.stack(maxima)
    known = np.isfinite(table)
    overall = float(np.quantile(table[known], 0.9)) if known.any() else 1.0
    highest = 0.0
    for b in range(buckets):
        if known[:, b].sum() >= _MIN_PER_BUCKET:
            shape[b] = float(np.quantile(table[known[:, b], b], 0.9))
            highest = max(highest, shape[b])
        else:
            shape[b] = highest or overall
    # A bucket whose signal happened to vanish must not get a threshold of nothing.
    out: F64 = np.maximum(shape, max(0.1 * overall, 1e-6))
    return out


def _novelty(model: Mahalanobis, episodes: Sequence[EpisodeSignals]) -> list[F64]:
    return [np.column_stack([s.feature_ticks, model.distance(s.features)]) for s in episodes]


def fit_mahalanobis(features: F64) -> Mahalanobis:
    """Mean and precision factor of (N, D) features, covariance shrunk towards μ·I.

    The shrinkage is Ledoit & Wolf's optimum (2004, J. Multivariate Analysis 88, 365–411, §3.3).
    """
    n, d = features.shape
    mean = features.mean(axis=0)
    x = features - mean
    sample = x.T @ x / n
    mu = float(np.trace(sample)) / d
    spread = float(((sample - mu * np.eye(d)) ** 2).sum()) / d
    noise = float(((x**2).T @ (x**2)).sum() / n - (sample**2).sum()) / (d * n)
    shrinkage = 1.0 if spread <= 0.0 else min(1.0, max(0.0, noise / spread))
    covariance = (1.0 - shrinkage) * sample + (shrinkage * mu + 1e-9 * max(mu, 1e-9)) * np.eye(d)
    values, vectors = np.linalg.eigh(covariance)
    # Features that never vary carry no scale of their own: bounded below, not infinitely surprising.
    values = np.maximum(values, 1e-6 * float(values.max()) + 1e-12)
    return Mahalanobis(mean, vectors / np.sqrt(values), shrinkage)


def alarm_rate(monitors: dict[str, Any], signals: Sequence[EpisodeSignals], kind: str) -> tuple[int, int]:
    """(episodes in which monitor ``kind`` would have flagged, episodes): the check on an untouched set."""
    thresholds = np.asarray(monitors[kind]["threshold"])
    if kind == "unfamiliar":
        table = monitors[kind]
        model = Mahalanobis(np.asarray(table["mean"]), np.asarray(table["precision_factor"]), 0.0)
        scores = _novelty(model, signals)
    else:
        scores = [s.error for s in signals]
    flagged = 0
    for episode in scores:
        bucket = np.minimum((episode[:, 0] // BUCKET_TICKS).astype(int), len(thresholds) - 1)
        flagged += bool((episode[:, 1] > thresholds[bucket]).any())
    return flagged, len(scores)


def _short(values: F64) -> Any:
    """Nested lists at six significant digits: the manifest is JSON and D² numbers are many."""
    if values.ndim == 2:
        return [_short(row) for row in values]
    return [float(f"{v:.6g}") for v in values]
