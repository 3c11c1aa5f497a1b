"""Watching every batch: NaN and infinity in loss and weights, and jumps of the loss without precedent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from learner.config import WatchConfig

# A loss that hardly varies has a spread near zero: it counts as at least this share of the median.
_LEAST_SPREAD = 0.05
_TO_SIGMA = 1.4826  # median absolute deviation → standard deviation of a normal distribution


@dataclass(frozen=True)
class Alarm:
    """What is wrong with a batch, in words, and what its loss was compared with (None: with nothing)."""

    reason: str
    median: float | None = None
    limit: float | None = None


class LossWatch:
    """Judges one loss after another against the last ``config.window`` ones.

    A spike is a loss above median + factor · max(1.4826 · MAD, 5 % of the median): median and MAD are
    those of the window, so that a bad batch moves its own limit little. Nothing is judged before
    ``after`` losses (the warm-up) and half a window have been seen.
    """

    def __init__(self, config: WatchConfig, after: int) -> None:
        self._config = config
        self._after = after
        self._seen = 0
        self._window: list[float] = []

    def judge(self, loss: float) -> Alarm | None:
        """What is wrong with the next ``loss``; None, and it is remembered, when nothing is."""
        if not math.isfinite(loss):
            return Alarm(f"loss {loss:.3g}")
        if self._config.factor and self._seen >= self._after and 2 * len(self._window) >= self._config.window:
            middle, limit = self._limit()
            if loss > limit:
                spread = (limit - middle) / self._config.factor
                above = (loss - middle) / spread
                return Alarm(
                    f"loss {loss:.3g} is {above:.0f} deviations above the median {middle:.3g} of the last "
                    f"{len(self._window)}, {self._config.factor:g} are allowed",
                    middle,
                    limit,
                )
        self._seen += 1
        self._window = [*self._window[-self._config.window + 1 :], loss]
        return None

    def _limit(self) -> tuple[float, float]:
        values = torch.tensor(self._window, dtype=torch.float64)
        middle = values.median()
        spread = torch.maximum(_TO_SIGMA * (values - middle).abs().median(), _LEAST_SPREAD * middle.abs())
        return float(middle), float(middle + self._config.factor * spread.clamp(min=1e-12))

    @property
    def recent(self) -> tuple[float, ...]:
        """The losses of the window, the newest last."""
        return tuple(self._window)

    def state(self) -> torch.Tensor:
        """float64 (1 + n,): how many losses were seen, then the window."""
        return torch.tensor([float(self._seen), *self._window], dtype=torch.float64)

    def load(self, state: torch.Tensor) -> None:
        """Go on from `state`."""
        self._seen, self._window = int(state[0]), state[1:].tolist()


class WeightWatch:
    """Finds weights, and running statistics, that are NaN or infinite, in half a per cent of a step."""

    def __init__(self, model: nn.Module) -> None:
        everything = [*model.named_parameters(), *model.named_buffers()]
        self._named = [(name, value.detach()) for name, value in everything if value.is_floating_point()]

    @torch.no_grad()
    def not_finite(self) -> str | None:
        """The name of the first tensor that is not finite; None when all are."""
        # Sums are quick, and one that is finite is of finite values; one that is not may just be large.
        if bool(torch.stack([value.sum() for _, value in self._named]).isfinite().all()):
            return None
        return next((name for name, value in self._named if not bool(value.isfinite().all())), None)


def listed(samples: Sequence[tuple[str, int]], most: int = 3) -> str:
    """Samples (episode, step) in words, by episode; the first ``most`` episodes and how many more."""
    steps: dict[str, list[int]] = {}
    for episode, step in samples:
        steps.setdefault(episode, []).append(step)
    named = [f"{episode} at {_some(at, most)}" for episode, at in list(steps.items())[:most]]
    more = f" and {len(steps) - most} more episodes" if len(steps) > most else ""
    return "; ".join(named) + more


def _some(steps: list[int], most: int) -> str:
    return ", ".join(str(step) for step in steps[:most]) + (" …" if len(steps) > most else "")
