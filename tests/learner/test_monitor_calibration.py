"""Thresholds bound false alarms over whole episodes, and still see what is unlike success."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from learner.calibrate import (
    EpisodeSignals,
    alarm_rate,
    band,
    calibrate,
    fit_mahalanobis,
    minimum_episodes,
    read_signals,
)
from learner.errors import CalibrationError
from runtime.monitors.thresholds import Thresholds

D = 12


def signals(count: int, seed: int, shift: float = 0.0, noise: float = 1.0) -> list[EpisodeSignals]:
    """Errors that swell in mid-episode, features that drift along it."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        ticks = np.arange(0, rng.integers(80, 130), 8)
        swell = 0.01 + 0.05 * np.exp(-(((ticks - 60) / 20.0) ** 2))
        error = noise * swell * rng.gamma(4.0, 0.25, len(ticks)) * rng.uniform(0.7, 1.3)
        base = np.outer(ticks / 100.0, np.linspace(-1, 1, D))
        features = base + rng.normal(size=(len(ticks), D)) + shift
        out.append(EpisodeSignals(np.column_stack([ticks, error]), features, ticks.astype(float)))
    return out


def test_new_successes_raise_at_most_the_stated_rate() -> None:
    rates = {"disagreement": [0, 0], "unfamiliar": [0, 0]}
    for seed in range(40):
        monitors = calibrate(signals(100, seed))
        fresh = signals(100, 1000 + seed)
        for kind, total in rates.items():
            flagged, count = alarm_rate(monitors, fresh, kind)
            total[0] += flagged
            total[1] += count
    for kind, (flagged, count) in rates.items():
        assert flagged / count <= 0.06, kind
        assert flagged / count >= 0.005, f"{kind} never alarms: its band is too wide to be of use"


def test_what_is_unlike_success_is_flagged() -> None:
    monitors = calibrate(signals(80, 0))
    strange, contradicting = signals(50, 1, shift=2.5), signals(50, 2, noise=4.0)
    assert alarm_rate(monitors, strange, "unfamiliar")[0] >= 48
    assert alarm_rate(monitors, contradicting, "disagreement")[0] >= 48


def test_the_band_follows_the_signal_over_time() -> None:
    threshold = calibrate(signals(100, 0))["disagreement"]["threshold"]
    assert threshold[3] > 2 * threshold[0]
    assert threshold[3] > 2 * threshold[7]


def test_the_runtime_reads_what_is_calibrated() -> None:
    monitors = calibrate(signals(60, 0))
    parsed = Thresholds.parse(monitors)
    assert parsed.disagreement is not None
    assert parsed.unfamiliar is not None
    assert parsed.familiarity is not None
    one = signals(1, 5)[0]
    model = fit_mahalanobis(np.concatenate([s.features for s in signals(60, 0)]))
    assert model.distance(one.features[:1])[0] == pytest.approx(
        parsed.familiarity.distance(one.features[0].astype(np.float32)), rel=0.3
    )
    assert parsed.disagreement.at(40) == monitors["disagreement"]["threshold"][2]


def test_fewer_than_the_floor_is_refused() -> None:
    assert minimum_episodes(0.05) == 19
    with pytest.raises(CalibrationError, match="18 successful episodes"):
        calibrate(signals(18, 0))


def test_just_enough_calibrates_what_it_can() -> None:
    monitors = calibrate(signals(19, 0))
    assert monitors["n_calibration"] == 19
    assert "unfamiliar" not in monitors
    assert Thresholds.parse(monitors).unfamiliar is None


def test_broken_signals_are_refused() -> None:
    broken = signals(60, 0)
    broken[7].error[0, 1] = np.nan
    with pytest.raises(CalibrationError, match="NaN"):
        calibrate(broken)


def test_band_is_exact_for_a_flat_signal() -> None:
    rest = [np.array([[0.0, float(k)]]) for k in range(1, 40)]
    # ⌈(39 + 1) · 0.95⌉ = the 38th smallest of 1 … 39
    assert band([], rest, 0.05) == [pytest.approx(38.0)]


def test_shrinkage_whitens_and_survives_fewer_samples_than_dimensions() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(6, 6))
    many = rng.normal(size=(20_000, 6)) @ mixing
    model = fit_mahalanobis(many)
    assert model.shrinkage < 0.05
    assert float((model.distance(many) ** 2).mean()) == pytest.approx(6.0, rel=0.05)
    few = rng.normal(size=(10, 64))
    wide = fit_mahalanobis(few)
    assert np.isfinite(wide.factor).all()
    assert wide.shrinkage > 0.5
    assert wide.distance(few + 8.0).min() > 2 * wide.distance(rng.normal(size=(50, 64))).max()


def test_shrinkage_agrees_with_the_definition() -> None:
    """Ledoit & Wolf's formula written as sums over samples."""
    x = np.random.default_rng(4).normal(size=(30, 5)) * np.array([1, 2, 3, 4, 5])
    centred = x - x.mean(0)
    sample = centred.T @ centred / 30
    mu = np.trace(sample) / 5
    d2 = ((sample - mu * np.eye(5)) ** 2).sum() / 5
    b2 = sum(((np.outer(r, r) - sample) ** 2).sum() / 5 for r in centred) / 30**2
    assert fit_mahalanobis(x).shrinkage == pytest.approx(min(b2, d2) / d2)


def test_signals_are_read_as_evaluate_writes_them(tmp_path: Path) -> None:
    made = signals(3, 0)
    arrays = {}
    for i, s in enumerate(made):
        arrays |= {f"error_{i}": s.error, f"features_{i}": s.features, f"ftick_{i}": s.feature_ticks}
    np.savez(tmp_path / "signals.npz", **arrays)
    read = read_signals(tmp_path / "signals.npz")
    assert len(read) == 3
    np.testing.assert_array_equal(read[1].features, made[1].features)
    (tmp_path / "bad.npz").write_bytes(b"no zip")
    with pytest.raises(CalibrationError, match=r"bad\.npz"):
        read_signals(tmp_path / "bad.npz")
