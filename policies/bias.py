"""Bias correction: rounded weights must not move a layer's mean output (Nagel et al. 2019, arXiv:1906.04721).

A filter that looks for edges sums to nothing over an even surface; rounded, it does not. What that adds
on average, ``Σ (rounded − weight)·E[input]``, is taken from the bias.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def channel_means(value: Floats) -> Doubles:
    """(C,) means of what a layer reads: (B, C, H, W) maps, or (…, C) rows."""
    others = (0, 2, 3) if value.ndim == 4 else tuple(range(value.ndim - 1))
    return np.asarray(value.mean(axis=others, dtype=np.float64))


def drift(off: Floats, mean: Doubles, last: bool) -> Floats:
    """(O,) what weights that are ``off`` add to the outputs, on average over inputs of ``mean`` (C,).

    ``off`` is a convolution's (O, C/groups, h, w), a linear layer's (O, C), or (C, O) with outputs ``last``.
    """
    if off.ndim != 4:
        return np.asarray(mean @ off if last else off @ mean, np.float32)
    summed = off.sum(axis=(2, 3), dtype=np.float64)
    outputs, width = summed.shape
    groups = len(mean) // width
    seen = mean.reshape(groups, width)[np.arange(outputs) // (outputs // groups)]
    return np.asarray((summed * seen).sum(axis=1), np.float32)
