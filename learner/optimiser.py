"""AdamW with warm-up, cosine and a rate of its own for the backbone."""

from __future__ import annotations

import math

import torch

from learner.config import TrainConfig
from policies.act import ACT


def make_optimiser(model: ACT, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW in one fused pass over every parameter; group 0 is all but the backbone, group 1 that."""
    backbone = [p for n, p in model.named_parameters() if n.startswith("backbone.")]
    rest = [p for n, p in model.named_parameters() if not n.startswith("backbone.")]
    groups = [{"params": rest, "scale": 1.0}, {"params": backbone, "scale": config.backbone_lr}]
    return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def clip_gradients(model: ACT, limit: float) -> float:
    """Scale all gradients down together so that their norm is at most ``limit``. Returns what it was.

    As ``clip_grad_norm_``, which also multiplies those by one that are short enough.
    """
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    value = float(norm)
    if value + 1e-6 > limit:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return value


def set_rate(optimiser: torch.optim.Optimizer, config: TrainConfig, step: int) -> None:
    """The learning rate of step ``step``: linear over the warm-up, then a cosine to ``lr_end``·lr."""
    if step < config.warmup:
        rate = config.lr * (step + 1) / config.warmup
    else:
        along = (step - config.warmup) / max(1, config.steps - config.warmup)
        cosine = 0.5 * (1.0 + math.cos(math.pi * along))
        rate = config.lr * (config.lr_end + (1.0 - config.lr_end) * cosine)
    for group in optimiser.param_groups:
        group["lr"] = rate * group["scale"]
