"""ACT: an Action Chunking Transformer as published (Zhao et al. 2023, arXiv:2304.13705).

Pictures, joint state and a latent become tokens; a transformer turns them and learned queries into
the next H joint goals. While training, a small encoder sees the demonstrated actions and proposes
the latent (a conditional VAE); at run time the latent is zero. Module names are LeRobot's, so its
weights load with nothing renamed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from policies.config import ACTConfig
from policies.efficientnet import EfficientNetLite0
from policies.errors import InputError
from policies.resnet import FrozenBatchNorm2d, ResNet18
from policies.transformer import Decoder, Encoder

Backbone = ResNet18 | EfficientNetLite0


class ACTOutput(NamedTuple):
    """``actions`` (B, H, A) normalised; ``mu``, ``log_sigma_x2`` (B, latent) of the posterior, None
    where none was made; ``features`` (B, D), the mean over the encoder's tokens."""

    actions: Tensor
    mu: Tensor | None
    log_sigma_x2: Tensor | None
    features: Tensor


class ACT(nn.Module):
    """The network alone: normalised tensors in, normalised tensors out (see `policies.normalise`)."""

    vae_encoder_pos_enc: Tensor
    token_pos: Tensor

    def __init__(self, config: ACTConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        if config.use_vae:
            self.vae_encoder = Encoder(config, config.vae_layers)
            self.vae_encoder_cls_embed = nn.Embedding(1, dim)
            self.vae_encoder_robot_state_input_proj = nn.Linear(config.state_dim, dim)
            self.vae_encoder_action_input_proj = nn.Linear(config.action_dim, dim)
            self.vae_encoder_latent_output_proj = nn.Linear(dim, 2 * config.latent)
            self.register_buffer("vae_encoder_pos_enc", sine_positions(config.chunk + 2, dim)[None])
        nets = _backbones(config)
        self.backbone: nn.Module = nn.ModuleList(nets) if config.backbone_per_camera else nets[0]
        self.encoder = Encoder(config, config.encoder_layers)
        self.decoder = Decoder(config)
        self.encoder_robot_state_input_proj = nn.Linear(config.state_dim, dim)
        self.encoder_latent_input_proj = nn.Linear(config.latent, dim)
        self.encoder_img_feat_input_proj = nn.Conv2d(nets[0].channels, dim, 1)
        self.encoder_1d_feature_pos_embed = nn.Embedding(2, dim)
        self.decoder_pos_embed = nn.Embedding(config.chunk, dim)
        self.action_head = nn.Linear(dim, config.action_dim)
        self.register_buffer("token_pos", _image_positions(config), persistent=False)
        for part in (self.encoder, self.decoder):
            for parameter in part.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)

    def forward(
        self,
        state: Tensor,
        images: Mapping[str, Tensor] | Sequence[Tensor],
        actions: Tensor | None = None,
        is_pad: Tensor | None = None,
    ) -> ACTOutput:
        """Predict a chunk.

        ``state`` (B, S); ``images`` (B, 3, h, w) each, by camera name or in the configuration's
        order; all normalised. ``actions`` (B, H, A) with ``is_pad`` bool (B, H), True past the
        episode's end, feed the posterior while training and are ignored otherwise. Raises
        InputError for a missing camera or a picture of another size.
        """
        mu = log_sigma_x2 = None
        if self.config.use_vae and self.training and actions is not None:
            mu, log_sigma_x2 = self._posterior(state, actions, is_pad)
            latent = mu + (log_sigma_x2 / 2).exp() * torch.randn_like(mu)
        else:
            latent = state.new_zeros(state.shape[0], self.config.latent)
        low = torch.stack(
            [self.encoder_latent_input_proj(latent), self.encoder_robot_state_input_proj(state)], dim=1
        )
        tokens = torch.cat([low, self._image_tokens(self._ordered(images))], dim=1)
        pos = torch.cat([self.encoder_1d_feature_pos_embed.weight, self.token_pos])[None]
        memory = self.encoder(tokens, pos)
        decoded = self.decoder(self.decoder_pos_embed.weight[None], memory, pos)
        return ACTOutput(self.action_head(decoded), mu, log_sigma_x2, memory.mean(dim=1))

    def backbones(self) -> list[Backbone]:
        """The image backbones: one for each camera in the configuration's order, or the one all share."""
        nets = self.backbone if isinstance(self.backbone, nn.ModuleList) else [self.backbone]
        return [net for net in nets if isinstance(net, ResNet18 | EfficientNetLite0)]

    def _posterior(self, state: Tensor, actions: Tensor, is_pad: Tensor | None) -> tuple[Tensor, Tensor]:
        batch = state.shape[0]
        tokens = torch.cat(
            [
                self.vae_encoder_cls_embed.weight[None].expand(batch, -1, -1),
                self.vae_encoder_robot_state_input_proj(state)[:, None],
                self.vae_encoder_action_input_proj(actions),
            ],
            dim=1,
        )
        keep = None
        if is_pad is not None:
            keep = torch.cat([is_pad.new_ones(batch, 2), ~is_pad], dim=1)
        summary = self.vae_encoder(tokens, self.vae_encoder_pos_enc, keep, first_only=True)[:, 0]
        # The posterior's exponentials are taken in float32 whatever autocast chose.
        mu, log_sigma_x2 = self.vae_encoder_latent_output_proj(summary).float().chunk(2, dim=1)
        return mu, log_sigma_x2

    def _ordered(self, images: Mapping[str, Tensor] | Sequence[Tensor]) -> list[Tensor]:
        cameras = self.config.cameras
        if isinstance(images, Mapping):
            missing = [camera.name for camera in cameras if camera.name not in images]
            if missing:
                raise InputError(f"no picture of camera {missing[0]!r} among {sorted(images)}; add it")
            images = [images[camera.name] for camera in cameras]
        if len(images) != len(cameras):
            raise InputError(f"{len(images)} pictures for {len(cameras)} cameras; give one of each")
        for camera, image in zip(cameras, images, strict=True):
            if tuple(image.shape[2:]) != self.config.image_size(camera):
                raise InputError(
                    f"camera {camera.name!r} gives {tuple(image.shape[2:])}, the policy takes "
                    f"{self.config.image_size(camera)}; resize before the network"
                )
        return list(images)

    def _image_tokens(self, images: list[Tensor]) -> Tensor:
        if isinstance(self.backbone, nn.ModuleList):
            pairs = zip(self.backbone, images, strict=True)
            return torch.cat([self._project(net(image)) for net, image in pairs], dim=1)
        if len({self.config.image_size(camera) for camera in self.config.cameras}) > 1:
            return torch.cat([self._project(self.backbone(image)) for image in images], dim=1)
        # One pass for cameras of one size: fewer, larger convolutions.
        together = self._project(self.backbone(torch.cat(images)))
        return together.unflatten(0, (len(images), -1)).transpose(0, 1).flatten(1, 2)

    def _project(self, features: Tensor) -> Tensor:
        return self.encoder_img_feat_input_proj(features).flatten(2).transpose(1, 2)


