"""The transformer of ACT: post-norm (or pre-norm) layers whose positions go to queries and keys only.

As in DETR (Carion et al. 2020), positions are added in every layer and never to the values. Everything
is batch first. Parameter names are those of ``nn.MultiheadAttention`` and LeRobot, so that their
weights load; attention itself goes through ``scaled_dot_product_attention``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from policies.config import ACTConfig
from policies.dropout import dropout, plain_cpu
from policies.kept import Kept
from policies.perceptron import perceptron


class Attention(nn.Module):
    """Multi-head attention with the parameters of ``nn.MultiheadAttention``, batch first."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, keep: Tensor | Kept | None = None) -> Tensor:
        """``query`` (B, Q, D), ``key`` and ``value`` (B, K, D), ``keep`` bool (B, K) → (B, Q, D).

        With `Kept` all three are the rows that it picks, and so is what is returned.
        """
        w_query, w_key, w_value = self.in_proj_weight.chunk(3)
        b_query, b_key, b_value = self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, w, b)
            for x, w, b in ((query, w_query, b_query), (key, w_key, b_key), (value, w_value, b_value))
        )
        picked, keep = (keep, keep.mask) if isinstance(keep, Kept) else (None, keep)
        if picked is not None:
            q, k, v = picked.spread(q), picked.spread(k), picked.spread(v)
        q, k, v = self._split(q), self._split(k), self._split(v)
        mask = None if keep is None else keep[:, None, None, :]
        p = self.dropout if self.training else 0.0
        if p > 0.0 and plain_cpu(q):
            # torch has no fused attention with dropout for processors, and its parts draw slowly.
            mixed = dropout(_weights(q, k, mask), p, True) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
        mixed = mixed.transpose(1, 2).flatten(2)
        return self.out_proj(mixed if picked is None else picked.pick(mixed))

    def alike(self, place: Tensor, value: Tensor, batch: int) -> Tensor:
        """Of ``place`` (1, Q, D) to itself, where every place holds the same ``value`` (D,) → (B, Q, D).

        What a query sees is that value times the sum of its weights: 1, but for dropout. So the weights
        are computed once for the batch, and no value is turned twice.
        """
        w_query, w_key, w_value = self.in_proj_weight.chunk(3)
        b_query, b_key, b_value = self.in_proj_bias.chunk(3)
        held = F.linear(value, w_value, b_value)
        if not self.training or self.dropout == 0.0:
            return self.out_proj(held).expand(batch, place.shape[1], -1)
        q, k = (self._split(F.linear(place, w, b)) for w, b in ((w_query, b_query), (w_key, b_key)))
        weights = _weights(q, k, None).expand(batch, -1, -1, -1)
        sums = dropout(weights, self.dropout, True).sum(-1).transpose(1, 2)
        per_head = self.out_proj.weight.unflatten(1, (self.heads, -1)).permute(1, 2, 0)
        turned = (held.view(self.heads, 1, -1) @ per_head)[:, 0]
        return sums @ turned + self.out_proj.bias

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


def _weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q kᵀ/√d) (…, Q, K); keys where ``mask`` is False weigh nothing."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1)


