"""Averaged weights: an exponential moving average of parameters and running statistics."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


class WeightAverage(Generic[M]):
    """EMA copy of a model; ``model`` is the copy, in eval mode, never trained itself.

    BatchNorm's running statistics are averaged like weights while training (they lag as the
    weights do) and can be re-estimated for the final weights with ``estimate_batchnorm``.
    """

    def __init__(self, model: M, decay: float) -> None:
        self.model: M = copy.deepcopy(model)
        self.model.eval().requires_grad_(False)
        self._decay = decay
        pairs = list(zip(_state(self.model), _state(model), strict=True))
        self._floats = [(a, b) for a, b in pairs if a.is_floating_point()]
        self._rest = [(a, b) for a, b in pairs if not a.is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the live weights. The decay warms up as (1 + step) / (10 + step), so that
        a short run is not an average with its random start."""
        decay = min(self._decay, (1 + step) / (10 + step))
        mine, live = [a for a, _ in self._floats], [b.detach() for _, b in self._floats]
        torch._foreach_lerp_(mine, live, 1.0 - decay)
        for a, b in self._rest:
            a.copy_(b)


def _state(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def batchnorms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """Every trained BatchNorm of a model (a frozen one is another class and is left alone)."""
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.track_running_stats]
