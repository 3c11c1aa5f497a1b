"""The health model: per joint, three things that should not change, and how much they may.

*friction*: effort beyond the inverse dynamics in the direction of motion, while moving freely.
*drive*: effort beyond what the controller's lag asks for. *heat*: temperature rise beyond what the
effort explains. Each is measured against healthy episodes; one threshold bounds the chance that a
healthy episode raises any flag on any motor (split conformal over the largest score).
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from learner.checkpoint import write_atomic
from learner.errors import HealthError
from learner.health.features import MOVING_RAD_S, drive, inverse_dynamics, ridge
from learner.health.telemetry import Motion, Telemetry, motion

log = logging.getLogger(__name__)

F64 = npt.NDArray[np.float64]

CHANNELS = ("friction", "drive", "heat")
KOCH_JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
MIN_EPISODES = 30
_FORMAT = "ratchet.health/1"
_MIN_TICKS = 12
_RIDGE = 1e-4
# Smallest spread believed, per channel: 0.4 % of full effort; of temperatures reported in whole °C.
_SMALLEST = np.array([0.004, 0.004, 0.4])


@dataclass(frozen=True, slots=True)
class MotorHealth:
    """One motor in one episode: flagged when ``score`` > ``threshold``.

    ``evidence`` gives each channel's score and its size in physical units (effort, or °C), how many
    ticks could be judged, and which channel was the worst.
    """

    joint: str
    score: float
    threshold: float
    flagged: bool
    evidence: dict[str, float | int | str]


class HealthModel:
    """Fitted on healthy episodes with ``fit``; judges others with ``score``."""

    def __init__(
        self, arrays: dict[str, F64], joints: tuple[str, ...], threshold: float, alpha: float
    ) -> None:
        self._arrays = arrays
        self.joints = joints
        self.threshold = threshold
        self.alpha = alpha

    @classmethod
    def fit(
        cls, episodes: Sequence[Telemetry], joints: tuple[str, ...] = KOCH_JOINTS, alpha: float = 0.02
    ) -> HealthModel:
        """Learn from at least 30 healthy episodes; two thirds fit, the rest calibrate.

        ``alpha`` bounds the chance of any false flag in a healthy episode; with n calibration
        episodes it cannot be below 1/(n + 1), and is raised to that. Raises HealthError.
        """
        if len(episodes) < MIN_EPISODES:
            raise HealthError(
                f"{len(episodes)} healthy episodes are too few for a health model ({MIN_EPISODES} needed)",
                "record more",
            )
        if any(e.position.shape[1] != len(joints) for e in episodes):
            raise HealthError(f"telemetry does not have the {len(joints)} joints {', '.join(joints)}")
        fitting = [e for i, e in enumerate(episodes) if i % 3]
        held = [e for i, e in enumerate(episodes) if i % 3 == 0]
        arrays = _fit_regressions(fitting, len(joints))
        # Centre and spread come from episodes the regressions have not seen, as new ones will be.
        half = held[::2]
        table = np.stack([_measure(e, arrays) for e in half])
        arrays["centre"] = np.median(np.nan_to_num(table), axis=0)
        # Tails count, not only the standard deviation: a motor that is often off by much is no news.
        away = np.abs(np.nan_to_num(table - arrays["centre"]))
        spread = np.maximum(np.quantile(away, 0.95, axis=0) / 2.0, away.std(axis=0))
        arrays["spread"] = np.maximum(spread, _SMALLEST[:, None])
        model = cls(arrays, joints, math.inf, alpha)
        worst = sorted(float(model._scores(e)[0].max()) for e in held)
        rank = min(len(worst), math.ceil((len(worst) + 1) * (1.0 - alpha)))
        model.alpha = max(alpha, 1.0 / (len(worst) + 1))
        # Half of the calibration episodes also gave the spread, which makes them look a little too
        # healthy: the margin is for that, and for a maximum that few episodes know poorly.
        model.threshold = 1.25 * max(worst[rank - 1], 3.0)
        log.info("health.fitted episodes=%d threshold=%.2f", len(episodes), model.threshold)
        return model

    def score(self, episode: Telemetry) -> list[MotorHealth]:
        """Every motor of an episode. Raises HealthError for short or broken telemetry."""
        scores, measured, ticks = self._scores(episode)
        units = ("friction_effort", "drive_effort", "heat_c")
        out = []
        for j, joint in enumerate(self.joints):
            evidence: dict[str, float | int | str] = {c: float(scores[i, j]) for i, c in enumerate(CHANNELS)}
            evidence |= {u: float(measured[i, j] - self._arrays["centre"][i, j]) for i, u in enumerate(units)}
            evidence |= {"ticks": int(ticks[j]), "worst": CHANNELS[int(scores[:, j].argmax())]}
            score = float(scores[:, j].max())
            out.append(MotorHealth(joint, score, self.threshold, score > self.threshold, evidence))
        return out

    def _scores(self, episode: Telemetry) -> tuple[F64, F64, npt.NDArray[np.int64]]:
        """(scores (3, J), measurements (3, J), judged ticks (J,)); what could not be measured scores 0."""
        measured = _measure(episode, self._arrays)
        z = (measured - self._arrays["centre"]) / self._arrays["spread"]
        z[1] = np.abs(z[1])  # a drive may be too weak or too strong; friction and heat only too much
        moving = _moving(motion(episode)).sum(axis=0)
        known = np.nan_to_num(measured, nan=0.0)
        return np.nan_to_num(np.maximum(z, 0.0), nan=0.0), known, moving

    def save(self, path: Path) -> None:
        """One safetensors file, appearing at once."""
        meta = {
            "format": _FORMAT,
            "joints": json.dumps(self.joints),
            "threshold": repr(self.threshold),
            "alpha": repr(self.alpha),
        }
        arrays = {k: np.ascontiguousarray(v) for k, v in self._arrays.items()}
        write_atomic(path, save(arrays, metadata=meta))

    @classmethod
    def load(cls, path: Path) -> HealthModel:
        """Raises HealthError when the file is missing, damaged or of another kind."""
        try:
            with safe_open(path, "numpy") as file:
                meta = file.metadata() or {}
                if meta.get("format") != _FORMAT:
                    raise HealthError(f"{path} is not a health model", "fit one with ratchet learn")
                names = list(file.keys())
                arrays = {name: np.asarray(file.get_tensor(name), np.float64) for name in names}
                joints = tuple(json.loads(meta["joints"]))
                return cls(arrays, joints, float(meta["threshold"]), float(meta["alpha"]))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise HealthError(f"health model {path} cannot be read ({error})", "fit it again") from error


def _fit_regressions(episodes: Sequence[Telemetry], joints: int) -> dict[str, F64]:
    motions = [motion(e) for e in episodes]
    free = np.concatenate([m.free for m in motions])
    moving = np.concatenate([_moving(m) for m in motions])
    features = np.concatenate([inverse_dynamics(m) for m in motions])
    effort = np.concatenate([m.effort for m in motions])
    dynamics, drives, heats = [], [], []
    heat_rows = [_heat_features(e) for e in episodes]
    for j in range(joints):
        rows = moving[:, j] if moving[:, j].sum() >= features.shape[1] else free
        dynamics.append(ridge(features[rows], effort[rows, j], _RIDGE))
        lag = np.concatenate([drive(m, j) for m in motions])
        drives.append(ridge(lag[free], effort[free, j], _RIDGE))
        x = np.stack([h[0][:, j] for h in heat_rows])
        heats.append(ridge(x, np.array([h[1][j] for h in heat_rows]), _RIDGE))
    return {"dynamics": np.stack(dynamics), "drive": np.stack(drives), "heat": np.stack(heats)}


def _measure(episode: Telemetry, arrays: dict[str, F64]) -> F64:
    """(3, J): added friction and drive error in units of effort, unexplained heating in °C; NaN unknown."""
    m = motion(episode)
    features, moving = inverse_dynamics(m), _moving(m)
    heat_x, rise = _heat_features(episode)
    out = np.full((len(CHANNELS), m.q.shape[1]), np.nan)
    for j in range(m.q.shape[1]):
        rows = moving[:, j]
        if rows.sum() >= _MIN_TICKS:
            residual = m.effort[rows, j] - features[rows] @ arrays["dynamics"][j]
            # The median: friction is there whenever the joint moves, a push against the table is not.
            out[0, j] = float(np.median(residual * np.sign(m.qd[rows, j])))
            lag = drive(m, j)[rows]
            residual = m.effort[rows, j] - lag @ arrays["drive"][j]
            out[1, j] = float(np.median(residual * np.sign(lag[:, 0])))
        out[2, j] = rise[j] - float(heat_x[:, j] @ arrays["heat"][j])
    return out


def _moving(m: Motion) -> npt.NDArray[np.bool_]:
    return (np.abs(m.qd) > MOVING_RAD_S) & m.free[:, None]


def _heat_features(t: Telemetry) -> tuple[F64, F64]:
    """((3, J) features, (J,) rise in °C): heating by effort², cooling by what it started at, a constant."""
    seconds = len(t.position) / t.fps
    tenth = max(1, len(t.temperature) // 10)
    first, last = t.temperature[:tenth].mean(axis=0), t.temperature[-tenth:].mean(axis=0)
    work = (t.effort**2).mean(axis=0) * seconds
    return np.stack([work, first * seconds, np.ones_like(work)]), last - first