class EncoderLayer(nn.Module):
    """Self-attention and a two-layer perceptron."""

    def __init__(self, config: ACTConfig) -> None:
        super().__init__()
        dim, dropout = config.dim, config.dropout
        self.self_attn = Attention(dim, config.heads, dropout)
        self.linear1 = nn.Linear(dim, config.ffn)
        self.linear2 = nn.Linear(config.ffn, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = dropout
        self.pre_norm = config.pre_norm
        self.activation = F.relu if config.activation == "relu" else F.gelu

    def forward(
        self, x: Tensor, pos: Tensor, keep: Tensor | Kept | None = None, first_only: bool = False
    ) -> Tensor:
        """``x`` (B, T, D), ``pos`` broadcastable to it, ``keep`` bool (B, T) → (B, T, D).

        ``first_only`` computes the first token's output alone: (B, 1, D). With `Kept` everything is the
        rows that it picks.
        """
        own = x[:, :1] if first_only else x
        if self.pre_norm:
            own = own + self._attend(self.norm1(x), pos, keep, first_only)
            return own + self._feed(self.norm2(own))
        own = self.norm1(own + self._attend(x, pos, keep, first_only))
        return self.norm2(own + self._feed(own))

    def _attend(self, x: Tensor, pos: Tensor, keep: Tensor | Kept | None, first_only: bool) -> Tensor:
        placed = x + pos
        query = placed[:, :1] if first_only else placed
        return dropout(self.self_attn(query, placed, x, keep), self.dropout, self.training)

    def _feed(self, x: Tensor) -> Tensor:
        out = perceptron(x, self.linear1, self.linear2, self.activation, self.dropout)
        return dropout(out, self.dropout, self.training)


class DecoderLayer(nn.Module):
    """Self-attention over the action queries, attention to the encoder's tokens, a perceptron."""

    def __init__(self, config: ACTConfig) -> None:
        super().__init__()
        dim, dropout = config.dim, config.dropout
        self.self_attn = Attention(dim, config.heads, dropout)
        self.multihead_attn = Attention(dim, config.heads, dropout)
        self.linear1 = nn.Linear(dim, config.ffn)
        self.linear2 = nn.Linear(config.ffn, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)
        self.dropout = dropout
        self.pre_norm = config.pre_norm
        self.activation = F.relu if config.activation == "relu" else F.gelu

    def forward(self, x: Tensor | None, query_pos: Tensor, memory: Tensor, memory_pos: Tensor) -> Tensor:
        """``x`` (B, H, D) queries, ``memory`` (B, T, D) tokens, positions broadcastable → (B, H, D).

        None instead of ``x`` is all zeros, as at the bottom of the decoder.
        """
        if x is None and self.training:
            x = self._begin(query_pos, len(memory))
        else:
            x = torch.zeros_like(query_pos).expand(len(memory), -1, -1) if x is None else x
            seen = self.norm1(x) if self.pre_norm else x
            x = x + self._attend(seen, query_pos)
        if self.pre_norm:
            x = x + self._look(self.norm2(x), query_pos, memory, memory_pos)
            return x + self._feed(self.norm3(x))
        x = self.norm1(x)
        x = self.norm2(x + self._look(x, query_pos, memory, memory_pos))
        return self.norm3(x + self._feed(x))

    def _attend(self, x: Tensor, pos: Tensor) -> Tensor:
        placed = x + pos
        return dropout(self.self_attn(placed, placed, x), self.dropout, self.training)

    def _begin(self, pos: Tensor, batch: int) -> Tensor:
        """`_attend` of zeros (B, H, D): every query holds the same value, and only its place is its own."""
        zero = torch.zeros_like(pos[0, 0])
        seen = self.norm1(zero) if self.pre_norm else zero
        return dropout(self.self_attn.alike(pos + seen, seen, batch), self.dropout, self.training)

    def _look(self, x: Tensor, pos: Tensor, memory: Tensor, memory_pos: Tensor) -> Tensor:
        seen = self.multihead_attn(x + pos, memory + memory_pos, memory)
        return dropout(seen, self.dropout, self.training)

    def _feed(self, x: Tensor) -> Tensor:
        out = perceptron(x, self.linear1, self.linear2, self.activation, self.dropout)
        return dropout(out, self.dropout, self.training)


class Encoder(nn.Module):
    """A stack of encoder layers; a last norm only when they are pre-norm."""

    def __init__(self, config: ACTConfig, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(layers))
        self.norm = nn.LayerNorm(config.dim) if config.pre_norm else nn.Identity()

    def forward(self, x: Tensor, pos: Tensor, keep: Tensor | None = None, first_only: bool = False) -> Tensor:
        """See `EncoderLayer.forward`; with ``first_only`` the last layer computes the first token alone.

        Nobody reads then what becomes of tokens that are not to keep, and the layers before leave them out.
        """
        *before, last = self.layers
        if first_only and keep is not None and before and plain_cpu(x) and not bool(keep.all()):
            kept = Kept(keep)
            rows, places = kept.pick(x), kept.pick(pos.expand_as(x))
            for layer in before:
                rows = layer(rows, places, kept)
            x = kept.spread(rows)
        else:
            for layer in before:
                x = layer(x, pos, keep)
        return self.norm(last(x, pos, keep, first_only))


class Decoder(nn.Module):
    """A stack of decoder layers and a last norm."""

    def __init__(self, config: ACTConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, query_pos: Tensor, memory: Tensor, memory_pos: Tensor) -> Tensor:
        """From queries that are zero; see `DecoderLayer.forward`."""
        x = None
        for layer in self.layers:
            x = layer(x, query_pos, memory, memory_pos)
        return self.norm(x)
