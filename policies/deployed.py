"""ACT arranged for running: the same function as `policies.export.ServedACT`, in fewer and larger steps.

What does not depend on the observation is worked out once, here: the latent's token (the latent is
zero when running), positions inside the attention's projections, and the decoder's first
self-attention. It starts from zeros, so every query sees the same values and what it returns is a
constant; the first cross-attention's queries are too. Everything linear works on (rows, width)
matrices, so that a projection and its bias are one ONNX ``Gemm``; sizes other than the batch are
plain numbers, so that the graph does not work them out at every run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from policies.act import ACT
from policies.normalise import Normaliser
from policies.transformer import Attention, DecoderLayer, EncoderLayer


class DeployedACT(nn.Module):
    """Raw observation in, raw actions out. Evaluation only; holds copies of the small constants."""

    def __init__(self, model: ACT, normaliser: Normaliser) -> None:
        super().__init__()
        config = model.config
        self.config = config
        self.model = model
        self.normaliser = normaliser
        with torch.no_grad():
            pos = torch.cat([model.encoder_1d_feature_pos_embed.weight, model.token_pos])
            self.low = _low_tokens(model)
            layers = [layer for layer in model.encoder.layers if isinstance(layer, EncoderLayer)]
            self.layers = nn.ModuleList(_EncoderStep(layer, pos, config.activation) for layer in layers)
            first, *others = [layer for layer in model.decoder.layers if isinstance(layer, DecoderLayer)]
            queries = model.decoder_pos_embed.weight
            self.first = _LookStep(first, queries, pos, _first_queries(first, queries), config.activation)
            self.others = nn.ModuleList(
                _DecoderStep(layer, queries, pos, config.activation) for layer in others
            )
        alike = all(bool((v == v[0]).all()) for v in (normaliser.image_mean, normaliser.image_std))
        seen = {config.image_size(camera) for camera in config.cameras}
        # Pictures that are treated alike go through as one batch, and are normalised as one.
        self.together = alike and len(seen) == 1 and not config.backbone_per_camera

    def forward(self, state: Tensor, *images: Tensor) -> tuple[Tensor, Tensor]:
        """``state`` (B, S) rad, uint8 (B, H, W, 3) per camera → actions (B, H, A) rad, features (B, D)."""
        config = self.config
        low = self.low(self.normaliser.state(state)).reshape(-1, 2, config.dim)
        x = torch.cat([low, self._image_tokens(images)], dim=1)
        for layer in self.layers:
            x = layer(x)
        memory = self.model.encoder.norm(x)
        decoded = self.first(memory)
        for layer in self.others:
            decoded = layer(decoded, memory)
        head = self.model.action_head(self.model.decoder.norm(decoded).reshape(-1, config.dim))
        actions = head.reshape(-1, config.chunk, config.action_dim)
        return self.normaliser.restore_actions(actions), memory.mean(dim=1)

    def _image_tokens(self, images: Sequence[Tensor]) -> Tensor:
        nets = self.model.backbone
        if self.together:
            x = self.normaliser.scale(0, self._pictures(images))
            return self._project(nets(x), 0, len(images))
        scaled = [self.normaliser.scale(i, self._pictures([image], i)) for i, image in enumerate(images)]
        each = nets if isinstance(nets, nn.ModuleList) else [nets] * len(images)
        features = [net(x) for net, x in zip(each, scaled, strict=True)]
        return torch.cat([self._project(x, i, 1) for i, x in enumerate(features)], dim=1)

    def _pictures(self, images: Sequence[Tensor], index: int = 0) -> Tensor:
        """Pixel values of pictures that come out in the size of the camera at ``index``, as one batch."""
        height, width = self.config.image_size(self.config.cameras[index])
        if len(images) == 1:
            pictures = self.normaliser.picture(images[0])
        elif len({(camera.height, camera.width) for camera in self.config.cameras}) == 1:
            pictures = self.normaliser.picture(torch.cat(list(images)))
        else:
            pictures = torch.cat([self.normaliser.picture(image) for image in images])
        if self.config.resize is None:
            return pictures
        return pictures.reshape(-1, 3, height, width)  # for the graph, whose Resize states no size

    def _project(self, features: Tensor, index: int, cameras: int) -> Tensor:
        """(cameras·B, C, h, w) of ``cameras`` from ``index`` on, of one size → (B, cameras·h·w, D)."""
        height, width = self.config.feature_size(self.config.cameras[index])
        tokens, dim = height * width, self.config.dim
        x = self.model.encoder_img_feat_input_proj(features).reshape(-1, dim, tokens).transpose(1, 2)
        if cameras == 1:
            return x
        return x.reshape(cameras, -1, tokens, dim).transpose(0, 1).reshape(-1, cameras * tokens, dim)


def _low_tokens(model: ACT) -> nn.Linear:
    """(B, S) → (B, 2·D): the latent's token, a constant, and the state's."""
    source, latent = model.encoder_robot_state_input_proj, model.encoder_latent_input_proj
    layer = nn.Linear(source.in_features, 2 * source.out_features)
    layer.weight.copy_(torch.cat([torch.zeros_like(source.weight), source.weight]))
    layer.bias.copy_(torch.cat([latent.bias, source.bias]))
    return layer


def _first_queries(layer: DecoderLayer, queries: Tensor) -> Tensor:
    """What the first decoder layer adds its cross-attention to, (H, D): the same for every observation."""
    attention, zeros = layer.self_attn, torch.zeros_like(queries)
    value = layer.norm1(zeros) if layer.pre_norm else zeros
    weight, bias = attention.in_proj_weight.chunk(3)[2], attention.in_proj_bias.chunk(3)[2]
    # Weights that add up to 1, over values that are all equal.
    attended = attention.out_proj(F.linear(value, weight, bias))
    return attended if layer.pre_norm else layer.norm1(attended)


class _Projection(nn.Module):
    """One of an attention's input projections, ``part`` "q", "k" or "v", with the positions' share constant.

    (B, T, D) → (B, heads, T, d): ``(x + pos) Wᵀ + b = x Wᵀ + (pos Wᵀ + b)``. Queries come scaled by 1/√d.
    As one product the three would have to be taken apart again, which costs more than it saves.
    """

    place: Tensor

    def __init__(self, attention: Attention, part: str, pos: Tensor) -> None:
        super().__init__()
        index = "qkv".index(part)
        tokens, dim = pos.shape
        width = dim // attention.heads
        scale = width**-0.5 if part == "q" else 1.0
        self.sizes = (tokens, attention.heads, width)
        self.layer = nn.Linear(dim, dim)
        self.layer.weight.copy_(attention.in_proj_weight.chunk(3)[index] * scale)
        self.layer.bias.copy_(attention.in_proj_bias.chunk(3)[index] * scale)
        self.placed = part != "v"
        if self.placed:
            self.register_buffer("place", pos @ self.layer.weight.T)

    def forward(self, x: Tensor) -> Tensor:
        tokens, heads, width = self.sizes
        rows = self.layer(x.reshape(-1, heads * width)).reshape(-1, tokens, heads * width)
        placed = rows + self.place if self.placed else rows
        return placed.reshape(-1, tokens, heads, width).transpose(1, 2)


class _Projections(nn.Module):
    """Several of them, on the same tokens."""

    def __init__(self, attention: Attention, parts: str, pos: Tensor) -> None:
        super().__init__()
        self.parts = parts
        for part in parts:
            self.add_module(part, _Projection(attention, part, pos))

    def forward(self, x: Tensor) -> Sequence[Tensor]:
        return [self.get_submodule(part)(x) for part in self.parts]


class _Mix(nn.Module):
    """Attention of queries already scaled, (B, heads, T, d) each, and its output projection → (B, Q, D)."""

    def __init__(self, attention: Attention, queries: int) -> None:
        super().__init__()
        self.out, self.queries = attention.out_proj, queries

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        dim = self.out.in_features
        weights = (query @ key.transpose(2, 3)).softmax(dim=-1)
        rows = (weights @ value).transpose(1, 2).reshape(-1, dim)
        return self.out(rows).reshape(-1, self.queries, dim)


class _Feed(nn.Module):
    def __init__(self, layer: EncoderLayer | DecoderLayer, tokens: int, activation: str) -> None:
        super().__init__()
        self.linear1, self.linear2, self.tokens = layer.linear1, layer.linear2, tokens
        self.activation = F.relu if activation == "relu" else F.gelu

    def forward(self, x: Tensor) -> Tensor:
        dim = self.linear1.in_features
        return self.linear2(self.activation(self.linear1(x.reshape(-1, dim)))).reshape(-1, self.tokens, dim)


class _EncoderStep(nn.Module):
    def __init__(self, layer: EncoderLayer, pos: Tensor, activation: str) -> None:
        super().__init__()
        self.norm1, self.norm2, self.pre_norm = layer.norm1, layer.norm2, layer.pre_norm
        self.qkv = _Projections(layer.self_attn, "qkv", pos)
        self.mix = _Mix(layer.self_attn, len(pos))
        self.feed = _Feed(layer, len(pos), activation)

    def forward(self, x: Tensor) -> Tensor:
        if self.pre_norm:
            x = x + self.mix(*self.qkv(self.norm1(x)))
            return x + self.feed(self.norm2(x))
        x = self.norm1(x + self.mix(*self.qkv(x)))
        return self.norm2(x + self.feed(x))


class _LookStep(nn.Module):
    """Cross-attention and perceptron of a decoder layer whose queries are constant."""

    base: Tensor
    query: Tensor

    def __init__(
        self, layer: DecoderLayer, queries: Tensor, pos: Tensor, base: Tensor, activation: str
    ) -> None:
        super().__init__()
        self.norm2, self.norm3, self.pre_norm = layer.norm2, layer.norm3, layer.pre_norm
        self.kv = _Projections(layer.multihead_attn, "kv", pos)
        asking = layer.norm2(base) if layer.pre_norm else base
        query = _Projection(layer.multihead_attn, "q", queries)(asking[None])
        self.register_buffer("query", query.contiguous())
        self.register_buffer("base", base)
        self.mix = _Mix(layer.multihead_attn, len(queries))
        self.feed = _Feed(layer, len(queries), activation)

    def forward(self, memory: Tensor) -> Tensor:
        looked = self.mix(self.query, *self.kv(memory)) + self.base
        if self.pre_norm:
            return looked + self.feed(self.norm3(looked))
        x = self.norm2(looked)
        return self.norm3(x + self.feed(x))


class _DecoderStep(nn.Module):
    """A later decoder layer, whose queries have seen the observation."""

    def __init__(self, layer: DecoderLayer, queries: Tensor, pos: Tensor, activation: str) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = layer.norm1, layer.norm2, layer.norm3
        self.pre_norm = layer.pre_norm
        self.qkv = _Projections(layer.self_attn, "qkv", queries)
        self.q = _Projection(layer.multihead_attn, "q", queries)
        self.kv = _Projections(layer.multihead_attn, "kv", pos)
        self.attend, self.look = (_Mix(a, len(queries)) for a in (layer.self_attn, layer.multihead_attn))
        self.feed = _Feed(layer, len(queries), activation)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        if self.pre_norm:
            x = x + self.attend(*self.qkv(self.norm1(x)))
            x = x + self.look(self.q(self.norm2(x)), *self.kv(memory))
            return x + self.feed(self.norm3(x))
        x = self.norm1(x + self.attend(*self.qkv(x)))
        x = self.norm2(x + self.look(self.q(x), *self.kv(memory)))
        return self.norm3(x + self.feed(x))
