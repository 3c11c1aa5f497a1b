"""ACT and its training step as LeRobot 0.4.4 writes them, for `ratchet bench train` to compare with.

``nn.MultiheadAttention`` with the sequence first, one pass of the backbone a camera, pictures channel by
channel, AdamW and dropout as torch has them by default. Parameters are named as in `policies.act.ACT`:
both compute with the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from policies.act import ACT
from policies.config import ACTConfig
from policies.resnet import FrozenBatchNorm2d

CLIP = 10.0
RATE, DECAY = 1e-5, 1e-4


class _Norm(FrozenBatchNorm2d):
    """As torchvision's: computed from its buffers every time, never merged into a convolution."""

    def forward(self, x: Tensor) -> Tensor:
        scale = (self.weight * (self.running_var + self.eps).rsqrt()).view(1, -1, 1, 1)
        return x * scale + (self.bias.view(1, -1, 1, 1) - self.running_mean.view(1, -1, 1, 1) * scale)


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = _Norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = _Norm(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, _Norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.bn2(self.conv2(x))
        x += shortcut
        return F.relu(x, inplace=True)


class _ResNet(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = _Norm(width)
        for number, factor in enumerate((1, 2, 4, 8)):
            first = _Block(width * max(1, factor // 2), width * factor, 1 if number == 0 else 2)
            setattr(
                self, f"layer{number + 1}", nn.Sequential(first, _Block(width * factor, width * factor, 1))
            )

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x)), inplace=True), 3, stride=2, padding=1)
        for number in range(1, 5):
            x = getattr(self, f"layer{number}")(x)
        return x


class _Layer(nn.Module):
    """Encoder layer; with ``crossed`` a decoder layer."""

    def __init__(self, config: ACTConfig, crossed: bool) -> None:
        super().__init__()
        dim, p = config.dim, config.dropout
        self.self_attn = nn.MultiheadAttention(dim, config.heads, dropout=p)
        if crossed:
            self.multihead_attn = nn.MultiheadAttention(dim, config.heads, dropout=p)
            self.norm3 = nn.LayerNorm(dim)
        self.linear1, self.linear2 = nn.Linear(dim, config.ffn), nn.Linear(config.ffn, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(p)

    def forward(
        self, x: Tensor, pos: Tensor, pad: Tensor | None, memory: Tensor | None, memory_pos: Tensor | None
    ) -> Tensor:
        placed = x + pos
        x = self.norm1(x + self.dropout(self.self_attn(placed, placed, value=x, key_padding_mask=pad)[0]))
        if memory is None or memory_pos is None:
            return self.norm2(x + self._feed(x))
        seen = self.multihead_attn(query=x + pos, key=memory + memory_pos, value=memory)[0]
        x = self.norm2(x + self.dropout(seen))
        return self.norm3(x + self._feed(x))

    def _feed(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x)))))


class _Stack(nn.Module):
    def __init__(self, config: ACTConfig, layers: int, crossed: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(config, crossed) for _ in range(layers))
        if crossed:
            self.norm = nn.LayerNorm(config.dim)

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        pad: Tensor | None = None,
        memory: Tensor | None = None,
        memory_pos: Tensor | None = None,
    ) -> Tensor:
        for layer in self.layers:
            x = layer(x, pos, pad, memory, memory_pos)
        return x if memory is None else self.norm(x)