def _backbones(config: ACTConfig) -> list[Backbone]:
    norm = FrozenBatchNorm2d if config.backbone_norm == "frozen" else nn.BatchNorm2d
    copies = len(config.cameras) if config.backbone_per_camera else 1
    if config.backbone == "efficientnet_lite0":
        return [EfficientNetLite0(norm) for _ in range(copies)]
    return [ResNet18(config.backbone_width, norm, config.backbone_blocks) for _ in range(copies)]


def sine_positions(length: int, dim: int) -> Tensor:
    """(length, dim) interleaved sines and cosines of the position (Vaswani et al. 2017, §3.5)."""
    index = torch.arange(dim, dtype=torch.float64)
    rate = torch.pow(10000.0, 2 * torch.div(index, 2, rounding_mode="floor") / dim)
    angle = torch.arange(length, dtype=torch.float64)[:, None] / rate
    angle[:, 0::2] = angle[:, 0::2].sin()
    angle[:, 1::2] = angle[:, 1::2].cos()
    return angle.float()


def grid_positions(height: int, width: int, dim: int) -> Tensor:
    """(height·width, dim) positions of a feature map: ``dim``/2 for y, then as many for x.

    Rows and columns count from 1 and are scaled to 2π (DETR's normalised sine embedding).
    """
    half = dim // 2
    rate = 10000.0 ** (
        2 * torch.div(torch.arange(half, dtype=torch.float32), 2, rounding_mode="floor") / half
    )

    def axis(length: int) -> Tensor:
        place = torch.arange(1, length + 1, dtype=torch.float32)
        angle = (place / (place[-1] + 1e-6) * 2 * math.pi)[:, None] / rate
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=-1).flatten(1)

    rows = axis(height)[:, None].expand(height, width, half)
    columns = axis(width)[None].expand(height, width, half)
    return torch.cat((rows, columns), dim=-1).reshape(height * width, dim)


def _image_positions(config: ACTConfig) -> Tensor:
    sizes = [config.feature_size(camera) for camera in config.cameras]
    return torch.cat([grid_positions(height, width, config.dim) for height, width in sizes])
