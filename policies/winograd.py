"""3×3 convolutions in training with 2.25 times fewer multiplications (Lavin & Gray 2015, arXiv:1509.09308).

Their F(2×2, 3×3): four neighbours of the output come from a 4×4 patch by 16 products in place of 36, all
products of one of the 16 places being one of matrices. In float32 it is as exact as the plain sum. It pays
where there are many channels on a small map, and where weights lie tap by tap, as `lay_out` puts them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_LEAST = 256  # channels, in and out

_INPUT = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
_WEIGHT = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
_OUTPUT = ((1, 1, 1, 0), (0, 1, -1, -1))


def suits(conv: nn.Conv2d, height: int, width: int) -> bool:
    """Whether ``conv`` on maps of that size is of the kind made here, and gains by it."""
    return (
        (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
        == ((3, 3), (1, 1), (1, 1), (1, 1), 1)
        and min(conv.in_channels, conv.out_channels) >= _LEAST
        and height % 2 == 0
        and width % 2 == 0
    )


def lay_out(model: nn.Module) -> None:
    """Have weights of convolutions that `suits` lie tap by tap: neither they nor gradients are copied."""
    for conv in model.modules():
        if isinstance(conv, nn.Conv2d) and suits(conv, 2, 2):
            conv.weight.data = _taps(conv.weight.data).contiguous().permute(2, 3, 0, 1)


def convolve(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``x`` (B, I, H, W) with ``weight`` (O, I, 3, 3), padded by one, times ``scale`` plus ``shift`` (O,)."""
    out: Tensor = _Winograd.apply(x, weight, scale, shift)
    return out


class _Winograd(torch.autograd.Function):
    """Everything is channels last, (16, T, C) by place and tile; T tiles of 2×2 cover all maps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        batch, inputs, height, width = x.shape
        outputs = len(weight)
        u = _both(_WEIGHT) @ _taps(weight).reshape(9, -1)
        v = _both(_INPUT) @ _patches(x)
        u, v = u.view(16, outputs, inputs), v.view(16, -1, inputs)
        ctx.save_for_backward(u, v, scale)
        tiles = _both(_OUTPUT) @ (v @ u.transpose(1, 2)).view(16, -1)
        out = torch.empty((batch, outputs, height, width), memory_format=torch.channels_last)
        into = _tiles(out.permute(0, 2, 3, 1))
        torch.addcmul(shift, tiles.view(into.shape), scale, out=into)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        u, v, scale = ctx.saved_tensors
        g = gradients[0].permute(0, 2, 3, 1)
        batch, height, width, outputs = g.shape
        inputs = v.shape[2]
        tiles = _tiles(g.contiguous())
        tiles = torch.mul(tiles, scale, out=g.new_empty(tiles.shape))
        m = (_both(_OUTPUT).t() @ tiles.view(4, -1)).view(16, -1, outputs)
        dw = _both(_WEIGHT).t() @ (m.transpose(1, 2) @ v).view(16, -1)
        patches = (_both(_INPUT).t() @ (m @ u).view(16, -1)).view(
            2, 2, 2, 2, batch, height // 2, width // 2, inputs
        )
        padded = g.new_zeros(batch, height + 2, width + 2, inputs)
        halves = _tiles(padded)
        for row in (0, 1):
            for column in (0, 1):
                into = halves[..., row : row + height // 2, column : column + width // 2, :]
                into += patches[row, :, column]
        dx = padded[:, 1:-1, 1:-1].permute(0, 3, 1, 2)
        return dx, dw.view(3, 3, outputs, inputs).permute(2, 3, 0, 1), None, None


def _both(matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    """The transform of rows and of columns as one matrix."""
    one = torch.tensor(matrix, dtype=torch.float32)
    return torch.kron(one, one)


def _taps(weight: Tensor) -> Tensor:
    """(O, I, 3, 3) → (3, 3, O, I)."""
    return weight.permute(2, 3, 0, 1)


def _tiles(maps: Tensor) -> Tensor:
    """(B, H, W, C) contiguous → a view (2, 2, B, H/2, W/2, C): the place within a tile first."""
    batch, height, width, channels = maps.shape
    return maps.view(batch, height // 2, 2, width // 2, 2, channels).permute(2, 4, 0, 1, 3, 5)


def _patches(x: Tensor) -> Tensor:
    """(B, C, H, W), padded by one → the 4×4 patches around every tile, (16, T·C)."""
    batch, channels, height, width = x.shape
    padded = x.new_zeros(batch, height + 2, width + 2, channels)
    padded[:, 1:-1, 1:-1] = x.permute(0, 2, 3, 1)
    image, row, column, _ = padded.stride()
    shape = (4, 4, batch, height // 2, width // 2, channels)
    return padded.as_strided(shape, (row, column, image, 2 * row, 2 * column, 1)).reshape(16, -1)