class PeerACT(nn.Module):
    """The published network, post-norm, one ResNet-18 for all cameras, with the weights of ``model``."""

    token_pos: Tensor
    vae_encoder_pos_enc: Tensor

    def __init__(self, model: ACT) -> None:
        super().__init__()
        self.config = config = model.config
        dim = config.dim
        self.vae_encoder = _Stack(config, config.vae_layers)
        self.vae_encoder_cls_embed = nn.Embedding(1, dim)
        self.vae_encoder_robot_state_input_proj = nn.Linear(config.state_dim, dim)
        self.vae_encoder_action_input_proj = nn.Linear(config.action_dim, dim)
        self.vae_encoder_latent_output_proj = nn.Linear(dim, 2 * config.latent)
        self.backbone = _ResNet(config.backbone_width)
        self.encoder = _Stack(config, config.encoder_layers)
        self.decoder = _Stack(config, config.decoder_layers, crossed=True)
        self.encoder_robot_state_input_proj = nn.Linear(config.state_dim, dim)
        self.encoder_latent_input_proj = nn.Linear(config.latent, dim)
        self.encoder_img_feat_input_proj = nn.Conv2d(8 * config.backbone_width, dim, 1)
        self.encoder_1d_feature_pos_embed = nn.Embedding(2, dim)
        self.decoder_pos_embed = nn.Embedding(config.chunk, dim)
        self.action_head = nn.Linear(dim, config.action_dim)
        self.register_buffer("vae_encoder_pos_enc", model.vae_encoder_pos_enc.clone())
        self.register_buffer("token_pos", model.token_pos.clone(), persistent=False)
        self.load_state_dict(model.state_dict())

    def forward(
        self, state: Tensor, images: Sequence[Tensor], actions: Tensor, is_pad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `policies.act.ACT.forward` in training → actions (B, H, A), mu and log σ² (B, latent)."""
        batch = len(state)
        cls = self.vae_encoder_cls_embed.weight[None].repeat(batch, 1, 1)
        joints = self.vae_encoder_robot_state_input_proj(state)[:, None]
        tokens = torch.cat([cls, joints, self.vae_encoder_action_input_proj(actions)], dim=1)
        pad = torch.cat([torch.full((batch, 2), False), is_pad], dim=1)
        pos = self.vae_encoder_pos_enc.permute(1, 0, 2)
        summary = self.vae_encoder(tokens.permute(1, 0, 2), pos, pad)[0]
        mu, log_sigma_x2 = self.vae_encoder_latent_output_proj(summary).chunk(2, dim=1)
        latent = mu + log_sigma_x2.div(2).exp() * torch.randn_like(mu)
        rows = [self.encoder_latent_input_proj(latent), self.encoder_robot_state_input_proj(state)]
        for image in images:
            features = self.encoder_img_feat_input_proj(self.backbone(image))
            rows.extend(features.flatten(2).permute(2, 0, 1))
        places = torch.cat([self.encoder_1d_feature_pos_embed.weight, self.token_pos])[:, None]
        memory = self.encoder(torch.stack(rows), places)
        start = torch.zeros((self.config.chunk, batch, self.config.dim))
        queries = self.decoder_pos_embed.weight.unsqueeze(1)
        decoded = self.decoder(start, queries, memory=memory, memory_pos=places)
        return self.action_head(decoded.transpose(0, 1)), mu, log_sigma_x2


def peer_loss(model: PeerACT, batch: tuple[Tensor, list[Tensor], Tensor, Tensor]) -> Tensor:
    """Masked L1 plus weighted KL of ``batch`` (state, images, actions, is_pad), normalised."""
    state, images, actions, is_pad = batch
    predicted, mu, log_sigma_x2 = model(state, images, actions, is_pad)
    l1 = (F.l1_loss(actions, predicted, reduction="none") * ~is_pad.unsqueeze(-1)).mean()
    kl = (-0.5 * (1 + log_sigma_x2 - mu.pow(2) - log_sigma_x2.exp())).sum(-1).mean()
    return l1 + kl * model.config.kl_weight


def peer_optimiser(model: PeerACT) -> torch.optim.AdamW:
    """As LeRobot's preset for ACT: the backbone at the same rate."""
    return torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)


def peer_step(
    model: PeerACT, optimiser: torch.optim.AdamW, batch: tuple[Tensor, list[Tensor], Tensor, Tensor]
) -> float:
    """One optimiser step, clipped at a norm of 10. Returns the loss."""
    loss = peer_loss(model, batch)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimiser.step()
    optimiser.zero_grad()
    return loss.item()
