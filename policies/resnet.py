"""ResNet-18 without its classifier (He et al. 2015, arXiv:1512.03385), under torchvision's key names.

Written here because torchvision's builds do not import beside a CPU torch; weights saved by
torchvision load as they are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from policies.dropout import plain_cpu
from policies.winograd import convolve, suits

NormLayer = Callable[[int], nn.Module]


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and affine values are buffers: never trained, never updated."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def affine(self) -> tuple[Tensor, Tensor]:
        """(scale, shift), each (C,): what `forward` multiplies by and adds."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → same shape."""
        scale, shift = self.affine()
        # Cast to the activations' type: under autocast a float32 scale would double their size.
        return x * scale.to(x.dtype).view(1, -1, 1, 1) + shift.to(x.dtype).view(1, -1, 1, 1)


def normed(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """``norm(conv(x))``; while training, a frozen norm is part of the convolution: two passes fewer."""
    if not (isinstance(norm, FrozenBatchNorm2d) and norm.training):
        return norm(conv(x))
    scale, shift = norm.affine()
    if plain_cpu(x) and suits(conv, *x.shape[2:]):
        return convolve(x, conv.weight, scale, shift)
    weight = conv.weight * scale.view(-1, 1, 1, 1)
    return conv._conv_forward(x, weight, shift)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: NormLayer) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = norm(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = norm(outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) → (B, outputs, H/stride, W/stride)."""
        shortcut = x
        if self.downsample is not None:
            conv, norm = self.downsample
            assert isinstance(conv, nn.Conv2d)
            shortcut = normed(conv, norm, x)
        x = self.relu(normed(self.conv1, self.bn1, x))
        return self.relu(normed(self.conv2, self.bn2, x) + shortcut)


class ResNet18(nn.Module):
    """(B, 3, H, W) → (B, 8·width, ⌈H/32⌉, ⌈W/32⌉); ``width`` 64 and 2 ``blocks`` a stage as published."""

    def __init__(self, width: int = 64, norm: NormLayer = FrozenBatchNorm2d, blocks: int = 2) -> None:
        super().__init__()
        self.channels = 8 * width
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(width, width, 1, norm, blocks)
        self.layer2 = _stage(width, 2 * width, 2, norm, blocks)
        self.layer3 = _stage(2 * width, 4 * width, 2, norm, blocks)
        self.layer4 = _stage(4 * width, 8 * width, 2, norm, blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Normalised RGB (B, 3, H, W) → the last feature map."""
        x = self.maxpool(self.relu(normed(self.conv1, self.bn1, x)))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def stages(self) -> list[nn.Module]:
        """The parts that each keep much memory while training."""
        return [self.layer1, self.layer2, self.layer3, self.layer4]

    def load_torchvision(self, weights: dict[str, Tensor]) -> None:
        """Load a torchvision ``resnet18`` state dict; its classifier is left out.

        Raises RuntimeError naming the keys when anything else is missing or of another shape.
        """
        own = self.state_dict()
        kept = {key: value for key, value in weights.items() if not key.startswith("fc.")}
        counters = {key for key in kept if key.endswith("num_batches_tracked") and key not in own}
        self.load_state_dict({key: value for key, value in kept.items() if key not in counters})


def _stage(inputs: int, outputs: int, stride: int, norm: NormLayer, blocks: int) -> nn.Sequential:
    rest = (BasicBlock(outputs, outputs, 1, norm) for _ in range(blocks - 1))
    return nn.Sequential(BasicBlock(inputs, outputs, stride, norm), *rest)
