"""ACT run the way LeRobot runs it: the yardstick of `ratchet bench inference`.

Written after LeRobot 0.4.4's ``policies/act/modeling_act.py`` and ``processor``: float32 modules in NCHW,
``nn.MultiheadAttention`` sequence first, one backbone pass a camera, frozen batch norm as a step of its own,
pictures turned to float and normalised before the network. In its favour, tokens are put together in one
step instead of 600, and the positions are not worked out anew. Parameter names are LeRobot's, so the
weights of `policies.act.ACT` load.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from policies.act import ACT
from policies.config import NORM_EPS, ACTConfig, NormStats
from policies.resnet import FrozenBatchNorm2d


class LeRobotACT(nn.Module):
    """The published network with its pre- and post-processing, weights copied from ``model``."""

    token_pos: Tensor
    state_mean: Tensor
    state_std: Tensor
    action_mean: Tensor
    action_std: Tensor
    image_mean: Tensor
    image_std: Tensor

    def __init__(self, model: ACT, stats: NormStats, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        config = model.config
        self.config = config
        self.backbone = _ResNet18()
        self.encoder = _Encoder(config)
        self.decoder = _Decoder(config)
        self.encoder_robot_state_input_proj = nn.Linear(config.state_dim, config.dim)
        self.encoder_latent_input_proj = nn.Linear(config.latent, config.dim)
        self.encoder_img_feat_input_proj = nn.Conv2d(512, config.dim, 1)
        self.encoder_1d_feature_pos_embed = nn.Embedding(2, config.dim)
        self.decoder_pos_embed = nn.Embedding(config.chunk, config.dim)
        self.action_head = nn.Linear(config.dim, config.action_dim)
        own, given = self.state_dict(), model.state_dict()
        self.load_state_dict({name: given[name] for name in own})
        self.register_buffer("token_pos", model.token_pos)
        for name in ("state", "action"):
            feature = getattr(stats, name)
            self.register_buffer(f"{name}_mean", torch.tensor(feature.mean))
            self.register_buffer(f"{name}_std", torch.tensor(feature.std))
        pictures = [stats.images[camera.name] for camera in config.cameras]
        self.register_buffer("image_mean", torch.tensor([p.mean for p in pictures])[:, :, None, None])
        self.register_buffer("image_std", torch.tensor([p.std for p in pictures])[:, :, None, None])
        self.to(dtype).eval()

    def forward(self, state: Tensor, *pictures: Tensor) -> Tensor:
        """``state`` (1, S) rad, ``pictures`` float (1, 3, H, W) in 0…1 → actions (1, H, A) rad."""
        state = (state - self.state_mean) / (self.state_std + NORM_EPS)
        latent = torch.zeros(1, self.config.latent, dtype=state.dtype)
        low = [self.encoder_latent_input_proj(latent), self.encoder_robot_state_input_proj(state)]
        tokens = [torch.stack(low)]
        for i, picture in enumerate(pictures):
            x = (picture - self.image_mean[i]) / (self.image_std[i] + NORM_EPS)
            features = self.encoder_img_feat_input_proj(self.backbone(x))
            tokens.append(features.flatten(2).permute(2, 0, 1))
        pos = torch.cat([self.encoder_1d_feature_pos_embed.weight, self.token_pos])[:, None]
        memory = self.encoder(torch.cat(tokens), pos)
        queries = self.decoder_pos_embed.weight[:, None]
        decoded = self.decoder(torch.zeros_like(queries), queries, memory, pos).transpose(0, 1)
        return self.action_head(decoded) * self.action_std + self.action_mean

    def inputs(self, state: Tensor, images: Mapping[str, Tensor]) -> list[Tensor]:
        """uint8 (H, W, 3) per camera and ``state`` (S,), prepared as LeRobot's inference does."""
        dtype = self.token_pos.dtype
        pictures = []
        for camera in self.config.cameras:
            picture = images[camera.name].to(dtype) / 255
            pictures.append(picture.permute(2, 0, 1).contiguous()[None])
        return [state.to(dtype)[None], *pictures]


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = FrozenBatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = FrozenBatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, FrozenBatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return F.relu(out, inplace=True)


class _ResNet18(nn.Module):
    """torchvision's, with its frozen batch norm, as far as the last feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = FrozenBatchNorm2d(64)
        widths = (64, 64, 128, 256, 512)
        for i in range(1, 5):
            first = _Block(widths[i - 1], widths[i], 1 if i == 1 else 2)
            setattr(self, f"layer{i}", nn.Sequential(first, _Block(widths[i], widths[i], 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x)), inplace=True), 3, 2, 1)
        for i in range(1, 5):
            x = getattr(self, f"layer{i}")(x)
        return x


class _EncoderLayer(nn.Module):
    def __init__(self, config: ACTConfig) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(config.dim, config.heads)
        self.linear1 = nn.Linear(config.dim, config.ffn)
        self.linear2 = nn.Linear(config.ffn, config.dim)
        self.norm1, self.norm2 = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)

    def forward(self, x: Tensor, pos: Tensor) -> Tensor:
        placed = x + pos
        x = self.norm1(x + self.self_attn(placed, placed, value=x)[0])
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


class _DecoderLayer(nn.Module):
    def __init__(self, config: ACTConfig) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(config.dim, config.heads)
        self.multihead_attn = nn.MultiheadAttention(config.dim, config.heads)
        self.linear1 = nn.Linear(config.dim, config.ffn)
        self.linear2 = nn.Linear(config.ffn, config.dim)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(config.dim) for _ in range(3))

    def forward(self, x: Tensor, queries: Tensor, memory: Tensor, pos: Tensor) -> Tensor:
        placed = x + queries
        x = self.norm1(x + self.self_attn(placed, placed, value=x)[0])
        x = self.norm2(x + self.multihead_attn(x + queries, memory + pos, value=memory)[0])
        return self.norm3(x + self.linear2(F.relu(self.linear1(x))))


class _Encoder(nn.Module):
    def __init__(self, config: ACTConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_EncoderLayer(config) for _ in range(config.encoder_layers))

    def forward(self, x: Tensor, pos: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, pos)
        return x


class _Decoder(nn.Module):
    def __init__(self, config: ACTConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, x: Tensor, queries: Tensor, memory: Tensor, pos: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, queries, memory, pos)
        return self.norm(x)


def compiled(model: LeRobotACT, example: Sequence[Tensor]) -> nn.Module:
    """``model`` under torch.compile with its weights frozen in, compiled for inputs like ``example``.

    Raises torch's own errors where it cannot: it needs a C++ compiler.
    """
    import torch._inductor.config as inductor

    with inductor.patch(freezing=True), torch.no_grad():
        fast: nn.Module = torch.compile(model, dynamic=False)  # type: ignore[assignment]
        for _ in range(2):
            fast(*example)
    return fast
