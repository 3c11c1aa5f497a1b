"""A transformer layer's two-layer perceptron, with fewer passes over memory in training on a processor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from policies.dropout import dropout, fresh_key, level, plain_cpu
from policies.kernels import BLOCK, COLUMNS, relu_drop, relu_drop_back, spread

Activation = Callable[[Tensor], Tensor]


def perceptron(x: Tensor, first: nn.Linear, second: nn.Linear, activation: Activation, p: float) -> Tensor:
    """``x`` (…, D) → second(dropout(activation(first(x)))) of the same shape; dropout where they train."""
    if first.training and p > 0.0 and activation is F.relu and plain_cpu(x):
        return _ReluPerceptron.apply(x, first.weight, first.bias, second.weight, second.bias, p)
    return second(dropout(activation(first(x)), p, first.training))


class _ReluPerceptron(torch.autograd.Function):
    """Bias, ReLU and dropout in one pass over the inner layer, whose zeros are the mask on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, p: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        inner = rows @ w1.t()
        ctx.scale, ctx.shape = 1.0 / (1.0 - p), x.shape
        blocks = len(inner) * -(-inner.shape[1] // BLOCK)
        spread(relu_drop, blocks, inner.numpy(), b1.numpy(), fresh_key(), level(p), ctx.scale)
        ctx.save_for_backward(rows, w1, w2, inner)
        return torch.addmm(b2, inner, w2.t()).view(x.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, w1, w2, inner = ctx.saved_tensors
        outer = gradients[0].reshape(-1, w2.shape[0])
        within, sums = outer @ w2, torch.empty(w2.shape[1])
        blocks = -(-len(sums) // COLUMNS)
        spread(relu_drop_back, blocks, within.numpy(), inner.numpy(), ctx.scale, sums.numpy())
        return (
            (within @ w1).view(ctx.shape),
            within.t() @ rows,
            sums,
            outer.t() @ inner,
            outer.sum(0),
            None,
        )
