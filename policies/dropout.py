"""Dropout (Srivastava et al. 2014) for training on a processor, where torch draws its masks slowly.

torch asks its generator once for every value, seven nanoseconds each, and keeps a float for it: a sixth of
ACT's whole step. Here one draw of 64 bits decides about four values, and a byte is kept. Probabilities
are rounded to 1/65536.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_LEVELS = 65536  # of 16 bits


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


def kept(shape: Sequence[int], p: float) -> Tensor:
    """bool of ``shape``: True with probability 1 − ``p``, from torch's default generator."""
    count = math.prod(shape)
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    return bits.view(torch.int16)[:count].view(*shape) >= round(p * _LEVELS) - _LEVELS // 2


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        keep = kept(x.shape, p)
        ctx.save_for_backward(keep)
        ctx.scale = 1.0 / (1.0 - p)
        return torch.ops.aten.native_dropout_backward(x, keep, ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return torch.ops.aten.native_dropout_backward(gradients[0], keep, ctx.scale), None
