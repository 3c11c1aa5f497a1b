"""The rows of a batch that anybody reads, one after the other: padding is not computed with."""

from __future__ import annotations

import torch
from torch import Tensor


class Kept:
    """Which of (B, T) tokens are kept: True in ``mask``."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        self._rows = mask.flatten().nonzero()[:, 0]

    def pick(self, x: Tensor) -> Tensor:
        """The rows of ``x`` (B, T, D) that are kept, as a batch of one: (1, N, D)."""
        return x.flatten(0, 1).index_select(0, self._rows)[None]

    def spread(self, rows: Tensor) -> Tensor:
        """(1, N, D) back to where they were; the others are zeros: (B, T, D)."""
        width = rows.shape[-1]
        empty = torch.zeros(self.mask.numel(), width, dtype=rows.dtype, device=rows.device)
        return empty.index_copy(0, self._rows, rows[0]).view(*self.mask.shape, width)
