"""A transformer layer's two-layer perceptron, with fewer passes over memory in training on a processor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from policies.dropout import dropout, kept, plain_cpu

Activation = Callable[[Tensor], Tensor]


def perceptron(x: Tensor, first: nn.Linear, second: nn.Linear, activation: Activation, p: float) -> Tensor:
    """``x`` (…, D) → second(dropout(activation(first(x)))) of the same shape; dropout where they train."""
    if first.training and p > 0.0 and activation is F.relu and plain_cpu(x):
        return _ReluPerceptron.apply(x, first.weight, first.bias, second.weight, second.bias, p)
    return second(dropout(activation(first(x)), p, first.training))


class _ReluPerceptron(torch.autograd.Function):
    """ReLU and dropout in place on the inner layer, whose zeros then are the mask of both on the way back.

    The growth by 1/(1 − p) is a factor of the second product, which costs nothing.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, p: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        inner = torch.addmm(b1, rows, w1.t()).clamp_min_(0.0)
        inner.mul_(kept(inner.shape, p))
        ctx.save_for_backward(rows, w1, w2, inner)
        ctx.scale, ctx.shape = 1.0 / (1.0 - p), x.shape
        return torch.addmm(b2, inner, w2.t(), alpha=ctx.scale).view(x.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, w1, w2, inner = ctx.saved_tensors
        outer = gradients[0].reshape(-1, w2.shape[0])
        scaled = outer * ctx.scale
        within = torch.ops.aten.threshold_backward(scaled @ w2, inner, 0)
        return (
            (within @ w1).view(ctx.shape),
            within.t() @ rows,
            within.sum(0),
            scaled.t() @ inner,
            outer.sum(0),
            None,
        )
