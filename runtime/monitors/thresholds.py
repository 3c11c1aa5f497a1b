"""The calibration a bundle carries for its monitors: checked once, then looked up per tick.

Thresholds vary with the time since the episode began, one value per bucket of 16 ticks (split
conformal prediction on successful roll-outs, computed by the learner): a fast reach disagrees more
with itself than a careful grasp does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.errors import RuntimeFault

#: Ticks per bucket of a time-varying threshold.
BUCKET_TICKS = 16
_REMEDY = "calibrate the bundle again"


class ThresholdError(RuntimeFault):
    """A bundle's monitor thresholds cannot be used: one line, what is wrong."""


@dataclass(frozen=True, slots=True)
class Band:
    """A threshold per bucket; the last one goes on for ever."""

    values: tuple[float, ...]

    def at(self, elapsed: int) -> float:
        """The threshold after ``elapsed`` ticks of the episode."""
        return self.values[min(elapsed // BUCKET_TICKS, len(self.values) - 1)]


@dataclass(frozen=True, slots=True)
class Familiarity:
    """What the encoder's features look like on successful episodes.

    ``mean`` float64 (D,), ``factor`` float64 (D, k) with factor·factorᵀ the inverse covariance.
    """

    mean: npt.NDArray[np.float64]
    factor: npt.NDArray[np.float64]

    def distance(self, features: npt.NDArray[np.float32]) -> float | None:
        """Mahalanobis distance ‖(f − mean)·factor‖ of features (D,); None when D is another."""
        if features.shape != self.mean.shape:
            return None
        return float(np.linalg.norm((features - self.mean) @ self.factor))


@dataclass(frozen=True, slots=True)
class Thresholds:
    """A bundle's calibration; a part that is None keeps its monitor silent."""

    disagreement: Band | None = None
    reversals: Band | None = None
    unfamiliar: Band | None = None
    familiarity: Familiarity | None = None

    @classmethod
    def parse(cls, raw: Mapping[str, Any] | None) -> Thresholds:
        """Read ``manifest.monitors``; None gives empty thresholds. Raises ThresholdError."""
        if raw is None:
            return cls()
        disagreement, unfamiliar = _section(raw, "disagreement"), _section(raw, "unfamiliar")
        familiarity = None
        if unfamiliar is not None:
            familiarity = _familiarity(unfamiliar)
        return cls(
            disagreement=_band(disagreement, "disagreement", "threshold"),
            reversals=_band(disagreement, "disagreement", "reversal_threshold", optional=True),
            unfamiliar=_band(unfamiliar, "unfamiliar", "threshold"),
            familiarity=familiarity,
        )


def _section(raw: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    section = raw.get(name)
    if section is not None and not isinstance(section, Mapping):
        raise ThresholdError(f"monitors.{name} is not a table", _REMEDY)
    return section


def _array(value: Any, where: str) -> npt.NDArray[np.float64]:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ThresholdError(f"monitors.{where} is not numeric", _REMEDY) from error
    if array.size == 0 or not np.isfinite(array).all():
        raise ThresholdError(f"monitors.{where} is empty or not finite", _REMEDY)
    return array


def _band(section: Mapping[str, Any] | None, name: str, key: str, optional: bool = False) -> Band | None:
    if section is None or (optional and section.get(key) is None):
        return None
    values = _array(section.get(key), f"{name}.{key}")
    if values.ndim > 1 or (values <= 0).any():
        raise ThresholdError(
            f"monitors.{name}.{key} is not positive numbers, one per {BUCKET_TICKS} ticks", _REMEDY
        )
    return Band(tuple(np.atleast_1d(values).tolist()))


def _familiarity(section: Mapping[str, Any]) -> Familiarity:
    mean = _array(section.get("mean"), "unfamiliar.mean")
    factor = _array(section.get("precision_factor"), "unfamiliar.precision_factor")
    if mean.ndim != 1 or factor.ndim != 2 or len(factor) != len(mean):
        raise ThresholdError(
            f"monitors.unfamiliar has mean {mean.shape} and precision_factor {factor.shape}, "
            "not (D,) and (D, k)",
            _REMEDY,
        )
    return Familiarity(mean, factor)
