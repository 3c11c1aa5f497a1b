"""Dropout (Srivastava et al. 2014) for training on a processor, where torch draws its masks slowly.

torch asks its generator once for every value, seven nanoseconds each, and keeps a float for it: a sixth of
ACT's whole step. Here torch's generator gives a key alone, and `policies.kernels` makes the mask from it
in the pass that uses it, a third of a nanosecond each, once more on the way back. Probabilities are
rounded to 1/65536.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from policies.kernels import BLOCK, LEVELS, drop, spread


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """As ``F.dropout``: in training a value is 0 with probability ``p``, else it grows by 1/(1 − p)."""
    if not training or p == 0.0:
        return x
    return _Dropout.apply(x, p) if plain_cpu(x) else F.dropout(x, p, True)


def plain_cpu(x: Tensor) -> bool:
    """Whether ``x`` is float32 on a processor, and computed with as it is: no autocast, not compiled."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def fresh_key() -> int:
    """What the next mask is made from: 63 bits from torch's default generator."""
    return int(torch.empty((), dtype=torch.int64).random_())


def level(p: float) -> int:
    """Draws of 16 bits below it are dropped; at least one of all is kept."""
    return min(round(p * LEVELS), LEVELS - 1)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        ctx.key, ctx.p = fresh_key(), p
        return _dropped(x, ctx.key, p)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _dropped(gradients[0], ctx.key, ctx.p), None


def _dropped(x: Tensor, key: int, p: float) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    blocks = -(-x.numel() // BLOCK)
    spread(drop, blocks, x.view(-1).numpy(), out.view(-1).numpy(), key, level(p), 1.0 / (1.0 - p))
    return out
